"""Images of the dtypes that `sadnet_jax.Denoiser` takes, as floats in [0, 1] and back."""

import jax.numpy as jnp
import numpy as np

# Floats beyond are no images in [0, 1], however noisy.
_FARTHEST = 4.0


def to_float(image: np.ndarray) -> np.ndarray:
  """float32; integers scaled to [0, 1]."""
  if np.issubdtype(image.dtype, np.integer):
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
  return image.astype(np.float32)


def store(out: np.ndarray, denoised: np.ndarray) -> None:
  """Into an array of any accepted dtype: integers scaled, clipped and rounded."""
  if np.issubdtype(out.dtype, np.integer):
    largest = np.iinfo(out.dtype).max
    out[...] = np.round(np.clip(denoised, 0, 1) * np.float32(largest))
  else:
    out[...] = denoised


def check_dtype(image: object) -> None:
  """Raises ValueError for anything but an array of uint8, uint16 or floats."""
  dtype = image.dtype if isinstance(image, np.ndarray) else None
  if dtype is None or (not jnp.issubdtype(dtype, jnp.floating) and dtype not in (np.uint8, np.uint16)):
    raise ValueError(
      f'image: got {dtype or type(image).__name__}, want an array of uint8, uint16 or floats in [0, 1]'
    )


def check_values(image: np.ndarray) -> None:
  """Raises ValueError for floats that are no image, before any work is done on it; takes no memory."""
  if not image.size or np.issubdtype(image.dtype, np.integer):
    return
  # NaN wins both, of which some dtypes warn.
  with np.errstate(invalid='ignore'):
    lowest, highest = float(image.min()), float(image.max())
  if not np.isfinite([lowest, highest]).all():
    raise ValueError('image: got values that are no numbers (NaN or infinite), want floats in [0, 1]')
  if lowest < -_FARTHEST or highest > 1 + _FARTHEST:
    raise ValueError(
      f'image: got floats from {lowest:.6g} to {highest:.6g}, want [0, 1] and noise: divide 8-bit values by '
      '255, or pass them as uint8'
    )
