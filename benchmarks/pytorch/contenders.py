"""Every framework in every variant for a row of the comparison, and how each computes it.

Variants differ in compilation, memory layout and precision. All contenders of a row get the same inputs and
the same weights.
"""

from collections.abc import Callable, Iterator
import contextlib
import copy
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torchvision.ops import deform_conv2d as torch_deform_conv2d

from benchmarks.common import DEFORMABLE_GROUPS, MATMUL_PRECISION, TAPS, Precision, paper_deform_conv
from benchmarks.onnx_runtime import onnx_session
from benchmarks.pytorch import sadnet
from benchmarks.pytorch.agreement import (
  MEAN_ABS_OFFSET_PX,
  jax_loss,
  noisy_and_clean,
  to_nhwc,
  to_params,
  to_torch,
)
from benchmarks.pytorch.rows import Row
from sadnet_jax.denoise.onnx_graph import INPUT
from sadnet_jax.nn.sadnet import SADNet, param_shapes

_SEED = 0


# Variants.


class Started(NamedTuple):
  """A contender whose inputs are in memory: ``call`` computes once, ``read`` converts the result to
  arrays."""

  call: Callable[[], Any]
  read: Callable[[Any], dict[str, np.ndarray]]


class Prepared(NamedTuple):
  """A contender before it takes memory: ``bytes_needed`` is estimated for PyTorch, and XLA's figure for
  JAX."""

  bytes_needed: int
  start: Callable[[], Started]


@dataclasses.dataclass(frozen=True)
class TorchVariant:
  """How PyTorch computes.

  Attributes:
    precision: 'float32' (TF32 off), 'tf32' (in convolutions and matrix products), or 'bfloat16' (autocast).
    compiled: Use ``torch.compile`` in its default mode instead of eager execution.
    channels_last: Keep weights and images in this memory format.
  """

  precision: Precision = 'float32'
  compiled: bool = False
  channels_last: bool = False


_EAGER = {'eager': TorchVariant()}
_FLOAT32 = _EAGER | {
  'channels_last': TorchVariant(channels_last=True),
  'compile': TorchVariant(compiled=True),
}


def _reduced(precision: Precision) -> dict[str, TorchVariant]:
  return {
    precision: TorchVariant(precision),
    f'channels_last_{precision}': TorchVariant(precision, channels_last=True),
    f'compile_{precision}': TorchVariant(precision, compiled=True),
  }


def torch_variants(operator: bool, device: str) -> dict[str, TorchVariant]:
  """PyTorch's variants of a row by their name in JSON. The first is the reference for the others.

  The operator alone is a single call of torchvision's: there is nothing to compile, it does not support
  bfloat16, and it makes its inputs contiguous.
  """
  if operator:
    return _EAGER | ({'tf32': TorchVariant('tf32')} if device == 'gpu' else {})
  return _FLOAT32 | ({} if device == 'cpu' else _reduced('tf32')) | _reduced('bfloat16')


def jax_precisions(device: str) -> tuple[Precision, ...]:
  """JAX's precisions. Only float32 on a CPU, which has no TF32, and where XLA's convolutions in bfloat16 are
  slower."""
  return ('float32',) if device == 'cpu' else ('float32', 'tf32', 'bfloat16')


@contextlib.contextmanager
def torch_arithmetic(variant: TorchVariant) -> Iterator[None]:
  """Turns TF32 on or off for a whole call, including its backward pass."""
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
  """PyTorch's autocast for bfloat16, for the forward pass and the loss only."""
  if variant.precision != 'bfloat16':
    return contextlib.nullcontext()
  return torch.autocast(device.type, torch.bfloat16)


def compile_jax(function: Any, precision: Precision, *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
  """Compiles a function for arguments (arrays or `jax.ShapeDtypeStruct`), with products in this precision."""
  # The precision is read while the function is traced.
  with jax.default_matmul_precision(MATMUL_PRECISION[precision]):
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile()


def jax_dtype(precision: Precision) -> Any:
  """The dtype that JAX computes in. TF32 is float32 except in products."""
  return jnp.bfloat16 if precision == 'bfloat16' else jnp.float32


def program_bytes(compiled: Any) -> int:
  """Arguments, results and temporary memory of a compiled program, or 0 if the backend does not report it."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return 0
  held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return held + analysis.temp_size_in_bytes


# The network.

LEARNING_RATE = 1e-4


def _torch_model(net, variant):
  """A copy of the network, because training changes it, and the callable that computes with it."""
  net = copy.deepcopy(net)
  if variant.channels_last:
    net = net.to(memory_format=torch.channels_last)
  return net, torch.compile(net, dynamic=False) if variant.compiled else net


def _torch_images(images, device, variant):
  tensor = to_torch(images, device)
  return tensor.contiguous(memory_format=torch.channels_last) if variant.channels_last else tensor


def torch_network(row: Row, net: sadnet.SADNet, device: torch.device, variant: TorchVariant) -> Started:
  """Inference on a batch of images."""
  images, _ = noisy_and_clean(row.shape, _SEED)
  _, model = _torch_model(net, variant)
  noisy = _torch_images(images, device, variant)

  def forward():
    with torch_arithmetic(variant), autocast(variant, device):
      return model(noisy)

  # The network computes the negative noise; compare that, since the image would hide differences.
  return Started(torch.inference_mode()(forward), lambda y: {'negative noise': to_nhwc(y) - images})


def jax_network(row: Row, net: sadnet.SADNet, precision: Precision) -> Prepared:
  """Inference on a batch of images."""
  model = SADNet(dtype=jax_dtype(precision))
  images = jax.ShapeDtypeStruct(row.shape, jnp.float32)
  apply = compile_jax(
    lambda params, noisy: model.apply({'params': params}, noisy), precision, param_shapes(model), images
  )

  def start():
    host, _ = noisy_and_clean(row.shape, _SEED)
    params, noisy = to_params(net.state_dict()), jnp.array(host)
    return Started(lambda: apply(params, noisy), lambda y: {'negative noise': np.asarray(y) - host})

  return Prepared(program_bytes(apply), start)


def onnx_network(row: Row, net: sadnet.SADNet) -> Started:
  """Inference by ONNX Runtime, with the graph that ``sadnet_jax.denoise.export`` writes."""
  session = onnx_session(SADNet(), to_params(net.state_dict()))
  images, _ = noisy_and_clean(row.shape, _SEED)
  noisy = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
  return Started(
    lambda: session.run(None, {INPUT: noisy})[0],
    lambda y: {'negative noise': y.transpose(0, 2, 3, 1) - images},
  )


def torch_training(row: Row, net: sadnet.SADNet, device: torch.device, variant: TorchVariant) -> Started:
  """A training step: L2 loss, gradients, Adam update. Reads the loss and Adam's mean of the gradients."""
  host_noisy, host_clean = noisy_and_clean(row.shape, _SEED)
  net, model = _torch_model(net, variant)
  noisy, clean = (_torch_images(host, device, variant) for host in (host_noisy, host_clean))
  adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)

  def step():
    with torch_arithmetic(variant):
      adam.zero_grad()
      with autocast(variant, device):
        loss = torch.nn.functional.mse_loss(model(noisy), clean)
      loss.backward()
      adam.step()
    return loss

  def read(loss):
    moments = {name: adam.state[parameter]['exp_avg'] for name, parameter in net.named_parameters()}
    return {'loss': loss.detach().cpu().numpy(), 'gradient': _flat(to_params(moments))}

  return Started(step, read)


def jax_training(row: Row, net: sadnet.SADNet, precision: Precision) -> Prepared:
  """The same step. The memory of the state is reused for the next, as in PyTorch."""
  model = SADNet(dtype=jax_dtype(precision))
  adam = optax.adam(LEARNING_RATE)

  def update(state, noisy, clean):
    params, moments = state
    loss, gradient = jax.value_and_grad(jax_loss)(params, noisy, clean, model)
    updates, moments = adam.update(gradient, moments)
    return (optax.apply_updates(params, updates), moments), loss

  params_spec = param_shapes(model)
  state_spec = params_spec, jax.eval_shape(adam.init, params_spec)
  images = jax.ShapeDtypeStruct(row.shape, jnp.float32)
  compiled = compile_jax(update, precision, state_spec, images, images, donate=(0,))

  def start():
    noisy, clean = (jnp.array(host) for host in noisy_and_clean(row.shape, _SEED))
    params = to_params(net.state_dict())
    state = params, adam.init(params)

    def step():
      nonlocal state
      state, loss = compiled(state, noisy, clean)
      return state, loss

    def read(result):
      (_, moments), loss = result
      return {'loss': np.asarray(loss), 'gradient': _flat(optax.tree.get(moments, 'mu'))}

    return Started(step, read)

  return Prepared(program_bytes(compiled), start)


def _flat(tree):
  return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


# The operator alone.

_OPERATOR_INPUTS = ('x', 'offset', 'mask', 'kernel', 'bias')


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
  # At whole pixels, to which bfloat16 often rounds, the gradient jumps and the operators differ.
  offset[_rounded(offset) % 1 == 0] += 0.25
  return {
    'x': normal(n, h, w, c),
    'offset': offset,
    'mask': rng.uniform(size=(n, h, w, samples)).astype(np.float32),
    'kernel': normal(3, 3, c, c, std=(9 * c) ** -0.5),
    'bias': normal(c),
    'dy': normal(n, h, w, c),
  }


def bfloat16_reference(row: Row, device: torch.device) -> dict[str, np.ndarray]:
  """PyTorch's float32 result for inputs rounded to bfloat16, the reference for bfloat16.

  Rounding moves some offsets past a pixel, where the gradients jump. Compared with a result for inputs that
  are not rounded, one in bfloat16 would say little about its arithmetic.
  """
  rounded = {name: _rounded(array) for name, array in operator_inputs(row.shape).items()}
  started = torch_operator(row, device, TorchVariant(), rounded)
  return started.read(started.call())


def _rounded(array):
  return np.asarray(jnp.bfloat16(array), np.float32)


def torch_operator(
  row: Row, device: torch.device, variant: TorchVariant, arrays: dict[str, np.ndarray] | None = None
) -> Started:
  """The forward pass, or the five gradients once the forward pass is done.

  Args:
    row: A row of the operator.
    device: Where to compute.
    variant: How to compute.
    arrays: Inputs and ``dy``, by default `operator_inputs`.
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
    return dict(zip(_OPERATOR_INPUTS, values, strict=True))

  return Started(backward, read)


def jax_operator_forward(row: Row, precision: Precision) -> Prepared:
  """The forward pass."""
  dtype = jax_dtype(precision)
  inputs = [operator_inputs(row.shape)[name] for name in _OPERATOR_INPUTS]
  forward = compile_jax(paper_deform_conv, precision, *_specs(inputs, dtype))

  def start():
    on_device = [jnp.array(a, dtype) for a in inputs]
    return Started(lambda: forward(*on_device), lambda y: {'y': np.asarray(y, np.float32)})

  return Prepared(program_bytes(forward), start)


def jax_operator_backward(row: Row, precision: Precision) -> Prepared:
  """The five gradients, once the forward pass is done."""
  dtype = jax_dtype(precision)
  arrays = operator_inputs(row.shape)
  inputs = [arrays[name] for name in _OPERATOR_INPUTS]

  def forward(*inputs):
    return jax.vjp(paper_deform_conv, *inputs)

  # The pullback is passed from one program to the next, so that the forward pass is not timed.
  compiled_forward = compile_jax(forward, precision, *_specs(inputs, dtype))
  y_spec, pullback_spec = compiled_forward.out_info
  backward = compile_jax(lambda pullback, dy: pullback(dy), precision, pullback_spec, y_spec)

  def start():
    _, pullback = compiled_forward(*(jnp.array(a, dtype) for a in inputs))
    dy = jnp.array(arrays['dy'], dtype)

    def read(gradients):
      host = (np.asarray(gradient, np.float32) for gradient in gradients)
      return dict(zip(_OPERATOR_INPUTS, host, strict=True))

    return Started(lambda: backward(pullback, dy), read)

  return Prepared(max(program_bytes(compiled_forward), program_bytes(backward)), start)


def _specs(arrays, dtype):
  return [jax.ShapeDtypeStruct(a.shape, dtype) for a in arrays]


# All contenders of a row.


class Contender(NamedTuple):
  """One framework in one variant.

  Attributes:
    framework: 'pytorch', 'onnx_runtime' or 'jax'.
    variant: Its name in JSON.
    precision: Of the computation.
    compiled_by_torch: Whether ``torch.compile`` compiles it.
    prepare: Compiles JAX's program.
    reference: Computes the result to agree with; None for that of PyTorch's eager float32.
  """

  framework: str
  variant: str
  precision: Precision
  compiled_by_torch: bool
  prepare: Callable[[], Prepared]
  reference: Callable[[], dict[str, np.ndarray]] | None = None


def contenders(row: Row, net: sadnet.SADNet, device: torch.device) -> Iterator[Contender]:
  """PyTorch's variants, then ONNX Runtime (the network's forward pass on a CPU), then JAX's.

  The first of each framework is the one in float32.
  """
  name = 'cpu' if device.type == 'cpu' else 'gpu'
  for variant_name, variant in torch_variants(row.is_operator, name).items():
    if row.is_operator:
      start = functools.partial(torch_operator, row, device, variant)
    else:
      in_torch = {'forward': torch_network, 'training': torch_training}
      start = functools.partial(in_torch[row.kind], row, net, device, variant)
    prepare = functools.partial(Prepared, torch_bytes(row), start)
    yield Contender('pytorch', variant_name, variant.precision, variant.compiled, prepare)
  if row.kind == 'forward' and name == 'cpu':
    prepare = functools.partial(Prepared, torch_bytes(row), functools.partial(onnx_network, row, net))
    yield Contender('onnx_runtime', 'float32', 'float32', False, prepare)
  in_jax: dict[str, Callable[..., Prepared]] = {
    'deform_forward': jax_operator_forward,
    'deform_backward': jax_operator_backward,
    'forward': functools.partial(jax_network, net=net),
    'training': functools.partial(jax_training, net=net),
  }
  for precision in jax_precisions(name):
    prepare = functools.partial(in_jax[row.kind], row, precision=precision)
    reference = None
    if row.is_operator and precision == 'bfloat16':
      reference = functools.partial(bfloat16_reference, row, device)
    yield Contender('jax', precision, precision, False, prepare, reference)


def torch_bytes(row: Row) -> int:
  """Estimate of PyTorch's peak memory in float32.

  Forward, values per pixel of the image during the deformable convolution of scale 1: the encoder's features
  (60), the convolution's input, output and a copy of the output (3 * 32), the offset features (32), their
  prediction (216), copies of offset and mask (216), and the samples (9 * 32); 1/10 is added for everything
  small. Training: all tensors between layers twice (before and after the activation), and the gradients of
  offset, mask, samples and prediction. The operator: its tensors and its samples.
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
