"""Adds training images with colours that are rare in photographs of nature.

  python -m tools.make_vivid BSD432 BSD432_vivid

A network that has never seen such colours produces patterns on plain red, green, blue and black. The new
folder has the original images, every third of them again with saturated colours and shuffled channels, and
pictures of plain shapes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import shutil

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from sadnet_jax.files import local_path, one_line, print_any_name
from sadnet_jax.images.arrays import find_images

# Factors of Pillow's enhancement; 1 leaves the image unchanged.
_SATURATION = (2.0, 6.0)
_CONTRAST = (1.0, 1.8)
_SHAPES_SIZE = (481, 321)
_SHAPES_EACH = 40


def make_vivid(folder: str | Path, output: str | Path, *, shapes: int = 96, seed: int = 0) -> int:
  """Writes the new folder.

  Args:
    folder: Clean images, 8-bit RGB, in subfolders too.
    output: The new folder, which must not exist; it gets the same subfolders.
    shapes: Number of pictures of plain shapes.
    seed: Seed of all random choices.

  Returns:
    The number of images in the new folder.

  Raises:
    ValueError: There are no images, one is not RGB, the new folder exists, or two new images would have one
      name, as in a folder that this has made.
  """
  folder, output = local_path(folder), local_path(output)
  paths = find_images(folder)
  if output.exists():
    raise ValueError(f'{output} exists; choose another name')
  for path in paths:
    with Image.open(path) as image:
      if image.mode != 'RGB':
        raise ValueError(f'{path}: must be 8-bit RGB, not of mode {image.mode}')
  output.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  for number, path in enumerate(paths):
    # Files of one name may be in several subfolders.
    copy = _new(output / path.relative_to(folder))
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)
    if number % 3 == 0:
      _vivid(path, rng).save(_new(copy.with_name(f'vivid_{path.stem}.png')))
  for number in range(shapes):
    _shapes(rng).save(_new(output / f'shapes_{number:03}.png'))
  return len(find_images(output))


def _new(path):
  if path.exists():
    raise ValueError(
      f'{path}: two images would have this name; rename one of {path.name} in the first folder'
    )
  return path


def _vivid(path, rng):
  with Image.open(path) as image:
    saturated = ImageEnhance.Color(image).enhance(rng.uniform(*_SATURATION))
  contrasting = ImageEnhance.Contrast(saturated).enhance(rng.uniform(*_CONTRAST))
  return Image.fromarray(np.asarray(contrasting)[:, :, rng.permutation(3)])


def _shapes(rng):
  width, height = _SHAPES_SIZE[:: rng.choice((1, -1))]
  # A gradient from one colour to another, with shapes on it.
  share = np.linspace(0, 1, width)[None, :, None]
  gradient = np.broadcast_to(_colour(rng) * (1 - share) + _colour(rng) * share, (height, width, 3))
  image = Image.fromarray(np.round(gradient).astype(np.uint8))
  draw = ImageDraw.Draw(image)
  for _ in range(_SHAPES_EACH):
    x, y = rng.integers(-40, width), rng.integers(-40, height)
    right, bottom = x + rng.integers(4, 160), y + rng.integers(4, 160)
    colour = tuple(int(value) for value in _colour(rng))
    kind = rng.integers(3)
    if kind == 0:
      draw.rectangle((x, y, right, bottom), fill=colour)
    elif kind == 1:
      draw.ellipse((x, y, right, bottom), fill=colour)
    else:
      draw.line((x, y, right, bottom), fill=colour, width=int(rng.integers(1, 12)))
  return image


def _colour(rng):
  """A corner of the RGB cube in two of three cases, otherwise any colour."""
  return rng.integers(0, 2, 3) * 255.0 if rng.random() < 2 / 3 else rng.uniform(0, 255, 3)


def main(arguments: Sequence[str] | None = None) -> None:
  """The command."""
  print_any_name()
  parser = argparse.ArgumentParser(
    prog='python -m tools.make_vivid',
    description='Copies a folder of clean images and adds images with saturated and plain colours.',
  )
  parser.add_argument('folder', metavar='FOLDER', help='clean images')
  parser.add_argument('output', metavar='OUTPUT', help='new folder')
  parser.add_argument(
    '--shapes', type=int, default=96, help='number of pictures of plain shapes (default: %(default)s)'
  )
  parser.add_argument('--seed', type=int, default=0, help='seed of all random choices (default: %(default)s)')
  given = parser.parse_args(arguments)
  try:
    count = make_vivid(given.folder, given.output, shapes=given.shapes, seed=given.seed)
  except (ValueError, OSError) as error:
    raise SystemExit(f'{parser.prog}: {one_line(error)}') from error
  print(f'{given.output}: {count} images')


if __name__ == '__main__':
  main()
