"""Reads photographs: the first bytes of a file decide its format, never its extension.

OpenImageIO decodes the pixels. What could hang, print or exhaust memory there is refused before: sizes by
the header, and what `jpeg`, `png` and `tiff` check.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import os
from pathlib import Path
import struct
import tempfile
import warnings

import numpy as np
import OpenImageIO
from PIL import JpegImagePlugin

from sadnet_jax.files import mapped, one_line
from sadnet_jax.images import camera_formats, jpeg, png, tiff
from sadnet_jax.images import metadata as blocks
from sadnet_jax.images.metadata import Metadata
from sadnet_jax.images.photograph import (
  ABOVE_WHITE,
  FULL_WHITE,
  MAX_PIXELS,
  PREMULTIPLIED,
  DecodingError,
  Photograph,
  check_size,
  is_mostly_above_white,
  split_alpha,
  srgb_from_linear,
  to_full_range,
  without_alpha_in_colours,
)

_READABLE = 'PNG, JPEG, TIFF, WebP, BMP, OpenEXR, JPEG XL, HEIC or camera raw'
_HEAD_BYTES = 32
# Twice the bytes of 16-bit colour and transparency, to leave room for metadata.
_MAX_FILE_BYTES = 16 * MAX_PIXELS
_LONGEST_REASON = 200
# Names in a message.
_MOST_NAMED = 8
_TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_RAW_STARTS = (b'FUJIFILMCCD-RAW', b'IIRO', b'IIRS', b'MMOR', b'IIU\0', b'II\x1a\0\0\0HEAPCCDR', b'\0MRM')
_HEIC_BRANDS = (b'heic', b'heix', b'hevc', b'mif1', b'msf1')
# Starts of files in formats that are not read, each with its name and what to do.
_OTHER_FORMATS = (
  (b'GIF87a', 'a GIF file', 'convert it'),
  (b'GIF89a', 'a GIF file', 'convert it'),
  (b'8BPS', 'a Photoshop document', 'export it'),
  (b'gimp xcf', 'a GIMP document', 'export it'),
  (b'\0\0\0\x0cjP  ', 'a JPEG 2000 file', 'convert it'),
  (b'\xff\x4f\xff\x51', 'a JPEG 2000 file', 'convert it'),
  (b'#?RADIANCE', 'a Radiance file', 'convert it to OpenEXR'),
  (b'#?RGBE', 'a Radiance file', 'convert it to OpenEXR'),
  (b'%PDF', 'a PDF file', 'export its images'),
  (b'<svg', 'an SVG drawing', 'render it'),
  (b'\0\0\1\0', 'an icon', 'convert it'),
  (b'qoif', 'a QOI file', 'convert it'),
  (b'\x8aMNG', 'an MNG animation', 'save a frame'),
)
# OpenImageIO decodes JPEG XL when it opens the file.
_DECODED_FOR_SHAPE = ('JPEG XL', 'camera raw')
# OpenImageIO's names for the types in files: the type to read them as, and its bytes.
_PIXEL_TYPES = {'uint8': ('uint8', 1), 'uint16': ('uint16', 2), 'half': ('float', 4), 'float': ('float', 4)}


def read_photograph(
  path: str | Path, *, linear: bool | None = None, white_level: int | None = None
) -> Photograph:
  """Reads a photograph and its metadata.

  Integers of 8 and 16 bits are returned as stored, but those of 16 bits whose white is lower are scaled to
  the full range. Nothing is rotated (HEIC, JPEG XL and raw files are upright). One to four bits become eight,
  palettes RGB, a colour declared transparent becomes alpha. Floats become float32. Camera raw files are
  developed to 16 bits of sRGB with the camera's white balance. If a JPEG or HEIC file has several images, the
  first is read. CMYK, Lab, several pages or frames, and incomplete files are refused.

  Args:
    path: A PNG, JPEG, TIFF, WebP, BMP, OpenEXR or JPEG XL file, HEIC with the extra ``heic``, or camera raw
      with the extra ``raw``.
    linear: Whether floating-point files hold linear light, which is then converted to display-referred
      values; None for what is usual: OpenEXR does, TIFF does not, and JPEG XL files say themselves.
    white_level: White in 16-bit PNG and TIFF files, from 1 to 65535, such as 4095 for data of 12 bits; see
      `Photograph`. None for what the file's tags say, or the full range. Ignored for other files.

  Returns:
    The photograph; its notes say what was ignored.

  Raises:
    ValueError: The file is missing, unreadable, of another format or kind, damaged, incomplete, too large, or
      changed meanwhile; its format needs an extra that is not installed; or ``white_level`` is out of range.
  """
  if white_level is not None and not 1 <= white_level <= FULL_WHITE:
    raise ValueError(f'white_level is {white_level}, but must be from 1 to {FULL_WHITE}')
  with _explained_errors(path):
    before = _version(path)
    photograph = _read(Path(path), linear, white_level)
    if _version(path) != before:
      # Decoders open it several times.
      raise ValueError('the file was changed while it was read; try again')
    notes = []
    if linear and photograph.pixels.dtype != np.float32:
      notes.append('has no floating-point values, so it was not read as linear light')
    has_white_level = photograph.pixels.dtype == np.uint16 and _format_of(Path(path)) in ('PNG', 'TIFF')
    if white_level is not None and not has_white_level:
      notes.append('is no PNG or TIFF file of 16 bits, so the white level was ignored')
    return dataclasses.replace(photograph, notes=(*photograph.notes, *notes))


def _version(path):
  """What changes when a file is written or replaced."""
  status = os.stat(path)
  return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path, linear, white_level):
  form = _format_of(path)
  with warnings.catch_warnings():
    # The notes contain what matters from the decoders' warnings.
    warnings.simplefilter('ignore')
    if form == 'PNG':
      return _read_png(path, white_level)
    if form == 'TIFF':
      return _read_tiff(path, linear, white_level)
    if form in _READERS_OF_FLOATS:
      return _READERS_OF_FLOATS[form](path, linear)
    return _READERS[form](path)


def read_shape(path: str | Path, *, decode: bool = True) -> tuple[int, int, int]:
  """Reads height, width and channels (1 or 3) of a photograph, for most formats from the header alone.

  Args:
    path: The file.
    decode: Whether to decode JPEG XL and camera raw, which takes as long as reading the photograph.

  Raises:
    ValueError: See `read_photograph`; or the file must be decoded and may not. Damage after the header goes
      unnoticed.
  """
  path = Path(path)
  with _explained_errors(path):
    form = _format_of(path)
    if form == 'PNG':
      with path.open('rb') as file:
        width, height, colour_type = struct.unpack('>16xIIxB', file.read(26))
      return height, width, 1 if colour_type in (0, 4) else 3
    if form == 'HEIC':
      return camera_formats.heic_shape(path)
    if form in _DECODED_FOR_SHAPE and not decode:
      raise ValueError(f'the header of this {form} file does not say its size')
    if form not in _DECODED_FOR_SHAPE:
      with _opened(path) as reader:
        spec = reader.spec()
      return spec.height, spec.width, 1 if spec.nchannels < 3 else 3
  height, width, channels = read_photograph(path).pixels.shape
  return height, width, channels


@contextlib.contextmanager
def _explained_errors(path):
  """Turns any error about a file into a one-line ValueError that begins with its path."""
  shown = shown_path(path)
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{shown}: {one_line(error)}') from error
  except OSError as error:
    raise ValueError(f'{shown}: cannot be read ({error.strerror or one_line(error)})') from error
  except MemoryError as error:
    raise ValueError(f'{shown}: the image does not fit into memory') from error
  # Decoders raise exceptions of any type for damaged files.
  except Exception as error:
    reason = one_line(error, _LONGEST_REASON)
    raise ValueError(f'{shown}: the file is damaged or incomplete: {reason}') from error


def shown_path(path: str | Path) -> str:
  """A path for messages: printable and in one line."""
  text = str(path)
  return text if text.isprintable() else repr(text)


def _format_of(path):
  """The name of the format that a file's first bytes say."""
  if path.is_dir():
    raise ValueError('is a folder, not an image file')
  if path.exists() and not path.is_file():
    raise ValueError('is not a regular file')
  with path.open('rb') as file:
    head = file.read(_HEAD_BYTES)
  size = path.stat().st_size
  if not head:
    raise ValueError('the file is empty')
  if size > _MAX_FILE_BYTES:
    raise ValueError(f'the file has {size:,} bytes, more than {_MAX_FILE_BYTES:,}')
  if head.startswith(_TIFF_STARTS):
    return 'camera raw' if head[8:10] == b'CR' or _is_raw_tiff(path) else 'TIFF'
  if head[4:8] == b'ftyp':
    return _format_of_brand(head[8:12])
  if head.startswith(_RAW_STARTS):
    return 'camera raw'
  for form, start, rest in (
    ('PNG', blocks.PNG_SIGNATURE, b''),
    ('JPEG', blocks.JPEG_START, b''),
    ('WebP', b'RIFF', b'WEBP'),
    ('BMP', b'BM', b''),
    ('OpenEXR', b'\x76\x2f\x31\x01', b''),
    ('JPEG XL', b'\xff\x0a', b''),
    ('JPEG XL', b'\0\0\0\x0cJXL ', b''),
  ):
    if head.startswith(start) and (not rest or head[8:12] == rest):
      return form
  for start, name, advice in _OTHER_FORMATS:
    if head.startswith(start):
      raise ValueError(f'is {name}; {advice} (readable are {_READABLE} files)')
  raise ValueError(f'is not an image file of a known format (readable are {_READABLE} files)')


def _is_raw_tiff(path):
  with mapped(path) as data:
    return tiff.is_raw(data)


def _format_of_brand(brand):
  if brand == b'crx ':
    return 'camera raw'
  if brand in _HEIC_BRANDS:
    return 'HEIC'
  name = 'an AVIF file' if brand in (b'avif', b'avis') else 'a video'
  raise ValueError(f'is {name}; convert it (readable are {_READABLE} files)')


@contextlib.contextmanager
def encodable_name(path: Path) -> Iterator[str]:
  """A name for a file that OpenImageIO can open: it takes UTF-8 only, and gives that to the system."""
  try:
    same = str(path).encode() == os.fsencode(path)
  except UnicodeEncodeError:
    same = False
  if same:
    yield str(path)
  else:
    with tempfile.TemporaryDirectory() as folder:
      link = Path(folder, f'image{path.suffix}')
      link.symlink_to(path.absolute())
      yield str(link)


@contextlib.contextmanager
def _opened(path) -> Iterator[OpenImageIO.ImageInput]:
  """OpenImageIO's reader of a file, which leaves colours as they are stored beside transparency."""
  options = OpenImageIO.ImageSpec()
  options.attribute('oiio:UnassociatedAlpha', 1)
  with encodable_name(path) as name:
    reader = OpenImageIO.ImageInput.open(name, options)
    if reader is None:
      raise DecodingError(OpenImageIO.geterror())
    try:
      yield reader
    finally:
      # OpenImageIO prints errors that nobody has read.
      reader.geterror()
      reader.close()


def _decode(path, max_pixels=float('inf'), *, single=True):
  """Decodes a file with OpenImageIO.

  Args:
    path: The file.
    max_pixels: The most that a file of this size can hold.
    single: Refuse files of several images.

  Returns:
    [H, W, C] of uint8, uint16 or float32, and the `OpenImageIO.ImageSpec`.
  """
  with _opened(path) as reader:
    spec = reader.spec()
    kind = str(spec.format)
    if spec.deep:
      raise ValueError('holds several samples per pixel (deep data); flatten it')
    if kind not in _PIXEL_TYPES:
      raise ValueError(f'has {kind} values; convert them to 8 or 16 bits, or to float')
    wanted, sample_bytes = _PIXEL_TYPES[kind]
    check_size(spec.width, spec.height, spec.nchannels * sample_bytes, max_pixels)
    array = reader.read_image(0, 0, 0, spec.nchannels, wanted)
    if error := reader.geterror():
      raise DecodingError(error)
    if array is None:
      raise DecodingError('it has no pixels')
    if single and reader.seek_subimage(1, 0):
      raise ValueError('holds several images or frames; save one of them')
  return array, spec


# Where a 16-bit file uses less than a sixteenth of its range, its white is probably another.
_SUSPICIOUSLY_DARK = 2**12


def _in_full_range(array, given, tagged):
  """Scales 16-bit values to the full range.

  Args:
    array: Colours as decoded; transparency always has the full range.
    given: White as the user says, None if unknown.
    tagged: White as the file's tags say, None if they do not.

  Returns:
    The array, white in the file (None if that is of the full range or not known), and notes for the user.
  """
  if array.dtype != np.uint16:
    return array, None, []
  brightest = int(array.max())
  # Tags are wrong at times: many programs copy them.
  level = given if given is not None else tagged if tagged and tagged >= brightest else None
  if level is None:
    dark = 0 < brightest < _SUSPICIOUSLY_DARK
    likely = 2 ** brightest.bit_length() - 1
    note = (
      f'its values use less than a sixteenth of the range of 16 bits: the highest is {brightest}; if white '
      f'is {likely}, pass --white-level {likely} to sadnet-denoise, or scale them to the full range'
    )
    return array, None, [note] if dark else []
  if level == FULL_WHITE:
    return array, None, []
  notes = (
    [] if given is not None else [f'white is {level} by its tags (sadnet-denoise --white-level sets another)']
  )
  if brightest > level:
    notes.append(f'its values above the white level {level} (the highest is {brightest}) are clipped')
  return to_full_range(array, level), level, notes


def _from_floats(pixels, alpha, linear):
  """Display-referred colours, and notes for the user; refuses what a network would spread over the image."""
  if not (np.isfinite(pixels).all() and (alpha is None or np.isfinite(alpha).all())):
    raise ValueError('has values that are infinite or not a number; replace them')
  # White is at the same value with and without the curve.
  notes = [f'{ABOVE_WHITE}; divide them by the value of white'] if is_mostly_above_white(pixels) else []
  return srgb_from_linear(pixels) if linear else pixels, notes


def _read_jpeg(path):
  with mapped(path) as data:
    size = len(data)
    end = jpeg.end_of_first(data)
    jpeg.check_parts(data, end)
    has_video = jpeg.has_video(data, end)
  # Not `with ... as image`, whose type Pillow 12 declares as that of any image.
  image = JpegImagePlugin.JpegImageFile(path)
  with image:
    segments, mode, dpi = list(image.applist), image.mode, image.info.get('dpi')
  if mode == 'CMYK':
    raise ValueError('is a JPEG file of CMYK colours; convert it to RGB with its colour profile')
  # One bit per block of 8x8 pixels is the least.
  with _first_image(path, end, size) as first:
    array, spec = _decode(first, 512 * size)
  if spec.getattribute('jpeg:ColorSpace') in ('CMYK', 'YCbCrK'):
    raise ValueError('is a JPEG file of CMYK colours; convert it to RGB with its colour profile')
  metadata, notes = jpeg.read_metadata(segments, array.shape[2], dpi)
  if has_video:
    notes += ('the video that follows it was ignored',)
  return Photograph(array, None, metadata, lossless=False, notes=notes)


@contextlib.contextmanager
def _first_image(path, end, size):
  """A file of the first image alone: OpenImageIO would apply a gain map in the next one, as for displays."""
  if end == size:
    yield path
    return
  with _copy(path, 'first.jpg', 'its first image', lambda data: data[:end]) as first:
    yield first


@contextlib.contextmanager
def _without_orientation(path, tags, header):
  """The file, or a copy without orientation, by which libtiff turns some JPEG images, partly wrongly."""
  if tags.number(259, 1) not in tiff.JPEG or tags.number(blocks.ORIENTATION, 1) == 1:
    yield path
    return
  with _copy(path, 'upright.tif', 'it', lambda data: blocks.with_orientation_1(data, header)) as upright_file:
    yield upright_file


@contextlib.contextmanager
def _copy(path, name, what, change):
  """A temporary file of a function of the bytes of a file."""
  with contextlib.ExitStack() as stack:
    try:
      copy = Path(stack.enter_context(tempfile.TemporaryDirectory()), name)
      copy.write_bytes(change(stack.enter_context(mapped(path))))
    except OSError as error:
      raise ValueError(
        f'a copy of {what} cannot be written ({error.strerror}); make room in the folder for temporary '
        'files, or name another in TMPDIR'
      ) from error
    try:
      yield copy
    except DecodingError as error:
      # OpenImageIO names its file.
      raise DecodingError(str(error).replace(str(copy), path.name)) from error


def _read_png(path, white_level):
  with mapped(path) as data:
    all_chunks = list(blocks.png_chunks(data))
  damaged = dict.fromkeys(kind for kind, _, sound in all_chunks if not sound)
  notes = [png.ignored(kind) for kind in list(damaged)[:_MOST_NAMED]]
  chunks = [(kind, content) for kind, content, sound in all_chunks if sound]
  named = dict(reversed(chunks))
  notes += [blocks.NO_CREDENTIALS] if b'caBX' in named else []
  frames = int.from_bytes(named.get(b'acTL', b'')[:4], 'big')
  if frames > 1:
    raise ValueError(f'is an animated PNG of {frames} frames; save one of them')
  if len(named.get(b'cICP', b'')) == 4 and named[b'cICP'][1] in blocks.HDR_TRANSFERS:
    raise ValueError('is a PNG of high dynamic range (PQ or HLG); convert it to sRGB')
  metadata_parts = png.read_metadata(chunks, named, notes)
  png.check_pixels(chunks)
  array, _ = _decode(path)
  bits = max(named.get(b'sBIT', b'') or b'\0')
  pixels, alpha = split_alpha(array, 1 if array.shape[2] < 3 else 3)
  tagged = None
  if white_level is None and pixels.dtype == np.uint16 and 0 < bits < 16:
    # The format wants samples of fewer bits scaled to 16; many programs store them as they are.
    tagged = None if png.is_scaled_to_16_bits(pixels, bits) else 2**bits - 1
  pixels, white_level, white_notes = _in_full_range(pixels, white_level, tagged)
  notes += white_notes
  profile, profile_notes = blocks.checked_profile(metadata_parts.icc_profile, pixels.shape[2])
  exif, exif_notes = blocks.checked_exif(named.get(b'eXIf'))
  parts = vars(metadata_parts) | {'icc_profile': profile, 'exif': exif}
  notes += [*profile_notes, *exif_notes]
  # Many chunks can have the same damage.
  noted = tuple(dict.fromkeys(notes))
  return Photograph(pixels, alpha, Metadata(**parts), notes=noted, white_level=white_level)


def _read_tiff(path, linear, white_level):
  with mapped(path) as data:
    tags, header = tiff.first_tags(data)
    notes = tiff.check_pages(data, header, tags)
    max_pixels = tiff.check_photograph(tags, len(data))
  with _without_orientation(path, tags, header) as file:
    array, _ = _decode(file, max_pixels, single=False)
  photometric = tags.number(262, -1)
  pixels, alpha = split_alpha(array, tiff.COLOURS[photometric])
  pixels, white_level, white_notes = _in_full_range(pixels, white_level, tiff.tagged_white(tags))
  notes += white_notes
  if photometric == tiff.WHITE_IS_ZERO and pixels.dtype != np.uint8:
    # OpenImageIO does so for 8 bits itself.
    pixels = (FULL_WHITE if pixels.dtype == np.uint16 else 1) - pixels
  kind = tags.number(338)
  if alpha is not None and kind == 0:
    notes.append('its extra channel is assumed to be transparency')
  if alpha is not None and kind == 1:
    notes.append(PREMULTIPLIED)
    pixels = without_alpha_in_colours(pixels, alpha)
  given_linear, linear = linear, bool(linear) and pixels.dtype == np.float32
  if pixels.dtype == np.float32:
    pixels, float_notes = _from_floats(pixels, alpha, linear)
    notes += float_notes
  profile, profile_notes = blocks.checked_profile(tiff.content(tags, tiff.ICC_TAG), pixels.shape[2])
  if given_linear is None and pixels.dtype == np.float32 and blocks.is_of_linear_light(profile):
    notes.append('its colour profile is for linear light; if its values are, read it as such (--linear)')
  resources, photoshop_notes = blocks.checked_photoshop(tiff.content(tags, tiff.PHOTOSHOP_TAG))
  notes += [*profile_notes, *photoshop_notes]
  if tags.damaged:
    notes.append('some of its tags are damaged and were ignored')
  if tiff.CREDENTIALS in tags.entries:
    notes.append(blocks.NO_CREDENTIALS)
  if tiff.PHOTOSHOP_LAYERS in tags.entries:
    notes.append('its layers were ignored; the flattened image is read')
  metadata = Metadata(profile, tiff.exif(tags), tiff.content(tags, tiff.XMP_TAG), resources, dpi=tags.dpi())
  lossless = tags.number(259, 1) not in tiff.JPEG
  return Photograph(pixels, alpha, metadata, lossless, linear, tuple(notes), white_level)


def _read_webp(path):
  with mapped(path) as data:
    chunks = dict(reversed(list(_riff_chunks(data))))
  if b'ANIM' in chunks:
    raise ValueError('is an animated WebP; save one of its frames')
  array, _ = _decode(path)
  pixels, alpha = split_alpha(array, 3)
  exif, exif_notes = blocks.checked_exif(chunks.get(b'EXIF'))
  profile, profile_notes = blocks.checked_profile(chunks.get(b'ICCP'), 3)
  metadata = Metadata(icc_profile=profile, exif=exif, xmp=chunks.get(b'XMP '))
  notes = exif_notes + profile_notes + ((blocks.NO_CREDENTIALS,) if b'C2PA' in chunks else ())
  return Photograph(pixels, alpha, metadata, b'VP8L' in chunks, notes=notes)


def _riff_chunks(data):
  """Type and content, empty for pixels, of each chunk that is complete."""
  # What follows the container is not of the image.
  at, end = 12, 8 + int.from_bytes(data[4:8], 'little')
  if end > len(data):
    raise DecodingError('it is cut off')
  while at + 8 <= end:
    kind, length = struct.unpack_from('<4sI', data, at)
    if at + 8 + length > end:
      raise DecodingError('it is cut off')
    yield kind, data[at + 8 : at + 8 + length] if kind in (b'EXIF', b'ICCP', b'XMP ') else b''
    at += 8 + length + length % 2


def _read_bmp(path):
  # Run lengths of two bytes stand for 255 pixels.
  array, spec = _decode(path, 128 * path.stat().st_size)
  pixels, alpha = split_alpha(array, 1 if array.shape[2] < 3 else 3)
  notes: list[str] = []
  if alpha is not None and not _bmp_has_alpha(path):
    alpha = None
  elif alpha is not None and not alpha.any():
    alpha = None
    notes.append('its opacity is zero everywhere and was ignored')
  x, y = (spec.get_float_attribute(name, 0.0) for name in ('XResolution', 'YResolution'))
  in_metres = spec.get_string_attribute('ResolutionUnit') == 'm' and min(x, y) > 0
  metadata = Metadata(dpi=(x * blocks.METRES_PER_INCH, y * blocks.METRES_PER_INCH) if in_metres else None)
  return Photograph(pixels, alpha, metadata, notes=tuple(notes))


# Of the header: its size, its compressions by masks, and the masks of red, green and blue that are decoded.
_BMP_SIZE_WITH_ALPHA_MASK = 56
_BMP_MASKS, _BMP_MASKS_WITH_ALPHA = 3, 6
_BGR_MASKS = (0xFF0000, 0xFF00, 0xFF)


def _bmp_has_alpha(path):
  """Whether the fourth byte of 32 bits is opacity. OpenImageIO takes it for that in any case."""
  with path.open('rb') as file:
    header = file.read(70)
  size, compression = (int.from_bytes(header[at : at + 4], 'little') for at in (14, 30))
  if compression not in (_BMP_MASKS, _BMP_MASKS_WITH_ALPHA):
    return False
  *colours, alpha = struct.unpack_from('<4I', header, 54)
  if tuple(colours) != _BGR_MASKS:
    raise ValueError('is a BMP file of 32 bits in an unusual order; save it again, as PNG for example')
  return alpha != 0 and (size >= _BMP_SIZE_WITH_ALPHA_MASK or compression == _BMP_MASKS_WITH_ALPHA)


def _read_exr(path, linear):
  array, spec = _decode(path)
  names = list(spec.channelnames)
  colours = next((colours for colours in (['R', 'G', 'B'], ['Y']) if set(colours) <= set(names)), None)
  if colours is None or {'RY', 'BY'} & set(names):
    found = ', '.join(names[:_MOST_NAMED])
    raise ValueError(f'is an OpenEXR file without channels R, G and B or Y, but {found}')
  others = [name for name in names if name not in (*colours, 'A')]
  notes = [f'its channels {", ".join(others[:_MOST_NAMED])} were ignored'] if others else []
  pixels = np.ascontiguousarray(array[:, :, [names.index(name) for name in colours]])
  alpha = np.ascontiguousarray(array[:, :, names.index('A')]) if 'A' in names else None
  if alpha is not None:
    # OpenEXR defines colours as multiplied by opacity; opaque pixels do not change.
    pixels = without_alpha_in_colours(pixels, alpha)
    notes += [PREMULTIPLIED] if (alpha != 1).any() else []
  if (spec.x, spec.y, spec.width, spec.height) != (
    spec.full_x,
    spec.full_y,
    spec.full_width,
    spec.full_height,
  ):
    notes.append('its display window was ignored; the data window is read')
  chromaticities = spec.getattribute('chromaticities')
  if chromaticities and not np.allclose(chromaticities, _REC709_CHROMATICITIES, atol=1e-3):
    notes.append('its chromaticities were ignored; its colours are taken for those of Rec. 709')
  if lost := [name for name, attribute in _EXR_TEXTS.items() if spec.getattribute(attribute)]:
    notes.append(f'its {", ".join(lost)} {"was" if len(lost) == 1 else "were"} ignored')
  linear = linear is not False
  pixels, float_notes = _from_floats(pixels, alpha, linear)
  return Photograph(
    pixels, alpha, linear=linear, notes=(*notes, *float_notes), premultiplied=alpha is not None
  )


# x and y of red, green, blue and white.
_REC709_CHROMATICITIES = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)
# Attributes of OpenEXR: OpenImageIO's names for them.
_EXR_TEXTS = {'owner': 'Copyright', 'comments': 'ImageDescription'}


# Width to height, by the number in the header.
_JXL_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_JXL_HEADER_BYTES = 48
# Linear light, of the transfer characteristics of ITU-T H.273.
_LINEAR_TRANSFER = 8


def _jxl_header(data):
  """Width and height in the header of a JPEG XL file, before rotation, and whether it has several frames."""
  header = b''
  for kind, start, end in blocks.jxl_boxes(data):
    if kind in (b'jxlc', b'jxlp') and len(header) < _JXL_HEADER_BYTES:
      # A length of 64 bits, and the number of a part.
      start += 8 + 8 * (data[start : start + 4] == b'\0\0\0\1') + 4 * (kind == b'jxlp')
      header += data[start : min(end, start + _JXL_HEADER_BYTES)]
  # Fields of bits follow a signature of two bytes, the lowest bit first.
  bits = int.from_bytes((header or data[:_JXL_HEADER_BYTES])[2:], 'little')

  def field(count):
    nonlocal bits
    value, bits = bits % 2**count, bits >> count
    return value

  def size():
    in_eights = field(1)

    def side():
      return 8 * field(5) + 8 if in_eights else field((9, 13, 18, 30)[field(2)]) + 1

    height = side()
    ratio = _JXL_RATIOS.get(field(3))
    return (height * ratio[0] // ratio[1] if ratio else side()), height

  width, height = size()
  has_defaults = field(1)
  if has_defaults or not field(1):
    return width, height, False
  field(3)  # Orientation.
  if field(1):
    size()  # That for which the picture is meant.
  has_preview = field(1)
  # How a preview says its size is not read here.
  return width, height, not has_preview and bool(field(1))


def _read_jxl(path, linear):
  with mapped(path) as data:
    width, height, has_frames = _jxl_header(data)
  # OpenImageIO would read the last one.
  if has_frames:
    raise ValueError('is an animated JPEG XL file; save one of its frames')
  # Before OpenImageIO opens the file. The decoder computes in 32 bits.
  check_size(width, height, 4)
  array, spec = _decode(path)
  transfer = (spec.getattribute('CICP') or (1, 1))[1]
  if transfer in blocks.HDR_TRANSFERS:
    raise ValueError('is a JPEG XL file of high dynamic range (PQ or HLG); convert it to sRGB')
  pixels, alpha = split_alpha(array, 1 if array.shape[2] < 3 else 3)
  is_linear = transfer == _LINEAR_TRANSFER if linear is None else linear
  linear = is_linear and pixels.dtype == np.float32
  float_notes = []
  if pixels.dtype == np.float32:
    pixels, float_notes = _from_floats(pixels, alpha, linear)
  stored = spec.getattribute('ICCProfile')
  profile = None if stored is None else np.asarray(stored, np.uint8).tobytes()
  profile, notes = blocks.checked_profile(profile, pixels.shape[2])
  with mapped(path) as data:
    boxes = {
      kind: data[start + 8 : end]
      for kind, start, end in blocks.jxl_boxes(data)
      if kind in (b'Exif', b'xml ', b'brob', b'jumb')
    }
  # The first four bytes are the offset of the EXIF block from their end.
  exif, exif_notes = blocks.checked_exif(boxes.get(b'Exif', b'')[4:])
  if b'jumb' in boxes:
    notes += (blocks.NO_CREDENTIALS,)
  if b'brob' in boxes:
    notes += ('its compressed EXIF or XMP data were ignored',)
  # The decoder has rotated the pixels already.
  xmp = blocks.xmp_made_upright(boxes.get(b'xml ') or None)
  metadata = Metadata(profile, blocks.exif_made_upright(exif), xmp)
  return Photograph(
    pixels, alpha, metadata, lossless=False, linear=linear, notes=(*float_notes, *notes, *exif_notes)
  )


_READERS: Mapping[str, Callable[[Path], Photograph]] = {
  'JPEG': _read_jpeg,
  'WebP': _read_webp,
  'BMP': _read_bmp,
  'HEIC': camera_formats.read_heic,
  'camera raw': camera_formats.read_raw,
}
_READERS_OF_FLOATS: Mapping[str, Callable[[Path, bool | None], Photograph]] = {
  'OpenEXR': _read_exr,
  'JPEG XL': _read_jxl,
}
