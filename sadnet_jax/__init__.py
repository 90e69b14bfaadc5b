"""SADNet (Spatial-Adaptive Network for Single Image Denoising) in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from sadnet_jax.denoise.denoiser import Denoiser
  from sadnet_jax.nn.blocks import ContextBlock, OffsetBlock, ResBlock, RSABlock
  from sadnet_jax.nn.layers import DeformConv
  from sadnet_jax.nn.sadnet import SADNet, mean_abs_offsets
  from sadnet_jax.ops.deform_conv import deform_conv2d

__version__ = '0.1.0'

__all__ = [
  'ContextBlock',
  'DeformConv',
  'Denoiser',
  'OffsetBlock',
  'RSABlock',
  'ResBlock',
  'SADNet',
  '__version__',
  'deform_conv2d',
  'mean_abs_offsets',
]

_MODULES = {
  'ContextBlock': 'nn.blocks',
  'DeformConv': 'nn.layers',
  'Denoiser': 'denoise.denoiser',
  'OffsetBlock': 'nn.blocks',
  'RSABlock': 'nn.blocks',
  'ResBlock': 'nn.blocks',
  'SADNet': 'nn.sadnet',
  'deform_conv2d': 'ops.deform_conv',
  'mean_abs_offsets': 'nn.sadnet',
}


def __getattr__(name: str) -> object:
  """Imports public names on first use, so that importing the package does not import JAX."""
  if name == 'pretrained':
    return importlib.import_module(f'{__name__}.{name}')
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  value = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
