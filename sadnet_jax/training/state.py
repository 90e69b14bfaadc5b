"""What a run is made of, built from its config: network, optimiser, state."""

import re
from typing import Any

from flax.training import train_state
import jax
import jax.numpy as jnp
import ml_collections
import optax

from sadnet_jax.nn.sadnet import SADNet, model_from_fields

_UP_CONV = re.compile(r'up\d')


def step_halving(learning_rate: float, halve_every: int) -> optax.Schedule:
  """The paper's schedule: learning_rate * 0.5**(step // halve_every)."""
  return optax.exponential_decay(learning_rate, halve_every, decay_rate=0.5, staircase=True)


def make_schedule(
  *, name: str, learning_rate: float, halve_every: int, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Learning rate as a function of the step.

  Args:
    name: 'step_halving' (the paper) or 'cosine' (to zero at ``total_steps``).
    learning_rate: The highest rate.
    halve_every: Steps between halvings; of 'step_halving' only.
    warmup_steps: Steps of linear increase from zero, before the schedule proper.
    total_steps: Length of the training.

  Returns:
    An optax schedule.

  Raises:
    ValueError: Unknown name, or a number out of range.
  """
  for field, value, least in (('learning_rate', learning_rate, 0), ('halve_every', halve_every, 1)):
    # So that NaN is refused, too.
    if not value >= least:
      raise ValueError(f'{field}: got {value}, want at least {least}')
  if not 0 <= warmup_steps < max(total_steps, 1):
    raise ValueError(
      f'warmup_steps: got {warmup_steps}, want 0 to less than the {total_steps} steps of training'
    )
  if name == 'step_halving':
    schedule = step_halving(learning_rate, halve_every)
  elif name == 'cosine':
    schedule = optax.cosine_decay_schedule(learning_rate, max(total_steps - warmup_steps, 1))
  else:
    raise ValueError(f"schedule: got {name!r}, want 'step_halving' or 'cosine'")
  if not warmup_steps:
    return schedule
  return optax.join_schedules(
    [optax.linear_schedule(0, learning_rate, warmup_steps), schedule], [warmup_steps]
  )


def make_optimizer(
  schedule: optax.Schedule,
  *,
  name: str,
  b1: float,
  b2: float,
  eps: float,
  bias_rate: float,
  clip_norm: float,
) -> optax.GradientTransformation:
  """The optimiser.

  Args:
    schedule: Learning rate.
    name: 'adam' (the paper), or 'muon': the kernels of all convolutions by Muon
      (Jordan et al., 2024), everything else by Adam.
    b1: Adam's decay of the mean.
    b2: Adam's decay of the square.
    eps: Adam's epsilon.
    bias_rate: Rate of what Muon leaves to Adam, as a fraction of the schedule's;
      of 'muon' only.
    clip_norm: Clip the gradient to this global norm first; 0 does not.

  Returns:
    An optax transformation.

  Raises:
    ValueError: Unknown name, or a number out of range.
  """
  for field, value in (('b1', b1), ('b2', b2)):
    if not 0 <= value < 1:
      raise ValueError(f'{field}: got {value}, want 0 to less than 1')
  for field, value in (('eps', eps), ('bias_rate', bias_rate)):
    if not value >= 0:
      raise ValueError(f'{field}: got {value}, want at least 0')
  if not clip_norm >= 0:
    raise ValueError(f'clip_norm: got {clip_norm}, want a positive number, or 0 for no clipping')
  if name == 'adam':
    transform = optax.adam(schedule, b1=b1, b2=b2, eps=eps)
  elif name == 'muon':
    transform = optax.contrib.muon(
      schedule,
      adam_b1=b1,
      adam_b2=b2,
      adam_learning_rate=lambda step: bias_rate * schedule(step),
      consistent_rms=0.2,
      muon_weight_dimension_numbers=_kernels_as_matrices,
    )
  else:
    raise ValueError(f"optimizer: got {name!r}, want 'adam' or 'muon'")
  return optax.chain(optax.clip_by_global_norm(clip_norm), transform) if clip_norm else transform


def _kernels_as_matrices(params):
  """Each kernel [Kh, Kw, C, O] as the matrix that the layer multiplies by; None means Adam.

  A convolution maps (Kh, Kw, C) to O. A transposed convolution whose taps do not
  overlap (`UpConv`, modules 'up1' to 'up3') maps C to (Kh, Kw, O).
  """

  def dimensions(path, leaf):
    if leaf.ndim != 4:
      return None
    if any(_UP_CONV.fullmatch(str(entry.key)) for entry in path):
      return optax.contrib.MuonDimensionNumbers(reduction_axis=(2,), output_axis=(0, 1, 3))
    return optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=(3,))

  return jax.tree_util.tree_map_with_path(dimensions, params)


class TrainState(train_state.TrainState):
  """Flax's state (step, parameters, optimiser) and what this project's training adds.

  Attributes:
    ema: Running average of the parameters, or None where it is not kept.
    skipped: Steps so far whose gradient was not finite and was left out, int32.
  """

  ema: Any
  skipped: jax.Array

  @property
  def best_params(self) -> Any:
    """What is evaluated: the average where there is one, else the parameters."""
    return self.params if self.ema is None else self.ema


def model_from_config(fields: ml_collections.ConfigDict) -> SADNet:
  """Builds the network from ``config.model``."""
  return model_from_fields(fields.to_dict())


def schedule_from_config(config: ml_collections.ConfigDict) -> optax.Schedule:
  """Builds the learning-rate schedule from ``config.optimizer`` and ``config.steps``."""
  fields = config.optimizer
  return make_schedule(
    name=fields.schedule,
    learning_rate=fields.learning_rate,
    halve_every=fields.halve_every,
    warmup_steps=fields.warmup_steps,
    total_steps=config.steps,
  )


def optimizer_from_config(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """Builds the optimiser from ``config.optimizer``."""
  fields = config.optimizer
  return make_optimizer(
    schedule_from_config(config),
    name=fields.name,
    b1=fields.b1,
    b2=fields.b2,
    eps=fields.eps,
    bias_rate=fields.bias_rate,
    clip_norm=fields.clip_norm,
  )


def create_train_state(config: ml_collections.ConfigDict) -> TrainState:
  """The state before the first step: a function of the config and its seed."""
  model = model_from_config(config.model)
  # Weights do not depend on the size of the image they are initialised with.
  image = jnp.zeros((1, 8, 8, config.model.channels))
  # Run once: compiled quickly rather than well.
  quickly = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  params = jax.jit(model.init, compiler_options=quickly)(run_key(config, 'weights'), image)['params']
  return state_from_params(config, model, params)


def state_from_params(config: ml_collections.ConfigDict, model: SADNet, params: Any) -> TrainState:
  """The state before the first step, with given weights."""
  return TrainState.create(
    apply_fn=model.apply,
    params=params,
    tx=optimizer_from_config(config),
    # A copy: the state's buffers are donated, and none may be donated twice.
    ema=jax.tree.map(jnp.copy, params) if config.ema_decay else None,
    skipped=jnp.int32(0),
  )


def run_key(config: ml_collections.ConfigDict, purpose: str) -> jax.Array:
  """The random key of a run for 'weights', 'noise' or 'data'."""
  return jax.random.fold_in(jax.random.key(config.seed), ('weights', 'noise', 'data').index(purpose))
