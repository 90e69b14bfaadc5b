"""Strips and tiles of TIFF files: from stored bytes to numbers."""

from collections.abc import Sequence
import dataclasses
import lzma
import zlib

import numpy as np

from sadnet_jax.images.formats import jpeg

_NONE, _LZW, _JPEG, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD = 1, 5, 7, 8, 32773, 32946, 34925, 50000
_OTHERS = {2: 'fax', 3: 'fax', 4: 'fax', 6: 'old JPEG', 34712: 'JPEG 2000', 34887: 'LERC', 50001: 'WebP'}
# Most bytes that a stored byte stands for; of the last two there is no useful limit.
MOST_EXPANSION = {
  _LZW: 1500,
  _JPEG: 1536,
  _DEFLATE: 1032,
  _OLD_DEFLATE: 1032,
  _PACKBITS: 64,
  _LZMA: 10_000,
  _ZSTD: 100_000,
}
_RGB, _YCBCR = 2, 6


@dataclasses.dataclass(frozen=True)
class Layout:
  """How pixels are stored; parts are strips or tiles, all of one size but the last strip."""

  width: int
  height: int
  samples: int
  bits: int
  photometric: int
  planar: bool
  compression: int
  predictor: int
  order: str
  tiled: bool
  part_width: int
  part_height: int
  offsets: Sequence[int]
  lengths: Sequence[int]
  tables: bytes

  @property
  def columns(self) -> int:
    """Parts beside each other."""
    return -(-self.width // self.part_width)

  @property
  def rows(self) -> int:
    """Parts below each other."""
    return -(-self.height // self.part_height)


def check_compression(compression: int) -> None:
  """Raises ValueError for one that is not read."""
  if compression != _NONE and compression not in MOST_EXPANSION:
    name = _OTHERS.get(compression, 'unknown')
    raise ValueError(
      f'got a TIFF of compression {compression} ({name}), want none, LZW, deflate, PackBits, JPEG, LZMA or '
      'Zstandard (save it anew)'
    )


def decode_segment(stored: bytes, layout: Layout, rows: int) -> np.ndarray:
  """Numbers of a part, uint8 or uint16 [rows or tile's height, part's width, channels].

  Args:
    stored: As in the file.
    layout: Of the file.
    rows: How many rows of the picture the part holds.

  Raises:
    ValueError: The part is damaged.
  """
  channels = 1 if layout.planar else layout.samples
  height = layout.part_height if layout.tiled else rows
  if layout.compression == _JPEG:
    return _decode_jpeg(stored, layout, (height, layout.part_width, channels))
  row_bytes = -(-layout.part_width * channels * layout.bits // 8)
  # The last strip may be as long as the others.
  content = _decompress(stored, layout.compression, layout.part_height * row_bytes)
  if len(content) < height * row_bytes:
    raise ValueError('got a TIFF whose pixels are incomplete, want a complete one (the file is damaged)')
  content = content[: height * row_bytes]
  if layout.bits < 8:
    return _unpack_bits(content, layout, height)
  numbers = np.frombuffer(content, layout.order + 'u2' if layout.bits == 16 else np.uint8)
  array = numbers.reshape(height, layout.part_width, channels)
  if layout.predictor == 2:
    array = np.cumsum(array, axis=1, dtype=array.dtype.newbyteorder('='))
  return array


def _decompress(stored, compression, size):
  if compression == _NONE:
    return stored
  if compression in (_DEFLATE, _OLD_DEFLATE):
    return zlib.decompressobj().decompress(stored, size)
  if compression == _LZMA:
    return lzma.LZMADecompressor().decompress(stored, size)
  import imagecodecs

  decoders = {
    _LZW: imagecodecs.lzw_decode,
    _PACKBITS: imagecodecs.packbits_decode,
    _ZSTD: imagecodecs.zstd_decode,
  }
  return decoders[compression](stored, out=size)


def _decode_jpeg(stored, layout, shape):
  segments = [*(jpeg.split(layout.tables)[0] if layout.tables else []), *jpeg.split(stored)[0]]
  # Colours are as the TIFF says, whatever names of components would be taken for.
  transform = {_YCBCR: 1, _RGB: 0}.get(layout.photometric)
  if shape[2] == 3 and transform is not None:
    kept = [s for s in segments if not 0xE0 <= s.marker <= 0xEF]
    segments = [jpeg.Segment(0xEE, b'Adobe\0\x64\0\0\0\0' + bytes([transform])), *kept]
  array = jpeg.decode(segments)
  if layout.bits != 8 or array.shape[1:] != shape[1:] or array.shape[0] < shape[0]:
    raise ValueError('got a TIFF with JPEG data of another size, want a complete one (the file is damaged)')
  return array


def _unpack_bits(content, layout, height):
  """Numbers of 1, 2 or 4 bits, [height, part's width, 1]."""
  bits = np.unpackbits(np.frombuffer(content, np.uint8).reshape(height, -1), axis=1)
  groups = bits.reshape(height, -1, layout.bits)[:, : layout.part_width]
  weights = 2 ** np.arange(layout.bits - 1, -1, -1, dtype=np.uint8)
  return (groups * weights).sum(axis=2, dtype=np.uint8)[:, :, None]
