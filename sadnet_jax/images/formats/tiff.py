"""TIFF and BigTIFF: read."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from sadnet_jax.images import icc, photoshop
from sadnet_jax.images import metadata as exif
from sadnet_jax.images.directories import (
  EXIF,
  Directory,
  Entry,
  Header,
  integers,
  read_directory,
  read_header,
)
from sadnet_jax.images.formats.tiff_segments import MOST_EXPANSION, Layout, check_compression, decode_segment
from sadnet_jax.images.photograph import Metadata, Photograph, check_size

XMP, PHOTOSHOP, ICC = 700, 34377, 34675
_RESOLUTION = {282, 283, 296}
_DNG_VERSION, _PHOTOSHOP_LAYERS = 50706, 37724
# What says how the pixels are stored, or where something is in the file; other tags are the user's.
_STORAGE = (
  *(*range(254, 267), 273, 277, 278, 279, 280, 281, *range(284, 294), 297, 301, *range(317, 326), 330, 332),
  *(336, 338, 339, 340, 341, 342, 347, *range(512, 522), 529, 530, 531, 532, 559),
)
STRUCTURE = frozenset((*_STORAGE, XMP, PHOTOSHOP, ICC, _PHOTOSHOP_LAYERS))
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_COLOUR_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}
_OTHER_COLOURS = {
  4: ('a mask', 'save the picture itself'),
  5: ('CMYK', 'convert it to RGB with its profile'),
  8: ('Lab', 'convert it to RGB'),
  9: ('ICC Lab', 'convert it to RGB'),
  10: ('ITU Lab', 'convert it to RGB'),
  32803: ('raw sensor values', 'develop the camera raw file to 16-bit TIFF'),
  32844: ('LogL, high dynamic range', 'convert it to 16-bit RGB'),
  32845: ('LogLuv, high dynamic range', 'convert it to 16-bit RGB'),
  34892: ('raw sensor values', 'develop the camera raw file to 16-bit TIFF'),
}
_MOST_PAGES = 1000
_LAST_CLASSIC_TYPE = 13


def read(data: bytes) -> Photograph:
  """Reads a TIFF file of one page.

  Raises:
    ValueError: It has several pages, is of another kind than 1- to 16-bit grey, palette or RGB, or damaged.
  """
  header = read_header(data)
  if header is None:
    raise ValueError('got a TIFF without its header, want a complete one (the file is damaged)')
  tags = read_directory(data, header, header.offset)
  notes: list[str] = []
  _refuse_other_pages(data, header, tags, notes)
  layout = _layout(tags, header, len(data))
  samples = _samples(data, layout)
  pixels, alpha = _colours(samples, layout, tags, header, notes)
  lossless = layout.compression != 7
  metadata = _metadata(tags, header, pixels.shape[2], notes)
  return Photograph(pixels, alpha, metadata, lossless, tuple(notes))


def _numbers(tags: Directory, header: Header, tag: int, default: Sequence[int] = ()) -> tuple[int, ...]:
  entry = tags.entries.get(tag)
  return (integers(entry, header.order) if entry else ()) or tuple(default)


def _number(tags, header, tag, default=0):
  return _numbers(tags, header, tag, (default,))[0]


def _refuse_other_pages(data, header, tags, notes):
  if _DNG_VERSION in tags.entries or _number(tags, header, 254) & 1:
    raise ValueError('got a camera raw file, want a developed picture (export it as 16-bit TIFF)')
  pages, others, seen, place = 1, 0, {header.offset}, tags.next_offset
  while place and len(seen) < _MOST_PAGES:
    if place in seen:
      break
    seen.add(place)
    try:
      page = read_directory(data, header, place, depth=0)
    except ValueError:
      notes.append('what follows its first page is damaged and left out')
      break
    # Reduced pictures and masks of the first page are no pages.
    reduced = _number(page, header, 254) & 5 or _number(page, header, 255) == 2
    pages, others = pages + (not reduced), others + bool(reduced)
    place = page.next_offset
  if pages > 1:
    raise ValueError(f'got a TIFF of {pages} pages, want a single picture (save its pages as files)')
  if others:
    notes.append('its thumbnails or masks are left out')


def _layout(tags, header, file_bytes):
  def number(tag, default=0):
    return _number(tags, header, tag, default)

  photometric, compression = number(262, -1), number(259, 1)
  if photometric in _OTHER_COLOURS:
    name, advice = _OTHER_COLOURS[photometric]
    raise ValueError(f'got a TIFF of {name}, want grey or RGB ({advice})')
  if photometric not in _COLOUR_CHANNELS or (photometric == _YCBCR and compression != 7):
    raise ValueError(f'got a TIFF of photometric interpretation {photometric}, want grey or RGB (convert it)')
  check_compression(compression)
  samples = number(277, 1)
  bits = set(_numbers(tags, header, 258, (1,)))
  formats = set(_numbers(tags, header, 339, (1,)))
  if not formats <= {1, 4}:
    name = {2: 'signed', 3: 'floating-point'}.get(min(formats), 'complex')
    raise ValueError(f'got a TIFF of {name} values, want whole numbers from 0 (convert it to 16 bits)')
  if samples - _COLOUR_CHANNELS[photometric] not in (0, 1):
    raise ValueError(f'got a TIFF of {samples} channels, want colours and at most one more (flatten it)')
  if len(bits) != 1 or not bits <= ({1, 2, 4, 8, 16} if samples == 1 else {8, 16}):
    raise ValueError(
      f'got a TIFF of {"/".join(map(str, sorted(bits)[:4]))} bits a channel, want 8 or 16 (convert it)'
    )
  if number(266, 1) != 1:
    raise ValueError('got a TIFF of reversed bit order, want the usual one (save it anew)')
  width, height = number(256), number(257)
  tiled = 322 in tags.entries
  layout = Layout(
    width=width,
    height=height,
    samples=samples,
    bits=bits.pop(),
    photometric=photometric,
    planar=number(284, 1) == 2 and samples > 1,
    compression=compression,
    predictor=number(317, 1),
    order=header.order,
    tiled=tiled,
    part_width=number(322) if tiled else width,
    part_height=number(323) if tiled else max(1, min(number(278, height), height)),
    offsets=_numbers(tags, header, 324 if tiled else 273),
    lengths=_numbers(tags, header, 325 if tiled else 279),
    tables=tags.entries[347].data if 347 in tags.entries else b'',
  )
  _check_layout(layout, file_bytes)
  return layout


def _check_layout(layout, file_bytes):
  stored = min(file_bytes, sum(layout.lengths))
  pixel_bytes = layout.samples * max(1, layout.bits // 8)
  most = (stored + 8) * MOST_EXPANSION.get(layout.compression, 1) * 8 / (layout.bits * layout.samples)
  check_size(layout.width, layout.height, pixel_bytes, most)
  check_size(layout.part_width, layout.part_height, pixel_bytes, most)
  if layout.predictor not in (1, 2):
    raise ValueError(f'got a TIFF of predictor {layout.predictor}, want none or differences (save it anew)')
  count = layout.columns * layout.rows * (layout.samples if layout.planar else 1)
  if len(layout.offsets) < count or len(layout.lengths) < count:
    raise ValueError(
      f'got a TIFF with {min(len(layout.offsets), len(layout.lengths))} of {count} parts of its pixels, '
      'want all (the file is damaged)'
    )


def _samples(data, layout):
  """All channels as stored, [H, W, samples]; fewer than 8 bits as numbers of 8."""
  array = np.empty(
    (layout.height, layout.width, layout.samples), np.uint16 if layout.bits == 16 else np.uint8
  )
  planes = layout.samples if layout.planar else 1
  number = 0
  for plane in range(planes):
    channels = slice(plane, plane + 1) if layout.planar else slice(None)
    for top in range(0, layout.height, layout.part_height):
      for left in range(0, layout.width, layout.part_width):
        place, length = layout.offsets[number], layout.lengths[number]
        if not length or place + length > len(data):
          raise ValueError(
            'got a TIFF whose pixels lie outside of the file, want a complete one (it is cut off)'
          )
        target = array[top : top + layout.part_height, left : left + layout.part_width, channels]
        part = decode_segment(data[place : place + length], layout, target.shape[0])
        target[...] = part[: target.shape[0], : target.shape[1]]
        number += 1
  return array


def _colours(samples, layout, tags, header, notes):
  """Pixels [H, W, 1 or 3] and alpha, of 8 or 16 bits."""
  if layout.photometric == _PALETTE:
    palette = _palette(tags, header, layout.bits)
    return palette[samples[:, :, 0]], samples[:, :, 1] if layout.samples == 2 else None
  channels = _COLOUR_CHANNELS[layout.photometric]
  pixels = np.ascontiguousarray(samples[:, :, :channels])
  most = np.iinfo(samples.dtype).max
  if layout.bits < 8:
    pixels = pixels * np.uint8(255 // (2**layout.bits - 1))
  if layout.photometric == _WHITE_IS_ZERO:
    pixels = most - pixels
  if layout.samples == channels:
    return pixels, None
  alpha = np.ascontiguousarray(samples[:, :, -1])
  kind = _number(tags, header, 338)
  if kind == 0:
    notes.append('its extra channel is taken for transparency')
  if kind == 1:
    notes.append('its colours, stored times their opacity, are kept without it')
    pixels = _unpremultiplied(pixels, alpha, most)
  return pixels, alpha


def _palette(tags, header, bits):
  """uint8 [2**bits, 3]."""
  colours = np.array(_numbers(tags, header, 320), np.int64)
  if bits == 16 or len(colours) != 3 * 2**bits:
    raise ValueError('got a TIFF without its palette, want a complete one (the file is damaged)')
  # Of 16 bits; old writers put 8 there.
  colours = colours >> 8 if colours.max() > 255 else colours
  return np.ascontiguousarray(colours.reshape(3, -1).T.astype(np.uint8))


def _unpremultiplied(pixels, alpha, most):
  result = pixels.copy()
  # Row by row: whole pictures as floats are large.
  for row, opacity in zip(result, alpha, strict=True):
    share = np.maximum(opacity, 1)[:, None] / most
    row[...] = np.minimum(np.round(row / share), most)
  return result


def _metadata(tags, header, channels, notes):
  def content(tag):
    return tags.entries[tag].data if tag in tags.entries else None

  profile, about_profile = icc.checked(content(ICC), channels)
  resources, about_resources = photoshop.checked(content(PHOTOSHOP))
  notes += [*about_profile, *about_resources]
  if tags.damaged:
    notes.append('some of its tags are damaged and left out')
  if _PHOTOSHOP_LAYERS in tags.entries:
    notes.append('its layers are left out: the flattened picture is taken')
  return Metadata(
    icc_profile=profile,
    exif=_exif(tags, header),
    xmp=content(XMP),
    photoshop=resources,
    dpi=exif.resolution_dpi(tags, header.order),
  )


def _exif(tags: Directory, header: Header) -> bytes | None:
  entries: dict[int, Entry] = {
    tag: entry for tag, entry in _classic(tags).entries.items() if tag not in STRUCTURE
  }
  if not set(entries) - _RESOLUTION and EXIF not in tags.children and not tags.children:
    return None
  return exif.build(dataclasses.replace(_classic(tags), entries=entries), header.order)


def _classic(tags: Directory) -> Directory:
  """Without values of types that BigTIFF alone has."""
  entries = {tag: entry for tag, entry in tags.entries.items() if entry.type <= _LAST_CLASSIC_TYPE}
  return Directory(entries, {tag: _classic(child) for tag, child in tags.children.items()})
