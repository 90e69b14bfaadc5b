"""Training: the loop.

The state after step k is a function of (config, seed, k): the patches of a step come
from (seed, k) (`input_pipeline`, `device_data`), its noise from (seed, k) and the
patch's place in the batch (`train_step`). There is no random state to store, and a
run that was stopped continues as if it had not been.
"""

import collections
from collections.abc import Sequence
import contextlib
import math
from pathlib import Path
import time
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from sadnet_jax.training import distributed, inputs, validation
from sadnet_jax.training.config import check_config, is_paired
from sadnet_jax.training.run_folder import RunLog, open_run_folder
from sadnet_jax.training.state import (
  TrainState,
  create_train_state,
  model_from_config,
  schedule_from_config,
  state_from_params,
)
from sadnet_jax.training.step import make_parallel_step
from sadnet_jax.weights import checkpoints
from sadnet_jax.weights.loading import load_params

# Steps that the check for finite gradients lags behind, so as not to wait for the device.
_LAG = 4
_MOST_SKIPPED_IN_A_ROW = 100


def train(
  config: ml_collections.ConfigDict, workdir: str | Path, devices: Sequence[jax.Device] | None = None
) -> TrainState:
  """Trains to ``config.steps``, from the newest checkpoint in ``workdir`` if there is one.

  Args:
    config: See ``configs/default.py``.
    workdir: Folder of the run: ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``.
      Of several processes, only process 0 touches it.
    devices: Devices to train on; by default all of all processes.

  Returns:
    The final state. SIGTERM or SIGINT ends the run early, with its step saved.

  Raises:
    ValueError: A field of the config cannot work; the images are missing or damaged,
      or smaller than a patch; another process trains in the folder; its checkpoint is
      of another config, cannot be read, or a new one cannot be written; the run has
      diverged.
  """
  devices = jax.devices() if devices is None else devices
  check_config(config, len(devices))
  data = inputs.open_training_data(config, distributed.local(devices)[0])
  with contextlib.ExitStack() as stack:
    # None on processes other than the first, here and below.
    validator, folder = distributed.on_first_process(
      lambda: (_make_validator(config, data), stack.enter_context(open_run_folder(workdir)))
    ) or (None, None)
    # Before the manager, so as to be noted while it waits for what is being written.
    stop = stack.enter_context(distributed.StopSignal())
    manager = None
    if folder is not None:
      manager = stack.enter_context(checkpoints.open_for_training(folder, config.keep_checkpoints))
    state = _restore(config, data, manager)
    first = int(state.step)
    if first >= config.steps:
      if folder is not None:
        print(f'{workdir}: nothing to do, the run is at step {first} of {config.steps}')
      return state
    if folder is not None:
      print(f'{folder}: {data.description}, {len(devices)} device(s), from step {first}', flush=True)
    log = (
      None if folder is None else stack.enter_context(RunLog(folder, first, config.steps, config.batch_size))
    )
    return _Run(config, data, devices, validator, manager, log, stop).loop(state)


def _make_validator(config, data):
  fields = config.validation
  if not fields.every:
    return None
  sets, missing = validation.find_validation_sets(
    () if is_paired(config) else fields.clean,
    fields.pairs if is_paired(config) else (),
    data.held_out if fields.held_out else (),
    fields.images,
  )
  names = ', '.join(f'{s.name} ({len(s.images)} images)' for s in sets) or 'nothing'
  print(f'validation on {names}' + (f'; not there: {", ".join(missing)}' if missing else ''), flush=True)
  for validation_set in sets:
    validation.check_images(validation_set, config.model.channels)
  if not sets:
    return None
  return validation.make_validator(
    model_from_config(config.model),
    sets,
    sigma_255=config.noise.sigma_255,
    clip=config.noise.clip,
    pictures=fields.pictures,
  )


def _first_state(config):
  if not config.init_from:
    return create_train_state(config)
  model = model_from_config(config.model)
  params = distributed.on_first_process(lambda: load_params(config.init_from, config.model.to_dict())[1])
  if jax.process_count() > 1:
    # Only the shapes matter where there is nothing to send.
    params = distributed.from_first_process(create_train_state(config).params if params is None else params)
  return state_from_params(config, model, params)


def _restore(config, data, manager):
  """The state of the newest checkpoint, or the first one."""
  distributed.check_same('config.data', data.fingerprint)
  latest = distributed.on_first_process(lambda: manager.latest_step())
  if distributed.from_first_process(np.int32(-1 if latest is None else latest)) < 0:
    return _first_state(config)
  state = create_train_state(config)
  restored = distributed.on_first_process(
    lambda: checkpoints.restore_latest(manager, state, config.to_dict(), data.fingerprint)
  )
  if jax.process_count() == 1:
    return restored
  arrays = distributed.from_first_process(_arrays(state if restored is None else restored))
  return state.replace(**arrays)


def _arrays(state):
  fields = ('step', 'params', 'opt_state', 'ema', 'skipped')
  return {name: getattr(state, name) for name in fields}


class _Run:
  """One run from its restored state to its last step."""

  def __init__(self, config, data, devices, validator, manager, log, stop):
    self._config, self._data, self._validator = config, data, validator
    self._manager, self._log, self._stop = manager, log, stop
    self._step = make_parallel_step(config, devices, data.device_images)
    self._schedule = schedule_from_config(config)
    self._pending: collections.deque[tuple[int, Any]] = collections.deque()
    self._skipped_in_a_row = 0
    self._local = distributed.local(devices)

  def loop(self, state: TrainState) -> TrainState:
    config, first = self._config, int(state.step)
    batches = self._data.batches(first, self._local)
    for step in range(first + 1, config.steps + 1):
      started = time.monotonic()
      batch = next(batches)
      waited = time.monotonic() - started
      state, metrics = self._step(state, batch)
      self._pending.append((step, metrics))
      if step == first + 1:
        jax.block_until_ready(metrics)
        if self._log:
          self._log.start_clock(step)
      elif self._log:
        self._log.wait(waited)
      stops = self._stop.received(step)
      ends = stops or step == config.steps
      logs = ends or step % config.log_every == 0
      validates = not stops and self._validates(step, config.steps)
      saves = ends or validates or step % config.checkpoint_every == 0
      self._check_finite(0 if logs or saves else _LAG)
      if logs:
        self._write(step, metrics)
      if saves and self._manager:
        self._save(step, state, validates)
      if stops:
        if self._manager:
          checkpoints.wait(self._manager)
          print(f'stopped at step {step}, which is saved; run the same command to continue', flush=True)
        break
    return state

  def _validates(self, step, last):
    every = self._config.validation.every
    return bool(every) and (step % every == 0 or step == last)

  def _check_finite(self, leave):
    """Looks at the metrics of all steps but the newest ``leave``; see `train_step`."""
    while len(self._pending) > leave:
      step, metrics = self._pending.popleft()
      if metrics['finite']:
        self._skipped_in_a_row = 0
        continue
      self._skipped_in_a_row += 1
      if self._config.on_nonfinite == 'stop' or self._skipped_in_a_row > _MOST_SKIPPED_IN_A_ROW:
        raise ValueError(describe_divergence(step, _numbers(metrics)))

  def _write(self, step, metrics):
    values = _numbers(metrics)
    warn_of_offsets(step, values, self._config.data.patch_px)
    if not self._log:
      return
    finite = {name: value for name, value in values.items() if name != 'finite' and math.isfinite(value)}
    # The rate this step used: optax counts from zero, and not the steps that were skipped.
    skipped = values['skipped_steps'] - (not values['finite'])
    self._log.write(step, finite | {'learning_rate': float(self._schedule(step - 1 - skipped))})

  def _save(self, step, state, validates):
    score = None
    try:
      if validates and self._validator:
        score = self._validate(step, state)
    finally:
      # Also where validation failed: the step is good.
      checkpoints.save(self._manager, state, self._config.to_dict(), self._data.fingerprint, score)
    if score is not None and (best := self._manager.best_step()) is not None:
      print(f'step {step}/{self._config.steps}  best checkpoint so far: {best}', flush=True)
    if validates:
      self._log.start_clock(step)

  def _validate(self, step, state):
    """What the first set gives, in dB; None where it was interrupted or is not finite."""
    params = jax.tree.map(lambda a: a.addressable_data(0), state.best_params)
    results = self._validator(params, lambda: self._stop.noted)
    if results is None:
      return None
    self._log.write_validation(step, results)
    score = next(iter(results.values())).denoised_psnr
    return score if math.isfinite(score) else None


def _numbers(metrics) -> dict[str, float]:
  return {name: float(np.asarray(value)) for name, value in jax.device_get(metrics).items()}


def describe_divergence(step: int, metrics: dict[str, float]) -> str:
  """What to tell of a step whose loss or gradient is not finite.

  Args:
    step: The step.
    metrics: As from `train_step`.

  Returns:
    A message with the step and the scale it shows at: in the offsets first, which are
    computed from the coarsest scale to the finest, else in the gradient.
  """
  order = ['offset/scale4', 'offset/scale3', 'offset/scale2', 'offset/scale1']
  order += ['loss', *sorted(name for name in metrics if name.startswith('gradient_norm/'))]
  first = next((n for n in order if not math.isfinite(metrics.get(n, 0))), 'gradient_norm')
  others = ', '.join(n for n in order if n != first and not math.isfinite(metrics.get(n, 0)))
  others = f' (and {others})' if others else ''
  return (
    f'step {step}: got {first} = {metrics[first]}{others}, want a finite number; the run has diverged. '
    "Checkpoints before it are kept: continue with on_nonfinite = 'skip', or start a new run with a lower "
    'optimizer.learning_rate or with optimizer.clip_norm'
  )


def warn_of_offsets(step: int, metrics: dict[str, float], patch_px: int) -> None:
  """Warns where the mean absolute offset of a scale has grown past the patch.

  Args:
    step: The step.
    metrics: As from `train_step`.
    patch_px: Side of a training patch in pixels.
  """
  for name, value in metrics.items():
    scale = int(name[-1]) if name.startswith('offset/') else None
    if scale and value > patch_px / 2 ** (scale - 1):
      logging.warning(
        'step %d: the mean absolute offset of scale %d is %.1f pixels, larger than the patch: '
        'the deformable convolution samples outside the image',
        step,
        scale,
        value,
      )
