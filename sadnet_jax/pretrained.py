"""Weights by name (those that ship with the package), from files, training runs, URLs, the Hugging Face Hub.

  print(*pretrained.available().values(), sep='\\n')
  model, params, about = pretrained.load('color')
  denoised = model.apply({'params': params}, noisy)

Weights that ship with the package are available offline. Others are downloaded on first use.
"""

from sadnet_jax.weights.index import Entry, Noise, available
from sadnet_jax.weights.loading import load, locate

__all__ = ['Entry', 'Noise', 'available', 'load', 'locate']
