"""The blocks of SADNet (Chang et al., ECCV 2020), as Flax Linen modules.

Layout is NHWC everywhere. Every convolution has a bias, the activation is leaky
ReLU with slope 0.2, and there are no normalisation layers.

Every block takes `Inside`, where the image is smaller than the array that holds it. What a layer computes
outside the image is then set to zero before a layer with a wider view reads it, as if the array ended there.
"""

from collections.abc import Sequence
import functools
from typing import Any, Literal, NamedTuple, get_args

from flax import linen as nn
import jax
import jax.numpy as jnp

from sadnet_jax.nn.layers import Conv, DeformConv, Dtype, FusionConv, OffsetMaskConv
from sadnet_jax.ops import adaptive_conv2d, deform_conv2d_packed

Order = Literal['deform_first', 'deform_last']
OffsetInit = Literal['zeros', 'xavier']


def check_option(name: str, value: str, options: Any) -> None:
  """Raises ValueError unless the value is one of a Literal type's values."""
  if value not in get_args(options):
    raise ValueError(f'{name} must be one of {get_args(options)}, not {value!r}')


def leaky_relu(x: jax.Array) -> jax.Array:
  """max(x, 0.2 * x), any shape."""
  return nn.leaky_relu(x, negative_slope=0.2)


class Inside(NamedTuple):
  """The part of a feature map that belongs to the image, at the top left.

  Attributes:
    height: Rows of the image, an integer or a scalar array, which may be traced.
    width: Columns of the image, likewise.
  """

  height: Any
  width: Any

  def at_scale(self, scale: int) -> 'Inside':
    """The same part at scale 1 (this one) to 4, where sides are halved scale - 1 times."""
    factor = 2 ** (scale - 1)
    return Inside(self.height // factor, self.width // factor)


def zero_outside(x: jax.Array, inside: Inside | None) -> jax.Array:
  """Sets everything outside the image to zero, as a convolution pads it; x [N, H, W, C] itself for None."""
  if inside is None:
    return x
  rows, columns = (jnp.arange(size) < side for size, side in zip(x.shape[1:3], inside, strict=True))
  # Not a product: what is outside may be infinite.
  mask = rows[None, :, None, None] & columns[None, None, :, None]
  return jnp.where(mask, x, jnp.zeros((), x.dtype))


def repeat_edges(x: jax.Array, inside: Inside | None) -> jax.Array:
  """Repeats the image's last row and column outside of it; x [N, H, W, C] itself for None."""
  if inside is not None:
    for axis, side in zip((1, 2), inside, strict=True):
      x = jnp.take(x, jnp.minimum(jnp.arange(x.shape[axis]), side - 1), axis=axis, mode='clip')
  return x


def upsample_2x(x: jax.Array) -> jax.Array:
  """Bilinear upsampling by 2 with half-pixel centres, edges repeated.

  Args:
    x: [N, H, W, C].

  Returns:
    [N, 2 * H, 2 * W, C], equal to PyTorch's ``interpolate(scale_factor=2,
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
    project: Whether a 1x1 convolution first maps the input to ``features`` channels
      (the paper's "first layer"). The skip connection starts after it.
    dtype: Computation dtype.
  """

  features: int
  project: bool = False
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, inside: Inside | None = None) -> jax.Array:
    """[N, H, W, C] -> [N, H, W, features]; C = features unless ``project``."""
    make = functools.partial(Conv, self.features, dtype=self.dtype)
    if self.project:
      x = make(1, name='conv0')(x)
    x = zero_outside(x, inside)
    y = leaky_relu(make(3, name='conv1')(x))
    return x + make(3, name='conv2')(zero_outside(y, inside))


class ContextBlock(nn.Module):
  """Parallel dilated convolutions at the coarsest scale (paper, section 3.2).

  A 1x1 convolution to a quarter of the channels, one 3x3 convolution per dilation
  rate, concatenation, a 1x1 convolution, and the input added.

  Attributes:
    features: Channels of input and output.
    dilations: Dilation rates; the paper's are 1, 2, 3, 4.
    dtype: Computation dtype.
  """

  features: int
  dilations: Sequence[int] = (1, 2, 3, 4)
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, inside: Inside | None = None) -> jax.Array:
    """[N, H, W, features] -> the same shape."""
    compressed = zero_outside(Conv(self.features // 4, 1, dtype=self.dtype, name='conv0')(x), inside)
    branches = [
      leaky_relu(Conv(self.features // 4, 3, dilation=d, dtype=self.dtype, name=f'conv{i}')(compressed))
      for i, d in enumerate(self.dilations, start=1)
    ]
    return x + Conv(self.features, 1, dtype=self.dtype, name='fusion')(jnp.concatenate(branches, axis=-1))


class OffsetBlock(nn.Module):
  """Offset features of one scale, from its decoder features and the coarser scale (paper, eq. 5).

  As in the authors' code, scales pass on this feature map, not the offsets and masks
  computed from it. It is upsampled and multiplied by 2, because an offset of one pixel is two
  pixels at the finer scale.

  Attributes:
    features: Channels of the offset features.
    dtype: Computation dtype.
  """

  features: int
  dtype: Dtype = None

  @nn.compact
  def __call__(
    self, x: jax.Array, coarser: jax.Array | None = None, inside: Inside | None = None
  ) -> jax.Array:
    """Computes the offset features.

    Args:
      x: Decoder features of this scale, [N, H, W, C].
      coarser: Offset features of the coarser scale, [N, H / 2, W / 2, features],
        or None at the coarsest scale (or without offset transfer).
      inside: The part of ``x`` that is image, or None if all of it is.

    Returns:
      [N, H, W, features].
    """
    make = functools.partial(Conv, self.features, 3, dtype=self.dtype)
    o = zero_outside(leaky_relu(make(name='offset_conv1')(zero_outside(x, inside))), inside)
    if coarser is not None:
      fuse = FusionConv(self.features, 3, dtype=self.dtype, name='offset_conv2')
      upsampled = upsample_2x(repeat_edges(coarser, None if inside is None else inside.at_scale(2))) * 2
      o = zero_outside(leaky_relu(fuse(o, zero_outside(upsampled, inside))), inside)
    return leaky_relu(make(name='offset_conv3')(o))


class RSABlock(nn.Module):
  """Residual spatial-adaptive block (paper, eq. 4): x + conv(lrelu(deform_conv(x))).

  Where the collection ``intermediates`` is mutable, sows the mean absolute offset in pixels into it
  as ``offset_abs_mean``. The result stays the same up to rounding.

  Attributes:
    features: Channels of input and output.
    deformable_groups: Groups of channels that share offsets and mask.
    order: 'deform_first' as in the ECCV 2020 paper, or 'deform_last' as in its
      first version (arXiv v1, eq. 6): x + deform_conv(lrelu(conv(x))).
    offset_init: Initialiser of the kernel that predicts offsets and masks. With 'zeros' training
      starts from regular 3x3 sampling, as in the deformable-convolution papers; 'xavier' is
      what the authors' code effectively uses.
    dtype: Computation dtype.
  """

  features: int
  deformable_groups: int = 8
  order: Order = 'deform_first'
  offset_init: OffsetInit = 'zeros'
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, offset_features: jax.Array, inside: Inside | None = None) -> jax.Array:
    """[N, H, W, features] and [N, H, W, F] -> [N, H, W, features]."""
    check_option('RSABlock.order', self.order, Order)
    check_option('RSABlock.offset_init', self.offset_init, OffsetInit)
    plain = Conv(self.features, 3, dtype=self.dtype, name='conv1')
    x, offset_features = zero_outside(x, inside), zero_outside(offset_features, inside)
    if self.order == 'deform_first':
      return x + plain(zero_outside(leaky_relu(self._deform(x, offset_features)), inside))
    return x + self._deform(zero_outside(leaky_relu(plain(x)), inside), offset_features)

  def _deform(self, x, offset_features):
    """Predicts offsets and masks, then samples and convolves x with them."""
    zeros = self.offset_init == 'zeros'
    init = nn.initializers.zeros_init() if zeros else nn.initializers.xavier_uniform()
    samples = self.deformable_groups * 9
    predict = OffsetMaskConv(3 * samples, 3, dtype=self.dtype, kernel_init=init, name='conv_offset_mask')
    deform = DeformConv(
      self.features,
      padding=1,
      deformable_groups=self.deformable_groups,
      dtype=self.dtype,
      name='deform_conv',
    )
    x, kernel, bias = deform.operands(x)
    groups = self.deformable_groups
    if not self.is_mutable_collection('intermediates'):
      return adaptive_conv2d(x, *predict.operands(offset_features), kernel, bias, deformable_groups=groups)
    # The whole prediction is needed here, `adaptive_conv2d` may compute it in strips.
    offset_mask = predict(offset_features)
    offset = offset_mask[..., : 2 * samples]
    self.sow('intermediates', 'offset_abs_mean', jnp.mean(jnp.abs(offset.astype(jnp.float32))))
    return deform_conv2d_packed(x, offset_mask, kernel, bias, padding=1, deformable_groups=groups)
