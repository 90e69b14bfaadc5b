"""SADNet and its blocks (Chang et al., ECCV 2020), as Flax Linen modules.

Layout is NHWC everywhere. Every convolution has a bias, the activation is leaky
ReLU with slope 0.2, and nothing is normalised. Scale s in 1..4 works at 1 / 2**(s - 1)
of the resolution with base width * 2**(s - 1) channels.
"""

from collections.abc import Sequence
import functools
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.deform_conv import DeformConv

Dtype = Any
SCALES = 4
# Sides inside the network must be a multiple of this: three halvings.
STRIDE = 2 ** (SCALES - 1)


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


class UpConv(nn.Module):
  """2x2 transposed convolution with stride 2.

  Stride equals kernel size, so no two taps meet: it is one matrix product to
  four times the channels, then depth to space. ``kernel`` is [2, 2, C, O], where
  ``kernel[a, b]`` makes output pixel (2 * y + a, 2 * x + b).
  """

  features: int
  dtype: Dtype = None
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2 * H, 2 * W, features]."""
    kernel = self.param('kernel', self.kernel_init, (2, 2, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    n, h, w, _ = x.shape
    y = jnp.einsum('nhwc,abco->nhawbo', x, kernel)
    return y.reshape(n, 2 * h, 2 * w, self.features) + bias


def conv(
  features: int, kernel_size: int, *, dtype: Dtype, name: str, stride: int = 1, dilation: int = 1, **kwargs
):
  """Convolution with the paper's initialisation; padding keeps the size (none if strided)."""
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    strides=stride,
    padding='SAME' if stride == 1 else 'VALID',
    kernel_dilation=dilation,
    dtype=dtype,
    name=name,
    **{'kernel_init': nn.initializers.xavier_uniform(), **kwargs},
  )


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
    make = functools.partial(conv, self.features, dtype=self.dtype)
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
    compressed = conv(self.features // 4, 1, dtype=self.dtype, name='conv0')(x)
    branches = [
      leaky_relu(conv(self.features // 4, 3, dilation=d, dtype=self.dtype, name=f'conv{i}')(compressed))
      for i, d in enumerate(self.dilations, start=1)
    ]
    return x + conv(self.features, 1, dtype=self.dtype, name='fusion')(jnp.concatenate(branches, axis=-1))


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
    make = functools.partial(conv, self.features, 3, dtype=self.dtype)
    o = leaky_relu(make(name='offset_conv1')(x))
    if coarser is not None:
      o = jnp.concatenate([o, upsample_2x(coarser) * 2], axis=-1)
      o = leaky_relu(make(name='offset_conv2')(o))
    return leaky_relu(make(name='offset_conv3')(o))


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
  order: Literal['deform_first', 'deform_last'] = 'deform_first'
  offset_init: Literal['zeros', 'xavier'] = 'zeros'
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, offset_features: jax.Array) -> jax.Array:
    """[N, H, W, features] and [N, H, W, any] -> [N, H, W, features]."""
    init = {'zeros': nn.initializers.zeros_init(), 'xavier': nn.initializers.xavier_uniform()}[
      self.offset_init
    ]
    samples = self.deformable_groups * 9
    predicted = conv(3 * samples, 3, dtype=self.dtype, kernel_init=init, name='conv_offset_mask')(
      offset_features
    )
    offset, mask = predicted[..., : 2 * samples], jax.nn.sigmoid(predicted[..., 2 * samples :])
    self.sow('intermediates', 'offset_abs_mean', jnp.mean(jnp.abs(offset.astype(jnp.float32))))

    deform = DeformConv(
      self.features, padding=1, deformable_groups=self.deformable_groups, dtype=self.dtype, name='deform_conv'
    )
    plain = conv(self.features, 3, dtype=self.dtype, name='conv1')
    if self.order == 'deform_first':
      return x + plain(leaky_relu(deform(x, offset, mask)))
    return x + deform(leaky_relu(plain(x)), offset, mask)


class SADNet(nn.Module):
  """Spatial-adaptive denoising network: noisy image in, denoised image out.

  The defaults are the network of the ECCV 2020 paper as the authors' code builds
  it: 4,234,723 parameters for colour, 4,234,081 for grey.

  Attributes:
    channels: Image channels, 3 or 1.
    width: Channels of scale 1 (the paper's 32); scale s has ``width * 2**(s - 1)``.
    offset_width: Channels of the offset features.
    deformable_groups: Deformable groups of every RSAB.
    dilations: Rates of the context block; (1, 2, 4, 8) is Table 4's "SADNet (1248)".
    use_rsab: False puts a ResBlock in place of every RSAB (Table 1).
    use_offset_transfer: False estimates offsets from the current scale only.
    use_context: False leaves out the context block.
    rsab_order: See `RSABlock`; 'deform_last' is the network of arXiv v1.
    last_kernel: 3, as in the authors' code, or 1, as the paper says.
    offset_init: See `RSABlock`.
    dtype: Computation dtype (weights stay float32); None computes in the
      input's dtype. The output is in the input's dtype.
  """

  channels: int = 3
  width: int = 32
  offset_width: int = 32
  deformable_groups: int = 8
  dilations: Sequence[int] = (1, 2, 3, 4)
  use_rsab: bool = True
  use_offset_transfer: bool = True
  use_context: bool = True
  rsab_order: Literal['deform_first', 'deform_last'] = 'deform_first'
  last_kernel: int = 3
  offset_init: Literal['zeros', 'xavier'] = 'zeros'
  dtype: Dtype = None

  def __post_init__(self):
    """Refuses what no SADNet has, before anything is built."""
    wanted = {
      'channels': (self.channels >= 1, 'at least 1'),
      'width': (
        self.width >= 1 and (not self.use_rsab or self.width % self.deformable_groups == 0),
        f'a multiple of deformable_groups = {self.deformable_groups}',
      ),
      'offset_width': (self.offset_width >= 1, 'at least 1'),
      'dilations': (len(self.dilations) > 0 and min(self.dilations) >= 1, 'one or more rates of at least 1'),
      'rsab_order': (self.rsab_order in ('deform_first', 'deform_last'), "'deform_first' or 'deform_last'"),
      'last_kernel': (self.last_kernel in (1, 3), '1 or 3'),
      'offset_init': (self.offset_init in ('zeros', 'xavier'), "'zeros' or 'xavier'"),
    }
    for name, (holds, text) in wanted.items():
      if not holds:
        raise ValueError(f'SADNet.{name}: got {getattr(self, name)!r}, want {text}')
    super().__post_init__()

  @nn.compact
  def __call__(self, noisy: jax.Array) -> jax.Array:
    """Denoises a batch.

    Args:
      noisy: [N, H, W, channels], values in [0, 1] (noise may leave that range).
        Sides that are no multiple of 8 are extended at the bottom and right by
        reflection (see `pad_to_multiple`) and cropped again.

    Returns:
      [N, H, W, channels], not clipped.

    Raises:
      ValueError: ``noisy`` is not [N, H, W, channels] with at least one pixel.
    """
    if noisy.ndim != 4 or noisy.shape[-1] != self.channels or min(noisy.shape[1:3]) < 1:
      raise ValueError(
        f'noisy: got shape {noisy.shape}, want [N, H, W, {self.channels}] with H, W of at least 1'
      )
    padded = pad_to_multiple(noisy, STRIDE)
    negative_noise = self._negative_noise(padded)
    denoised = padded + negative_noise.astype(padded.dtype)
    return denoised[:, : noisy.shape[1], : noisy.shape[2]]

  def _negative_noise(self, x):
    width = [self.width * 2**i for i in range(SCALES)]
    make = functools.partial(conv, dtype=self.dtype)

    encoded = []
    for scale in range(1, SCALES + 1):
      if scale > 1:
        x = leaky_relu(make(width[scale - 1], 2, stride=2, name=f'down{scale - 1}')(x))
      x = ResBlock(width[scale - 1], project=scale == 1, dtype=self.dtype, name=f'res{scale}')(x)
      encoded.append(x)

    if self.use_context:
      x = ContextBlock(width[-1], self.dilations, dtype=self.dtype, name='context')(x)
    x, offset_features = self._adapt(x, None, SCALES)
    for scale in range(SCALES - 1, 0, -1):
      x = UpConv(width[scale - 1], dtype=self.dtype, name=f'up{scale}')(x)
      x = jnp.concatenate([x, encoded[scale - 1]], axis=-1)
      x = make(width[scale - 1], 1, name=f'dconv{scale}_1')(x)
      x, offset_features = self._adapt(x, offset_features, scale)
    return make(self.channels, self.last_kernel, name='out')(x)

  def _adapt(self, x, coarser, scale):
    """Offset block and RSAB of one decoder scale, or the ResBlock in their place."""
    features = x.shape[-1]
    if not self.use_rsab:
      return ResBlock(features, dtype=self.dtype, name=f'dres{scale}')(x), None
    offset_block = OffsetBlock(self.offset_width, dtype=self.dtype, name=f'offset{scale}')
    offset_features = offset_block(x, coarser if self.use_offset_transfer else None)
    block = RSABlock(
      features,
      self.deformable_groups,
      self.rsab_order,
      self.offset_init,
      dtype=self.dtype,
      name=f'dres{scale}',
    )
    return block(x, offset_features), offset_features


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
  """Extends height and width at the bottom and right to a multiple.

  The extension is the image's reflection without repeating the border pixel.
  Where the image is smaller than the extension, the reflection is reflected again,
  and a side of one pixel is repeated.

  Args:
    x: [N, H, W, C], H and W at least 1.
    multiple: What the sides become a multiple of.

  Returns:
    [N, H', W', C]; ``x`` itself if nothing has to be added.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    extra = -size % multiple
    if extra:
      source = np.pad(np.arange(size), (0, extra), mode='reflect')
      x = jnp.concatenate([x, jnp.take(x, source[size:], axis=axis)], axis=axis)
  return x


def mean_abs_offsets(intermediates: dict) -> dict[str, jax.Array]:
  """Reads the mean absolute offset of each scale, in pixels of that scale.

  Args:
    intermediates: The collection of that name, as returned by
      ``SADNet.apply(variables, noisy, mutable=['intermediates'])``.

  Returns:
    ``{'scale1': scalar, ..., 'scale4': scalar}``; empty without RSABs.
  """
  return {
    f'scale{scale}': intermediates[f'dres{scale}']['offset_abs_mean'][0]
    for scale in range(1, SCALES + 1)
    if 'offset_abs_mean' in intermediates.get(f'dres{scale}', {})
  }
