"""Where a deformable convolution samples, and the bilinear samples themselves.

The input is padded with one ring of zeros and read as a table of rows, one row for
each (image, pixel, deformable group). A location is clipped to [-1, H] x [-1, W], so
its four neighbours always lie in the padded table, and everything outside the image
contributes zero without validity masks.

Shapes in this file: p pixels in a block, K taps, G deformable groups, S = G * K
samples per pixel ordered by group, then tap; four corners in the order
(y0, x0), (y0, x1), (y1, x0), (y1, x1).
"""

from collections.abc import Mapping
import operator
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.ops.platform import (
  accumulation_dtype,
  choose_block_pixels,
  current_platform,
  needs_fusion_barriers,
)

# Up to this many channels in a group, a sum over them is written out. XLA's reduction on a CPU runs a
# loop for each sample: 2.5 times slower at 4 channels, no slower at 16.
UNROLLED_CHANNELS = 8

# --- Checked shapes.


class ConvSpec(NamedTuple):
  """The static parameters of one call; hashable, so it can be a static argument.

  Attributes:
    kernel_size, stride, padding, dilation: (vertical, horizontal), in pixels.
    deformable_groups: G.
    image_size: (H, W) of the input.
    output_size: (Ho, Wo).
    block_pixels: Output pixels processed at a time.
    fusion_barriers: Whether `fusion_barrier` separates the steps of a block.
  """

  kernel_size: tuple[int, int]
  stride: tuple[int, int]
  padding: tuple[int, int]
  dilation: tuple[int, int]
  deformable_groups: int
  image_size: tuple[int, int]
  output_size: tuple[int, int]
  block_pixels: int
  fusion_barriers: bool

  @property
  def taps(self) -> int:
    """K = Kh * Kw."""
    return self.kernel_size[0] * self.kernel_size[1]

  @property
  def samples(self) -> int:
    """S = G * K."""
    return self.deformable_groups * self.taps

  @property
  def corner_steps(self) -> tuple[int, int, int, int]:
    """Distance in rows of the padded table from the first corner to each of the four."""
    right = self.deformable_groups
    down = (self.image_size[1] + 2) * self.deformable_groups
    return 0, right, down, down + right


def check_arguments(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None,
  per_sample: Mapping[str, tuple[jax.Array | jax.ShapeDtypeStruct | None, int]],
  *,
  stride: int | tuple[int, int] = 1,
  padding: int | tuple[int, int] = 0,
  dilation: int | tuple[int, int] = 1,
  groups: int = 1,
  deformable_groups: int = 1,
  block_pixels: int | None = None,
) -> ConvSpec:
  """Checks all shapes and options of a call and returns its static parameters.

  Args:
    x, kernel, bias: As in `deform_conv.deform_conv2d`.
    per_sample: Name -> (array [N, Ho, Wo, values * S] or None, values): the arrays that say
      where and how much to sample. Only shape and dtype of an array are read.
    stride, padding, dilation, groups, deformable_groups, block_pixels: As in
      `deform_conv.deform_conv2d`.

  Raises:
    ValueError: An array's shape or dtype or an option is invalid.
  """
  per_sample_arrays = {name: array for name, (array, _) in per_sample.items()}
  _check_dtypes_and_ranks({'x': x, **per_sample_arrays, 'kernel': kernel, 'bias': bias})
  n, h, w, c = x.shape
  kh, kw, _, features = kernel.shape
  _check_channels(c, kernel.shape, groups, deformable_groups)
  stride, padding, dilation = (
    _pair('stride', stride, 1),
    _pair('padding', padding, 0),
    _pair('dilation', dilation, 1),
  )
  options = f'stride {stride}, padding {padding}, dilation {dilation}'
  ho, wo = (
    (size + 2 * p - d * (k - 1) - 1) // s + 1
    for size, p, d, k, s in zip((h, w), padding, dilation, (kh, kw), stride, strict=True)
  )
  if c < 1:
    raise ValueError(f'x has shape {x.shape}, but needs at least one channel')
  if any(size < 1 for size in (h, w, ho, wo, kh, kw)):
    raise ValueError(
      f'x of shape {x.shape} is too small for kernel {kh}x{kw}, {options}: the output would be {ho}x{wo}'
    )
  expected = {
    name: (array, (n, ho, wo, values * deformable_groups * kh * kw))
    for name, (array, values) in per_sample.items()
  }
  for name, (array, shape) in {**expected, 'bias': (bias, (features,))}.items():
    if array is not None and array.shape != shape:
      raise ValueError(
        f'{name} has shape {array.shape}, but must have {shape} for x {x.shape}, kernel {kernel.shape}, '
        f'{options}, deformable_groups {deformable_groups}'
      )
  rows = n * (h + 2) * (w + 2) * deformable_groups
  # A symbolic size, of `jax.export`, has no number yet.
  if isinstance(rows, int | np.integer) and rows >= 2**31:
    raise ValueError(
      f'x of shape {x.shape} is too large: it has {rows} rows to sample from, but indices are limited to '
      'fewer than 2**31; split the image into tiles'
    )
  total = n * ho * wo
  if block_pixels is None:
    bytes_per_pixel = kh * kw * c * accumulation_dtype(x.dtype).itemsize
    block_pixels = choose_block_pixels(total, bytes_per_pixel) if total != 0 else 1
  elif not isinstance(block_pixels, int | np.integer) or block_pixels < 1:
    raise ValueError(f'block_pixels must be an int of at least 1 or None, not {block_pixels}')
  return ConvSpec(
    kernel_size=(kh, kw),
    stride=stride,
    padding=padding,
    dilation=dilation,
    deformable_groups=deformable_groups,
    image_size=(h, w),
    output_size=(ho, wo),
    block_pixels=block_pixels,
    fusion_barriers=needs_fusion_barriers(total * kh * kw * c),
  )


def _check_dtypes_and_ranks(arrays):
  for name, array in arrays.items():
    if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
      raise ValueError(f'{name} must be floating point, but has dtype {array.dtype}')
  for name, layout in (('x', 'N, H, W, C'), ('kernel', 'Kh, Kw, C / groups, O')):
    if arrays[name].ndim != 4:
      raise ValueError(f'{name} must have 4 axes [{layout}], but has shape {arrays[name].shape}')


def _check_channels(channels, kernel_shape, groups, deformable_groups):
  _, _, kernel_channels, features = kernel_shape
  for name, value, total, unit in (
    ('groups', groups, channels, 'input channels'),
    ('groups', groups, features, 'output channels'),
    ('deformable_groups', deformable_groups, channels, 'input channels'),
  ):
    if not isinstance(value, int | np.integer) or value < 1 or total % value:
      raise ValueError(f'{name} must be an int that divides the {total} {unit}, not {value}')
  if kernel_channels * groups != channels:
    raise ValueError(
      f'kernel has {kernel_channels} input channels per group, but must have {channels // groups}: '
      f'x has {channels} channels, and groups is {groups}'
    )


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
  try:
    y, x = value if isinstance(value, tuple | list) else (value, value)
    pair = (operator.index(y), operator.index(x))
  except (TypeError, ValueError):
    pair = None
  if pair is None or min(pair) < least:
    raise ValueError(f'{name} must be an int or a pair of ints, each at least {least}, not {value!r}')
  return pair


# --- Locate.


class SampleLocations(NamedTuple):
  """Where a block of pixels samples, [p, S] each.

  Attributes:
    row: Row of the first corner in the padded table.
    fy, fx: Distance from the first corner to the location, in [0, 1] pixels.
    inside: Whether the location is inside (-1, H) x (-1, W); elsewhere its gradient is zero.
  """

  row: jax.Array
  fy: jax.Array
  fx: jax.Array
  inside: jax.Array

  def corner_weights(self) -> tuple[jax.Array, ...]:
    """Bilinear weights of the four corners."""
    fy, fx = self.fy, self.fx
    return (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx


def locate(pixels: jax.Array, offset_block: jax.Array, spec: ConvSpec) -> SampleLocations:
  """Converts the offsets of a block into table rows and bilinear fractions.

  Args:
    pixels: Flat indices of the output pixels, [p].
    offset_block: Offsets in pixels, [p, 2 * S].
    spec: The call's static parameters.
  """
  (h, w), (ho, wo) = spec.image_size, spec.output_size
  g = spec.deformable_groups
  dtype = accumulation_dtype(offset_block.dtype)
  image, pixel = pixels // (ho * wo), pixels % (ho * wo)
  tap, group = np.arange(spec.samples) % spec.taps, np.arange(spec.samples) // spec.taps
  tap_y, tap_x = tap // spec.kernel_size[1], tap % spec.kernel_size[1]
  base_y = _tap_position(pixel // wo, tap_y, 0, spec).astype(dtype)
  base_x = _tap_position(pixel % wo, tap_x, 1, spec).astype(dtype)

  # Groups and taps stay one axis: as two, XLA's loop on a CPU would divide for every sample.
  offset_block = offset_block.reshape(-1, spec.samples, 2).astype(dtype)
  row_y, fy, inside_y = _locate_axis(base_y + offset_block[..., 0], h)
  row_x, fx, inside_x = _locate_axis(base_x + offset_block[..., 1], w)
  pixel_row = (image[:, None] * (h + 2) + row_y) * (w + 2) + row_x
  return SampleLocations(pixel_row * g + group.astype(np.int32), fy, fx, inside_y & inside_x)


def _tap_position(position, tap, axis, spec):
  """Where the regular convolution samples, [p, S]."""
  start = position * spec.stride[axis] - spec.padding[axis]
  return start[:, None] + (tap * spec.dilation[axis]).astype(np.int32)


def _locate_axis(location, size):
  """Lower neighbour in the padded axis, fraction, and whether the location is inside the image.

  Position and offset are added before the floor is taken, as torchvision does: where
  the sum rounds to an integer, this decides which of the two one-sided derivatives is
  the gradient.
  """
  clipped = jnp.clip(location, -1, size)
  # At the far end (location = size) the pair is (size - 1, size) with fraction 1.
  lower = jnp.minimum(jnp.floor(clipped), size - 1)
  # Clipped again as an integer, because a NaN may convert to any integer.
  index = jnp.clip(lower.astype(jnp.int32) + 1, 0, size)
  return index, clipped - lower, (location > -1) & (location < size)


# --- Gather.


def make_table(x: jax.Array, spec: ConvSpec) -> jax.Array:
  """[N, H, W, C] -> [N * (H + 2) * (W + 2) * G, C / G], with a ring of zeros around each image."""
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return padded.reshape(-1, x.shape[3] // spec.deformable_groups)


def gather_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
  """Reads the rows [...] of a table [R, C / G]: [..., C / G]. All must be inside the table."""
  dimensions = lax.GatherDimensionNumbers(
    offset_dims=(rows.ndim,), collapsed_slice_dims=(0,), start_index_map=(0,)
  )
  return lax.gather(
    table, rows[..., None], dimensions, (1, table.shape[1]), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS
  )


# --- Blend.


def blend(
  table: jax.Array, row: jax.Array, fy: jax.Array, fx: jax.Array, mask: jax.Array | None, spec: ConvSpec
) -> jax.Array:
  """Samples a block bilinearly and multiplies by the mask.

  Args:
    table: Padded input, [N * (H + 2) * (W + 2) * G, C / G].
    row, fy, fx: As in `SampleLocations`.
    mask: Modulation, [p, S], or None.
    spec: The call's static parameters.

  Returns:
    [p, S, C / G], in the dtype of the fractions.
  """
  v00, v01, v10, v11 = (gather_rows(table, row + step) for step in spec.corner_steps)
  fy, fx = fy[..., None], fx[..., None]
  sampled = (1 - fy) * ((1 - fx) * v00 + fx * v01) + fy * ((1 - fx) * v10 + fx * v11)
  return sampled if mask is None else sampled * mask[..., None]


def corner_products(
  table: jax.Array, row: jax.Array, dsampled: jax.Array, spec: ConvSpec
) -> tuple[jax.Array, ...]:
  """The inner product over channels of each corner's values with the gradient of the samples.

  The gradients of offsets and masks are linear combinations of these four.

  Args:
    table, row, spec: As in `blend`.
    dsampled: Gradient of the masked samples, [p, S, C / G].

  Returns:
    Four arrays [p, S].
  """
  return tuple(_sum_channels(gather_rows(table, row + step) * dsampled) for step in spec.corner_steps)


def _sum_channels(products):
  channels = products.shape[-1]
  if channels > UNROLLED_CHANNELS:
    return jnp.sum(products, axis=-1)
  total = products[..., 0]
  for channel in range(1, channels):
    total += products[..., channel]
  return total


# --- Scatter.


def rows_to_add_to(at: SampleLocations, spec: ConvSpec) -> jax.Array:
  """The rows of the first corners, [p, S], that `scatter_add_rows` adds gradients to.

  What is added for locations outside the image goes to the ring around it, and is cut off. On an accelerator
  these rows are negative, for none: many additions to the few rows of the ring would wait for each other.
  """
  if current_platform() == 'cpu':
    return at.row
  return jnp.where(at.inside, at.row, -1 - max(spec.corner_steps))


def scatter_add_rows(table: jax.Array, rows: jax.Array, updates: jax.Array) -> jax.Array:
  """Adds updates [..., C / G] to the rows [...] of a table: the transpose of `gather_rows`.

  Rows must be inside the table, but on an accelerator may be negative, for none.
  """
  on_cpu = current_platform() == 'cpu'
  dimensions = lax.ScatterDimensionNumbers(
    update_window_dims=(rows.ndim,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
  )
  return lax.scatter_add(
    table,
    rows[..., None],
    updates.astype(table.dtype),
    dimensions,
    mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS if on_cpu else lax.GatherScatterMode.FILL_OR_DROP,
  )
