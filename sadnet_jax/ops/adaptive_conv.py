"""The spatial-adaptive step of an RSAB: predict offsets and masks, sample and convolve accordingly.

The prediction has 27 values for each pixel and deformable group, several times
what the features themselves take. In training it is kept for the backward pass. In
inference on a CPU only a strip of rows of it exists at a time, which saves most of the
network's memory, and the time to fetch that memory; but where there is little of it, or
where the image's size is not known when the program is made, it is computed whole.
"""

import functools

from flax.linen.dtypes import promote_dtype
import jax
from jax import lax
import jax.numpy as jnp

from sadnet_jax.ops.conv import add_bias, conv2d
from sadnet_jax.ops.deform_conv import (
  deform_conv_block,
  deform_conv_by_blocks,
  modulation_of,
  weights_by_sample,
  with_bias,
)
from sadnet_jax.ops.platform import accumulation_dtype, traced_for
from sadnet_jax.ops.sampling import Geometry, checked_geometry, make_table

# XLA's convolution on a CPU is made for multiples of 64 outputs: 216 take as long as 256, but 192 and
# 24 a sixth less.
_OUTPUTS = 64
# Of 8, 16, 32 and 64 rows of 128 pixels none is much faster than another.
_GRADIENT_STRIP_ROWS = 16


def deform_conv2d_as_predicted(
  x: jax.Array, prediction: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, deformable_groups: int
) -> jax.Array:
  """`deform_conv.deform_conv2d` of 3x3 taps that keeps the size, with offset and mask in one array.

  Args:
    x: [N, H, W, C].
    prediction: [N, H, W, 27 * deformable_groups], what the layer before predicts: two thirds
      are the offsets, the rest the masks before their sigmoid.
    kernel: [3, 3, C, O].
    bias: [O], or None.
    deformable_groups: Groups of input channels that move together; divides C.

  Returns:
    [N, H, W, O] in the common dtype of ``x`` and ``kernel``.

  Raises:
    ValueError: The shapes do not fit together.
  """
  geometry = _geometry(x, prediction, kernel, bias, deformable_groups)
  if x.shape[0] == 0:
    return jnp.zeros((*x.shape[:3], kernel.shape[3]), jnp.result_type(x, kernel))
  x, kernel = promote_dtype(x, kernel)
  return with_bias(deform_conv_by_blocks(geometry, x, prediction, None, kernel), bias)


def predict_offsets(features: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """3x3 convolution from few channels to many, `conv.conv2d` with a kernel gradient made for that.

  Args:
    features: [N, H, W, F].
    kernel: [3, 3, F, O], in the dtype of ``features``.
    bias: [O].

  Returns:
    [N, H, W, O], in the dtype of ``features``.
  """
  if traced_for() == 'cpu' and features.shape[0] and not _is_symbolic(features):
    return add_bias(_convolve(features, kernel), bias)
  return conv2d(features, kernel, bias)


def adaptive_conv2d(
  x: jax.Array,
  offset_features: jax.Array,
  predict_kernel: jax.Array,
  predict_bias: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None,
  *,
  deformable_groups: int,
) -> jax.Array:
  """Predicts offsets and masks by a 3x3 convolution, then `deform_conv2d_as_predicted`.

  Args:
    x: [N, H, W, C].
    offset_features: [N, H, W, F].
    predict_kernel: [3, 3, F, 27 * deformable_groups], in the dtype of ``offset_features``.
    predict_bias: [27 * deformable_groups].
    kernel: [3, 3, C, O].
    bias: [O], or None.
    deformable_groups: Groups of input channels that move together; divides C.

  Returns:
    [N, H, W, O] in the common dtype of ``x`` and ``kernel``.

  Raises:
    ValueError: The shapes do not fit together.
  """
  return _adaptive_conv2d(deformable_groups, x, offset_features, predict_kernel, predict_bias, kernel, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adaptive_conv2d(deformable_groups, x, offset_features, predict_kernel, predict_bias, kernel, bias):
  prediction_shape = (*offset_features.shape[:3], predict_kernel.shape[3])
  prediction = jax.ShapeDtypeStruct(prediction_shape, offset_features.dtype)
  geometry = _geometry(x, prediction, kernel, bias, deformable_groups)
  if _is_symbolic(x) or not geometry.split_loops or x.shape[0] == 0:
    return _whole(deformable_groups, x, offset_features, predict_kernel, predict_bias, kernel, bias)
  x, kernel = promote_dtype(x, kernel)
  return with_bias(_by_strips(geometry, x, offset_features, predict_kernel, predict_bias, kernel), bias)


def _whole(deformable_groups, x, offset_features, predict_kernel, predict_bias, kernel, bias):
  prediction = predict_offsets(offset_features, predict_kernel, predict_bias)
  return deform_conv2d_as_predicted(x, prediction, kernel, bias, deformable_groups=deformable_groups)


def _forward(deformable_groups, *arrays):
  return jax.vjp(functools.partial(_whole, deformable_groups), *arrays)


def _backward(_, pullback, dy):
  return pullback(dy)


_adaptive_conv2d.defvjp(_forward, _backward)


def _by_strips(geometry, x, offset_features, predict_kernel, predict_bias, kernel):
  """[N, H, W, O] without bias; strip by strip, each of some rows of one image."""
  n, h, w, _ = x.shape
  rows = min(h, max(1, round(geometry.block_pixels / w)))
  strips = -(-h // rows)
  table, weights = make_table(x, geometry), weights_by_sample(kernel, geometry)
  reach = jnp.arange(-1, rows + 1)
  first = -(-2 * geometry.samples // _OUTPUTS) * _OUTPUTS
  kernels = jnp.split(predict_kernel, [min(first, 3 * geometry.samples)], axis=3)

  def strip(number, y):
    # The last strip of an image overlaps the one before rather than be shorter.
    image, top = number // strips, jnp.minimum(number % strips * rows, h - rows)
    # The strip's rows and their neighbours, zeros above and below the image: what padding would copy.
    row = top + reach
    features = jnp.asarray(offset_features)[image, jnp.clip(row, 0, h - 1)]
    features = jnp.where(((row >= 0) & (row < h))[:, None, None], features, 0)[None]
    parts = [conv2d(features, part, padding=((0, 0), (1, 1))).reshape(rows * w, -1) for part in kernels]
    pixels = (image * h + top) * w + jnp.arange(rows * w, dtype=jnp.int32)
    moved = functools.partial(_offset_and_modulation, parts, predict_bias, geometry)
    block = deform_conv_block(geometry, table, weights, pixels, moved)
    return lax.dynamic_update_slice(y, block.reshape(1, rows, w, -1), (image, top, 0, 0))

  return lax.fori_loop(0, n * strips, strip, jnp.zeros((n, h, w, kernel.shape[3]), x.dtype))


def _offset_and_modulation(parts, bias, geometry):
  """Offsets [p, 2 * S] and modulation [p, S] of a prediction in two parts without bias, offsets first."""
  offsets = 2 * geometry.samples
  offset, first_logits = jnp.split(parts[0], [offsets], axis=1)
  logits = jnp.concatenate([first_logits, parts[1]], axis=1)
  return add_bias(offset, bias[:offsets]), modulation_of(add_bias(logits, bias[offsets:]))


@jax.custom_vjp
def _convolve(x, kernel):
  return conv2d(x, kernel)


def _convolve_fwd(x, kernel):
  return conv2d(x, kernel), (x, kernel)


def _convolve_bwd(residuals, dy):
  x, kernel = residuals
  (dx,) = jax.linear_transpose(lambda x: conv2d(x, kernel), x)(dy)
  return dx, _kernel_gradient(x, dy).astype(kernel.dtype)


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _kernel_gradient(x, dy):
  """[3, 3, F, O] from x [N, H, W, F] and dy [N, H, W, O]: a matrix product for each strip of rows.

  XLA on a CPU convolves x with all of dy for it, at a tenth of the machine's matrix rate.
  """
  n, h, w, inputs = x.shape
  outputs = dy.shape[3]
  rows = next(rows for rows in range(min(h, _GRADIENT_STRIP_ROWS), 0, -1) if h % rows == 0)
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  dtype = accumulation_dtype(x.dtype)

  def add_strip(total, number):
    image, top = number // (h // rows), number % (h // rows) * rows
    piece = lax.dynamic_slice(padded, (image, top, 0, 0), (1, rows + 2, w + 2, inputs))[0]
    dpiece = lax.dynamic_slice(dy, (image, top, 0, 0), (1, rows, w, outputs))
    taps = [piece[i : i + rows, j : j + w] for i in range(3) for j in range(3)]
    columns = jnp.concatenate(taps, axis=-1).reshape(rows * w, 9 * inputs)
    product = jnp.dot(columns.T, dpiece.reshape(rows * w, outputs), preferred_element_type=dtype)
    return total + product, None

  strips = jnp.arange(n * (h // rows))
  total, _ = lax.scan(add_strip, jnp.zeros((9 * inputs, outputs), dtype), strips)
  return total.reshape(3, 3, inputs, outputs)


def _is_symbolic(x):
  return any(jax.export.is_symbolic_dim(side) for side in x.shape)


def _geometry(x, prediction, kernel, bias, deformable_groups) -> Geometry:
  return checked_geometry(x, {'prediction': prediction}, kernel, bias, 1, 1, 1, 1, deformable_groups, None)
