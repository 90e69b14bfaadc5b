"""Tags of TIFF files: what they mean, and what is refused before libtiff decodes the pixels."""

from sadnet_jax.images import metadata as blocks
from sadnet_jax.images.metadata import Directory, Header
from sadnet_jax.images.photograph import FULL_WHITE, DecodingError, check_size

_DNG_VERSION, PHOTOSHOP_LAYERS, WHITE_LEVEL = 50706, 37724, 50717
# Tags of DNG, by version 1.7 of its specification: they describe a sensor. DNGVersion alone makes readers
# take a file for a raw one; WhiteLevel is written to others too.
_DNG_TAGS = (
  *(*range(50706, 50742), *range(50778, 50782), *range(50827, 50835), 50879, *range(50931, 50943)),
  *(*range(50964, 50985), *range(51008, 51113), 51125, *range(51177, 51183), *range(52525, 52555)),
)
XMP_TAG, PHOTOSHOP_TAG, ICC_TAG = 700, 34377, 34675
MAX_SAMPLE_VALUE = 281
# Tags that say how a TIFF file stores its pixels; others are the user's.
_STORAGE_TAGS = (
  *(*range(254, 267), 273, 277, 278, 279, 280, 281, *range(284, 294), 297, 301, *range(317, 326), 330, 332),
  *(336, 338, 339, 340, 341, 342, 347, *range(512, 522), 529, 530, 531, 532, 559),
)
STRUCTURE_TAGS = frozenset((*_STORAGE_TAGS, *_DNG_TAGS, XMP_TAG, PHOTOSHOP_TAG, ICC_TAG, PHOTOSHOP_LAYERS))
_RESOLUTION_TAGS = {blocks.X_RESOLUTION, blocks.Y_RESOLUTION, blocks.RESOLUTION_UNIT}
WHITE_IS_ZERO, _YCBCR = 0, 6
# Channels by photometric interpretation.
COLOURS = {WHITE_IS_ZERO: 1, 1: 1, 2: 3, 3: 3, _YCBCR: 3}
_OTHER_COLOURS = {
  4: 'a mask',
  5: 'CMYK',
  8: 'Lab',
  9: 'ICC Lab',
  10: 'ITU Lab',
  32844: 'LogL',
  32845: 'LogLuv',
}
CREDENTIALS, _EXTRA_SAMPLES = 52545, 338
# Compressions by JPEG.
JPEG = (6, 7)
_OTHER_COMPRESSIONS = {
  34887: 'LERC', 34925: 'LZMA', 50000: 'Zstandard', 50001: 'WebP', 50002: 'JPEG XL', 52546: 'JPEG XL',
}  # fmt: skip
# Tags of all pages after the first together, and bytes of the values that are read of each.
_MAX_PAGE_TAGS = 2**16
_MAX_PAGE_BYTES = 1024
# Bytes of pixels per stored byte: none without compression, less than this with any.
_MAX_EXPANSION = 3000


def is_raw(data) -> bool:
  """Whether the bytes of a TIFF file are the raw file of a camera, by the tags of its first directory."""
  try:
    tags = first_tags(data)[0]
  except ValueError:
    return False
  # Cameras put a small copy of the image first.
  return _DNG_VERSION in tags.entries or bool(tags.number(254) & 1) or tags.number(262) in (32803, 34892)


def first_tags(data) -> tuple[Directory, Header]:
  """The first directory of a file, and its header; an error if it has none."""
  header = blocks.read_header(data)
  if header is None:
    raise DecodingError('it has no header')
  return blocks.read_directory(data, header, header.offset), header


def tagged_white(tags: Directory) -> int | None:
  """DNG's WhiteLevel; or SMaxSampleValue or MaxSampleValue, if it stands for a number of bits."""
  levels = [(tag, tags.number(tag)) for tag in (WHITE_LEVEL, 341, MAX_SAMPLE_VALUE)]
  return next(
    (v for tag, v in levels if 0 < v < FULL_WHITE and (tag == WHITE_LEVEL or not v & (v + 1))), None
  )


def content(tags: Directory, tag: int) -> bytes | None:
  """The bytes of a tag's value, if the file has the tag."""
  return tags.entries[tag].data if tag in tags.entries else None


def exif(tags: Directory) -> bytes | None:
  """An EXIF block of the tags that are the user's, if there are any but the resolution."""
  entries = {tag: entry for tag, entry in tags.entries.items() if tag not in STRUCTURE_TAGS}
  if not set(entries) - _RESOLUTION_TAGS and not tags.children:
    return None
  return blocks.build_exif(Directory(tags.order, entries, tags.children))


def check_pages(data, header: Header, tags: Directory) -> list[str]:
  """Refuses files of several pages, in bounded time whatever pages they list.

  Args:
    data: The bytes of the file.
    header: Its header.
    tags: Its first directory.

  Returns:
    Notes for the user.

  Raises:
    ValueError: There are several pages, reduced images and masks not counted.
  """
  pages, others, seen, offset, left = 1, 0, {header.offset}, tags.next_offset, _MAX_PAGE_TAGS
  damaged = False
  while offset and offset not in seen and not damaged:
    seen.add(offset)
    most = min(left, blocks.MAX_TAGS)
    try:
      page = blocks.read_directory(data, header, offset, depth=0, max_tags=most, max_bytes=_MAX_PAGE_BYTES)
    except ValueError:
      damaged = True
      continue
    left -= page.listed
    # Reduced images and masks of the first page are no pages.
    reduced = page.number(254) & 5 or page.number(255) == 2
    pages, others = pages + (not reduced), others + bool(reduced)
    offset = page.next_offset
  if pages > 1:
    count = f'{pages} or more' if damaged else str(pages)
    raise ValueError(f'is a TIFF file of {count} pages; save them as files of one page')
  notes = ['its thumbnails or masks were ignored'] if others else []
  return notes + ['what follows its first page is damaged and was ignored'] * damaged


def check_photograph(tags: Directory, file_bytes: int) -> float:
  """Refuses what is not a photograph; returns the most pixels that a file of this size can hold.

  Raises:
    ValueError: The colours, the compression, the type of numbers or the size is not supported.
  """
  photometric, compression = tags.number(262, -1), tags.number(259, 1)
  if photometric in _OTHER_COLOURS:
    raise ValueError(
      f'is a TIFF file of {_OTHER_COLOURS[photometric]}; convert it to RGB with its colour profile'
    )
  if photometric not in COLOURS or (photometric == _YCBCR and compression not in JPEG):
    raise ValueError(f'is a TIFF file of photometric interpretation {photometric}; convert it to RGB')
  if compression in _OTHER_COMPRESSIONS:
    name = _OTHER_COMPRESSIONS[compression]
    raise ValueError(f'is a TIFF file compressed by {name}; save it with LZW or Deflate')
  bits, kinds = set(tags.integers(258) or (1,)), set(tags.integers(339) or (1,))
  floating = kinds == {3}
  if not floating and not kinds <= {1, 4}:
    raise ValueError('is a TIFF file of signed or complex numbers; convert it to 16 bits')
  if compression in JPEG and content(tags, _EXTRA_SAMPLES) is not None:
    raise ValueError('is a TIFF file with transparency compressed by JPEG; save it with LZW or Deflate')
  if len(bits) != 1 or not bits <= ({16, 32, 64} if floating else {1, 2, 4, 8, 16}):
    name = '/'.join(map(str, sorted(bits)[:4]))
    raise ValueError(f'is a TIFF file of {name} bits per channel; convert it to 8 or 16')
  expansion = 1 if compression == 1 else _MAX_EXPANSION
  pixel_bits = max(1, tags.number(277, 1)) * min(bits)
  max_pixels = (file_bytes + 8) * 8 * expansion / max(1, pixel_bits)
  for width, height in ((256, 257), (322, 323)):
    if width in tags.entries:
      check_size(tags.number(width), tags.number(height), max(1, pixel_bits // 8), 64 + max_pixels)
  return 64 + max_pixels
