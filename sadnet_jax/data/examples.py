"""An example: an image, its ground truth, and the scene it shows."""

import collections
from collections.abc import Iterable, Sequence
import concurrent.futures
import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

from sadnet_jax.images.arrays import read_images_of_one_range
from sadnet_jax.images.reading import read_shape


@dataclasses.dataclass(frozen=True)
class Example:
  """The files of one image.

  Attributes:
    name: Unique within the set: path of the noisy file (or of the clean one, if there is no noisy one) below
      the folder, with ``/`` and without extension, unless two files differ only in their extensions.
    scene: Examples of one scene must be held out together.
    clean: Files whose rounded mean is the ground truth: one, or two in RENOIR.
    noisy: None for clean images.
  """

  name: str
  scene: str
  clean: tuple[Path, ...]
  noisy: Path | None

  @property
  def files(self) -> tuple[Path, ...]:
    """All files, the noisy one first."""
    return self.clean if self.noisy is None else (self.noisy, *self.clean)


def read_example(example: Example, channels: int) -> tuple[np.ndarray | None, np.ndarray]:
  """Reads the noisy image and its ground truth.

  The mean of several clean files is rounded to 8 bits, halves up: (a + b + 1) // 2 for two files. The authors
  of RENOIR truncate, which darkens by a quarter of a level on average.

  Args:
    example: The example.
    channels: 3 or 1, as in `read_image`.

  Returns:
    Noisy (None for clean images) and clean, uint8 [H, W, channels].

  Raises:
    ValueError: A file is damaged or missing, or the sizes or ranges differ.
  """
  images = read_images_of_one_range(example.files, channels)
  _same_size(example, [image.shape[:2] for image in images])
  noisy, clean = (None, images) if example.noisy is None else (images[0], images[1:])
  if len(clean) == 1:
    return noisy, clean[0]
  total = np.stack(clean).sum(axis=0, dtype=np.uint16)
  return noisy, np.floor_divide(2 * total + len(clean), 2 * len(clean)).astype(np.uint8)


def example_shape(example: Example) -> tuple[int, int, int]:
  """Returns height, width and channels (1 or 3) from the headers of the files, without decoding them.

  Raises:
    ValueError: A file is missing or not an image, or the sizes differ.
  """
  shapes = [read_shape(path) for path in example.files]
  _same_size(example, [shape[:2] for shape in shapes])
  return *shapes[0][:2], max(channels for *_, channels in shapes)


def hold_out(examples: Iterable[Example], scenes: Iterable[str]) -> tuple[list[Example], list[Example]]:
  """Splits a set by scene.

  Args:
    examples: The set.
    scenes: The scenes to hold out.

  Returns:
    The remaining and the held-out examples, both in order.

  Raises:
    ValueError: The set has no such scene; its scenes are listed.
  """
  examples, scenes = list(examples), set(scenes)
  known = {example.scene for example in examples}
  if unknown := sorted(scenes - known):
    raise ValueError(
      f'no scene {", ".join(unknown)} to hold out; the scenes are {", ".join(sorted(known)) or "not known"}'
    )
  kept = [e for e in examples if e.scene not in scenes]
  return kept, [e for e in examples if e.scene in scenes]


def fingerprint(examples: Sequence[Example]) -> str:
  """Identifies a set of files, independent of where it is stored: '432 images, 3f2a91c0'.

  It hashes the names of the examples and the names and sizes of their files. That is fast, but does not
  notice a file that is replaced by one of the same name and size.

  Raises:
    ValueError: A file no longer exists.
  """
  digest = hashlib.sha256()
  for example in sorted(examples, key=lambda e: e.name):
    digest.update(os.fsencode(f'{example.name}\n'))
    for path in example.files:
      try:
        size = path.stat().st_size
      except OSError as error:
        raise ValueError(f'{path}: this file no longer exists ({error.strerror})') from error
      digest.update(os.fsencode(f'{path.name} {size}\n'))
  return f'{len(examples)} images, {digest.hexdigest()[:8]}'


def _same_size(example, sizes):
  if len(set(sizes)) > 1:
    found = ', '.join(
      f'{path} of {width}x{height}' for path, (height, width) in zip(example.files, sizes, strict=True)
    )
    raise ValueError(f'{example.name}: its images must have one size, but differ ({found} pixels)')


def check_examples(examples: Sequence[Example], channels: int, patch_px: int) -> None:
  """Reads every image once, to find a bad one now instead of hours into a run.

  Args:
    examples: Images, with or without noisy versions.
    channels: 3 or 1, as in `read_image`.
    patch_px: Side of a patch in pixels.

  Raises:
    ValueError: Names the first image that is damaged, smaller than a patch, not of the size of its noisy
      version, or grey although ``channels`` is 3.
  """

  def check(example):
    check_side(example, read_example(example, channels)[1].shape[:2], patch_px)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    collections.deque(pool.map(check, examples), maxlen=0)


def check_side(example: Example, size: tuple[int, int], patch_px: int) -> None:
  """Raises ValueError if an image of this height and width is smaller than a patch."""
  height, width = size
  if min(height, width) < patch_px:
    raise ValueError(
      f'{example.files[0]}: {width}x{height} pixels are fewer than a patch of {patch_px}x{patch_px}; lower '
      'data.patch_px, or remove the image'
    )
