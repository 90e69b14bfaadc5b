"""Weights of one network, converted as a start for training another."""

from collections.abc import Mapping
import logging
from typing import Any

import numpy as np

# Per tap of a deformable group: dy, dx and the logit of the mask.
_OFFSETS, _LOGITS = 2, 1
_log = logging.getLogger(__name__)


def adapt(
  params: Mapping[str, Any], fields: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Converts weights for colour into those for grey images, and deformable groups into fewer, where wanted.

  Each conversion is logged as a warning.

  Args:
    params: Parameters of a `SADNet`, float32.
    fields: Its fields, as in a config's ``model``.
    wanted: The fields of the network to train.

  Returns:
    The parameters and their fields. Fields of other differences stay as they are.
  """
  params, fields = dict(params), dict(fields)
  if (fields['channels'], wanted['channels']) == (3, 1):
    params, fields['channels'] = to_grey(params), 1
    _log.warning('the weights are for colour: converted for grey images, as a start')
  groups, fewer = fields['deformable_groups'], wanted['deformable_groups']
  if fields['use_rsab'] and fewer < groups and groups % fewer == 0:
    params, fields['deformable_groups'] = merge_groups(params, groups, fewer), fewer
    _log.warning('the weights have %d deformable groups: merged into %d, as a start', groups, fewer)
  return params, fields


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


def merge_groups(params: Mapping[str, Any], groups: int, fewer: int) -> dict[str, Any]:
  """Converts the weights of a network into those of one with fewer deformable groups.

  Neighbouring groups become one, whose offsets and logits of the mask are the means of theirs. The output
  changes unless they sampled at the same places, so this is a start for training.

  Args:
    params: Parameters of a `SADNet` with RSABs, float32.
    groups: Its deformable groups.
    fewer: The number wanted, a divisor of ``groups``.

  Returns:
    Parameters of the same network with ``fewer`` deformable groups.
  """

  def merge(predicting):
    # The last axis is that of `deform_conv2d_packed`: all offsets by group, then all logits by group.
    offsets, logits = np.split(predicting, [predicting.shape[-1] * _OFFSETS // (_OFFSETS + _LOGITS)], axis=-1)
    return np.concatenate([mean_of_neighbours(offsets), mean_of_neighbours(logits)], axis=-1)

  def mean_of_neighbours(x):
    by_group = np.reshape(x, (*x.shape[:-1], fewer, groups // fewer, -1))
    return np.mean(by_group, axis=-2).reshape(*x.shape[:-1], -1)

  adaptive = {name: block for name, block in params.items() if 'conv_offset_mask' in block}
  return {
    **params,
    **{
      name: {**block, 'conv_offset_mask': {k: merge(v) for k, v in block['conv_offset_mask'].items()}}
      for name, block in adaptive.items()
    },
  }
