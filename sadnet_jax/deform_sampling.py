"""Where a deformable convolution samples, and the bilinear samples themselves.

The input is padded with one ring of zeros and read as a table of rows, one row for
each (image, pixel, deformable group). A location is clipped to [-1, H] x [-1, W],
so its four neighbours always lie in the padded table and whatever is outside the
image contributes zero: no validity masks.

Shapes in this file: p pixels in a block, K taps, G deformable groups, S = G * K
samples of a pixel in the order group, then tap; four corners in the order
(y0, x0), (y0, x1), (y1, x0), (y1, x1).
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.deform_geometry import Geometry, accumulation_dtype

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
