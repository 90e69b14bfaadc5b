"""Training patches from files or tiles with tf.data, one batch per step, and their transfer to the devices.

The patches of step k are a function of (seed, k) alone, so a run can start at any step without replaying or
storing anything. Each image is decoded for a round of m = ``crops_per_image`` consecutive steps. Image slot
i = round * batch_size + position takes its image from a pseudo-random permutation of all images, one
permutation per epoch. Each step of the round cuts one patch from the image of each slot; its corner and
orientation come from a stateless generator seeded with (seed, step * batch_size + position).

A patch costs 1 / m of decoding an image. For files of many megapixels use a larger m, or cut them into tiles
(`tiles`), or keep them in device memory (`on_device`).
"""

import bisect
import collections
from collections.abc import Collection, Iterable, Iterator, Sequence
import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Any, Protocol

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import tensorflow as tf

from sadnet_jax.data.examples import Example
from sadnet_jax.images import png
from sadnet_jax.images.arrays import MATLAB_LUMA, read_image
from sadnet_jax.images.metadata import JPEG_START

if TYPE_CHECKING:
  from sadnet_jax.data.tiles import TileSet


def hide_gpus_from_tensorflow() -> None:
  """Leaves the GPUs to JAX: TensorFlow would take nearly all of their memory at its first operation.

  Nothing changes if TensorFlow has started already.
  """
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], 'GPU')


hide_gpus_from_tensorflow()

# Where the header of a BMP file has the bits of a pixel.
_BMP_BITS = 28
Images = dict[str, Any]


class ImageSource(Protocol):
  """Images, accessed by number.

  Attributes:
    has_noisy: Whether every image has a noisy version.
  """

  has_noisy: bool

  def __len__(self) -> int:
    """Returns the number of images."""

  def load(self, index: Any) -> Images:
    """Adds the operations that load an image to a tf.data graph.

    Args:
      index: Scalar tf.int64, from 0 to the length - 1.

    Returns:
      uint8 [H, W, C]: ``clean``, and ``noisy`` of the same size if the images have noisy versions.
    """


class FileImages:
  """Image files, decoded on demand."""

  def __init__(self, examples: Sequence[Example], channels: int) -> None:
    """Lists the files without decoding them.

    Args:
      examples: Images in a fixed order, each with one clean file, and all or none with a noisy file.
      channels: 3, or 1 (colour files are converted).

    Raises:
      ValueError: An image has several clean files, or only some images have noisy files.
    """
    for example in examples:
      if len(example.clean) != 1:
        raise ValueError(
          f'{example.name}: its ground truth is the mean of {len(example.clean)} clean files, which '
          "data.reader = 'files' cannot read; use 'tiles' or 'memory'"
        )
    self.has_noisy = _all_or_none({example.name: example.noisy is not None for example in examples})
    self._channels = channels
    files = {'clean': [example.clean[0] for example in examples]}
    if self.has_noisy:
      files['noisy'] = [example.noisy for example in examples if example.noisy is not None]
    self._files = {name: tf.constant([os.fsencode(path) for path in paths]) for name, paths in files.items()}
    self._decodable = {name: tf.constant([_is_decodable(p) for p in paths]) for name, paths in files.items()}

  def __len__(self) -> int:
    """Returns the number of images."""
    return int(self._files['clean'].shape[0])

  def load(self, index: Any) -> Images:
    """See `ImageSource`."""
    paths = {name: files[index] for name, files in self._files.items()}
    images = {name: self._load_one(path, self._decodable[name][index]) for name, path in paths.items()}
    return _same_size(images, list(paths.values()))

  def _load_one(self, path, decodable):
    def read():
      pixels = tf.numpy_function(self._read, [path], tf.uint8, stateful=False)
      return tf.ensure_shape(pixels, [None, None, self._channels])

    return tf.cond(decodable, lambda: decode(tf.io.read_file(path), self._channels), read)

  def _read(self, path: bytes) -> np.ndarray:
    return read_image(os.fsdecode(path), self._channels)


class TileImages:
  """Tiles of several sets, one set after the other, except those of held-out scenes and small images."""

  def __init__(
    self,
    tile_sets: Sequence['TileSet'],
    channels: int,
    held_out: Collection[str] = (),
    *,
    patch_px: int = 1,
  ) -> None:
    """Selects the tiles without reading them.

    Args:
      tile_sets: The sets; all or none of them pairs.
      channels: 3, or 1 (colour tiles are converted).
      held_out: Scenes whose tiles are not used.
      patch_px: Tiles with a shorter side are not used either.

    Raises:
      ValueError: Only some sets have noisy tiles, tiles are grey although ``channels`` is 3, or no tile is
        left.
    """
    for tiles in tile_sets:
      if tiles.channels < channels:
        raise ValueError(
          f'{tiles.path}: these tiles are grey, but the network expects colour; use a config with '
          'model.channels = 1'
        )
    self.has_noisy = _all_or_none({tiles.name: tiles.has_noisy for tiles in tile_sets})
    self._sets, self._channels = list(tile_sets), channels
    self._starts = [0, *itertools.accumulate(len(tiles) for tiles in tile_sets)]
    self._kept = np.flatnonzero(
      [
        scene not in held_out and side >= patch_px
        for tiles in tile_sets
        for scene, side in zip(tiles.scenes, tiles.shortest_sides, strict=True)
      ]
    )
    if not len(self._kept):
      raise ValueError(
        f'none of the {self._starts[-1]} tiles is left with {len(held_out)} scenes held out and sides of at '
        f'least {patch_px} pixels'
      )

  def __len__(self) -> int:
    """Returns the number of tiles."""
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
  """Decodes an image file to uint8 [H, W, channels], with the same pixels as `images.arrays.read_image`.

  Args:
    content: The bytes of the file, scalar tf.string: PNG, JPEG or BMP, 8-bit grey or RGB.
    channels: 3, or 1 (colour is converted).
  """
  image = tf.cond(
    tf.io.is_jpeg(content),
    # libjpeg's accurate method, as in read_image; TensorFlow's default differs from it by up to 4 levels.
    lambda: tf.io.decode_jpeg(content, channels=3, dct_method='INTEGER_ACCURATE'),
    lambda: tf.io.decode_image(content, channels=3, expand_animations=False),
  )
  image = tf.ensure_shape(image, [None, None, 3])
  return _rgb_to_gray(image) if channels == 1 else image


def _is_decodable(path):
  """Whether TensorFlow decodes a file as `read_image` does: JPEG, PNG of up to 8 bits, or BMP of 24 bits.

  Of 16 bits it drops the lower 8, and knows no tags for white. As for `read_image`, the name says nothing.
  """
  try:
    with path.open('rb') as file:
      start = file.read(32)
  except OSError:
    return False
  is_bmp = start.startswith(b'BM') and start[_BMP_BITS : _BMP_BITS + 1] == bytes([24])
  return is_bmp or start.startswith(JPEG_START) or (png.sample_bits(start) or 16) <= 8


def _rgb_to_gray(rgb):
  # In float64 like `images.arrays.rgb_to_gray`: in float32 some colours are rounded the other way.
  luma = tf.tensordot(tf.cast(rgb, tf.float64), tf.constant(MATLAB_LUMA[:, None]), 1)
  return tf.cast(tf.floor(luma + 0.5), tf.uint8)


def _same_size(images, names):
  sizes = [tf.shape(image)[:2] for image in images.values()]
  tf.debugging.Assert(
    tf.reduce_all(sizes[0] == sizes[-1]),
    ['noisy and clean image have different sizes:', *names, *sizes],
  )
  return images


def _all_or_none(has_noisy: dict[str, bool]) -> bool:
  """Returns whether all have a noisy version; raises ValueError if only some have."""
  if not has_noisy:
    raise ValueError('there are no training images')
  if len(set(has_noisy.values())) == 2:
    noisy, clean = (next(n for n, has in has_noisy.items() if has is wanted) for wanted in (True, False))
    raise ValueError(
      f'{noisy} has a noisy image but {clean} has none; train on pairs or on clean images, not on both'
    )
  return any(has_noisy.values())


def patches(
  images: ImageSource,
  *,
  patch_px: int,
  batch_size: int,
  crops_per_image: int,
  seed: int,
  first_step: int,
  last_step: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches of random crops, flipped and rotated, one batch per step.

  Args:
    images: The images, each at least ``patch_px`` high and wide.
    patch_px: Side of a patch in pixels.
    batch_size: Patches per step over all processes; divisible by their number.
    crops_per_image: Number of consecutive steps that use an image once it is decoded.
    seed: Seed of the run, below 2**31.
    first_step: Step of the first batch, counted from 0.
    last_step: The last batch is that of the step before this one.
    process_index: Which share of every batch to read.
    process_count: Number of shares; concatenated in order they are the batch of a single process.

  Yields:
    uint8 [batch_size / process_count, patch_px, patch_px, C]: ``clean``, and ``noisy`` (the same crop of the
    noisy image) if the images have noisy versions.
  """

  share = batch_size // process_count
  first_round = first_step // crops_per_image
  end_round = -(-last_step // crops_per_image)

  def crops_of_slot(index):
    """Cuts all patches of one of this process's slots: [crops_per_image, patch_px, patch_px, C]."""
    round_number, position = index // share, process_index * share + index % share
    image = images.load(_shuffled(round_number * batch_size + position, len(images), seed))
    steps = round_number * crops_per_image + tf.range(crops_per_image, dtype=tf.int64)
    return tf.map_fn(
      lambda number: _crop_and_turn(image, patch_px, seed, number),
      steps * batch_size + position,
      fn_output_signature={
        name: tf.TensorSpec([patch_px, patch_px, a.shape[2]], tf.uint8) for name, a in image.items()
      },
    )

  dataset = tf.data.Dataset.range(first_round * share, end_round * share)
  dataset = dataset.map(crops_of_slot, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  # Decodes the next round while the steps of this one run.
  dataset = dataset.batch(share, drop_remainder=True).prefetch(1)
  dataset = dataset.map(lambda batch: {name: tf.transpose(a, [1, 0, 2, 3, 4]) for name, a in batch.items()})
  dataset = dataset.unbatch().skip(first_step % crops_per_image).take(last_step - first_step)
  return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _shuffled(slot: Any, count: int, seed: int) -> Any:
  """Returns the image of a slot of the run; each image occurs once per epoch."""

  epoch_seed = tf.stack([tf.constant(seed, tf.int64), slot // count])
  return tf.random.experimental.index_shuffle(slot % count, tf.cast(epoch_seed, tf.int32), count - 1)


def _crop_and_turn(images: dict[str, Any], patch_px: int, seed: int, number: Any) -> dict[str, Any]:
  """Cuts the same random crop from all images, in one of the 8 flips and rotations by 90 degrees."""

  def random(purpose, shape, **limits):
    # Every purpose of every sample has its own seed.
    return tf.random.stateless_uniform(shape, tf.stack([seed, number * 2 + purpose]), **limits)

  room = tf.shape(images['clean'], tf.int64)[:2] - patch_px + 1
  top_left = tf.math.floormod(random(0, [2], minval=None, maxval=None, dtype=tf.int64), room)
  choice = random(1, [], maxval=8, dtype=tf.int32)

  def cut(image):
    patch = tf.slice(image, tf.concat([top_left, [0]], 0), [patch_px, patch_px, -1])
    patch = tf.image.rot90(patch, choice % 4)
    return tf.cond(choice >= 4, lambda: tf.image.flip_left_right(patch), lambda: patch)

  return {name: cut(image) for name, image in images.items()}


def prefetch_to_devices(
  batches: Iterable[dict[str, np.ndarray]], devices: Sequence[jax.Device], depth: int = 2
) -> Iterator[dict[str, jax.Array]]:
  """Splits batches among devices, and starts transferring them in advance.

  Args:
    batches: Arrays [N, ...], with N a multiple of the number of devices.
    devices: Devices of this process, in the order ``jax.pmap`` is given them.
    depth: Number of batches in transfer beside the one in use.

  Yields:
    The batches in order, [devices, N / devices, ...]; ``jax.pmap`` over these devices uses them without a
    copy.
  """
  sharding = NamedSharding(Mesh(np.asarray(devices), ('devices',)), PartitionSpec('devices'))

  def place(batch):
    shares = {name: a.reshape(len(devices), -1, *a.shape[1:]) for name, a in batch.items()}
    return jax.device_put(shares, sharding)

  placed = map(place, batches)
  in_transfer = collections.deque(itertools.islice(placed, depth))
  for batch in placed:
    in_transfer.append(batch)
    yield in_transfer.popleft()
  yield from in_transfer
