"""Who takes part in a row of the comparison: PyTorch and JAX, each in all its variants."""

from collections.abc import Callable, Iterator
import functools
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.limits import DEFORMABLE_GROUPS, TAPS, Precision
from benchmarks.pytorch import network, operator, sadnet
from benchmarks.pytorch.rows import Row
from benchmarks.pytorch.variants import Prepared, jax_precisions, torch_variants


class Contender(NamedTuple):
  """One framework in one variant.

  Attributes:
    framework: 'pytorch' or 'jax'.
    variant: Its name in JSON.
    precision: What it computes in.
    compiled_by_torch: Whether by ``torch.compile``.
    prepare: Compiles what JAX computes.
    reference: Computes what to agree with; None for the result of PyTorch's eager float32.
  """

  framework: str
  variant: str
  precision: Precision
  compiled_by_torch: bool
  prepare: Callable[[], Prepared]
  reference: Callable[[], dict[str, np.ndarray]] | None = None


def contenders(row: Row, net: sadnet.SADNet, device: torch.device) -> Iterator[Contender]:
  """PyTorch's variants and then JAX's; the first of each framework is the float32 one."""
  name = 'cpu' if device.type == 'cpu' else 'gpu'
  for variant_name, variant in torch_variants(row.is_operator, name).items():
    if row.is_operator:
      start = functools.partial(operator.torch_operator, row, device, variant)
    else:
      in_torch = {'forward': network.torch_forward, 'training': network.torch_training}
      start = functools.partial(in_torch[row.kind], row, net, device, variant)
    prepare = functools.partial(Prepared, torch_bytes(row), start)
    yield Contender('pytorch', variant_name, variant.precision, variant.compiled, prepare)
  in_jax: dict[str, Callable[..., Prepared]] = {
    'deform_forward': operator.jax_forward,
    'deform_backward': operator.jax_backward,
    'forward': functools.partial(network.jax_forward, net=net),
    'training': functools.partial(network.jax_training, net=net),
  }
  for precision in jax_precisions(name):
    prepare = functools.partial(in_jax[row.kind], row, precision=precision)
    reference = None
    if row.is_operator and precision == 'bfloat16':
      reference = functools.partial(operator.reference_of_bfloat16, row, device)
    yield Contender('jax', precision, precision, False, prepare, reference)


def torch_bytes(row: Row) -> int:
  """Estimate of the memory that PyTorch needs at most at a time, in float32.

  Forward, for a pixel of the image, in the deformable convolution of scale 1: what the encoder keeps
  (60 values), the convolution's input and output (2 * 32) and a copy of the output, the offset features (32),
  their prediction (216), copies of offset and mask (216), and the samples (9 * 32); 1/10 more for what is
  small. Training: everything between two layers twice (before and after the activation), and gradients
  of offset, mask, samples and prediction. The operator: its tensors and its samples.
  """
  n, h, w, c = row.shape
  pixels = n * h * w
  predicted = 3 * DEFORMABLE_GROUPS * TAPS
  if row.is_operator:
    return row.cost().bytes + 4 * pixels * TAPS * c * (2 if row.kind == 'deform_backward' else 1)
  if row.kind == 'forward':
    values = 60 + 3 * 32 + 32 + 2 * predicted + TAPS * 32
    return round(1.1 * 4 * pixels * values)
  between_layers = Row('forward', row.shape).cost().bytes
  return between_layers + 4 * pixels * (2 * predicted + TAPS * 32)
