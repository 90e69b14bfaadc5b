"""Where a deformable convolution samples, and the bilinear samples themselves.

The input is padded with one ring of zeros and read as a table of rows, one row for
each (image, pixel, deformable group). A location is clipped to [-1, H] x [-1, W],
so its four neighbours always lie in the padded table and whatever is outside the
image contributes zero: no validity masks.

Shapes in this file: p pixels in a block, K taps, G deformable groups, S = G * K
samples of a pixel in the order group, then tap; four corners in the order
(y0, x0), (y0, x1), (y1, x0), (y1, x1).
"""

from collections.abc import Mapping
import operator
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.ops.platform import accumulation_dtype, block_pixels_for, pays_to_split, traced_for

# Values for each sample in the arrays that move a deformable convolution.
_VALUES_OF_SAMPLE = {'offset': 2, 'mask': 1, 'prediction': 3}


class Geometry(NamedTuple):
  """The static numbers of one call; hashable, so it can be a static argument."""

  kernel_size: tuple[int, int]
  stride: tuple[int, int]
  padding: tuple[int, int]
  dilation: tuple[int, int]
  deformable_groups: int
  image_size: tuple[int, int]
  output_size: tuple[int, int]
  block_pixels: int
  # Whether each step of a block is to be a program loop of its own, see `deform_conv_vjp`.
  split_loops: bool

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
    """Rows of the padded table from the first corner to each."""
    right = self.deformable_groups
    down = (self.image_size[1] + 2) * self.deformable_groups
    return 0, right, down, down + right


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
  try:
    y, x = value if isinstance(value, tuple | list) else (value, value)
    pair = (operator.index(y), operator.index(x))
  except (TypeError, ValueError):
    pair = None
  if pair is None or min(pair) < least:
    raise ValueError(f'{name}: got {value!r}, want an int or a pair of ints, each at least {least}')
  return pair


def checked_geometry(
  x: jax.Array,
  moved: Mapping[str, jax.Array | None],
  kernel: jax.Array,
  bias: jax.Array | None,
  stride: int | tuple[int, int],
  padding: int | tuple[int, int],
  dilation: int | tuple[int, int],
  groups: int,
  deformable_groups: int,
  block_pixels: int | None,
) -> Geometry:
  """Checks every shape of a call and returns its static numbers.

  Args:
    x, kernel, bias, stride, padding, dilation, groups, deformable_groups, block_pixels:
      As in `deform_conv.deform_conv2d`.
    moved: What tells where and how much is sampled, under its name: ``offset`` and
      ``mask``, or ``prediction``.

  Raises:
    ValueError: A shape does not fit the others, or an option is out of range.
  """
  arrays = {'x': x, **moved, 'kernel': kernel, 'bias': bias}
  for name, array in arrays.items():
    if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
      raise ValueError(f'{name}: got dtype {array.dtype}, want floating point')
  for name, array, layout in (('x', x, 'N, H, W, C'), ('kernel', kernel, 'Kh, Kw, C / groups, O')):
    if array.ndim != 4:
      raise ValueError(f'{name}: got shape {array.shape}, want 4 axes [{layout}]')
  n, h, w, c = x.shape
  kh, kw, kernel_c, features = kernel.shape
  for name, value, divides in (
    ('groups', groups, {'input channels': c, 'output channels': features}),
    ('deformable_groups', deformable_groups, {'input channels': c}),
  ):
    for what, number in divides.items():
      if not isinstance(value, int | np.integer) or value < 1 or number % value:
        raise ValueError(f'{name}: got {value}, want a divisor of the {number} {what}')
  if kernel_c * groups != c:
    raise ValueError(
      f'kernel: got {kernel_c} input channels per group, want {c // groups} = '
      f'{c} channels of x / {groups} groups'
    )
  stride, padding = _pair('stride', stride, 1), _pair('padding', padding, 0)
  dilation = _pair('dilation', dilation, 1)
  ho, wo = (
    (size + 2 * p - d * (k - 1) - 1) // s + 1
    for size, p, d, k, s in zip((h, w), padding, dilation, (kh, kw), stride, strict=True)
  )
  if c < 1:
    raise ValueError(f'x: got shape {x.shape}, want at least one channel')
  if any(size < 1 for size in (h, w, ho, wo, kh, kw)):
    raise ValueError(
      f'x: got shape {x.shape}, too small for kernel {kh}x{kw}, stride {stride}, padding {padding}, '
      f'dilation {dilation}: the output would be {ho}x{wo}'
    )
  wanted: dict[str, tuple[jax.Array | None, tuple[int, ...]]] = {
    name: (array, (n, ho, wo, _VALUES_OF_SAMPLE[name] * deformable_groups * kh * kw))
    for name, array in moved.items()
  }
  wanted['bias'] = (bias, (features,))
  for name, (array, shape) in wanted.items():
    if array is not None and array.shape != shape:
      raise ValueError(
        f'{name}: got shape {array.shape}, want {shape} for x {x.shape}, kernel {kernel.shape}, '
        f'stride {stride}, padding {padding}, dilation {dilation}, deformable_groups {deformable_groups}'
      )
  rows = n * (h + 2) * (w + 2) * deformable_groups
  if rows >= 2**31:
    raise ValueError(f'x: got shape {x.shape}, {rows} rows to sample from, want fewer than 2**31: use tiles')
  total = n * ho * wo
  if block_pixels is None and total:
    block_pixels = block_pixels_for(total, kh * kw * c * accumulation_dtype(x.dtype).itemsize)
  elif block_pixels is not None and (not isinstance(block_pixels, int | np.integer) or block_pixels < 1):
    raise ValueError(f'block_pixels: got {block_pixels}, want an int of at least 1, or None')
  return Geometry(
    kernel_size=(kh, kw),
    stride=stride,
    padding=padding,
    dilation=dilation,
    deformable_groups=deformable_groups,
    image_size=(h, w),
    output_size=(ho, wo),
    block_pixels=block_pixels or 1,
    split_loops=traced_for() == 'cpu' and pays_to_split(total * kh * kw * c),
  )


# Up to so many channels in a group, a sum over them is written out. XLA's reduction on a
# CPU is a loop of its own for each sample, 2.5 times slower at 4 channels, no slower at 16.
_UNROLLED_CHANNELS = 8


class Site(NamedTuple):
  """Where a block of pixels samples, [p, S] each.

  Attributes:
    row: Row of the first corner in the padded table.
    fy, fx: How far the location is from the first corner, in [0, 1] pixels.
    inside: Whether the location is inside (-1, H) x (-1, W), where it has gradients.
  """

  row: jax.Array
  fy: jax.Array
  fx: jax.Array
  inside: jax.Array

  def corner_weights(self) -> tuple[jax.Array, ...]:
    """Bilinear weights of the corners."""
    fy, fx = self.fy, self.fx
    return (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx


def locate(pixels: jax.Array, offset_block: jax.Array, geometry: Geometry) -> Site:
  """Turns the offsets of a block into table rows and bilinear fractions.

  Args:
    pixels: Flat output pixel numbers, [p].
    offset_block: Offsets in pixels, [p, 2 * S].
    geometry: The call's static numbers.
  """
  (h, w), (ho, wo) = geometry.image_size, geometry.output_size
  g = geometry.deformable_groups
  dtype = accumulation_dtype(offset_block.dtype)
  image, pixel = pixels // (ho * wo), pixels % (ho * wo)
  tap, group = np.arange(geometry.samples) % geometry.taps, np.arange(geometry.samples) // geometry.taps
  tap_y, tap_x = tap // geometry.kernel_size[1], tap % geometry.kernel_size[1]
  base_y = _tap_position(pixel // wo, tap_y, 0, geometry).astype(dtype)
  base_x = _tap_position(pixel % wo, tap_x, 1, geometry).astype(dtype)

  # Samples stay one axis: with groups and taps apart, XLA's loop on a CPU divides for each.
  offset_block = offset_block.reshape(-1, geometry.samples, 2).astype(dtype)
  row_y, fy, inside_y = _locate_axis(base_y + offset_block[..., 0], h)
  row_x, fx, inside_x = _locate_axis(base_x + offset_block[..., 1], w)
  pixel_row = (image[:, None] * (h + 2) + row_y) * (w + 2) + row_x
  return Site(pixel_row * g + group.astype(np.int32), fy, fx, inside_y & inside_x)


def _tap_position(position, tap, axis, geometry):
  """Where the regular convolution samples, [p, S]."""
  start = position * geometry.stride[axis] - geometry.padding[axis]
  return start[:, None] + (tap * geometry.dilation[axis]).astype(np.int32)


def _locate_axis(location, size):
  """Lower neighbour in the padded axis, fraction, and whether inside the image.

  Position and offset are added before the floor is taken, as torchvision does:
  where the sum rounds to an integer, that choice decides which of the two
  one-sided derivatives is the gradient.
  """
  clipped = jnp.clip(location, -1, size)
  # At the far end (location = size) the pair is (size - 1, size) with fraction 1.
  lower = jnp.minimum(jnp.floor(clipped), size - 1)
  # Clipped as an integer once more: the conversion of a NaN can be anything.
  index = jnp.clip(lower.astype(jnp.int32) + 1, 0, size)
  return index, clipped - lower, (location > -1) & (location < size)


def blend(
  table: jax.Array, row: jax.Array, fy: jax.Array, fx: jax.Array, mask: jax.Array | None, geometry: Geometry
) -> jax.Array:
  """Blended, modulated samples of a block.

  Args:
    table: Padded input, [N * (H + 2) * (W + 2) * G, C / G].
    row, fy, fx: As in `Site`.
    mask: Modulation, [p, S], or None.
    geometry: The call's static numbers.

  Returns:
    [p, S, C / G], in the dtype of the fractions.
  """
  v00, v01, v10, v11 = (_gather_rows(table, row + step) for step in geometry.corner_steps)
  fy, fx = fy[..., None], fx[..., None]
  sampled = (1 - fy) * ((1 - fx) * v00 + fx * v01) + fy * ((1 - fx) * v10 + fx * v11)
  return sampled if mask is None else sampled * mask[..., None]


def corner_products(
  table: jax.Array, row: jax.Array, dsampled: jax.Array, geometry: Geometry
) -> tuple[jax.Array, ...]:
  """What each corner alone contributes to the gradient: its values times ``dsampled``, summed over channels.

  Args:
    table, row, geometry: As in `blend`.
    dsampled: Gradient of the samples, before modulation, [p, S, C / G].

  Returns:
    Four times [p, S].
  """
  return tuple(_sum_channels(_gather_rows(table, row + step) * dsampled) for step in geometry.corner_steps)


def _sum_channels(products):
  channels = products.shape[-1]
  if channels > _UNROLLED_CHANNELS:
    return jnp.sum(products, axis=-1)
  total = products[..., 0]
  for channel in range(1, channels):
    total += products[..., channel]
  return total


def make_table(x: jax.Array, geometry: Geometry) -> jax.Array:
  """[N, H, W, C] -> [N * (H + 2) * (W + 2) * G, C / G], with a ring of zeros around each image."""
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return padded.reshape(-1, x.shape[3] // geometry.deformable_groups)


def _gather_rows(table, rows):
  dimensions = lax.GatherDimensionNumbers(
    offset_dims=(rows.ndim,), collapsed_slice_dims=(0,), start_index_map=(0,)
  )
  return lax.gather(
    table, rows[..., None], dimensions, (1, table.shape[1]), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS
  )


def scatter_add_rows(table: jax.Array, rows: jax.Array, updates: jax.Array) -> jax.Array:
  """Adds updates [..., C / G] to the rows [...] of a table; the transpose of the gather."""
  dimensions = lax.ScatterDimensionNumbers(
    update_window_dims=(rows.ndim,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
  )
  return lax.scatter_add(
    table,
    rows[..., None],
    updates.astype(table.dtype),
    dimensions,
    mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
  )
