"""The training loop: what happens after each step, and what is on disk when.

The state after step k is a function of (config, seed, k) alone: the patches of a step come from (seed, k)
(see `data.pipeline` and `data.on_device`), its noise from (seed, k) and the position of the patch in the
batch (see `step`). There is no random state to save, so on a CPU a run that was stopped continues bit for
bit, on the same number of cores and devices: with another, sums are rounded in another order. On a GPU,
results always differ by rounding.

After each step these happen, in this order, each only if it is due:

1. **Check** that loss, gradient and weights of the steps so far were finite; if not, the run ends here (with
   ``on_nonfinite = 'skip'``, after too many such steps in a row). Reading a metric waits for the device, so
   the check lags a few steps behind to keep the device busy. Before anything is logged or saved it catches
   up: **nothing is ever written that follows a step which should have ended the run.**
2. **Log** a line of metrics, every ``log_every`` steps.
3. **Validate**, every ``validation.every`` steps and at the last.
4. **Save** a checkpoint, every ``checkpoint_every`` and every ``validation.every`` steps (with the PSNR, if a
   validation set exists) and at the last step. Writing continues in the background; the checkpoint appears
   under its name once it is complete. A failed write is an error at the next save or at the end of the run,
   and older checkpoints stay.
5. **Stop**, if SIGTERM or Ctrl-C was received: the step is logged and saved without validation, and the run
   ends when the checkpoint is on disk.

A process may be killed at any point. **The run then continues from its newest complete checkpoint** and
repeats the steps after it with the same results:

- during 1 to 3: the step is repeated. Its line may be in the metrics file already; lines after the checkpoint
  are dropped when the run continues, so that each step has one.
- during 4: Orbax's temporary folder is left behind and deleted on the next start.
- during 5: as in 4.

An image that fails in validation is logged and left out, and the run goes on. If validation itself raises an
exception, the step is saved before the run ends. If a signal arrives during validation, validation is
abandoned, and the run stops at this step, which is saved without it. A validation that was due at the newest
checkpoint but is missing is made up when the run continues, also if the run is finished otherwise.
"""

import collections
from collections.abc import Callable, Sequence
import contextlib
import json
import math
from pathlib import Path
import time
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from sadnet_jax.data import on_device
from sadnet_jax.data.folders import look_for_data_dir
from sadnet_jax.files import local_path
from sadnet_jax.training import distributed, inputs, validation
from sadnet_jax.training.config import (
  CLEAN_SETS,
  PAIRED_SETS,
  check_config,
  noise_from_config,
  training_sets,
)
from sadnet_jax.training.run_folder import RunLog, open_run_folder
from sadnet_jax.training.state import (
  TrainState,
  create_train_state,
  model_from_config,
  run_key,
  schedule_from_config,
  state_from_params,
)
from sadnet_jax.training.step import (
  LOSSES,
  Batch,
  Metrics,
  OnDeviceSampling,
  Teacher,
  make_parallel_step,
)
from sadnet_jax.weights import checkpoints, hub
from sadnet_jax.weights.loading import load, load_params, locate
from sadnet_jax.weights.paths import CHECKPOINTS, is_run, split_run_path
from sadnet_jax.weights.safetensors import params_hash

# Number of newest steps whose metrics are not read yet, to avoid waiting for the device.
_CHECK_LAG_STEPS = 4
MAX_SKIPPED_IN_A_ROW = 100


def train(
  config: ml_collections.ConfigDict, workdir: str | Path, devices: Sequence[jax.Device] | None = None
) -> TrainState:
  """Trains to ``config.steps``, starting from the newest checkpoint in ``workdir`` if there is one.

  Args:
    config: See ``configs/default.py``.
    workdir: Local folder of the run, see `run_folder`. With several processes, only process 0 uses it.
    devices: Devices to train on; by default all devices of all processes.

  Returns:
    The final state. After SIGTERM or SIGINT that is the state of an earlier step, which has been saved.

  Raises:
    ValueError: A field of the config cannot work; ``workdir`` is a URL; the images are missing, damaged or
      smaller than a patch; another process trains in the folder; its checkpoint belongs to another config or
      cannot be read; a checkpoint cannot be written; the run has diverged.
  """
  workdir = local_path(workdir)
  devices = jax.devices() if devices is None else devices
  check_config(config, len(devices))
  _check_config_everywhere(config)
  data = inputs.open_training_data(config, distributed.local(devices))
  with contextlib.ExitStack() as stack:
    # Strict settings are meant for the user's own code; libraries below break under them.
    stack.enter_context(jax.numpy_rank_promotion('allow'))
    stack.enter_context(jax.numpy_dtype_promotion('standard'))
    # From here on, validator, folder, manager and log exist on process 0 only and are None on the others.
    (validator, measured_on), folder = distributed.on_first_process(
      lambda: (_make_validator(config, data), stack.enter_context(open_run_folder(workdir)))
    ) or ((None, None), None)
    # Entered before the manager, to catch signals while leaving the manager waits for the last checkpoint.
    stop = stack.enter_context(distributed.StopSignal())
    manager = None
    if folder is not None:
      opened = checkpoints.open_for_training(folder, config.keep_checkpoints, measured_on)
      manager = stack.enter_context(opened)
    state = _restore_or_create(config, data, manager)
    first = int(state.step)

    def lacks_validation():
      is_due = bool(first and validator and _is_validated(config, first))
      return is_due and not checkpoints.is_validated(manager, first)

    # Known to all, so that none returns while process 0 still needs the others.
    is_missing = bool(
      distributed.broadcast_from_first(np.int32(bool(distributed.on_first_process(lacks_validation))))
    )
    if first >= config.steps and not is_missing:
      if folder is not None:
        print(f'{workdir}: nothing to do, the run is at step {first} of {config.steps}')
      return state
    teacher = teacher_from_config(config)
    teacher_hash = '' if teacher is None else params_hash(teacher.params)
    distributed.check_same_everywhere('the teacher', teacher_hash)
    if teacher is not None:
      distributed.on_first_process(lambda: checkpoints.check_teacher(manager, config.teacher, teacher_hash))
    log = None
    if folder is not None:
      print(f'{folder}: {data.description}, {len(devices)} device(s), from step {first}', flush=True)
      log = stack.enter_context(
        RunLog(folder, first, config.steps, config.batch_size, lacks_validation=is_missing)
      )
    take_step = step_from_config(config, devices, data.device_images, data.device_pairs, teacher)
    run = _Run(config, data, devices, validator, measured_on, manager, log, stop, take_step, teacher_hash)
    if is_missing and folder is not None and not run.make_up_validation(first, state):
      return state
    return run.loop(state)


def _check_config_everywhere(config):
  """Raises ValueError if processes would train in different ways, and their weights drift apart."""
  # Paths may differ: data are compared themselves, and only process 0 begins, validates and saves.
  compared = {key: value for key, value in config.to_dict().items() if key not in ('init_from', 'teacher')}
  data = compared['data']
  compared['data'] = {key: value for key, value in data.items() if key not in ('train', 'tiles_dir')}
  compared['validation'] = {'every': compared['validation']['every']}
  for name, value in compared.items():
    distributed.check_same_everywhere(f'config.{name}', json.dumps(value, sort_keys=True))


def _make_validator(config, data):
  """Returns the validator and what its first PSNR is measured on; None twice without one."""
  fields, trained_on = config.validation, set(training_sets(config))
  if not fields.every:
    return None, None
  uses_clean = bool(trained_on & set(CLEAN_SETS))
  trains_on_pairs = bool(trained_on & set(PAIRED_SETS))
  uses_pairs = trains_on_pairs or config.noise.camera_share > 0
  sets, skipped = validation.find_validation_sets(
    fields.clean if uses_clean else (),
    fields.pairs if uses_pairs else (),
    data.held_out if fields.held_out else (),
    fields.images,
    channels=config.model.channels,
    pairs_first=trains_on_pairs,
  )
  unused = [*(() if uses_clean else fields.clean), *(() if uses_pairs else fields.pairs)]
  text = ', '.join(f'{s.name} ({len(s.images)} images)' for s in sets) or 'nothing'
  if len(sets) > 1:
    text += f', the best by {sets[0].name}'
  skipped['unused, because of other noise than in training'] = [
    folder for folder in unused if look_for_data_dir(folder)
  ]
  for reason, folders in skipped.items():
    text += f'; {reason}: {", ".join(folders)}' if folders else ''
  print(f'validation on {text}', flush=True)
  for validation_set in sets:
    validation.check_images(validation_set, config.model.channels)
  if not sets:
    return None, None
  noise = {'sigma_255': config.noise.sigma_255, 'clip': config.noise.clip}
  model = model_from_config(config.model)
  validator = validation.make_validator(model, sets, **noise, pictures=fields.pictures)
  return validator, validation.measured_on(sets[0], **noise)


def _is_validated(config, step):
  every = config.validation.every
  return bool(every) and (step % every == 0 or step == config.steps)


def _restore_or_create(config, data, manager):
  """Returns the state of the newest checkpoint, or the state before the first step."""
  distributed.check_same_everywhere('the training data', data.fingerprint)
  latest = distributed.on_first_process(lambda: manager.latest_step())
  if distributed.broadcast_from_first(np.int32(-1 if latest is None else latest)) < 0:
    return _first_state(config)
  state = create_train_state(config)
  restored = distributed.on_first_process(
    lambda: checkpoints.restore_latest(manager, state, config.to_dict(), data.fingerprint)
  )
  if jax.process_count() == 1:
    return restored
  arrays = distributed.broadcast_from_first(_arrays(state if restored is None else restored))
  return state.replace(**arrays)


def _first_state(config):
  if not config.init_from:
    return create_train_state(config)
  model = model_from_config(config.model)
  fields = config.model.to_dict()
  params = distributed.on_first_process(lambda: load_params(config.init_from, fields, as_start=True)[1])
  if jax.process_count() > 1:
    # The other processes only contribute shapes.
    params = distributed.broadcast_from_first(create_train_state(config).params if params is None else params)
  return state_from_params(config, model, params)


def _arrays(state):
  fields = ('step', 'params', 'opt_state', 'ema', 'skipped')
  return {name: getattr(state, name) for name in fields}


def step_from_config(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device],
  images: on_device.DeviceImages | None = None,
  pairs: on_device.DeviceImages | None = None,
  teacher: Teacher | None = None,
) -> Callable[[TrainState, Batch | None], tuple[TrainState, Metrics]]:
  """Builds the step of a run; see `make_parallel_step`.

  Args:
    config: The config of the run.
    devices: The devices to train on.
    images: The data set, if the devices sample from it themselves.
    pairs: Noisy and clean images that ``config.data.pairs_share`` of the patches come from, likewise.
    teacher: From `teacher_from_config`.
  """
  sampling = None if images is None else sampling_from_config(config, images, pairs)
  return make_parallel_step(
    devices,
    noise_key=run_key(config, 'noise'),
    add_noise=noise_from_config(config.noise),
    loss=LOSSES[config.loss],
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
    teacher=teacher,
    sampling=sampling,
  )


def teacher_from_config(config: ml_collections.ConfigDict) -> Teacher | None:
  """Loads the network that a run learns from, if any.

  Raises:
    ValueError: It may change during the run, cannot be loaded, or denoises another number of channels.
  """
  if not config.teacher:
    return None
  if config.teacher.startswith(hub.SCHEME) and '@' not in config.teacher:
    raise ValueError(
      f'config.teacher: {config.teacher} may change; name a commit, such as '
      f'{hub.SCHEME}OWNER/NAME@0123456789abcdef0123456789abcdef01234567'
    )
  path = locate(config.teacher)
  if is_run(path) and split_run_path(path)[1] is None:
    raise ValueError(
      f'config.teacher: {config.teacher} is the folder of a run, whose newest checkpoint may change; name '
      f'one, such as {config.teacher}/{CHECKPOINTS}/1000'
    )
  model, params, _ = load(path)
  if model.channels != config.model.channels:
    raise ValueError(
      f'config.teacher: {config.teacher} denoises {model.channels} channel(s), but config.model.channels is '
      f'{config.model.channels}'
    )
  return Teacher(model.apply, params, config.teacher_share)


def sampling_from_config(
  config: ml_collections.ConfigDict,
  images: on_device.DeviceImages,
  pairs: on_device.DeviceImages | None = None,
) -> OnDeviceSampling:
  """Says how the devices sample patches from images in their memory; see `step_from_config`."""
  return OnDeviceSampling(
    images,
    run_key(config, 'data'),
    batch_size=config.batch_size,
    patch_px=config.data.patch_px,
    pairs=pairs,
    pairs_share=config.data.pairs_share,
  )


class _Run:
  """One run, from its first or restored state to its last step."""

  def __init__(
    self, config, data, devices, validator, measured_on, manager, log, stop, take_step, teacher_hash
  ):
    self._config, self._data = config, data
    self._validator, self._measured_on = validator, measured_on
    self._manager, self._log, self._stop = manager, log, stop
    self._local_devices = distributed.local(devices)
    self._take_step, self._teacher_hash = take_step, teacher_hash
    self._schedule = schedule_from_config(config)
    self._unchecked: collections.deque[tuple[int, Any]] = collections.deque()
    self._skipped_in_a_row = 0

  def make_up_validation(self, step: int, state: TrainState) -> bool:
    """Validates the restored state, whose checkpoint lacks its validation; False if that was interrupted."""
    validated = self._validate(step, state)
    if validated is None:
      self._print_stopped(step)
      return False
    checkpoints.add_validation(self._manager, step, validated)
    self._print_best(step, validated)
    return True

  def loop(self, state: TrainState) -> TrainState:
    first = int(state.step) + 1
    batches = self._data.batches(first - 1, self._local_devices)
    for step in range(first, self._config.steps + 1):
      started = time.monotonic()
      batch = next(batches)
      waited = time.monotonic() - started
      state, metrics = self._take_step(state, batch)
      self._unchecked.append((step, metrics))
      if step == first:
        # Compilation is over; the clock for images per second starts here.
        jax.block_until_ready(metrics)
        if self._log:
          self._log.start_clock(step)
      elif self._log:
        self._log.add_waiting(waited)
      if self._finish_step(step, state, metrics, self._stop.stops_after(step)):
        break
    return state

  def _finish_step(self, step, state, metrics, stops):
    """Does what is due after a step, in the order that the module's docstring explains.

    Returns:
      Whether the run stops here: if it is to, or if a signal ended the validation.
    """
    config = self._config
    is_last = stops or step == config.steps
    logs = is_last or step % config.log_every == 0
    validates = not stops and _is_validated(config, step)
    saves = is_last or validates or step % config.checkpoint_every == 0

    self._check_finite(lag=0 if logs or saves else _CHECK_LAG_STEPS)
    if logs:
      self._write_line(step, metrics)
    validated = None
    try:
      if validates and self._validator:
        validated = self._validate(step, state)
    finally:
      # Also if validation failed: the step itself is good.
      if saves and self._manager:
        self._save(step, state, validated)
    if validates and self._log:
      self._log.start_clock(step)
    stops = stops or bool(validates and self._validator and validated is None)
    if stops and self._manager:
      checkpoints.wait(self._manager)
      self._print_stopped(step)
    return stops

  def _print_stopped(self, step):
    print(f'stopped at step {step}, which is saved; run the same command to continue', flush=True)

  def _check_finite(self, lag):
    """Reads the metrics of all steps but the newest ``lag``; raises ValueError if the run must end."""
    while len(self._unchecked) > lag:
      step, metrics = self._unchecked.popleft()
      if metrics['finite']:
        self._skipped_in_a_row = 0
        continue
      self._skipped_in_a_row += 1
      if self._config.on_nonfinite == 'stop' or self._skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
        raise ValueError(describe_divergence(step, _as_floats(metrics), self._skipped_in_a_row))

  def _write_line(self, step, metrics):
    values = _as_floats(metrics)
    warn_of_offsets(step, values, self._config.data.patch_px)
    if not self._log:
      return
    finite = {name: value for name, value in values.items() if name != 'finite' and math.isfinite(value)}
    # The rate used in this step: optax counts from zero and does not count skipped steps.
    skipped_before = values['skipped_steps'] - (not values['finite'])
    self._log.write(step, finite | {'learning_rate': float(self._schedule(step - 1 - skipped_before))})

  def _validate(self, step, state):
    """Returns what the checkpoint says about the validation; None if that was interrupted."""
    # A state that other processes sent is in NumPy arrays.
    params = jax.tree.map(
      lambda a: (
        a.addressable_data(0) if isinstance(a, jax.Array) else jax.device_put(a, self._local_devices[0])
      ),
      state.best_params,
    )
    results = self._validator(params, lambda: self._stop.received)
    if results is None:
      return None
    self._log.write_validation(step, results)
    first = next(iter(results.values()))
    # A mean over fewer images would not compare with those of other steps.
    compares = math.isfinite(first.denoised_psnr) and not first.failed
    return checkpoints.validation_metrics(first.denoised_psnr if compares else None, self._measured_on)

  def _save(self, step, state, validated):
    config, images = self._config.to_dict(), self._data.fingerprint
    checkpoints.save(self._manager, state, config, images, validated, teacher=self._teacher_hash)
    self._print_best(step, validated)

  def _print_best(self, step, validated):
    if validated and 'psnr' in validated and (best := self._manager.best_step()) is not None:
      print(f'step {step}/{self._config.steps}  best checkpoint so far: {best}', flush=True)


def _as_floats(metrics) -> dict[str, float]:
  return {name: float(np.asarray(value)) for name, value in jax.device_get(metrics).items()}


def describe_divergence(step: int, metrics: dict[str, float], in_a_row: int = 1) -> str:
  """Describes a step that is not finite, naming first the metric closest to the cause.

  Args:
    step: The step.
    metrics: From `train_step`. Offsets come first, from the coarsest scale to the finest, because the network
      computes them in this order; then the loss and the gradient. If all are finite, the new weights are not.
    in_a_row: How many steps that are not finite end with this one; more than one have been skipped.

  Returns:
    A message for the user.
  """
  order = ['offset/scale4', 'offset/scale3', 'offset/scale2', 'offset/scale1']
  order += ['loss', *sorted(name for name in metrics if name.startswith('gradient_norm/'))]
  first = next((n for n in [*order, 'gradient_norm'] if not math.isfinite(metrics.get(n, 0))), None)
  if first is None:
    return (
      f'step {step}: the optimiser makes weights that are not finite of finite gradients; earlier '
      'checkpoints are intact. Start a new run with a larger optimizer.eps or a lower optimizer.learning_rate'
    )
  others = ', '.join(n for n in order if n != first and not math.isfinite(metrics.get(n, 0)))
  others = f' (and {others})' if others else ''
  diverged = f'step {step}: the run has diverged, {first} is {metrics[first]}{others}'
  remedy = 'start a new run with a lower optimizer.learning_rate or with optimizer.clip_norm'
  if in_a_row > 1:
    return f'{diverged}; it is number {in_a_row} of steps in a row that were skipped. Instead, {remedy}'
  return f"{diverged}; earlier checkpoints are intact. Continue with on_nonfinite = 'skip', or {remedy}"


def warn_of_offsets(step: int, metrics: dict[str, float], patch_px: int) -> None:
  """Logs a warning for every scale whose mean absolute offset is larger than the patch at that scale.

  Args:
    step: The step.
    metrics: From `train_step`.
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
