"""The programs whose compilation and memory are measured, and the shapes of their arguments."""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
import sys
from typing import Any

import jax
import jax.numpy as jnp

# The configs are not installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.common import DEFORMABLE_GROUPS, TAPS, paper_deform_conv
from configs import color
from sadnet_jax.nn.sadnet import SADNet, param_shapes
from sadnet_jax.training.config import noise_from_config
from sadnet_jax.training.state import model_from_config, run_key, state_from_params
from sadnet_jax.training.step import LOSSES, train_step


@dataclasses.dataclass(frozen=True)
class Program:
  """A function and the arguments it is compiled for.

  Attributes:
    function: Returned by ``jax.jit``.
    arguments: Shapes and dtypes of its arguments (`jax.ShapeDtypeStruct`).
  """

  function: Any
  arguments: tuple

  def zeros(self) -> tuple:
    """Arguments to run it with. Memory does not depend on their values."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.arguments)


def network_forward(batch: int, height: int, width: int) -> Program:
  """The colour network at full width, float32, on a batch of images."""
  model = SADNet()

  def forward(params, noisy):
    return model.apply({'params': params}, noisy)

  return Program(jax.jit(forward), (param_shapes(model), _floats(batch, height, width, model.channels)))


def training_step(batch: int, patch_px: int) -> Program:
  """The training step of the paper's recipe on one device: noise, loss, gradients, Adam."""
  config = color.get_config('50')
  step = functools.partial(
    train_step,
    noise_key=run_key(config, 'noise'),
    add_noise=noise_from_config(config.noise),
    loss=LOSSES[config.loss],
  )
  model = model_from_config(config.model)
  state = jax.eval_shape(functools.partial(state_from_params, config, model), param_shapes(model))
  clean = jax.ShapeDtypeStruct((batch, patch_px, patch_px, config.model.channels), jnp.uint8)
  # Donated, as in training: the new state reuses the memory of the old one.
  return Program(jax.jit(step, donate_argnums=0), (state, {'clean': clean}))


def deform_conv_forward(batch: int, height: int, width: int, channels: int) -> Program:
  """The 3x3 operator with equal input and output channels."""
  return Program(jax.jit(paper_deform_conv), _operator_arguments(batch, height, width, channels))


def deform_conv_backward(batch: int, height: int, width: int, channels: int) -> Program:
  """The operator's five gradients, including the part of the forward pass that they need."""

  def backward(x, offset, mask, kernel, bias, dy):
    return jax.vjp(paper_deform_conv, x, offset, mask, kernel, bias)[1](dy)

  arguments = _operator_arguments(batch, height, width, channels)
  return Program(jax.jit(backward), (*arguments, arguments[0]))


def _operator_arguments(batch, height, width, channels):
  samples = DEFORMABLE_GROUPS * TAPS
  return (
    _floats(batch, height, width, channels),
    _floats(batch, height, width, 2 * samples),
    _floats(batch, height, width, samples),
    _floats(3, 3, channels, channels),
    _floats(channels),
  )


def _floats(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


# Name -> (text in a table, function that makes it).
PROGRAMS: dict[str, tuple[str, Callable[[], Program]]] = {
  'forward_480x320': ('network forward, one 480x320 image', lambda: network_forward(1, 320, 480)),
  'forward_1920x1080': ('network forward, one 1920x1080 image', lambda: network_forward(1, 1080, 1920)),
  'training_step_4x128': ('training step, 4 patches of 128x128', lambda: training_step(4, 128)),
  'deform_forward_320x480': (
    'deform_conv2d 1x320x480x32, forward',
    lambda: deform_conv_forward(1, 320, 480, 32),
  ),
  'deform_backward_320x480': (
    'deform_conv2d 1x320x480x32, backward',
    lambda: deform_conv_backward(1, 320, 480, 32),
  ),
}
