"""What a run is made of, built from its config: network, schedule, optimiser, state, random keys."""

from collections.abc import Callable
import math
import re
from typing import Any

from flax.training import train_state
import jax
import jax.numpy as jnp
import ml_collections
import optax

from sadnet_jax.nn.sadnet import SADNet, model_from_fields

# Modules of SADNet that are transposed convolutions.
_UP_CONV = re.compile(r'up\d')
# Modules that predict offsets and masks.
_OFFSETS = re.compile(r'offset\d|conv_offset_mask')
# Muon's polynomial a x + b x^3 + c x^5 of the singular values (Jordan et al., 2024), and its repetitions.
_NEWTON_SCHULZ, _NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5


class TrainState(train_state.TrainState):
  """Flax's state (step, parameters, optimiser) plus an average of the parameters and a count.

  Attributes:
    ema: Exponential moving average of the parameters, None if the run keeps none.
    skipped: Number of steps skipped so far because loss, gradient or a new parameter was not finite, int32.
  """

  ema: Any
  skipped: jax.Array

  @property
  def best_params(self) -> Any:
    """The parameters to evaluate: the average if there is one."""
    return self.params if self.ema is None else self.ema


def create_train_state(config: ml_collections.ConfigDict) -> TrainState:
  """Builds the state before the first step; it depends on the config and its seed alone."""
  model = model_from_config(config.model)
  # The parameters do not depend on the size of the image.
  image = jnp.zeros((1, 8, 8, config.model.channels))
  # This program runs once, so compile it fast rather than well, where XLA can.
  fast = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  options = fast if jax.default_backend() == 'cpu' else None
  params = jax.jit(model.init, compiler_options=options)(run_key(config, 'weights'), image)['params']
  return state_from_params(config, model, params)


def state_from_params(config: ml_collections.ConfigDict, model: SADNet, params: Any) -> TrainState:
  """Builds the state before the first step from given parameters."""
  return TrainState.create(
    apply_fn=model.apply,
    params=params,
    tx=optimizer_from_config(config),
    # A copy, because the buffers of the state are donated and no buffer can be donated twice.
    ema=jax.tree.map(jnp.copy, params) if config.ema_decay else None,
    skipped=jnp.int32(0),
  )


def run_key(config: ml_collections.ConfigDict, purpose: str) -> jax.Array:
  """Returns the random key of a run for 'weights', 'noise' or 'data'."""
  # Of this implementation whatever JAX's options say: the same run everywhere.
  key = jax.random.key(config.seed, impl='threefry2x32')
  return jax.random.fold_in(key, ('weights', 'noise', 'data').index(purpose))


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
    offset_rate=fields.offset_rate,
    clip_norm=fields.clip_norm,
  )


def make_schedule(
  *, name: str, learning_rate: float, halve_every: int, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Builds a learning-rate schedule.

  Args:
    name: 'step_halving' (the paper: learning_rate * 0.5**(step // halve_every)) or 'cosine' (falls to zero
      at ``total_steps``).
    learning_rate: The highest rate.
    halve_every: Steps between halvings; only used by 'step_halving'.
    warmup_steps: Steps of linear increase before the schedule starts: step k, counted from 0, has the rate
      learning_rate * (k + 1) / (warmup_steps + 1).
    total_steps: Length of the training.

  Returns:
    A function from the step, counted from 0, to the rate.

  Raises:
    ValueError: Unknown name, or a number out of range.
  """
  for field, value, least in (('learning_rate', learning_rate, 0), ('halve_every', halve_every, 1)):
    # Written this way round to reject NaN too.
    if not value >= least:
      raise ValueError(f'{field} is {value}, but must be at least {least}')
  if not 0 <= warmup_steps < max(total_steps, 1):
    raise ValueError(
      f'warmup_steps is {warmup_steps}, but must be at least 0 and less than the {total_steps} steps of '
      'training'
    )
  if name == 'step_halving':
    schedule = optax.exponential_decay(learning_rate, halve_every, decay_rate=0.5, staircase=True)
  elif name == 'cosine':
    schedule = optax.cosine_decay_schedule(learning_rate, max(total_steps - warmup_steps, 1))
  else:
    raise ValueError(f"unknown schedule {name!r}; choose 'step_halving' or 'cosine'")
  if not warmup_steps:
    return schedule
  return optax.join_schedules(
    [optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps), schedule],
    [warmup_steps],
  )


def _adam(schedule, *, b1, b2, eps, bias_rate):
  del bias_rate  # Muon's alone.
  return optax.adam(schedule, b1=b1, b2=b2, eps=eps)


def _muon(schedule, *, b1, b2, eps, bias_rate):
  return _orthogonalised(
    optax.contrib.muon(
      schedule,
      # None by optax: it returns each kernel's update divided by its norm, times the rate.
      ns_steps=0,
      eps=eps,
      adam_b1=b1,
      adam_b2=b2,
      adam_learning_rate=lambda step: bias_rate * schedule(step),
      consistent_rms=0.2,
      muon_weight_dimension_numbers=kernels_as_matrices,
    )
  )


# By the name in a config, whose file may add others: functions of the schedule and of the numbers b1, b2, eps
# and bias_rate of `make_optimizer`, all but the first by name.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {'adam': _adam, 'muon': _muon}


def make_optimizer(
  schedule: optax.Schedule,
  *,
  name: str,
  b1: float,
  b2: float,
  eps: float,
  bias_rate: float,
  offset_rate: float,
  clip_norm: float,
) -> optax.GradientTransformation:
  """Builds an optimiser.

  Args:
    schedule: The learning rate.
    name: A name of `OPTIMIZERS`: 'adam' (the paper), or 'muon' (Jordan et al., 2024), which updates the
      kernels of all convolutions by Muon and everything else by Adam.
    b1: Adam's decay rate of the first moment.
    b2: Adam's decay rate of the second moment.
    eps: Adam's epsilon; under 'muon' also added to the norm that a kernel's update is divided by.
    bias_rate: Learning rate of Adam under 'muon', as a fraction of the schedule's.
    offset_rate: Factor on the updates of the modules that predict offsets and masks (`OffsetBlock` and the
      'conv_offset_mask' of `RSABlock`). Muon's updates do not shrink with the gradient, so with a factor of 1
      and a high learning rate, offsets can grow beyond the patch, where no gradient brings them back. Called
      beta by Dai et al. (Deformable Convolutional Networks, ICCV 2017).
    clip_norm: Global norm that gradients are clipped to first; 0 for no clipping.

  Returns:
    An optax transformation.

  Raises:
    ValueError: Unknown name, or a number out of range.
  """
  for field, value in (('b1', b1), ('b2', b2)):
    if not 0 <= value < 1:
      raise ValueError(f'{field} is {value}, but must be at least 0 and less than 1')
  for field, value in (('eps', eps), ('bias_rate', bias_rate), ('offset_rate', offset_rate)):
    if not value >= 0:
      raise ValueError(f'{field} is {value}, but must be at least 0')
  if not clip_norm >= 0:
    raise ValueError(f'clip_norm is {clip_norm}, but must be positive, or 0 for no clipping')
  if name not in OPTIMIZERS:
    raise ValueError(f'unknown optimizer {name!r}; choose one of {", ".join(map(repr, sorted(OPTIMIZERS)))}')
  parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  parts.append(OPTIMIZERS[name](schedule, b1=b1, b2=b2, eps=eps, bias_rate=bias_rate))
  if offset_rate != 1:
    parts.append(optax.masked(optax.scale(offset_rate), _predicts_offsets))
  return optax.chain(*parts) if len(parts) > 1 else parts[0]


def _predicts_offsets(params):
  """Maps each parameter to whether it belongs to a module that predicts offsets and masks."""
  return jax.tree_util.tree_map_with_path(lambda path, _: _is_in(path, _OFFSETS), params)


def _is_in(path, modules):
  """Whether the path of a parameter leads through a module whose name matches a pattern."""
  return any(modules.fullmatch(str(entry.key)) for entry in path)


def kernels_as_matrices(params: Any) -> Any:
  """Maps each kernel [Kh, Kw, C, O] to the matrix that Muon orthogonalises; None for parameters left to Adam.

  A convolution maps (Kh, Kw, C) to O. A transposed convolution whose taps do not overlap (`UpConv`, modules
  'up1' to 'up3') maps C to (Kh, Kw, O).
  """

  def dimensions(path, leaf):
    if leaf.ndim != 4:
      return None
    if _is_in(path, _UP_CONV):
      return optax.contrib.MuonDimensionNumbers(reduction_axis=(2,), output_axis=(0, 1, 3))
    return optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=(3,))

  return jax.tree_util.tree_map_with_path(dimensions, params)


def _orthogonalised(muon: optax.GradientTransformation) -> optax.GradientTransformation:
  """Adds the Newton-Schulz iterations to a Muon without its own, at half the work.

  With X [m, n], m <= n, an iteration multiplies X by a polynomial of G = X X^T [m, m]. All iterations are
  done on G alone, and X is multiplied once, by the product of the polynomials. The result is the same but for
  rounding, and kernels of one shape are processed together. The state is that of optax's Muon.
  """

  def update(gradients, state, params=None):
    updates, state = muon.update(gradients, state, params)
    leaves, tree = jax.tree.flatten(updates)
    matrices = jax.tree.leaves(
      kernels_as_matrices(updates),
      is_leaf=lambda leaf: leaf is None or isinstance(leaf, optax.contrib.MuonDimensionNumbers),
    )
    by_shape: dict[tuple[int, ...], list[tuple[int, tuple[int, ...], bool, jax.Array]]] = {}
    for i, (leaf, numbers) in enumerate(zip(leaves, matrices, strict=True)):
      if numbers is None:
        continue
      order = (*numbers.reduction_axis, *numbers.output_axis)
      rows = math.prod(leaf.shape[axis] for axis in numbers.reduction_axis)
      matrix = leaf.transpose(order).reshape(rows, -1)
      is_wide = matrix.shape[0] <= matrix.shape[1]
      member = (i, order, is_wide, matrix if is_wide else matrix.T)
      by_shape.setdefault(member[-1].shape, []).append(member)
    for members in by_shape.values():
      together = _newton_schulz(jnp.stack([matrix for *_, matrix in members]))
      for (i, order, is_wide, _), matrix in zip(members, together, strict=True):
        ordered = (matrix if is_wide else matrix.T).reshape([leaves[i].shape[axis] for axis in order])
        leaves[i] = ordered.transpose(sorted(range(ordered.ndim), key=order.__getitem__))
    return jax.tree.unflatten(tree, leaves), state

  return optax.GradientTransformation(muon.init, update)


def _newton_schulz(x):
  """Brings all singular values of each matrix [k, m, n], m <= n, near its Frobenius norm.

  In full float32: rounding to TF32 or bfloat16, the default on GPUs and TPUs, makes small eigenvalues of the
  Gram matrix negative, and then each iteration multiplies them by up to 12.
  """
  # All zero where the rate is. First by the largest entry, since squares of tiny ones would vanish.
  largest = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
  x = x / jnp.where(largest > 0, largest, 1)
  norm = jnp.linalg.norm(x, axis=(1, 2), keepdims=True)
  x = x / jnp.where(largest > 0, norm, 1)
  with jax.default_matmul_precision('highest'):
    gram = x @ x.swapaxes(1, 2)
    a, b, c = _NEWTON_SCHULZ
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    product = identity
    for i in range(_NEWTON_SCHULZ_STEPS):
      polynomial = a * identity + b * gram + c * (gram @ gram)
      product = polynomial @ product if i else polynomial
      if i < _NEWTON_SCHULZ_STEPS - 1:
        gram = polynomial @ gram @ polynomial
    return largest * norm * (product @ x)
