"""The hand-written backward pass of deform_conv2d compared with JAX's own differentiation.

  python benchmarks/backward_pass.py --json backward_pass.json

Both compute all gradients (x, offset, mask, kernel) of the same forward pass, at the finest scale of a
training step and of a 480x320 image. They must agree before anything is timed, and are timed in turn. Prints
the median milliseconds and the temporary memory that the compiled program asks for. The limit is that of a
forward and a backward pass together.

On a CPU, the hand-written path puts the steps of a block into conditionals, which keep XLA from fusing them.
JAX would differentiate these too, so it gets the forward pass for accelerators, which has none, with blocks
of the same size.
"""

from collections.abc import Sequence
import functools
from pathlib import Path
import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import common, tables
from benchmarks.common import DEFORMABLE_GROUPS, TAPS, deform_conv_cost, paper_deform_conv
from sadnet_jax.ops import deform_conv
from sadnet_jax.ops.platform import choose_block_pixels, target_platform

SHAPES = ((4, 128, 128, 32), (1, 320, 480, 32))


def random_inputs(shape: tuple[int, int, int, int]) -> list[jax.Array]:
  """x, offset, mask, kernel, and the gradient of the output."""
  keys = jax.random.split(jax.random.key(0), 5)
  n, h, w, c = shape
  samples = DEFORMABLE_GROUPS * TAPS
  return [
    jax.random.normal(keys[0], shape),
    1.5 * jax.random.normal(keys[1], (n, h, w, 2 * samples)),
    jax.random.uniform(keys[2], (n, h, w, samples)),
    jax.random.normal(keys[3], (3, 3, c, c)) / 17,
    jax.random.normal(keys[4], shape),
  ]


def compile_both(inputs: list[jax.Array]) -> dict[str, jax.stages.Compiled]:
  """The hand-written gradients and JAX's, compiled for these inputs."""
  n, h, w, c = inputs[0].shape
  block_pixels = choose_block_pixels(n * h * w, 4 * TAPS * c)

  def gradients(x, offset, mask, kernel, dy):
    forward = functools.partial(paper_deform_conv, block_pixels=block_pixels)
    return jax.vjp(forward, x, offset, mask, kernel)[1](dy)

  by_hand = jax.jit(gradients).lower(*inputs).compile()
  # The same forward pass without its custom derivative.
  plain = deform_conv.deform_conv_by_blocks.fun
  with mock.patch.object(deform_conv, 'deform_conv_by_blocks', plain), target_platform('cuda'):
    # A new function, so that JAX does not reuse the trace of the first.
    automatic = jax.jit(lambda *inputs: gradients(*inputs)).lower(*inputs).compile()
  return {'by_hand': by_hand, 'autodiff': automatic}


def check_agreement(what: str, both: dict[str, jax.stages.Compiled], inputs: list[jax.Array]) -> None:
  """Raises SystemExit if the gradients of the two differ by more than rounding."""
  for got, expected in zip(*(compiled(*inputs) for compiled in both.values()), strict=True):
    error = float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected))
    if not error < 1e-4:
      raise SystemExit(f'{what}: relative difference of the gradients is {error:.1e}, must be below 1e-4')


def measure(shape: tuple[int, int, int, int], runs: int) -> dict[str, Any]:
  """A row of the results: seconds and bytes of temporary memory of each of the two."""
  what = f'deform_conv2d {"x".join(map(str, shape))}'
  inputs = random_inputs(shape)
  both = compile_both(inputs)
  check_agreement(what, both, inputs)
  taken: dict[str, list[float]] = {name: [] for name in both}
  for _ in range(runs):
    for name, compiled in both.items():
      taken[name].append(common.seconds_of(functools.partial(compiled, *inputs)))
  found = {
    name: {**common.summary(taken[name]), 'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes}
    for name, compiled in both.items()
  }
  costs = [deform_conv_cost(shape, backward) for backward in (False, True)]
  flops, bytes_ = (sum(each) for each in zip(*costs, strict=True))
  return {'what': what, **found, 'flops': flops, 'bytes': bytes_}


def main(argv: Sequence[str] | None = None) -> None:
  arguments = common.make_parser(__doc__, runs=5).parse_args(argv)
  precision, limits = common.default_limits()
  results: dict = common.describe('backward_pass.py', common.options_of(arguments))
  results |= {'limits': {precision: limits.to_json()}, 'rows': {}}
  for shape in SHAPES:
    row = measure(shape, arguments.runs)
    row['limit_ms'] = 1e3 * limits.seconds(row['flops'], row['bytes'])
    results['rows']['x'.join(map(str, shape))] = row
  print('\n'.join(tables.backward_pass_table(results)))
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
