"""Photographs to files, whole or not at all."""

from collections.abc import Callable, Mapping
import dataclasses
import os
from pathlib import Path

import numpy as np

from sadnet_jax.files import replacing
from sadnet_jax.images.formats import bmp, jpeg, png, tiff_writing, webp
from sadnet_jax.images.photograph import Photograph, upright
from sadnet_jax.images.reading import shown_path


@dataclasses.dataclass(frozen=True)
class _Format:
  """What a format holds, and what makes its files."""

  name: str
  encode: Callable
  deep: bool
  alpha: bool
  max_side: int
  max_exif_bytes: int = 2**31 - 1


_PNG = _Format('PNG', png.encode, True, True, 2**31 - 1)
_JPEG = _Format('JPEG', jpeg.encode, False, False, jpeg.MAX_SIDE, jpeg.MAX_EXIF_BYTES)
_TIFF = _Format('TIFF', tiff_writing.encode, True, True, 2**31 - 1)
_WEBP = _Format('WebP', webp.encode, False, True, webp.MAX_SIDE)
_BMP = _Format('BMP', bmp.encode, False, False, 2**31 - 1, 0)
_FORMATS: Mapping[str, _Format] = {
  '.png': _PNG,
  '.jpg': _JPEG,
  '.jpeg': _JPEG,
  '.jfif': _JPEG,
  '.tif': _TIFF,
  '.tiff': _TIFF,
  '.webp': _WEBP,
  '.bmp': _BMP,
}
# Endings of files that are read and written, in lower case.
PHOTOGRAPH_SUFFIXES = tuple(_FORMATS)


def check_output(path: str | Path, photograph: Photograph | None = None) -> None:
  """Refuses what `write_photograph` would, before there is work to lose.

  Args:
    path: Where it is to be written.
    photograph: What, as read; None if it is not known yet.

  Raises:
    ValueError: The ending is of no format, the folder is missing or not to be written to, the name is
      a folder's, or the format does not hold the photograph's transparency or size.
  """
  path, shown = Path(path), shown_path(path)
  form = _FORMATS.get(path.suffix.lower())
  if form is None:
    raise ValueError(f'{shown}: got the ending {path.suffix!r}, want one of {", ".join(PHOTOGRAPH_SUFFIXES)}')
  if path.is_dir():
    raise ValueError(f'{shown}: got a folder, want the name of a file')
  if not path.parent.is_dir():
    raise ValueError(f'{shown}: got no such folder {shown_path(path.parent)}, want one (make it)')
  if not os.access(path.parent, os.W_OK):
    raise ValueError(f'{shown}: got a folder without permission to write, want another')
  if photograph is None:
    return
  height, width = photograph.pixels.shape[:2]
  if max(height, width) > form.max_side:
    raise ValueError(
      f'{shown}: got {width}x{height} pixels, want at most {form.max_side} a side for {form.name} (write PNG)'
    )
  if photograph.alpha is not None and not form.alpha and not _opaque(photograph.alpha):
    raise ValueError(
      f'{shown}: got a photograph with transparency, want a format that holds it (write PNG, TIFF or WebP)'
    )


def write_photograph(path: str | Path, photograph: Photograph) -> tuple[str, ...]:
  """Writes a photograph in the format of the ending, over a file of that name.

  PNG and TIFF hold 8 and 16 bits without loss. JPEG is of quality 95 with colours at full
  resolution. WebP is lossless where the photograph comes from a lossless form, else of quality 95.
  The EXIF orientation goes with the pixels, which are not turned, but where the format has no place for it.

  Args:
    path: Ends in one of `PHOTOGRAPH_SUFFIXES`; its folder exists.
    photograph: What to write.

  Returns:
    Notes on what the format could not hold.

  Raises:
    ValueError: As by `check_output`; or the file cannot be written.
  """
  check_output(path, photograph)
  path, shown = Path(path), shown_path(path)
  form = _FORMATS[path.suffix.lower()]
  notes: tuple[str, ...] = ()
  if photograph.alpha is not None and not form.alpha:
    photograph = dataclasses.replace(photograph, alpha=None)
    notes += (f'its transparency is left out: it is opaque everywhere, and {form.name} holds none',)
  if photograph.pixels.dtype == np.uint16 and not form.deep:
    photograph = _rounded(photograph)
    notes += (f'its 16 bits are rounded to 8: {form.name} holds no more (write PNG or TIFF)',)
  if photograph.orientation != 1 and len(photograph.metadata.exif or b'') > form.max_exif_bytes:
    photograph = upright(photograph)
    notes += (f'it is turned upright: {form.name} has no place for its orientation',)
  try:
    parts, lost = form.encode(photograph)
    with replacing(path) as temporary, temporary.open('wb') as file:
      for part in parts:
        file.write(part)
  except OSError as error:
    raise ValueError(f'{shown}: got {error.strerror or error}, want a file that can be written') from error
  except ValueError as error:
    raise ValueError(f'{shown}: {error}') from error
  return notes + lost


def _opaque(alpha):
  return bool(alpha.min() == np.iinfo(alpha.dtype).max)


def to_8_bits(array: np.ndarray) -> np.ndarray:
  """uint16 of the full range to the nearest of 256 levels, uint8."""
  # In whole numbers: 257 steps of 16 bits are one of 8.
  return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _rounded(photograph):
  alpha = photograph.alpha
  return dataclasses.replace(
    photograph, pixels=to_8_bits(photograph.pixels), alpha=None if alpha is None else to_8_bits(alpha)
  )
