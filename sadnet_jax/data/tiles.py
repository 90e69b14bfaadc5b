"""Tiles of large images, cut once and kept as shards of TensorFlow Datasets.

A crop of a photograph takes as long to read as the photograph, so the paper cuts tiles
of 300 pixels every 150 and trains on crops of these. They are kept without loss (PNG in
array_record files), in the order of the files, and can be read one by one in any order.

Every pixel is in a tile: the last tile of a row or column is moved to the border. An
image smaller than a tile in one direction is kept at its own size in that direction.
A stride of half a tile writes every pixel about four times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import fcntl
import os
from pathlib import Path
import re
import shutil

import tensorflow_datasets as tfds

from sadnet_jax.data import layouts, tile_builder

NAMES = (*layouts.LAYOUTS, 'div2k')


class TileSet:
  """Tiles that were prepared.

  Attributes:
    path: Their folder; `tfds.builder_from_directory` reads it as well.
    name: Of the data set, one of NAMES.
    fingerprint: Of the files they were cut from.
    has_noisy: Whether every tile has a noisy and a clean image, or a clean one only.
    channels: 3, or 1 if the images are grey.
    problems: One sentence for each file that was left out.
    images: Name, scene, height, width and number of tiles of each image, in the order
      of the tiles.
  """

  def __init__(self, path: Path):
    """Opens tiles; use `prepare` or `load`."""
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
    """Number of tiles."""
    return len(self._records)

  @property
  def scenes(self) -> list[str]:
    """The scene of each tile."""
    return [image['scene'] for image in self.images for _ in range(image['tiles'])]

  @property
  def smallest_px(self) -> int:
    """The least height or width of a tile: a crop must not be larger."""
    return min(self._tile_px, *(min(image['height'], image['width']) for image in self.images))

  @property
  def feature_keys(self) -> list[str]:
    """The features of a record that are PNG files: 'clean' and, with pairs, 'noisy'."""
    return ['clean', 'noisy'] if self.has_noisy else ['clean']

  def records(self, indices: Iterable[int]) -> list[bytes]:
    """Reads tiles; several threads may do so at once.

    Args:
      indices: From 0 to the number of tiles, in any order.

    Returns:
      Each a serialized ``tf.train.Example``: PNG files as `feature_keys` says, ``name`` and
      ``scene`` of the image, and ``row`` and ``column`` of the tile's upper left corner in it.
    """
    return [self._records[int(index)] for index in indices]


def tiles_folder(path: str | Path) -> Path:
  """Where tiles are kept: a relative path is below the folder that SADNET_DATA names, if it is set."""
  return Path(os.environ.get('SADNET_DATA', ''), path)


def prepare(
  name: str,
  folder: str | Path,
  tiles_dir: str | Path,
  *,
  tile_px: int,
  stride_px: int,
  skip_bad: bool = False,
) -> TileSet:
  """Cuts a data set into tiles, unless that is done already.

  An interrupted preparation leaves nothing that counts as prepared, and is repeated
  from its beginning. A second process that wants the same tiles waits for the first.

  Args:
    name: One of NAMES.
    folder: The data set as unpacked; of 'div2k', where TFDS downloads to and keeps it.
    tiles_dir: Where tiles are kept, usually ``tiles_folder(...)``.
    tile_px: Height and width of a tile.
    stride_px: From one tile to the next, at most tile_px.
    skip_bad: Leave out damaged files and those without a partner, and list them,
      instead of refusing them.

  Returns:
    The tiles.

  Raises:
    ValueError: A file is missing, damaged or without its partner; or the tiles there were
      cut from other files, or without files that may not be left out.
  """
  path = _set_folder(name, folder, tiles_dir, tile_px, stride_px)
  if name == 'div2k':
    if path.is_dir() and not tile_builder.div2k_is_prepared(folder):
      return TileSet(path)
    source = tile_builder.div2k_source(folder)
    fingerprint = source.fingerprint
  else:
    found = layouts.find_examples(name, folder, skip_bad=skip_bad)
    source, fingerprint = None, layouts.fingerprint(found.examples)
  if not path.is_dir():
    with _one_process(path.parent):
      # Another process may have cut them in the meantime.
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
  # A process that was killed left its unfinished files.
  for unfinished in path.parent.glob(f'incomplete.*_{path.name}'):
    shutil.rmtree(unfinished)
  tile_builder.build(config, tiles_dir)


@contextlib.contextmanager
def _one_process(folder: Path) -> Iterator[None]:
  """Waits until no other process is in here for the same folder; the system ends the wait if it dies."""
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_suffix('.lock').open('w')
  except OSError as error:
    raise ValueError(
      f'{folder}: got a folder that cannot be written to ({error.strerror}), want one for tiles: give '
      'another tiles_dir'
    ) from error
  with lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def load(name: str, folder: str | Path, tiles_dir: str | Path, *, tile_px: int, stride_px: int) -> TileSet:
  """Opens tiles that were prepared earlier.

  Args:
    name: As in `prepare`.
    folder: As in `prepare`, but it may be gone: of 'clean' and 'pairs' its name counts,
      of the others nothing.
    tiles_dir: As in `prepare`.
    tile_px: As in `prepare`.
    stride_px: As in `prepare`.

  Returns:
    The tiles.

  Raises:
    ValueError: They are not there; the command that prepares them is named.
  """
  path = _set_folder(name, folder, tiles_dir, tile_px, stride_px)
  if not path.is_dir():
    raise ValueError(
      f'{path}: got no tiles there, want them prepared by: python -m sadnet_jax.data {name} '
      f'--folder={folder} --tiles_dir={tiles_dir} --tile_px={tile_px} --stride_px={stride_px}'
    )
  return TileSet(path)


def _set_folder(name, folder, tiles_dir, tile_px, stride_px):
  """Where the tiles of a set are; the folder's name tells 'clean' and 'pairs' sets apart."""
  if name not in NAMES:
    raise ValueError(f'data set: got {name!r}, want one of {", ".join(NAMES)}')
  if not 1 <= stride_px <= tile_px:
    raise ValueError(f'stride_px, tile_px: got {stride_px}, {tile_px}, want 1 <= stride_px <= tile_px')
  own = (
    re.sub(r'[^a-zA-Z0-9]+', '_', os.path.basename(os.path.abspath(folder)))
    if name in ('clean', 'pairs')
    else ''
  )
  config = '-'.join([name, *filter(None, [own]), str(tile_px), str(stride_px)])
  return Path(tiles_dir) / tile_builder.SadnetTiles.name / config / str(tile_builder.SadnetTiles.VERSION)


def _check(tiles, folder, fingerprint, skip_bad):
  """Refuses tiles that are not those of the folder."""
  if tiles.fingerprint != fingerprint:
    raise ValueError(
      f'{tiles.path}: got tiles of other files than those in {folder} ({tiles.fingerprint}), want '
      f'{fingerprint}; delete this folder to cut them anew, or give another tiles_dir'
    )
  if tiles.problems and not skip_bad:
    raise ValueError(
      f'{tiles.path}: got tiles that lack {len(tiles.problems)} files, left out with skip_bad, the first: '
      f'{tiles.problems[0]}; want skip_bad again, or all files: repair them and delete this folder'
    )
  return tiles
