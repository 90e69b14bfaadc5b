"""Image files as arrays and back, with Pillow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')
# ITU-R BT.601 luma, the weights of MATLAB's rgb2gray.
LUMA = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])


def find_images(folder: str | Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
  """All image files below a folder, sorted by path.

  Args:
    folder: Searched with its subfolders; hidden ones and hidden files do not count.
    suffixes: Lower-case endings that count, with the dot; case is ignored.

  Returns:
    Paths, at least one.

  Raises:
    ValueError: No such folder, or no image in it.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise ValueError(f'{folder}: got no such folder, want a folder of images')
  found = sorted(
    p for p in folder.rglob('*') if p.suffix.lower() in suffixes and p.is_file() and not is_hidden(p, folder)
  )
  if not found:
    raise ValueError(f'{folder}: got no image in it, want at least one file ending in {", ".join(suffixes)}')
  return found


def is_hidden(path: Path, folder: Path) -> bool:
  """Whether a name below a folder begins with a dot, as of macOS's ``._1.png`` and viewers' thumbnails."""
  return any(part.startswith('.') for part in path.relative_to(folder).parts)


def read_image(path: str | Path, channels: int) -> np.ndarray:
  """Reads an 8-bit image.

  Args:
    path: The file.
    channels: 3 for RGB, or 1 for grey; colour becomes grey by MATLAB's rgb2gray,
      rounded to 8 bits.

  Returns:
    uint8 [H, W, channels].

  Raises:
    ValueError: The file is no readable image, is not 8-bit grey or RGB, or is
      grey where colour is wanted.
  """
  with open_image(path) as image:
    if image.mode not in ('L', 'RGB'):
      raise ValueError(f'{path}: got an image of mode {image.mode}, want 8-bit grey (L) or RGB')
    if image.mode == 'L' and channels == 3:
      raise ValueError(
        f'{path}: got a grey image, want colour; for grey images use a config with model.channels = 1'
      )
    try:
      pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:
      raise ValueError(f'{path}: got a damaged image file ({error}), want a complete one') from error
  if pixels.ndim == 2:
    return pixels[:, :, None]
  return rgb_to_gray(pixels) if channels == 1 else pixels


def rgb_to_gray(rgb: np.ndarray) -> np.ndarray:
  """uint8 [..., 3] -> uint8 [..., 1] as MATLAB's rgb2gray."""
  return np.floor(rgb @ LUMA[:, None] + 0.5).astype(np.uint8)


def write_png(path: str | Path, image: np.ndarray) -> None:
  """Writes [H, W, 1 or 3], uint8, or floats clipped to [0, 1] and rounded to 8 bits; makes folders."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = to_uint8(image)
  Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Clips floats to [0, 1] and rounds them to 256 levels, uint8 0 to 255; uint8 is left as it is."""
  if image.dtype == np.uint8:
    return image
  return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def side_by_side(*images: np.ndarray) -> np.ndarray:
  """Images [H, W, C] of one height, as one picture, uint8."""
  return to_uint8(np.concatenate(images, axis=1))


def open_image(path: str | Path) -> Image.Image:
  """Opens an image file, to be closed by the caller; ValueError if it is none, or too large for Pillow."""
  try:
    return Image.open(path)
  except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
    raise ValueError(f'{path}: got no readable image ({error}), want an image file') from error
