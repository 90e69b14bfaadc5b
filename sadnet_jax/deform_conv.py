"""Modulated deformable convolution: one pure function and a thin Linen module.

y(p) = b + sum_k w_k . x(p * stride - padding + k * dilation + offset_k(p)) * mask_k(p)

Eq. (3) of SADNet (Chang et al., ECCV 2020), after Dai et al. (ICCV 2017) and
Zhu et al. (CVPR 2019), with the sampling rules of torchvision's operator. This
file has what users call; `deform_conv_vjp` computes it and its gradients,
`deform_sampling` says where it samples.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from sadnet_jax.deform_conv_vjp import deform_conv_by_blocks, with_bias
from sadnet_jax.deform_geometry import checked_geometry


def deform_conv2d(
  x: jax.Array,
  offset: jax.Array,
  mask: jax.Array | None,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  stride: int | tuple[int, int] = 1,
  padding: int | tuple[int, int] = 0,
  dilation: int | tuple[int, int] = 1,
  groups: int = 1,
  deformable_groups: int = 1,
  block_pixels: int | None = None,
) -> jax.Array:
  """Modulated deformable convolution (SADNet, eq. 3) in NHWC.

  With K = Kh * Kw taps in row-major order and G deformable groups, the channels
  of ``offset`` and ``mask`` are ordered group, then tap, then (dy, dx): channel
  ``2 * (g * K + k)`` is dy, ``2 * (g * K + k) + 1`` is dx, and ``g * K + k`` is
  the modulation. Deformable group g moves input channels
  ``[g * C / G, (g + 1) * C / G)``. Sampling is bilinear, and each of the four
  neighbours outside the image counts as zero: a location in (-1, 0) still blends
  with the border, one at or beyond -1 or H (W) gives zero. Offsets of any size,
  infinities included, give finite values and gradients; a NaN offset spoils what
  depends on it and never reads outside the image.

  Locations and blending weights are computed in float32 (float64 if ``offset``
  is), products accumulate in float32 (float64 if ``x`` or ``kernel`` is).
  Differentiable in reverse mode, once; forward mode is not defined.

  Args:
    x: Input, [N, H, W, C], finite.
    offset: Displacement of every tap in pixels, [N, Ho, Wo, 2 * G * K].
    mask: Modulation of every tap, [N, Ho, Wo, G * K], or None for 1 everywhere
      (the unmodulated operator of Dai et al.).
    kernel: Weights, [Kh, Kw, C / groups, O].
    bias: [O], or None.
    stride: Stride in pixels, one number or (vertical, horizontal).
    padding: Zeros added at both ends, one number or (vertical, horizontal).
    dilation: Distance of the taps in pixels, one number or (vertical,
      horizontal).
    groups: Groups of the convolution; divides C and O.
    deformable_groups: Groups of input channels that move together, G; divides C.
    block_pixels: Output pixels processed at a time; by default chosen for the
      backend that JAX uses by default (see `deform_geometry.blocks_for`), on a CPU so that a block
      of samples fits the cache. Changes memory and speed, not the result beyond
      rounding.

  Returns:
    [N, Ho, Wo, O] in the common dtype of ``x`` and ``kernel``, where
    Ho = (H + 2 * padding - dilation * (Kh - 1) - 1) // stride + 1.

  Raises:
    ValueError: A shape does not fit the others, an option is out of range, or an
      array is not floating point; the message says what was got and wanted.

  Source:
    torchvision ``ops.deform_conv2d`` defines the semantics; there the layout is
    NCHW / OIHW, the order of the offset channels is the same.
  """
  moved = {'offset': offset, 'mask': mask}
  geometry = checked_geometry(
    x, moved, kernel, bias, stride, padding, dilation, groups, deformable_groups, block_pixels
  )
  dtype = jnp.result_type(x, kernel)
  n = x.shape[0]
  if n == 0:
    return jnp.zeros((0, *geometry.output_size, kernel.shape[3]), dtype)
  weights = _dense_kernel(kernel.astype(dtype), groups)
  return with_bias(deform_conv_by_blocks(geometry, x.astype(dtype), offset, mask, weights), bias)


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


def _dense_kernel(kernel, groups):
  """Grouped kernel [Kh, Kw, C / groups, O] as [Kh, Kw, C, O] with zeros between groups.

  The product is a small part of the cost (the sampling dominates), so groups are
  not worth a path of their own.
  """
  if groups == 1:
    return kernel
  kh, kw, channels, features = kernel.shape
  grouped = kernel.reshape(kh, kw, 1, channels, groups, features // groups)
  diagonal = jnp.eye(groups, dtype=kernel.dtype)[:, None, :, None]
  return (grouped * diagonal).reshape(kh, kw, groups * channels, features)
