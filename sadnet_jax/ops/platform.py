"""The platform that a program is compiled for, and the block sizes that suit it."""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from typing import TypeVar

import jax
from jax import lax
import jax.numpy as jnp

T = TypeVar('T')

# Bytes of sampled values held at once. On a CPU a block should fit in a cache: of 1, 2, 4 and 8 MiB,
# measured on the network, 4 is fastest forward by 3% and as fast as 2 backward. An accelerator wants few,
# large blocks; its value has not been tuned.
BLOCK_BYTES_CPU = 4 * 2**20
BLOCK_BYTES_ACCELERATOR = 64 * 2**20
# A call that samples fewer values loses more to compiling fusion barriers than it gains from them.
MIN_VALUES_FOR_BARRIERS = 2**18

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar('target_platform', default=None)


@contextlib.contextmanager
def target_platform(platform: str) -> Iterator[None]:
  """Traces everything inside for the given platform instead of JAX's default one.

  The operators choose block sizes and algorithms by platform while they are traced, when
  JAX does not yet know where the program will run. Programs for another than the
  default device need this; they stay correct without it, but are slower.

  Args:
    platform: As in `jax.Device.platform`, for example 'cpu' or 'cuda'.
  """
  token = _target.set(platform)
  try:
    yield
  finally:
    _target.reset(token)


def current_platform() -> str:
  """The platform set by `target_platform`, or else JAX's default one."""
  return _target.get() or jax.default_backend()


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """The dtype of locations, blending and sums: ``dtype``, but at least float32."""
  return jnp.promote_types(dtype, jnp.float32)


def needs_fusion_barriers(values: int) -> bool:
  """Whether a call that samples this many values runs faster with `fusion_barrier`."""
  if current_platform() != 'cpu':
    return False
  return jax.export.is_symbolic_dim(values) or values >= MIN_VALUES_FOR_BARRIERS


def fusion_barrier(always: jax.Array, function: Callable[[], T]) -> T:
  """Calls a function so that XLA on a CPU does not fuse its loops with those around it.

  XLA fuses what it takes for cheap into every loop that reads it, which then computes it again for each of
  its values. It fuses across everything except the boundary of a computation (it drops
  `jax.lax.optimization_barrier` before it fuses), so the function becomes the branch of a conditional that is
  always taken.

  On an accelerator the function is simply called: there a conditional would wait for the device.

  Args:
    always: bool scalar that is true, which XLA must not be able to find out.
    function: Returns a pytree of arrays.

  Returns:
    What the function returns.
  """
  if current_platform() != 'cpu':
    return function()
  shapes = jax.eval_shape(function)
  return lax.cond(
    always, function, lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  )


def choose_block_pixels(total: int, bytes_per_pixel: int) -> int:
  """Pixels per block: close to the platform's byte budget, and a divisor of the total if possible.

  With a divisor, no offsets and masks are copied to fill up the last block. The divisors of a
  symbolic total are unknown; it gets a power of two, which divides most image sizes.

  Args:
    total: Pixels of all blocks together.
    bytes_per_pixel: Bytes of the values sampled for one pixel.
  """
  budget = BLOCK_BYTES_CPU if current_platform() == 'cpu' else BLOCK_BYTES_ACCELERATOR
  limit = max(1, budget // bytes_per_pixel)
  if jax.export.is_symbolic_dim(total):
    return 2 ** (limit.bit_length() - 1)
  fewest = -(-total // limit)
  for blocks in range(fewest, 2 * fewest + 1):
    if total % blocks == 0:
      return total // blocks
  return -(-total // fewest)
