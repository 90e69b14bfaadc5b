"""Training patches by tf.data, a batch a step, and their way to the devices.

Which patches step k sees is a function of (seed, k) alone. Every image is decoded for
m = ``crops_per_image`` consecutive steps, a round: image slot i of the run, i = round *
batch size + position, takes its image from a pseudo-random permutation of all images
for its epoch, and step k of the round one crop of each slot, with corner and
orientation from a stateless generator seeded with (seed, k * batch size + position). A
run can start at any step without replaying or storing anything.

A crop costs the decoding of 1 / m image, so files of many megapixels want a larger m,
or to be cut into tiles (`datasets.tiles`), or to be kept on the device (`device_data`).
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import itertools
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from sadnet_jax.datasets.examples import Example, read_example

if TYPE_CHECKING:
  from sadnet_jax.image_sources import ImageSource


def check_examples(examples: Sequence[Example], channels: int, patch_px: int) -> None:
  """Reads every image once, so that a bad one is found now and not hours into a run.

  Args:
    examples: Images, with or without noisy versions.
    channels: 3 or 1, as `images.read_image`.
    patch_px: Side of a crop in pixels.

  Raises:
    ValueError: The first image that is damaged, smaller than a crop, of another size
      than its noisy version, or grey where colour is wanted, named.
  """

  def check(example):
    height, width, _ = read_example(example, channels)[1].shape
    if min(height, width) < patch_px:
      raise ValueError(
        f'{example.files[0]}: got {width}x{height} pixels, want at least {patch_px}x{patch_px} for a crop '
        '(lower data.patch_px or take the image out)'
      )

  with concurrent.futures.ThreadPoolExecutor() as pool:
    collections.deque(pool.map(check, examples), maxlen=0)


def patches(
  images: 'ImageSource',
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
  """Random crops, flipped and rotated, a batch a step.

  Args:
    images: Each at least ``patch_px`` high and wide.
    patch_px: Side of a crop in pixels.
    batch_size: Patches a step over all processes; divisible by their number.
    crops_per_image: Steps in a row that take a crop from an image once it is decoded.
    seed: Seed of the run, below 2**31.
    first_step: The first batch is that of this step.
    last_step: The last batch is that of the step before this one.
    process_index: Which share of every batch to read.
    process_count: Number of shares; in order they make up the batch of one process.

  Yields:
    uint8 [batch_size / process_count, patch_px, patch_px, C]: ``clean``, and ``noisy``
    (the same crop of the noisy image) where the images have one.
  """
  import tensorflow as tf  # Here, so that importing the package does not import it.

  share = batch_size // process_count
  first_round = first_step // crops_per_image
  end_round = -(-last_step // crops_per_image)

  def crops_of_slot(index):
    """Index among this process's slots -> [crops_per_image, patch_px, patch_px, C] each."""
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
  # Prefetched, so that the next round is decoded while the steps of this one run.
  dataset = dataset.batch(share, drop_remainder=True).prefetch(1)
  dataset = dataset.map(lambda batch: {name: tf.transpose(a, [1, 0, 2, 3, 4]) for name, a in batch.items()})
  dataset = dataset.unbatch().skip(first_step % crops_per_image).take(last_step - first_step)
  return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _shuffled(slot: Any, count: int, seed: int) -> Any:
  """Number of an image slot in the run -> its image, each once an epoch."""
  import tensorflow as tf

  epoch_seed = tf.stack([tf.constant(seed, tf.int64), slot // count])
  return tf.random.experimental.index_shuffle(slot % count, tf.cast(epoch_seed, tf.int32), count - 1)


def _crop_and_turn(images: dict[str, Any], patch_px: int, seed: int, number: Any) -> dict[str, Any]:
  """The same random crop of all images, in one of the 8 flips and rotations by 90 degrees."""
  import tensorflow as tf

  def random(purpose, shape, **limits):
    # No two purposes of any two samples share a seed.
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
  """Splits batches among devices, and starts each on its way before it is wanted.

  Args:
    batches: Arrays [N, ...], with N a multiple of the number of devices.
    devices: Devices of this process, in the order ``jax.pmap`` is given them.
    depth: Batches under way beside the one in use.

  Yields:
    The same in order, [devices, N / devices, ...]; ``jax.pmap`` over these devices
    takes it as it lies, without a copy.
  """
  sharding = NamedSharding(Mesh(np.asarray(devices), ('devices',)), PartitionSpec('devices'))

  def place(batch):
    shares = {name: a.reshape(len(devices), -1, *a.shape[1:]) for name, a in batch.items()}
    return jax.device_put(shares, sharding)

  placed = map(place, batches)
  under_way = collections.deque(itertools.islice(placed, depth))
  for batch in placed:
    under_way.append(batch)
    yield under_way.popleft()
  yield from under_way
