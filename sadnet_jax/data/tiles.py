"""Tiles of large images, cut once and stored as shards of TensorFlow Datasets (TFDS).

Cutting a patch from a photograph takes as long as decoding all of it. The paper therefore cuts tiles of 300
pixels every 150 pixels, and trains on patches of these. Tiles are stored losslessly (PNG in array_record
files), in the order of the images, and can be read one by one in any order.

Every pixel is in some tile: the last tile of a row or column is moved to the border. An image smaller than a
tile in one direction keeps its own size in that direction. With a stride of half a tile, every pixel is
stored about four times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import fcntl
import os
from pathlib import Path
import re
import shlex
import shutil
from typing import Any

from absl import logging
import tensorflow_datasets as tfds

from sadnet_jax.data import examples, layouts, tile_builder

NAMES = (*layouts.LAYOUTS, 'div2k')


class TileSet:
  """The stored tiles of a data set.

  Attributes:
    path: Their folder, which `tfds.builder_from_directory` can also read.
    name: Name of the data set, one of NAMES.
    fingerprint: Identifies the files they were cut from.
    has_noisy: Whether tiles are pairs of noisy and clean images, rather than clean images.
    channels: 3, or 1 if the images are grey.
    problems: One sentence per skipped file.
    images: Name, scene, height, width and number of tiles of each image, in the order of the tiles.
  """

  def __init__(self, path: Path):
    """Opens a folder of tiles; call `prepare` or `load` instead."""
    opened = tfds.builder_from_directory(path)
    metadata = opened.info.metadata
    self.path = path
    self.name: str = metadata['dataset']
    self.fingerprint: str = metadata['fingerprint']
    self.has_noisy: bool = metadata['has_noisy']
    self.channels: int = metadata['channels']
    self.problems: list[str] = metadata['problems']
    self.images: list[dict] = metadata['images']
    self._tile_px: int = metadata['tile_px']
    self._records = opened.as_data_source(
      split='train', deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )

  def __len__(self) -> int:
    """Returns the number of tiles."""
    return len(self._records)

  @property
  def scenes(self) -> list[str]:
    """The scene of each tile."""
    return [image['scene'] for image in self.images for _ in range(image['tiles'])]

  @property
  def shortest_sides(self) -> list[int]:
    """The shorter side of each tile in pixels, which limits the size of patches."""
    return [self.shortest_side(image) for image in self.images for _ in range(image['tiles'])]

  def shortest_side(self, image: Mapping[str, Any]) -> int:
    """The shorter side of the tiles of one of `images`, in pixels."""
    return min(self._tile_px, image['height'], image['width'])

  @property
  def feature_keys(self) -> list[str]:
    """The features of a record that hold images: 'clean' and, with pairs, 'noisy'."""
    return ['clean', 'noisy'] if self.has_noisy else ['clean']

  def records(self, indices: Iterable[int]) -> list[bytes]:
    """Reads tiles; safe to call from several threads.

    Args:
      indices: Numbers of tiles, in any order.

    Returns:
      One serialized ``tf.train.Example`` per tile: the PNG files of `feature_keys`, ``name`` and ``scene`` of
      the image, and ``row`` and ``column`` of the tile's upper left corner in it.
    """
    return [self._records[int(index)] for index in indices]


def prepare(
  name: str,
  folder: str | Path,
  tiles_dir: str | Path,
  *,
  tile_px: int,
  stride_px: int,
  skip_bad: bool = False,
) -> TileSet:
  """Cuts a data set into tiles, or opens them if they exist.

  An interrupted call leaves no tiles behind; the next one starts over. A second process that needs the same
  tiles waits for the first.

  Args:
    name: One of NAMES.
    folder: The unpacked data set; for 'div2k', the folder TFDS downloads to.
    tiles_dir: Where to store tiles, usually from `folders.new_data_dir`.
    tile_px: Height and width of a tile.
    stride_px: Distance between tiles, at most ``tile_px``.
    skip_bad: Skip and list damaged files and files without their partner, instead of raising an exception.

  Returns:
    The tiles.

  Raises:
    ValueError: As `layouts.find_training_examples`; an image is damaged; or existing tiles were cut from
      other files, or with ``skip_bad`` although it is not set now.
  """
  path = _set_folder(name, folder, tiles_dir, tile_px, stride_px)
  if name == 'div2k':
    if path.is_dir() and not tile_builder.div2k_is_prepared(folder):
      return TileSet(path)
    source = tile_builder.div2k_source(folder)
    fingerprint = source.fingerprint
  else:
    found = layouts.find_training_examples(name, folder, skip_bad=skip_bad)
    source, fingerprint = None, examples.fingerprint(found.examples)
  if not path.is_dir():
    with _one_process(path.parent):
      # Another process may have cut them while this one waited.
      if not path.is_dir():
        source = source or tile_builder.files_source(name, found, skip_bad=skip_bad)
        config = tile_builder.TilesConfig(
          name=path.parent.name,
          dataset=name,
          source=source,
          tile_px=tile_px,
          stride_px=stride_px,
          skip_bad=skip_bad,
        )
        _cut(config, path, tiles_dir)
        return TileSet(path)
  return _check(TileSet(path), folder, fingerprint, skip_bad)


def _cut(config, path, tiles_dir):
  # Left by a process that was killed.
  for unfinished in path.parent.glob(f'incomplete.*_{path.name}'):
    shutil.rmtree(unfinished)
  tile_builder.build(config, tiles_dir)


@contextlib.contextmanager
def _one_process(folder: Path) -> Iterator[None]:
  """Lets one process in at a time for the same folder; the system releases the lock if the process dies.

  On a file system without locks, a warning says that the user must see to it.
  """
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_suffix('.lock').open('w')
  except OSError as error:
    raise ValueError(
      f'{folder}: cannot write tiles to this folder ({error.strerror}); give another tiles_dir, as an '
      'absolute path'
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
      logging.warning(
        '%s: this file system has no locks (%s); make sure that no other process cuts these tiles now',
        folder,
        error.strerror,
      )
    yield


def load(
  name: str,
  folder: str | Path,
  tiles_dir: str | Path,
  *,
  tile_px: int,
  stride_px: int,
  check: bool = False,
  skip_bad: bool = False,
) -> TileSet:
  """Opens existing tiles.

  Args:
    name: See `prepare`.
    folder: See `prepare`. Without ``check`` it need not exist any more: only its name matters, and only for
      'clean' and 'pairs'.
    tiles_dir: See `prepare`.
    tile_px: See `prepare`.
    stride_px: See `prepare`.
    check: Whether to check that the tiles were cut from the files of the folder, except for 'div2k'.
    skip_bad: See `prepare`; only for the check and the command in a message.

  Returns:
    The tiles.

  Raises:
    ValueError: The tiles are missing; the message gives the command that cuts them. Or the check fails, as
      in `prepare`.
  """
  path = _set_folder(name, folder, tiles_dir, tile_px, stride_px)
  if not path.is_dir():
    options = {'folder': folder, 'tiles_dir': tiles_dir, 'tile_px': tile_px, 'stride_px': stride_px}
    command = [
      'python',
      '-m',
      'sadnet_jax.data',
      name,
      *(f'--{key}={value}' for key, value in options.items()),
    ]
    raise ValueError(
      f'{path}: no tiles in this folder; cut them with: {shlex.join(command + skip_bad * ["--skip_bad"])}'
    )
  if not check or name == 'div2k':
    return TileSet(path)
  found = layouts.find_training_examples(name, folder, skip_bad=skip_bad)
  return _check(TileSet(path), folder, examples.fingerprint(found.examples), skip_bad)


def _set_folder(name, folder, tiles_dir, tile_px, stride_px):
  """Returns the folder of a set's tiles; for 'clean' and 'pairs' it contains the name of the image folder."""
  if name not in NAMES:
    raise ValueError(f'unknown data set {name!r}; choose one of {", ".join(NAMES)}')
  if not 1 <= stride_px <= tile_px:
    raise ValueError(
      f'stride_px is {stride_px} and tile_px {tile_px}, but 1 <= stride_px <= tile_px must hold'
    )
  own = (
    re.sub(r'[^a-zA-Z0-9]+', '_', os.path.basename(os.path.abspath(folder)))
    if name in ('clean', 'pairs')
    else ''
  )
  config = '-'.join([name, *filter(None, [own]), str(tile_px), str(stride_px)])
  return Path(tiles_dir) / tile_builder.SadnetTiles.name / config / str(tile_builder.SadnetTiles.VERSION)


def _check(tiles, folder, fingerprint, skip_bad):
  """Raises ValueError if the tiles are not those of the folder."""
  if tiles.fingerprint != fingerprint:
    raise ValueError(
      f'{tiles.path}: these tiles were cut from other files ({tiles.fingerprint}) than those in {folder} '
      f'({fingerprint}); delete this folder to cut them again, or give another tiles_dir'
    )
  if tiles.problems and not skip_bad:
    raise ValueError(
      f'{tiles.path}: these tiles were cut with skip_bad and lack {len(tiles.problems)} files, the first: '
      f'{tiles.problems[0]}; set skip_bad again, or repair the files and delete this folder'
    )
  return tiles
