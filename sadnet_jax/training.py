"""Training: the step, its parallel version, and the loop.

The state after step k is a function of (config, seed, k): the data of a step come
from (seed, k) (`input_pipeline`), its noise from ``fold_in(key, k)`` and the
sample's place in the global batch. There is no random state to store. On a CPU it
is the same bit for bit however often the run is stopped; another number of devices,
or a GPU (whose scatter-adds are not ordered), changes rounding only.
"""

from collections.abc import Callable, Sequence
import math
from pathlib import Path

from absl import logging
from flax.training.train_state import TrainState
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_collections
import numpy as np
import optax

from sadnet_jax import checkpoints, input_pipeline
from sadnet_jax.images import find_data_dir, find_images
from sadnet_jax.losses import LOSSES
from sadnet_jax.model import SADNet, mean_abs_offsets
from sadnet_jax.noise import add_training_noise
from sadnet_jax.optimizer import make_optimizer, make_schedule
from sadnet_jax.run_log import RunLog

Metrics = dict[str, jax.Array]


def model_from_config(fields: ml_collections.ConfigDict) -> SADNet:
  """Builds the network from ``config.model``."""
  values = dict(fields)
  if values['dtype'] not in ('float32', 'bfloat16'):
    raise ValueError(f"model.dtype: got {values['dtype']!r}, want 'float32' or 'bfloat16'")
  return SADNet(**{**values, 'dtype': jnp.dtype(values['dtype']), 'dilations': tuple(values['dilations'])})


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
  params = jax.jit(model.init, compiler_options=quickly)(_key(config, 'weights'), image)['params']
  return TrainState.create(apply_fn=model.apply, params=params, tx=optimizer_from_config(config))


def _key(config: ml_collections.ConfigDict, purpose: str) -> jax.Array:
  return jax.random.fold_in(jax.random.key(config.seed), ('weights', 'noise').index(purpose))


def train_step(
  state: TrainState,
  clean_255: jax.Array,
  *,
  key: jax.Array,
  sigma_255: float,
  clip: bool,
  loss: Callable[[jax.Array, jax.Array], jax.Array],
  axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
  """One update on a batch of clean patches.

  Args:
    state: The state; its step selects the noise.
    clean_255: uint8 [N, P, P, C]; this device's share of the batch.
    key: Random key of the whole run.
    sigma_255: Standard deviation of the noise on the scale of 8-bit images.
    clip: Clamp noisy images to [0, 1].
    loss: (denoised, clean) -> scalar.
    axis_name: Name of the device axis to average over, or None for one device.

  Returns:
    The next state, and scalars: ``loss``, ``gradient_norm``, and ``offset/scale1``
    to ``offset/scale4`` (mean absolute offset in pixels of that scale).
  """
  share = clean_255.shape[0]
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * share
  step_key = jax.random.fold_in(key, state.step)
  keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(first + jnp.arange(share))
  clean = clean_255.astype(jnp.float32) / 255
  noisy = add_training_noise(keys, clean, sigma_255, clip)

  def loss_of(params):
    denoised, variables = state.apply_fn({'params': params}, noisy, mutable=['intermediates'])
    return loss(denoised, clean), mean_abs_offsets(variables.get('intermediates', {}))

  (value, offsets), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
  if axis_name is not None:
    value, offsets, gradients = jax.lax.pmean((value, offsets, gradients), axis_name)
  metrics = {'loss': value, 'gradient_norm': optax.tree.norm(gradients)}
  metrics |= {f'offset/{scale}': mean for scale, mean in offsets.items()}
  return state.apply_gradients(grads=gradients), metrics


def make_parallel_step(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device]
) -> Callable[[TrainState, np.ndarray], tuple[TrainState, Metrics]]:
  """`train_step` under ``jax.pmap``: state on every device, batch split among them.

  Args:
    config: The run's config.
    devices: Devices of this process to use.

  Returns:
    (state, uint8 [N, P, P, C]) -> (state, metrics). The state has no device axis;
    its buffers are donated, so the one passed in cannot be used again.
  """
  key = _key(config, 'noise')

  def step(state, clean_255):
    return train_step(
      state,
      clean_255,
      key=key,
      sigma_255=config.noise.sigma_255,
      clip=config.noise.clip,
      loss=LOSSES[config.loss],
      axis_name='devices',
    )

  everywhere = NamedSharding(Mesh(np.asarray(devices), ('devices',)), PartitionSpec())
  # in_axes / out_axes None: the same on all devices, without an axis of its own.
  parallel = jax.pmap(
    step, axis_name='devices', in_axes=(None, 0), out_axes=None, devices=list(devices), donate_argnums=(0,)
  )

  def split_and_step(state, clean_255):
    shares = clean_255.reshape(len(devices), -1, *clean_255.shape[1:])
    # The first state is on one device: placed as the later ones are, it needs no program of its own.
    if getattr(state.step, 'sharding', None) != everywhere:
      state = jax.device_put(state, everywhere)
    return parallel(state, shares)

  return split_and_step


def check_config(config: ml_collections.ConfigDict, device_count: int) -> None:
  """Raises ValueError for the first field no run can work with, before anything is compiled."""
  at_least = {
    'batch_size': (config.batch_size, 1),
    'steps': (config.steps, 1),
    'log_every': (config.log_every, 1),
    'checkpoint_every': (config.checkpoint_every, 1),
    'keep_checkpoints': (config.keep_checkpoints, 1),
    'data.patch_px': (config.data.patch_px, 1),
    'noise.sigma_255': (config.noise.sigma_255, 0),
  }
  for name, (value, least) in at_least.items():
    if value < least:
      raise ValueError(f'config.{name}: got {value}, want at least {least}')
  if config.batch_size % device_count:
    raise ValueError(
      f'config.batch_size: got {config.batch_size}, want a multiple of the {device_count} devices'
    )
  if config.model.channels not in (1, 3):
    raise ValueError(f'config.model.channels: got {config.model.channels}, want 3 (colour) or 1 (grey)')
  if config.loss not in LOSSES:
    raise ValueError(f'config.loss: got {config.loss!r}, want one of {sorted(LOSSES)}')
  if not 0 <= config.seed < 2**31:
    raise ValueError(f'config.seed: got {config.seed}, want 0 to 2**31 - 1')
  model_from_config(config.model)
  optimizer_from_config(config)


def train(
  config: ml_collections.ConfigDict, workdir: str | Path, devices: Sequence[jax.Device] | None = None
) -> TrainState:
  """Trains to ``config.steps``, from the newest checkpoint in ``workdir`` if there is one.

  Args:
    config: See ``configs/default.py``.
    workdir: Folder of the run: ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``.
    devices: Devices to train on; by default all of this process.

  Returns:
    The final state.

  Raises:
    ValueError: A field of the config cannot work; the training folder is missing,
      empty, or holds a damaged image or one smaller than a patch.
  """
  devices = jax.local_devices() if devices is None else devices
  check_config(config, len(devices))
  paths = find_images(find_data_dir(config.data.train_dir, 'config.data.train_dir'), input_pipeline.SUFFIXES)
  input_pipeline.check_images(paths, config.model.channels, config.data.patch_px)
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)

  state = create_train_state(config)
  with checkpoints.open_for_training(workdir, config.keep_checkpoints) as manager:
    state = checkpoints.restore_latest(manager, state, config.to_dict())
    first = int(state.step)
    if first >= config.steps:
      print(f'{workdir}: nothing to do, the run is at step {first} of {config.steps}')
      return state
    print(f'{workdir}: {len(paths)} images, {len(devices)} device(s), from step {first}', flush=True)
    return _train(config, workdir, paths, devices, state, manager)


def _train(config, workdir, paths, devices, state, manager):
  first = int(state.step)
  batches = input_pipeline.clean_patches(
    paths,
    channels=config.model.channels,
    patch_px=config.data.patch_px,
    batch_size=config.batch_size,
    seed=config.seed,
    first_step=first,
    last_step=config.steps,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  parallel_step = make_parallel_step(config, devices)
  schedule = schedule_from_config(config)
  with RunLog(workdir, first, config.steps, config.batch_size) as log:
    for step, batch in enumerate(batches, start=first + 1):
      state, metrics = parallel_step(state, batch)
      if step == first + 1:
        jax.block_until_ready(metrics)
        log.start_clock(step)
      logs = step % config.log_every == 0 or step == config.steps
      saves = step % config.checkpoint_every == 0 or step == config.steps
      if logs or saves:
        values = {name: float(value) for name, value in metrics.items()}
        check_healthy(step, values, config.data.patch_px)
      if logs:
        # The rate this step used: optax counts from zero.
        log.write(step, values | {'learning_rate': float(schedule(step - 1))})
      if saves:
        checkpoints.save(manager, state, config.to_dict())
  return state


def check_healthy(step: int, metrics: dict[str, float], patch_px: int) -> None:
  """Stops a run that has diverged, and warns of one that is about to.

  Args:
    step: The step the metrics are of.
    metrics: As from `train_step`.
    patch_px: Side of a training patch in pixels.

  Raises:
    ValueError: A metric is not finite; it is named with the step. Checkpoints
      saved before stay as they are.
  """
  for name, value in metrics.items():
    if not math.isfinite(value):
      raise ValueError(
        f'step {step}: got {name} = {value}, want a finite number; the run has diverged. Earlier checkpoints '
        'are kept: start a new run from another seed, with a lower optimizer.learning_rate or with '
        'optimizer.clip_norm'
      )
    scale = int(name[-1]) if name.startswith('offset/') else None
    if scale and value > patch_px / 2 ** (scale - 1):
      logging.warning(
        'step %d: the mean absolute offset of scale %d is %.1f pixels, larger than the patch: '
        'the deformable convolution samples outside the image',
        step,
        scale,
        value,
      )
