"""A PyTorch SADNet with random weights, the same weights for JAX, and a check that the two agree."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.common import DEFORMABLE_GROUPS, TAPS
from benchmarks.pytorch import sadnet
from sadnet_jax.nn.sadnet import SADNet, mean_abs_offsets, param_shapes
from sadnet_jax.weights.authors import params_from_state_dict

# Largest absolute difference of the output, and relative difference of the gradient. The latter is looser
# than rounding, because bilinear sampling and leaky ReLU have kinks: a value that rounds to the other side of
# one makes the gradient jump. In float64 the two agree to 1e-14. On a GPU, fast convolution algorithms round
# more. Random relative changes of the weights by 1e-5 gave differences of 5e-5 and 1e-3; changes by 1e-4,
# 5e-4 and 2.6e-3.
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
  """A random batch of images [N, H, W, 3] with Gaussian noise of sigma_255 = 50, and without."""
  rng = np.random.default_rng(seed)
  clean = rng.uniform(size=shape).astype(np.float32)
  return clean + rng.normal(scale=50 / 255, size=shape).astype(np.float32), clean


@torch.no_grad()
def random_network(seed: int, device: torch.device) -> sadnet.SADNet:
  """SADNet with random weights, and offsets as large as training produces them.

  Xavier-uniform weights and small random biases (zeros would hide a mix-up). The rows of the offset layers
  that predict offsets are scaled until the mean absolute offset is `MEAN_ABS_OFFSET_PX`. Zero offsets would
  need no interpolation, and with large ones most samples would be outside the image: either would be faster
  than real use.
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
    # The layer is linear, so one forward pass gives the factor. The new output is returned because the finer
    # scales depend on it.
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
  """L2 loss (mean squared error) of a network, by default `SADNet()`."""
  return jnp.mean(((model or SADNet()).apply({'params': params}, noisy) - clean) ** 2)


def agreement(net: sadnet.SADNet, device: torch.device, seed: int) -> dict[str, object]:
  """Compares output and loss gradient of both networks in float32 on a small batch of odd shape."""
  noisy, clean = noisy_and_clean((2, 40, 56, 3), seed + 1)
  denoised = net(to_torch(noisy, device))
  loss = torch.nn.functional.mse_loss(denoised, to_torch(clean, device))
  gradients = torch.autograd.grad(loss, list(net.parameters()))
  names = [name for name, _ in net.named_parameters()]
  expected_gradient = to_params(dict(zip(names, gradients, strict=True)))

  params = to_params(net.state_dict())
  apply = jax.jit(lambda p, x: SADNet().apply({'params': p}, x, mutable=['intermediates']))
  got, collected = apply(params, noisy)
  jax_gradient = jax.jit(jax.grad(jax_loss))(params, noisy, clean)

  difference = jax.tree.map(jnp.subtract, jax_gradient, expected_gradient)
  per_tensor = jax.tree.map(
    lambda d, w: float(jnp.linalg.norm(d) / jnp.linalg.norm(w)), difference, expected_gradient
  )
  worst_path, worst = max(jax.tree_util.tree_leaves_with_path(per_tensor), key=lambda leaf: leaf[1])
  return {
    'forward_max_abs_difference': float(np.abs(np.asarray(got) - to_nhwc(denoised)).max()),
    'forward_max_abs': float(np.abs(np.asarray(got)).max()),
    'gradient_relative_difference': float(optax.tree.norm(difference) / optax.tree.norm(expected_gradient)),
    'gradient_worst_tensor': {'name': jax.tree_util.keystr(worst_path), 'relative_difference': worst},
    'mean_abs_offset_px': {k: float(v) for k, v in mean_abs_offsets(collected['intermediates']).items()},
  }


def describe(found: dict) -> str:
  """The result of `agreement` in three lines."""
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
  """Raises ValueError unless the differences found by `agreement` are within the tolerances of the device."""
  forward, gradient = found['forward_max_abs_difference'], found['gradient_relative_difference']
  forward_limit, gradient_limit = FORWARD_ABS_TOLERANCE[device], GRADIENT_RELATIVE_TOLERANCE[device]
  # NaN fails this comparison.
  if not (forward <= forward_limit and gradient <= gradient_limit):
    raise ValueError(
      f'PyTorch and JAX disagree by {forward} in the output and {gradient} in the gradient; at most '
      f'{forward_limit} and {gradient_limit} are accepted'
    )
