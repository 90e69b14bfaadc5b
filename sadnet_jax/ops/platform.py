"""Which platform a program is traced for, and the block sizes that suit it."""

from collections.abc import Iterator
import contextlib
import contextvars

import jax
import jax.numpy as jnp

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


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """At least float32: the dtype of locations, blending and sums."""
  return jnp.promote_types(dtype, jnp.float32)


def pays_to_split(values: int) -> bool:
  """Whether a call samples enough numbers for separate loops to save more than they take to compile."""
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
