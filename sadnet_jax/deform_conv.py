"""Modulated deformable convolution: one pure function and a thin Linen module.

y(p) = b + sum_k w_k . x(p * stride - padding + k * dilation + offset_k(p)) * mask_k(p)

Eq. (3) of SADNet (Chang et al., ECCV 2020), after Dai et al. (ICCV 2017) and
Zhu et al. (CVPR 2019), with the sampling rules of torchvision's operator.

How it is computed. The input is padded with one ring of zeros and read as a
table of rows, one row for each (image, pixel, deformable group). A location is
clipped to [-1, H] x [-1, W], so its four neighbours always lie in the padded
table and whatever is outside the image contributes zero: no validity masks. The
output pixels are then processed in blocks: gather, blend, one matrix product.
Only one block of the sampled tensor (Kh * Kw times the size of the input)
exists at any time, in the forward pass and in the hand-written backward pass,
which gathers again rather than keep what the forward pass had sampled.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

# Bytes of sampled values held at once. On a CPU a block should stay in the
# cache of its core; an accelerator wants few, large blocks.
_BLOCK_BYTES_CPU = 2 * 2**20
_BLOCK_BYTES_ACCELERATOR = 512 * 2**20


class _Geometry(NamedTuple):
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
    return self.kernel_size[0] * self.kernel_size[1]


def deform_conv2d(
  x: jax.Array,
  offset: jax.Array,
  mask: jax.Array | None,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  stride: int | tuple[int, int] = 1,
  padding: int | tuple[int, int] = 0,
  dilation: int | tuple[int, int] = 1,
  groups: int = 1,
  deformable_groups: int = 1,
  block_pixels: int | None = None,
) -> jax.Array:
  """Modulated deformable convolution (SADNet, eq. 3) in NHWC.

  With K = Kh * Kw taps in row-major order and G deformable groups, the channels
  of ``offset`` and ``mask`` are ordered group, then tap, then (dy, dx): channel
  ``2 * (g * K + k)`` is dy, ``2 * (g * K + k) + 1`` is dx, and ``g * K + k`` is
  the modulation. Deformable group g moves input channels
  ``[g * C / G, (g + 1) * C / G)``. Sampling is bilinear, and each of the four
  neighbours outside the image counts as zero: a location in (-1, 0) still blends
  with the border, one at or beyond -1 or H (W) gives zero. Offsets of any size,
  infinities included, give finite values and gradients; a NaN offset spoils what
  depends on it and never reads outside the image.

  Locations and blending weights are computed in float32 (float64 if an input
  is), the products accumulate there too. Differentiable in reverse mode once;
  forward mode is not defined.

  Args:
    x: Input, [N, H, W, C].
    offset: Displacement of every tap in pixels, [N, Ho, Wo, 2 * G * K].
    mask: Modulation of every tap, [N, Ho, Wo, G * K], or None for 1 everywhere
      (the unmodulated operator of Dai et al.).
    kernel: Weights, [Kh, Kw, C / groups, O].
    bias: [O], or None.
    stride: Stride in pixels, one number or (vertical, horizontal).
    padding: Zeros added at both ends, one number or (vertical, horizontal).
    dilation: Distance of the taps in pixels, one number or (vertical,
      horizontal).
    groups: Groups of the convolution; divides C and O.
    deformable_groups: Groups of input channels that move together, G; divides C.
    block_pixels: Output pixels processed at a time; by default chosen so that a
      block of samples fits the processor's cache. Changes memory and speed, not
      the result beyond rounding.

  Returns:
    [N, Ho, Wo, O] in the common dtype of ``x`` and ``kernel``, where
    Ho = (H + 2 * padding - dilation * (Kh - 1) - 1) // stride + 1.

  Raises:
    ValueError: A shape does not fit the others; the message names both.

  Source:
    torchvision ``ops.deform_conv2d`` defines the semantics; there the layout is
    NCHW / OIHW, the order of the offset channels is the same.
  """
  geometry = _check(
    x, offset, mask, kernel, bias, stride, padding, dilation, groups, deformable_groups, block_pixels
  )
  dtype = jnp.result_type(x, kernel)
  n = x.shape[0]
  if n == 0:
    return jnp.zeros((0, *geometry.output_size, kernel.shape[3]), dtype)
  weights = _dense_kernel(kernel.astype(dtype), groups)
  y = _deform_conv(geometry, x.astype(dtype), offset, mask, weights)
  return y if bias is None else y + bias.astype(dtype)


class DeformConv(nn.Module):
  """Linen module around `deform_conv2d`: owns ``kernel`` and ``bias``.

  Attributes:
    features: Output channels O.
    kernel_size: (Kh, Kw).
    stride, padding, dilation, groups, deformable_groups: See `deform_conv2d`.
    use_bias: Whether to add a bias.
    dtype: Computation dtype; None keeps the common dtype of input and weights.
    param_dtype: Dtype of the weights.
    kernel_init: By default uniform(+-1 / sqrt(Kh * Kw * C / groups)), the
      initialisation of the deformable-convolution papers.
    bias_init: By default zeros.
  """

  features: int
  kernel_size: tuple[int, int] = (3, 3)
  stride: int | tuple[int, int] = 1
  padding: int | tuple[int, int] = 1
  dilation: int | tuple[int, int] = 1
  groups: int = 1
  deformable_groups: int = 1
  use_bias: bool = True
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32
  # variance_scaling(1/3, fan_in, uniform) is uniform(+-sqrt(3 * (1/3) / fan_in)).
  kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array, offset: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Shapes as in `deform_conv2d`."""
    kernel_shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
    kernel = self.param('kernel', self.kernel_init, kernel_shape, self.param_dtype)
    bias = self.param('bias', self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
    if self.dtype is not None:
      x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    return deform_conv2d(
      x,
      offset,
      mask,
      kernel,
      bias,
      stride=self.stride,
      padding=self.padding,
      dilation=self.dilation,
      groups=self.groups,
      deformable_groups=self.deformable_groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _deform_conv(geometry, x, offset, mask, kernel):
  table = _table(x, geometry)
  weights = _weights(kernel, geometry)

  def block(args):
    pixels, offset_block, mask_block = args
    sampled, _ = _sample(table, pixels, offset_block, mask_block, geometry)
    return _dot(sampled.astype(x.dtype).reshape(pixels.size, -1), weights).astype(x.dtype)

  y = lax.map(block, (_pixels(x.shape[0], geometry), *_split(geometry, offset, mask)))
  return _join(y, (x.shape[0], *geometry.output_size, kernel.shape[3]))


def _deform_conv_fwd(geometry, x, offset, mask, kernel):
  return _deform_conv(geometry, x, offset, mask, kernel), (x, offset, mask, kernel)


def _deform_conv_bwd(geometry, residuals, dy):
  """Gradients of `_deform_conv`, block by block; notation: d<name> = dL/d<name>."""
  x, offset, mask, kernel = residuals
  table = _table(x, geometry)
  weights = _weights(kernel, geometry)
  accumulate = _accumulation_dtype(x.dtype)

  def block(carry, args):
    dtable, dweights = carry
    pixels, offset_block, mask_block, dy_block = args
    sampled, (corners, site) = _sample(table, pixels, offset_block, mask_block, geometry)
    dweights += _dot(sampled.astype(x.dtype).reshape(pixels.size, -1).T, dy_block)
    dsampled = _dot(dy_block, weights.T).reshape(sampled.shape)

    # What each corner alone would contribute, before blending and modulation.
    d00, d01, d10, d11 = (jnp.sum(dsampled * corner, axis=-1) for corner in corners)
    fy, fx = site.fy, site.fx
    dmask = (1 - fy) * ((1 - fx) * d00 + fx * d01) + fy * ((1 - fx) * d10 + fx * d11)
    dlocation_y = (1 - fx) * (d10 - d00) + fx * (d11 - d01)
    dlocation_x = (1 - fy) * (d01 - d00) + fy * (d11 - d10)
    doffset = jnp.stack([dlocation_y, dlocation_x], axis=-1)
    if mask_block is not None:
      modulation = mask_block.reshape(fy.shape)
      doffset *= modulation[..., None]
      dsampled *= modulation[..., None].astype(dsampled.dtype)
    doffset = jnp.where(site.inside[..., None], doffset, 0)

    for row, weight in zip(site.rows(geometry), site.corner_weights(), strict=True):
      dtable = _scatter_add_rows(dtable, row, dsampled * weight[..., None])
    return (dtable, dweights), (doffset, None if mask_block is None else dmask)

  carry = (jnp.zeros(table.shape, accumulate), jnp.zeros(weights.shape, accumulate))
  blocks = (_pixels(x.shape[0], geometry), *_split(geometry, offset, mask, dy))
  (dtable, dweights), (doffset, dmask) = lax.scan(block, carry, blocks)
  h, w = geometry.image_size
  dx = dtable.reshape(x.shape[0], h + 2, w + 2, x.shape[3])[:, 1:-1, 1:-1]
  g = geometry.deformable_groups
  dkernel = jnp.moveaxis(dweights.reshape(g, geometry.taps, -1, kernel.shape[3]), 1, 0).reshape(kernel.shape)
  return (
    dx.astype(x.dtype),
    _join(doffset, offset.shape).astype(offset.dtype),
    None if mask is None else _join(dmask, mask.shape).astype(mask.dtype),
    dkernel.astype(kernel.dtype),
  )


_deform_conv.defvjp(_deform_conv_fwd, _deform_conv_bwd)


class _Site(NamedTuple):
  """Where a block of pixels samples: [p, G, K] each; rows are of the padded table."""

  row00: jax.Array
  fy: jax.Array
  fx: jax.Array
  inside: jax.Array

  def rows(self, geometry):
    """Rows of the corners (y0, x0), (y0, x1), (y1, x0), (y1, x1)."""
    right = geometry.deformable_groups
    down = (geometry.image_size[1] + 2) * geometry.deformable_groups
    return self.row00, self.row00 + right, self.row00 + down, self.row00 + down + right

  def corner_weights(self):
    fy, fx = self.fy, self.fx
    return (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx


def _locate(pixels, offset_block, geometry) -> _Site:
  """Turns the offsets of a block into table rows and bilinear fractions."""
  (h, w), (ho, wo) = geometry.image_size, geometry.output_size
  g = geometry.deformable_groups
  dtype = _accumulation_dtype(offset_block.dtype)
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
  return _Site(row00, fy, fx, inside_y & inside_x)


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


def _sample(table, pixels, offset_block, mask_block, geometry):
  """Blended, modulated samples of a block.

  Args:
    table: Padded input, [N * (H + 2) * (W + 2) * G, C / G].
    pixels: Flat output pixel numbers, [p].
    offset_block: [p, 2 * G * K].
    mask_block: [p, G * K] or None.
    geometry: The call's static numbers.

  Returns:
    [p, G, K, C / G], and what the backward pass needs: the four corners, each
    of that shape, and the `_Site`.
  """
  site = _locate(pixels, offset_block, geometry)
  corners = [_gather_rows(table, row) for row in site.rows(geometry)]
  v00, v01, v10, v11 = corners
  fy, fx = site.fy[..., None], site.fx[..., None]
  sampled = (1 - fy) * ((1 - fx) * v00 + fx * v01) + fy * ((1 - fx) * v10 + fx * v11)
  if mask_block is not None:
    sampled *= mask_block.reshape(site.fy.shape)[..., None]
  return sampled, (corners, site)


def _table(x, geometry):
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return padded.reshape(-1, x.shape[3] // geometry.deformable_groups)


def _dense_kernel(kernel, groups):
  """Grouped kernel [Kh, Kw, C / groups, O] as [Kh, Kw, C, O] with zeros between groups.

  The product is a small part of the cost (the sampling dominates), so groups are
  not worth a path of their own.
  """
  if groups == 1:
    return kernel
  kh, kw, channels, features = kernel.shape
  grouped = kernel.reshape(kh, kw, 1, channels, groups, features // groups)
  diagonal = jnp.eye(groups, dtype=kernel.dtype)[:, None, :, None]
  return (grouped * diagonal).reshape(kh, kw, groups * channels, features)


def _weights(kernel, geometry):
  """[Kh, Kw, C, O] -> [G * K * C / G, O], rows in the order of the samples."""
  channels, features = kernel.shape[2:]
  g = geometry.deformable_groups
  by_tap = kernel.reshape(geometry.taps, g, channels // g, features)
  return jnp.moveaxis(by_tap, 1, 0).reshape(-1, features)


def _dot(a, b):
  dtype = _accumulation_dtype(jnp.result_type(a, b))
  return jnp.dot(a, b, preferred_element_type=dtype)


def _accumulation_dtype(dtype):
  return jnp.promote_types(dtype, jnp.float32)


def _gather_rows(table, rows):
  dimensions = lax.GatherDimensionNumbers(
    offset_dims=(rows.ndim,), collapsed_slice_dims=(0,), start_index_map=(0,)
  )
  return lax.gather(
    table, rows[..., None], dimensions, (1, table.shape[1]), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS
  )


def _scatter_add_rows(table, rows, updates):
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


def _pixels(n, geometry):
  """Flat output pixel numbers in blocks, [blocks, p]; padding repeats the last."""
  total = n * geometry.output_size[0] * geometry.output_size[1]
  blocks = -(-total // geometry.block_pixels)
  numbers = jnp.arange(blocks * geometry.block_pixels, dtype=jnp.int32)
  return jnp.minimum(numbers, total - 1).reshape(blocks, geometry.block_pixels)


def _split(geometry, *arrays):
  """[N, Ho, Wo, c] -> [blocks, p, c], filled up with zeros; None stays None."""
  return tuple(None if a is None else _split_one(a, geometry.block_pixels) for a in arrays)


def _split_one(array, block_pixels):
  flat = array.reshape(-1, array.shape[-1])
  fill = -flat.shape[0] % block_pixels
  if fill:
    flat = jnp.pad(flat, ((0, fill), (0, 0)))
  return flat.reshape(-1, block_pixels, array.shape[-1])


def _join(blocks, shape):
  flat = blocks.reshape(-1, shape[-1])
  return flat[: shape[0] * shape[1] * shape[2]].reshape(shape)


def _block_pixels(total: int, bytes_per_pixel: int) -> int:
  """Pixels per block: near the byte budget, dividing the total where it can.

  A divisor avoids copying offset and mask to fill up the last block.
  """
  budget = _BLOCK_BYTES_CPU if jax.default_backend() == 'cpu' else _BLOCK_BYTES_ACCELERATOR
  limit = max(1, min(total, budget // bytes_per_pixel))
  for blocks in range(-(-total // limit), 2 * -(-total // limit) + 1):
    if total % blocks == 0:
      return total // blocks
  return -(-total // (-(-total // limit)))


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
  pair = (value, value) if isinstance(value, int) else tuple(value)
  if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
    raise ValueError(f'{name}: got {value!r}, want an int or a pair of ints, each at least {least}')
  return pair


def _check(x, offset, mask, kernel, bias, stride, padding, dilation, groups, deformable_groups, block_pixels):
  """Checks every shape and returns the static numbers of the call."""
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
      if value < 1 or number % value:
        raise ValueError(f'{name}: got {value}, want a divisor of the {number} {what}')
  if kernel_c * groups != c:
    raise ValueError(
      f'kernel: got {kernel_c} input channels per group, want {c // groups} = {c} channels of x / {groups} groups'
    )
  stride, padding = _pair('stride', stride, 1), _pair('padding', padding, 0)
  dilation = _pair('dilation', dilation, 1)
  ho, wo = (
    (size + 2 * p - d * (k - 1) - 1) // s + 1
    for size, p, d, k, s in zip((h, w), padding, dilation, (kh, kw), stride, strict=True)
  )
  if min(h, w, ho, wo, kh, kw, c) < 1:
    raise ValueError(
      f'x: got shape {x.shape}, too small for kernel {kh}x{kw}, stride {stride}, padding {padding}, '
      f'dilation {dilation}: the output would be {ho}x{wo}'
    )
  wanted = {
    'offset': (offset, (n, ho, wo, 2 * deformable_groups * kh * kw)),
    'mask': (mask, (n, ho, wo, deformable_groups * kh * kw)),
    'bias': (bias, (features,)),
  }
  for name, (array, shape) in wanted.items():
    if array is not None and array.shape != shape:
      raise ValueError(
        f'{name}: got shape {array.shape}, want {shape} for x {x.shape}, kernel {kernel.shape}, stride {stride}, '
        f'padding {padding}, dilation {dilation}, deformable_groups {deformable_groups}'
      )
  rows = n * (h + 2) * (w + 2) * deformable_groups
  if rows >= 2**31:
    raise ValueError(f'x: got shape {x.shape}, {rows} rows to sample from, want fewer than 2**31: use tiles')
  total = n * ho * wo
  if block_pixels is None and total:
    block_pixels = _block_pixels(total, kh * kw * c * _accumulation_dtype(x.dtype).itemsize)
  elif block_pixels is not None and block_pixels < 1:
    raise ValueError(f'block_pixels: got {block_pixels}, want at least 1')
  return _Geometry(
    kernel_size=(kh, kw),
    stride=stride,
    padding=padding,
    dilation=dilation,
    deformable_groups=deformable_groups,
    image_size=(h, w),
    output_size=(ho, wo),
    block_pixels=block_pixels or 1,
  )
