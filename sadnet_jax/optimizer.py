"""Optimiser and learning-rate schedules."""

import re

import jax
import optax

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
