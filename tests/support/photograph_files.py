"""Photographs, and their files, as tests make and look at them."""

import io

import numpy as np
from PIL import Image

from sadnet_jax.images import Photograph


def random_photograph(height=17, width=31, channels=3, dtype=np.uint8, *, alpha=False, seed=0, **fields):
  random = np.random.default_rng(seed)
  most = np.iinfo(dtype).max
  pixels = random.integers(0, most, (height, width, channels), dtype, endpoint=True)
  opacity = random.integers(0, most, (height, width), dtype, endpoint=True) if alpha else None
  return Photograph(pixels, opacity, **fields)


def smooth_photograph(height=24, width=40, **fields):
  y, x = np.mgrid[:height, :width]
  return Photograph(np.stack([4 * x, 5 * y, 2 * x + 2 * y], axis=-1).astype(np.uint8), **fields)


def write_file(path, data):
  path.write_bytes(data)
  return path


def opened(path):
  """Pillow's view of a file that is closed."""
  return Image.open(io.BytesIO(path.read_bytes()))


def assert_same_pixels(ours, theirs):
  np.testing.assert_array_equal(ours.pixels, theirs.pixels)
  assert ours.pixels.dtype == theirs.pixels.dtype
  assert (ours.alpha is None) == (theirs.alpha is None)
  if ours.alpha is not None:
    np.testing.assert_array_equal(ours.alpha, theirs.alpha)
