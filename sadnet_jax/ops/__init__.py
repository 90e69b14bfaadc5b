"""Pure functions of arrays: plain, deformable and adaptive convolutions, NHWC. Imports JAX and NumPy only."""

from sadnet_jax.ops.adaptive_conv import adaptive_conv2d, predict_offset_mask
from sadnet_jax.ops.conv import add_bias, conv2d
from sadnet_jax.ops.deform_conv import deform_conv2d, deform_conv2d_packed
from sadnet_jax.ops.platform import target_platform

__all__ = [
  'adaptive_conv2d',
  'add_bias',
  'conv2d',
  'deform_conv2d',
  'deform_conv2d_packed',
  'predict_offset_mask',
  'target_platform',
]
