"""WebP: chunks taken apart here, pixels by Pillow."""

from collections.abc import Sequence
import io
import struct

import numpy as np
from PIL import Image, WebPImagePlugin

from sadnet_jax.images import icc
from sadnet_jax.images import metadata as exif
from sadnet_jax.images.photograph import Metadata, Photograph, check_size, left_out

MAX_SIDE = 16383
# Of Pillow's reader.
_MOST_PIXELS = 2**30 // 6
_LOSSY_START = b'\x9d\x01\x2a'
_LOSSLESS_START = 0x2F


def read(data: bytes) -> Photograph:
  """Reads a WebP file.

  Raises:
    ValueError: It is animated or damaged.
  """
  chunks = _chunks(data)
  frames = sum(kind == b'ANMF' for kind, _ in chunks)
  if frames > 1:
    raise ValueError(f'got an animated WebP of {frames} frames, want a single picture (save a frame)')
  named = dict(reversed(chunks))
  for width, height in _sizes(named):
    # Flat pictures take no bits a pixel at all; the largest side is the limit.
    check_size(width, height, 8)
    if width * height > _MOST_PIXELS:
      raise ValueError(
        f'got a WebP of {width}x{height} pixels, want at most {_MOST_PIXELS:,} (convert it to PNG)'
      )
  with WebPImagePlugin.WebPImageFile(io.BytesIO(data)) as image:
    image.load()
    array = np.asarray(image if image.mode in ('RGB', 'RGBA') else image.convert('RGB'))
  block, about_exif = exif.checked(named.get(b'EXIF'))
  profile, about_profile = icc.checked(named.get(b'ICCP'), 3)
  return Photograph(
    np.ascontiguousarray(array[:, :, :3]),
    np.ascontiguousarray(array[:, :, 3]) if array.shape[2] == 4 else None,
    Metadata(icc_profile=profile, exif=block, xmp=named.get(b'XMP ')),
    lossless=b'VP8L' in named,
    notes=about_exif + about_profile,
  )


def _chunks(data):
  """Type and content of each, in order."""
  end = 8 + int.from_bytes(data[4:8], 'little')
  if end > len(data):
    raise ValueError('got a WebP that ends too early, want a complete one (the file is cut off)')
  chunks, at = [], 12
  while at + 8 <= end:
    kind, length = struct.unpack_from('<4sI', data, at)
    if at + 8 + length > end:
      raise ValueError('got a WebP with a damaged chunk, want a complete one (the file is damaged)')
    chunks.append((kind, data[at + 8 : at + 8 + length]))
    at += 8 + length + length % 2
  return chunks


def _sizes(named):
  """Of the canvas and of the picture on it."""
  found = []
  if len(named.get(b'VP8X', b'')) >= 10:
    found.append(tuple(1 + int.from_bytes(named[b'VP8X'][at : at + 3], 'little') for at in (4, 7)))
  if named.get(b'VP8 ', b'')[3:6] == _LOSSY_START and len(named[b'VP8 ']) >= 10:
    found.append(tuple(side & 0x3FFF for side in struct.unpack_from('<HH', named[b'VP8 '], 6)))
  if len(named.get(b'VP8L', b'')) >= 5 and named[b'VP8L'][0] == _LOSSLESS_START:
    (bits,) = struct.unpack_from('<I', named[b'VP8L'], 1)
    found.append((1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)))
  if not found:
    raise ValueError('got a WebP without a picture, want a complete one (the file is damaged)')
  return found


def encode(photograph: Photograph) -> tuple[Sequence[bytes | memoryview], tuple[str, ...]]:
  """The parts of a WebP file of uint8 pixels: lossless where they come from such a form, else quality 95.

  Returns:
    Parts, to be written one after the other, and notes.
  """
  metadata = photograph.metadata
  # It has no grey: a grey profile may not stay.
  profile, notes = icc.checked(metadata.icc_profile, 3)
  array = np.broadcast_to(photograph.pixels, (*photograph.pixels.shape[:2], 3))
  if photograph.alpha is not None:
    array = np.dstack([array, photograph.alpha])
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(array)).save(
    buffer,
    'WEBP',
    quality=95,
    lossless=photograph.lossless,
    # Colours under full transparency stay as they are, too.
    exact=True,
    icc_profile=profile or b'',
    exif=metadata.exif or b'',
    xmp=metadata.xmp or b'',
  )
  # The EXIF data of TIFF files tell the resolution, too.
  names = (
    'photoshop',
    'comment',
    'png_chunks',
    *(() if exif.has_resolution(metadata.exif) else ('dpi',)),
  )
  return (buffer.getbuffer(),), notes + left_out(metadata, names, 'WebP')
