"""The blocks of SADNet (Chang et al., ECCV 2020), as Flax Linen modules.

Layout is NHWC everywhere. Every convolution has a bias, the activation is leaky
ReLU with slope 0.2, and nothing is normalised.
"""

from collections.abc import Sequence
import functools
from typing import Any, Literal, get_args

from flax import linen as nn
import jax
import jax.numpy as jnp

from sadnet_jax.nn.layers import Conv, DeformConv, Dtype, FusionConv
from sadnet_jax.ops.adaptive_conv import adaptive_conv2d, deform_conv2d_as_predicted, predict_offsets

Order = Literal['deform_first', 'deform_last']
OffsetInit = Literal['zeros', 'xavier']


def check_option(name: str, value: str, options: Any) -> None:
  """Raises ValueError unless the value is one of those of a Literal type."""
  if value not in get_args(options):
    raise ValueError(f'{name}: got {value!r}, want one of {get_args(options)}')


def leaky_relu(x: jax.Array) -> jax.Array:
  """max(x, 0.2 * x), any shape."""
  return nn.leaky_relu(x, negative_slope=0.2)


def upsample_2x(x: jax.Array) -> jax.Array:
  """Bilinear upsampling by 2 with half-pixel centres, edges repeated.

  Args:
    x: [N, H, W, C].

  Returns:
    [N, 2 * H, 2 * W, C], as PyTorch's ``interpolate(scale_factor=2,
    mode='bilinear', align_corners=False)``.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    before = jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)
    after = jax.lax.slice_in_dim(x, 1, size, axis=axis)
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
    # Output 2i lies a quarter pixel before input i, output 2i + 1 a quarter after.
    even = 0.75 * x + 0.25 * jnp.concatenate([first, before], axis)
    odd = 0.75 * x + 0.25 * jnp.concatenate([after, last], axis)
    shape = (*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    x = jnp.stack([even, odd], axis + 1).reshape(shape)
  return x


class ResBlock(nn.Module):
  """x + conv3x3(lrelu(conv3x3(x))): the original ResBlock without normalisation.

  Attributes:
    features: Channels.
    project: First map the input to ``features`` channels with a 1x1 convolution
      (the paper's "first layer"); the mapped tensor is the skip.
    dtype: Computation dtype.
  """

  features: int
  project: bool = False
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H, W, features]; C = features unless ``project``."""
    make = functools.partial(Conv, self.features, dtype=self.dtype)
    if self.project:
      x = make(1, name='conv0')(x)
    return x + make(3, name='conv2')(leaky_relu(make(3, name='conv1')(x)))


class ContextBlock(nn.Module):
  """Parallel dilated convolutions at the coarsest scale (paper, section 3.2).

  1x1 compression by 4, one 3x3 convolution per dilation rate, concatenation,
  1x1 fusion, and the input added.

  Attributes:
    features: Channels of input and output.
    dilations: Dilation rates; the paper's are 1, 2, 3, 4.
    dtype: Computation dtype.
  """

  features: int
  dilations: Sequence[int] = (1, 2, 3, 4)
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, features] -> the same shape."""
    compressed = Conv(self.features // 4, 1, dtype=self.dtype, name='conv0')(x)
    branches = [
      leaky_relu(Conv(self.features // 4, 3, dilation=d, dtype=self.dtype, name=f'conv{i}')(compressed))
      for i, d in enumerate(self.dilations, start=1)
    ]
    return x + Conv(self.features, 1, dtype=self.dtype, name='fusion')(jnp.concatenate(branches, axis=-1))


class OffsetBlock(nn.Module):
  """Offset features of one scale, from its own and the coarser scale's (paper, eq. 5).

  What travels from scale to scale is this feature map, as in the authors' code,
  rather than the offsets and masks computed from it. Upsampled, it is also
  multiplied by 2: an offset of one pixel is two pixels at the finer scale.

  Attributes:
    features: Channels of the offset features.
    dtype: Computation dtype.
  """

  features: int
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, coarser: jax.Array | None = None) -> jax.Array:
    """Computes the offset features.

    Args:
      x: Decoder features of this scale, [N, H, W, C].
      coarser: Offset features of the coarser scale, [N, H / 2, W / 2, features],
        or None at the coarsest scale (or without offset transfer).

    Returns:
      [N, H, W, features].
    """
    make = functools.partial(Conv, self.features, 3, dtype=self.dtype)
    o = leaky_relu(make(name='offset_conv1')(x))
    if coarser is not None:
      fuse = FusionConv(self.features, 3, dtype=self.dtype, name='offset_conv2')
      o = leaky_relu(fuse(o, upsample_2x(coarser) * 2))
    return leaky_relu(make(name='offset_conv3')(o))


class PredictionConv(Conv):
  """The 3x3 convolution that predicts offsets and masks, see `adaptive_conv.predict_offsets`."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H, W, features]."""
    return predict_offsets(*self.prepared(x))


class RSABlock(nn.Module):
  """Residual spatial-adaptive block (paper, eq. 4): x + conv(lrelu(deform_conv(x))).

  Sows the mean absolute offset in pixels as ``offset_abs_mean`` into the
  collection ``intermediates``; this does not change the result.

  Attributes:
    features: Channels of input and output.
    deformable_groups: Groups of channels that share offsets and mask.
    order: 'deform_first' as in the paper of ECCV 2020; 'deform_last' as in its
      first version (arXiv v1, eq. 6), x + deform_conv(lrelu(conv(x))).
    offset_init: 'zeros', so that training starts from regular 3x3 sampling as in
      the deformable-convolution papers, or 'xavier', which is what the authors'
      code ends up with.
    dtype: Computation dtype.
  """

  features: int
  deformable_groups: int = 8
  order: Order = 'deform_first'
  offset_init: OffsetInit = 'zeros'
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, offset_features: jax.Array) -> jax.Array:
    """[N, H, W, features] and [N, H, W, any] -> [N, H, W, features]."""
    check_option('RSABlock.order', self.order, Order)
    check_option('RSABlock.offset_init', self.offset_init, OffsetInit)
    plain = Conv(self.features, 3, dtype=self.dtype, name='conv1')
    if self.order == 'deform_first':
      return x + plain(leaky_relu(self._deform(x, offset_features)))
    return x + self._deform(leaky_relu(plain(x)), offset_features)

  def _deform(self, x, offset_features):
    """Predicts offsets and masks, and samples and convolves x accordingly."""
    zeros = self.offset_init == 'zeros'
    init = nn.initializers.zeros_init() if zeros else nn.initializers.xavier_uniform()
    samples = self.deformable_groups * 9
    predict = PredictionConv(3 * samples, 3, dtype=self.dtype, kernel_init=init, name='conv_offset_mask')
    deform = DeformConv(
      self.features,
      padding=1,
      deformable_groups=self.deformable_groups,
      dtype=self.dtype,
      name='deform_conv',
    )
    x, kernel, bias = deform.prepared(x)
    if not self.is_mutable_collection('intermediates'):
      predicting = predict.prepared(offset_features)
      return adaptive_conv2d(x, *predicting, kernel, bias, deformable_groups=self.deformable_groups)
    prediction = predict(offset_features)
    offset = prediction[..., : 2 * samples]
    self.sow('intermediates', 'offset_abs_mean', jnp.mean(jnp.abs(offset.astype(jnp.float32))))
    return deform_conv2d_as_predicted(x, prediction, kernel, bias, deformable_groups=self.deformable_groups)
