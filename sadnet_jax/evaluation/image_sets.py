"""Images to evaluate on: the test sets known by name, and any folder."""

from __future__ import annotations

import collections
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import typing

import numpy as np

from sadnet_jax.data.examples import Example, example_shape, read_example
from sadnet_jax.data.folders import look_for_data_dir
from sadnet_jax.data.layouts import find_examples
from sadnet_jax.data.pairs import roles
from sadnet_jax.data.test_sets import (
  IMAGE_SETS,
  SCORED,
  SIDD_BLOCKS,
  UNSCORED,
  KnownSet,
  below_root,
  find_folder,
)
from sadnet_jax.evaluation.protocols import FLOAT, ROUNDED, Protocol
from sadnet_jax.images.arrays import SUFFIXES, find_images, is_hidden

if typing.TYPE_CHECKING:
  from sadnet_jax.evaluation.submissions.sidd import SiddBlocks


class EvaluationImage(typing.Protocol):
  """An image that is read when it is its turn."""

  @property
  def name(self) -> str:
    """Unique within its set."""
    ...

  def shape(self) -> tuple[int, int, int]:
    """Height, width, channels (1 or 3), without decoding; ValueError if it cannot be read."""

  def read(self, channels: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Noisy (None for clean images) and clean, uint8 [H, W, channels]; ValueError likewise."""


@dataclasses.dataclass(frozen=True)
class FileImage:
  """An image, or a pair of images, in files."""

  example: Example

  @property
  def name(self) -> str:
    """That of the example, which is unique in its set."""
    return self.example.name

  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels, from the heads of the files."""
    return example_shape(self.example)

  def read(self, channels: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Decodes the files."""
    return read_example(self.example, channels)


@dataclasses.dataclass(frozen=True, eq=False)
class BlockImage:
  """One of the blocks of SIDD's validation files."""

  name: str
  blocks: SiddBlocks
  number: int

  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels."""
    height, width, channels = self.blocks.noisy.shape[2:]
    return height, width, channels

  def read(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Copies the blocks out; ValueError if grey is wanted."""
    if channels != 3:
      raise ValueError(f'{self.name}: got a block in colour, want a network for it, with model.channels = 3')
    block = self.blocks[self.number]
    assert block.clean is not None
    return block.noisy, block.clean


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """What is evaluated together.

  Attributes:
    name: Of a known set, or 'folder:' and the folder's.
    title: For people.
    version: What tells this copy of the set from others: how many images of what size.
    channels: 1 if the images are grey, else 3.
    protocol: Of real noise; None where noise is added.
    images: In the order of their names.
    problems: A sentence for each file that is no part of it and should be.
    notes: What a person should know of this copy; its folder is named as `known_sets.below_root` does.
  """

  name: str
  title: str
  version: str
  channels: int
  protocol: Protocol | None
  images: Sequence[EvaluationImage]
  problems: Sequence[str] = ()
  notes: Sequence[str] = ()

  @property
  def real(self) -> bool:
    """Whether the noise is real."""
    return self.protocol is not None


def open_set(name: str, root: str | Path | None) -> ImageSet:
  """Finds a set of images with ground truth; opens no image beyond its head.

  Args:
    name: One of `known_sets.SCORED`, a folder, or a folder after ``clean:`` or ``pairs:``. A folder
      without one holds pairs where files are told apart by words as in `datasets.pairs`,
      and clean images where none has such a word. A relative one may be below the root.
    root: Where sets with names are; None for the folder that SADNET_DATA names.

  Raises:
    ValueError: It is not there (what to download and where to put it), or there is no
      image in it, or it cannot be told whether the folder holds pairs.
  """
  if name == 'sidd_val':
    return _open_sidd(find_folder(name, root), root)
  if name in IMAGE_SETS:
    known = IMAGE_SETS[name]
    return _open_files(name, known.title, known.layout, find_folder(name, root), root, known)
  kind, _, path = name.partition(':')
  if kind not in ('clean', 'pairs'):
    kind, path = '', name
  # No path at all, as after a comma too many, would be the working folder.
  folder = look_for_data_dir(path, root) if path else None
  if folder is None:
    what = 'a file' if Path(path).is_file() else 'neither a data set nor a folder'
    raise ValueError(
      f'--datasets: got {name!r}, which is {what}, want some of {", ".join((*SCORED, *UNSCORED))}, '
      'or a folder of images (to say what it holds: clean:FOLDER, pairs:FOLDER)'
    )
  title = folder.resolve().name
  # Never the name of a known set: there are no published figures of a user's images.
  return _open_files(f'folder:{title}', title, kind or _kind(folder), folder, root, None)


def _kind(folder):
  """Whether a folder holds clean images or pairs, by the words of its files."""
  found = roles(find_images(folder), folder)
  if not found:
    return 'clean'
  if found == {'noisy', 'clean'}:
    return 'pairs'
  raise ValueError(
    f'{folder}: got images with words for {" and ".join(found)} in their names and no partner, want '
    f'clean:{folder} if they are clean images (noise is added to them), or pairs of noisy and clean ones'
  )


def _open_files(
  name: str, title: str, layout: str, folder: Path, root: str | Path | None, known: KnownSet | None
) -> ImageSet:
  found = find_examples(layout, folder, skip_bad=True)
  scenes = known.scenes if known else None
  images = [FileImage(example) for example in found.examples if scenes is None or example.scene in scenes]
  if scenes is not None and not images:
    raise ValueError(f'{name}: got no image of {", ".join(sorted(scenes))} in {folder}, want those scenes')
  sizes, channels = _sizes(images)
  version = _sizes_text(sizes)
  notes = []
  if known:
    turned = frozenset((min(size), max(size)) for size in sizes)
    special = known.versions.get((len(images), turned))
    version = f'{special}, {version}' if special else version
    channels = known.channels
    if len(images) != known.count:
      notes.append(f'got {len(images)} images, not the {known.count} of {title}')
  there = [p for p in sorted(folder.rglob('*')) if not is_hidden(p, folder)]
  notes += _note(
    folder,
    'files that are no images to it',
    [p for p in there if p.is_file() and p.suffix.lower() not in SUFFIXES],
  )
  notes += _note(
    folder,
    'links to folders or to nothing, which are not followed',
    [p for p in there if p.is_symlink() and not p.is_file()],
  )
  notes = [f'{below_root(folder, root)}: {note}' for note in notes]
  protocol = None if layout == 'clean' else ROUNDED
  return ImageSet(name, title, version, channels, protocol, images, found.problems, notes)


def _note(folder, what, paths):
  if not paths:
    return []
  more = f', {len(paths) - 5} more' if len(paths) > 5 else ''
  return [f'{what}: {", ".join(str(p.relative_to(folder)) for p in paths[:5])}{more}']


def sidd_blocks(folder: str | Path) -> list[BlockImage]:
  """The blocks of SIDD's validation files in a folder; see `sidd.read_sidd` for errors."""
  # SciPy and h5py are needed for this set only.
  from sadnet_jax.evaluation.submissions import sidd

  blocks = sidd.read_sidd(folder, 'validation')
  indices = np.ndindex(blocks.noisy.shape[:2])
  return [BlockImage(sidd.block_name(*index), blocks, number) for number, index in enumerate(indices)]


def _open_sidd(folder: Path, root: str | Path | None) -> ImageSet:
  images = sidd_blocks(folder)
  whole = len(images) == SIDD_BLOCKS
  notes = [] if whole else [f'{below_root(folder, root)}: got {images[0].blocks.label}']
  return ImageSet('sidd_val', 'SIDD validation', _sizes_text(_sizes(images)[0]), 3, FLOAT, images, (), notes)


def _sizes(images: Sequence[EvaluationImage]) -> tuple[dict[tuple[int, int], int], int]:
  """How many images there are of each (height, width), and channels; what cannot be read is left out."""
  sizes: dict[tuple[int, int], int] = collections.Counter()
  channels = {3: 0, 1: 0}
  for image in images:
    try:
      height, width, depth = image.shape()
    except ValueError:
      continue
    sizes[height, width] += 1
    channels[depth] += 1
  return sizes, 3 if channels[3] or not channels[1] else 1


def _sizes_text(sizes: dict[tuple[int, int], int]) -> str:
  """'68 images, 53 of 481x321, 15 of 321x481'."""
  total = sum(sizes.values())
  common = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
  if not sizes:
    return 'no readable image'
  if len(sizes) == 1:
    return f'{total} images of {common[0][0][1]}x{common[0][0][0]}'
  parts = [f'{count} of {width}x{height}' for (height, width), count in common[:2]]
  more = f', {len(sizes) - 2} other sizes' if len(sizes) > 2 else ''
  return f'{total} images, {", ".join(parts)}{more}'
