"""Image files to arrays and back, with their metadata; imports no JAX.

``arrays`` serves data sets, with 8-bit arrays and nothing else. ``read_photograph`` and
``write_photograph`` serve people's own images: 8 bits, 16 bits and floats, with colour profile, EXIF and
captions.
"""

from sadnet_jax.images.metadata import Metadata
from sadnet_jax.images.photograph import MAX_PIXELS, Photograph, upright
from sadnet_jax.images.reading import read_photograph
from sadnet_jax.images.writing import (
  INPUT_SUFFIXES,
  PHOTOGRAPH_SUFFIXES,
  check_format,
  check_output,
  has_format,
  writable_name,
  write_photograph,
)

__all__ = [
  'INPUT_SUFFIXES',
  'MAX_PIXELS',
  'PHOTOGRAPH_SUFFIXES',
  'Metadata',
  'Photograph',
  'check_format',
  'check_output',
  'has_format',
  'read_photograph',
  'upright',
  'writable_name',
  'write_photograph',
]
