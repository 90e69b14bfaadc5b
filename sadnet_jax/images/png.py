"""PNG files before libpng decodes them: metadata of bounded size, and damage, of which libpng would print."""

from collections.abc import Mapping, Sequence
import functools
import struct
import zlib

import numpy as np

from sadnet_jax.files import one_line
from sadnet_jax.images import metadata as blocks
from sadnet_jax.images.metadata import Metadata
from sadnet_jax.images.photograph import FULL_WHITE, DecodingError, check_size

# Up to the number of bits.
HEADER_BYTES = 25
# Type and content of each.
Chunks = Sequence[tuple[bytes, bytes]]
# All text and profiles of a file together, decompressed.
_MAX_METADATA_BYTES = 32 * 2**20
# Bit depths and channels of each colour type: grey, RGB, palette, grey and alpha, RGB and alpha.
_TYPES: Mapping[int, tuple[tuple[int, ...], int]] = {
  0: ((1, 2, 4, 8, 16), 1),
  2: ((8, 16), 3),
  3: ((1, 2, 4, 8), 1),
  4: ((8, 16), 2),
  6: ((8, 16), 4),
}
# First column and row, and steps, of the seven passes of an interlaced file.
_PASSES = (
  (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
_TEXTS = (b'tEXt', b'zTXt', b'iTXt')
_LENGTHS = {b'tIME': 7, b'gAMA': 4, b'cHRM': 32, b'sRGB': 1, b'cICP': 4}
# Bytes that Deflate makes of one.
_MAX_INFLATION = 1032
_STEP_BYTES = 2**20


def read_metadata(chunks: Chunks, named: Mapping[bytes, bytes], notes: list[str]) -> Metadata:
  """All but EXIF, with the profile unchecked; refuses text without end.

  Args:
    chunks: Those that are sound.
    named: The first of each type.
    notes: Notes for the user, to which some may be added.

  Raises:
    ValueError: Texts and profiles are too long.
  """
  budget = _MAX_METADATA_BYTES
  xmp, profile, kept = None, None, []
  for kind, content in chunks:
    text = None
    if kind in _TEXTS or kind == b'iCCP':
      text = _text(kind, content, budget)
      budget -= len(text or b'')
      if budget <= 0:
        raise ValueError(
          f'the text and profiles in the PNG file take more than {_MAX_METADATA_BYTES:,} bytes; '
          'save it without them'
        )
    elif kind not in _LENGTHS:
      continue
    if text is None and len(content) != _LENGTHS.get(kind):
      notes.append(ignored(kind))
    elif kind == b'iCCP':
      profile = profile or text
    elif kind == b'iTXt' and content.startswith(blocks.PNG_XMP_KEYWORD + b'\0'):
      xmp = xmp or text or None
    else:
      kept.append((kind, content))
  dpi = None
  if len(named.get(b'pHYs', b'')) == 9:
    x, y, unit = struct.unpack('>IIB', named[b'pHYs'])
    dpi = (x * blocks.METRES_PER_INCH, y * blocks.METRES_PER_INCH) if unit == 1 and x and y else None
  return Metadata(icc_profile=profile, xmp=xmp, dpi=dpi, png_chunks=tuple(kept))


def is_scaled_to_16_bits(samples: np.ndarray, bits: int) -> bool:
  """Whether 16-bit samples are those of fewer bits scaled up, as the PNG specification wants them.

  Args:
    samples: uint16.
    bits: Bits before scaling, from 1 to 15 (sBIT).
  """
  values = np.arange(2**bits, dtype=np.uint32)
  shifted = values << (16 - bits)
  # The upper bits again below, as often as they fit.
  repeated = functools.reduce(np.bitwise_or, [shifted >> start for start in range(0, 16, bits)])
  largest = 2**bits - 1
  multiplied = (values * FULL_WHITE + largest // 2) // largest
  for scaled in (shifted, repeated, multiplied):
    is_scaled = np.zeros(FULL_WHITE + 1, bool)
    is_scaled[scaled] = True
    if is_scaled[samples].all():
      return True
  return False


def sample_bits(start: bytes) -> int | None:
  """Bits per sample, by the first HEADER_BYTES of a file; None if they are not those of a PNG."""
  is_png = start.startswith(blocks.PNG_SIGNATURE) and len(start) >= HEADER_BYTES
  return start[HEADER_BYTES - 1] if is_png else None


def ignored(kind: bytes) -> str:
  """The note on a damaged chunk."""
  return f'its damaged chunk {kind!r} was ignored'


def _text(kind, content, max_bytes):
  """The text or profile of a chunk, at most ``max_bytes`` of it; None if it is damaged."""
  rest = content.partition(b'\0')[2]
  if kind == b'tEXt':
    return content
  if kind == b'iTXt':
    # Two flags, then language and translated keyword.
    text = rest[2:].split(b'\0', 2)[-1]
    return _inflated(text, max_bytes) if rest[:1] == b'\1' else text
  return _inflated(rest[1:], max_bytes)


def _inflated(content, max_bytes):
  stream = zlib.decompressobj()
  try:
    text = stream.decompress(content, max_bytes)
  except zlib.error:
    return None
  return text if stream.eof or len(text) == max_bytes else None


def check_pixels(chunks: Chunks) -> None:
  """Inflates the pixels step by step, to refuse damage before libpng prints messages about it.

  Raises:
    DecodingError: Header, palette or pixels are damaged.
    ValueError: See `check_size`.
  """
  parts = [content for kind, content in chunks if kind == b'IDAT']
  kind, content = chunks[0] if chunks else (b'', b'')
  if kind != b'IHDR' or len(content) != 13:
    raise DecodingError('it has no header')
  width, height, depth, colour_type, compression, filters, interlaced = struct.unpack('>IIBBBBB', content)
  depths, channels = _TYPES.get(colour_type, ((), 0))
  if depth not in depths or compression or filters or interlaced > 1:
    raise DecodingError(f'its header says colour type {colour_type} of {depth} bits')
  bits = depth * channels
  # Joined, because a file may have a chunk for every byte.
  stored = b''.join(parts)
  max_pixels = (len(stored) + 8) * _MAX_INFLATION * 8 / bits
  check_size(width, height, max(1, bits // 8), max_pixels)
  order = [kind for kind, _ in chunks]
  first = order.index(b'IDAT')
  whole = order[first : first + len(parts)] == [b'IDAT'] * len(parts) and order.count(b'IHDR') == 1
  palettes = [len(content) for kind, content in chunks[:first] if kind == b'PLTE']
  palette_fits = colour_type != 3 or (
    len(palettes) == 1 and not palettes[0] % 3 and 3 <= palettes[0] <= 3 << depth
  )
  if not whole or not palette_fits or (b'PLTE' in order) != bool(palettes) or len(palettes) > 1:
    raise DecodingError('its chunks are incomplete or in the wrong order')
  # Where each row begins, with the number of its filter.
  starts, total = [], 0
  for left, top, right, down in _PASSES if interlaced else ((0, 0, 1, 1),):
    columns, rows = -(-(width - left) // right), -(-(height - top) // down)
    if columns > 0 and rows > 0:
      row_bytes = 1 + -(-columns * bits // 8)
      starts.append(total + row_bytes * np.arange(rows))
      total += row_bytes * rows
  _check_rows(stored, np.concatenate(starts), total)


def _check_rows(stored, starts, total):
  stream, done = zlib.decompressobj(), 0
  try:
    for at in range(0, len(stored), _STEP_BYTES):
      part = stored[at : at + _STEP_BYTES]
      while part and done <= total:
        block = stream.decompress(part, _STEP_BYTES)
        part = stream.unconsumed_tail
        rows = starts[np.searchsorted(starts, done) : np.searchsorted(starts, done + len(block))] - done
        if len(rows) and np.frombuffer(block, np.uint8)[rows].max() > 4:
          raise DecodingError('it has rows of an unknown filter')
        done += len(block)
  except zlib.error as error:
    raise DecodingError(one_line(error)) from error
  if done != total or not stream.eof:
    raise DecodingError('it has fewer or more pixels than its header says')
