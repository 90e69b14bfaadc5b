"""BMP, by Pillow."""

from collections.abc import Sequence
import io
import struct

import numpy as np
from PIL import BmpImagePlugin, Image

from sadnet_jax.images.photograph import Metadata, Photograph, check_size, left_out

_UNCOMPRESSED = (0, 3, 6)


def read(data: bytes) -> Photograph:
  """Reads a BMP file.

  Raises:
    ValueError: It is compressed, or damaged.
  """
  offset, header_bytes = struct.unpack_from('<I4xI', data.ljust(54, b'\0'), 10)[0], len(data)
  header_bytes = int.from_bytes(data[14:18], 'little')
  if header_bytes == 12:
    width, height, _, bits = struct.unpack_from('<HHHH', data.ljust(54, b'\0'), 18)
    compression = 0
  else:
    width, height, _, bits, compression = struct.unpack_from('<iiHHI', data.ljust(54, b'\0'), 18)
  if compression not in _UNCOMPRESSED:
    raise ValueError(f'got a BMP of compression {compression}, want an uncompressed one (save it as PNG)')
  height = abs(height)
  row_bytes = (width * bits + 31) // 32 * 4
  check_size(width, height, 4, (len(data) - offset) // row_bytes * width if row_bytes > 0 else 0)
  with BmpImagePlugin.BmpImageFile(io.BytesIO(data)) as image:
    image.load()
    dpi = image.info.get('dpi')
    if image.mode == 'RGBA':
      array = np.asarray(image)
    else:
      array = np.atleast_3d(np.asarray(image.convert('L' if image.mode in ('1', 'L') else 'RGB')))
  if array.shape[:2] != (height, width):
    raise ValueError('got a BMP with a damaged header, want a complete one')
  alpha = array[:, :, 3] if array.shape[2] == 4 else None
  pixels = array if alpha is None else array[:, :, :3]
  return Photograph(
    np.ascontiguousarray(pixels),
    None if alpha is None else np.ascontiguousarray(alpha),
    Metadata(dpi=dpi if dpi and all(x > 0 for x in dpi) else None),
  )


def encode(photograph: Photograph) -> tuple[Sequence[bytes | memoryview], tuple[str, ...]]:
  """The parts of a BMP file, of uint8 pixels without alpha.

  Returns:
    Parts, to be written one after the other, and notes.
  """
  pixels, metadata = photograph.pixels, photograph.metadata
  buffer = io.BytesIO()
  image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
  image.save(buffer, 'BMP', **({'dpi': metadata.dpi} if metadata.dpi else {}))
  lost = ('icc_profile', 'exif', 'xmp', 'photoshop', 'comment', 'png_chunks')
  return (buffer.getbuffer(),), left_out(metadata, lost, 'BMP')
