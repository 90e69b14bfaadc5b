"""The TensorFlow Datasets builder that cuts images into tiles."""

from __future__ import annotations

from collections.abc import Iterator
import concurrent.futures
import dataclasses
import io
from pathlib import Path
import tempfile
from typing import Any

from absl import logging
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tqdm

from sadnet_jax.datasets.sources import Source

# A quarter of the time of Pillow's default, for a tenth more space with noisy images.
_PNG_LEVEL = 1
# Parts that TFDS sorts one by one once a set is too large for memory; one open file each.
_SORTED_PARTS = 256


@dataclasses.dataclass(eq=False)
class TilesConfig(tfds.core.BuilderConfig):
  """What to cut, and how.

  Attributes:
    dataset: Name of the data set.
    source: Its images.
    tile_px: Height and width of a tile.
    stride_px: From one tile to the next.
    skip_bad: Leave out images that cannot be read, and list them, instead of refusing them.
  """

  dataset: str = ''
  source: Source | None = None
  tile_px: int = 0
  stride_px: int = 0
  skip_bad: bool = False


class SadnetTiles(tfds.core.GeneratorBasedBuilder):
  """Tiles in the order of their images, rows and columns, in one split 'train'.

  The metadata has the config's fields, the source's fingerprint and channels, ``images``
  (name, scene, height, width and number of tiles of each, in the order of the tiles)
  and ``problems``.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    source = self.builder_config.source
    image = tfds.features.Image(shape=(None, None, source.channels), encoding_format='png')
    features: dict[str, Any] = {
      'clean': image,
      'name': tfds.features.Text(),
      'scene': tfds.features.Text(),
      # Of the tile's upper left corner in its image.
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
    """Says nothing: nothing is downloaded."""

  def _log_download_done(self) -> None:
    """Says nothing: the caller does."""

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
    del dl_manager  # The files are there.
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
              f'{error} (nothing was kept; repair it, or leave such files out with skip_bad)'
            ) from error
          problems.append(str(error))
          continue
        height, width = clean.shape[:2]
        corners = tile_corners((height, width), config.tile_px, config.stride_px)
        described.append(
          {'name': image.name, 'scene': image.scene, 'height': height, 'width': width, 'tiles': len(corners)}
        )
        tiles = _cut_all(noisy, clean, corners, config.tile_px, pool)
        del noisy, clean  # Not to have two images in memory while the next is read.
        for j, tile in enumerate(tiles):
          yield record_key(i, j, source.count), {**tile, 'name': image.name, 'scene': image.scene}
      # What TFDS does next takes a while with a large set.
      progress.set_description(f'{config.dataset}, writing shards')
    if not described:
      raise ValueError(
        f'{config.dataset}: got no usable image, want at least one; the first problem: {problems[0]}'
      )
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
  """Cuts the tiles of a config below ``tiles_dir/sadnet_tiles``; shows progress in a terminal.

  Raises:
    ValueError: An image cannot be read, or the tiles cannot be written.
  """
  import tensorflow as tf  # Here, so that reading tiles does not import it.

  # TFDS warns of every config that is not in its list, and counts tiles without
  # knowing how many there will be; the bar here counts images.
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    # TFDS makes a folder for downloads even where there are none.
    with tempfile.TemporaryDirectory() as downloads:
      SadnetTiles(data_dir=tiles_dir, config=config).download_and_prepare(
        download_dir=downloads, file_format='array_record'
      )
  except (OSError, RuntimeError, tf.errors.OpError) as error:  # What Python, array_record, TensorFlow raise.
    raise ValueError(
      f'{tiles_dir}: got no tiles written ({error}), want room for them and leave to write there'
    ) from error
  finally:
    tfds.enable_progress_bar()
    logging.set_verbosity(verbosity)


def tile_corners(size: tuple[int, int], tile_px: int, stride_px: int) -> list[tuple[int, int]]:
  """Upper left corners (row, column) of the tiles of an image, row by row.

  Args:
    size: Height and width of the image.
    tile_px: Height and width of a tile.
    stride_px: From one tile to the next; the last of a row or column is moved to the border.
  """
  last = [max(px - tile_px, 0) for px in size]
  rows, columns = ([*range(0, end, stride_px), end] for end in last)
  return [(row, column) for row in rows for column in columns]


def record_key(image: int, tile: int, images: int) -> int:
  """A key that grows with image and tile, spread over 128 bits.

  TFDS sorts a set that is larger than memory in parts, and chooses the part by the
  highest bits of the key. Keys that just count would all be in one, which is read whole.

  Args:
    image: Index of the image.
    tile: Index of the tile in its image.
    images: Number of images.
  """
  part = image * _SORTED_PARTS // images
  return part * (2**128 // _SORTED_PARTS) + image * 2**32 + tile


def _cut_all(noisy, clean, corners, tile_px, pool):
  """Yields the features of one tile after the other, cut and compressed by the pool."""

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
