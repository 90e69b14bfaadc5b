"""The deformable convolution alone, in PyTorch and in JAX: on the same inputs, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torchvision.ops import deform_conv2d as torch_deform_conv2d

from benchmarks.limits import DEFORMABLE_GROUPS, TAPS, Precision
from benchmarks.paper_deform_conv import paper_deform_conv
from benchmarks.pytorch.agreement import MEAN_ABS_OFFSET_PX, to_nhwc, to_torch
from benchmarks.pytorch.rows import Row
from benchmarks.pytorch.variants import (
  Prepared,
  Started,
  TorchVariant,
  compile_jax,
  jax_dtype,
  program_bytes,
  torch_arithmetic,
)

_INPUTS = ('x', 'offset', 'mask', 'kernel', 'bias')
_SEED = 0


@functools.lru_cache(maxsize=1)
def operator_inputs(shape: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
  """Random x, offset, mask, kernel, bias, and the gradient dy of the output; float32, NHWC and HWIO."""
  n, h, w, c = shape
  samples = DEFORMABLE_GROUPS * TAPS
  rng = np.random.default_rng(_SEED)

  def normal(*size, std=1.0):
    return rng.normal(scale=std, size=size).astype(np.float32)

  # The mean absolute value of a normal variable is std * sqrt(2 / pi).
  offset = normal(n, h, w, 2 * samples, std=MEAN_ABS_OFFSET_PX / np.sqrt(2 / np.pi))
  # Whole pixels, which bfloat16 often rounds to, are kinks: the operators differ in the gradient there.
  offset[_rounded(offset) % 1 == 0] += 0.25
  return {
    'x': normal(n, h, w, c),
    'offset': offset,
    'mask': rng.uniform(size=(n, h, w, samples)).astype(np.float32),
    'kernel': normal(3, 3, c, c, std=(9 * c) ** -0.5),
    'bias': normal(c),
    'dy': normal(n, h, w, c),
  }


def reference_of_bfloat16(row: Row, device: torch.device) -> dict[str, np.ndarray]:
  """What PyTorch gives in float32 for inputs that are rounded to bfloat16.

  Rounding moves offsets, some past a pixel, where the gradients jump: beside a result for inputs that are
  not rounded, one in bfloat16 says little of its arithmetic.
  """
  rounded = {name: _rounded(array) for name, array in operator_inputs(row.shape).items()}
  started = torch_operator(row, device, TorchVariant(), rounded)
  return started.read(started.call())


def _rounded(array):
  return np.asarray(jnp.bfloat16(array), np.float32)


def torch_operator(
  row: Row, device: torch.device, variant: TorchVariant, arrays: dict[str, np.ndarray] | None = None
) -> Started:
  """Forward, or the five gradients of an output that is there.

  Args:
    row: Of the operator.
    device: Where to compute.
    variant: How.
    arrays: Inputs and ``dy``; None for `operator_inputs`.
  """
  arrays = operator_inputs(row.shape) if arrays is None else arrays
  x, offset, mask = (to_torch(arrays[name], device) for name in ('x', 'offset', 'mask'))
  kernel = torch.from_numpy(np.ascontiguousarray(arrays['kernel'].transpose(3, 2, 0, 1))).to(device)
  bias = torch.from_numpy(arrays['bias'].copy()).to(device)

  def forward():
    with torch_arithmetic(variant):
      return torch_deform_conv2d(x, offset, kernel, bias, padding=1, mask=mask)

  if row.kind == 'deform_forward':
    return Started(torch.inference_mode()(forward), lambda y: {'y': to_nhwc(y)})

  inputs = (x, offset, mask, kernel, bias)
  for tensor in inputs:
    tensor.requires_grad_()
  y, dy = forward(), to_torch(arrays['dy'], device)

  def backward():
    with torch_arithmetic(variant):
      return torch.autograd.grad(y, inputs, dy, retain_graph=True)

  def read(gradients):
    dx, doffset, dmask, dkernel, dbias = gradients
    kernel_hwio = dkernel.cpu().numpy().transpose(2, 3, 1, 0)
    values = to_nhwc(dx), to_nhwc(doffset), to_nhwc(dmask), kernel_hwio, dbias.cpu().numpy()
    return dict(zip(_INPUTS, values, strict=True))

  return Started(backward, read)


def jax_forward(row: Row, precision: Precision) -> Prepared:
  """The result, [N, H, W, C]."""
  dtype = jax_dtype(precision)
  inputs = [operator_inputs(row.shape)[name] for name in _INPUTS]
  forward = compile_jax(paper_deform_conv, precision, *_specs(inputs, dtype))

  def start():
    on_device = [jnp.array(a, dtype) for a in inputs]
    return Started(lambda: forward(*on_device), lambda y: {'y': np.asarray(y, np.float32)})

  return Prepared(program_bytes(forward), start)


def jax_backward(row: Row, precision: Precision) -> Prepared:
  """The five gradients of a result that is there."""
  dtype = jax_dtype(precision)
  arrays = operator_inputs(row.shape)
  inputs = [arrays[name] for name in _INPUTS]

  def forward(*inputs):
    return jax.vjp(paper_deform_conv, *inputs)

  # The pullback goes from one program to the next, so that the forward pass is outside what is timed.
  compiled_forward = compile_jax(forward, precision, *_specs(inputs, dtype))
  y_spec, pullback_spec = compiled_forward.out_info
  backward = compile_jax(lambda pullback, dy: pullback(dy), precision, pullback_spec, y_spec)

  def start():
    _, pullback = compiled_forward(*(jnp.array(a, dtype) for a in inputs))
    dy = jnp.array(arrays['dy'], dtype)

    def read(gradients):
      host = (np.asarray(gradient, np.float32) for gradient in gradients)
      return dict(zip(_INPUTS, host, strict=True))

    return Started(lambda: backward(pullback, dy), read)

  return Prepared(max(program_bytes(compiled_forward), program_bytes(backward)), start)


def _specs(arrays, dtype):
  return [jax.ShapeDtypeStruct(a.shape, dtype) for a in arrays]
