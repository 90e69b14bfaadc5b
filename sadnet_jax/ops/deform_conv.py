"""Modulated deformable convolution: one pure function and a thin Linen module.

y(p) = b + sum_k w_k . x(p * stride - padding + k * dilation + offset_k(p)) * mask_k(p)

Eq. (3) of SADNet (Chang et al., ECCV 2020), after Dai et al. (ICCV 2017) and
Zhu et al. (CVPR 2019), with the sampling rules of torchvision's operator. This
file has what users call; `deform_conv_vjp` computes it and its gradients,
`deform_sampling` says where it samples.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from sadnet_jax.ops.platform import accumulation_dtype
from sadnet_jax.ops.sampling import (
  Geometry,
  Site,
  blend,
  checked_geometry,
  corner_products,
  locate,
  make_table,
  scatter_add_rows,
)


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

  Locations and blending weights are computed in float32 (float64 if ``offset``
  is), products accumulate in float32 (float64 if ``x`` or ``kernel`` is).
  Differentiable in reverse mode, once; forward mode is not defined.

  Args:
    x: Input, [N, H, W, C], finite.
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
    block_pixels: Output pixels processed at a time; by default chosen for the
      backend that JAX uses by default (see `deform_geometry.blocks_for`), on a CPU so that a block
      of samples fits the cache. Changes memory and speed, not the result beyond
      rounding.

  Returns:
    [N, Ho, Wo, O] in the common dtype of ``x`` and ``kernel``, where
    Ho = (H + 2 * padding - dilation * (Kh - 1) - 1) // stride + 1.

  Raises:
    ValueError: A shape does not fit the others, an option is out of range, or an
      array is not floating point; the message says what was got and wanted.

  Source:
    torchvision ``ops.deform_conv2d`` defines the semantics; there the layout is
    NCHW / OIHW, the order of the offset channels is the same.
  """
  moved = {'offset': offset, 'mask': mask}
  geometry = checked_geometry(
    x, moved, kernel, bias, stride, padding, dilation, groups, deformable_groups, block_pixels
  )
  dtype = jnp.result_type(x, kernel)
  n = x.shape[0]
  if n == 0:
    return jnp.zeros((0, *geometry.output_size, kernel.shape[3]), dtype)
  weights = _dense_kernel(kernel.astype(dtype), groups)
  return with_bias(deform_conv_by_blocks(geometry, x.astype(dtype), offset, mask, weights), bias)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def deform_conv_by_blocks(
  geometry: Geometry, x: jax.Array, offset: jax.Array, mask: jax.Array | None, kernel: jax.Array
) -> jax.Array:
  """`deform_conv2d` without bias and convolution groups.

  Args:
    geometry: The call's static numbers.
    x: [N, H, W, C], N at least 1.
    offset: [N, Ho, Wo, 2 * S]; or [N, Ho, Wo, 3 * S] and no ``mask``, if after the
      offsets come the modulations before their sigmoid.
    mask: [N, Ho, Wo, S] or None.
    kernel: [Kh, Kw, C, O], in the dtype of ``x``.

  Returns:
    [N, Ho, Wo, O] in the dtype of ``x``.
  """
  table = make_table(x, geometry)
  weights = weights_by_sample(kernel, geometry)

  def block(args):
    pixels, offset_block, mask_block = args
    moved = functools.partial(_offset_and_modulation, geometry, offset_block, mask_block)
    return deform_conv_block(geometry, table, weights, pixels, moved)

  y = lax.map(block, (_pixels(x.shape[0], geometry), *_split(geometry, offset, mask)))
  return _join(y, (x.shape[0], *geometry.output_size, kernel.shape[3]))


def deform_conv_block(
  geometry: Geometry,
  table: jax.Array,
  weights: jax.Array,
  pixels: jax.Array,
  moved: Callable[[], tuple[jax.Array, jax.Array | None]],
) -> jax.Array:
  """The output of some pixels.

  Args:
    geometry: The call's static numbers.
    table: See `deform_sampling.make_table`.
    weights: See `weights_by_sample`.
    pixels: Flat output pixel numbers, [p].
    moved: Gives the offsets [p, 2 * S] and the modulation [p, S] or None of these pixels; what it
      computes is merged into the loop that locates.

  Returns:
    [p, O] in the dtype of ``table``.
  """

  def where():
    offset, modulation = moved()
    site = locate(pixels, offset, geometry)
    return site.row, site.fy, site.fx, modulation

  row, fy, fx, modulation = _apart(geometry, pixels, where)
  sampled = _apart(geometry, pixels, lambda: blend(table, row, fy, fx, modulation, geometry))
  return _dot(sampled.astype(table.dtype).reshape(pixels.size, -1), weights).astype(table.dtype)


def _deform_conv_fwd(geometry, x, offset, mask, kernel):
  return deform_conv_by_blocks(geometry, x, offset, mask, kernel), (x, offset, mask, kernel)


def _deform_conv_bwd(geometry, residuals, dy):
  """Gradients of `deform_conv_by_blocks`, block by block; notation: d<name> = dL/d<name>."""
  x, offset, mask, kernel = residuals
  table = make_table(x, geometry)
  weights = weights_by_sample(kernel, geometry)
  accumulate = accumulation_dtype(x.dtype)

  def block(carry, args):
    dtable, dweights = carry
    pixels, offset_block, mask_block, dy_block = args
    apart = functools.partial(_apart, geometry, pixels)

    site, modulation = apart(lambda: _locate_and_modulate(geometry, pixels, offset_block, mask_block))
    sampled = apart(lambda: blend(table, site.row, site.fy, site.fx, modulation, geometry))
    dweights += _dot(sampled.astype(x.dtype).reshape(pixels.size, -1).T, dy_block)
    dsampled = _dot(dy_block, weights.T).reshape(sampled.shape)

    products = apart(lambda: corner_products(table, site.row, dsampled, geometry))
    doffset, dmask = apart(lambda: _doffset_and_dmask(site, modulation, products))
    if mask_block is None and modulation is not None:
      dlogit = dmask * modulation * (1 - modulation)
      doffset, dmask = jnp.concatenate([doffset, dlogit], axis=-1), None

    for step, weight in zip(geometry.corner_steps, site.corner_weights(), strict=True):
      factor = weight if modulation is None else weight * modulation
      updates = apart(functools.partial(_scaled, dsampled, factor))
      dtable = scatter_add_rows(dtable, site.row + step, updates)
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


deform_conv_by_blocks.defvjp(_deform_conv_fwd, _deform_conv_bwd)


def _apart(geometry: Geometry, pixels: jax.Array, function: Callable[[], Any]) -> Any:
  """Calls a function; on a CPU so that XLA does not merge its loops with others.

  XLA merges across anything but the boundary of a computation (it drops
  `lax.optimization_barrier` before), and it does not know that no pixel number is
  negative. On an accelerator a conditional would wait for the device.
  """
  if not geometry.split_loops:
    return function()
  shapes = jax.eval_shape(function)
  return lax.cond(
    pixels[0] >= 0, function, lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  )


def _locate_and_modulate(geometry, pixels, offset_block, mask_block) -> tuple[Site, jax.Array | None]:
  """Where a block samples, and its modulation [p, S] or None."""
  offset, modulation = _offset_and_modulation(geometry, offset_block, mask_block)
  return locate(pixels, offset, geometry), modulation


def _offset_and_modulation(geometry, offset_block, mask_block):
  """Offsets [p, 2 * S] and modulation [p, S] or None, of what `deform_conv_by_blocks` takes."""
  offsets = 2 * geometry.samples
  if offset_block.shape[1] == offsets:
    return offset_block, mask_block
  return offset_block[:, :offsets], modulation_of(offset_block[:, offsets:])


def modulation_of(logits: jax.Array) -> jax.Array:
  """The sigmoid, in at least float32."""
  return jax.nn.sigmoid(logits.astype(accumulation_dtype(logits.dtype)))


def _scaled(dsampled, factor):
  return dsampled * factor[..., None]


def _doffset_and_dmask(site, modulation, products):
  """Gradients of the offsets [p, 2 * S] and of the modulation [p, S]."""
  d00, d01, d10, d11 = products
  fy, fx = site.fy, site.fx
  dmask = (1 - fy) * ((1 - fx) * d00 + fx * d01) + fy * ((1 - fx) * d10 + fx * d11)
  dlocation_y = (1 - fx) * (d10 - d00) + fx * (d11 - d01)
  dlocation_x = (1 - fy) * (d01 - d00) + fy * (d11 - d10)
  dlocation = jnp.stack([dlocation_y, dlocation_x], axis=-1)
  if modulation is not None:
    dlocation *= modulation[..., None]
  doffset = jnp.where(site.inside[..., None], dlocation, 0)
  return doffset.reshape(doffset.shape[0], -1), dmask


def weights_by_sample(kernel: jax.Array, geometry: Geometry) -> jax.Array:
  """[Kh, Kw, C, O] -> [S * C / G, O], rows in the order of the samples."""
  channels, features = kernel.shape[2:]
  g = geometry.deformable_groups
  by_tap = kernel.reshape(geometry.taps, g, channels // g, features)
  return jnp.moveaxis(by_tap, 1, 0).reshape(-1, features)


def with_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
  """y [..., O] + bias [O] or None, in the dtype of y; added and its gradient summed in at least float32."""
  if bias is None:
    return y
  wide = accumulation_dtype(y.dtype)
  return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)


def _dot(a, b):
  dtype = accumulation_dtype(jnp.result_type(a, b))
  return jnp.dot(a, b, preferred_element_type=dtype)


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
  blocks = -(-flat.shape[0] // block_pixels)
  fill = blocks * block_pixels - flat.shape[0]
  # A symbolic number is not 0 either.
  if fill != 0:
    flat = jnp.pad(flat, ((0, fill), (0, 0)))
  return flat.reshape(blocks, block_pixels, array.shape[-1])


def _join(blocks, shape):
  flat = blocks.reshape(-1, shape[-1])
  return flat[: shape[0] * shape[1] * shape[2]].reshape(shape)
