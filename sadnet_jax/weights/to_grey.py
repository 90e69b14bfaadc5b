"""Weights of a network for colour images as those of one for grey images."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def to_grey(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns parameters for 1 channel with which a network does to grey images what it did to colour images.

  The network gives what the one for colour gives for an image with three equal channels, averaged over its
  channels. It is a start for training: it takes noise in the grey image for noise that is equal in all
  channels, which weights for colour have rarely seen.

  Args:
    params: Parameters of a `SADNet` with any number of channels, float32.
  """
  first, last = params['res1']['conv0'], params['out']
  return {
    **params,
    'res1': {
      **params['res1'],
      'conv0': {**first, 'kernel': np.sum(first['kernel'], axis=2, keepdims=True)},
    },
    'out': {
      'kernel': np.mean(last['kernel'], axis=3, keepdims=True),
      'bias': np.mean(last['bias'], keepdims=True),
    },
  }
