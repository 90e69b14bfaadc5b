"""Writes photographs: complete or not at all."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import os
from pathlib import Path
import struct
import zlib

import numpy as np
import OpenImageIO
from PIL import Image, features

from sadnet_jax.files import one_line, replacing
from sadnet_jax.images import metadata as blocks
from sadnet_jax.images.metadata import Directory, Entry
from sadnet_jax.images.photograph import (
  Photograph,
  from_full_range,
  linear_from_srgb,
  lost_fields,
  to_8_bits,
  to_16_bits,
  to_float,
  upright,
)
from sadnet_jax.images.reading import encodable_name, shown_path
from sadnet_jax.images.tiff import (
  ICC_TAG,
  MAX_SAMPLE_VALUE,
  PHOTOSHOP_TAG,
  STRUCTURE_TAGS,
  WHITE_LEVEL,
  XMP_TAG,
)

Notes = tuple[str, ...]
JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class _Format:
  """What a format can store.

  Attributes:
    name: For messages.
    write: Writes a photograph that fits the format to a path; returns notes on lost metadata.
    library: What writes it.
    library_name: Its name of the format; None if all builds write it.
    bits: The most per channel, 32 for floats.
    alpha: Whether it stores transparency.
    max_side: In pixels.
    max_bytes: Of pixels and transparency together.
    rotates: Whether all viewers follow its orientation; images are stored upright where they do not.
    max_exif_bytes: Longer EXIF data lose the maker's note, or are lost, orientation included.
  """

  name: str
  write: Callable[..., Notes]
  library: str
  library_name: str | None
  bits: int
  alpha: bool
  max_side: int = 2**31 - 1
  max_bytes: float = float('inf')
  rotates: bool = False
  max_exif_bytes: int = 2**31 - 1

  def available(self) -> bool:
    """Whether the installed library was built to write it."""
    if self.library_name is None:
      return True
    if self.library == 'Pillow':
      return bool(features.check(self.library_name))
    return OpenImageIO.is_imageio_format_name(self.library_name)


def check_format(path: Path) -> None:
  """Raises ValueError if an extension is unknown, or the installed libraries cannot write its format."""
  shown, form = shown_path(path), _FORMATS.get(path.suffix.lower())
  if form is None:
    raise ValueError(f'{shown}: the extension {path.suffix!r} is not one of {", ".join(PHOTOGRAPH_SUFFIXES)}')
  if not form.available():
    raise ValueError(
      f'{shown}: {form.name} cannot be written, because the installed {form.library} was built without it; '
      'choose another format'
    )


def check_output(path: str | Path, photograph: Photograph | None = None) -> None:
  """Refuses what `write_photograph` would refuse, before there is work to lose.

  Args:
    path: The file to write.
    photograph: What to write, as read; None if it is not known yet.

  Raises:
    ValueError: See `check_format`; or the folder is missing or may not be written to, the path is a folder,
      or the format cannot store the photograph's transparency or size, or its colour profile is of high
      dynamic range.
  """
  path, shown = Path(path), shown_path(path)
  check_format(path)
  form = _FORMATS[path.suffix.lower()]
  if path.is_dir():
    raise ValueError(f'{shown}: is a folder; give the name of a file')
  # Where the file is written: `replacing` follows links.
  folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
  if not folder.is_dir():
    raise ValueError(f'{shown}: the folder {shown_path(folder)} does not exist; create it')
  if not os.access(folder, os.W_OK | os.X_OK):
    raise ValueError(f'{shown}: no permission to write into the folder {shown_path(folder)}; choose another')
  if photograph is None:
    return
  blocks.refuse_hdr_profile(photograph.metadata.icc_profile)
  height, width = photograph.pixels.shape[:2]
  alpha = photograph.alpha
  if max(height, width) > form.max_side:
    raise ValueError(
      f'{shown}: {width}x{height} pixels are too many for {form.name}, '
      f'which stores at most {form.max_side} per side; write PNG'
    )
  size = photograph.pixels.nbytes + (0 if alpha is None else alpha.nbytes)
  if size > form.max_bytes:
    raise ValueError(
      f'{shown}: the pixels take {size / 2**30:.2f} GiB, too much for {form.name}, '
      f'which stores {form.max_bytes / 2**30:.2f}; write OpenEXR or PNG'
    )
  if alpha is not None and not form.alpha and not _is_opaque(alpha):
    raise ValueError(
      f'{shown}: the photograph has transparency, which {form.name} cannot store; write PNG or TIFF'
    )


def write_photograph(
  path: str | Path, photograph: Photograph, *, overwrite: bool = True, jpeg_quality: int = JPEG_QUALITY
) -> Notes:
  """Writes a photograph; the extension selects the format.

  PNG, TIFF and JPEG XL store 8 and 16 bits without loss, TIFF also floats. OpenEXR stores linear light as
  floats. JPEG has colours at full resolution. WebP is lossless if the photograph comes from a lossless file,
  otherwise of quality 95. JPEG and TIFF keep the EXIF orientation; in other formats, where many viewers
  ignore it, the pixels are stored upright.

  Args:
    path: The file, with one of the extensions `PHOTOGRAPH_SUFFIXES`; its folder exists.
    photograph: What to write.
    overwrite: Whether the file may exist.
    jpeg_quality: Quality of JPEG files, from 1 to 100.

  Returns:
    Notes on what the format cannot store.

  Raises:
    ValueError: See `check_output`; or the quality is out of range; or the file cannot be written, or exists
      and may not be replaced.
  """
  if not 1 <= jpeg_quality <= 100:
    raise ValueError(f'jpeg_quality is {jpeg_quality}, but must be from 1 to 100')
  check_output(path, photograph)
  path, shown = Path(path), shown_path(path)
  form = _FORMATS[path.suffix.lower()]
  photograph, notes = _fitted(photograph, form)
  write = functools.partial(form.write, quality=jpeg_quality) if form is _JPEG else form.write
  try:
    with replacing(path, overwrite=overwrite) as temporary:
      notes += write(temporary, photograph)
  except FileExistsError as error:
    raise ValueError(f'{shown}: exists already; choose another name') from error
  except OSError as error:
    raise ValueError(f'{shown}: cannot be written ({error.strerror or one_line(error)})') from error
  except ValueError as error:
    raise ValueError(f'{shown}: {one_line(error)}') from error
  return notes


def _fitted(photograph, form):
  """A photograph that a format can store, and notes on what is lost."""
  notes: Notes = ()
  if photograph.alpha is not None and not form.alpha:
    photograph = dataclasses.replace(photograph, alpha=None)
    notes += (f'its transparency is dropped, because it is opaque everywhere and {form.name} stores none',)
  bits = 8 * photograph.pixels.dtype.itemsize
  if bits > form.bits:
    convert = to_8_bits if form.bits == 8 else to_16_bits
    photograph = _converted(photograph, convert)
    kind = 'floating-point values are' if bits == 32 else '16 bits are'
    better = 'TIFF or OpenEXR' if bits == 32 else 'PNG or TIFF'
    notes += (
      f'its {kind} rounded to {form.bits} bits, the most that is written to {form.name} (write {better})',
    )
    if photograph.linear and photograph.metadata.icc_profile:
      metadata = dataclasses.replace(photograph.metadata, icc_profile=None)
      photograph = dataclasses.replace(photograph, metadata=metadata)
      notes += (
        f'its colour profile is for linear light, which is not written to {form.name}: it is dropped',
      )
  exif = photograph.metadata.exif or b''
  if len(exif) > form.max_exif_bytes:
    shorter = blocks.exif_without_makers_note(exif)
    if len(shorter) <= form.max_exif_bytes:
      metadata = dataclasses.replace(photograph.metadata, exif=shorter)
      photograph = dataclasses.replace(photograph, metadata=metadata)
      notes += (
        f"the maker's note of its EXIF data is dropped, because {form.name} stores at most 64 KB of them",
      )
  if photograph.orientation != 1:
    too_long = len(photograph.metadata.exif or b'') > form.max_exif_bytes
    if too_long or not form.rotates:
      photograph = upright(photograph)
    if too_long:
      notes += (f'it is rotated upright, because {form.name} cannot store its orientation',)
  return photograph, notes


def _converted(photograph, convert):
  alpha = photograph.alpha
  return dataclasses.replace(
    photograph, pixels=convert(photograph.pixels), alpha=None if alpha is None else convert(alpha)
  )


def _is_opaque(alpha):
  return bool(alpha.min() >= (1 if alpha.dtype == np.float32 else np.iinfo(alpha.dtype).max))


def _channels(photograph):
  """[H, W, 1 to 4], with alpha last."""
  if photograph.alpha is None:
    return np.ascontiguousarray(photograph.pixels)
  return np.dstack([photograph.pixels, photograph.alpha])


def _stored_white(photograph):
  """White in a file of 16 bits, None if that is of the full range."""
  return photograph.white_level if photograph.pixels.dtype == np.uint16 else None


def _in_own_range(photograph):
  """As `_channels`, the colours in the range of the file that the photograph was read from."""
  white = _stored_white(photograph)
  if white is not None:
    photograph = dataclasses.replace(photograph, pixels=from_full_range(photograph.pixels, white))
  return _channels(photograph)


def _pillow_image(array):
  return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _write_pixels(path, array, options, profile=None):
  """Writes [H, W, C] and a colour profile with OpenImageIO in the format of the path's extension."""
  height, width, channels = array.shape
  spec = OpenImageIO.ImageSpec(
    width, height, channels, {'float32': 'float'}.get(array.dtype.name, array.dtype.name)
  )
  if channels in (2, 4):
    spec.alpha_channel = channels - 1
    spec.channelnames = ('Y', 'A') if channels == 2 else ('R', 'G', 'B', 'A')
  for name, value in {'oiio:UnassociatedAlpha': 1, **options}.items():
    spec.attribute(name, value)
  if profile:
    spec.attribute(
      'ICCProfile', OpenImageIO.TypeDesc(f'uint8[{len(profile)}]'), np.frombuffer(profile, np.uint8)
    )
  with encodable_name(path) as name:
    writer = OpenImageIO.ImageOutput.create(name)
    assert writer is not None
    written = writer.open(name, spec) and writer.write_image(array)
    if not (writer.close() and written):
      raise OSError(writer.geterror() or 'OpenImageIO failed')


_MAX_SEGMENT_BYTES = 65533
_MAX_JPEG_EXIF_BYTES = _MAX_SEGMENT_BYTES - len(blocks.EXIF_PREFIX)
_APP1, _APP13, _COM = 0xE1, 0xED, 0xFE


def _write_jpeg(path, photograph, quality):
  metadata = photograph.metadata
  profile, notes = blocks.checked_profile(metadata.icc_profile, photograph.pixels.shape[2])
  segments = b''
  for name, marker, prefix, content in (
    ('EXIF data', _APP1, blocks.EXIF_PREFIX, metadata.exif),
    ('XMP data', _APP1, blocks.XMP_PREFIX, metadata.xmp),
    ('Photoshop data', _APP13, blocks.PHOTOSHOP_PREFIX, metadata.photoshop),
    ('comment', _COM, b'', metadata.comment),
  ):
    if content and len(prefix + content) > _MAX_SEGMENT_BYTES:
      notes += (f'JPEG stores at most 64 KB of its {name}, which is dropped',)
    elif content:
      segments += struct.pack('>BBH', 0xFF, marker, len(prefix + content) + 2) + prefix + content
  dpi = tuple(min(max(round(x), 1), 65535) for x in metadata.dpi) if metadata.dpi else (0, 0)
  image = _pillow_image(photograph.pixels)
  image.save(
    path,
    'JPEG',
    quality=quality,
    subsampling=0,
    dpi=dpi,
    icc_profile=profile,
    exif=b'',
    comment=b'',
    extra=segments,
  )
  return notes + lost_fields(metadata, ('png_chunks',), 'JPEG')


def _write_webp(path, photograph):
  metadata = photograph.metadata
  # It has no grey images: a grey profile may not stay.
  profile, notes = blocks.checked_profile(metadata.icc_profile, 3)
  array = np.broadcast_to(photograph.pixels, (*photograph.pixels.shape[:2], 3))
  if photograph.alpha is not None:
    array = np.dstack([array, photograph.alpha])
  Image.fromarray(np.ascontiguousarray(array)).save(
    path,
    'WEBP',
    quality=95,
    lossless=photograph.lossless,
    # Colours under full transparency stay as they are, too.
    exact=True,
    icc_profile=profile or b'',
    exif=metadata.exif or b'',
    xmp=metadata.xmp or b'',
  )
  # EXIF data from TIFF files hold the resolution.
  lost = ('photoshop', 'comment', 'png_chunks', *(() if blocks.has_resolution(metadata.exif) else ('dpi',)))
  return notes + lost_fields(metadata, lost, 'WebP')


def _write_bmp(path, photograph):
  metadata = photograph.metadata
  options = {'dpi': metadata.dpi} if metadata.dpi else {}
  _pillow_image(photograph.pixels).save(path, 'BMP', **options)
  return lost_fields(metadata, ('icc_profile', 'exif', 'xmp', 'photoshop', 'comment', 'png_chunks'), 'BMP')


# libpng's PNG_FILTER_PAETH.
_PNG_PAETH = 0x80


def _write_png(path, photograph):
  metadata = photograph.metadata
  profile, notes = blocks.checked_profile(metadata.icc_profile, photograph.pixels.shape[2])
  # Paeth's filter makes photographs as small as the best filter for each row does, in less time. Level 5
  # takes half as long again as 3, for files that are 1% smaller.
  options = {'png:compressionLevel': 3, 'png:filter': _PNG_PAETH}
  array = _in_own_range(photograph)
  _write_pixels(path, array, options)
  chunks = [(kind, content) for kind, content, _ in blocks.png_chunks(path.read_bytes())]
  header, pixels = chunks[0], [chunk for chunk in chunks if chunk[0] == b'IDAT']
  extra = []
  white = _stored_white(photograph)
  if white and not white & (white + 1):
    extra.append((b'sBIT', bytes([white.bit_length()] * array.shape[2])))
  if profile:
    extra.append((b'iCCP', b'ICC profile\0\0' + zlib.compress(profile)))
  if metadata.exif:
    extra.append((b'eXIf', metadata.exif))
  if metadata.dpi:
    x, y = (min(round(dpi / blocks.METRES_PER_INCH), 2**31 - 1) for dpi in metadata.dpi)
    extra.append((b'pHYs', struct.pack('>IIB', x, y, 1)))
  if metadata.xmp:
    extra.append((b'iTXt', blocks.PNG_XMP_KEYWORD + bytes(5) + metadata.xmp))
  # PNG allows only one of iCCP and sRGB.
  extra += [chunk for chunk in metadata.png_chunks if not (profile and chunk[0] == b'sRGB')]
  if metadata.comment:
    extra.append(_png_comment(metadata.comment.replace(b'\0', b' ')))
  with path.open('wb') as file:
    file.write(blocks.PNG_SIGNATURE)
    for chunk in (header, *extra, *pixels, (b'IEND', b'')):
      file.write(blocks.pack_png_chunk(*chunk))
  return notes + lost_fields(metadata, ('photoshop',), 'PNG')


def _png_comment(text):
  # tEXt is Latin-1, as comments of JPEG files often are; others are UTF-8.
  with contextlib.suppress(UnicodeDecodeError):
    if not text.isascii() and text.decode():
      return b'iTXt', b'Comment' + bytes(5) + text
  return b'tEXt', b'Comment\0' + text


_EXTRA_SAMPLES, _UNASSOCIATED_ALPHA = 338, 2


def _write_tiff(path, photograph):
  if photograph.linear and photograph.pixels.dtype == np.float32:
    photograph = dataclasses.replace(photograph, pixels=linear_from_srgb(photograph.pixels))
  array = _in_own_range(photograph)
  predictor = 3 if array.dtype == np.float32 else 2
  _write_pixels(path, array, {'compression': 'zip', 'tiff:predictor': predictor})
  return _add_tiff_metadata(path, photograph)


def _add_tiff_metadata(path, photograph):
  """Appends a directory with all metadata and lets the header point to it."""
  metadata = photograph.metadata
  profile, notes = blocks.checked_profile(metadata.icc_profile, photograph.pixels.shape[2])
  data = path.read_bytes()
  header = blocks.read_header(data)
  assert header is not None
  tags = blocks.read_directory(data, header, header.offset)
  for tag in set(tags.entries) - STRUCTURE_TAGS:
    # OpenImageIO's own date, and what it guesses.
    del tags.entries[tag]
  if photograph.alpha is not None:
    tags.set_integers(_EXTRA_SAMPLES, [_UNASSOCIATED_ALPHA])
  if white := _stored_white(photograph):
    # Readers believe the first for whole numbers of bits only.
    for tag in (MAX_SAMPLE_VALUE, WHITE_LEVEL):
      tags.set_integers(tag, [white])
  for tag, kind, content in (
    (XMP_TAG, blocks.BYTE, metadata.xmp),
    (PHOTOSHOP_TAG, blocks.UNDEFINED, metadata.photoshop),
    (ICC_TAG, blocks.UNDEFINED, profile),
  ):
    tags.entries.pop(tag, None)
    if content:
      tags.entries[tag] = Entry(kind, len(content), content)
  if metadata.dpi:
    tags.set_dpi(metadata.dpi)
  parsed = blocks.parse_exif(metadata.exif) if metadata.exif else None
  if metadata.exif and parsed is None:
    notes += ('its EXIF data are damaged and were ignored',)
  if parsed:
    exif = parsed[1].in_order(header.order)
    # The EXIF data's own resolution comes first.
    entries = {tag: entry for tag, entry in exif.entries.items() if tag not in STRUCTURE_TAGS}
    tags = Directory(header.order, tags.entries | entries, exif.children)
  offset = len(data) + len(data) % 2
  with path.open('r+b') as file:
    file.seek(offset)
    file.write(blocks.pack_directory(tags, offset))
    file.seek(4)
    file.write(struct.pack(header.order + 'I', offset))
  return notes + lost_fields(metadata, ('comment', 'png_chunks'), 'TIFF')


def _write_exr(path, photograph):
  notes: Notes = ()
  if photograph.pixels.dtype == np.float32 and not photograph.linear:
    notes = ('its values are converted to linear light, which OpenEXR stores',)
  photograph = _converted(photograph, to_float)
  pixels = linear_from_srgb(photograph.pixels)
  if photograph.alpha is not None:
    # OpenEXR defines colours as multiplied by opacity.
    alpha = photograph.alpha
    pixels *= (np.where(alpha == 0, 1, alpha) if photograph.premultiplied else alpha)[:, :, None]
  array = _channels(dataclasses.replace(photograph, pixels=pixels))
  _write_pixels(path, array, {'compression': 'zip', 'oiio:UnassociatedAlpha': 0})
  lost = ('icc_profile', 'exif', 'xmp', 'photoshop', 'comment', 'dpi', 'png_chunks')
  return notes + lost_fields(photograph.metadata, lost, 'OpenEXR')


# OpenImageIO reads no shorter ones.
_MIN_JXL_BYTES = 128


def _write_jxl(path, photograph):
  metadata = photograph.metadata
  if photograph.alpha is not None and photograph.pixels.shape[2] == 1:
    # OpenImageIO cannot write grey with transparency.
    photograph = dataclasses.replace(photograph, pixels=np.repeat(photograph.pixels, 3, axis=2))
  profile, notes = blocks.checked_profile(metadata.icc_profile, photograph.pixels.shape[2])
  # More effort takes ten times as long, for files a few percent smaller.
  _write_pixels(path, _channels(photograph), {'compression': 'jpegxl:100', 'jpegxl:effort': 3}, profile)
  data = path.read_bytes()
  with path.open('wb') as file:
    # Without OpenImageIO's own, compressed EXIF data.
    file.writelines(data[start:end] for kind, start, end in blocks.jxl_boxes(data) if kind != b'brob')
    # The first four bytes are the offset of the EXIF block from their end.
    for kind, start, content in ((b'Exif', bytes(4), metadata.exif), (b'xml ', b'', metadata.xmp)):
      if content:
        file.write(struct.pack('>I4s', 8 + len(start + content), kind) + start + content)
    if file.tell() < _MIN_JXL_BYTES:
      # A box that readers skip.
      file.write(struct.pack('>I4s', _MIN_JXL_BYTES, b'free').ljust(_MIN_JXL_BYTES, b'\0'))
  lost = ('photoshop', 'comment', 'png_chunks', *(() if blocks.has_resolution(metadata.exif) else ('dpi',)))
  return notes + lost_fields(metadata, lost, 'JPEG XL')


_PNG = _Format('PNG', _write_png, 'OpenImageIO', 'png', bits=16, alpha=True)
_JPEG = _Format(
  # The longest side is libjpeg's; the format allows 35 pixels more.
  'JPEG',
  _write_jpeg,
  'Pillow',
  'jpg',
  bits=8,
  alpha=False,
  max_side=65500,
  rotates=True,
  max_exif_bytes=_MAX_JPEG_EXIF_BYTES,
)
# Offsets in TIFF have 32 bits; 64 MiB are left for compression that does not help, and for metadata.
_TIFF = _Format(
  'TIFF',
  _write_tiff,
  'OpenImageIO',
  'tiff',
  bits=32,
  alpha=True,
  max_bytes=2**32 - 2**26,
  rotates=True,
)
_FORMATS: Mapping[str, _Format] = {
  '.png': _PNG,
  '.jpg': _JPEG,
  '.jpeg': _JPEG,
  '.jfif': _JPEG,
  '.tif': _TIFF,
  '.tiff': _TIFF,
  '.webp': _Format('WebP', _write_webp, 'Pillow', 'webp', bits=8, alpha=True, max_side=16383),
  '.bmp': _Format('BMP', _write_bmp, 'Pillow', None, bits=8, alpha=False),
  '.jxl': _Format('JPEG XL', _write_jxl, 'OpenImageIO', 'jpegxl', bits=16, alpha=True),
  '.exr': _Format('OpenEXR', _write_exr, 'OpenImageIO', 'openexr', bits=32, alpha=True),
}
# Extensions of the files that are written, in lower case; they are read too.
PHOTOGRAPH_SUFFIXES = tuple(_FORMATS)
_RAW_SUFFIXES = (
  '.3fr', '.arw', '.cr2', '.cr3', '.crw', '.dcr', '.dng', '.erf', '.fff', '.iiq', '.kdc', '.mef', '.mos',
  '.mrw', '.nef', '.nrw', '.orf', '.pef', '.raf', '.rw2', '.rwl', '.sr2', '.srw',
)  # fmt: skip
# Extensions of files that are only read, and that of the format to write instead.
_SUBSTITUTES = {
  **dict.fromkeys(('.heic', '.heif', '.hif'), '.png'),
  **dict.fromkeys(_RAW_SUFFIXES, '.tif'),
}
INPUT_SUFFIXES = (*PHOTOGRAPH_SUFFIXES, *_SUBSTITUTES)


def has_format(path: Path, suffix: str) -> bool:
  """Whether the format of a path is that of one of `PHOTOGRAPH_SUFFIXES`; .jpeg and .jpg have the same."""
  return _FORMATS.get(path.suffix.lower()) is _FORMATS[suffix]


def writable_name(path: Path, suffix: str | None = None) -> Path:
  """The path with an extension whose format is written.

  Args:
    path: An extension of the wanted format stays as it is, for example .JPEG; what is no extension of a
      picture stays in the name.
    suffix: Extension of the wanted format, one of `PHOTOGRAPH_SUFFIXES`. None for the path's own format, or
      .png or .tif if that is only read.
  """
  own = path.suffix.lower()
  if suffix is None:
    suffix = _SUBSTITUTES.get(own)
    return path if suffix is None else path.with_suffix(suffix)
  if has_format(path, suffix):
    return path
  return path.with_suffix(suffix) if own in INPUT_SUFFIXES else path.with_name(path.name + suffix)
