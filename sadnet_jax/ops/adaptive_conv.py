"""The spatial-adaptive step of an RSAB: predicts offsets and masks, then samples and convolves with them.

The prediction has 27 values for each pixel and deformable group, several times as many as
the features themselves. Training keeps it for the backward pass. Inference on a CPU computes it for
a strip of rows at a time, which saves most of the network's memory and the time to read
it back. Small images and images of symbolic size get it computed whole.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from sadnet_jax.ops.conv import add_bias, conv2d
from sadnet_jax.ops.deform_conv import (
  add_output_bias,
  deform_conv2d_packed,
  deform_conv_block,
  mask_from_logits,
  weights_by_sample,
)
from sadnet_jax.ops.platform import accumulation_dtype, current_platform
from sadnet_jax.ops.promotion import usual_promotion
from sadnet_jax.ops.sampling import check_arguments, make_table

# XLA's convolution on a CPU is tuned for multiples of 64 output channels: 216 take as long as 256,
# but 192 and 24 a sixth less.
_OUTPUT_CHANNEL_MULTIPLE = 64
# Rows of a strip in the gradient of the predicting kernel. At 128 pixels per row, 8, 16, 32 and 64 take about
# the same time.
_GRADIENT_STRIP_ROWS = 16


@usual_promotion()
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
  """`predict_offset_mask`, then `deform_conv.deform_conv2d_packed` with padding 1.

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


@usual_promotion()
def predict_offset_mask(features: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """3x3 convolution from few channels to many: `conv.conv2d` with a faster kernel gradient on a CPU.

  Args:
    features: [N, H, W, F].
    kernel: [3, 3, F, O], in the dtype of ``features``.
    bias: [O].

  Returns:
    [N, H, W, O], in the dtype of ``features``.
  """
  if current_platform() == 'cpu' and features.shape[0] and not _is_symbolic(features):
    return add_bias(_conv2d_to_many_channels(features, kernel), bias)
  return conv2d(features, kernel, bias)


# --- Inference, strip by strip.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@usual_promotion()
def _adaptive_conv2d(deformable_groups, x, offset_features, predict_kernel, predict_bias, kernel, bias):
  shape = (*offset_features.shape[:3], predict_kernel.shape[3])
  offset_mask = jax.ShapeDtypeStruct(shape, offset_features.dtype)
  spec = check_arguments(
    x, kernel, bias, {'offset_mask': (offset_mask, 3)}, padding=1, deformable_groups=deformable_groups
  )
  if _is_symbolic(x) or not spec.fusion_barriers or x.shape[0] == 0:
    return _predict_whole(deformable_groups, x, offset_features, predict_kernel, predict_bias, kernel, bias)
  dtype = jnp.result_type(x, kernel)
  y = _by_strips(spec, x.astype(dtype), offset_features, predict_kernel, predict_bias, kernel.astype(dtype))
  return add_output_bias(y, bias)


def _predict_whole(deformable_groups, x, offset_features, predict_kernel, predict_bias, kernel, bias):
  offset_mask = predict_offset_mask(offset_features, predict_kernel, predict_bias)
  return deform_conv2d_packed(x, offset_mask, kernel, bias, padding=1, deformable_groups=deformable_groups)


@usual_promotion()
def _forward(deformable_groups, *arrays):
  return jax.vjp(functools.partial(_predict_whole, deformable_groups), *arrays)


@usual_promotion()
def _backward(_, pullback, dy):
  return pullback(dy)


_adaptive_conv2d.defvjp(_forward, _backward)


def _by_strips(spec, x, offset_features, predict_kernel, predict_bias, kernel):
  """[N, H, W, O] without bias; each strip has some rows of one image."""
  n, h, w, _ = x.shape
  rows = min(h, max(1, round(spec.block_pixels / w)))
  strips = -(-h // rows)
  table, weights = make_table(x, spec), weights_by_sample(kernel, spec)
  neighbourhood = jnp.arange(-1, rows + 1)
  # All the offsets are in the first part, rounded up to a size that XLA likes.
  first = -(-2 * spec.samples // _OUTPUT_CHANNEL_MULTIPLE) * _OUTPUT_CHANNEL_MULTIPLE
  kernels = jnp.split(predict_kernel, [min(first, 3 * spec.samples)], axis=3)

  def strip(index, y):
    # The last strip of an image overlaps the one before instead of being shorter.
    image, top = index // strips, jnp.minimum(index % strips * rows, h - rows)
    # The strip's rows and their neighbours, with zeros above and below the image. Padding
    # the whole image would copy it.
    row = top + neighbourhood
    features = jnp.asarray(offset_features)[image, jnp.clip(row, 0, h - 1)]
    features = jnp.where(((row >= 0) & (row < h))[:, None, None], features, 0)[None]
    parts = [conv2d(features, part, padding=((0, 0), (1, 1))).reshape(rows * w, -1) for part in kernels]
    pixels = (image * h + top) * w + jnp.arange(rows * w, dtype=jnp.int32)
    offset_and_mask = functools.partial(_unpack_parts, parts, predict_bias, spec)
    block = deform_conv_block(spec, table, weights, pixels, offset_and_mask)
    return lax.dynamic_update_slice(y, block.reshape(1, rows, w, -1), (image, top, 0, 0))

  return lax.fori_loop(0, n * strips, strip, jnp.zeros((n, h, w, kernel.shape[3]), x.dtype))


def _unpack_parts(parts, bias, spec):
  """Offsets [p, 2 * S] and mask [p, S] from the two parts of a prediction, which lack the bias."""
  offsets = 2 * spec.samples
  offset, first_logits = jnp.split(parts[0], [offsets], axis=1)
  logits = jnp.concatenate([first_logits, parts[1]], axis=1)
  return add_bias(offset, bias[:offsets]), mask_from_logits(add_bias(logits, bias[offsets:]))


# --- The convolution that predicts.


@jax.custom_vjp
def _conv2d_to_many_channels(x, kernel):
  outputs = kernel.shape[3]
  first = outputs // _OUTPUT_CHANNEL_MULTIPLE * _OUTPUT_CHANNEL_MULTIPLE
  parts = jnp.split(kernel, [first], axis=3) if 0 < first < outputs else [kernel]
  return jnp.concatenate([conv2d(x, part) for part in parts], axis=3)


@usual_promotion()
def _conv2d_forward(x, kernel):
  return _conv2d_to_many_channels(x, kernel), (x, kernel)


@usual_promotion()
def _conv2d_backward(residuals, dy):
  x, kernel = residuals
  (dx,) = jax.vjp(lambda x: conv2d(x, kernel), x)[1](dy)
  return dx, _kernel_gradient(x, dy).astype(kernel.dtype)


_conv2d_to_many_channels.defvjp(_conv2d_forward, _conv2d_backward)


def _kernel_gradient(x, dy):
  """[3, 3, F, O] from x [N, H, W, F] and dy [N, H, W, O]: one matrix product per strip of rows.

  XLA on a CPU convolves x with all of dy instead, at a tenth of the machine's peak rate.
  """
  n, h, w, inputs = x.shape
  outputs = dy.shape[3]
  rows = next(rows for rows in range(min(h, _GRADIENT_STRIP_ROWS), 0, -1) if h % rows == 0)
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  dtype = accumulation_dtype(x.dtype)

  def add_strip(total, index):
    image, top = index // (h // rows), index % (h // rows) * rows
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
