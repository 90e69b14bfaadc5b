"""One training step, and the same step on several devices with ``jax.pmap``.

A step is a pure function of the state and the batch. Its noise comes from ``fold_in(noise_key, step)`` and
the position of each patch in the global batch, so there is no random state to carry along. On a CPU a step is
reproducible bit for bit. Another number of devices, another `accumulate`, or a GPU (whose scatter-adds are
unordered) changes rounding only.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

from sadnet_jax.data import on_device
from sadnet_jax.nn.sadnet import mean_abs_offsets, scale_of
from sadnet_jax.ops.platform import fusion_barrier, target_platform
from sadnet_jax.training import distributed
from sadnet_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Batch = Mapping[str, Any]
# (denoised, clean), both [N, H, W, C] -> scalar: a mean over the images, since a batch is processed in parts.
Loss = Callable[[jax.Array, jax.Array], jax.Array]
# (one random key per image [N], clean [N, H, W, C] in [0, 1]) -> noisy [N, H, W, C].
AddNoise = Callable[[jax.Array, jax.Array], jax.Array]

_AXIS = 'devices'


def l1_loss(denoised: jax.Array, clean: jax.Array) -> jax.Array:
  """Mean absolute error, the paper's loss for real noise. Any equal shapes -> scalar."""
  return jnp.mean(jnp.abs(denoised - clean))


def l2_loss(denoised: jax.Array, clean: jax.Array) -> jax.Array:
  """Mean squared error, the paper's loss for synthetic noise. Any equal shapes -> scalar."""
  return jnp.mean(jnp.square(denoised - clean))


def charbonnier_loss(denoised: jax.Array, clean: jax.Array) -> jax.Array:
  """Mean of sqrt(difference**2 + eps**2), eps = 1e-3: smooth near zero, L1 far from it (Lai et al., 2017)."""
  return jnp.mean(jnp.sqrt(jnp.square(denoised - clean) + 1e-6))


LOSSES: dict[str, Loss] = {'charbonnier': charbonnier_loss, 'l1': l1_loss, 'l2': l2_loss}


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A trained network whose output is part of the target (distillation, Hinton et al., 2015).

  Attributes:
    apply_fn: ({'params': parameters}, noisy [N, P, P, C]) -> denoised.
    params: Its parameters; they do not change.
    share: Weight of its output in the target, from 0 to 1; the rest is the clean image.
  """

  apply_fn: Callable[..., Any]
  params: Any
  share: float


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  noise_key: jax.Array,
  add_noise: AddNoise,
  loss: Loss,
  ema_decay: float = 0.0,
  accumulate: int = 1,
  teacher: Teacher | None = None,
  axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
  """Takes one optimiser step.

  If the loss, the gradient or a new parameter is not finite, parameters, optimiser state and average stay as
  they are, and ``skipped`` counts the step.

  Args:
    state: The state; its step selects the noise.
    batch: This device's share of the batch, [N, P, P, C], uint8 or floating point in [0, 1]: ``clean``, and
      ``noisy`` if the images come with noise of their own. Noise is added only without ``noisy``, or where
      ``is_pair`` (bool [N]), if there is one, is false.
    noise_key: Random key for the noise of the whole run, of JAX's default implementation: those of others
      (rbg) draw other numbers for another ``accumulate`` or number of devices.
    add_noise: Makes noisy images of clean ones.
    loss: Compares denoised with clean images.
    ema_decay: Share of the average that remains after a step; 0 for a state without one. In the first steps
      it is limited to (1 + step) / (10 + step), to forget the initial weights.
    accumulate: Number of parts the share is processed in, one after the other, to save memory; divides N.
    teacher: A network to learn from beside the clean images: its loss and theirs are added by shares.
    axis_name: Name of the device axis to average over, None for a single device.

  Returns:
    The next state, and scalars: ``loss``; ``gradient_norm``, in total and per scale (``gradient_norm/scale1``
    to 4, the modules that work at that resolution); ``offset/scale1`` to 4 (mean absolute offset in pixels of
    that scale); ``finite`` (bool) and ``skipped_steps``.

  Raises:
    ValueError: Images are neither uint8 nor floating point, or ``ema_decay`` is given for a state without an
      average.
  """
  if ema_decay and state.ema is None:
    raise ValueError(
      f'ema_decay is {ema_decay}, but the state has no average; create it with ema=a copy of its parameters, '
      'or pass 0'
    )
  share = batch['clean'].shape[0]
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * share
  keys = patch_keys(noise_key, state.step, first, share)

  def loss_of(params, part):
    clean = _unit_range('clean', part)
    # Else XLA computes the noise again for each channel of the first layer and of its gradient.
    noisy = fusion_barrier(jnp.asarray(state.step) >= 0, lambda: noisy_images(part, add_noise))
    denoised, variables = state.apply_fn({'params': params}, noisy, mutable=['intermediates'])
    value = loss(denoised, clean)
    if teacher is not None:
      taught = teacher.apply_fn({'params': teacher.params}, noisy)
      value = (1 - teacher.share) * value + teacher.share * loss(denoised, taught)
    return value, mean_abs_offsets(variables.get('intermediates', {}))

  gradient_of = functools.partial(jax.value_and_grad(loss_of, has_aux=True), state.params)
  (value, offsets), gradients = _mean_over_parts(gradient_of, {**batch, 'keys': keys}, accumulate)
  if axis_name is not None:
    value, offsets, gradients = jax.lax.pmean((value, offsets, gradients), axis_name)
  norm = optax.tree.norm(gradients)
  new, finite = _update(state, gradients, jnp.isfinite(value) & jnp.isfinite(norm), ema_decay)
  metrics = {'loss': value, 'gradient_norm': norm, 'finite': finite, 'skipped_steps': new.skipped}
  metrics |= {f'gradient_norm/scale{scale}': n for scale, n in _norms_by_scale(gradients).items()}
  metrics |= {f'offset/{scale}': mean for scale, mean in offsets.items()}
  return new, metrics


def patch_keys(noise_key: jax.Array, step: jax.Array | int, first: jax.Array | int, count: int) -> jax.Array:
  """Returns the random keys of patches ``first`` to ``first + count`` of a step's batch, [count]."""
  step_key = jax.random.fold_in(noise_key, step)
  return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(first + jnp.arange(count))


def noisy_images(batch: Batch, add_noise: AddNoise) -> jax.Array:
  """Returns what the network gets of a batch, float [N, P, P, C].

  Args:
    batch: As in `train_step`, and ``keys``, one random key per patch.
    add_noise: As in `train_step`.
  """
  clean = _unit_range('clean', batch)
  if 'noisy' not in batch:
    return add_noise(batch['keys'], clean)
  noisy = _unit_range('noisy', batch)
  if 'is_pair' not in batch:
    return noisy
  return jnp.where(batch['is_pair'][:, None, None, None], noisy, add_noise(batch['keys'], clean))


def _unit_range(name, batch):
  """Images of a batch as float32 in [0, 1]."""
  images = batch[name]
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f'batch[{name!r}] must be uint8 or floating point in [0, 1], not {images.dtype}')
  return images.astype(jnp.float32)


def _mean_over_parts(function, batch, parts):
  """Averages a function of the batch over equal parts of it, with one part in memory at a time."""
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
  """The next state, and whether the gradients were applied: if they and what they lead to are finite."""
  new = state.apply_gradients(grads=gradients)
  # An optimiser may divide finite numbers by zero.
  finite &= jnp.isfinite(optax.tree.norm(new.params))
  ema = None
  if state.ema is not None:
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda average, p: average + (1 - decay) * (p - average), state.ema, new.params)
  params, opt_state, ema = jax.tree.map(
    lambda updated, kept: jnp.where(finite, updated, kept),
    (new.params, new.opt_state, ema),
    (state.params, state.opt_state, state.ema),
  )
  skipped = state.skipped + (~finite).astype(jnp.int32)
  return new.replace(params=params, opt_state=opt_state, ema=ema, skipped=skipped), finite


def _norms_by_scale(gradients):
  scales = {module: scale_of(module) for module in gradients}
  return {
    scale: optax.tree.norm({m: g for m, g in gradients.items() if scales[m] == scale})
    # Modules of other networks have none.
    for scale in sorted({scale for scale in scales.values() if scale is not None})
  }


@dataclasses.dataclass(frozen=True)
class OnDeviceSampling:
  """How each device cuts its share of a batch from images in its own memory.

  Attributes:
    images: The whole data set.
    key: Random key for the patches of the whole run.
    batch_size: Patches per step over all devices.
    patch_px: Side of a patch in pixels.
    pairs: A second set, with noisy images, beside a first one without.
    pairs_share: Probability that a patch comes from the second set.
  """

  images: on_device.DeviceImages
  key: jax.Array
  batch_size: int
  patch_px: int
  pairs: on_device.DeviceImages | None = None
  pairs_share: float = 0.0


def sample_batch(
  sampling: OnDeviceSampling, step: jax.Array | int, *, first: jax.Array | int, count: int
) -> Batch:
  """Cuts patches ``first`` to ``first + count`` of a step's batch; can be compiled, and is pure.

  Returns:
    A batch as `train_step` takes it.
  """
  sample = functools.partial(
    on_device.sample,
    seed_key=sampling.key,
    step=step,
    batch_size=sampling.batch_size,
    patch_px=sampling.patch_px,
    first=first,
    count=count,
  )
  batch = sample(sampling.images)
  if sampling.pairs is None:
    return batch
  pairs = sample(sampling.pairs)
  choice_key = jax.random.fold_in(sampling.key, 2)
  keys = jax.vmap(lambda i: jax.random.fold_in(choice_key, i))(
    step * sampling.batch_size + first + jnp.arange(count)
  )
  is_pair = jax.vmap(lambda key: jax.random.bernoulli(key, sampling.pairs_share))(keys)
  clean = jnp.where(is_pair[:, None, None, None], pairs['clean'], batch['clean'])
  return {'clean': clean, 'noisy': pairs['noisy'], 'is_pair': is_pair}


def make_parallel_step(
  devices: Sequence[jax.Device],
  *,
  noise_key: jax.Array,
  add_noise: AddNoise,
  loss: Loss,
  ema_decay: float = 0.0,
  accumulate: int = 1,
  teacher: Teacher | None = None,
  sampling: OnDeviceSampling | None = None,
) -> Callable[[TrainState, Batch | None], tuple[TrainState, Metrics]]:
  """Runs `train_step` under ``jax.pmap``: the state is replicated, the batch is split.

  Args:
    devices: The devices to use, of all processes, in the same order on all of them.
    noise_key: See `train_step`.
    add_noise: See `train_step`.
    loss: See `train_step`.
    ema_decay: See `train_step`.
    accumulate: See `train_step`.
    teacher: See `train_step`.
    sampling: How the devices sample the batch themselves; None if every step is given a batch.

  Returns:
    A function (state, batch) -> (state, metrics). The batch is the share of this process, [N, P, P, C], or
    already split among its devices, [devices, N, P, P, C], or None with ``sampling``. The state has no device
    axis. A first state is copied; one that the function returned is used up when it is passed in again, since
    its buffers are donated.
  """

  def step(state, batch, teacher_params):
    # The devices need not be of JAX's default platform.
    with target_platform(devices[0].platform):
      return train_step(
        state,
        batch,
        noise_key=noise_key,
        add_noise=add_noise,
        loss=loss,
        ema_decay=ema_decay,
        accumulate=accumulate,
        teacher=teacher and dataclasses.replace(teacher, params=teacher_params),
        axis_name=_AXIS,
      )

  local = distributed.local(devices)
  replicated = NamedSharding(Mesh(np.asarray(local), (_AXIS,)), PartitionSpec())
  # in_axes / out_axes None: replicated, without a device axis.
  pmap = functools.partial(
    jax.pmap, axis_name=_AXIS, out_axes=None, devices=list(devices), donate_argnums=(0,)
  )

  def replicate(state):
    # Only the first state: left on one device, it would need a second compilation of the step. Its arrays may
    # be used elsewhere, or twice in it, and those of a state are donated.
    is_replicated = getattr(state.step, 'sharding', None) == replicated
    return state if is_replicated else jax.device_put(jax.tree.map(jnp.copy, state), replicated)

  teacher_params = jax.device_put(teacher and teacher.params, replicated)
  if sampling is None:
    parallel = pmap(step, in_axes=(None, 0, None))

    def split_and_step(state, batch):
      assert batch is not None
      shares = batch
      if batch['clean'].ndim == 4:
        shares = {name: a.reshape(len(local), -1, *a.shape[1:]) for name, a in batch.items()}
      return parallel(replicate(state), shares, teacher_params)

    return split_and_step

  share = sampling.batch_size // len(devices)

  def sample_and_step(state, position, images, pairs, teacher_params):
    placed = dataclasses.replace(sampling, images=images, pairs=pairs)
    batch = sample_batch(placed, state.step, first=position * share, count=share)
    return step(state, batch, teacher_params)

  parallel = pmap(sample_and_step, in_axes=(None, 0, None, None, None))
  # pmap needs one argument that differs between the devices.
  positions = np.array([i for i, d in enumerate(devices) if d in local], np.int32)
  images, pairs = jax.device_put((sampling.images, sampling.pairs), replicated)
  return lambda state, _: parallel(replicate(state), positions, images, pairs, teacher_params)
