"""Plain convolution and bias, NHWC."""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from sadnet_jax.ops.platform import current_platform
from sadnet_jax.ops.promotion import usual_promotion

# Up to this many input channels, a 1x1 convolution on a CPU is written as a sum over channels.
_MAX_UNROLLED_CHANNELS = 8


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
  if padding is None and kernel.shape[:2] == (stride, stride) and dilation == 1:
    y = _conv2d_without_overlap(x, kernel)
  else:
    y = lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(stride, stride),
      padding=padding or ('SAME' if stride == 1 else 'VALID'),
      rhs_dilation=(dilation, dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  return y if bias is None else add_bias(y, bias)


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
