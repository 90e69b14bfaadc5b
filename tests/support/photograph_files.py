"""Photographs and image files for tests."""

import io

import numpy as np
from PIL import Image
import tifffile

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
  """The file opened by Pillow, from memory."""
  return Image.open(io.BytesIO(path.read_bytes()))


def assert_same_pixels(ours, theirs):
  np.testing.assert_array_equal(ours.pixels, theirs.pixels)
  assert ours.pixels.dtype == theirs.pixels.dtype
  assert (ours.alpha is None) == (theirs.alpha is None)
  if ours.alpha is not None:
    np.testing.assert_array_equal(ours.alpha, theirs.alpha)


def write_dng(path, height=64, width=96, red=8000, green=16000, blue=8000, neutral=(0.5, 1, 0.5)):
  """Writes an uncompressed DNG file of one colour, as a sensor with a Bayer pattern RGGB sees it.

  Args:
    path: The file.
    height: In pixels, even.
    width: Likewise.
    red: Value of 65535 at red pixels.
    green: Likewise.
    blue: Likewise.
    neutral: What grey is to the sensor, for the white balance.
  """
  path.parent.mkdir(exist_ok=True)
  sensor = np.empty((height, width), np.uint16)
  sensor[::2, ::2], sensor[1::2, 1::2] = red, blue
  sensor[::2, 1::2] = sensor[1::2, ::2] = green
  # XYZ to linear sRGB: a sensor that sees these primaries.
  matrix = [3.2405, -1.5371, -0.4985, -0.9693, 1.8760, 0.0416, 0.0556, -0.2040, 1.0572]
  fractions = [part for value in matrix for part in (round(value * 10_000), 10_000)]
  balance = [part for value in neutral for part in (round(value * 1000), 1000)]
  tags = [
    (271, 's', 0, 'Test Maker', True),
    (272, 's', 0, 'Test Model', True),
    (274, 'H', 1, 1, True),
    (33421, 'H', 2, (2, 2), True),
    (33422, 'B', 4, (0, 1, 1, 2), True),
    (50706, 'B', 4, (1, 4, 0, 0), True),
    (50707, 'B', 4, (1, 1, 0, 0), True),
    (50708, 's', 0, 'Test Model', True),
    (50714, 'H', 1, 0, True),
    (50717, 'H', 1, 65535, True),
    (50721, '2i', 9, fractions, True),
    (50728, '2I', 3, balance, True),
    (50778, 'H', 1, 21, True),
  ]
  tifffile.imwrite(path, sensor, photometric=32803, metadata=None, software=False, extratags=tags)
