"""The ways in which PyTorch and JAX compute the same thing: compiled or not, layout, precision."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.limits import MATMUL_PRECISION, Precision


class Started(NamedTuple):
  """``call`` does the work once; ``read`` takes what it returned."""

  call: Callable[[], Any]
  read: Callable[[Any], dict[str, np.ndarray]]


class Prepared(NamedTuple):
  """``start`` takes the memory: PyTorch's is estimated, JAX's is what XLA says of the compiled program."""

  bytes_needed: int
  start: Callable[[], Started]


@dataclasses.dataclass(frozen=True)
class TorchVariant:
  """How PyTorch computes.

  Attributes:
    precision: 'float32' (TF32 off), 'tf32' (in convolutions and matrix products), or 'bfloat16' (autocast).
    compiled: By ``torch.compile`` in its default mode, not eagerly.
    channels_last: Weights and images in that memory format.
  """

  precision: Precision = 'float32'
  compiled: bool = False
  channels_last: bool = False


_EAGER = {'eager': TorchVariant()}
_COMPILED = {'compile': TorchVariant(compiled=True)}
_REDUCED: dict[str, TorchVariant] = {}
for _precision in ('tf32', 'bfloat16'):
  _REDUCED |= {
    _precision: TorchVariant(_precision),
    f'channels_last_{_precision}': TorchVariant(_precision, channels_last=True),
    f'compile_{_precision}': TorchVariant(_precision, compiled=True),
  }


def torch_variants(operator: bool, device: str) -> dict[str, TorchVariant]:
  """Name in JSON -> variant, of a row; the first is what the others are compared with.

  The operator alone is one call of torchvision's, in which there is nothing to compile; it takes no bfloat16
  and makes its inputs contiguous.
  """
  if operator:
    return _EAGER | ({'tf32': TorchVariant('tf32')} if device == 'gpu' else {})
  if device == 'cpu':
    return _EAGER | _COMPILED
  return _EAGER | {'channels_last': TorchVariant(channels_last=True)} | _COMPILED | _REDUCED


def jax_precisions(device: str) -> tuple[Precision, ...]:
  """A CPU has no TF32, and few have fast bfloat16: there float32 only."""
  return ('float32',) if device == 'cpu' else ('float32', 'tf32', 'bfloat16')


@contextlib.contextmanager
def torch_arithmetic(variant: TorchVariant) -> Iterator[None]:
  """Turns TF32 on or off; for the whole of a call, its backward pass included."""
  before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
  _allow_tf32(*(2 * [variant.precision == 'tf32']))
  try:
    yield
  finally:
    _allow_tf32(*before)


def _allow_tf32(matmul, cudnn):
  torch.backends.cuda.matmul.allow_tf32 = matmul
  torch.backends.cudnn.allow_tf32 = cudnn


def autocast(variant: TorchVariant, device: torch.device) -> contextlib.AbstractContextManager:
  """For the forward pass and the loss only."""
  if variant.precision != 'bfloat16':
    return contextlib.nullcontext()
  return torch.autocast(device.type, torch.bfloat16)


def compile_jax(function: Any, precision: Precision, *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
  """Compiles for these arguments (arrays or `jax.ShapeDtypeStruct`), with products in this precision."""
  # The precision is read while the function is traced.
  with jax.default_matmul_precision(MATMUL_PRECISION[precision]):
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile()


def jax_dtype(precision: Precision) -> Any:
  """What JAX computes in; TF32 is float32 but in products."""
  return jnp.bfloat16 if precision == 'bfloat16' else jnp.float32


def program_bytes(compiled: Any) -> int:
  """Arguments, results and temporary memory of a compiled program; 0 where the backend does not say."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return 0
  held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return held + analysis.temp_size_in_bytes
