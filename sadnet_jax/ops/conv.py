"""Convolutions with bias and the paper's initialisation, as functions and as Flax Linen modules.

Layout is NHWC.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from sadnet_jax.ops.platform import traced_for

_FEW_CHANNELS = 8


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  stride: int = 1,
  dilation: int = 1,
  padding: str | tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> jax.Array:
  """Convolution.

  Args:
    x: [N, H, W, C].
    kernel: [K, K, C, O], in the dtype of ``x``.
    bias: [O], or None.
    stride: Step between two outputs.
    dilation: Step between two taps.
    padding: As in `jax.lax.conv_general_dilated`; by default what keeps the size,
      none if strided.

  Returns:
    [N, H / stride, W / stride, O], in the dtype of ``x``.
  """
  if padding is None and kernel.shape[:2] == (stride, stride) and dilation == 1:
    y = _conv2d_of_squares(x, kernel)
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


def _conv2d_of_squares(x, kernel):
  """`conv2d` where stride is the kernel's size, so no two outputs see the same pixel: one product.

  XLA's convolution takes up to 7 times as long for it on a CPU; on an accelerator neither is measured.
  """
  size, channels = kernel.shape[0], x.shape[3]
  if size == 1 and channels <= _FEW_CHANNELS and traced_for() == 'cpu' and x.dtype.itemsize >= 4:
    # A product of so few columns takes four times as long as these sums, which XLA makes one loop.
    terms = [x[..., i : i + 1] * kernel[0, 0, i] for i in range(channels)]
    return functools.reduce(jnp.add, terms)
  n, h, w = x.shape[0], x.shape[1] // size, x.shape[2] // size
  rows = x[:, : h * size, : w * size].reshape(n, h, size, w, size * channels)
  return jnp.einsum('nhawc,aco->nhwo', rows, kernel.reshape(size, size * channels, -1))


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """y [..., C] + bias [C] in the dtype of y; the bias's gradient is summed in its own."""
  # Cast after broadcasting: so the transpose casts before it sums.
  return y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)
