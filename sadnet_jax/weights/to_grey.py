"""Weights for colour images, converted for grey ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def to_grey(params: Mapping[str, Any]) -> dict[str, Any]:
  """Converts the weights of a network for colour into those of one for grey images.

  Its output is the mean over the channels of the colour network's output for a grey image repeated in all
  channels. This is a start for training: noise is then equal in all channels, which weights for colour have
  rarely seen.

  Args:
    params: Parameters of a `SADNet` for colour images, float32.

  Returns:
    Parameters of the same network with 1 channel.
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
