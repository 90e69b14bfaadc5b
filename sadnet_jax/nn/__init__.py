"""Linen modules: the layers and blocks of SADNet, and the network."""

from sadnet_jax.nn.blocks import ContextBlock, OffsetBlock, ResBlock, RSABlock
from sadnet_jax.nn.layers import Conv, DeformConv, FusionConv, OffsetMaskConv, UpConv
from sadnet_jax.nn.sadnet import (
  SADNet,
  mean_abs_offsets,
  model_from_fields,
  pad_to_multiple,
  param_shapes,
  round_up,
  scale_of,
)

__all__ = [
  'ContextBlock',
  'Conv',
  'DeformConv',
  'FusionConv',
  'OffsetBlock',
  'OffsetMaskConv',
  'RSABlock',
  'ResBlock',
  'SADNet',
  'UpConv',
  'mean_abs_offsets',
  'model_from_fields',
  'pad_to_multiple',
  'param_shapes',
  'round_up',
  'scale_of',
]
