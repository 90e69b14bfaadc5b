"""Training patches from a folder of clean images, by tf.data.

Which patches step k sees is a function of (seed, k) alone: sample i of the run,
i = k * batch size + position, takes its image from a pseudo-random permutation
of the folder for its epoch, and its crop and orientation from a stateless
generator seeded with (seed, i). A run can start at any step without replaying
or storing anything. Each crop decodes its whole image: right for images of up to
about a megapixel, slow for larger ones.
"""

from collections.abc import Iterator, Sequence
import concurrent.futures
from pathlib import Path
from typing import Any

import numpy as np

from sadnet_jax.images import read_image

# What TensorFlow decodes; other formats are for evaluation only.
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp')


def check_images(paths: Sequence[Path], channels: int, patch_px: int) -> None:
  """Reads every image once, so that a bad one is found now and not hours into a run.

  Args:
    paths: Image files.
    channels: 3 or 1, as `read_image`.
    patch_px: Side of a crop in pixels.

  Raises:
    ValueError: The first image that is damaged, smaller than a crop, or grey where
      colour is wanted, named.
  """
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for path, shape in zip(paths, pool.map(lambda p: read_image(p, channels).shape, paths), strict=True):
      if min(shape[:2]) < patch_px:
        raise ValueError(
          f'{path}: got {shape[1]}x{shape[0]} pixels, want at least {patch_px}x{patch_px} for a crop '
          '(lower data.patch_px or take the image out)'
        )


def clean_patches(
  paths: Sequence[Path],
  *,
  channels: int,
  patch_px: int,
  batch_size: int,
  seed: int,
  first_step: int,
  last_step: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[np.ndarray]:
  """Random crops, flipped and rotated, a batch a step.

  Args:
    paths: Image files in an order that does not change, each at least
      ``patch_px`` high and wide.
    channels: 3, or 1 (colour files are converted).
    patch_px: Side of a crop in pixels.
    batch_size: Patches a step over all processes; divisible by their number.
    seed: Seed of the run.
    first_step: The first batch is that of this step.
    last_step: The last batch is that of the step before this one.
    process_index: Which share of every batch to read.
    process_count: Number of shares.

  Yields:
    uint8 [batch_size / process_count, patch_px, patch_px, channels].
  """
  import tensorflow as tf  # Here, so that importing the package does not import it.

  share = batch_size // process_count
  files = tf.constant([str(p) for p in paths])

  def sample_number(index):
    """Index among this process's samples -> number of the sample in the run."""
    return (index // share) * batch_size + process_index * share + index % share

  def load(index):
    number = sample_number(index)
    count = tf.cast(len(paths), tf.int64)
    epoch_seed = tf.stack([tf.cast(seed, tf.int64), number // count])
    which = tf.random.experimental.index_shuffle(number % count, tf.cast(epoch_seed, tf.int32), count - 1)
    image = _decode(tf.io.read_file(files[which]), channels)
    return _augment(_crop(image, patch_px, seed, number), seed, number)

  dataset = tf.data.Dataset.range(first_step * share, last_step * share)
  dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  dataset = dataset.batch(share, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
  return dataset.as_numpy_iterator()


def _decode(content: Any, channels: int) -> Any:
  import tensorflow as tf

  image = tf.io.decode_image(content, channels=3, expand_animations=False)
  if channels == 1:
    image = tf.cast(tf.round(tf.image.rgb_to_grayscale(tf.cast(image, tf.float32))), tf.uint8)
  return image


def _crop(image: Any, patch_px: int, seed: int, number: Any) -> Any:
  import tensorflow as tf

  room = tf.shape(image, tf.int64)[:2] - patch_px + 1
  corner = tf.random.stateless_uniform([2], _seed(seed, number, 0), maxval=None, minval=None, dtype=tf.int64)
  top_left = tf.math.floormod(corner, room)
  return tf.slice(image, tf.concat([top_left, [0]], 0), [patch_px, patch_px, -1])


def _augment(patch: Any, seed: int, number: Any) -> Any:
  """One of the 8 flips and rotations by 90 degrees."""
  import tensorflow as tf

  choice = tf.random.stateless_uniform([], _seed(seed, number, 1), maxval=8, dtype=tf.int32)
  patch = tf.image.rot90(patch, choice % 4)
  return tf.cond(choice >= 4, lambda: tf.image.flip_left_right(patch), lambda: patch)


def _seed(seed: int, number: Any, purpose: int) -> Any:
  """A seed for one purpose of one sample: no two share one."""
  import tensorflow as tf

  return tf.stack([tf.cast(seed, tf.int64), number * 2 + purpose])
