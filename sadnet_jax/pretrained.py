"""Weights by name (those that ship with the package), or from a file, a training run or a URL.

  print(*pretrained.available().values(), sep='\\n')
  model, params, about = pretrained.load('color_50')
  denoised = model.apply({'params': params}, noisy)

Weights that ship with the package are available offline. A URL is downloaded on first use.
"""

from sadnet_jax.weights.index import Entry, Noise, available
from sadnet_jax.weights.loading import load, locate

__all__ = ['Entry', 'Noise', 'available', 'load', 'locate']
