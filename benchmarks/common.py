"""What the benchmarks share: options, results files, timing, and how fast this machine can be at most.

The limit beside a figure is the least time in which this machine could do the same work: `Limits.seconds` of
the operations and bytes that `network_cost` and `deform_conv_cost` count, at the matrix rate and the copy
rate that `default_limits` measures in the same process. A multiply-accumulate counts as two operations. Bytes
are those of the tensors between layers, each read once and written once. Elementwise work (activation, skip
connection, sigmoid) is assumed to be fused and counts nothing, and neither does recomputation. No program can
beat the limit in arithmetic; it can beat it in traffic only by fusing layers.
"""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import json
import math
import os
from pathlib import Path
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any, Literal, NamedTuple

# Read when JAX first looks for devices: on a GPU, this process and the ones it starts share the memory.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import ml_collections

# The configs are not installed with the package.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from configs import color_fast
from sadnet_jax.evaluation.results import shareable
from sadnet_jax.files import local_path, write_text
from sadnet_jax.machine import environment
from sadnet_jax.nn.sadnet import SCALES, STRIDE, SADNet, param_shapes, round_up, scale_of
from sadnet_jax.ops.deform_conv import deform_conv2d

ROOT = Path(__file__).resolve().parent.parent


# The deformable convolutions of the paper's network.
DEFORMABLE_GROUPS = 8
TAPS = 9

# 'tf32': float32 values that a GPU's matrix units round to 10 bits; on a CPU the same as 'float32'.
Precision = Literal['float32', 'tf32', 'bfloat16']
# The names that `jax.default_matmul_precision` takes. In bfloat16 there is nothing to choose.
MATMUL_PRECISION = {'float32': 'float32', 'tf32': 'tensorfloat32', 'bfloat16': 'default'}
# Sides of the square matrices, and bytes of the array that is copied: larger than any cache.
MATRIX_SIDES = {'cpu': (1024, 2048, 3072), 'gpu': (4096, 8192, 16384)}
COPY_BYTES = 2**30
RATE_RUNS = 5


# Options and results.


def make_parser(description: str | None, *, runs: int | None = None) -> argparse.ArgumentParser:
  """A parser with the option ``--json`` and, if ``runs`` is given, ``--runs``.

  Args:
    description: The script's docstring.
    runs: Default number of runs.
  """
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  if runs is not None:
    help_text = 'timed runs; the median counts (default: %(default)s)'
    parser.add_argument('--runs', type=at_least_one, default=runs, help=help_text)
  parser.add_argument('--json', type=result_file, metavar='FILE', help='also write the results to this file')
  return parser


def make_training_parser(description: str | None, *, steps: int) -> argparse.ArgumentParser:
  """`make_parser` for a benchmark that trains: also ``--images`` and ``--steps``."""
  parser = make_parser(description)
  help_text = 'clean images; may be relative to SADNET_DATA (default: %(default)s)'
  parser.add_argument('--images', default='train/BSD432', help=help_text)
  parser.add_argument(
    '--steps', type=at_least_one, default=steps, help='steps of each run (default: %(default)s)'
  )
  return parser


def at_least_one(text: str) -> int:
  """Converts an option to an integer of at least 1; argparse reports the error."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'must be at least 1, not {value}')
  return value


def folder(text: str) -> Path:
  """Converts an option to a local path; argparse reports the error."""
  try:
    return local_path(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def result_file(text: str) -> Path:
  """`folder` for a file that is written when all is measured: its folder must exist."""
  path = folder(text)
  if not path.parent.is_dir():
    raise argparse.ArgumentTypeError(f'the folder {path.parent} does not exist; create it')
  return path


def options_of(arguments: argparse.Namespace, exclude: Collection[str] = ()) -> list[str]:
  """The command-line options that give these arguments.

  Args:
    arguments: Parsed arguments.
    exclude: Names, besides ``json``, that do not affect the figures.
  """
  options = []
  for name, value in vars(arguments).items():
    if name != 'json' and name not in exclude:
      values = value if isinstance(value, list | tuple) else [value]
      options += [f'--{name}', *(f'{v:g}' if isinstance(v, float) else str(v) for v in values)]
  return options


def describe(
  script: str, options: Sequence[str], packages: Sequence[str] = ('flax', 'optax')
) -> dict[str, object]:
  """Command, hardware, versions and commit, which every results file starts with.

  Args:
    script: File of the script, such as 'memory.py'.
    options: Those that affect the figures.
    packages: Distributions, besides JAX, whose versions affect them.
  """
  platform, kind = jax.default_backend(), jax.local_devices()[0].device_kind
  return {
    **environment(packages),
    'command': shlex.join(['python', f'benchmarks/{script}', *shareable(list(options))]),
    'device': platform,
    'gpu': kind if platform == 'gpu' else None,
  }


def at_most(what: str, value: float, target: float) -> dict[str, object]:
  """A target of the results file that is reached by a figure of at most ``target``."""
  return {'what': what, 'value': value, 'target': target, 'sense': 'at most', 'reached': value <= target}


def at_least(what: str, value: float, target: float) -> dict[str, object]:
  """A target of the results file that is reached by a figure of at least ``target``."""
  return {'what': what, 'value': value, 'target': target, 'sense': 'at least', 'reached': value >= target}


def print_targets(targets: Mapping[str, Mapping[str, Any]]) -> None:
  """Prints a line for each target."""
  for target in targets.values():
    reached = 'reached' if target['reached'] else 'not reached'
    goal = f'{target["sense"]} {target["target"]:g}'
    print(f'{target["what"]}: {target["value"]:.2f}, target {goal}: {reached}')


def finish(results: Mapping[str, Any], path: Path | None) -> None:
  """Prints the targets of the results, if they have any, and writes the results file if a path is given."""
  print_targets(results.get('targets', {}))
  if path:
    write_text(path, json.dumps(results, indent=2) + '\n')


# Timing.


def in_fresh_process(script: str, options: Sequence[str]) -> dict:
  """Runs a script of this folder in its own process and returns the JSON on the last line of its output.

  The process has no compilation cache unless the script enables one.

  Raises:
    SystemExit: The script failed.
  """
  environ = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
  command = [sys.executable, str(Path(__file__).with_name(script)), *options]
  done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    raise SystemExit(f'{shlex.join(command)}: failed with exit status {done.returncode}')
  return json.loads(done.stdout.splitlines()[-1])


def seconds_of(call: Callable[[], object], times: int = 1) -> float:
  """Mean seconds per call over ``times`` calls."""
  start = time.perf_counter()
  for _ in range(times):
    jax.block_until_ready(call())
  return (time.perf_counter() - start) / times


def summary(runs: Sequence[float]) -> dict[str, object]:
  """Median and all runs, in seconds, as they stand in a results file."""
  return {'seconds': statistics.median(runs), 'runs_seconds': list(runs)}


# The machine's rates.


@dataclasses.dataclass(frozen=True)
class Limits:
  """The rates that a machine reaches.

  Attributes:
    flops_per_second: Operations per second in the product of two large matrices.
    bytes_per_second: Bytes read plus bytes written per second in an elementwise operation on a large array.
  """

  flops_per_second: float
  bytes_per_second: float

  def seconds(self, flops: float, bytes_: float) -> float:
    """The least time for this many operations and bytes: the larger of the two bounds."""
    return max(flops / self.flops_per_second, bytes_ / self.bytes_per_second)

  def best(self, other: 'Limits') -> 'Limits':
    """The higher rates of two measurements of the same machine."""
    return Limits(
      max(self.flops_per_second, other.flops_per_second), max(self.bytes_per_second, other.bytes_per_second)
    )

  def to_json(self) -> dict[str, float]:
    """The attributes by name; ``Limits(**content)`` reads them."""
    return dataclasses.asdict(self)


def default_limits() -> tuple[Precision, Limits]:
  """The arithmetic that JAX uses for float32 by default, and the machine's rates in it; takes seconds."""
  precision: Precision = 'tf32' if jax.default_backend() == 'gpu' else 'float32'
  return precision, Limits(matrix_rate(precision), copy_rate())


def matrix_rate(precision: Precision = 'float32', sides: Sequence[int] | None = None) -> float:
  """FLOP/s of the product of two square matrices under jit on JAX's default device.

  Args:
    precision: Arithmetic of the product.
    sides: Sides of the matrices, by default `MATRIX_SIDES`. The best of their median rates counts.
  """
  dtype = jnp.bfloat16 if precision == 'bfloat16' else jnp.float32
  rates = []
  for side in sides or MATRIX_SIDES['cpu' if jax.default_backend() == 'cpu' else 'gpu']:
    a, b = (jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in (0, 1))
    with jax.default_matmul_precision(MATMUL_PRECISION[precision]):
      product = jax.jit(jnp.matmul).lower(a, b).compile()
    rates.append(2 * side**3 / _median_seconds(lambda: product(a, b)))  # noqa: B023
  return max(rates)


def copy_rate(size: int = COPY_BYTES) -> float:
  """Bytes per second, read plus written, of x + 1 on a float32 array of ``size`` bytes under jit."""
  x = jnp.zeros(size // 4, jnp.float32)
  # In place: fetching new memory costs more than the copy.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def step():
    nonlocal x
    x = add(x)
    return x

  return 2 * size / _median_seconds(step)


def _median_seconds(call: Callable[[], jax.Array]) -> float:
  # The first call warms up and does not count.
  seconds_of(call)
  return statistics.median(seconds_of(call) for _ in range(RATE_RUNS))


# The work of the operator and the network.


class Cost(NamedTuple):
  """Operations, two per multiply-accumulate, and bytes of the least memory traffic."""

  flops: int
  bytes: int


def paper_deform_conv(
  x: jax.Array,
  offset: jax.Array,
  mask: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  block_pixels: int | None = None,
) -> jax.Array:
  """`deform_conv2d` as the paper's network calls it: a 3x3 kernel, stride 1, eight deformable groups."""
  return deform_conv2d(
    x,
    offset,
    mask,
    kernel,
    bias,
    padding=1,
    deformable_groups=DEFORMABLE_GROUPS,
    block_pixels=block_pixels,
  )


def deform_conv_cost(shape: Sequence[int], backward: bool = False, value_bytes: int = 4) -> Cost:
  """The cost of `paper_deform_conv` with C input and C output channels, mask and bias.

  Forward, operations: the product of 9 * C sampled values with the kernel, and four multiply-accumulates per
  sampled value, one per corner. Computing the corners' weights counts nothing. Bytes: x, offset, mask,
  kernel, bias and y once.

  Backward, operations: twice the forward's, since a product has two factors and so has a blend: the gradients
  of the kernel and of the sampled values, and those of the corners and of their weights. Bytes: the
  forward's, with the gradient of y for y, and the gradients of x, offset, mask, kernel and bias once.

  Args:
    shape: Shape of x, [N, H, W, C].
    backward: Count the backward pass instead of the forward pass.
    value_bytes: Size of one value: 4, or 2 in bfloat16.
  """
  n, h, w, c = shape
  pixels = n * h * w
  flops = 2 * pixels * TAPS * c * (c + 4)
  inputs = pixels * (c + 3 * DEFORMABLE_GROUPS * TAPS) + TAPS * c * c + c
  y = pixels * c
  if backward:
    return Cost(2 * flops, value_bytes * (2 * inputs + y))
  return Cost(flops, value_bytes * (inputs + y))


def network_cost(shape: Sequence[int], training: bool = False, value_bytes: int = 4) -> Cost:
  """The cost of the default `SADNet` for a batch of images.

  Forward: the sum over all convolutions, with `deform_conv_cost` for the deformable ones. Bytes of a layer:
  its input, output, kernel and bias once.

  A training step has three times the operations of the forward pass, since the gradients of a convolution
  with respect to its input and to its kernel each take as many as the convolution; loss and optimizer count
  nothing. Bytes of a layer's backward pass: input, kernel, bias and the gradient of the output once, and the
  gradients of input, kernel and bias once.

  Args:
    shape: Shape of the images, [N, H, W, channels]; height and width are rounded up to a multiple of 8,
      as the network pads them.
    training: Count a training step instead of the forward pass.
    value_bytes: Size of one value: 4, or 2 in bfloat16.
  """
  n, h, w, channels = shape
  h, w = (round_up(side, STRIDE) for side in (h, w))
  costs = []
  for path, kernel in _kernel_shapes(SADNet(channels=channels)):
    scale = scale_of(path[0])
    assert scale is not None
    at_scale = n, h >> (scale - 1), w >> (scale - 1)
    if 'deform_conv' in path:
      image = (*at_scale, kernel[2])
      passes = (False, True) if training else (False,)
      costs += [deform_conv_cost(image, backward, value_bytes) for backward in passes]
    else:
      costs.append(_conv_cost(path[0], math.prod(at_scale), kernel, training, value_bytes))
  return Cost(sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs))


def _conv_cost(module, output_pixels, kernel, training, value_bytes):
  """A convolution with a kernel [Kh, Kw, C, O] in a top-level module of the network."""
  kh, kw, c, features = kernel
  if module.startswith('up'):
    # Every input pixel makes Kh * Kw output pixels.
    input_pixels = positions = output_pixels // (kh * kw)
  else:
    input_pixels = output_pixels * (4 if module.startswith('down') else 1)
    positions = output_pixels
  flops = 2 * positions * math.prod(kernel)
  inputs = input_pixels * c + math.prod(kernel) + features
  outputs = output_pixels * features
  if training:
    return Cost(3 * flops, value_bytes * (3 * inputs + 2 * outputs))
  return Cost(flops, value_bytes * (inputs + outputs))


def _kernel_shapes(model):
  """(names of the modules that hold it, shape) of every kernel."""
  leaves = jax.tree_util.tree_leaves_with_path(param_shapes(model))
  named = [(tuple(key.key for key in path), leaf.shape) for path, leaf in leaves]
  kernels = [(path, shape) for path, shape in named if path[-1] == 'kernel']
  assert {scale_of(path[0]) for path, _ in kernels} == set(range(1, SCALES + 1))
  return kernels


# Short training runs.


def short_run_config(noise: str, images: str | Path, steps: int) -> ml_collections.ConfigDict:
  """The recipe of configs/color_fast.py for a few steps, with its images in device memory.

  Args:
    noise: The argument of color_fast.py.
    images: Folder of clean images.
    steps: Length of the run; warm-up takes at most half of them.
  """
  config = color_fast.get_config(noise)
  config.data.train.clean = str(images)
  config.data.reader = 'memory'
  config.steps = steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 2)
  return config
