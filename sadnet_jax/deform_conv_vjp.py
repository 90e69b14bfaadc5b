"""Deformable convolution and its gradients, block by block.

The output pixels are processed in blocks: gather, blend, one matrix product. Only
one block of the sampled tensor (Kh * Kw times the size of the input) exists at
any time, in the forward pass and in the hand-written backward pass, which gathers
again rather than keep what the forward pass had sampled.

Shapes in this file: p pixels in a block, K taps, G deformable groups.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from sadnet_jax.deform_sampling import Geometry, accumulation_dtype, make_table, sample, scatter_add_rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def deform_conv_by_blocks(
  geometry: Geometry, x: jax.Array, offset: jax.Array, mask: jax.Array | None, kernel: jax.Array
) -> jax.Array:
  """`deform_conv2d` without bias and convolution groups.

  Args:
    geometry: The call's static numbers.
    x: [N, H, W, C], N at least 1.
    offset: [N, Ho, Wo, 2 * G * K].
    mask: [N, Ho, Wo, G * K] or None.
    kernel: [Kh, Kw, C, O], in the dtype of ``x``.

  Returns:
    [N, Ho, Wo, O] in the dtype of ``x``.
  """
  table = make_table(x, geometry)
  weights = _weights(kernel, geometry)

  def block(args):
    pixels, offset_block, mask_block = args
    sampled, _ = sample(table, pixels, offset_block, mask_block, geometry)
    return _dot(sampled.astype(x.dtype).reshape(pixels.size, -1), weights).astype(x.dtype)

  y = lax.map(block, (_pixels(x.shape[0], geometry), *_split(geometry, offset, mask)))
  return _join(y, (x.shape[0], *geometry.output_size, kernel.shape[3]))


def _deform_conv_fwd(geometry, x, offset, mask, kernel):
  return deform_conv_by_blocks(geometry, x, offset, mask, kernel), (x, offset, mask, kernel)


def _deform_conv_bwd(geometry, residuals, dy):
  """Gradients of `deform_conv_by_blocks`, block by block; notation: d<name> = dL/d<name>."""
  x, offset, mask, kernel = residuals
  table = make_table(x, geometry)
  weights = _weights(kernel, geometry)
  accumulate = accumulation_dtype(x.dtype)

  def block(carry, args):
    dtable, dweights = carry
    pixels, offset_block, mask_block, dy_block = args
    sampled, (corners, site) = sample(table, pixels, offset_block, mask_block, geometry)
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
      dtable = scatter_add_rows(dtable, row, dsampled * weight[..., None])
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


def _weights(kernel, geometry):
  """[Kh, Kw, C, O] -> [G * K * C / G, O], rows in the order of the samples."""
  channels, features = kernel.shape[2:]
  g = geometry.deformable_groups
  by_tap = kernel.reshape(geometry.taps, g, channels // g, features)
  return jnp.moveaxis(by_tap, 1, 0).reshape(-1, features)


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
