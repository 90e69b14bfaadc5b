"""Plain convolution and bias, NHWC."""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from sadnet_jax.ops.platform import current_platform
from sadnet_jax.ops.promotion import usual_promotion

# Up to this many input channels, a 1x1 convolution on a CPU is written as a sum over channels.
_MAX_UNROLLED_CHANNELS = 8
# XLA's convolution on a CPU is slow for narrower inputs than 32 channels together with outputs of a few.
_MAX_NARROW_INPUTS, _MAX_NARROW_OUTPUTS = 16, 4
# Neighbouring pixels whose outputs are computed together then: of 2, 4, 5 and 8, this is fastest.
_PIXELS_TOGETHER = 4
# XLA on a CPU (jax 0.10.2) runs a convolution of this many channels or more on one core only, unless a row of
# outputs takes about this many multiplications for each tap of the kernel: rows of 256 pixels with 32 to 32
# channels run on one core, rows of 480 on two.
_MIN_CHANNELS_TO_JOIN, _MIN_ROW_PRODUCTS = 32, 480 * 32 * 32


@usual_promotion()
def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  stride: int = 1,
  dilation: int = 1,
  padding: str | tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> jax.Array:
  """Convolves an image with a square kernel.

  Derivatives of any order are in reverse mode. `jax.jvp` fails where the convolution has a form of its own on
  a CPU: to a few channels, or of narrow images in a batch.

  Args:
    x: [N, H, W, C].
    kernel: [K, K, C, O], in the dtype of ``x``.
    bias: [O], or None.
    stride: Distance between neighbouring outputs in pixels.
    dilation: Distance between neighbouring taps in pixels.
    padding: As in `jax.lax.conv_general_dilated`. By default 'SAME' for stride 1 and
      'VALID' otherwise.

  Returns:
    [N, Ho, Wo, O] in the dtype of ``x``; with the default padding Ho, Wo are H, W for stride 1.
  """
  keeps_size = padding is None and (stride, dilation) == (1, 1) and kernel.shape[0] % 2
  if padding is None and kernel.shape[:2] == (stride, stride) and dilation == 1:
    y = _conv2d_without_overlap(x, kernel)
  elif keeps_size and _is_narrow(x, kernel):
    y = _conv2d_to_few_channels(x, kernel)
  elif keeps_size and _images_per_row(x, kernel) > 1:
    y = _conv2d_side_by_side(x, kernel)
  else:
    padding = padding or ('SAME' if stride == 1 else 'VALID')
    y = _xla_conv2d(x, kernel, strides=(stride, stride), padding=padding, dilation=dilation)
  return y if bias is None else add_bias(y, bias)


def _xla_conv2d(x, kernel, *, strides=(1, 1), padding='SAME', dilation=1):
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=strides,
    padding=padding,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _is_narrow(x, kernel):
  """Whether `_conv2d_to_few_channels` is the faster way."""
  inputs, outputs = kernel.shape[2:]
  is_small = inputs <= _MAX_NARROW_INPUTS and outputs <= _MAX_NARROW_OUTPUTS
  return is_small and current_platform() == 'cpu' and not jax.export.is_symbolic_dim(x.shape[2])


@jax.custom_vjp
def _conv2d_to_few_channels(x, kernel):
  """`conv2d` of stride 1, whose outputs for neighbouring pixels of a row become channels of one.

  The kernel then has zeros where a neighbour does not look, and more products, but XLA is three times as
  fast. Its gradients are those of the convolution as it was, which are faster.
  """
  size, pixels = kernel.shape[0], _PIXELS_TOGETHER
  n, h, w, _ = x.shape
  extra = -w % pixels
  shifted = [jnp.pad(kernel, ((0, 0), (i, pixels - 1 - i), (0, 0), (0, 0))) for i in range(pixels)]
  border = size // 2
  y = _xla_conv2d(
    x,
    jnp.concatenate(shifted, axis=3),
    strides=(1, pixels),
    padding=((border, border), (border, border + extra)),
  )
  return y.reshape(n, h, w + extra, kernel.shape[3])[:, :, :w]


def _narrow_forward(x, kernel):
  return _conv2d_to_few_channels(x, kernel), jax.vjp(_xla_conv2d, x, kernel)[1]


def _narrow_backward(pullback, dy):
  return pullback(dy)


_conv2d_to_few_channels.defvjp(_narrow_forward, _narrow_backward)


def _images_per_row(x, kernel):
  """How many images `_conv2d_side_by_side` should join; 1 if joining is no use or impossible."""
  inputs, outputs = kernel.shape[2:]
  if (
    current_platform() != 'cpu'
    or x.dtype != jnp.float32
    or min(inputs, outputs) < _MIN_CHANNELS_TO_JOIN
    or any(map(jax.export.is_symbolic_dim, x.shape))
  ):
    return 1
  n, _, w, _ = x.shape
  counts = (count for count in range(1, n + 1) if n % count == 0)
  return next((count for count in counts if count * w * inputs * outputs >= _MIN_ROW_PRODUCTS), 1)


@jax.custom_vjp
def _conv2d_side_by_side(x, kernel):
  """`conv2d` of stride 1 on images that are joined side by side, so that XLA on a CPU uses all cores.

  Zeros between them are their padding. The gradient of the kernel is that of the separate images, which is
  faster.
  """
  (n, h, w, inputs), (size, _, _, outputs) = x.shape, kernel.shape
  count, border = _images_per_row(x, kernel), size // 2
  x = x.reshape(n // count, count, h, w, inputs).swapaxes(1, 2)
  x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, border), (0, 0)))
  y = _xla_conv2d(x.reshape(n // count, h, count * (w + border), inputs), kernel)
  y = y.reshape(n // count, h, count, w + border, outputs)[:, :, :, :w]
  return y.swapaxes(1, 2).reshape(n, h, w, outputs)


def _side_by_side_forward(x, kernel):
  return _conv2d_side_by_side(x, kernel), (x, kernel)


def _side_by_side_backward(residuals, dy):
  x, kernel = residuals
  (dkernel,) = jax.vjp(lambda kernel: _xla_conv2d(x, kernel), kernel)[1](dy)
  return conv2d(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3)), dkernel


_conv2d_side_by_side.defvjp(_side_by_side_forward, _side_by_side_backward)


def _conv2d_without_overlap(x, kernel):
  """`conv2d` where the stride is the kernel's size, so no two outputs share a pixel: one matrix product.

  On a CPU, XLA's convolution is up to 7 times slower. Not compared on accelerators.
  """
  size, channels = kernel.shape[0], x.shape[3]
  if (
    size == 1 and channels <= _MAX_UNROLLED_CHANNELS and current_platform() == 'cpu' and x.dtype.itemsize >= 4
  ):
    # XLA fuses these sums into one loop, four times faster than a product with so few columns.
    terms = [x[..., i : i + 1] * kernel[:, :, i : i + 1] for i in range(channels)]
    return functools.reduce(jnp.add, terms)
  n, h, w = x.shape[0], x.shape[1] // size, x.shape[2] // size
  rows = x[:, : h * size, : w * size].reshape(n, h, size, w, size * channels)
  return jnp.einsum('nhawc,aco->nhwo', rows, kernel.reshape(size, size * channels, -1))


@usual_promotion()
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a bias [C] to y [..., C] in the dtype of y; the gradient of the bias is summed in its own dtype."""
  # The cast comes after broadcasting, so that the transpose casts before it sums.
  return y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)
