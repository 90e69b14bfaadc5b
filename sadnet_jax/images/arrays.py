"""Images of data sets as 8-bit arrays: finding, reading and writing files."""

from collections.abc import Iterable, Sequence
import logging
from pathlib import Path
import re
import threading

import numpy as np
from PIL import Image

from sadnet_jax.files import replacing, walk
from sadnet_jax.images.photograph import ABOVE_WHITE, is_mostly_above_white, to_8_bits
from sadnet_jax.images.reading import read_photograph, shown_path

_LOGGER = logging.getLogger(__name__)
# Kinds of notes that were logged in this process.
logged_kinds: set[str] = set()
_lock = threading.Lock()
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
# MATLAB's rgb2gray: the luma of ITU-R BT.601 with more digits than `photograph.BT601_LUMA`.
MATLAB_LUMA = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])


def find_images(folder: str | Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
  """Finds all image files below a folder, sorted by path.

  Args:
    folder: Searched with its subfolders and links to folders, without hidden folders and files.
    suffixes: Extensions that count, in lower case with the dot; the case of files' extensions is ignored.

  Returns:
    Paths, at least one.

  Raises:
    ValueError: The folder is missing or has no image in it.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise ValueError(f'{folder}: the folder does not exist')
  found = [path for path in visible_files(folder) if path.suffix.lower() in suffixes and path.is_file()]
  if not found:
    raise ValueError(f'{folder}: the folder has no image with an extension of {", ".join(suffixes)}')
  return found


def missing_files(paths: Iterable[Path]) -> list[Path]:
  """Returns those of `paths` that are links, have names of images and lead to no file."""
  return [
    path for path in paths if path.suffix.lower() in SUFFIXES and path.is_symlink() and not path.exists()
  ]


def visible_files(folder: Path) -> list[Path]:
  """Returns everything but folders below a folder and the folders it links to, sorted by path.

  Names that begin with a dot, like macOS's ``._1.png`` and viewers' thumbnails, are left out.
  """
  found = []
  for path, folders, names in walk(folder):
    folders[:] = [name for name in folders if not is_hidden(name)]
    found += [path / name for name in names if not is_hidden(name)]
  return sorted(found)


def is_hidden(name: str) -> bool:
  """Whether the name of a file or folder begins with a dot."""
  return name.startswith('.')


def read_image(path: str | Path, channels: int) -> np.ndarray:
  """Reads an image as 8-bit grey or RGB.

  Takes what `read_photograph` takes. 16 bits are rounded to the nearest of 256 levels, floats are clipped
  to [0, 1] first, palettes become RGB, and transparency is dropped. Pixels are not rotated by metadata. What
  the reader notes about a file, for example that its 16 bits are nearly black, is logged as a warning, each
  kind of note once in a process.

  Args:
    path: The file.
    channels: 3 for RGB, or 1 for grey; colour becomes grey by MATLAB's rgb2gray, rounded to 8 bits.

  Returns:
    uint8 [H, W, channels].

  Raises:
    ValueError: The file is not a readable image, is grey where colour is wanted, or has floats on another
      scale.
  """
  return _as_8_bits(path, read_photograph(path), channels)


def read_images_of_one_range(paths: Sequence[Path], channels: int) -> list[np.ndarray]:
  """`read_image` for images of one scene, which must not be read in different ranges.

  Args:
    paths: The files.
    channels: As in `read_image`.

  Returns:
    uint8 [H, W, channels] of each.

  Raises:
    ValueError: As `read_image`; or white of 16-bit values is lower in one file, by its tags, than in another
      that has no values so bright: it lacks tags, or a few of its values exceed them.
  """
  photographs = [read_photograph(path) for path in paths]
  deep = [(path, p) for path, p in zip(paths, photographs, strict=True) if p.pixels.dtype == np.uint16]
  tagged = {path: p.white_level for path, p in deep if p.white_level is not None}
  for path, photograph in deep:
    brightest = int(photograph.pixels.max())
    if tagged and photograph.white_level is None and brightest < 2 * min(tagged.values()):
      other, white = min(tagged.items(), key=lambda item: item[1])
      raise ValueError(
        f'{path}: its white is not known, and its highest value is {brightest}, but white is {white} in '
        f'{other} by its tags; images of one scene must have one range, so set the tags of both, or scale '
        'both to the full range'
      )
  return [_as_8_bits(path, photo, channels) for path, photo in zip(paths, photographs, strict=True)]


def _as_8_bits(path, photograph, channels):
  if is_mostly_above_white(photograph.pixels):
    raise ValueError(f'{path}: {ABOVE_WHITE}; divide them by the value of white')
  _log_once(path, photograph.notes)
  pixels = to_8_bits(photograph.pixels)
  if pixels.shape[2] == 1 and channels == 3:
    raise ValueError(
      f'{path}: the image is grey, but colour is needed; for grey images use a config with model.channels = 1'
    )
  return rgb_to_gray(pixels) if pixels.shape[2] > channels else pixels


def _log_once(path, notes):
  for note in notes:
    # Notes of one kind differ in their numbers.
    kind = re.sub(r'\d+', '', note)
    with _lock:
      known = kind in logged_kinds
      logged_kinds.add(kind)
    if not known:
      _LOGGER.warning('%s: %s; other files may be alike', shown_path(path), note)


def rgb_to_gray(rgb: np.ndarray) -> np.ndarray:
  """uint8 [..., 3] -> uint8 [..., 1] like MATLAB's rgb2gray."""
  return np.floor(rgb @ MATLAB_LUMA[:, None] + 0.5).astype(np.uint8)


def write_png(path: str | Path, image: np.ndarray) -> None:
  """Writes [H, W, 1 or 3], uint8 or floats in [0, 1], as an 8-bit PNG file; creates folders."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = to_8_bits(image)
  with replacing(path) as temporary:
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(temporary, 'PNG')


def side_by_side(*images: np.ndarray) -> np.ndarray:
  """Images [H, W, C] of one height beside each other, uint8."""
  return to_8_bits(np.concatenate(images, axis=1))
