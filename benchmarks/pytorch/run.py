"""Times this package beside the same network in PyTorch, on the same machine.

  python benchmarks/against_pytorch.py --runs 5 --json against_pytorch.json

First both networks get the same random weights and must agree in the forward pass and in the gradient of
the loss; if they do not, nothing is timed and the exit status is 1. Then each row is timed in one process,
PyTorch and JAX taking turns, so that whatever else the machine does falls on both. Before a row is timed,
every variant computes it once, on the inputs that are timed, and must agree with PyTorch's eager float32.
One that does not is not timed, and the exit status is 1 in the end. Where the eager float32 did not run,
nothing of the row is timed.

Both compute in float32 with TF32 off: PyTorch eagerly, with its default number of threads and its usual
layout, and by torch.compile; JAX under jit. Compilation falls into what is not counted. On a GPU there are
also PyTorch in channels-last, and both in TF32 and in bfloat16: PyTorch's by autocast, in which torchvision's
operator, which has no bfloat16, computes in float32; JAX's with ``SADNet(dtype=bfloat16)``, or for the
operator alone with all its inputs in bfloat16, beside PyTorch's float32 of inputs rounded so. What does not
fit into memory or cannot be compiled is reported as not run. A GPU is used only if both frameworks have one.
Where both do not fit into its memory together, all runs of PyTorch come first.

Beside each figure is its limit on this machine; see `limits`. By default a CPU is spared the rows that take
minutes: ask for them with ``--only``; they are timed 3 times at most. A file given to ``--json`` keeps its
other rows if they were measured on the same machine, versions, commit and seed; else it is refused before
anything is measured. (A tracked file in the clone that changes counts as an uncommitted change: write
elsewhere first.) On a GPU the largest row finds most memory in a run of its own.

The JSON, written after each row:

  {**environment, 'device': 'cpu' | 'gpu', 'gpu': name or None, 'torch_threads', 'seed',
   'limits': {precision: {'flops_per_second', 'bytes_per_second'}},
   'agreement': {...},
   'rows': {key: {
     'what', 'runs', 'in_turn': whether PyTorch and JAX took turns,
     'pytorch': {variant: result}, with 'eager' and, of the network, 'compile', ...,
     'jax': {precision: {**result, 'limit_ms', 'limit_share'}},
     'ratio': eager over JAX, in float32, 'flops', 'bytes', 'limit_ms', 'limit_share': in float32}},
   'marks': {name: {'what', 'value', 'want', 'sense': 'at least' | 'at most', 'reached'}}}

A result is {'ms': the median, 'runs_ms', 'relative_difference', 'tolerance'}, the last two not of the first
variant, or {'not_run': reason}. Precisions are 'float32' and, on a GPU, 'tf32' and 'bfloat16'. What was not
timed has None for ratio and share.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import sys
from typing import Any

import jax
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

from benchmarks import common
from benchmarks.limits import Limits, copy_rate, matrix_rate
from benchmarks.pytorch import agreement, results
from benchmarks.pytorch.contenders import contenders, torch_bytes
from benchmarks.pytorch.rows import ROWS, Row, chosen_rows
from benchmarks.pytorch.sadnet import SADNet
from benchmarks.pytorch.turns import Comparison, groups_that_fit, release
from benchmarks.pytorch.variants import jax_precisions
from sadnet_jax.machine import environment


def choose_device(wanted: str | None) -> torch.device:
  """The GPU if both frameworks see one, else the CPU for both.

  Args:
    wanted: 'cpu', 'gpu', or None for the better one.

  Raises:
    ValueError: 'gpu' is wanted, and one of the two sees none.
  """
  # Read when JAX first looks for devices, which is below: PyTorch needs memory as well.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.95')
  if wanted == 'cpu' or not torch.cuda.is_available():
    jax.config.update('jax_platforms', 'cpu')
  if jax.default_backend() != 'gpu':
    if wanted == 'gpu':
      seen = f'PyTorch {torch.cuda.is_available()}, JAX {jax.default_backend() == "gpu"}'
      raise ValueError(f'--device gpu: got a GPU in {seen}, want one in both')
    return torch.device('cpu')
  # The same arithmetic for both, and for PyTorch the choice of kernels that XLA makes anyway.
  jax.config.update('jax_default_matmul_precision', 'float32')
  torch.backends.cuda.matmul.allow_tf32 = False
  torch.backends.cudnn.allow_tf32 = False
  torch.backends.cudnn.benchmark = True
  return torch.device('cuda')


def measure_limits(device: str) -> dict[str, Limits]:
  """The rates for every precision that is measured; they share the copy rate."""
  bytes_per_second = copy_rate()
  limits = {p: Limits(matrix_rate(p), bytes_per_second) for p in jax_precisions(device)}
  for precision, rates in limits.items():
    print(
      f'limits, {precision}: {rates.flops_per_second / 1e9:.0f} GFLOP/s in matrix products, '
      f'{rates.bytes_per_second / 1e9:.1f} GB/s copied (read + written)'
    )
  return limits


def measure_row(row: Row, net: SADNet, device: torch.device, runs: int) -> tuple[dict[str, Any], list[str]]:
  """A row of the results, still without limits, and what went wrong in it."""
  release(device)
  groups = groups_that_fit(contenders(row, net, device), torch_bytes(row), device)
  comparison = Comparison(row, device)
  for group in groups:
    comparison.run(group, runs)
    release(device)
  cost = row.cost()
  result = {
    'what': row.what,
    'runs': runs,
    'in_turn': len(groups) == 1,
    **comparison.variants,
    'flops': cost.flops,
    'bytes': cost.bytes,
  }
  return {**result, 'ratio': results.ratio(result)}, comparison.problems


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument(
    '--runs', type=int, default=5, help='timed runs per row; the median counts (default: 5)'
  )
  parser.add_argument('--seed', type=int, default=0, help='of the random weights')
  parser.add_argument('--device', choices=['cpu', 'gpu'], help='default: gpu if both frameworks have one')
  parser.add_argument('--json', type=Path, metavar='FILE', help='also write the results to this file')
  parser.add_argument(
    '--only', nargs='+', choices=list(ROWS), metavar='ROW', help=f'rows to time: {", ".join(ROWS)}'
  )
  arguments = parser.parse_args(argv)
  if arguments.runs < 1:
    parser.error(f'--runs: got {arguments.runs}, want at least 1')
  return arguments


def describe(device: torch.device, seed: int) -> dict[str, Any]:
  """Hardware, versions, commit, and what else makes a difference."""
  return {
    **environment(('flax', 'optax', 'torch', 'torchvision')),
    'device': 'cpu' if device.type == 'cpu' else 'gpu',
    'gpu': torch.cuda.get_device_name() if device.type == 'cuda' else None,
    'torch_threads': torch.get_num_threads(),
    'seed': seed,
  }


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_arguments(argv)
  try:
    device = choose_device(arguments.device)
    results = describe(device, arguments.seed)
    old = results.read_results(arguments.json) if arguments.json else None
    if old is not None:
      results.check_same_environment(old, results, arguments.json)
    print(f'{results["gpu"] or results["cpu"]}, {results["cores"]} cores, {results["versions"]}')
    net = agreement.random_network(arguments.seed, device)
    results['agreement'] = agreement.agreement(net, device, arguments.seed)
    print(agreement.describe(results['agreement']))
    agreement.check(results['agreement'], results['device'])
  except ValueError as error:
    print(error, file=sys.stderr)
    return 1

  limits = measure_limits(results['device'])
  results |= {'limits': {name: rates.to_json() for name, rates in limits.items()}, 'rows': {}}
  print(f'\n{results.HEADER}')
  problems = []
  for row in chosen_rows(arguments.only, results['device']):
    result, wrong = measure_row(row, net, device, row.runs(arguments.runs, results['device']))
    problems += wrong
    results['rows'][row.key] = result
    merged = results.merge(old, results)
    if arguments.json:
      results.write_results(arguments.json, merged)
    print('\n'.join(results.table_lines(merged['rows'][row.key])), flush=True)
  common.print_marks(merged['marks'])
  for problem in problems:
    print(problem, file=sys.stderr)
  return 1 if problems else 0


if __name__ == '__main__':
  sys.exit(main())
