"""EXIF blocks: small TIFF files without pixels, kept byte by byte as far as can be.

Notes of camera makers hold places counted from the start of the block; so nothing in it is moved.
"""

import struct

from sadnet_jax.images.directories import (
  SHORT,
  Directory,
  Header,
  integers,
  rational,
  read_directory,
  read_header,
  write_directory,
)

# The name that JPEG puts before the block, and some writers of other formats, too.
PREFIX = b'Exif\0\0'
_ORIENTATION = 274
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
# The thumbnail's place and length, in the second directory.
_THUMBNAIL = (513, 514)


def parse(block: bytes) -> tuple[Header, Directory] | None:
  """The tags of a block; None if it has none that can be read."""
  header = read_header(block)
  if header is None or header.big:
    return None
  try:
    return header, read_directory(block, header, header.offset)
  except ValueError:
    return None


def checked(block: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
  """What of a file's EXIF to keep.

  Args:
    block: As found, with or without the name before it.

  Returns:
    The block without a thumbnail, or None, and notes on damage.
  """
  if not block:
    return None, ()
  block = block.removeprefix(PREFIX)
  if read_header(block) is None:
    return None, ('its EXIF data are damaged and left out',)
  parsed = parse(block)
  if parsed is None or parsed[1].damaged:
    return without_thumbnail(block), ('its EXIF data are damaged and kept as they are',)
  return without_thumbnail(block), ()


def orientation(block: bytes | None) -> int:
  """The orientation, 1 to 8; 1 where none is given, or another number."""
  parsed = parse(block) if block else None
  entry = parsed[1].entries.get(_ORIENTATION) if parsed else None
  values = integers(entry, parsed[0].order) if parsed and entry else ()
  return values[0] if len(values) == 1 and 1 <= values[0] <= 8 else 1


def resolution_dpi(directory: Directory, order: str) -> tuple[float, float] | None:
  """Pixels per inch by the tags of a TIFF file."""
  entries = directory.entries
  if _X_RESOLUTION not in entries or _Y_RESOLUTION not in entries:
    return None
  x, y = (rational(entries[tag], order) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
  unit = integers(entries[_RESOLUTION_UNIT], order) if _RESOLUTION_UNIT in entries else (2,)
  scale = {2: 1, 3: 2.54}.get(unit[0]) if len(unit) == 1 else None
  return (x * scale, y * scale) if x and y and scale else None


def has_resolution(block: bytes | None) -> bool:
  """Whether a block tells pixels per inch."""
  parsed = parse(block) if block else None
  return parsed is not None and resolution_dpi(parsed[1], parsed[0].order) is not None


def made_upright(block: bytes | None) -> bytes | None:
  """The block with orientation 1, if it has one."""
  parsed = parse(block) if block else None
  if not block or parsed is None or orientation(block) == 1:
    return block
  header = parsed[0]
  (count,) = struct.unpack_from(header.order + 'H', block, header.offset)
  for at in range(header.offset + 2, header.offset + 2 + 12 * count, 12):
    tag, kind, number = struct.unpack_from(header.order + 'HHI', block, at)
    if (tag, number) == (_ORIENTATION, 1):
      form = header.order + ('H' if kind == SHORT else 'I')
      value = struct.pack(form, 1).ljust(4, b'\0')
      block = block[: at + 8] + value + block[at + 12 :]
  return block


def without_thumbnail(block: bytes) -> bytes:
  """Unlinks the second directory: its small picture would show the file as it was."""
  parsed = parse(block)
  if parsed is None or not parsed[1].next_offset:
    return block
  header, tags = parsed
  (count,) = struct.unpack_from(header.order + 'H', block, header.offset)
  link = header.offset + 2 + 12 * count
  unlinked = block[:link] + bytes(4) + block[link + 4 :]
  try:
    second = read_directory(block, header, tags.next_offset, depth=0)
    place, length = (integers(second.entries[tag], header.order)[0] for tag in _THUMBNAIL)
  except (ValueError, KeyError, IndexError):
    return unlinked
  # Mostly it is the last thing of the block; cut it off where that loses nothing else.
  cut = unlinked[:place] + unlinked[place + length :]
  if place + length == len(block) and parse(cut) == parse(unlinked):
    return cut
  return unlinked


def build(directory: Directory, order: str) -> bytes:
  """A block of tags that are in memory."""
  start = {'<': b'II', '>': b'MM'}[order] + struct.pack(order + 'HI', 42, 8)
  return start + write_directory(directory, order, len(start))
