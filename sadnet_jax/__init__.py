"""SADNet (Spatial-Adaptive Network for Single Image Denoising) in JAX and Flax."""

from sadnet_jax.blocks import ContextBlock, OffsetBlock, ResBlock, RSABlock
from sadnet_jax.deform_conv import DeformConv, deform_conv2d
from sadnet_jax.model import SADNet, mean_abs_offsets

__version__ = '0.1.0'

__all__ = [
  'ContextBlock',
  'DeformConv',
  'OffsetBlock',
  'RSABlock',
  'ResBlock',
  'SADNet',
  '__version__',
  'deform_conv2d',
  'mean_abs_offsets',
]
