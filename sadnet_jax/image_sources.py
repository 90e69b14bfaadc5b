"""Where the tf.data pipeline takes its images from: files as they are, or stored tiles.

A source has a length, and loads image i inside a TensorFlow graph, in parallel with
others. Its pixels are those that `images.read_image` gives.

This module imports TensorFlow.
"""

import bisect
from collections.abc import Collection, Sequence
import itertools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tensorflow as tf

from sadnet_jax.datasets.examples import Example
from sadnet_jax.images import LUMA

if TYPE_CHECKING:
  from sadnet_jax.datasets.tiles import TileSet

# What TensorFlow decodes; Pillow, which reads for the others, knows more.
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp')

Images = dict[str, Any]


class ImageSource(Protocol):
  """Images by their number.

  Attributes:
    has_noisy: Whether every image has a noisy version.
  """

  has_noisy: bool

  def __len__(self) -> int:
    """Number of images."""

  def load(self, index: Any) -> Images:
    """Adds the loading of an image to the graph.

    Args:
      index: Scalar tf.int64, from 0 to the length - 1.

    Returns:
      uint8 [H, W, C]: ``clean``, and ``noisy`` of the same size where there is one.
    """


class FileImages:
  """Image files, each decoded when it is wanted."""

  def __init__(self, examples: Sequence[Example], channels: int) -> None:
    """Lists the files; opens none.

    Args:
      examples: Images in an order that does not change, with one clean file each, and
        all or none of them with a noisy one.
      channels: 3, or 1 (colour files are converted).

    Raises:
      ValueError: Several clean files for one image, a format that TensorFlow does not
        decode, or noisy files for some images only.
    """
    for example in examples:
      if len(example.clean) != 1:
        raise ValueError(
          f'{example.name}: got {len(example.clean)} clean files, want one (RENOIR: the ground truth is the '
          "mean of two; use data.reader = 'tiles' or 'memory')"
        )
      for path in example.files:
        if path.suffix.lower() not in SUFFIXES:
          raise ValueError(
            f'{path}: got a file ending in {path.suffix}, want {", ".join(SUFFIXES)} with data.reader = '
            "'files' (convert it, or use 'tiles' or 'memory')"
          )
    self.has_noisy = _all_or_none({example.name: example.noisy is not None for example in examples})
    self._channels = channels
    self._files = {'clean': tf.constant([str(example.clean[0]) for example in examples])}
    if self.has_noisy:
      self._files['noisy'] = tf.constant([str(example.noisy) for example in examples])

  def __len__(self) -> int:
    """Number of images."""
    return int(self._files['clean'].shape[0])

  def load(self, index: Any) -> Images:
    """See `ImageSource`."""
    paths = {name: files[index] for name, files in self._files.items()}
    images = {name: decode(tf.io.read_file(path), self._channels) for name, path in paths.items()}
    return _same_size(images, list(paths.values()))


class TileImages:
  """Tiles of several sets, one set after the other, without some scenes."""

  def __init__(self, tile_sets: Sequence['TileSet'], channels: int, held_out: Collection[str] = ()) -> None:
    """Chooses the tiles; reads none.

    Args:
      tile_sets: All or none of them pairs.
      channels: 3, or 1 (colour tiles are converted).
      held_out: Scenes whose tiles are left out.

    Raises:
      ValueError: Noisy tiles in some sets only, grey tiles where colour is wanted, or
        no tile is left.
    """
    for tiles in tile_sets:
      if tiles.channels < channels:
        raise ValueError(
          f'{tiles.path}: got grey tiles, want colour; for grey images use a config with model.channels = 1'
        )
    self.has_noisy = _all_or_none({tiles.name: tiles.has_noisy for tiles in tile_sets})
    self._sets, self._channels = list(tile_sets), channels
    self._starts = [0, *itertools.accumulate(len(tiles) for tiles in tile_sets)]
    scenes = itertools.chain.from_iterable(tiles.scenes for tiles in tile_sets)
    self._kept = np.flatnonzero([scene not in held_out for scene in scenes])
    if not len(self._kept):
      raise ValueError(
        f'tiles: got {self._starts[-1]} with {len(held_out)} scenes held out, want at least one to be left'
      )

  def __len__(self) -> int:
    """Number of tiles."""
    return len(self._kept)

  def load(self, index: Any) -> Images:
    """See `ImageSource`."""
    record = tf.numpy_function(self._record, [index], tf.string, stateful=False)
    names = ('clean', 'noisy') if self.has_noisy else ('clean',)
    features = tf.io.parse_single_example(
      tf.ensure_shape(record, []), {name: tf.io.FixedLenFeature([], tf.string) for name in names}
    )
    images = {name: decode(features[name], self._channels) for name in names}
    return _same_size(images, ['tile', index])

  def _record(self, index: np.int64) -> bytes:
    number = int(self._kept[index])
    which = bisect.bisect_right(self._starts, number) - 1
    return self._sets[which].records([number - self._starts[which]])[0]


def decode(content: Any, channels: int) -> Any:
  """The bytes of an image file -> uint8 [H, W, channels], equal to `images.read_image`.

  Args:
    content: Scalar tf.string: PNG, JPEG or BMP, 8-bit grey or RGB.
    channels: 3, or 1 (colour is converted).
  """
  image = tf.cond(
    tf.io.is_jpeg(content),
    # This is Pillow's method; TensorFlow's default is up to 4 levels off.
    lambda: tf.io.decode_jpeg(content, channels=3, dct_method='INTEGER_ACCURATE'),
    lambda: tf.io.decode_image(content, channels=3, expand_animations=False),
  )
  image = tf.ensure_shape(image, [None, None, 3])
  return _rgb_to_gray(image) if channels == 1 else image


def _rgb_to_gray(rgb):
  # float64 as in `images.rgb_to_gray`: in float32 some colours round to the other side.
  luma = tf.tensordot(tf.cast(rgb, tf.float64), tf.constant(LUMA[:, None]), 1)
  return tf.cast(tf.floor(luma + 0.5), tf.uint8)


def _same_size(images, names):
  sizes = [tf.shape(image)[:2] for image in images.values()]
  tf.debugging.Assert(
    tf.reduce_all(sizes[0] == sizes[-1]),
    ['noisy and clean image of different sizes, want equal ones:', *names, *sizes],
  )
  return images


def _all_or_none(has_noisy: dict[str, bool]) -> bool:
  """Whether all have a noisy version; some having one is an error that names two."""
  if not has_noisy:
    raise ValueError('training images: got none, want at least one')
  if len(set(has_noisy.values())) == 2:
    noisy, clean = (next(n for n, has in has_noisy.items() if has is wanted) for wanted in (True, False))
    raise ValueError(
      f'training images: got {noisy} with a noisy image and {clean} without, want all to have one or none'
    )
  return any(has_noisy.values())
