"""Directories of tags (IFDs): what TIFF files and EXIF blocks are made of."""

from collections.abc import Iterable
import dataclasses
import struct

# Bytes of one value of each type of TIFF 6.0 and BigTIFF.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BIG_TYPE_BYTES = {16: 8, 17: 8, 18: 8}
_INTEGERS = {1: 'B', 3: 'H', 4: 'I', 7: 'B', 13: 'I', 16: 'Q', 18: 'Q'}
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
# Tags whose value is the place of another directory.
_POINTERS = (EXIF, GPS, INTEROPERABILITY)


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tag's value: its type, how many, and the bytes in the order of its file."""

  type: int
  count: int
  data: bytes


@dataclasses.dataclass
class Directory:
  """Tags by number, directories they point to, the place of the next, and whether some were unreadable."""

  entries: dict[int, Entry]
  children: dict[int, 'Directory']
  next_offset: int = 0
  damaged: bool = False


@dataclasses.dataclass(frozen=True)
class Header:
  """What a TIFF file or an EXIF block begins with; order is '<' or '>'."""

  order: str
  big: bool
  offset: int


def read_header(data: bytes) -> Header | None:
  """Reads the first bytes; None if they are of something else."""
  order = {b'II': '<', b'MM': '>'}.get(bytes(data[:2]))
  if order is None or len(data) < 8:
    return None
  version, offset = struct.unpack_from(order + 'HI', data, 2)
  if version == 42:
    return Header(order, False, offset)
  if version == 43 and len(data) >= 16 and struct.unpack_from(order + 'HH', data, 4) == (8, 0):
    return Header(order, True, struct.unpack_from(order + 'Q', data, 8)[0])
  return None


def read_directory(data: bytes, header: Header, offset: int, *, depth: int = 2) -> Directory:
  """Reads the tags at an offset, and those they point to.

  Tags of unknown types and values outside of the file are left out; ``damaged`` then tells so.

  Raises:
    ValueError: There is no directory at the offset.
  """
  order = header.order
  count_form, place_form, entry_bytes = ('Q', 'Q', 20) if header.big else ('H', 'I', 12)
  head, place_bytes = struct.calcsize(count_form), struct.calcsize(place_form)
  sizes = _TYPE_BYTES | (_BIG_TYPE_BYTES if header.big else {})
  if not 8 <= offset <= len(data) - head:
    raise ValueError(f'got tags at byte {offset} of {len(data)}, want them in the file (it is damaged)')
  (count,) = struct.unpack_from(order + count_form, data, offset)
  end = offset + head + count * entry_bytes
  if end > len(data) or not 1 <= count <= 0xFFFF:
    raise ValueError(f'got a list of {count} tags at byte {offset}, want it in the file (it is damaged)')
  found = Directory({}, {})
  # Values do not share their bytes; else a small file could hold a list of large ones.
  room = len(data)
  for at in range(offset + head, end, entry_bytes):
    tag, kind, number = struct.unpack_from(order + 'HH' + place_form, data, at)
    length = sizes.get(kind, 0) * number
    place = at + entry_bytes - place_bytes
    if length > place_bytes:
      (place,) = struct.unpack_from(order + place_form, data, place)
    if not 1 <= length <= room or place + length > len(data):
      found.damaged = True
      continue
    room -= length
    found.entries[tag] = Entry(kind, number, bytes(data[place : place + length]))
  if end + place_bytes <= len(data):
    (found.next_offset,) = struct.unpack_from(order + place_form, data, end)
  _read_children(found, data, header, depth)
  return found


def _read_children(found, data, header, depth):
  for tag in _POINTERS:
    if tag in found.entries:
      place = integers(found.entries.pop(tag), header.order)
      try:
        if depth == 0 or len(place) != 1:
          raise ValueError
        found.children[tag] = read_directory(data, header, place[0], depth=depth - 1)
        found.damaged |= found.children[tag].damaged
      except ValueError:
        found.damaged = True


def integers(entry: Entry, order: str) -> tuple[int, ...]:
  """The values of a tag of whole numbers; none for other types."""
  form = _INTEGERS.get(entry.type)
  return struct.unpack(f'{order}{entry.count}{form}', entry.data) if form else ()


def rational(entry: Entry, order: str) -> float | None:
  """The value of a tag of one fraction."""
  if entry.type != RATIONAL or entry.count != 1:
    return None
  over, under = struct.unpack(order + 'II', entry.data)
  return over / under if under else None


def integer_entry(values: Iterable[int], order: str) -> Entry:
  """A tag of whole numbers up to 32 bits."""
  values = tuple(values)
  kind = SHORT if max(values) < 2**16 else LONG
  return Entry(kind, len(values), struct.pack(f'{order}{len(values)}{_INTEGERS[kind]}', *values))


def write_directory(directory: Directory, order: str, offset: int) -> bytes:
  """The bytes of tags and all they point to, to be placed at an offset."""
  tags = sorted(set(directory.entries) | set(directory.children))
  table = struct.pack(order + 'H', len(tags))
  after = offset + 2 + 12 * len(tags) + 4
  values = b''
  for tag in tags:
    # Values begin at even places.
    values += b'\0' * ((after + len(values)) % 2)
    place = struct.pack(order + 'I', after + len(values))
    if tag in directory.children:
      table += struct.pack(order + 'HHI', tag, LONG, 1) + place
      values += write_directory(directory.children[tag], order, after + len(values))
      continue
    entry = directory.entries[tag]
    table += struct.pack(order + 'HHI', tag, entry.type, entry.count)
    if len(entry.data) <= 4:
      table += entry.data.ljust(4, b'\0')
    else:
      table += place
      values += entry.data
  return table + struct.pack(order + 'I', 0) + values
