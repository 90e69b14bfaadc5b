"""Times this package beside the same network in PyTorch, on the same machine.

  python benchmarks/against_pytorch.py --runs 10 --json against_pytorch.json

First both networks get the same random weights and must agree in the forward
pass and in the gradient of the loss; if they do not, nothing is timed and the
exit status is 1. Then each row is timed in one process, PyTorch and JAX taking
turns, so that whatever else the machine does falls on both. Both compute in
float32 (TF32 is off), PyTorch in eager mode with its default number of threads,
JAX under jit; compilation falls into the warm-up. On a GPU only if both have one.
"""

import argparse
from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sadnet_torch
import torch
from torchvision.ops import deform_conv2d as torch_deform_conv2d

from sadnet_jax.authors_weights import params_from_state_dict
from sadnet_jax.deform_conv import deform_conv2d
from sadnet_jax.environment import environment
from sadnet_jax.model import SADNet, mean_abs_offsets

FORWARD_ABS_TOLERANCE = 1e-4
# Looser than rounding: bilinear sampling and leaky ReLU have kinks, and a value that rounds
# to the other side of one changes the gradient by a jump. In float64 the two agree to 1e-14.
GRADIENT_RELATIVE_TOLERANCE = 1e-3
MEAN_ABS_OFFSET_PX = 1.5
DEFORMABLE_GROUPS = 8
LEARNING_RATE = 1e-4
WARM_UP_RUNS = 2

# Two calls that do the same work, PyTorch's and JAX's; each returns what it computed.
Pair = tuple[Callable[[], object], Callable[[], object]]


def to_torch(array: np.ndarray, device: torch.device) -> torch.Tensor:
  """[N, H, W, C] on the host -> contiguous [N, C, H, W], PyTorch's usual layout."""
  return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))).to(device)


def to_params(tensors: dict[str, torch.Tensor]) -> dict:
  """Converts tensors named as in a state dict (weights or their gradients) to a Flax tree."""
  template = jax.eval_shape(SADNet().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  host = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
  return jax.tree.map(jnp.asarray, params_from_state_dict(host, template))


def noisy_and_clean(shape: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
  """A random image batch [N, H, W, 3] and the same with Gaussian noise of sigma_255 = 50."""
  rng = np.random.default_rng(seed)
  clean = rng.uniform(size=shape).astype(np.float32)
  return clean + rng.normal(scale=50 / 255, size=shape).astype(np.float32), clean


@torch.no_grad()
def random_network(seed: int, device: torch.device) -> sadnet_torch.SADNet:
  """SADNet with random weights and offsets of a size that training produces.

  Xavier-uniform weights and small random biases (zeros would hide a mix-up). The
  rows of the offset layers that predict offsets are scaled until the mean
  absolute offset is `MEAN_ABS_OFFSET_PX`: with zero offsets nothing would be
  interpolated, with large ones most samples would lie outside the image, and
  either would be faster than real use.
  """
  generator = torch.Generator().manual_seed(seed)
  net = sadnet_torch.SADNet()
  for parameter in net.parameters():
    if parameter.ndim == 4:
      torch.nn.init.xavier_uniform_(parameter, generator=generator)
    else:
      torch.nn.init.normal_(parameter, std=0.01, generator=generator)
  net.to(device)

  def scale_offsets(layer, _inputs, predicted):
    # The layer is linear, so one forward pass gives the factor. Returning the new
    # output lets the finer scales, which depend on this one, see it.
    offset_rows = 2 * DEFORMABLE_GROUPS * 9
    factor = MEAN_ABS_OFFSET_PX / predicted[:, :offset_rows].abs().mean()
    layer.weight[:offset_rows] *= factor
    layer.bias[:offset_rows] *= factor
    return torch.cat([predicted[:, :offset_rows] * factor, predicted[:, offset_rows:]], dim=1)

  hooks = [
    module.conv_offset_mask.register_forward_hook(scale_offsets)
    for module in net.modules()
    if isinstance(module, sadnet_torch.ModulatedDeformConv)
  ]
  noisy, _ = noisy_and_clean((1, 128, 128, 3), seed)
  net(to_torch(noisy, device))
  for hook in hooks:
    hook.remove()
  return net


def jax_loss(params: dict, noisy: jax.Array, clean: jax.Array) -> jax.Array:
  """L2 loss: the mean squared error, a scalar."""
  return jnp.mean((SADNet().apply({'params': params}, noisy) - clean) ** 2)


def agreement(net: sadnet_torch.SADNet, device: torch.device, seed: int) -> dict[str, object]:
  """Compares output and loss gradient of both networks on a small asymmetric batch."""
  noisy, clean = noisy_and_clean((2, 40, 56, 3), seed + 1)
  denoised = net(to_torch(noisy, device))
  loss = torch.nn.functional.mse_loss(denoised, to_torch(clean, device))
  gradients = torch.autograd.grad(loss, list(net.parameters()))
  names = [name for name, _ in net.named_parameters()]
  wanted_gradient = to_params(dict(zip(names, gradients, strict=True)))

  params = to_params(net.state_dict())
  apply = jax.jit(lambda p, x: SADNet().apply({'params': p}, x, mutable=['intermediates']))
  got, collected = apply(params, noisy)
  got_gradient = jax.jit(jax.grad(jax_loss))(params, noisy, clean)

  difference = jax.tree.map(jnp.subtract, got_gradient, wanted_gradient)
  per_tensor = jax.tree.map(
    lambda d, w: float(jnp.linalg.norm(d) / jnp.linalg.norm(w)), difference, wanted_gradient
  )
  worst_path, worst = max(jax.tree_util.tree_leaves_with_path(per_tensor), key=lambda leaf: leaf[1])
  return {
    'forward_max_abs_difference': float(np.abs(np.asarray(got) - to_nhwc(denoised)).max()),
    'forward_max_abs': float(np.abs(np.asarray(got)).max()),
    'gradient_relative_difference': float(optax.tree.norm(difference) / optax.tree.norm(wanted_gradient)),
    'gradient_worst_tensor': {'name': jax.tree_util.keystr(worst_path), 'relative_difference': worst},
    'mean_abs_offset_px': {k: float(v) for k, v in mean_abs_offsets(collected['intermediates']).items()},
  }


def to_nhwc(x: torch.Tensor) -> np.ndarray:
  """[N, C, H, W] on any device -> [N, H, W, C] on the host."""
  return x.detach().cpu().numpy().transpose(0, 2, 3, 1)


def deform_conv_pair(shape: tuple[int, int, int, int], backward: bool, device: torch.device) -> Pair:
  """Deformable convolution alone, C to C channels: its forward pass, or its five gradients."""
  n, h, w, c = shape
  samples = DEFORMABLE_GROUPS * 9
  rng = np.random.default_rng(0)

  def normal(*size, std=1.0):
    return rng.normal(scale=std, size=size).astype(np.float32)

  x, dy = normal(n, h, w, c), normal(n, h, w, c)
  # The mean absolute value of a normal variable is std * sqrt(2 / pi).
  offset = normal(n, h, w, 2 * samples, std=MEAN_ABS_OFFSET_PX / np.sqrt(2 / np.pi))
  mask = rng.uniform(size=(n, h, w, samples)).astype(np.float32)
  kernel, bias = normal(3, 3, c, c, std=(9 * c) ** -0.5), normal(c)

  weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))).to(device)
  torch_inputs = [
    *(to_torch(a, device) for a in (x, offset)),
    weight,
    torch.from_numpy(bias).to(device),
    to_torch(mask, device),
  ]

  def torch_forward():
    t_x, t_offset, t_weight, t_bias, t_mask = torch_inputs
    return torch_deform_conv2d(t_x, t_offset, t_weight, t_bias, padding=1, mask=t_mask)

  def jax_function(x, offset, mask, kernel, bias):
    return deform_conv2d(x, offset, mask, kernel, bias, padding=1, deformable_groups=DEFORMABLE_GROUPS)

  jax_inputs = [jnp.asarray(a) for a in (x, offset, mask, kernel, bias)]
  if not backward:
    jax_forward = jax.jit(jax_function)
    return torch.inference_mode()(torch_forward), lambda: jax_forward(*jax_inputs)

  for tensor in torch_inputs:
    tensor.requires_grad_()
  y, torch_dy = torch_forward(), to_torch(dy, device)
  # The pullback goes in as an argument, so that the forward pass is outside what is timed.
  _, pullback = jax.vjp(jax_function, *jax_inputs)
  jax_dy = jnp.asarray(dy)
  jax_backward = jax.jit(lambda pullback, dy: pullback(dy))
  return (
    lambda: torch.autograd.grad(y, torch_inputs, torch_dy, retain_graph=True),
    lambda: jax_backward(pullback, jax_dy),
  )


def network_pair(net: sadnet_torch.SADNet, device: torch.device) -> Pair:
  """Inference on one 480x320 colour image."""
  noisy, _ = noisy_and_clean((1, 320, 480, 3), 0)
  torch_noisy, jax_noisy = to_torch(noisy, device), jnp.asarray(noisy)
  params = to_params(net.state_dict())
  apply = jax.jit(lambda params, noisy: SADNet().apply({'params': params}, noisy))
  return torch.inference_mode()(lambda: net(torch_noisy)), lambda: apply(params, jax_noisy)


def training_pair(net: sadnet_torch.SADNet, device: torch.device) -> Pair:
  """One step on 4 colour patches of 128x128: L2 loss, gradients, Adam update.

  The steps are real, so the weights of ``net`` change; this row comes last.
  """
  noisy, clean = noisy_and_clean((4, 128, 128, 3), 0)
  params = to_params(net.state_dict())

  torch_noisy, torch_clean = to_torch(noisy, device), to_torch(clean, device)
  torch_adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)

  def torch_step():
    torch_adam.zero_grad()
    loss = torch.nn.functional.mse_loss(net(torch_noisy), torch_clean)
    loss.backward()
    torch_adam.step()
    return loss

  jax_noisy, jax_clean = jnp.asarray(noisy), jnp.asarray(clean)
  jax_adam = optax.adam(LEARNING_RATE)
  state = (params, jax_adam.init(params))

  def update(state, noisy, clean):
    params, moments = state
    loss, gradient = jax.value_and_grad(jax_loss)(params, noisy, clean)
    updates, moments = jax_adam.update(gradient, moments)
    return (optax.apply_updates(params, updates), moments), loss

  # Donated: the new weights may take the place of the old ones, as PyTorch's do.
  jitted_update = jax.jit(update, donate_argnums=0)

  def jax_step():
    nonlocal state
    state, loss = jitted_update(state, jax_noisy, jax_clean)
    return state, loss

  return torch_step, jax_step


# Row -> (text in the table, how to make the pair). Pairs are made one at a time, to hold less memory.
ROWS: dict[str, tuple[str, Callable[[sadnet_torch.SADNet, torch.device], Pair]]] = {
  'deform_forward_320x480': (
    'deform_conv2d 1x320x480x32, forward',
    lambda _, device: deform_conv_pair((1, 320, 480, 32), False, device),
  ),
  'deform_backward_320x480': (
    'deform_conv2d 1x320x480x32, backward',
    lambda _, device: deform_conv_pair((1, 320, 480, 32), True, device),
  ),
  'deform_forward_128x128': (
    'deform_conv2d 4x128x128x32, forward',
    lambda _, device: deform_conv_pair((4, 128, 128, 32), False, device),
  ),
  'deform_backward_128x128': (
    'deform_conv2d 4x128x128x32, backward',
    lambda _, device: deform_conv_pair((4, 128, 128, 32), True, device),
  ),
  'network_forward': ('SADNet forward, one 480x320 image', network_pair),
  'training_step': ('SADNet training step, 4 patches 128x128', training_pair),
}


def timed_ms(call: Callable[[], object], device: torch.device) -> float:
  """Milliseconds until the results of ``call`` are there, whichever framework computes them."""
  start = time.perf_counter()
  # PyTorch's results pass through block_until_ready untouched.
  jax.block_until_ready(call())
  if device.type == 'cuda':
    torch.cuda.synchronize()
  return 1e3 * (time.perf_counter() - start)


def measure(pair: Pair, runs: int, device: torch.device) -> dict[str, object]:
  """Times both calls in turn; the first `WARM_UP_RUNS` of each are not counted."""
  taken = [[timed_ms(call, device) for call in pair] for _ in range(WARM_UP_RUNS + runs)][WARM_UP_RUNS:]
  torch_runs, jax_runs = zip(*taken, strict=True)
  torch_ms, jax_ms = statistics.median(torch_runs), statistics.median(jax_runs)
  return {
    'pytorch_ms': torch_ms,
    'jax_ms': jax_ms,
    'ratio': torch_ms / jax_ms,
    'pytorch_runs_ms': torch_runs,
    'jax_runs_ms': jax_runs,
  }


def choose_device() -> torch.device:
  """The GPU if both frameworks see one, else the CPU for both."""
  # Read when JAX first looks for devices, which is below: PyTorch needs memory as well.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  if not torch.cuda.is_available():
    jax.config.update('jax_platforms', 'cpu')
  if jax.default_backend() != 'gpu':
    return torch.device('cpu')
  # The same arithmetic for both, and for PyTorch the choice of kernels that XLA makes anyway.
  jax.config.update('jax_default_matmul_precision', 'float32')
  torch.backends.cuda.matmul.allow_tf32 = False
  torch.backends.cudnn.allow_tf32 = False
  torch.backends.cudnn.benchmark = True
  return torch.device('cuda')


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--runs', type=int, default=10, help='timed runs per row; the median counts')
  parser.add_argument('--seed', type=int, default=0, help='of the random weights')
  parser.add_argument('--json', type=Path, metavar='FILE', help='also write the results to this file')
  parser.add_argument(
    '--only', nargs='+', choices=list(ROWS), metavar='ROW', help=f'rows to time: {", ".join(ROWS)}'
  )
  arguments = parser.parse_args(argv)
  if arguments.runs < 1:
    parser.error(f'--runs: got {arguments.runs}, want at least 1')
  return arguments


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_arguments(argv)
  device = choose_device()
  results = {
    'device': device.type,
    'runs': arguments.runs,
    **environment(('flax', 'optax', 'torch', 'torchvision'))
    | {
      'gpu': torch.cuda.get_device_name() if device.type == 'cuda' else None,
      'torch_threads': torch.get_num_threads(),
    },
  }
  print(f'{results["gpu"] or results["cpu"]}, {results["cores"]} cores, {results["versions"]}')

  net = random_network(arguments.seed, device)
  found = results['agreement'] = agreement(net, device, arguments.seed)
  forward, gradient = found['forward_max_abs_difference'], found['gradient_relative_difference']
  offsets = ', '.join(f'{name} {value:.2f}' for name, value in found['mean_abs_offset_px'].items())
  worst = found['gradient_worst_tensor']
  print(f'mean absolute offset in pixels: {offsets}')
  print(f'forward, max abs difference: {forward:.1e} (values up to {found["forward_max_abs"]:.1f})')
  print(
    f'gradient, relative difference: {gradient:.1e} '
    f'(worst tensor: {worst["relative_difference"]:.1e}, {worst["name"]})'
  )
  # Written so that NaN fails.
  if not (forward <= FORWARD_ABS_TOLERANCE and gradient <= GRADIENT_RELATIVE_TOLERANCE):
    wanted = f'want at most {FORWARD_ABS_TOLERANCE} and {GRADIENT_RELATIVE_TOLERANCE}'
    print(f'the networks disagree: forward {forward}, gradient {gradient}, {wanted}', file=sys.stderr)
    return 1

  print(f'\n{"what":<42}{"PyTorch ms":>12}{"JAX ms":>12}{"ratio":>8}')
  results['rows'] = {}
  for row, (text, make_pair) in ROWS.items():
    if arguments.only and row not in arguments.only:
      continue
    result = measure(make_pair(net, device), arguments.runs, device)
    results['rows'][row] = {'what': text, **result}
    columns = f'{result["pytorch_ms"]:>12.1f}{result["jax_ms"]:>12.1f}{result["ratio"]:>8.2f}'
    print(f'{text:<42}{columns}', flush=True)
  if arguments.json:
    arguments.json.write_text(json.dumps(results, indent=2) + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
