"""Where a deformable convolution samples, and the bilinear samples themselves.

The input is padded with one ring of zeros and read as a table of rows, one row for
each (image, pixel, deformable group). A location is clipped to [-1, H] x [-1, W],
so its four neighbours always lie in the padded table and whatever is outside the
image contributes zero: no validity masks.

Shapes in this file: p pixels in a block, K taps, G deformable groups.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp


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

  @property
  def taps(self) -> int:
    """K = Kh * Kw."""
    return self.kernel_size[0] * self.kernel_size[1]


class Site(NamedTuple):
  """Where a block of pixels samples: [p, G, K] each; rows are of the padded table."""

  row00: jax.Array
  fy: jax.Array
  fx: jax.Array
  inside: jax.Array

  def rows(self, geometry: Geometry) -> tuple[jax.Array, ...]:
    """Rows of the corners (y0, x0), (y0, x1), (y1, x0), (y1, x1)."""
    right = geometry.deformable_groups
    down = (geometry.image_size[1] + 2) * geometry.deformable_groups
    return self.row00, self.row00 + right, self.row00 + down, self.row00 + down + right

  def corner_weights(self) -> tuple[jax.Array, ...]:
    """Bilinear weights of the corners, in the order of `rows`."""
    fy, fx = self.fy, self.fx
    return (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx


def _locate(pixels, offset_block, geometry) -> Site:
  """Turns the offsets of a block into table rows and bilinear fractions."""
  (h, w), (ho, wo) = geometry.image_size, geometry.output_size
  g = geometry.deformable_groups
  dtype = accumulation_dtype(offset_block.dtype)
  image, pixel = pixels // (ho * wo), pixels % (ho * wo)
  tap = jnp.arange(geometry.taps, dtype=jnp.int32)
  tap_y, tap_x = tap // geometry.kernel_size[1], tap % geometry.kernel_size[1]
  base_y = _tap_position(pixel // wo, tap_y, 0, geometry).astype(dtype)
  base_x = _tap_position(pixel % wo, tap_x, 1, geometry).astype(dtype)

  offset_block = offset_block.reshape(-1, g, geometry.taps, 2).astype(dtype)
  row_y, fy, inside_y = _locate_axis(base_y + offset_block[..., 0], h)
  row_x, fx, inside_x = _locate_axis(base_x + offset_block[..., 1], w)
  pixel_row = (image[:, None, None] * (h + 2) + row_y) * (w + 2) + row_x
  row00 = pixel_row * g + jnp.arange(g, dtype=jnp.int32)[:, None]
  return Site(row00, fy, fx, inside_y & inside_x)


def _tap_position(position, tap, axis, geometry):
  """Where the regular convolution samples, [p, 1, K]."""
  start = position * geometry.stride[axis] - geometry.padding[axis]
  return start[:, None, None] + tap * geometry.dilation[axis]


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


def sample(
  table: jax.Array,
  pixels: jax.Array,
  offset_block: jax.Array,
  mask_block: jax.Array | None,
  geometry: Geometry,
) -> tuple[jax.Array, tuple[list[jax.Array], Site]]:
  """Blended, modulated samples of a block.

  Args:
    table: Padded input, [N * (H + 2) * (W + 2) * G, C / G].
    pixels: Flat output pixel numbers, [p].
    offset_block: [p, 2 * G * K].
    mask_block: [p, G * K] or None.
    geometry: The call's static numbers.

  Returns:
    [p, G, K, C / G], and what the backward pass needs: the four corners, each
    of that shape, and the `Site`.
  """
  site = _locate(pixels, offset_block, geometry)
  corners = [_gather_rows(table, row) for row in site.rows(geometry)]
  v00, v01, v10, v11 = corners
  fy, fx = site.fy[..., None], site.fx[..., None]
  sampled = (1 - fy) * ((1 - fx) * v00 + fx * v01) + fy * ((1 - fx) * v10 + fx * v11)
  if mask_block is not None:
    sampled *= mask_block.reshape(site.fy.shape)[..., None]
  return sampled, (corners, site)


def make_table(x: jax.Array, geometry: Geometry) -> jax.Array:
  """[N, H, W, C] -> [N * (H + 2) * (W + 2) * G, C / G], with a ring of zeros around each image."""
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return padded.reshape(-1, x.shape[3] // geometry.deformable_groups)


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """At least float32: the dtype of locations, blending and sums."""
  return jnp.promote_types(dtype, jnp.float32)


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
