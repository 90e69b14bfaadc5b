"""Modulated deformable convolution with a hand-written backward pass.

  y(p) = b + sum_k w_k . x(p * stride - padding + k * dilation + offset_k(p)) * mask_k(p)

This is eq. (3) of SADNet (Chang et al., ECCV 2020), after Dai et al. (ICCV 2017) and Zhu et
al. (CVPR 2019), with the sampling rules of torchvision's operator.

How it is computed: the samples x(...) * mask of all taps are Kh * Kw times as large as x.
Instead of storing them, the output pixels are processed in blocks. Each block locates its
samples, gathers and blends them (see `sampling`), and multiplies them by the kernel, one matrix
product [p, S * C / G] @ [S * C / G, O]. The samples of a block fit in the cache.

The backward pass works on the same blocks and samples again. JAX's own differentiation of the
loop would store the samples of all blocks, which is the memory that the blocks save; hence
`jax.custom_vjp`.

On a CPU `fusion_barrier` keeps XLA from merging the steps of a block.

Shapes: p pixels in a block, K = Kh * Kw taps, G deformable groups, S = G * K samples per pixel.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp

from sadnet_jax.ops.platform import accumulation_dtype, fusion_barrier
from sadnet_jax.ops.promotion import usual_promotion
from sadnet_jax.ops.sampling import (
  ConvSpec,
  SampleLocations,
  blend,
  check_arguments,
  corner_products,
  locate,
  make_table,
  rows_to_add_to,
  scatter_add_rows,
)

T = TypeVar('T')


@usual_promotion()
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
  of ``offset`` and ``mask`` are ordered by group, then tap, then (dy, dx): channel
  ``2 * (g * K + k)`` is dy, ``2 * (g * K + k) + 1`` is dx, and ``g * K + k`` is
  the modulation. Deformable group g moves input channels
  ``[g * C / G, (g + 1) * C / G)``. Sampling is bilinear, and each of the four
  neighbours outside the image counts as zero: a location in (-1, 0) still blends
  with the border, one at or beyond -1 or H (W) gives zero. Offsets of any size,
  including infinity, give finite values and gradients. A NaN offset makes everything
  that depends on it NaN, but never reads outside the image.

  Locations and blending weights are computed in float32 (float64 if ``offset``
  is), products accumulate in float32 (float64 if ``x`` or ``kernel`` is).
  Differentiable in reverse mode, also twice (`jax.grad` of `jax.grad`), which stores the samples of
  all blocks; forward mode, and with it `jax.hessian`, is not supported.

  Args:
    x: Input, [N, H, W, C], finite.
    offset: Displacement of every tap in pixels, [N, Ho, Wo, 2 * G * K].
    mask: Modulation of every tap, [N, Ho, Wo, G * K], or None for 1 everywhere
      (the unmodulated operator of Dai et al.).
    kernel: Weights, [Kh, Kw, C / groups, O].
    bias: [O], or None.
    stride: Stride in pixels, one number or (vertical, horizontal).
    padding: Zeros added at both ends, one number or (vertical, horizontal).
    dilation: Distance between taps in pixels, one number or (vertical, horizontal).
    groups: Groups of the convolution; divides C and O.
    deformable_groups: Groups of input channels that move together, G; divides C.
    block_pixels: Output pixels processed at a time. By default chosen for the
      platform (see `platform.target_platform`); on a CPU so that a block of samples fits
      in the cache. Changes memory and speed, and the result only by rounding.

  Returns:
    [N, Ho, Wo, O] in the common dtype of ``x`` and ``kernel``, where
    Ho = (H + 2 * padding - dilation * (Kh - 1) - 1) // stride + 1.

  Raises:
    ValueError: A shape does not fit the others, an option is out of range, or an
      array is not floating point.

  Source:
    torchvision ``ops.deform_conv2d`` defines the semantics; its layout is
    NCHW / OIHW, its order of the offset channels is the same.
  """
  spec = check_arguments(
    x,
    kernel,
    bias,
    {'offset': (offset, 2), 'mask': (mask, 1)},
    stride=stride,
    padding=padding,
    dilation=dilation,
    groups=groups,
    deformable_groups=deformable_groups,
    block_pixels=block_pixels,
  )
  return _deform_conv2d(spec, x, OffsetAndMask(offset, mask), kernel, bias, groups)


@usual_promotion()
def deform_conv2d_packed(
  x: jax.Array,
  offset_mask: jax.Array,
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
  """`deform_conv2d` with offsets and mask logits packed in one array, as one convolution predicts them.

  Equivalent to splitting ``offset_mask`` and applying the sigmoid first, but the two
  arrays are never stored: each block splits its own part.

  Args:
    x: Input, [N, H, W, C], finite.
    offset_mask: [N, Ho, Wo, 3 * G * K]: first the offsets, 2 * G * K channels in the order of
      `deform_conv2d`, then the logits of the mask, G * K channels; mask = sigmoid(logits).
    kernel, bias, stride, padding, dilation, groups, deformable_groups, block_pixels: As in
      `deform_conv2d`.

  Returns:
    As `deform_conv2d`.

  Raises:
    ValueError: As `deform_conv2d`.
  """
  spec = check_arguments(
    x,
    kernel,
    bias,
    {'offset_mask': (offset_mask, 3)},
    stride=stride,
    padding=padding,
    dilation=dilation,
    groups=groups,
    deformable_groups=deformable_groups,
    block_pixels=block_pixels,
  )
  return _deform_conv2d(spec, x, PackedOffsetMask(offset_mask), kernel, bias, groups)


class OffsetAndMask(NamedTuple):
  """Offsets [..., 2 * S] and mask [..., S] (or None for ones) in two arrays.

  This and `PackedOffsetMask` are the two forms of an operator's input that say where and how much
  to sample; gradients have the form of what they belong to.
  """

  offset: jax.Array
  mask: jax.Array | None

  def unpack(self) -> tuple[jax.Array, jax.Array | None]:
    """Offsets [..., 2 * S] and mask [..., S] or None."""
    return self.offset, self.mask

  def gradient(self, doffset: jax.Array, dmask: jax.Array, _: jax.Array | None) -> 'OffsetAndMask':
    """The gradient in this form, from those of what `unpack` returns."""
    return OffsetAndMask(doffset, None if self.mask is None else dmask)


class PackedOffsetMask(NamedTuple):
  """Offsets and the mask's logits in one array [..., 3 * S], see `deform_conv2d_packed`."""

  offset_mask: jax.Array

  def unpack(self) -> tuple[jax.Array, jax.Array]:
    """Offsets [..., 2 * S] and mask [..., S]."""
    offsets = self.offset_mask.shape[-1] // 3 * 2
    return self.offset_mask[..., :offsets], mask_from_logits(self.offset_mask[..., offsets:])

  def gradient(self, doffset: jax.Array, dmask: jax.Array, mask: jax.Array) -> 'PackedOffsetMask':
    """The gradient in this form, from those of what `unpack` returns, and the mask itself."""
    dlogits = dmask * mask * (1 - mask)
    return PackedOffsetMask(jnp.concatenate([doffset, dlogits], axis=-1))


def mask_from_logits(logits: jax.Array) -> jax.Array:
  """The sigmoid, computed and returned in at least float32."""
  return jax.nn.sigmoid(logits.astype(accumulation_dtype(logits.dtype)))


def _deform_conv2d(spec, x, offset_and_mask, kernel, bias, groups):
  dtype = jnp.result_type(x, kernel)
  if x.shape[0] == 0:
    return jnp.zeros((0, *spec.output_size, kernel.shape[3]), dtype)
  kernel = _dense_kernel(kernel.astype(dtype), groups)
  return add_output_bias(deform_conv_by_blocks(spec, x.astype(dtype), offset_and_mask, kernel), bias)


def _dense_kernel(kernel, groups):
  """Grouped kernel [Kh, Kw, C / groups, O] as [Kh, Kw, C, O] with zeros between groups.

  Sampling dominates the cost and the product is a small part of it, so groups are not worth an
  algorithm of their own.
  """
  if groups == 1:
    return kernel
  kh, kw, channels, features = kernel.shape
  grouped = kernel.reshape(kh, kw, 1, channels, groups, features // groups)
  diagonal = jnp.eye(groups, dtype=kernel.dtype)[:, None, :, None]
  return (grouped * diagonal).reshape(kh, kw, groups * channels, features)


def add_output_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
  """Adds a bias [O] or None to y [..., O]; result in the dtype of y, sums in at least float32.

  Unlike `conv.add_bias`, which rounds the bias to the dtype of y before it adds.
  """
  if bias is None:
    return y
  wide = accumulation_dtype(y.dtype)
  return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)


# --- Forward pass, block by block.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@usual_promotion()
def deform_conv_by_blocks(
  spec: ConvSpec, x: jax.Array, offset_and_mask: OffsetAndMask | PackedOffsetMask, kernel: jax.Array
) -> jax.Array:
  """The operator without bias and convolution groups, on checked arguments.

  Args:
    spec: The call's static parameters.
    x: [N, H, W, C], N at least 1.
    offset_and_mask: Of [N, Ho, Wo, ...].
    kernel: [Kh, Kw, C, O], in the dtype of ``x``.

  Returns:
    [N, Ho, Wo, O] in the dtype of ``x``.
  """
  table = make_table(x, spec)
  weights = weights_by_sample(kernel, spec)

  def block(args):
    pixels, offset_and_mask_block = args
    return deform_conv_block(spec, table, weights, pixels, offset_and_mask_block.unpack)

  y = lax.map(block, (_pixels(x.shape[0], spec), _split_into_blocks(spec, offset_and_mask)))
  return _join_blocks(y, (x.shape[0], *spec.output_size, kernel.shape[3]))


def deform_conv_block(
  spec: ConvSpec,
  table: jax.Array,
  weights: jax.Array,
  pixels: jax.Array,
  offset_and_mask: Callable[[], tuple[jax.Array, jax.Array | None]],
) -> jax.Array:
  """The output of one block of pixels.

  Args:
    spec: The call's static parameters.
    table: See `sampling.make_table`.
    weights: See `weights_by_sample`.
    pixels: Flat indices of the output pixels, [p].
    offset_and_mask: Returns the offsets [p, 2 * S] and the mask [p, S] or None of these pixels.
      What it computes is fused with locating the samples.

  Returns:
    [p, O] in the dtype of ``table``.
  """

  def locate_samples():
    offset, mask = offset_and_mask()
    at = locate(pixels, offset, spec)
    return at.row, at.fy, at.fx, mask

  row, fy, fx, mask = _block_barrier(spec, pixels, locate_samples)
  sampled = _block_barrier(spec, pixels, lambda: blend(table, row, fy, fx, mask, spec))
  return _dot(sampled.astype(table.dtype).reshape(pixels.size, -1), weights).astype(table.dtype)


def _block_barrier(spec: ConvSpec, pixels: jax.Array, function: Callable[[], T]) -> T:
  """`fusion_barrier` for a step of a block, if the call's arrays are large enough for barriers.

  Without it, XLA fuses the steps of a block (locate, gather and blend, ...) into one loop over channels,
  which recomputes the location of a sample for every channel; at 32 channels the forward pass takes about
  three times as long and the backward pass twice. XLA does not know that pixel indices are never negative.

  Args:
    spec: The call's static parameters.
    pixels: Flat indices of the output pixels, [p].
    function: Returns a pytree of arrays.
  """
  return fusion_barrier(pixels[0] >= 0, function) if spec.fusion_barriers else function()


def weights_by_sample(kernel: jax.Array, spec: ConvSpec) -> jax.Array:
  """[Kh, Kw, C, O] -> [S * C / G, O], rows in the order of the samples."""
  channels, features = kernel.shape[2:]
  g = spec.deformable_groups
  by_tap = kernel.reshape(spec.taps, g, channels // g, features)
  return jnp.moveaxis(by_tap, 1, 0).reshape(-1, features)


def _dot(a, b):
  dtype = accumulation_dtype(jnp.result_type(a, b))
  return jnp.dot(a, b, preferred_element_type=dtype)


def _pixels(n, spec):
  """Flat indices of the output pixels in blocks, [blocks, p]; the last block repeats the last pixel."""
  total = n * spec.output_size[0] * spec.output_size[1]
  blocks = -(-total // spec.block_pixels)
  indices = jnp.arange(blocks * spec.block_pixels, dtype=jnp.int32)
  return jnp.minimum(indices, total - 1).reshape(blocks, spec.block_pixels)


def _split_into_blocks(spec, arrays):
  """[N, Ho, Wo, c] -> [blocks, p, c] for every array of a pytree, padded with zeros."""
  return jax.tree.map(lambda array: _split_one(array, spec.block_pixels), arrays)


def _split_one(array, block_pixels):
  flat = array.reshape(-1, array.shape[-1])
  blocks = -(-flat.shape[0] // block_pixels)
  padding = blocks * block_pixels - flat.shape[0]
  # True for a symbolic size, too.
  if padding != 0:
    flat = jnp.pad(flat, ((0, padding), (0, 0)))
  return flat.reshape(blocks, block_pixels, array.shape[-1])


def _join_blocks(blocks, shape):
  """[blocks, p, c] -> [N, Ho, Wo, c]."""
  flat = blocks.reshape(-1, shape[-1])
  return flat[: shape[0] * shape[1] * shape[2]].reshape(shape)


# --- Backward pass, on the same blocks. Notation: d<name> = dL/d<name>.


@usual_promotion()
def _forward(spec, x, offset_and_mask, kernel):
  return deform_conv_by_blocks(spec, x, offset_and_mask, kernel), (x, offset_and_mask, kernel)


@usual_promotion()
def _backward(spec, residuals, dy):
  """Gradients of `deform_conv_by_blocks` for x, offset_and_mask and kernel."""
  x, offset_and_mask, kernel = residuals
  table = make_table(x, spec)
  weights = weights_by_sample(kernel, spec)

  def block(carry, args):
    dtable, dweights = carry
    pixels, offset_and_mask_block, dy_block = args
    barrier = functools.partial(_block_barrier, spec, pixels)

    def locate_samples():
      offset, mask = offset_and_mask_block.unpack()
      return locate(pixels, offset, spec), mask

    at, mask = barrier(locate_samples)
    sampled = barrier(lambda: blend(table, at.row, at.fy, at.fx, mask, spec))
    dweights += _dot(sampled.astype(x.dtype).reshape(pixels.size, -1).T, dy_block)
    dsampled = _dot(dy_block, weights.T).reshape(sampled.shape)

    products = barrier(lambda: corner_products(table, at.row, dsampled, spec))
    doffset, dmask = barrier(lambda: _doffset_and_dmask(at, mask, products))

    rows = rows_to_add_to(at, spec)
    for step, weight in zip(spec.corner_steps, at.corner_weights(), strict=True):
      factor = weight if mask is None else weight * mask
      updates = barrier(functools.partial(_scale, dsampled, factor))
      dtable = scatter_add_rows(dtable, rows + step, updates)
    return (dtable, dweights), offset_and_mask_block.gradient(doffset, dmask, mask)

  accumulate = accumulation_dtype(x.dtype)
  carry = (jnp.zeros(table.shape, accumulate), jnp.zeros(weights.shape, accumulate))
  blocks = (_pixels(x.shape[0], spec), *_split_into_blocks(spec, (offset_and_mask, dy)))
  (dtable, dweights), doffset_and_mask = lax.scan(block, carry, blocks)
  return (
    _image_from_table(dtable, x.shape).astype(x.dtype),
    jax.tree.map(lambda d, a: _join_blocks(d, a.shape).astype(a.dtype), doffset_and_mask, offset_and_mask),
    _kernel_from_weights(dweights, kernel.shape, spec).astype(kernel.dtype),
  )


deform_conv_by_blocks.defvjp(_forward, _backward)


def _doffset_and_dmask(at: SampleLocations, mask, products):
  """Gradients of the offsets [p, 2 * S] and of the mask [p, S]."""
  d00, d01, d10, d11 = products
  fy, fx = at.fy, at.fx
  dmask = (1 - fy) * ((1 - fx) * d00 + fx * d01) + fy * ((1 - fx) * d10 + fx * d11)
  dlocation_y = (1 - fx) * (d10 - d00) + fx * (d11 - d01)
  dlocation_x = (1 - fy) * (d01 - d00) + fy * (d11 - d10)
  dlocation = jnp.stack([dlocation_y, dlocation_x], axis=-1)
  if mask is not None:
    dlocation *= mask[..., None]
  # Zero, but NaN where the location is.
  outside = 0 * (fy + fx)[..., None]
  doffset = jnp.where(at.inside[..., None], dlocation, outside)
  return doffset.reshape(doffset.shape[0], -1), dmask


def _scale(dsampled, factor):
  return dsampled * factor[..., None]


def _image_from_table(table, shape):
  """Inverse of `sampling.make_table`: removes the ring of zeros."""
  n, h, w, c = shape
  return table.reshape(n, h + 2, w + 2, c)[:, 1:-1, 1:-1]


def _kernel_from_weights(weights, shape, spec):
  """Inverse of `weights_by_sample`."""
  by_group = weights.reshape(spec.deformable_groups, spec.taps, -1, shape[3])
  return jnp.moveaxis(by_group, 1, 0).reshape(shape)
