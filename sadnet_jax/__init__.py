"""SADNet (Spatial-Adaptive Network for Single Image Denoising) in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from sadnet_jax.blocks import ContextBlock, OffsetBlock, ResBlock, RSABlock
  from sadnet_jax.deform_conv import DeformConv, deform_conv2d
  from sadnet_jax.denoiser import Denoiser
  from sadnet_jax.model import SADNet, mean_abs_offsets

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
  'ContextBlock': 'blocks',
  'DeformConv': 'deform_conv',
  'Denoiser': 'denoiser',
  'OffsetBlock': 'blocks',
  'RSABlock': 'blocks',
  'ResBlock': 'blocks',
  'SADNet': 'model',
  'deform_conv2d': 'deform_conv',
  'mean_abs_offsets': 'model',
}


def __getattr__(name: str) -> object:
  """Imports a name when it is first asked for: JAX takes a second, and not all that is here needs it."""
  if name == 'pretrained':
    return importlib.import_module(f'{__name__}.{name}')
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  value = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
