"""Published weights: those that ship with the package by name, others from a file, a run or a URL.

  print(*pretrained.available().values(), sep='\\n')
  model, params, about = pretrained.load('color_50')
  denoised = model.apply({'params': params}, noisy)

What is shipped needs no network. A URL is downloaded when it is first asked for, never before.
"""

from sadnet_jax.pretrained.index import Entry, Noise, available
from sadnet_jax.pretrained.sources import load, locate

__all__ = ['Entry', 'Noise', 'available', 'load', 'locate']
