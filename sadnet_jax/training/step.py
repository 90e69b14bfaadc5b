"""One step of training, and the same on many devices by ``jax.pmap``.

The step is a function of the state and the batch: its noise comes from ``fold_in(key,
step)`` and the patch's place in the global batch. On a CPU it is the same bit for bit
on every run; another number of devices, another `accumulate`, or a GPU (whose
scatter-adds are not ordered) changes rounding only.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_collections
import numpy as np
import optax

from sadnet_jax.data import on_device
from sadnet_jax.data.noise import add_training_noise
from sadnet_jax.nn.sadnet import mean_abs_offsets, scale_of
from sadnet_jax.training import distributed
from sadnet_jax.training.state import TrainState, run_key


def l1_loss(denoised: jax.Array, clean: jax.Array) -> jax.Array:
  """Mean absolute error; the paper's loss for real noise. Any equal shapes -> scalar."""
  return jnp.mean(jnp.abs(denoised - clean))


def l2_loss(denoised: jax.Array, clean: jax.Array) -> jax.Array:
  """Mean squared error; the paper's loss for synthetic noise. Any equal shapes -> scalar."""
  return jnp.mean(jnp.square(denoised - clean))


def charbonnier_loss(denoised: jax.Array, clean: jax.Array) -> jax.Array:
  """Mean of sqrt(difference**2 + eps**2), eps = 1e-3: smooth near zero, L1 beyond (Lai et al., 2017)."""
  return jnp.mean(jnp.sqrt(jnp.square(denoised - clean) + 1e-6))


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'charbonnier': charbonnier_loss,
  'l1': l1_loss,
  'l2': l2_loss,
}
Metrics = dict[str, jax.Array]
Batch = Mapping[str, Any]
_AXIS = 'devices'


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  key: jax.Array,
  sigma_255_range: tuple[float, float],
  clip: float,
  loss: Callable[[jax.Array, jax.Array], jax.Array],
  ema_decay: float = 0.0,
  accumulate: int = 1,
  axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
  """One update.

  Where the loss or the gradient is not finite, parameters, optimiser and average stay
  as they are; the step is counted in ``skipped``.

  Args:
    state: The state; its step selects the noise.
    batch: This device's share of the batch, uint8 [N, P, P, C]: ``clean``, and
      ``noisy`` where the images have noise of their own; then none is added.
    key: Random key of the noise of the whole run.
    sigma_255_range: See `add_training_noise`.
    clip: See `add_training_noise`.
    loss: (denoised, clean) -> scalar.
    ema_decay: Share of the average that a step leaves; 0 keeps none. Lower in the
      first steps, (1 + step) / (10 + step), to forget the initial weights.
    accumulate: Parts to work through one after the other; divides N.
    axis_name: Name of the device axis to average over, or None for one device.

  Returns:
    The next state, and scalars: ``loss``; ``gradient_norm``, also by scale
    (``gradient_norm/scale1`` to 4, what the network does at that resolution);
    ``offset/scale1`` to 4 (mean absolute offset in pixels of that scale);
    ``finite`` (bool) and ``skipped_steps``.
  """
  share = batch['clean'].shape[0]
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * share
  step_key = jax.random.fold_in(key, state.step)
  keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(first + jnp.arange(share))

  def loss_of(params, part):
    clean = part['clean'].astype(jnp.float32) / 255
    if 'noisy' in part:
      noisy = part['noisy'].astype(jnp.float32) / 255
    else:
      noisy = add_training_noise(part['keys'], clean, sigma_255_range, clip)
    denoised, variables = state.apply_fn({'params': params}, noisy, mutable=['intermediates'])
    return loss(denoised, clean), mean_abs_offsets(variables.get('intermediates', {}))

  gradient_of = functools.partial(jax.value_and_grad(loss_of, has_aux=True), state.params)
  (value, offsets), gradients = _mean_over_parts(gradient_of, {**batch, 'keys': keys}, accumulate)
  if axis_name is not None:
    value, offsets, gradients = jax.lax.pmean((value, offsets, gradients), axis_name)
  norm = optax.tree.norm(gradients)
  finite = jnp.isfinite(value) & jnp.isfinite(norm)
  new = _update(state, gradients, finite, ema_decay)
  metrics = {'loss': value, 'gradient_norm': norm, 'finite': finite, 'skipped_steps': new.skipped}
  metrics |= {f'gradient_norm/scale{scale}': n for scale, n in _norms_by_scale(gradients).items()}
  metrics |= {f'offset/{scale}': mean for scale, mean in offsets.items()}
  return new, metrics


def _mean_over_parts(function, batch, parts):
  """Mean of a function of the batch over equal parts of it, one part in memory at a time."""
  if parts == 1:
    return function(batch)
  split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
  shapes = jax.eval_shape(function, jax.tree.map(lambda a: a[0], split))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  total, _ = jax.lax.scan(
    lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None), zeros, split
  )
  return jax.tree.map(lambda a: a / parts, total)


def _update(state, gradients, finite, ema_decay):
  new = state.apply_gradients(grads=gradients)
  ema = None
  if state.ema is not None:
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda average, p: average + (1 - decay) * (p - average), state.ema, new.params)
  kept = (state.params, state.opt_state, state.ema)
  params, opt_state, ema = jax.tree.map(
    lambda a, b: jnp.where(finite, a, b), (new.params, new.opt_state, ema), kept
  )
  return new.replace(
    params=params, opt_state=opt_state, ema=ema, skipped=state.skipped + (~finite).astype(jnp.int32)
  )


def _norms_by_scale(gradients):
  scales = {module: scale_of(module) for module in gradients}
  return {
    scale: optax.tree.norm({m: g for m, g in gradients.items() if scales[m] == scale})
    for scale in sorted(set(scales.values()))
  }


def make_parallel_step(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device],
  images: on_device.DeviceImages | None = None,
) -> Callable[[TrainState, Batch | None], tuple[TrainState, Metrics]]:
  """`train_step` under ``jax.pmap``: state on every device, batch split among them.

  Args:
    config: The run's config.
    devices: Devices to use, in the same order on all processes; this process's
      are among them.
    images: The whole data set, to sample from on the devices; None where every step
      is given its batch.

  Returns:
    (state, batch) -> (state, metrics), where the batch is this process's share,
    uint8 [N, P, P, C], or split among its devices already, [devices, N, P, P, C], or
    None with ``images``. The state has no device axis; its buffers are donated, so
    the one passed in cannot be used again.
  """
  step = functools.partial(
    train_step,
    key=run_key(config, 'noise'),
    sigma_255_range=tuple(config.noise.sigma_255_range) or (config.noise.sigma_255,) * 2,
    clip=float(config.noise.clip),
    loss=LOSSES[config.loss],
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
    axis_name=_AXIS,
  )
  local = distributed.local(devices)
  # in_axes / out_axes None: the same on all devices, without an axis of its own.
  pmap = functools.partial(
    jax.pmap, axis_name=_AXIS, out_axes=None, devices=list(devices), donate_argnums=(0,)
  )
  everywhere = NamedSharding(Mesh(np.asarray(local), (_AXIS,)), PartitionSpec())

  def place(state):
    # The first state is on one device: placed as the later ones are, it needs no program of its own.
    placed = getattr(state.step, 'sharding', None) == everywhere
    return state if placed else jax.device_put(state, everywhere)

  if images is None:
    parallel = pmap(step, in_axes=(None, 0))

    def split_and_step(state, batch):
      assert batch is not None
      shares = {
        name: a if a.ndim == 5 else a.reshape(len(local), -1, *a.shape[1:]) for name, a in batch.items()
      }
      return parallel(place(state), shares)

    return split_and_step

  share = config.batch_size // len(devices)

  def sample_and_step(state, position, images):
    batch = on_device.sample(
      images,
      seed_key=run_key(config, 'data'),
      step=state.step,
      batch_size=config.batch_size,
      patch_px=config.data.patch_px,
      first=position * share,
      count=share,
    )
    return step(state, batch)

  parallel = pmap(sample_and_step, in_axes=(None, 0, None))
  # pmap wants something that differs between the devices.
  positions = np.array([i for i, d in enumerate(devices) if d in local], np.int32)
  placed_images = jax.device_put(images, everywhere)
  return lambda state, _: parallel(place(state), positions, placed_images)
