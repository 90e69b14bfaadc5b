"""Times this package and the same network in PyTorch and ONNX Runtime on the same machine.

  python benchmarks/pytorch/run.py --runs 5 --json pytorch_cpu.json

First both networks get the same random weights and must agree in the forward pass and in the gradient of the
loss; otherwise nothing is timed and the exit status is 1. Then each row is timed in one process, all in
turn, so that other load on the machine affects both. Before a row is timed, every variant computes it
once, on the inputs that are timed, and must agree with PyTorch's eager float32. A variant that does not agree
is not timed, and the exit status is 1 in the end. If eager float32 did not run, nothing of the row is timed.

All compute in float32 with TF32 off: PyTorch eagerly, with its default number of threads and its usual
layout, in channels-last, and with torch.compile; JAX under jit. Compilation does not count. PyTorch also
computes in bfloat16, by autocast, in which torchvision's operator computes in float32 because it does not
support bfloat16. On a CPU, ONNX Runtime computes the network's forward pass, from this package's export. On a
GPU there are also PyTorch in TF32, and JAX in TF32 and in bfloat16, with ``SADNet(dtype=bfloat16)``, or for
the operator alone with all its inputs in bfloat16, compared with PyTorch's float32 of inputs rounded to
bfloat16. A variant that does not fit into memory or cannot be compiled is reported as not run. A GPU is used
only if both frameworks see one. If both do not fit into its memory together, all runs of PyTorch come first.

Beside each figure is its limit on this machine; see `benchmarks.common`. On a CPU, the rows that take minutes
are timed only if requested with ``--only``, and 3 times at most. A file given to ``--json`` keeps its other
rows if they were measured with the same machine, versions, commit and seed; otherwise it is refused before
anything is measured. (Give a file outside the clone: a tracked file that changes counts as an uncommitted
change.) On a GPU, time the largest row in a run of its own, where it finds the most memory.

The limits are measured before the first row and after the last one, and the higher rates count. The JSON,
written after each row:

  {**environment, 'device': 'cpu' | 'gpu', 'gpu': name or None, 'torch_threads', 'seed',
   'commands': of all runs in the file,
   'limits': {precision: {'flops_per_second', 'bytes_per_second'}},
   'agreement': {...},
   'rows': {key: {
     'what', 'runs', 'in_turn': whether PyTorch and JAX were timed in turn,
     'pytorch': {variant: result}, with 'eager' and, for the network, 'compile', 'bfloat16', ...,
     'onnx_runtime': {'float32': result}, or empty,
     'jax': {precision: {**result, 'limit_ms', 'limit_share'}},
     'ratio': eager over JAX, in float32, 'flops', 'bytes', 'limit_ms', 'limit_share': in float32}},
   'targets': {name: {'what', 'value', 'target', 'sense': 'at least' | 'at most', 'reached'}}}

A result is {'ms': the median, 'runs_ms', 'relative_difference', 'tolerance'}, without the last two for the
first variant, or {'not_run': reason}. Precisions are 'float32' and, on a GPU, 'tf32' and 'bfloat16'. The
ratio and the share are None if a variant was not timed.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import shlex
import sys
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

from sadnet_jax.extras import required

with required('bench,train'):
  import torch

  from benchmarks import common
  from benchmarks.common import Limits, copy_rate, matrix_rate
  from benchmarks.pytorch import agreement
  from benchmarks.pytorch import results as results_file
  from benchmarks.pytorch.contenders import contenders, jax_precisions, torch_bytes
  from benchmarks.pytorch.rows import ROWS, Row, chosen_rows
  from benchmarks.pytorch.sadnet import SADNet
  from benchmarks.pytorch.turns import Comparison, groups_that_fit, release

import jax

from sadnet_jax.machine import environment


def choose_device(requested: str | None) -> torch.device:
  """The GPU if both frameworks see one, otherwise the CPU for both.

  Args:
    requested: 'cpu', 'gpu', or None for the GPU if there is one.

  Raises:
    ValueError: 'gpu' is requested, but not both frameworks see one.
  """
  # Read when JAX first looks for devices, below. PyTorch needs memory too.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.95')
  if requested == 'cpu' or not torch.cuda.is_available():
    jax.config.update('jax_platforms', 'cpu')
  if jax.default_backend() != 'gpu':
    if requested == 'gpu':
      seen = f'PyTorch: {torch.cuda.is_available()}, JAX: {jax.default_backend() == "gpu"}'
      raise ValueError(f'--device gpu: both frameworks must see a GPU ({seen})')
    return torch.device('cpu')
  # The same arithmetic for both, and autotuning of kernels in PyTorch, which XLA does by default.
  jax.config.update('jax_default_matmul_precision', 'float32')
  torch.backends.cuda.matmul.allow_tf32 = False
  torch.backends.cudnn.allow_tf32 = False
  torch.backends.cudnn.benchmark = True
  return torch.device('cuda')


def measure_limits(device: str) -> dict[str, Limits]:
  """The rates of the machine for every precision of JAX; they share the copy rate."""
  bytes_per_second = copy_rate()
  limits = {p: Limits(matrix_rate(p), bytes_per_second) for p in jax_precisions(device)}
  for precision, rates in limits.items():
    print(
      f'limits, {precision}: {rates.flops_per_second / 1e9:.0f} GFLOP/s in matrix products, '
      f'{rates.bytes_per_second / 1e9:.1f} GB/s copied (read + written)'
    )
  return limits


def measure_row(row: Row, net: SADNet, device: torch.device, runs: int) -> tuple[dict[str, Any], list[str]]:
  """A row of the results without limits, and its problems."""
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
  return {**result, 'ratio': results_file.ratio(result)}, comparison.problems


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.make_parser(__doc__, runs=5)
  parser.add_argument('--seed', type=int, default=0, help='seed of the random weights (default: 0)')
  parser.add_argument('--device', choices=['cpu', 'gpu'], help='default: gpu if both frameworks have one')
  parser.add_argument(
    '--only', nargs='+', choices=list(ROWS), metavar='ROW', help=f'rows to time: {", ".join(ROWS)}'
  )
  return parser.parse_args(argv)


def describe(device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
  """Hardware, versions, commit, command, and what else affects the figures."""
  options = ['--runs', str(arguments.runs), '--seed', str(arguments.seed)]
  if arguments.only:
    options += ['--only', *arguments.only]
  return {
    **environment(('flax', 'optax', 'torch', 'torchvision', 'onnxruntime')),
    'device': 'cpu' if device.type == 'cpu' else 'gpu',
    'gpu': torch.cuda.get_device_name() if device.type == 'cuda' else None,
    'torch_threads': torch.get_num_threads(),
    'seed': arguments.seed,
    'commands': [shlex.join(['python', 'benchmarks/pytorch/run.py', *options])],
  }


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_arguments(argv)
  try:
    device = choose_device(arguments.device)
    results = describe(device, arguments)
    old = results_file.read_results(arguments.json) if arguments.json else None
    if old is not None:
      results_file.check_same_environment(old, results, arguments.json)
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
  print(f'\n{results_file.HEADER}')
  problems = []
  for row in chosen_rows(arguments.only, results['device']):
    result, wrong = measure_row(row, net, device, row.runs(arguments.runs, results['device']))
    problems += wrong
    results['rows'][row.key] = result
    merged = results_file.merge(old, results)
    if arguments.json:
      results_file.write_results(arguments.json, merged)
    print('\n'.join(results_file.table_lines(merged['rows'][row.key])), flush=True)
  # Again, since other load may have slowed the machine down.
  again = measure_limits(results['device'])
  results['limits'] = {name: rates.best(again[name]).to_json() for name, rates in limits.items()}
  merged = results_file.merge(old, results)
  if arguments.json:
    results_file.write_results(arguments.json, merged)
  common.print_targets(merged['targets'])
  for problem in problems:
    print(problem, file=sys.stderr)
  return 1 if problems else 0


if __name__ == '__main__':
  sys.exit(main())
