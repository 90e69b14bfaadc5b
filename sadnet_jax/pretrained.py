"""Published weights: those that ship with the package by name, others from a file, a run or a URL.

  print(*pretrained.available().values(), sep='\\n')
  model, params, about = pretrained.load('color_50')
  denoised = model.apply({'params': params}, noisy)

Weights that ship with the package need no network. A URL is downloaded when it is first requested.
"""

from sadnet_jax.weights.index import Entry, Noise, available
from sadnet_jax.weights.loading import load, locate

__all__ = ['Entry', 'Noise', 'available', 'load', 'locate']
