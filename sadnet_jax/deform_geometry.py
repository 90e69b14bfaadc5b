"""The static numbers of a deformable convolution: its shapes, checked, and its blocks."""

from collections.abc import Iterator, Mapping
import contextlib
import contextvars
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Values for each sample in the arrays that move a deformable convolution.
_VALUES_OF_SAMPLE = {'offset': 2, 'mask': 1, 'prediction': 3}

# Bytes of sampled values held at once. On a CPU a block should stay in a cache (1, 2, 4, 8 MiB
# measured on the network: 4 is fastest forward by 3%, and as fast as 2 backward). An accelerator
# wants few, large blocks; its number is not measured.
_BLOCK_BYTES_CPU = 4 * 2**20
_BLOCK_BYTES_ACCELERATOR = 64 * 2**20
# With fewer sampled numbers than this, what separate loops save is less than they take to compile.
_LEAST_SPLIT_VALUES = 2**18
_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar('platform', default=None)


@contextlib.contextmanager
def blocks_for(platform: str) -> Iterator[None]:
  """Chooses the blocks of what is traced inside for this platform, not for JAX's default one."""
  token = _platform.set(platform)
  try:
    yield
  finally:
    _platform.reset(token)


def traced_for() -> str:
  """The platform that `blocks_for` names, or JAX's default one."""
  return _platform.get() or jax.default_backend()


class Geometry(NamedTuple):
  """The static numbers of one call; hashable, so it can be a static argument."""

  kernel_size: tuple[int, int]
  stride: tuple[int, int]
  padding: tuple[int, int]
  dilation: tuple[int, int]
  deformable_groups: int
  image_size: tuple[int, int]
  output_size: tuple[int, int]
  block_pixels: int
  # Whether each step of a block is to be a program loop of its own, see `deform_conv_vjp`.
  split_loops: bool

  @property
  def taps(self) -> int:
    """K = Kh * Kw."""
    return self.kernel_size[0] * self.kernel_size[1]

  @property
  def samples(self) -> int:
    """S = G * K."""
    return self.deformable_groups * self.taps

  @property
  def corner_steps(self) -> tuple[int, int, int, int]:
    """Rows of the padded table from the first corner to each."""
    right = self.deformable_groups
    down = (self.image_size[1] + 2) * self.deformable_groups
    return 0, right, down, down + right


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """At least float32: the dtype of locations, blending and sums."""
  return jnp.promote_types(dtype, jnp.float32)


def _pays_to_split(values):
  return jax.export.is_symbolic_dim(values) or values >= _LEAST_SPLIT_VALUES


def block_pixels_for(total: int, bytes_per_pixel: int) -> int:
  """Pixels per block: near the byte budget, dividing the total where it can.

  A divisor avoids copying offset and mask to fill up the last block. A symbolic total has
  none that is known: a power of two fits the usual sizes.
  """
  budget = _BLOCK_BYTES_CPU if traced_for() == 'cpu' else _BLOCK_BYTES_ACCELERATOR
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


def checked_geometry(
  x: jax.Array,
  moved: Mapping[str, jax.Array | None],
  kernel: jax.Array,
  bias: jax.Array | None,
  stride: int | tuple[int, int],
  padding: int | tuple[int, int],
  dilation: int | tuple[int, int],
  groups: int,
  deformable_groups: int,
  block_pixels: int | None,
) -> Geometry:
  """Checks every shape of a call and returns its static numbers.

  Args:
    x, kernel, bias, stride, padding, dilation, groups, deformable_groups, block_pixels:
      As in `deform_conv.deform_conv2d`.
    moved: What tells where and how much is sampled, under its name: ``offset`` and
      ``mask``, or ``prediction``.

  Raises:
    ValueError: A shape does not fit the others, or an option is out of range.
  """
  arrays = {'x': x, **moved, 'kernel': kernel, 'bias': bias}
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
  wanted: dict[str, tuple[jax.Array | None, tuple[int, ...]]] = {
    name: (array, (n, ho, wo, _VALUES_OF_SAMPLE[name] * deformable_groups * kh * kw))
    for name, array in moved.items()
  }
  wanted['bias'] = (bias, (features,))
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
    block_pixels = block_pixels_for(total, kh * kw * c * accumulation_dtype(x.dtype).itemsize)
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
    split_loops=traced_for() == 'cpu' and _pays_to_split(total * kh * kw * c),
  )
