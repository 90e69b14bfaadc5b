"""Convolutions with bias and the paper's initialisation, as functions and as Flax Linen modules.

Layout is NHWC.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from sadnet_jax.deform_geometry import traced_for

Dtype = Any

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


class Conv(nn.Module):
  """Convolution with bias and the paper's initialisation; padding keeps the size (none if strided).

  Flax's own, but for bfloat16: there the gradient of the bias, a sum over all pixels,
  would be summed in bfloat16 on a CPU, where small terms are lost. Here it is summed
  in the bias's own dtype.

  Attributes:
    features: Output channels.
    kernel_size: Side of the kernel.
    stride: Step between two outputs.
    dilation: Step between two taps.
    dtype: Computation dtype.
    kernel_init: Initialiser of the kernel [kernel_size, kernel_size, C, features].
  """

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  dtype: Dtype = None
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def prepared(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``x`` [N, H, W, C] and the kernel in the computation dtype, and the bias: what `conv2d` takes."""
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    return x, kernel, bias

  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H / stride, W / stride, features]."""
    return conv2d(*self.prepared(x), stride=self.stride, dilation=self.dilation)


class FusionConv(nn.Module):
  """Convolution of two feature maps as if they were concatenated; in float32 they never are.

  Attributes:
    features: Output channels.
    kernel_size: Side of the kernel.
    dtype: Computation dtype.
  """

  features: int
  kernel_size: int
  dtype: Dtype = None

  @nn.compact
  def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
    """[N, H, W, A] and [N, H, W, B] -> [N, H, W, features]; the kernel has A + B input channels."""
    shape = (self.kernel_size, self.kernel_size, a.shape[-1] + b.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.xavier_uniform(), shape)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    a, b, kernel = nn.dtypes.promote_dtype(a, b, kernel, dtype=self.dtype)
    if a.dtype.itemsize < 4:
      # Each sum would be rounded to it, and their sum once more.
      return conv2d(jnp.concatenate([a, b], axis=-1), kernel, bias)
    of_a, of_b = jnp.split(kernel, [a.shape[-1]], axis=2)
    return conv2d(a, of_a) + conv2d(b, of_b, bias)


class UpConv(nn.Module):
  """2x2 transposed convolution with stride 2.

  Stride equals kernel size, so no two taps meet: it is one matrix product to
  four times the channels, then depth to space. ``kernel`` is [2, 2, C, O], where
  ``kernel[a, b]`` makes output pixel (2 * y + a, 2 * x + b).
  """

  features: int
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2 * H, 2 * W, features]."""
    kernel = self.param('kernel', nn.initializers.xavier_uniform(), (2, 2, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    n, h, w, channels = x.shape
    # One plain product: asked for in the order of the result, XLA would transpose the input.
    y = x @ jnp.moveaxis(kernel, 2, 0).reshape(channels, 4 * self.features)
    y = y.reshape(n, h, w, 2, 2, self.features).swapaxes(2, 3)
    return add_bias(y.reshape(n, 2 * h, 2 * w, self.features), bias)
