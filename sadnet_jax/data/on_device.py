"""Training patches cut on the devices, from a data set in the memory of every device.

Nothing is decoded or transferred during training. As in `pipeline`, the patches of step k are a function of
(seed, k) alone: sample i = k * batch_size + position takes its image from a random permutation of all images,
one permutation per epoch, and its corner and orientation from a key folded with i. The patches are not those
of `pipeline`, because the random generators differ.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import contextlib
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax import machine
from sadnet_jax.data.examples import Example, check_side, example_shape, read_example


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


# Called with an image that cannot be used, and why.
OnBadImage = Callable[[Example, ValueError], None]


def load(
  sets: Sequence[Sequence[Example]],
  channels: int,
  devices: Sequence[jax.Device] = (),
  *,
  patch_px: int = 1,
  on_bad: OnBadImage | None = None,
) -> list[DeviceImages]:
  """Reads sets of images into the host's memory; decodes each file once.

  Whether all sets fit into memory is checked by the headers of the files, before any is decoded.

  Args:
    sets: The images of each set, all or none with a noisy version.
    channels: 3, or 1 (colour files are converted).
    devices: The devices of this process that they will be placed on, whose free memory is checked too: that
      of the first, or, for CPUs, that of the host, of which each copy takes a part.
    patch_px: Least side of an image in pixels.
    on_bad: Called for each image that cannot be used, which is then skipped, possibly from several threads;
      None to raise its error.

  Returns:
    A data set of NumPy arrays for each set, to be placed with ``jax.device_put``.

  Raises:
    ValueError: A file is damaged or smaller than a patch, sizes within an example differ, only some examples
      of a set have noisy images, no image is left, or the sets do not fit into memory.
  """
  plans = [_plan(examples, channels, patch_px, on_bad) for examples in sets]
  nbytes = sum(plan.nbytes for plan in plans)
  copies = sum(device.platform == 'cpu' for device in devices)
  check_host_memory((1 + copies) * nbytes, machine.free_host_bytes())
  for device in devices[:1]:
    check_memory(nbytes, device)
  return [_read(plan, channels, on_bad) for plan in plans]


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Where each image of a set goes: its first row, height and width, turned to landscape."""

  examples: list[Example]
  table: np.ndarray
  names: tuple[str, ...]
  shape: tuple[int, int]

  @property
  def nbytes(self):
    return len(self.names) * self.shape[0] * self.shape[1]


def _plan(examples, channels, patch_px, on_bad):
  if len({example.noisy is None for example in examples}) != 1:
    raise ValueError(
      f'{sum(e.noisy is not None for e in examples)} of {len(examples)} training images have a noisy '
      'version; at least one image is needed, and all or none with a noisy version'
    )
  good, sides = [], []
  for example in examples:
    with _passed_to(on_bad, example):
      size = example_shape(example)[:2]
      check_side(example, size, patch_px)
      good.append(example)
      sides.append(sorted(size))
  _check_any_left(good, examples)
  heights, widths = np.array(sides, np.int32).T
  first_rows = np.concatenate([[0], np.cumsum(heights, dtype=np.int64)])
  table = np.stack([first_rows[:-1], heights, widths], axis=1).astype(np.int32)
  names = ('clean',) if examples[0].noisy is None else ('clean', 'noisy')
  return _Plan(good, table, names, (int(first_rows[-1]), int(widths.max()) * channels))


def _read(plan, channels, on_bad):
  stacks = {name: np.zeros(plan.shape, np.uint8) for name in plan.names}

  def read(example, place):
    row, height, width = place
    with _passed_to(on_bad, example):
      noisy, clean = read_example(example, channels)
      for name, image in (('clean', clean), ('noisy', noisy)):
        if image is not None:
          landscape = image if image.shape[0] <= image.shape[1] else np.rot90(image)
          stacks[name][row : row + height, : width * channels] = landscape.reshape(height, -1)
      return True
    return False

  with concurrent.futures.ThreadPoolExecutor() as pool:
    is_good = list(pool.map(read, plan.examples, plan.table.tolist()))
  table = plan.table[is_good]
  _check_any_left(table, plan.examples)
  return DeviceImages(stacks['clean'], stacks.get('noisy'), table, channels, int(table[:, 1].min()))


@contextlib.contextmanager
def _passed_to(on_bad, example):
  try:
    yield
  except ValueError as error:
    if on_bad is None:
      raise
    on_bad(example, error)


def _check_any_left(good, examples):
  if not len(good):
    raise ValueError(f'none of the {len(examples)} training images can be used')


def check_host_memory(nbytes: int, free: int | None) -> None:
  """Checks that a data set fits into the host's memory.

  Args:
    nbytes: Size of the images in bytes, with all their copies.
    free: Free memory in bytes, None if it is not known.

  Raises:
    ValueError: It does not fit; both sizes are named.
  """
  if free is not None and nbytes > free:
    raise ValueError(
      f'the images take {nbytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free in this machine; '
      "use data.reader = 'tiles' or 'files' instead of 'memory'"
    )


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
