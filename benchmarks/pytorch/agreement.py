"""A PyTorch SADNet with random weights, the same weights for JAX, and whether the two agree."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.limits import DEFORMABLE_GROUPS, TAPS
from benchmarks.pytorch import sadnet
from sadnet_jax.nn.sadnet import SADNet, mean_abs_offsets, param_shapes
from sadnet_jax.weights.authors import params_from_state_dict

# Largest absolute difference of the output, and relative difference of the gradient. The latter is looser
# than rounding: bilinear sampling and leaky ReLU have kinks, and a value that rounds to the other side of one
# changes the gradient by a jump. In float64 the two agree to 1e-14. On a GPU, fast algorithms of convolutions
# round more: weights changed by 1e-5 of themselves at random gave 5e-5 and 1e-3, by 1e-4 5e-4 and 2.6e-3.
FORWARD_ABS_TOLERANCE = {'cpu': 1e-4, 'gpu': 5e-4}
GRADIENT_RELATIVE_TOLERANCE = {'cpu': 1e-3, 'gpu': 5e-3}
MEAN_ABS_OFFSET_PX = 1.5


def to_torch(array: np.ndarray, device: torch.device) -> torch.Tensor:
  """[N, H, W, C] on the host -> contiguous [N, C, H, W], PyTorch's usual layout."""
  return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))).to(device)


def to_nhwc(x: torch.Tensor) -> np.ndarray:
  """[N, C, H, W] on any device -> [N, H, W, C], float32 on the host."""
  return x.detach().float().cpu().numpy().transpose(0, 2, 3, 1)


def to_params(tensors: dict[str, torch.Tensor]) -> dict:
  """Converts tensors named as in a state dict (weights or their gradients) to a Flax tree."""
  host = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
  # Copied: PyTorch's optimizer changes its weights in place.
  return jax.tree.map(jnp.array, params_from_state_dict(host, param_shapes(SADNet())))


def noisy_and_clean(shape: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
  """A random image batch [N, H, W, 3] and the same with Gaussian noise of sigma_255 = 50."""
  rng = np.random.default_rng(seed)
  clean = rng.uniform(size=shape).astype(np.float32)
  return clean + rng.normal(scale=50 / 255, size=shape).astype(np.float32), clean


@torch.no_grad()
def random_network(seed: int, device: torch.device) -> sadnet.SADNet:
  """SADNet with random weights and offsets of a size that training produces.

  Xavier-uniform weights and small random biases (zeros would hide a mix-up). The
  rows of the offset layers that predict offsets are scaled until the mean
  absolute offset is `MEAN_ABS_OFFSET_PX`: with zero offsets nothing would be
  interpolated, with large ones most samples would lie outside the image, and
  either would be faster than real use.
  """
  generator = torch.Generator().manual_seed(seed)
  net = sadnet.SADNet()
  for parameter in net.parameters():
    if parameter.ndim == 4:
      torch.nn.init.xavier_uniform_(parameter, generator=generator)
    else:
      torch.nn.init.normal_(parameter, std=0.01, generator=generator)
  net.to(device)

  def scale_offsets(layer, _inputs, predicted):
    # The layer is linear, so one forward pass gives the factor. Returning the new
    # output lets the finer scales, which depend on this one, see it.
    offset_rows = 2 * DEFORMABLE_GROUPS * TAPS
    factor = MEAN_ABS_OFFSET_PX / predicted[:, :offset_rows].abs().mean()
    layer.weight[:offset_rows] *= factor
    layer.bias[:offset_rows] *= factor
    return torch.cat([predicted[:, :offset_rows] * factor, predicted[:, offset_rows:]], dim=1)

  hooks = [
    module.conv_offset_mask.register_forward_hook(scale_offsets)
    for module in net.modules()
    if isinstance(module, sadnet.ModulatedDeformConv)
  ]
  noisy, _ = noisy_and_clean((1, 128, 128, 3), seed)
  net(to_torch(noisy, device))
  for hook in hooks:
    hook.remove()
  return net


def jax_loss(params: dict, noisy: jax.Array, clean: jax.Array, model: SADNet | None = None) -> jax.Array:
  """L2 loss: the mean squared error, a scalar; of the default network if none is given."""
  return jnp.mean(((model or SADNet()).apply({'params': params}, noisy) - clean) ** 2)


def agreement(net: sadnet.SADNet, device: torch.device, seed: int) -> dict[str, object]:
  """Compares output and loss gradient of both networks on a small asymmetric batch, in float32."""
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


def describe(found: dict) -> str:
  """`agreement` in three lines."""
  offsets = ', '.join(f'{name} {value:.2f}' for name, value in found['mean_abs_offset_px'].items())
  worst = found['gradient_worst_tensor']
  return (
    f'mean absolute offset in pixels: {offsets}\n'
    f'forward, max abs difference: {found["forward_max_abs_difference"]:.1e} '
    f'(values up to {found["forward_max_abs"]:.1f})\n'
    f'gradient, relative difference: {found["gradient_relative_difference"]:.1e} '
    f'(worst tensor: {worst["relative_difference"]:.1e}, {worst["name"]})'
  )


def check(found: dict, device: str) -> None:
  """Raises ValueError unless the differences that `agreement` found are within the device's tolerances."""
  forward, gradient = found['forward_max_abs_difference'], found['gradient_relative_difference']
  forward_most, gradient_most = FORWARD_ABS_TOLERANCE[device], GRADIENT_RELATIVE_TOLERANCE[device]
  # Written so that NaN fails.
  if not (forward <= forward_most and gradient <= gradient_most):
    raise ValueError(
      f'PyTorch and JAX disagree: got differences {forward} in the output and {gradient} in the gradient, '
      f'want at most {forward_most} and {gradient_most}'
    )
