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
from sadnet_jax.data.layouts import find_examples, noisy_folders
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
from sadnet_jax.images.arrays import SUFFIXES, find_images, missing_files, visible_files

if typing.TYPE_CHECKING:
  from sadnet_jax.evaluation.submissions.sidd import SiddBlocks


class EvaluationImage(typing.Protocol):
  """An image, or a pair of images, that is read on demand."""

  @property
  def name(self) -> str:
    """Unique within its set."""
    ...

  def shape(self) -> tuple[int, int, int]:
    """Returns height, width, channels (1 or 3) without decoding; ValueError if it cannot be read."""

  def read(self, channels: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns noisy (None for clean images) and clean, uint8 [H, W, channels]; ValueError likewise."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Images that are evaluated together.

  Attributes:
    name: Name of a known set, or 'folder:' and the name of a folder.
    title: Name to display.
    version: Identifies this copy of the set: number and sizes of the images.
    channels: 1 if the images are grey, else 3.
    protocol: Protocol for the real noise of the set; None if noise is added.
    images: Sorted by name.
    problems: A sentence for each file that belongs to the set but cannot be used.
    notes: Remarks on this copy for readers of the results; its folder is given relative to the root.
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
  """Finds a set of images with ground truth; reads only the headers of its files.

  Args:
    name: One of `data.test_sets.SCORED`, a folder, or a folder after ``clean:`` or ``pairs:``. A folder
      without such a prefix holds pairs if words in its file names say so, as described in `data.pairs`, and
      clean images if no name has such a word. A relative folder may be below the root.
    root: Folder of the sets known by name; None for the environment variable SADNET_DATA.

  Raises:
    ValueError: The set is missing (with what to download and where to put it), it contains no image, or it
      is not clear whether the folder holds pairs.
  """
  if name == 'sidd_val':
    return _open_sidd(find_folder(name, root), root)
  if name in IMAGE_SETS:
    known = IMAGE_SETS[name]
    return _open_files(name, known.title, known.layout, find_folder(name, root), root, known)
  kind, _, path = name.partition(':')
  if kind not in ('clean', 'pairs'):
    kind, path = '', name
  # An empty path, as after a comma too many, would be the working folder.
  folder = look_for_data_dir(path, root) if path else None
  if folder is None:
    what = 'a file' if Path(path).is_file() else 'neither a known data set nor an existing folder'
    raise ValueError(
      f'--datasets: {name!r} is {what}; give any of {", ".join((*SCORED, *UNSCORED))}, or a folder of images '
      '(clean:FOLDER or pairs:FOLDER to say what it holds)'
    )
  title = folder.resolve().name
  # Never the name of a known set: there are no published results for a user's images.
  return _open_files(f'folder:{title}', title, kind or _folder_kind(folder), folder, root, None)


@dataclasses.dataclass(frozen=True)
class FileImage:
  """An image, or a pair of images, in files."""

  example: Example

  @property
  def name(self) -> str:
    """Name of the example, which is unique in its set."""
    return self.example.name

  def shape(self) -> tuple[int, int, int]:
    """Returns height, width and channels from the headers of the files."""
    return example_shape(self.example)

  def read(self, channels: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Decodes the files."""
    return read_example(self.example, channels)


def _folder_kind(folder):
  """Returns 'clean' or 'pairs', by the words in the names of the files."""
  found = roles(find_images(folder), folder)
  if not found:
    return 'clean'
  if found == {'noisy', 'clean'}:
    return 'pairs'
  word = ' and '.join(found)
  raise ValueError(
    f'{folder}: file names contain a word for {word} images, but none has a partner; pass clean:{folder} to '
    'add noise to these images, or name both files of every pair'
  )


def _open_files(
  name: str, title: str, layout: str, folder: Path, root: str | Path | None, known: KnownSet | None
) -> ImageSet:
  found = find_examples(layout, folder, skip_bad=True)
  scenes = known.scenes if known else None
  images = [FileImage(example) for example in found.examples if scenes is None or example.scene in scenes]
  if scenes is not None and not images:
    raise ValueError(f'{name}: {folder} has no image of its scenes ({", ".join(sorted(scenes))})')
  sizes, channels = _sizes(images)
  version = _describe_sizes(sizes)
  notes = []
  if known:
    sides = frozenset((min(size), max(size)) for size in sizes)
    special = known.versions.get((len(images), sides))
    version = f'{special}, {version}' if special else version
    channels = known.channels
    if len(images) != known.count:
      notes.append(f'{len(images)} images instead of the {known.count} of {title}')
  files = visible_files(folder)
  others = [p for p in files if p.is_file() and p.suffix.lower() not in SUFFIXES]
  notes += _note_ignored('files of other types', others, folder)
  notes += _note_ignored('links to missing files', missing_files(files), folder)
  if layout == 'clean':
    notes += _note_ignored('folders of noisy images', noisy_folders(folder), folder)
  notes = [f'{below_root(folder, root)}: {note}' for note in notes]
  protocol = None if layout == 'clean' else ROUNDED
  return ImageSet(name, title, version, channels, protocol, images, found.problems, notes)


def _note_ignored(what, paths, folder):
  if not paths:
    return []
  more = f', {len(paths) - 5} more' if len(paths) > 5 else ''
  return [f'ignored {what}: {", ".join(str(p.relative_to(folder)) for p in paths[:5])}{more}']


@dataclasses.dataclass(frozen=True, eq=False)
class BlockImage:
  """One block of SIDD's validation files."""

  name: str
  blocks: SiddBlocks
  number: int

  def shape(self) -> tuple[int, int, int]:
    """Returns height, width and channels."""
    height, width, channels = self.blocks.noisy.shape[2:]
    return height, width, channels

  def read(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Copies the blocks; ValueError unless ``channels`` is 3."""
    if channels != 3:
      raise ValueError(
        f'{self.name}: the blocks of SIDD are in colour; use a network with model.channels = 3'
      )
    block = self.blocks[self.number]
    assert block.clean is not None
    return block.noisy, block.clean


def sidd_blocks(folder: str | Path) -> list[BlockImage]:
  """Returns the blocks of SIDD's validation files in a folder; raises as `submissions.sidd.read_sidd`."""
  # Imported here because SciPy and h5py are needed for this set only.
  from sadnet_jax.evaluation.submissions import sidd

  blocks = sidd.read_sidd(folder, 'validation')
  indices = np.ndindex(blocks.noisy.shape[:2])
  return [BlockImage(sidd.block_name(*index), blocks, number) for number, index in enumerate(indices)]


def _open_sidd(folder: Path, root: str | Path | None) -> ImageSet:
  images = sidd_blocks(folder)
  complete = len(images) == SIDD_BLOCKS
  notes = [] if complete else [f'{below_root(folder, root)}: {images[0].blocks.label}']
  version = _describe_sizes(_sizes(images)[0])
  return ImageSet('sidd_val', 'SIDD validation', version, 3, FLOAT, images, (), notes)


def _sizes(images: Sequence[EvaluationImage]) -> tuple[dict[tuple[int, int], int], int]:
  """Returns the number of images per (height, width), and channels; skips unreadable images."""
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


def _describe_sizes(sizes: dict[tuple[int, int], int]) -> str:
  """Returns for example '68 images, 53 of 481x321, 15 of 321x481'."""
  total = sum(sizes.values())
  common = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
  if not sizes:
    return 'no readable image'
  if len(sizes) == 1:
    return f'{total} images of {common[0][0][1]}x{common[0][0][0]}'
  parts = [f'{count} of {width}x{height}' for (height, width), count in common[:2]]
  more = f', {len(sizes) - 2} other sizes' if len(sizes) > 2 else ''
  return f'{total} images, {", ".join(parts)}{more}'
