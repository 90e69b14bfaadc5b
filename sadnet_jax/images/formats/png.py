"""PNG: chunks taken apart and put together."""

from collections.abc import Iterator, Sequence
import io
import struct
import zlib

import numpy as np
from PIL import Image

from sadnet_jax.images import icc
from sadnet_jax.images import metadata as exif
from sadnet_jax.images.formats.png_pixels import SIGNATURE, decode, pack
from sadnet_jax.images.photograph import Metadata, Photograph, left_out

_MOST_METADATA_BYTES = 16 * 2**20
# Chunks that are kept as they are: texts, and those of a fixed length.
_TEXTS = (b'tEXt', b'zTXt', b'iTXt')
_LENGTHS = {b'tIME': 7, b'gAMA': 4, b'cHRM': 32, b'sRGB': 1, b'cICP': 4}
# Transfer functions of high dynamic range: PQ and HLG.
_HDR_TRANSFERS = (16, 18)
_XMP_KEYWORD = b'XML:com.adobe.xmp'
_METRES_PER_INCH = 0.0254


def read(data: bytes) -> Photograph:
  """Reads a PNG file.

  Raises:
    ValueError: It is animated, of high dynamic range, damaged, or not what its header claims.
  """
  notes: list[str] = []
  chunks = list(_chunks(data, notes))
  named = dict(reversed(chunks))
  _refuse_other_pictures(named)
  pixels, alpha = decode(chunks)
  metadata = _metadata(chunks, named, pixels.shape[2], notes)
  return Photograph(pixels, alpha, metadata, notes=tuple(notes))


def _chunks(data: bytes, notes: list[str]) -> Iterator[tuple[bytes, bytes]]:
  at = len(SIGNATURE)
  while True:
    if at + 12 > len(data):
      raise ValueError('got a PNG that ends too early, want a complete one (the file is cut off)')
    length, kind = struct.unpack_from('>I4s', data, at)
    if at + 12 + length > len(data):
      raise ValueError('got a PNG that ends too early, want a complete one (the file is cut off)')
    content = data[at + 8 : at + 8 + length]
    right = zlib.crc32(content, zlib.crc32(kind)) == struct.unpack_from('>I', data, at + 8 + length)[0]
    # Letters tell by their case whether a chunk can be done without.
    critical = not kind[0] & 0x20
    if critical and not right:
      raise ValueError(f'got a PNG whose chunk {kind!r} is damaged, want a complete file')
    if critical and kind not in (b'IHDR', b'PLTE', b'IDAT', b'IEND'):
      raise ValueError(
        f'got a PNG with an unknown chunk {kind!r}, want a common one (the file may be damaged)'
      )
    at += 12 + length
    if kind == b'IEND':
      break
    if right:
      yield kind, content
    else:
      notes.append(f'its chunk {kind!r} is damaged and left out')
  if at < len(data):
    notes.append(f'{len(data) - at} bytes after the picture are left out')


def _refuse_other_pictures(named):
  frames = int.from_bytes(named.get(b'acTL', b'')[:4], 'big')
  if frames > 1:
    raise ValueError(f'got an animated PNG of {frames} frames, want a single picture (save a frame)')
  colour = named.get(b'cICP', b'')
  if len(colour) == 4 and colour[1] in _HDR_TRANSFERS:
    raise ValueError('got a PNG of high dynamic range (PQ or HLG), want standard range (convert it to sRGB)')


def _metadata(chunks, named, channels, notes):
  profile = _inflated(named[b'iCCP'].partition(b'\0')[2][1:]) if b'iCCP' in named else None
  if b'iCCP' in named and profile is None:
    notes.append('its colour profile is damaged and left out')
  profile, about_profile = icc.checked(profile, channels)
  block, about_exif = exif.checked(named.get(b'eXIf'))
  notes += [*about_profile, *about_exif]
  dpi = None
  if len(named.get(b'pHYs', b'')) == 9:
    x, y, unit = struct.unpack('>IIB', named[b'pHYs'])
    dpi = (x * _METRES_PER_INCH, y * _METRES_PER_INCH) if unit == 1 and x and y else None
  packets = [
    content for kind, content in chunks if kind == b'iTXt' and content.startswith(_XMP_KEYWORD + b'\0')
  ]
  return Metadata(
    icc_profile=profile,
    exif=block,
    xmp=(_international_text(packets[0]) or None) if packets else None,
    dpi=dpi,
    png_chunks=tuple(
      (kind, content) for kind, content in chunks if content not in packets and _is_kept(kind, content, notes)
    ),
  )


def _is_kept(kind, content, notes):
  """Whether to carry a chunk over, which others have to read: not what is damaged, nor texts without end."""
  if kind not in _TEXTS and kind not in _LENGTHS:
    return False
  if kind == b'zTXt':
    sound = _inflated(content.partition(b'\0')[2][1:]) is not None
  elif kind == b'iTXt':
    sound = _international_text(content) is not None
  else:
    sound = len(content) == _LENGTHS.get(kind, len(content))
  if not sound:
    notes.append(f'its chunk {kind!r} is damaged and left out')
  return sound


def _international_text(content):
  """The text of an iTXt chunk, None if it is damaged."""
  rest = content.partition(b'\0')[2]
  # Two flags, then language and translated keyword.
  text = rest[2:].split(b'\0', 2)[-1]
  return _inflated(text) if rest[:1] == b'\1' else text


def _inflated(content):
  stream = zlib.decompressobj()
  try:
    text = stream.decompress(content, _MOST_METADATA_BYTES)
  except zlib.error:
    return None
  return text if stream.eof else None


def encode(photograph: Photograph) -> tuple[Sequence[bytes | memoryview], tuple[str, ...]]:
  """The parts of a PNG file that holds all of a photograph but a comment and Photoshop's own data.

  Returns:
    Parts, to be written one after the other, and notes.
  """
  array = photograph.pixels
  if photograph.alpha is not None:
    array = np.dstack([array, photograph.alpha])
  array = array[:, :, 0] if array.shape[2] == 1 else array
  if array.dtype == np.uint16:
    import imagecodecs

    stream = bytes(imagecodecs.png_encode(np.ascontiguousarray(array), level=6))
  else:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'PNG')
    stream = buffer.getvalue()
  chunks, notes = _metadata_chunks(photograph.metadata, photograph.pixels.shape[2])
  # They may all stand between the header and the pixels.
  head = len(SIGNATURE) + 12 + 13
  return (stream[:head], *map(pack, chunks), memoryview(stream)[head:]), notes


def _metadata_chunks(metadata, channels):
  profile, notes = icc.checked(metadata.icc_profile, channels)
  chunks = []
  if profile:
    chunks.append((b'iCCP', b'ICC profile\0\0' + zlib.compress(profile)))
  if metadata.exif:
    chunks.append((b'eXIf', metadata.exif))
  if metadata.dpi:
    x, y = (min(round(dpi / _METRES_PER_INCH), 2**31 - 1) for dpi in metadata.dpi)
    chunks.append((b'pHYs', struct.pack('>IIB', x, y, 1)))
  if metadata.xmp:
    chunks.append((b'iTXt', _XMP_KEYWORD + b'\0\0\0\0\0' + metadata.xmp))
  # A profile and its short form must not both be there.
  chunks += [chunk for chunk in metadata.png_chunks if not (profile and chunk[0] == b'sRGB')]
  if metadata.comment:
    chunks.append((b'tEXt', b'Comment\0' + metadata.comment.replace(b'\0', b' ')))
  return chunks, notes + left_out(metadata, ('photoshop',), 'PNG')
