"""The whole data set in the memory of every device; crops are cut there.

Nothing is decoded and nothing crosses the bus while a run trains. As in
`input_pipeline`, which patches step k sees is a function of (seed, k) alone: sample i of
the run, i = k * batch size + position, takes its image from a random permutation of all
images for its epoch, and its corner and orientation from a key folded with i. The
patches differ from those of `input_pipeline`, as the generators do.
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
  """Images one below the other; a pytree, as NumPy arrays until it is placed on devices.

  Portrait images are turned by 90 degrees, which the random orientation of a patch
  makes no difference to, so that the width that all share is little more than theirs.
  The channels of a pixel lie in a row, as an axis of 3 of its own would be padded to 128
  on a TPU; a row and a column, unlike one index of all, stay below 2**31 for any set.

  Attributes:
    clean: uint8 [rows, widest width * channels]; zero where an image is narrower.
    noisy: Alike, or None for clean images.
    table: int32 [images, 3]: first row, height and width of each.
    channels: 3 or 1.
    shortest_px: Shortest side of any image: patches can have this many pixels.
  """

  clean: Any
  noisy: Any
  table: Any
  channels: int = struct.field(pytree_node=False)
  shortest_px: int = struct.field(pytree_node=False)

  @property
  def nbytes(self) -> int:
    """Bytes on each device."""
    return sum(array.nbytes for array in jax.tree.leaves(self))


def load(examples: Sequence[Example], channels: int, device: jax.Device | None = None) -> DeviceImages:
  """Reads all images into the host's memory.

  Args:
    examples: Images, all or none with a noisy version.
    channels: 3, or 1 (colour files are converted).
    device: One of those that they will be placed on: its memory is checked before
      anything is read.

  Returns:
    NumPy arrays, to be placed by ``jax.device_put``.

  Raises:
    ValueError: A file is damaged, sizes within an example differ, noisy images are
      there for some examples only, or the device has not enough memory.
  """
  if len({example.noisy is None for example in examples}) != 1:
    raise ValueError(
      f'training images: got {sum(e.noisy is not None for e in examples)} of {len(examples)} with a noisy '
      'image, want all or none, and at least one image'
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
        lying = image if image.shape[0] <= image.shape[1] else np.rot90(image)
        height, width, _ = lying.shape
        stacks[name][row : row + height, : width * channels] = lying.reshape(height, -1)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    for _ in pool.map(read, examples, first_rows[:-1].tolist()):
      pass
  table = np.stack([first_rows[:-1], heights, widths], axis=1).astype(np.int32)
  return DeviceImages(stacks['clean'], stacks.get('noisy'), table, channels, int(heights.min()))


def check_memory(nbytes: int, device: jax.Device) -> None:
  """Refuses a data set larger than what is free on a device, where the device tells.

  Args:
    nbytes: Size of the images.
    device: Where they will go.

  Raises:
    ValueError: It does not fit; both sizes are named.
  """
  # None on a CPU.
  stats = device.memory_stats() or {}
  free = stats.get('bytes_limit', nbytes) - stats.get('bytes_in_use', 0)
  if nbytes > free:
    raise ValueError(
      f"data.reader: got 'memory' with images of {nbytes / 1e9:.1f} GB, want at most the {free / 1e9:.1f} GB "
      f"that are free on {device}, less what training needs (use 'tiles' or 'files')"
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
  """Cuts a device's share of the batch of a step; can be compiled, and is pure.

  Args:
    images: The data set.
    seed_key: Random key of the whole run.
    step: The step; ``step * batch_size`` stays below 2**31.
    batch_size: Patches a step over all devices.
    patch_px: Side of a patch in pixels.
    first: Position of the share within the batch.
    count: Patches in the share.

  Returns:
    uint8 [count, patch_px, patch_px, C]: ``clean``, and ``noisy`` (the same crops of the
    noisy images) where there are some.

  Raises:
    ValueError: Patches larger than the smallest image.
  """
  if patch_px > images.shortest_px:
    raise ValueError(
      f'patch_px: got {patch_px}, want at most {images.shortest_px}, the shortest side of an image'
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
  """Numbers of consecutive samples -> their images, each once an epoch."""
  epochs = numbers // count
  # The epochs that so many consecutive samples can touch, from the first one's on.
  most = (numbers.shape[0] + count - 2) // count + 1
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, epochs[0] + jnp.arange(most))
  orders = jax.vmap(lambda key: jax.random.permutation(key, count))(keys)
  return orders[epochs - epochs[0], numbers % count]


def _turn(patch, turn):
  """One of the 8 flips and rotations by 90 degrees, from three bits."""
  patch = jnp.where(turn[0], patch.swapaxes(0, 1), patch)
  patch = jnp.where(turn[1], patch[::-1], patch)
  return jnp.where(turn[2], patch[:, ::-1], patch)
