"""The pixels of PNG files: of 8 bits by Pillow, of 16 by libpng, which see no more than they need.

Pillow has no 16-bit colour; libpng prints what it dislikes, and is not told of interlacing.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import io
import struct
import zlib

import numpy as np
from PIL import PngImagePlugin

from sadnet_jax.images.photograph import check_size

SIGNATURE = b'\x89PNG\r\n\x1a\n'
# Bit depths and channels of each colour type: grey, RGB, palette, grey and alpha, RGB and alpha.
_COLOUR_TYPES: Mapping[int, tuple[tuple[int, ...], int]] = {
  0: ((1, 2, 4, 8, 16), 1),
  2: ((8, 16), 3),
  3: ((1, 2, 4, 8), 1),
  4: ((8, 16), 2),
  6: ((8, 16), 4),
}
_PALETTE = 3
# First column and row, and steps, of the seven passes of an interlaced picture.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# A deflated byte stands for at most so many.
_MOST_INFLATED = 1032
_STEP_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Header:
  """What the first chunk says; depth is the bits of a channel."""

  width: int
  height: int
  depth: int
  colour_type: int
  interlaced: bool

  @property
  def pixel_bits(self) -> int:
    """Bits of a pixel."""
    return self.depth * _COLOUR_TYPES[self.colour_type][1]

  def passes(self) -> Iterator[tuple[slice, slice, 'Header', int]]:
    """Rows and columns of each pass, the header of a picture of them alone, and its bytes."""
    for left, top, right, down in _PASSES if self.interlaced else ((0, 0, 1, 1),):
      width, height = -(-(self.width - left) // right), -(-(self.height - top) // down)
      if width > 0 and height > 0:
        alone = Header(width, height, self.depth, self.colour_type, False)
        # The number of a filter stands before each row.
        size = height * (1 + -(-width * self.pixel_bits // 8))
        yield slice(top, None, down), slice(left, None, right), alone, size

  def pack(self) -> bytes:
    """The chunk's content."""
    return struct.pack(
      '>IIBBBBB', self.width, self.height, self.depth, self.colour_type, 0, 0, self.interlaced
    )


def read_header(chunks: Sequence[tuple[bytes, bytes]]) -> Header:
  """The first chunk; ValueError if it is not one of the standard."""
  if not chunks or chunks[0][0] != b'IHDR' or len(chunks[0][1]) != 13:
    raise ValueError('got a PNG without its header, want a complete one (the file is damaged)')
  width, height, depth, colour_type, compression, filters, interlaced = struct.unpack(
    '>IIBBBBB', chunks[0][1]
  )
  depths = _COLOUR_TYPES.get(colour_type, ((), 0))[0]
  if depth not in depths or compression or filters or interlaced > 1:
    raise ValueError(
      f'got a PNG header of colour type {colour_type} and {depth} bits, want one of the standard '
      '(the file is damaged)'
    )
  return Header(width, height, depth, colour_type, bool(interlaced))


def decode(chunks: Sequence[tuple[bytes, bytes]]) -> tuple[np.ndarray, np.ndarray | None]:
  """Pixels of a file's chunks.

  Returns:
    Pixels [H, W, 1 or 3], and alpha [H, W] or None, uint8 or uint16.

  Raises:
    ValueError: They are not what the header claims.
  """
  header = read_header(chunks)
  named = dict(reversed(chunks))
  stored = b''.join(content for kind, content in chunks if kind == b'IDAT')
  # The last partial byte of a row, and the header of the stream, are too little to matter.
  most_pixels = (len(stored) + 8) * _MOST_INFLATED * 8 / header.pixel_bits
  check_size(header.width, header.height, max(1, header.pixel_bits // 8), most_pixels)
  if header.colour_type == _PALETTE and not 3 <= len(named.get(b'PLTE', b'')) <= 768:
    raise ValueError('got a PNG without its palette, want a complete one (the file is damaged)')
  _check_length(stored, sum(size for *_, size in header.passes()))
  array = _decode_16_bit(stored, header) if header.depth == 16 else _decode_8_bit(stored, header, named)
  channels = array.shape[2]
  if channels in (2, 4):
    return np.ascontiguousarray(array[:, :, :-1]), np.ascontiguousarray(array[:, :, -1])
  return array, _key_alpha(array, header, named.get(b'tRNS'))


def _check_length(stored, wanted):
  """Inflates step by step: Pillow takes data that end too early for a picture, black from there on."""
  total = 0
  stream = zlib.decompressobj()
  try:
    for start in range(0, len(stored), _STEP_BYTES):
      rest = stored[start : start + _STEP_BYTES]
      while rest and total <= wanted and not stream.eof:
        total += len(stream.decompress(rest, _STEP_BYTES))
        rest = stream.unconsumed_tail
    if total <= wanted:
      total += len(stream.decompress(b'', wanted + 1 - total))
  except zlib.error as error:
    raise ValueError(f'got a damaged PNG ({error}), want a complete one') from error
  if total != wanted or not stream.eof:
    raise ValueError(
      'got a PNG whose pixels are not as many as its header says, want a complete one (it is damaged)'
    )


def _stream(header, stored, palette=()):
  return b''.join(
    [SIGNATURE, *map(pack, [(b'IHDR', header.pack()), *palette, (b'IDAT', stored), (b'IEND', b'')])]
  )


def _decode_16_bit(stored, header):
  import imagecodecs

  if not header.interlaced:
    return np.atleast_3d(imagecodecs.png_decode(_stream(header, stored)))
  array = np.empty((header.height, header.width, header.pixel_bits // 16), np.uint16)
  content, start = zlib.decompress(stored), 0
  for rows, columns, alone, size in header.passes():
    part = imagecodecs.png_decode(_stream(alone, zlib.compress(content[start : start + size], 1)))
    array[rows, columns] = part.reshape(alone.height, alone.width, -1)
    start += size
  return array


def _decode_8_bit(stored, header, named):
  palette = [
    (kind, named[kind]) for kind in (b'PLTE', b'tRNS') if kind in named and header.colour_type == _PALETTE
  ]
  stream = _stream(header, stored, palette)
  with PngImagePlugin.PngImageFile(io.BytesIO(stream)) as image:
    image.load()
    if header.colour_type != _PALETTE:
      # Of one bit, it is a mode of its own.
      return np.atleast_3d(np.asarray(image.convert('L') if image.mode == '1' else image))
    if np.asarray(image).max() >= len(named[b'PLTE']) // 3:
      raise ValueError('got a PNG with colours outside of its palette, want a complete one (it is damaged)')
    return np.asarray(image.convert('RGBA' if b'tRNS' in named else 'RGB'))


def _key_alpha(array, header, key):
  """Grey and RGB files may name one colour that is transparent."""
  channels = array.shape[2]
  if header.colour_type == _PALETTE or key is None or len(key) != 2 * channels:
    return None
  colour = np.array(struct.unpack(f'>{channels}H', key), np.int64)
  if header.depth < 8:
    colour = colour * 255 // (2**header.depth - 1)
  return np.where((array == colour).all(axis=2), 0, np.iinfo(array.dtype).max).astype(array.dtype)


def pack(chunk: tuple[bytes, bytes]) -> bytes:
  """The bytes of a chunk in a file."""
  kind, content = chunk
  crc = zlib.crc32(content, zlib.crc32(kind))
  return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', crc)
