"""Cuts images into tiles with TensorFlow Datasets (TFDS): the data sets to cut, and the TFDS builder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import concurrent.futures
import dataclasses
import functools
import io
import os
from pathlib import Path
import tempfile
from typing import Any

from absl import logging
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tqdm

from sadnet_jax.data import layouts
from sadnet_jax.data.examples import example_shape, fingerprint, read_example
from sadnet_jax.files import one_line

# Takes a quarter of the time of Pillow's default level, and a tenth more space for noisy images.
_PNG_LEVEL = 1
# TFDS sorts a set that does not fit into memory in this many parts, with one open file each.
_SORTED_PARTS = 256
# All configs of DIV2K have the same clean images; this is the smallest one.
_DIV2K = 'div2k/bicubic_x8'
_DOWNLOAD_ERRORS = (
  OSError,  # Includes the errors of requests.
  tfds.download.DownloadError,
  tfds.download.download_manager.NonMatchingChecksumError,
  tfds.download.extractor.ExtractError,
)


@dataclasses.dataclass(frozen=True)
class SourceImage:
  """An image that is read on demand.

  Attributes:
    name: Unique within the set.
    scene: Images of one scene must be held out together.
    read: Returns noisy (None for clean images) and clean, uint8 [H, W, C]; raises ValueError if it cannot.
  """

  name: str
  scene: str
  read: Callable[[], tuple[np.ndarray | None, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set to cut tiles from.

  Attributes:
    fingerprint: Identifies the files.
    has_noisy: Whether it consists of pairs.
    channels: 3, or 1 if all images are grey.
    count: Number of images.
    images: Yields the images in a fixed order.
    problems: One sentence per skipped image.
  """

  fingerprint: str
  has_noisy: bool
  channels: int
  count: int
  images: Callable[[], Iterator[SourceImage]]
  problems: list[str]


def files_source(name: str, found: layouts.Found, *, skip_bad: bool) -> Source:
  """Makes a source of the image files of a layout.

  Reads the headers of all files, to find files that do not fit together before anything is cut.

  Args:
    name: Name of the layout, for the message.
    found: From `layouts.find_examples`.
    skip_bad: Skip files that cannot be read, instead of raising an exception.

  Raises:
    ValueError: The header of a file cannot be read, its size differs from its partner's, or some images are
      grey and others in colour.
  """
  usable, problems = [], list(found.problems)
  by_channels: dict[int, str] = {}
  for example in found.examples:
    try:
      by_channels.setdefault(example_shape(example)[2], example.name)
      usable.append(example)
    except ValueError as error:
      if not skip_bad:
        raise
      problems.append(str(error))
  if not usable:
    raise ValueError(f'{name}: none of the images can be used; the first problem: {problems[0]}')
  if len(by_channels) > 1 and not skip_bad:
    raise ValueError(
      f'{by_channels[1]} is grey and {by_channels[3]} in colour, but the tiles of a set must be all grey or '
      'all in colour; separate them (a network for grey images can read both with data.reader = '
      "'files' or 'memory')"
    )
  channels = max(by_channels)

  def images():
    for example in usable:
      read = functools.partial(read_example, example, channels)
      yield SourceImage(example.name, example.scene, read)

  has_noisy = found.examples[0].noisy is not None
  return Source(fingerprint(found.examples), has_noisy, channels, len(usable), images, problems)


def div2k_is_prepared(data_dir: str | Path) -> bool:
  """Whether TFDS has DIV2K in this folder."""
  return tfds.builder(_DIV2K, data_dir=data_dir).is_prepared()


def div2k_source(data_dir: str | Path) -> Source:
  """Makes a source of the 800 training images of DIV2K; TFDS downloads them unless it has them.

  Args:
    data_dir: The folder of TFDS for downloads and data.

  Raises:
    ValueError: The download failed.
  """
  builder = tfds.builder(_DIV2K, data_dir=data_dir)
  try:
    builder.download_and_prepare()
  except _DOWNLOAD_ERRORS as error:
    raise ValueError(
      f'{data_dir}: TensorFlow Datasets could not download DIV2K ({type(error).__name__}: {one_line(error)}'
      "); try again, or download DIV2K_train_HR yourself and give it as 'clean'"
    ) from error
  split = builder.info.splits['train']

  def images():
    # The order is fixed, because TFDS shuffles only if asked to.
    dataset = builder.as_dataset(split='train', decoders=tfds.decode.PartialDecoding({'hr': True}))
    for i, example in enumerate(tfds.as_numpy(dataset)):
      name = f'train/{i:04d}'  # TFDS keeps no file names.
      yield SourceImage(name, name, functools.partial(_clean, example['hr']))

  fingerprint = f'{split.num_examples} images, {builder.info.version} of {split.num_bytes} bytes'
  return Source(fingerprint, False, 3, split.num_examples, images, [])


def _clean(image: np.ndarray) -> tuple[None, np.ndarray]:
  return None, image


@dataclasses.dataclass(eq=False)
class TilesConfig(tfds.core.BuilderConfig):
  """What to cut, and how.

  Attributes:
    dataset: Name of the data set.
    source: Its images.
    tile_px: Height and width of a tile.
    stride_px: Distance between tiles.
    skip_bad: Skip and list images that cannot be read, instead of raising an exception.
  """

  dataset: str = ''
  source: Source | None = None
  tile_px: int = 0
  stride_px: int = 0
  skip_bad: bool = False


class SadnetTiles(tfds.core.GeneratorBasedBuilder):
  """Tiles in the order of their images, rows and columns, in one split 'train'.

  The metadata has the fields of the config, fingerprint and channels of the source, ``images`` (name, scene,
  height, width and number of tiles of each, in the order of the tiles) and ``problems``.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    source = self.builder_config.source
    image = tfds.features.Image(shape=(None, None, source.channels), encoding_format='png')
    features: dict[str, Any] = {
      'clean': image,
      'name': tfds.features.Text(),
      'scene': tfds.features.Text(),
      # The tile's upper left corner in its image.
      'row': np.int32,
      'column': np.int32,
    }
    if source.has_noisy:
      features['noisy'] = image
    return tfds.core.DatasetInfo(
      builder=self,
      description='Tiles of images to train a denoiser on.',
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )

  def _log_download_bytes(self) -> None:
    """Prints nothing, because nothing is downloaded."""

  def _log_download_done(self) -> None:
    """Prints nothing, because the caller does."""

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
    del dl_manager  # The files exist already.
    return {'train': self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    config = self.builder_config
    source, described, problems = config.source, [], list(config.source.problems)
    progress = tqdm.tqdm(source.images(), config.dataset, source.count, unit=' images', disable=None)
    with progress, concurrent.futures.ThreadPoolExecutor() as pool:
      for i, image in enumerate(progress):
        try:
          noisy, clean = image.read()
        except ValueError as error:
          if not config.skip_bad:
            raise ValueError(
              f'{error} (no tiles were written; repair this file, or skip such files with skip_bad)'
            ) from error
          problems.append(str(error))
          continue
        height, width = clean.shape[:2]
        corners = tile_corners((height, width), config.tile_px, config.stride_px)
        described.append(
          {'name': image.name, 'scene': image.scene, 'height': height, 'width': width, 'tiles': len(corners)}
        )
        tiles = _cut_all(noisy, clean, corners, config.tile_px, pool)
        del noisy, clean  # Else two images would be in memory while the next is read.
        for j, tile in enumerate(tiles):
          # Names need not be UTF-8.
          names = {'name': os.fsencode(image.name), 'scene': os.fsencode(image.scene)}
          yield record_key(i, j, source.count), {**tile, **names}
      # TFDS does this next; it takes a while for a large set.
      progress.set_description(f'{config.dataset}, writing shards')
    if not described:
      raise ValueError(f'{config.dataset}: none of the images can be used; the first problem: {problems[0]}')
    self.info.metadata.update(
      dataset=config.dataset,
      fingerprint=source.fingerprint,
      channels=source.channels,
      has_noisy=source.has_noisy,
      tile_px=config.tile_px,
      stride_px=config.stride_px,
      images=described,
      problems=problems,
    )


def build(config: TilesConfig, tiles_dir: str | Path) -> None:
  """Cuts the tiles of a config into ``tiles_dir/sadnet_tiles``; shows progress in a terminal.

  Raises:
    ValueError: An image cannot be read, or the tiles cannot be written.
  """
  import tensorflow as tf  # Here, so that reading tiles does not import it.

  from sadnet_jax.data.pipeline import hide_gpus_from_tensorflow

  hide_gpus_from_tensorflow()
  # TFDS warns about every config that is not in its list. Its progress bar counts tiles without knowing
  # their number; the one here counts images.
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    # TFDS creates a folder for downloads even without any.
    with tempfile.TemporaryDirectory() as downloads:
      SadnetTiles(data_dir=tiles_dir, config=config).download_and_prepare(
        download_dir=downloads, file_format='array_record'
      )
  except (OSError, RuntimeError, tf.errors.OpError) as error:  # From Python, array_record, TensorFlow.
    raise ValueError(
      f'{tiles_dir}: the tiles cannot be written ({one_line(error)}); free some space, or give another '
      'tiles_dir'
    ) from error
  finally:
    tfds.enable_progress_bar()
    logging.set_verbosity(verbosity)


def tile_corners(size: tuple[int, int], tile_px: int, stride_px: int) -> list[tuple[int, int]]:
  """Returns the upper left corners (row, column) of the tiles of an image, row by row.

  Args:
    size: Height and width of the image.
    tile_px: Height and width of a tile.
    stride_px: Distance between tiles; the last tile of a row or column is moved to the border.
  """
  last = [max(px - tile_px, 0) for px in size]
  rows, columns = ([*range(0, end, stride_px), end] for end in last)
  return [(row, column) for row in rows for column in columns]


def record_key(image: int, tile: int, images: int) -> int:
  """Returns a sort key that increases with image and tile, spread over 128 bits.

  TFDS sorts a set larger than memory in parts, chosen by the highest bits of the key. Consecutive numbers
  would all fall into one part, which TFDS reads into memory at once.

  Args:
    image: Index of the image.
    tile: Index of the tile in its image.
    images: Number of images.
  """
  part = image * _SORTED_PARTS // images
  return part * (2**128 // _SORTED_PARTS) + image * 2**32 + tile


def _cut_all(noisy, clean, corners, tile_px, pool):
  """Yields the features of each tile, cut and compressed by the pool."""

  def cut(corner):
    tile = {'clean': _png(clean, corner, tile_px), 'row': corner[0], 'column': corner[1]}
    return tile if noisy is None else {**tile, 'noisy': _png(noisy, corner, tile_px)}

  yield from pool.map(cut, corners)


def _png(image, corner, tile_px):
  row, column = corner
  tile = image[row : row + tile_px, column : column + tile_px]
  png = io.BytesIO()
  Image.fromarray(tile[:, :, 0] if tile.shape[2] == 1 else tile).save(png, 'PNG', compress_level=_PNG_LEVEL)
  png.seek(0)
  return png
