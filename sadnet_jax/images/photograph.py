"""What an image file holds, whatever its format."""

from collections.abc import Iterable, Mapping
import dataclasses

import numpy as np

from sadnet_jax.images import metadata as metadata_blocks
from sadnet_jax.images.metadata import Metadata
from sadnet_jax.machine import free_host_bytes

FULL_WHITE = 65535
# 500 megapixels: three times the largest sensors, and 3 GB as 16-bit colour.
MAX_PIXELS = 500_000_000
# Luma of gamma-encoded R, G and B, ITU-R BT.601.
BT601_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Says of an image that `is_mostly_above_white`.
ABOVE_WHITE = 'most of its values are above 1, which is white'
# Reading holds the decoder's picture and up to two arrays at once.
_COPIES = 3

# For each EXIF orientation: whether rows become columns, then whether rows and columns are reversed.
_TURNS: Mapping[int, tuple[bool, bool, bool]] = {
  1: (False, False, False),
  2: (False, False, True),
  3: (False, True, True),
  4: (False, True, False),
  5: (True, False, False),
  6: (True, False, True),
  7: (True, True, True),
  8: (True, True, False),
}
_FIELD_NAMES = {
  'icc_profile': 'colour profile',
  'exif': 'EXIF data',
  'xmp': 'XMP data',
  'photoshop': 'Photoshop data (IPTC)',
  'comment': 'comment',
  'dpi': 'resolution (dpi)',
}


class DecodingError(Exception):
  """What a decoder says about a damaged file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Photograph:
  """An image as its file stores it, but for the range of its values: not rotated, not premultiplied by alpha.

  Attributes:
    pixels: [H, W, 1 or 3]. uint8 or uint16 of the full range, or float32 where 1 is white and larger
      values are brighter than white. Always display-referred, that is, with a transfer curve like sRGB's:
      files of linear light are converted when read and when written.
    alpha: Opacity [H, W] of the same dtype, 0 is transparent; None if there is none.
    metadata: What the file holds beside pixels.
    lossless: Whether the file stores pixels exactly, unlike JPEG.
    linear: Whether a floating-point file stores linear light, so that one written from it does too.
    premultiplied: Whether the file stores colours multiplied by their opacity. Those of opacity 0 are then
      light without matter, such as a glow, and stay so in OpenEXR.
    notes: What was ignored or assumed while reading, as sentences for the user.
    white_level: White in the file, if its 16-bit values have a smaller range, as those of many cameras and
      microscopes. `pixels` are scaled to the full range, which `alpha` always has; PNG and TIFF files written
      from them get the file's range again. None for the full range.
  """

  pixels: np.ndarray
  alpha: np.ndarray | None = None
  metadata: Metadata = dataclasses.field(default_factory=Metadata)
  lossless: bool = True
  linear: bool = False
  notes: tuple[str, ...] = ()
  white_level: int | None = None
  premultiplied: bool = False

  def __post_init__(self):
    """Raises ValueError for arrays of another dtype or shape."""
    pixels, alpha = self.pixels, self.alpha
    if (
      pixels.dtype not in (np.uint8, np.uint16, np.float32)
      or pixels.ndim != 3
      or pixels.shape[2] not in (1, 3)
    ):
      raise ValueError(
        f'pixels must be uint8, uint16 or float32 of shape [H, W, 1 or 3], not {pixels.dtype} {pixels.shape}'
      )
    if 0 in pixels.shape:
      raise ValueError(f'pixels must not be empty, but have shape {pixels.shape}')
    if alpha is not None and (alpha.dtype != pixels.dtype or alpha.shape != pixels.shape[:2]):
      raise ValueError(
        f'alpha must be {pixels.dtype} {pixels.shape[:2]} like the pixels, not {alpha.dtype} {alpha.shape}'
      )

  @property
  def orientation(self) -> int:
    """EXIF's number, 1 to 8, for how viewers rotate the pixels; 1 is not at all."""
    return metadata_blocks.orientation(self.metadata.exif)


def upright(photograph: Photograph) -> Photograph:
  """Rotates and mirrors the pixels as the EXIF orientation asks, and sets it to 1, in the XMP data too."""
  if photograph.orientation == 1:
    return photograph
  transposed, rows, columns = _TURNS[photograph.orientation]

  def turn(array):
    array = array.swapaxes(0, 1) if transposed else array
    return np.ascontiguousarray(array[:: -1 if rows else 1, :: -1 if columns else 1])

  metadata = photograph.metadata
  metadata = dataclasses.replace(
    metadata,
    exif=metadata_blocks.exif_made_upright(metadata.exif),
    xmp=metadata_blocks.xmp_made_upright(metadata.xmp),
    dpi=metadata.dpi[::-1] if metadata.dpi and transposed else metadata.dpi,
  )
  return dataclasses.replace(
    photograph,
    pixels=turn(photograph.pixels),
    alpha=None if photograph.alpha is None else turn(photograph.alpha),
    metadata=metadata,
  )


def check_size(width: int, height: int, pixel_bytes: int, max_pixels: float = float('inf')) -> None:
  """Refuses an image by its header, before anything is allocated.

  Args:
    width: Width in the header, in pixels.
    height: Height in the header, in pixels.
    pixel_bytes: Memory per decoded pixel.
    max_pixels: The most that a file of this length can hold.

  Raises:
    ValueError: No pixels, or more than the file, the machine's memory or `MAX_PIXELS` allows.
  """
  pixels = width * height
  if width < 1 or height < 1:
    raise ValueError(f'the file is damaged or incomplete: its header says {width}x{height} pixels')
  if pixels > max_pixels:
    raise ValueError(
      f'the file is damaged or incomplete: its header says {width}x{height} pixels, '
      'more than a file of its size can hold'
    )
  if pixels > MAX_PIXELS:
    raise ValueError(f'{width}x{height} pixels are more than {MAX_PIXELS:,}; cut the image into parts')
  memory = free_host_bytes()
  if memory is not None and pixels * pixel_bytes * _COPIES > memory:
    raise ValueError(
      f'{width}x{height} pixels do not fit into the {memory / 2**30:.1f} GiB of free memory; '
      'cut the image into parts'
    )


def split_alpha(array: np.ndarray, colours: int) -> tuple[np.ndarray, np.ndarray | None]:
  """Colours and opacity of a decoded image.

  Args:
    array: [H, W, C].
    colours: Channels of colour, 1 or 3.

  Returns:
    Colours [H, W, 1 or 3], and alpha [H, W] or None.

  Raises:
    ValueError: There are fewer or more channels.
  """
  if array.shape[2] not in (colours, colours + 1):
    raise ValueError(f'has {array.shape[2]} channels, more than colours and transparency; flatten it')
  if array.shape[2] == colours:
    return array, None
  return np.ascontiguousarray(array[:, :, :colours]), np.ascontiguousarray(array[:, :, colours])


def lost_fields(metadata: Metadata, names: Iterable[str], format_name: str) -> tuple[str, ...]:
  """Notes on those of the named metadata fields that are present but that a format cannot store."""
  lost = [_FIELD_NAMES[name] for name in names if name in _FIELD_NAMES and getattr(metadata, name)]
  if 'png_chunks' in names:
    kinds = {kind for kind, _ in metadata.png_chunks}
    lost += ['PNG text'] if kinds & {b'tEXt', b'zTXt', b'iTXt'} else []
    # With a profile, or sRGB, nothing is lost without them.
    if kinds & {b'gAMA', b'cHRM', b'cICP'} and not metadata.icc_profile and b'sRGB' not in kinds:
      lost.append('PNG colour (gAMA, cHRM)')
  return tuple(f'{format_name} cannot store its {name}, which is dropped' for name in lost)


def is_mostly_above_white(pixels: np.ndarray) -> bool:
  """Whether most values of an image are floats above 1, as on the scale of 8 or 16 bits."""
  return bool(pixels.dtype == np.float32 and 2 * np.count_nonzero(pixels > 1) > pixels.size)


def to_8_bits(array: np.ndarray) -> np.ndarray:
  """Rounds to the nearest of 256 levels.

  Args:
    array: uint16 of the full range, or floats, which are clipped to [0, 1]; uint8 is returned as it is.
  """
  if array.dtype == np.uint8:
    return array
  if array.dtype == np.uint16:
    # In whole numbers: 257 steps of 16 bits are one of 8.
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
  return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)


def to_16_bits(array: np.ndarray) -> np.ndarray:
  """Clips floats to [0, 1] and rounds them to 65536 levels; integers are returned as they are."""
  if array.dtype != np.float32:
    return array
  return np.round(np.clip(array, 0, 1) * np.float32(65535)).astype(np.uint16)


def to_full_range(array: np.ndarray, white_level: int) -> np.ndarray:
  """Scales uint16 from 0 to ``white_level`` to the full range; larger values become white."""
  levels = np.minimum(np.arange(2**16, dtype=np.int64), white_level)
  return ((levels * 65535 + white_level // 2) // white_level).astype(np.uint16)[array]


def from_full_range(array: np.ndarray, white_level: int) -> np.ndarray:
  """Scales uint16 of the full range to 0 to ``white_level``; the inverse of `to_full_range`."""
  levels = np.arange(2**16, dtype=np.int64)
  return ((levels * white_level + 32767) // 65535).astype(np.uint16)[array]


PREMULTIPLIED = 'its colours, which were stored multiplied by their opacity, are divided by it'


def without_alpha_in_colours(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """Divides colours [H, W, C] that are stored times their opacity [H, W] by it."""
  result = pixels.copy()
  opaque = 1.0 if pixels.dtype == np.float32 else np.iinfo(pixels.dtype).max
  # Row by row: whole images as floats are large.
  for row, opacity in zip(result, alpha, strict=True):
    share = np.where(opacity > 0, opacity, opaque).astype(np.float64)[:, None] / opaque
    divided = row / share
    row[...] = divided if pixels.dtype == np.float32 else np.minimum(np.round(divided), opaque)
  return result


def to_float(array: np.ndarray) -> np.ndarray:
  """Converts to float32, integers of the full range to [0, 1]; float32 is returned as it is."""
  if np.issubdtype(array.dtype, np.integer):
    return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
  return array.astype(np.float32, copy=False)


def srgb_from_linear(linear: np.ndarray) -> np.ndarray:
  """Applies the sRGB transfer curve (IEC 61966-2-1), continued above 1 and mirrored below 0; float32."""
  size = np.abs(linear)
  curve = np.where(size <= 0.0031308, 12.92 * size, 1.055 * size ** (1 / 2.4) - 0.055)
  return np.copysign(curve, linear).astype(np.float32)


def linear_from_srgb(srgb: np.ndarray) -> np.ndarray:
  """The inverse of `srgb_from_linear`, float32."""
  size = np.abs(srgb)
  curve = np.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
  return np.copysign(curve, srgb).astype(np.float32)
