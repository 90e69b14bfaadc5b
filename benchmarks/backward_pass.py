"""The hand-written backward pass of deform_conv2d beside JAX's own differentiation of it.

  python benchmarks/vjp_against_autodiff.py --json vjp_against_autodiff.json

Both compute all gradients (x, offset, mask, kernel) of the same forward pass, at
the finest scale of a training step and of a 480x320 image; they must agree before
anything is timed, and take turns. Prints milliseconds (median) and the temporary memory that
the compiled program asks for. The limit is the operations of a forward and a backward pass
over the machine's matrix rate, or the bytes over its copy rate.

On a CPU the hand-written path puts the steps of a block into conditionals, which keep
XLA from merging them. JAX would differentiate these too; it is given the forward pass
as it is on an accelerator, without them, with blocks of the same size.
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

from benchmarks import common
from benchmarks.limits import DEFORMABLE_GROUPS, TAPS, deform_conv_cost
from benchmarks.paper_deform_conv import paper_deform_conv
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
  """The gradients by hand and by JAX, compiled for these inputs."""
  n, h, w, c = inputs[0].shape
  block_pixels = choose_block_pixels(n * h * w, 4 * TAPS * c)

  def gradients(x, offset, mask, kernel, dy):
    forward = functools.partial(paper_deform_conv, block_pixels=block_pixels)
    return jax.vjp(forward, x, offset, mask, kernel)[1](dy)

  by_hand = jax.jit(gradients).lower(*inputs).compile()
  # The same forward pass without its custom derivative.
  plain = deform_conv.deform_conv_by_blocks.fun
  with mock.patch.object(deform_conv, 'deform_conv_by_blocks', plain), target_platform('cuda'):
    # A function of its own, so that JAX does not reuse the trace of the first.
    automatic = jax.jit(lambda *inputs: gradients(*inputs)).lower(*inputs).compile()
  return {'by_hand': by_hand, 'autodiff': automatic}


def check_agreement(what: str, both: dict[str, jax.stages.Compiled], inputs: list[jax.Array]) -> None:
  """Runs both.

  Raises:
    SystemExit: Their gradients differ by more than rounding does.
  """
  for got, wanted in zip(*(compiled(*inputs) for compiled in both.values()), strict=True):
    error = float(jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted))
    if not error < 1e-4:
      raise SystemExit(f'{what}: the gradients differ by {error}, want less than 1e-4')


def measure(shape: tuple[int, int, int, int], runs: int) -> dict[str, Any]:
  """A row of the results: of each of both, seconds and the bytes of temporary memory."""
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
  options = common.options_of(arguments)
  precision, found_limits = common.default_limits()
  results: dict = common.describe('vjp_against_autodiff.py', options)
  results |= {'limits': {precision: found_limits.to_json()}, 'rows': {}}
  print(f'{"shape":<34}{"backward":<14}{"ms":>10}{"temporary MB":>16}')
  for shape in SHAPES:
    row = measure(shape, arguments.runs)
    row['limit_ms'] = 1e3 * found_limits.seconds(row['flops'], row['bytes'])
    results['rows']['x'.join(map(str, shape))] = row
    for name in ('by_hand', 'autodiff'):
      found = row[name]
      megabytes = found['temporary_bytes'] / 1e6
      print(f'{row["what"]:<34}{name:<14}{1e3 * found["seconds"]:>10.0f}{megabytes:>16.0f}')
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
