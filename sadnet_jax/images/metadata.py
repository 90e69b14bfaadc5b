"""What image files hold beside pixels: EXIF, colour profiles, Photoshop data, PNG chunks.

Metadata travel as the bytes that a file has, because libraries that decode and encode them again lose
what they do not know: makers' notes hold offsets from the start of the EXIF block, so nothing in it is moved
while it has one.
"""

from collections.abc import Collection, Iterable, Iterator
import dataclasses
import re
import struct
import zlib

import numpy as np

# Transfer functions of high dynamic range, as ITU-T H.273 numbers them: PQ and HLG.
HDR_TRANSFERS = (16, 18)
# Types of TIFF 6.0 and BigTIFF values, and the bytes of one value.
BYTE, SHORT, LONG, RATIONAL, UNDEFINED = 1, 3, 4, 5, 7
_SIGNED_RATIONAL = 10
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BIG_TYPE_BYTES = {16: 8, 17: 8, 18: 8}
_INTEGERS = {1: 'B', 3: 'H', 4: 'I', 7: 'B', 13: 'I', 16: 'Q', 18: 'Q'}
_LAST_CLASSIC_TYPE = 13
# Of one directory; libtiff reads no more either.
MAX_TAGS = 4096
# Tags whose value is the offset of another directory.
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
_POINTERS = (EXIF, GPS, INTEROPERABILITY)
ORIENTATION = 274
# Orientations from here on exchange width and height.
_FIRST_QUARTER_TURN = 5
_MAKERS_NOTE = 37500
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
# What is said of the image across and down: its size in pixels (TIFF's and EXIF's tags), pixels per unit of
# length in print and on the sensor.
_ACROSS_AND_DOWN = ((256, 257), (40962, 40963), (X_RESOLUTION, Y_RESOLUTION), (41486, 41487))
# Offset and length of the thumbnail, in the second directory.
_THUMBNAIL = (513, 514)
# What JPEG puts before an EXIF block, and some writers of other formats too.
EXIF_PREFIX = b'Exif\0\0'
# What JPEG puts before XMP data and before Photoshop's, and the keyword of XMP data in PNG.
XMP_PREFIX = b'http://ns.adobe.com/xap/1.0/\0'
PHOTOSHOP_PREFIX = b'Photoshop 3.0\0'
PNG_XMP_KEYWORD = b'XML:com.adobe.xmp'
METRES_PER_INCH = 0.0254

# The note on signatures by the standard of the C2PA.
NO_CREDENTIALS = 'its content credentials, which are those of the noisy picture, were ignored'

_ICC_HEADER_BYTES = 128
_ICC_SPACES = {1: b'GRAY', 3: b'RGB '}
_PHOTOSHOP_SIGNATURE = b'8BIM'
_PHOTOSHOP_THUMBNAILS = (1033, 1036)
JPEG_START = b'\xff\xd8\xff'
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'


@dataclasses.dataclass(frozen=True)
class Metadata:
  """What comes with the pixels, each as a file has it, or None.

  Attributes:
    icc_profile: The colour profile, for the colour space of the pixels.
    exif: The tags as a small TIFF file (without JPEG's prefix) and without a thumbnail.
    xmp: The packet, XML.
    photoshop: Image resources of Adobe Photoshop, IPTC captions among them, without thumbnails.
    comment: A JPEG comment.
    dpi: Pixels per inch, across and down.
    png_chunks: Type and content of a PNG file's chunks of text, time and colour.
  """

  icc_profile: bytes | None = None
  exif: bytes | None = None
  xmp: bytes | None = None
  photoshop: bytes | None = None
  comment: bytes | None = None
  dpi: tuple[float, float] | None = None
  png_chunks: tuple[tuple[bytes, bytes], ...] = ()


def checked_profile(profile: bytes | None, channels: int) -> tuple[bytes | None, tuple[str, ...]]:
  """Returns an ICC profile if it is one for images of 1 or 3 channels, and notes if it is not.

  Raises:
    ValueError: The profile is for values of high dynamic range.
  """
  if not profile:
    return None, ()
  if (
    len(profile) < _ICC_HEADER_BYTES
    or profile[36:40] != b'acsp'
    or int.from_bytes(profile[:4], 'big') > len(profile)
  ):
    return None, ('its colour profile is damaged and was ignored',)
  refuse_hdr_profile(profile)
  if profile[16:20] != _ICC_SPACES[channels]:
    space = profile[16:20].decode('latin-1').strip()
    name = space if space.isprintable() else 'unknown colours'
    pixels = {1: 'grey', 3: 'RGB'}[channels]
    return None, (f'its colour profile is for {name}, but the pixels are {pixels}: it was ignored',)
  return profile, ()


def refuse_hdr_profile(profile: bytes | None) -> None:
  """Raises ValueError for an ICC profile that is for values of high dynamic range."""
  if profile and _transfer_by_profile(profile) in HDR_TRANSFERS:
    raise ValueError('has a colour profile of high dynamic range (PQ or HLG); convert it to sRGB')


def is_of_linear_light(profile: bytes | None) -> bool:
  """Whether the transfer curve of an ICC profile is the identity."""
  curve = _profile_tag(profile or b'', b'rTRC', b'kTRC')
  # A curve without points, or of one: a gamma of 8.8 bits. A formula of type 0: a gamma of 16.16 bits.
  linear = (
    b'curv' + bytes(8),
    b'curv' + bytes(4) + b'\0\0\0\1' + b'\1\0',
    b'para' + bytes(8) + b'\0\1\0\0',
  )
  return curve.startswith(linear)


def _transfer_by_profile(profile):
  """The transfer characteristics of ITU-T H.273 that a profile names; None if it names none."""
  content = _profile_tag(profile, b'cicp')
  # After its name again, and four bytes that are zero: primaries, transfer.
  return content[9] if len(content) >= 12 else None


def _profile_tag(profile, *names):
  """The content of the first tag of an ICC profile that has one of these names; empty if none has."""
  table = profile[_ICC_HEADER_BYTES:]
  # Their number, then name, offset and length of each.
  for at in range(4, min(4 + 12 * int.from_bytes(table[:4], 'big'), len(table) - 11), 12):
    tag, offset, length = struct.unpack_from('>4sII', table, at)
    if tag in names:
      return profile[offset : offset + length]
  return b''


def checked_photoshop(resources: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
  """Returns Photoshop's image resources without thumbnails of the unprocessed image, and notes on damage."""
  if not resources:
    return None, ()
  kept, at = [], 0
  # What follows the last one is padding.
  while resources[at : at + 4] == _PHOTOSHOP_SIGNATURE:
    try:
      number, name_bytes = struct.unpack_from('>HB', resources, at + 4)
      # Names, with their length, and contents are padded to even lengths.
      size_at = at + 6 + (1 + name_bytes + 1) // 2 * 2
      (size,) = struct.unpack_from('>I', resources, size_at)
    except struct.error:
      break
    end = size_at + 4 + size
    if end > len(resources):
      break
    end += size % 2
    if number not in _PHOTOSHOP_THUMBNAILS:
      kept.append(resources[at:end].ljust(end - at, b'\0'))
    at = end
  else:
    if not resources[at:].strip(b'\0'):
      return b''.join(kept) or None, ()
  return None, ('its Photoshop data are damaged and were ignored',)


def checked_exif(block: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
  """Returns an EXIF block without prefix and thumbnail, and notes on damage.

  A block that is damaged in part is kept; None is returned for one without a readable header.
  """
  if not block:
    return None, ()
  block = block.removeprefix(EXIF_PREFIX)
  if read_header(block) is None:
    return None, ('its EXIF data are damaged and were ignored',)
  parsed = parse_exif(block)
  if parsed is None or parsed[1].damaged:
    return _without_thumbnail(block), ('its EXIF data are damaged and kept as they are',)
  return _without_thumbnail(block), ()


def orientation(exif: bytes | None) -> int:
  """The orientation in an EXIF block, 1 to 8; 1 if there is none or it is another number."""
  parsed = parse_exif(exif) if exif else None
  values = parsed[1].integers(ORIENTATION) if parsed else ()
  return values[0] if len(values) == 1 and 1 <= values[0] <= 8 else 1


def exif_without_makers_note(exif: bytes) -> bytes:
  """The block built again without the maker's note; unchanged if it has none, or is damaged."""
  parsed = parse_exif(exif)
  child = parsed[1].children.get(EXIF) if parsed else None
  # Of damaged data more would be lost.
  if parsed is None or parsed[1].damaged or child is None or _MAKERS_NOTE not in child.entries:
    return exif
  del child.entries[_MAKERS_NOTE]
  if not (child.entries or child.children):
    del parsed[1].children[EXIF]
  return build_exif(parsed[1])


def exif_made_upright(exif: bytes | None) -> bytes | None:
  """The block with orientation 1 in place of another, and its sizes exchanged if that was a quarter turn."""
  parsed = parse_exif(exif) if exif else None
  if not exif or parsed is None or (turn := orientation(exif)) == 1:
    return exif
  header, tags = parsed
  upright = with_orientation_1(exif, header)
  return (
    upright if turn < _FIRST_QUARTER_TURN else _with_exchanged_sizes(upright, header, EXIF in tags.children)
  )


def _with_exchanged_sizes(block, header, has_details):
  """What an EXIF block says of across is said of down, and the reverse; nothing moves."""
  changed = bytearray(block)
  places = _entry_offsets(block, header, header.offset)
  if has_details:
    kind, _, offset = struct.unpack_from(header.order + 'HII', block, places[EXIF] + 2)
    places |= _entry_offsets(block, header, offset) if kind == LONG else {}
  for pair in _ACROSS_AND_DOWN:
    if all(tag in places for tag in pair):
      # Type, number, and value or offset of it.
      across, down = (slice(places[tag] + 2, places[tag] + 12) for tag in pair)
      changed[across], changed[down] = changed[down], changed[across]
  return bytes(changed)


def _entry_offsets(block, header, offset):
  """Where each tag of a directory of a classic TIFF file is listed."""
  (count,) = struct.unpack_from(header.order + 'H', block, offset)
  listed = range(offset + 2, offset + 2 + 12 * count, 12)
  return {struct.unpack_from(header.order + 'H', block, at)[0]: at for at in listed}


def with_orientation_1(data, header: 'Header') -> bytes:
  """The bytes of a TIFF file or an EXIF block with orientation 1 in its first directory; nothing moves."""
  form, number_form, head, entry_bytes, value_bytes = (
    ('Q', 'HHQ', 8, 20, 8) if header.big else ('H', 'HHI', 2, 12, 4)
  )
  changed = bytearray(data)
  (count,) = struct.unpack_from(header.order + form, data, header.offset)
  start = header.offset + head
  for at in range(start, start + entry_bytes * count, entry_bytes):
    tag, kind, number = struct.unpack_from(header.order + number_form, data, at)
    if (tag, number) == (ORIENTATION, 1):
      value = struct.pack(header.order + ('H' if kind == SHORT else 'I'), 1)
      end = at + entry_bytes
      changed[end - value_bytes : end] = value.ljust(value_bytes, b'\0')
  return bytes(changed)


# An attribute or an element; without repetitions of any length, which crafted data could make slow.
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation\s{0,9}(?:=\s{0,9}["\']|>)\s{0,9})[2-8](?=\s{0,9}["\'<])')


def xmp_made_upright(xmp: bytes | None) -> bytes | None:
  """The packet with tiff:Orientation 1 in place of another."""
  return _XMP_ORIENTATION.sub(rb'\g<1>1', xmp) if xmp else xmp


# What promises a gain map, a video or other images behind a JPEG image: attributes and elements.
_FURTHER = rb'hdrgm:Version|(?:G|Op)?Camera:(?:MotionPhoto|MicroVideo)\w{0,40}'
_XMP_FURTHER_IMAGES = re.compile(
  rb'\s{1,9}(?:%b)\s{0,9}=\s{0,9}(?:"[^"]{0,99}"|\'[^\']{0,99}\')' % _FURTHER
  + rb'|<(%b|Container:Directory)(?:\s[^>]{0,99})?>.*?</\1>' % _FURTHER,
  re.DOTALL,
)


def xmp_without_further_images(xmp: bytes | None) -> bytes | None:
  """The packet of a JPEG file without what only holds while other images or a video follow the first one."""
  return _XMP_FURTHER_IMAGES.sub(b'', xmp) if xmp else xmp


def has_resolution(exif: bytes | None) -> bool:
  """Whether an EXIF block says how many pixels there are per inch."""
  parsed = parse_exif(exif) if exif else None
  return parsed is not None and parsed[1].dpi() is not None


def _without_thumbnail(block: bytes) -> bytes:
  """Unlinks the second directory: its thumbnail shows the image before it was denoised."""
  parsed = parse_exif(block)
  if parsed is None or not parsed[1].next_offset:
    return block
  header, tags = parsed
  (count,) = struct.unpack_from(header.order + 'H', block, header.offset)
  link = header.offset + 2 + 12 * count
  unlinked = block[:link] + bytes(4) + block[link + 4 :]
  try:
    second = read_directory(block, header, tags.next_offset, depth=0)
  except ValueError:
    # No link: some programs leave it out, and values follow.
    return block
  try:
    start, length = (second.integers(tag)[0] for tag in _THUMBNAIL)
  except (ValueError, IndexError):
    return unlinked
  # The thumbnail is usually at the end of the block; cut it off if nothing else is lost.
  cut = unlinked[:start] + unlinked[start + length :]
  if start + length == len(block) and parse_exif(cut) == parse_exif(unlinked):
    return cut
  return unlinked


@dataclasses.dataclass(frozen=True)
class Entry:
  """The value of a tag: its type, how many, and the bytes in the byte order of its file."""

  type: int
  count: int
  data: bytes


@dataclasses.dataclass
class Directory:
  """An image file directory (IFD) of TIFF 6.0.

  Attributes:
    order: Byte order, '<' or '>'.
    entries: Values by tag.
    children: Directories that tags point to.
    listed: Number of tags that it lists, those that could not be read included.
    next_offset: Where the next directory is, 0 if there is none.
    damaged: Whether some tags could not be read.
  """

  order: str
  entries: dict[int, Entry] = dataclasses.field(default_factory=dict)
  children: dict[int, 'Directory'] = dataclasses.field(default_factory=dict)
  listed: int = 0
  next_offset: int = 0
  damaged: bool = False

  @property
  def value_bytes(self) -> int:
    """Bytes of all values, those of children included."""
    own = sum(len(entry.data) for entry in self.entries.values())
    return own + sum(child.value_bytes for child in self.children.values())

  def integers(self, tag: int) -> tuple[int, ...]:
    """The values of a tag of whole numbers; empty if it is missing or of another type."""
    entry = self.entries.get(tag)
    form = _INTEGERS.get(entry.type) if entry else None
    return struct.unpack(f'{self.order}{entry.count}{form}', entry.data) if entry and form else ()

  def number(self, tag: int, default: int = 0) -> int:
    """The first value of a tag of whole numbers."""
    return (*self.integers(tag), default)[0]

  def set_integers(self, tag: int, values: Iterable[int]) -> None:
    """Sets whole numbers up to 32 bits."""
    values = tuple(values)
    kind = SHORT if max(values) < 2**16 else LONG
    data = struct.pack(f'{self.order}{len(values)}{_INTEGERS[kind]}', *values)
    self.entries[tag] = Entry(kind, len(values), data)

  def dpi(self) -> tuple[float, float] | None:
    """Pixels per inch, across and down."""
    x, y = (self._rational(tag) for tag in (X_RESOLUTION, Y_RESOLUTION))
    scale = {2: 1, 3: 2.54}.get(self.number(RESOLUTION_UNIT, 2))
    return (x * scale, y * scale) if x and y and scale else None

  def set_dpi(self, dpi: tuple[float, float]) -> None:
    """Sets pixels per inch, across and down."""
    self.set_integers(RESOLUTION_UNIT, [2])
    for tag, value in zip((X_RESOLUTION, Y_RESOLUTION), dpi, strict=True):
      data = struct.pack(self.order + 'II', min(round(value * 1000), 2**32 - 1), 1000)
      self.entries[tag] = Entry(RATIONAL, 1, data)

  def in_order(self, order: str) -> 'Directory':
    """The same tags in another byte order; bytes of undefined meaning stay as they are."""
    if order == self.order:
      return self

    def swapped(entry):
      size = 4 if entry.type in (RATIONAL, _SIGNED_RATIONAL) else _TYPE_BYTES.get(entry.type, 1)
      data = np.frombuffer(entry.data, f'u{size}').byteswap().tobytes()
      return dataclasses.replace(entry, data=data)

    entries = {tag: swapped(entry) for tag, entry in self.entries.items() if entry.type in _TYPE_BYTES}
    return Directory(order, entries, {tag: child.in_order(order) for tag, child in self.children.items()})

  def _rational(self, tag):
    entry = self.entries.get(tag)
    if entry is None or entry.type != RATIONAL or entry.count != 1:
      return None
    over, under = struct.unpack(self.order + 'II', entry.data)
    return over / under if under else None


@dataclasses.dataclass(frozen=True)
class Header:
  """The start of a TIFF file or an EXIF block: byte order '<' or '>', BigTIFF or not, first directory."""

  order: str
  big: bool
  offset: int


def read_header(data, versions: Collection[int] = (42,)) -> Header | None:
  """Reads the first bytes of a buffer; None if they are not TIFF.

  Args:
    data: The buffer.
    versions: The numbers that may stand where TIFF has 42.
  """
  order = {b'II': '<', b'MM': '>'}.get(bytes(data[:2]))
  if order is None or len(data) < 8:
    return None
  version, offset = struct.unpack_from(order + 'HI', data, 2)
  if version in versions:
    return Header(order, False, offset)
  if version == 43 and len(data) >= 16 and struct.unpack_from(order + 'HH', data, 4) == (8, 0):
    return Header(order, True, struct.unpack_from(order + 'Q', data, 8)[0])
  return None


def read_directory(
  data,
  header: Header,
  offset: int,
  *,
  depth: int = 2,
  max_tags: int = MAX_TAGS,
  max_bytes: int | None = None,
) -> Directory:
  """Reads the directory at an offset of a buffer, and those it points to.

  Tags of unknown types and values outside of the buffer are skipped and reported by ``damaged``.

  Args:
    data: The buffer.
    header: Its header.
    offset: Where the directory begins.
    depth: How many levels of directories that it points to are read as well.
    max_tags: Most tags that a directory may list.
    max_bytes: Most bytes of all values that are read; None for as many as the buffer has.

  Raises:
    ValueError: There is no directory at the offset, or it lists too many tags.
  """
  order = header.order
  count_form, offset_form, entry_bytes = ('Q', 'Q', 20) if header.big else ('H', 'I', 12)
  head, offset_bytes = struct.calcsize(count_form), struct.calcsize(offset_form)
  sizes = _TYPE_BYTES | (_BIG_TYPE_BYTES if header.big else {})
  if not 8 <= offset <= len(data) - head:
    raise ValueError(f'the file is damaged or incomplete: its tags should be at byte {offset} of {len(data)}')
  (count,) = struct.unpack_from(order + count_form, data, offset)
  end = offset + head + count * entry_bytes
  if end > len(data) or not 1 <= count <= max_tags:
    raise ValueError(f'the file is damaged or incomplete: it lists {count} tags at byte {offset}')
  found = Directory(order, listed=count)
  # Values do not share their bytes, those of other directories included; else a small file could hold a list
  # of large ones.
  room = len(data) if max_bytes is None else max_bytes
  for at in range(offset + head, end, entry_bytes):
    tag, kind, number = struct.unpack_from(order + 'HH' + offset_form, data, at)
    length = sizes.get(kind, 0) * number
    start = at + entry_bytes - offset_bytes
    if length > offset_bytes:
      (start,) = struct.unpack_from(order + offset_form, data, start)
    if not 1 <= length <= room or start + length > len(data):
      found.damaged = True
      continue
    room -= length
    found.entries[tag] = Entry(kind, number, bytes(data[start : start + length]))
  if end + offset_bytes <= len(data):
    (found.next_offset,) = struct.unpack_from(order + offset_form, data, end)
  for tag in _POINTERS:
    if tag in found.entries:
      _read_child(found, tag, data, header, depth, room)
      room -= found.children[tag].value_bytes if tag in found.children else 0
  return found


def _read_child(parent, tag, data, header, depth, max_bytes):
  offsets = parent.integers(tag)
  del parent.entries[tag]
  try:
    if depth == 0 or len(offsets) != 1:
      raise ValueError
    child = read_directory(data, header, offsets[0], depth=depth - 1, max_bytes=max_bytes)
    parent.children[tag] = child
    parent.damaged |= child.damaged
  except ValueError:
    parent.damaged = True


def parse_exif(block: bytes) -> tuple[Header, Directory] | None:
  """Header and tags of an EXIF block; None if it has none that can be read."""
  header = read_header(block)
  if header is None or header.big:
    return None
  try:
    return header, read_directory(block, header, header.offset)
  except ValueError:
    return None


def build_exif(directory: Directory) -> bytes:
  """An EXIF block of the tags in a directory."""
  start = {'<': b'II', '>': b'MM'}[directory.order] + struct.pack(directory.order + 'HI', 42, 8)
  return start + pack_directory(directory, len(start))


def pack_directory(directory: Directory, offset: int) -> bytes:
  """The bytes of a directory and all it points to, for an offset; types that BigTIFF added are dropped."""
  order = directory.order
  entries = {tag: entry for tag, entry in directory.entries.items() if entry.type <= _LAST_CLASSIC_TYPE}
  tags = sorted(set(entries) | set(directory.children))
  table = struct.pack(order + 'H', len(tags))
  after = offset + 2 + 12 * len(tags) + 4
  values = b''
  for tag in tags:
    # Values begin at even offsets.
    values += b'\0' * ((after + len(values)) % 2)
    start = struct.pack(order + 'I', after + len(values))
    if tag in directory.children:
      table += struct.pack(order + 'HHI', tag, LONG, 1) + start
      values += pack_directory(directory.children[tag], after + len(values))
      continue
    entry = entries[tag]
    table += struct.pack(order + 'HHI', tag, entry.type, entry.count)
    if len(entry.data) <= 4:
      table += entry.data.ljust(4, b'\0')
    else:
      table += start
      values += entry.data
  return table + struct.pack(order + 'I', 0) + values


def png_chunks(data) -> Iterator[tuple[bytes, bytes, bool]]:
  """Type, content and whether the checksum is right, for each chunk of a PNG file up to its end.

  Raises:
    ValueError: The file is cut off, or a chunk that is needed to decode it is damaged or unknown.
  """
  at = len(PNG_SIGNATURE)
  while True:
    length, kind = struct.unpack_from('>I4s', data, at) if at + 12 <= len(data) else (len(data), b'')
    if at + 12 + length > len(data):
      raise ValueError('the file is damaged or incomplete: it is cut off')
    content = data[at + 8 : at + 8 + length]
    sound = zlib.crc32(content, zlib.crc32(kind)) == struct.unpack_from('>I', data, at + 8 + length)[0]
    # An upper-case first letter means that decoders must know the chunk.
    if not kind[0] & 0x20 and not (sound and kind in (b'IHDR', b'PLTE', b'IDAT', b'IEND')):
      raise ValueError(f'the file is damaged or incomplete: its chunk {kind!r} is corrupt or unknown')
    at += 12 + length
    if kind == b'IEND':
      return
    yield kind, content, sound


def pack_png_chunk(kind: bytes, content: bytes) -> bytes:
  """The bytes of a chunk in a PNG file."""
  crc = zlib.crc32(content, zlib.crc32(kind))
  return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', crc)


def jxl_boxes(data) -> Iterator[tuple[bytes, int, int]]:
  """Type, start and end of each box of a JPEG XL file; none if the file is pixels without boxes."""
  at = 0
  while data[:4] == b'\0\0\0\x0c' and at + 8 <= len(data):
    length, kind = struct.unpack_from('>I4s', data, at)
    # The last one may have no length, and pixels one of 64 bits, which are taken for the last.
    end = at + length if length >= 8 else len(data)
    yield kind, at, end
    at = end
