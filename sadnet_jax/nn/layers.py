"""Linen layers: plain, fusing, transposed and deformable convolutions."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from sadnet_jax.ops.conv import add_bias, conv2d
from sadnet_jax.ops.deform_conv import deform_conv2d

Dtype = Any


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
  padding: int | tuple[int, int] = 0
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
  def prepared(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """``x`` [N, H, W, C] and the kernel in the computation dtype, if one is set, and the bias."""
    # Below 1, `deform_conv2d` refuses.
    channels = x.shape[-1] // max(self.groups, 1)
    kernel_shape = (*self.kernel_size, channels, self.features)
    kernel = self.param('kernel', self.kernel_init, kernel_shape, self.param_dtype)
    bias = self.param('bias', self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
    if self.dtype is not None:
      x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    return x, kernel, bias

  def __call__(self, x: jax.Array, offset: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Shapes as in `deform_conv2d`."""
    x, kernel, bias = self.prepared(x)
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
