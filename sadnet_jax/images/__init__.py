"""People's own pictures: read, and written back with all that came with them.

``photograph`` holds what a file holds, ``reading`` and ``writing`` are the way in and out, and each
format has a module. Containers are taken apart here, so that nothing is allocated before the
header is known to be true, and decoders see only what they need.
"""

from sadnet_jax.images.photograph import MAX_PIXELS, Metadata, Photograph, upright
from sadnet_jax.images.reading import read_photograph
from sadnet_jax.images.writing import PHOTOGRAPH_SUFFIXES, check_output, write_photograph

__all__ = [
  'MAX_PIXELS',
  'PHOTOGRAPH_SUFFIXES',
  'Metadata',
  'Photograph',
  'check_output',
  'read_photograph',
  'upright',
  'write_photograph',
]
