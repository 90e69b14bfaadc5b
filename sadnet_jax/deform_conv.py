"""Modulated deformable convolution: one pure function and a thin Linen module.

y(p) = b + sum_k w_k . x(p * stride - padding + k * dilation + offset_k(p)) * mask_k(p)

Eq. (3) of SADNet (Chang et al., ECCV 2020), after Dai et al. (ICCV 2017) and
Zhu et al. (CVPR 2019), with the sampling rules of torchvision's operator. This
file has what users call; `deform_conv_vjp` computes it and its gradients,
`deform_sampling` says where it samples.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import operator

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.deform_conv_vjp import deform_conv_by_blocks
from sadnet_jax.deform_sampling import Geometry, accumulation_dtype

# Bytes of sampled values held at once. On a CPU a block should stay in the cache of
# its core (1, 2, 4, 8 MiB measured: 2 is fastest backward, no slower forward). An
# accelerator wants few, large blocks; its number is not measured.
_BLOCK_BYTES_CPU = 2 * 2**20
_BLOCK_BYTES_ACCELERATOR = 64 * 2**20
_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar('platform', default=None)


@contextlib.contextmanager
def blocks_for(platform: str) -> Iterator[None]:
  """Chooses the blocks of what is traced inside for this platform, not for JAX's default one."""
  token = _platform.set(platform)
  try:
    yield
  finally:
    _platform.reset(token)


def _traced_for() -> str:
  """The platform that `blocks_for` names, or JAX's default one."""
  return _platform.get() or jax.default_backend()


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
      backend that JAX uses by default (see `blocks_for`), on a CPU so that a block
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
  geometry = _check(
    x, offset, mask, kernel, bias, stride, padding, dilation, groups, deformable_groups, block_pixels
  )
  dtype = jnp.result_type(x, kernel)
  n = x.shape[0]
  if n == 0:
    return jnp.zeros((0, *geometry.output_size, kernel.shape[3]), dtype)
  weights = _dense_kernel(kernel.astype(dtype), groups)
  y = deform_conv_by_blocks(geometry, x.astype(dtype), offset, mask, weights)
  if bias is None:
    return y
  # Added in at least float32, so that the bias's gradient is summed there.
  wide = accumulation_dtype(dtype)
  return (y.astype(wide) + bias.astype(wide)).astype(dtype)


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
  def __call__(self, x: jax.Array, offset: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Shapes as in `deform_conv2d`."""
    # Below 1, `deform_conv2d` refuses.
    channels = x.shape[-1] // max(self.groups, 1)
    kernel_shape = (*self.kernel_size, channels, self.features)
    kernel = self.param('kernel', self.kernel_init, kernel_shape, self.param_dtype)
    bias = self.param('bias', self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
    if self.dtype is not None:
      x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
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


def _block_pixels(total: int, bytes_per_pixel: int) -> int:
  """Pixels per block: near the byte budget, dividing the total where it can.

  A divisor avoids copying offset and mask to fill up the last block. A symbolic total has
  none that is known: a power of two fits the usual sizes.
  """
  budget = _BLOCK_BYTES_CPU if _traced_for() == 'cpu' else _BLOCK_BYTES_ACCELERATOR
  limit = max(1, budget // bytes_per_pixel)
  if jax.export.is_symbolic_dim(total):
    return 2 ** (limit.bit_length() - 1)
  fewest = -(-total // limit)
  for blocks in range(fewest, 2 * fewest + 1):
    if total % blocks == 0:
      return total // blocks
  return -(-total // fewest)


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
  try:
    y, x = value if isinstance(value, tuple | list) else (value, value)
    pair = (operator.index(y), operator.index(x))
  except (TypeError, ValueError):
    pair = None
  if pair is None or min(pair) < least:
    raise ValueError(f'{name}: got {value!r}, want an int or a pair of ints, each at least {least}')
  return pair


def _check(x, offset, mask, kernel, bias, stride, padding, dilation, groups, deformable_groups, block_pixels):
  """Checks every shape and returns the static numbers of the call."""
  arrays = {'x': x, 'offset': offset, 'mask': mask, 'kernel': kernel, 'bias': bias}
  for name, array in arrays.items():
    if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
      raise ValueError(f'{name}: got dtype {array.dtype}, want floating point')
  for name, array, layout in (('x', x, 'N, H, W, C'), ('kernel', kernel, 'Kh, Kw, C / groups, O')):
    if array.ndim != 4:
      raise ValueError(f'{name}: got shape {array.shape}, want 4 axes [{layout}]')
  n, h, w, c = x.shape
  kh, kw, kernel_c, features = kernel.shape
  for name, value, divides in (
    ('groups', groups, {'input channels': c, 'output channels': features}),
    ('deformable_groups', deformable_groups, {'input channels': c}),
  ):
    for what, number in divides.items():
      if not isinstance(value, int | np.integer) or value < 1 or number % value:
        raise ValueError(f'{name}: got {value}, want a divisor of the {number} {what}')
  if kernel_c * groups != c:
    raise ValueError(
      f'kernel: got {kernel_c} input channels per group, want {c // groups} = '
      f'{c} channels of x / {groups} groups'
    )
  stride, padding = _pair('stride', stride, 1), _pair('padding', padding, 0)
  dilation = _pair('dilation', dilation, 1)
  ho, wo = (
    (size + 2 * p - d * (k - 1) - 1) // s + 1
    for size, p, d, k, s in zip((h, w), padding, dilation, (kh, kw), stride, strict=True)
  )
  if c < 1:
    raise ValueError(f'x: got shape {x.shape}, want at least one channel')
  if any(size < 1 for size in (h, w, ho, wo, kh, kw)):
    raise ValueError(
      f'x: got shape {x.shape}, too small for kernel {kh}x{kw}, stride {stride}, padding {padding}, '
      f'dilation {dilation}: the output would be {ho}x{wo}'
    )
  wanted = {
    'offset': (offset, (n, ho, wo, 2 * deformable_groups * kh * kw)),
    'mask': (mask, (n, ho, wo, deformable_groups * kh * kw)),
    'bias': (bias, (features,)),
  }
  for name, (array, shape) in wanted.items():
    if array is not None and array.shape != shape:
      raise ValueError(
        f'{name}: got shape {array.shape}, want {shape} for x {x.shape}, kernel {kernel.shape}, '
        f'stride {stride}, padding {padding}, dilation {dilation}, deformable_groups {deformable_groups}'
      )
  rows = n * (h + 2) * (w + 2) * deformable_groups
  if rows >= 2**31:
    raise ValueError(f'x: got shape {x.shape}, {rows} rows to sample from, want fewer than 2**31: use tiles')
  total = n * ho * wo
  if block_pixels is None and total:
    block_pixels = _block_pixels(total, kh * kw * c * accumulation_dtype(x.dtype).itemsize)
  elif block_pixels is not None and (not isinstance(block_pixels, int | np.integer) or block_pixels < 1):
    raise ValueError(f'block_pixels: got {block_pixels}, want an int of at least 1, or None')
  return Geometry(
    kernel_size=(kh, kw),
    stride=stride,
    padding=padding,
    dilation=dilation,
    deformable_groups=deformable_groups,
    image_size=(h, w),
    output_size=(ho, wo),
    block_pixels=block_pixels or 1,
    split_loops=_traced_for() == 'cpu',
  )
