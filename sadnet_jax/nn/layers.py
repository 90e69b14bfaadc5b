"""Linen layers: plain, fusing, transposed and deformable convolutions. NHWC."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from sadnet_jax.ops import add_bias, conv2d, deform_conv2d, predict_offset_mask

Dtype = Any


class Conv(nn.Module):
  """Convolution with bias and the paper's initialisation, padded to keep the size (unpadded if strided).

  Equals `flax.linen.Conv` except in bfloat16, where a CPU would sum the gradient of the bias
  over all pixels in bfloat16 and lose small terms. Here it is summed in the bias's own dtype.

  Attributes:
    features: Output channels.
    kernel_size: Height and width of the kernel.
    stride: Distance between neighbouring outputs in pixels.
    dilation: Distance between neighbouring taps in pixels.
    dtype: Computation dtype; None is the common dtype of input and weights.
    kernel_init: Initialiser of the kernel [kernel_size, kernel_size, C, features].
  """

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  dtype: Dtype = None
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def operands(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The operands of `conv2d`: ``x`` [N, H, W, C] and the kernel in the computation dtype, and the bias."""
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,), jnp.float32)
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    return x, kernel, bias

  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H / stride, W / stride, features]."""
    return conv2d(*self.operands(x), stride=self.stride, dilation=self.dilation)


class OffsetMaskConv(Conv):
  """The 3x3 convolution that predicts offsets and mask logits, see `predict_offset_mask`."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H, W, features]."""
    return predict_offset_mask(*self.operands(x))


class FusionConv(nn.Module):
  """Convolution of the concatenation of two feature maps, which is not stored in float32.

  Attributes:
    features: Output channels.
    kernel_size: Height and width of the kernel.
    dtype: Computation dtype; None is the common dtype of inputs and weights.
  """

  features: int
  kernel_size: int
  dtype: Dtype = None

  @nn.compact
  def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
    """[N, H, W, A] and [N, H, W, B] -> [N, H, W, features]; the kernel has A + B input channels."""
    shape = (self.kernel_size, self.kernel_size, a.shape[-1] + b.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.xavier_uniform(), shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,), jnp.float32)
    a, b, kernel = nn.dtypes.promote_dtype(a, b, kernel, dtype=self.dtype)
    if a.dtype.itemsize < 4:
      # Two convolutions would round each sum to 16 bits, and their sum once more.
      return conv2d(jnp.concatenate([a, b], axis=-1), kernel, bias)
    kernel_a, kernel_b = jnp.split(kernel, [a.shape[-1]], axis=2)
    return conv2d(a, kernel_a) + conv2d(b, kernel_b, bias)


class UpConv(nn.Module):
  """2x2 transposed convolution with stride 2.

  The stride equals the kernel size, so taps do not overlap: one matrix product gives
  four times the channels, then depth to space. ``kernel`` is [2, 2, C, features], and
  ``kernel[a, b]`` makes output pixel (2 * y + a, 2 * x + b).

  Attributes:
    features: Output channels.
    dtype: Computation dtype; None is the common dtype of input and weights.
  """

  features: int
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2 * H, 2 * W, features]."""
    shape = (2, 2, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.xavier_uniform(), shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,), jnp.float32)
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    n, h, w, channels = x.shape
    # A plain product: an einsum with axes in the order of the result makes XLA transpose the input.
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
    dtype: Computation dtype; None is the common dtype of input and weights.
    param_dtype: Dtype of the weights.
    kernel_init: Initialiser of the kernel, by default uniform(+-1 / sqrt(Kh * Kw * C / groups))
      as in the deformable-convolution papers.
    bias_init: Initialiser of the bias, by default zeros.
  """

  features: int
  kernel_size: tuple[int, int] = (3, 3)
  stride: int | tuple[int, int] = 1
  padding: int | tuple[int, int] = 0
  dilation: int | tuple[int, int] = 1
  groups: int = 1
  deformable_groups: int = 1
  use_bias: bool = True
  dtype: Dtype = None
  param_dtype: Dtype = jnp.float32
  # variance_scaling(1/3, fan_in, uniform) is uniform(+-sqrt(3 * (1/3) / fan_in)).
  kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

  @nn.compact
  def operands(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """``x`` [N, H, W, C] and the kernel in the computation dtype, if one is set, and the bias."""
    # `deform_conv2d` rejects groups below 1.
    channels = x.shape[-1] // max(self.groups, 1)
    kernel_shape = (*self.kernel_size, channels, self.features)
    kernel = self.param('kernel', self.kernel_init, kernel_shape, self.param_dtype)
    bias = self.param('bias', self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
    if self.dtype is not None:
      x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    return x, kernel, bias

  def __call__(self, x: jax.Array, offset: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Shapes as in `deform_conv2d`."""
    x, kernel, bias = self.operands(x)
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
