"""How fast this machine can be at most: its matrix rate, its copy rate, and what a computation needs of both.

A benchmark measures both rates on JAX's default device, in its own process, with `measure_limits`; the
limit beside a figure is `Limits.seconds` of the operations and bytes counted here. Operations are two for
each multiply-accumulate. Bytes are those of the tensors between layers, each read once and written once:
what is elementwise (activation, skip, sigmoid) is taken to be fused and counts nothing, and neither
does what is computed again. A program cannot be faster in arithmetic; in traffic only if it fuses layers.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import statistics
import time
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sadnet_jax.nn.sadnet import SCALES, STRIDE, SADNet, param_shapes, scale_of

# 'tf32': float32 values, which a GPU's matrix units round to 10 bits; on a CPU the same as 'float32'.
Precision = Literal['float32', 'tf32', 'bfloat16']
# What `jax.default_matmul_precision` calls them. In bfloat16 there is nothing to choose.
MATMUL_PRECISION = {'float32': 'float32', 'tf32': 'tensorfloat32', 'bfloat16': 'default'}
# Sides of the square matrices, and bytes of the array that is copied: beyond every cache.
_MATRIX_SIDES = {'cpu': (1024, 2048, 3072), 'gpu': (4096, 8192, 16384)}
_COPY_BYTES = 2**30
_RUNS = 5

DEFORMABLE_GROUPS = 8
TAPS = 9


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a machine reaches.

  Attributes:
    flops_per_second: In the product of two large matrices.
    bytes_per_second: Read plus written, in an elementwise operation on a large array.
  """

  flops_per_second: float
  bytes_per_second: float

  def seconds(self, flops: float, bytes_: float) -> float:
    """The least time of so many operations and bytes: the larger of the two bounds."""
    return max(flops / self.flops_per_second, bytes_ / self.bytes_per_second)

  def best(self, other: 'Limits') -> 'Limits':
    """The higher rates of two measurements of the same machine."""
    return Limits(
      max(self.flops_per_second, other.flops_per_second), max(self.bytes_per_second, other.bytes_per_second)
    )

  def to_json(self) -> dict[str, float]:
    """The attributes by name; ``Limits(**content)`` reads them."""
    return dataclasses.asdict(self)


class Cost(NamedTuple):
  """Operations (two for each multiply-accumulate) and bytes of least traffic."""

  flops: int
  bytes: int


def measure_limits(precision: Precision = 'float32') -> Limits:
  """Both rates of JAX's default device; takes seconds."""
  return Limits(matrix_rate(precision), copy_rate())


def matrix_rate(precision: Precision = 'float32') -> float:
  """FLOP/s of a product of two square matrices under jit: the best of the medians over some sizes."""
  dtype = jnp.bfloat16 if precision == 'bfloat16' else jnp.float32
  rates = []
  for side in _MATRIX_SIDES[_kind()]:
    a, b = (jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in (0, 1))
    with jax.default_matmul_precision(MATMUL_PRECISION[precision]):
      product = jax.jit(jnp.matmul).lower(a, b).compile()
    rates.append(2 * side**3 / _median_seconds(lambda: product(a, b)))  # noqa: B023
  return max(rates)


def copy_rate() -> float:
  """Bytes per second, read plus written, of x + 1 on a large float32 array under jit."""
  size = _COPY_BYTES
  x = jnp.zeros(size // 4, jnp.float32)
  # In place: fresh memory costs the system more than the copy.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def step():
    nonlocal x
    x = add(x)
    return x

  return 2 * size / _median_seconds(step)


def _kind() -> str:
  return 'cpu' if jax.default_backend() == 'cpu' else 'gpu'


def _median_seconds(call: Callable[[], jax.Array]) -> float:
  taken = []
  # The first run, which compiles, is not counted.
  for _ in range(1 + _RUNS):
    start = time.perf_counter()
    jax.block_until_ready(call())
    taken.append(time.perf_counter() - start)
  return statistics.median(taken[1:])


def deform_conv_cost(shape: Sequence[int], backward: bool = False, value_bytes: int = 4) -> Cost:
  """What `deform_conv2d` needs: 3x3, stride 1, C to C channels, 8 deformable groups, with mask and bias.

  Forward, operations: the product of 9 * C sampled values with the kernel, and four multiply-accumulates
  for each sampled value, one a corner (weights of the corners, with the modulation in them, not counted).
  Bytes: x, offset, mask, kernel, bias and y once.

  Backward, operations: twice the forward's, as a product has two factors and a blend two: the gradients of
  the kernel and of the sampled values, and those of the corners and of their weights. Bytes: the
  forward's, with the gradient of y for y, and the gradients of x, offset, mask, kernel and bias once.

  Args:
    shape: Of x, [N, H, W, C].
    backward: Count the backward pass, not the forward pass.
    value_bytes: Of one value: 4, or 2 in bfloat16.
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
  """What `SADNet` in its default form needs for a batch of images.

  Forward: the sum over all convolutions, `deform_conv_cost` for the deformable ones. Bytes of a layer: its
  input, output, kernel and bias once.

  A training step has three times the forward's operations: a convolution's gradients with respect to its
  input and to its kernel are as much work as itself, each; loss and optimizer count nothing. Bytes
  of its backward pass: input, kernel, bias and the output's gradient once, and once the gradients of input,
  kernel and bias.

  Args:
    shape: Of the images, [N, H, W, channels]; sides count as the next multiple of 8, as the network pads.
    training: Count a training step, not the forward pass.
    value_bytes: Of one value: 4, or 2 in bfloat16.
  """
  n, h, w, channels = shape
  h, w = (-(-side // STRIDE) * STRIDE for side in (h, w))
  costs = []
  for path, kernel in _kernels(SADNet(channels=channels)):
    scale = scale_of(path[0])
    at_scale = n, h >> (scale - 1), w >> (scale - 1)
    if 'deform_conv' in path:
      image = (*at_scale, kernel[2])
      passes = (False, True) if training else (False,)
      costs += [deform_conv_cost(image, backward, value_bytes) for backward in passes]
    else:
      costs.append(_conv_cost(path[0], math.prod(at_scale), kernel, training, value_bytes))
  return Cost(sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs))


def _conv_cost(module, output_pixels, kernel, training, value_bytes):
  """A convolution with a kernel [Kh, Kw, C, O], in a top-level module of the network."""
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


def _kernels(model):
  """(names of the modules that hold it, shape) of every kernel."""
  leaves = jax.tree_util.tree_leaves_with_path(param_shapes(model))
  named = [(tuple(key.key for key in path), leaf.shape) for path, leaf in leaves]
  kernels = [(path, shape) for path, shape in named if path[-1] == 'kernel']
  assert {scale_of(path[0]) for path, _ in kernels} == set(range(1, SCALES + 1))
  return kernels
