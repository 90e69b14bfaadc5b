"""What a picture file holds, whatever its format."""

from collections.abc import Iterable, Mapping
import dataclasses

import numpy as np

from sadnet_jax.images import metadata as exif_blocks
from sadnet_jax.machine import free_host_bytes

# 500 megapixels: three times the largest sensors, and 3 GB as 16-bit colour.
MAX_PIXELS = 500_000_000
# Reading holds the file, the decoder's picture and the array at once.
_COPIES = 3

# Of each EXIF orientation: whether rows become columns, then whether rows and columns are reversed.
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


@dataclasses.dataclass(frozen=True)
class Metadata:
  """What comes with the pixels, each as a file has it, or None.

  Attributes:
    icc_profile: The colour profile, of the pixels' colour space.
    exif: The tags as a small TIFF file (without the name that JPEG puts before it) and without a thumbnail.
    xmp: The packet, XML.
    photoshop: Image resources of Adobe Photoshop, IPTC captions among them, without thumbnails.
    comment: A JPEG comment.
    dpi: Pixels per inch, across and down.
    png_chunks: Type and content of a PNG's chunks of text, time and colour.
  """

  icc_profile: bytes | None = None
  exif: bytes | None = None
  xmp: bytes | None = None
  photoshop: bytes | None = None
  comment: bytes | None = None
  dpi: tuple[float, float] | None = None
  png_chunks: tuple[tuple[bytes, bytes], ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Photograph:
  """A picture as its file stores it: not turned, not premultiplied.

  Attributes:
    pixels: uint8 or uint16 [H, W, 1 or 3], the full range of the type.
    alpha: [H, W] of the same type, 0 is transparent; None if there is none.
    metadata: What came with it.
    lossless: Whether it comes from a form that stores pixels exactly.
    notes: What was left out or taken for something, sentences for the user.
  """

  pixels: np.ndarray
  alpha: np.ndarray | None = None
  metadata: Metadata = Metadata()
  lossless: bool = True
  notes: tuple[str, ...] = ()

  def __post_init__(self):
    """Raises ValueError for arrays of another form."""
    pixels, alpha = self.pixels, self.alpha
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
      raise ValueError(
        f'pixels: got {pixels.dtype} {pixels.shape}, want uint8 or uint16 of shape [H, W, 1 or 3]'
      )
    if 0 in pixels.shape:
      raise ValueError(f'pixels: got an empty array {pixels.shape}, want at least one pixel')
    if alpha is not None and (alpha.dtype != pixels.dtype or alpha.shape != pixels.shape[:2]):
      raise ValueError(
        f'alpha: got {alpha.dtype} {alpha.shape}, want {pixels.dtype} {pixels.shape[:2]} as the pixels'
      )

  @property
  def orientation(self) -> int:
    """How to turn it before it is shown: EXIF's number, 1 (as it is) to 8."""
    return exif_blocks.orientation(self.metadata.exif)


def upright(photograph: Photograph) -> Photograph:
  """The same picture, turned and mirrored as its EXIF orientation asks, which is 1 afterwards."""
  transposed, rows, columns = _TURNS[photograph.orientation]

  def turn(array):
    array = array.swapaxes(0, 1) if transposed else array
    return np.ascontiguousarray(array[:: -1 if rows else 1, :: -1 if columns else 1])

  metadata = photograph.metadata
  dpi = metadata.dpi[::-1] if metadata.dpi and transposed else metadata.dpi
  return dataclasses.replace(
    photograph,
    pixels=turn(photograph.pixels),
    alpha=None if photograph.alpha is None else turn(photograph.alpha),
    metadata=dataclasses.replace(metadata, exif=exif_blocks.made_upright(metadata.exif), dpi=dpi),
  )


def check_size(width: int, height: int, pixel_bytes: int, most_pixels: float = float('inf')) -> None:
  """Refuses a header before anything is allocated.

  Args:
    width: In pixels, as the header says.
    height: The same.
    pixel_bytes: Memory that a pixel takes.
    most_pixels: What a file of this length can hold at the very most.

  Raises:
    ValueError: No pixels, or more than the file, the machine or `MAX_PIXELS` allows.
  """
  pixels = width * height
  if width < 1 or height < 1:
    raise ValueError(f'got a header of {width}x{height} pixels, want at least one (the file is damaged)')
  if pixels > most_pixels:
    raise ValueError(
      f'got a header of {width}x{height} pixels, want no more than the file can hold (it is damaged)'
    )
  if pixels > MAX_PIXELS:
    raise ValueError(f'got {width}x{height} pixels, want at most {MAX_PIXELS:,} (cut it into parts)')
  memory = free_host_bytes()
  if memory is not None and pixels * pixel_bytes * _COPIES > memory:
    raise ValueError(
      f'got {width}x{height} pixels, want a picture that fits the {memory / 2**30:.1f} GiB of free memory '
      '(cut it into parts)'
    )


def left_out(metadata: Metadata, names: Iterable[str], form: str) -> tuple[str, ...]:
  """Notes on fields of the metadata that a format has no place for."""
  called = {
    'icc_profile': 'colour profile',
    'exif': 'EXIF data',
    'xmp': 'XMP data',
    'photoshop': 'Photoshop data (IPTC)',
    'comment': 'comment',
    'dpi': 'resolution (dpi)',
  }
  lost = [called[name] for name in names if name in called and getattr(metadata, name)]
  if 'png_chunks' in names:
    kinds = {kind for kind, _ in metadata.png_chunks}
    lost += ['PNG text'] if kinds & {b'tEXt', b'zTXt', b'iTXt'} else []
    # With a profile, or sRGB, nothing is lost without them.
    if kinds & {b'gAMA', b'cHRM', b'cICP'} and not metadata.icc_profile and b'sRGB' not in kinds:
      lost.append('PNG colour (gAMA, cHRM)')
  return tuple(f'its {name} left out: {form} has no place for it' for name in lost)
