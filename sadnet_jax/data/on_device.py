"""Training patches cut on the devices, from a data set in the memory of every device.

Nothing is decoded or transferred during training. As in `pipeline`, the patches of step k are a function of
(seed, k) alone: sample i = k * batch_size + position takes its image from a random permutation of all images,
one permutation per epoch, and its corner and orientation from a key folded with i. The patches are not those
of `pipeline`, because the random generators differ.
"""

from collections.abc import Sequence
import concurrent.futures
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.data.examples import Example, example_shape, read_example


@struct.dataclass
class DeviceImages:
  """A data set as one tall array: a pytree of NumPy arrays, until it is placed on devices.

  Images are stacked vertically. Portrait images are rotated by 90 degrees to waste little width; as patches
  have random orientations, this makes no difference. The channels of a pixel are neighbours in a row, because
  a TPU would pad an axis of length 3 to 128. Row and column indices stay below 2**31 for any data set, which
  a flat index would not.

  Attributes:
    clean: uint8 [rows, largest width * channels]; zero to the right of narrower images.
    noisy: The same for the noisy images, None for clean images.
    table: int32 [images, 3]: first row, height and width of each image.
    channels: 3 or 1.
    shortest_px: Shortest side of any image, the largest possible patch.
  """

  clean: Any
  noisy: Any
  table: Any
  channels: int = struct.field(pytree_node=False)
  shortest_px: int = struct.field(pytree_node=False)

  @property
  def nbytes(self) -> int:
    """Size on each device in bytes."""
    return sum(array.nbytes for array in jax.tree.leaves(self))


def load(examples: Sequence[Example], channels: int, device: jax.Device | None = None) -> DeviceImages:
  """Reads all images into the host's memory.

  Args:
    examples: Images, all or none with a noisy version.
    channels: 3, or 1 (colour files are converted).
    device: One of the devices they will be placed on, whose free memory is checked before reading.

  Returns:
    NumPy arrays, to be placed with ``jax.device_put``.

  Raises:
    ValueError: A file is damaged, sizes within an example differ, only some examples have noisy images, or
      the device has too little memory.
  """
  if len({example.noisy is None for example in examples}) != 1:
    raise ValueError(
      f'{sum(e.noisy is not None for e in examples)} of {len(examples)} training images have a noisy '
      'version; at least one image is needed, and all or none with a noisy version'
    )
  sides = np.array([sorted(example_shape(example)[:2]) for example in examples], np.int32)
  heights, widths = sides[:, 0], sides[:, 1]
  first_rows = np.concatenate([[0], np.cumsum(heights, dtype=np.int64)])
  shape = (int(first_rows[-1]), int(widths.max()) * channels)
  names = ('clean',) if examples[0].noisy is None else ('clean', 'noisy')
  if device is not None:
    check_memory(len(names) * shape[0] * shape[1], device)
  stacks = {name: np.zeros(shape, np.uint8) for name in names}

  def read(example, row):
    noisy, clean = read_example(example, channels)
    for name, image in (('clean', clean), ('noisy', noisy)):
      if image is not None:
        landscape = image if image.shape[0] <= image.shape[1] else np.rot90(image)
        height, width, _ = landscape.shape
        stacks[name][row : row + height, : width * channels] = landscape.reshape(height, -1)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    for _ in pool.map(read, examples, first_rows[:-1].tolist()):
      pass
  table = np.stack([first_rows[:-1], heights, widths], axis=1).astype(np.int32)
  return DeviceImages(stacks['clean'], stacks.get('noisy'), table, channels, int(heights.min()))


def check_memory(nbytes: int, device: jax.Device) -> None:
  """Checks that a data set fits into the free memory of a device, if the device reports it.

  Args:
    nbytes: Size of the images in bytes.
    device: The device.

  Raises:
    ValueError: It does not fit; both sizes are named.
  """
  # A CPU reports None.
  stats = device.memory_stats() or {}
  free = stats.get('bytes_limit', nbytes) - stats.get('bytes_in_use', 0)
  if nbytes > free:
    raise ValueError(
      f'the images have {nbytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free on {device}; use '
      "data.reader = 'tiles' or 'files' instead of 'memory'"
    )


def sample(
  images: DeviceImages,
  *,
  seed_key: jax.Array,
  step: jax.Array | int,
  batch_size: int,
  patch_px: int,
  first: jax.Array | int,
  count: int,
) -> dict[str, jax.Array]:
  """Cuts a device's share of the batch of a step; a pure function that can be jitted.

  Args:
    images: The data set.
    seed_key: Random key for the patches of the whole run.
    step: The step; ``step * batch_size`` must stay below 2**31.
    batch_size: Patches per step over all devices.
    patch_px: Side of a patch in pixels.
    first: Position of the share in the batch.
    count: Number of patches in the share.

  Returns:
    uint8 [count, patch_px, patch_px, C]: ``clean``, and ``noisy`` (the same crops of the noisy images) if
    there are noisy images.

  Raises:
    ValueError: The patches are larger than the smallest image.
  """
  if patch_px > images.shortest_px:
    raise ValueError(
      f'patch_px is {patch_px}, but the shortest side of an image is {images.shortest_px} pixels'
    )
  order_key, crop_key = jax.random.split(seed_key)
  numbers = step * batch_size + first + jnp.arange(count)
  rows = jnp.asarray(images.table)[_shuffled(order_key, numbers, images.table.shape[0])]
  keys = jax.vmap(jax.random.fold_in, (None, 0))(crop_key, numbers)
  stacks = {'clean': images.clean} | ({} if images.noisy is None else {'noisy': images.noisy})

  def cut(key, row):
    keys = jax.random.split(key, 3)
    top = row[0] + jax.random.randint(keys[0], (), 0, row[1] - patch_px + 1)
    left = jax.random.randint(keys[1], (), 0, row[2] - patch_px + 1)
    turn = jax.random.bernoulli(keys[2], shape=(3,))
    size = (patch_px, patch_px * images.channels)
    patches = {
      name: jax.lax.dynamic_slice(stack, (top, left * images.channels), size).reshape(patch_px, patch_px, -1)
      for name, stack in stacks.items()
    }
    return {name: _turn(patch, turn) for name, patch in patches.items()}

  return jax.vmap(cut)(keys, rows)


def _shuffled(key, numbers, count):
  """Returns the images of consecutive samples of the run; each image occurs once per epoch."""
  epochs = numbers // count
  # The largest number of epochs that so many consecutive samples can touch.
  most = (numbers.shape[0] + count - 2) // count + 1
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, epochs[0] + jnp.arange(most))
  orders = jax.vmap(lambda key: jax.random.permutation(key, count))(keys)
  return orders[epochs - epochs[0], numbers % count]


def _turn(patch, turn):
  """Applies one of the 8 flips and rotations by 90 degrees, selected by three bits."""
  patch = jnp.where(turn[0], patch.swapaxes(0, 1), patch)
  patch = jnp.where(turn[1], patch[::-1], patch)
  return jnp.where(turn[2], patch[:, ::-1], patch)
