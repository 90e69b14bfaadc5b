"""What a run is made of, built from its config: network, optimiser, state."""

from typing import Any

from flax.training import train_state
import jax
import jax.numpy as jnp
import ml_collections
import optax

from sadnet_jax.model import SADNet, model_from_fields
from sadnet_jax.optimizer import make_optimizer, make_schedule


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
