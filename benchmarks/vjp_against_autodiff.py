"""The hand-written backward pass of deform_conv2d beside JAX's own differentiation of it.

  python benchmarks/vjp_against_autodiff.py

Both compute all gradients (x, offset, mask, kernel) of the same forward pass, at
the finest scale of a training step and of a 480x320 image; they must agree before
anything is timed. Prints milliseconds (median) and the temporary memory that the
compiled program asks for.
"""

from collections.abc import Callable
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp

from sadnet_jax import deform_conv, deform_conv_vjp
from sadnet_jax.deform_conv import deform_conv2d

SHAPES = ((4, 128, 128, 32), (1, 320, 480, 32))
DEFORMABLE_GROUPS = 8
RUNS = 5


def gradients(x, offset, mask, kernel, dy):
  def forward(x, offset, mask, kernel):
    return deform_conv2d(x, offset, mask, kernel, padding=1, deformable_groups=DEFORMABLE_GROUPS)

  return jax.vjp(forward, x, offset, mask, kernel)[1](dy)


def measured(compiled: Callable, inputs: list[jax.Array]) -> float:
  """Median milliseconds of a call."""
  taken = []
  for _ in range(RUNS + 1):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*inputs))
    taken.append(1e3 * (time.perf_counter() - start))
  return statistics.median(taken[1:])


def main() -> None:
  print(f'{"shape":<20}{"backward":<14}{"ms":>10}{"temporary MB":>16}')
  for shape in SHAPES:
    keys = jax.random.split(jax.random.key(0), 5)
    n, h, w, c = shape
    samples = DEFORMABLE_GROUPS * 9
    inputs = [
      jax.random.normal(keys[0], shape),
      1.5 * jax.random.normal(keys[1], (n, h, w, 2 * samples)),
      jax.random.uniform(keys[2], (n, h, w, samples)),
      jax.random.normal(keys[3], (3, 3, c, c)) / 17,
      jax.random.normal(keys[4], shape),
    ]
    by_hand = jax.jit(gradients).lower(*inputs).compile()
    # The same forward pass without its custom derivative.
    plain = deform_conv_vjp.deform_conv_by_blocks.fun
    with mock.patch.object(deform_conv, 'deform_conv_by_blocks', plain):
      # A function of its own, so that JAX does not reuse the trace of the first.
      automatic = jax.jit(lambda *inputs: gradients(*inputs)).lower(*inputs).compile()
    for got, wanted in zip(by_hand(*inputs), automatic(*inputs), strict=True):
      error = float(jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted))
      if not error < 1e-4:
        raise SystemExit(f'{shape}: the gradients differ by {error}, want less than 1e-4')
    for name, compiled in (('by hand', by_hand), ('autodiff', automatic)):
      megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
      print(f'{"x".join(map(str, shape)):<20}{name:<14}{measured(compiled, inputs):>10.0f}{megabytes:>16.0f}')


if __name__ == '__main__':
  main()
