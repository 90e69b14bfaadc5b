"""The network's forward pass and the step of its training, in PyTorch and in JAX, on the same images."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.limits import Precision
from benchmarks.pytorch import sadnet
from benchmarks.pytorch.agreement import jax_loss, noisy_and_clean, to_nhwc, to_params, to_torch
from benchmarks.pytorch.rows import Row
from benchmarks.pytorch.variants import (
  Prepared,
  Started,
  TorchVariant,
  autocast,
  compile_jax,
  jax_dtype,
  program_bytes,
  torch_arithmetic,
)
from sadnet_jax.nn.sadnet import SADNet, param_shapes

LEARNING_RATE = 1e-4
_SEED = 0


def _torch_model(net, variant):
  """A copy, because training changes it, and what computes with it."""
  net = copy.deepcopy(net)
  if variant.channels_last:
    net = net.to(memory_format=torch.channels_last)
  return net, torch.compile(net, dynamic=False) if variant.compiled else net


def _torch_images(images, device, variant):
  tensor = to_torch(images, device)
  return tensor.contiguous(memory_format=torch.channels_last) if variant.channels_last else tensor


def torch_forward(row: Row, net: sadnet.SADNet, device: torch.device, variant: TorchVariant) -> Started:
  """Inference on a batch of images."""
  images, _ = noisy_and_clean(row.shape, _SEED)
  _, model = _torch_model(net, variant)
  noisy = _torch_images(images, device, variant)

  def forward():
    with torch_arithmetic(variant), autocast(variant, device):
      return model(noisy)

  # What the network computes is the noise; it would drown in the image.
  return Started(torch.inference_mode()(forward), lambda y: {'negative noise': to_nhwc(y) - images})


def jax_forward(row: Row, net: sadnet.SADNet, precision: Precision) -> Prepared:
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


def torch_training(row: Row, net: sadnet.SADNet, device: torch.device, variant: TorchVariant) -> Started:
  """L2 loss, gradients, Adam update; read after the first step: the loss, and Adam's mean gradient."""
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
  """The same step; the state's memory is used again for the next, as PyTorch does."""
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
