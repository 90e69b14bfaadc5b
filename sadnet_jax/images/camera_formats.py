"""Reads what cameras write beside JPEG: HEIC and camera raw files; each needs an optional library."""

import os
from pathlib import Path
import threading

import numpy as np

from sadnet_jax.files import mapped
from sadnet_jax.images import metadata as blocks
from sadnet_jax.images.metadata import Directory, Metadata
from sadnet_jax.images.photograph import (
  PREMULTIPLIED,
  DecodingError,
  Photograph,
  check_size,
  split_alpha,
  without_alpha_in_colours,
)

# Description, maker, model, software, date, artist, copyright; a raw file's other tags are of the sensor.
_KEPT_RAW_TAGS = (270, 271, 272, 305, 306, 315, 33432)
# What raw files have in place of TIFF's 42: also Olympus's 'RO' and 'RS', and Panasonic's 85.
_RAW_VERSIONS = (42, 0x4F52, 0x5352, 85)
_FUJIFILM = b'FUJIFILMCCD-RAW'
_FIRST_SEGMENT_BYTES = 2**16 + 2
_XMP, _IPTC = 700, 33723
# EXIF's tag for the colour space, and its value for sRGB.
_COLOUR_SPACE, _SRGB = 40961, 1
# ITU-T H.273: the primaries of sRGB, and those that are not stated.
_SRGB_PRIMARIES = (1, 2)


def _pillow_heif():
  try:
    import pillow_heif
  except ImportError as error:
    raise ValueError("HEIC files need pillow-heif; from the clone: pip install '.[heic]'") from error
  return pillow_heif


def heic_shape(path: Path) -> tuple[int, int, int]:
  """Height, width and channels (1 or 3) of a HEIC file, by its header."""
  with path.open('rb') as file:
    image = _pillow_heif().open_heif(file, convert_hdr_to_8bit=False)
    return *reversed(image.size), 1 if image.mode[0] in 'LI' else 3


def read_heic(path: Path) -> Photograph:
  """Reads the first image of a HEIC file.

  Raises:
    ValueError: pillow-heif is not installed; or the image is too large or of high dynamic range.
  """
  with path.open('rb') as file:
    image = _pillow_heif().open_heif(file, convert_hdr_to_8bit=False)
    width, height = image.size
    check_size(width, height, 8)
    nclx = image.info.get('nclx_profile', {})
    if nclx.get('transfer_characteristics') in blocks.HDR_TRANSFERS:
      raise ValueError('is a HEIC file of high dynamic range (PQ or HLG); convert it to sRGB')
    array = np.array(image)
  array = array[:, :, None] if array.ndim == 2 else array
  pixels, alpha = split_alpha(array, 1 if array.shape[2] < 3 else 3)
  exif, exif_notes = blocks.checked_exif(image.info.get('exif'))
  profile, profile_notes = blocks.checked_profile(image.info.get('icc_profile'), pixels.shape[2])
  notes = (*exif_notes, *profile_notes)
  if alpha is not None and image.premultiplied_alpha:
    pixels = without_alpha_in_colours(pixels, alpha)
    notes += (PREMULTIPLIED,)
  primaries = nclx.get('color_primaries', _SRGB_PRIMARIES[0])
  if profile is None and primaries not in _SRGB_PRIMARIES:
    notes += (f'its primaries (number {primaries} of ITU-T H.273) were ignored, so its colours look paler',)
  if len(image) > 1:
    notes += ('its further images were ignored',)
  # The decoder has rotated the pixels already.
  xmp = blocks.xmp_made_upright(image.info.get('xmp') or None)
  metadata = Metadata(profile, blocks.exif_made_upright(exif), xmp)
  return Photograph(pixels, alpha, metadata, lossless=False, notes=notes)


class _SilentLibraries:
  """Discards what C libraries write to standard error, by the process, in one thread at a time.

  LibRaw prints a line about a damaged file and raises an error as well; rawpy cannot turn that off.
  """

  _lock = threading.Lock()

  def __enter__(self):
    self._lock.acquire()
    self._saved: int | None = None
    try:
      self._saved = os.dup(2)
    except OSError:
      # Standard error is closed.
      return
    with open(os.devnull, 'wb') as nowhere:
      os.dup2(nowhere.fileno(), 2)

  def __exit__(self, *_):
    if self._saved is not None:
      os.dup2(self._saved, 2)
      os.close(self._saved)
    self._lock.release()


def read_raw(path: Path) -> Photograph:
  """Develops a camera raw file to 16 bits of sRGB.

  Raises:
    ValueError: rawpy is not installed; or the file cannot be developed.
  """
  try:
    import rawpy
  except ImportError as error:
    raise ValueError("camera raw files need rawpy; from the clone: pip install '.[raw]'") from error
  try:
    with _SilentLibraries(), path.open('rb') as file, rawpy.imread(file) as raw:
      check_size(raw.sizes.width, raw.sizes.height, 14)
      pixels = raw.postprocess(
        use_camera_wb=True,
        no_auto_bright=True,
        output_bps=16,
        output_color=rawpy.ColorSpace.sRGB,
        gamma=(2.4, 12.92),
      )
  except rawpy.LibRawError as error:
    # LibRaw's messages are bytes.
    reason = ' '.join(text.decode() if isinstance(text, bytes) else str(text) for text in error.args)
    raise ValueError(
      f'LibRaw cannot develop this camera raw file ({reason}); export it as 16-bit TIFF'
    ) from error
  exif, notes = raw_exif(path)
  if exif is None:
    notes = ('its EXIF data were not found', *notes)
  # The sensor's values are rounded by development, which rotates too.
  return Photograph(np.ascontiguousarray(pixels), metadata=Metadata(exif=exif), lossless=True, notes=notes)


def raw_exif(path: Path) -> tuple[bytes | None, tuple[str, ...]]:
  """The EXIF block of a camera raw file that is TIFF or like it, or of Fujifilm, as of a picture in sRGB.

  Returns:
    The block, None if there is none, and notes for the user.
  """
  tags = _first_directory(path)
  if tags is None:
    return None, ()
  # They may hold settings for developing, which other programs would apply to the developed picture.
  notes = ('its XMP or IPTC data were ignored',) if {_XMP, _IPTC} & set(tags.entries) else ()
  entries = {tag: entry for tag, entry in tags.entries.items() if tag in _KEPT_RAW_TAGS}
  if not (entries or tags.children):
    return None, notes
  if details := tags.children.get(blocks.EXIF):
    # The camera's JPEG files may be in Adobe RGB; what is developed here is not.
    details.children.pop(blocks.INTEROPERABILITY, None)
    if _COLOUR_SPACE in details.entries:
      details.set_integers(_COLOUR_SPACE, [_SRGB])
  return blocks.build_exif(Directory(tags.order, entries, tags.children)), notes


def _first_directory(path):
  with mapped(path) as data:
    start = 0
    if data[: len(_FUJIFILM)] == _FUJIFILM:
      # Its preview is a JPEG file, with the EXIF data in its first segment.
      preview = int.from_bytes(data[84:88], 'big')
      found = data.find(blocks.EXIF_PREFIX, preview, preview + _FIRST_SEGMENT_BYTES)
      start = found + len(blocks.EXIF_PREFIX) if found >= 0 else len(data)
    block = data[start : start + _FIRST_SEGMENT_BYTES] if start else data
    header = blocks.read_header(block, _RAW_VERSIONS)
    if header is None:
      return None
    try:
      return blocks.read_directory(block, header, header.offset)
    except (ValueError, DecodingError):
      return None
