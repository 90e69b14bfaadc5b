"""Checkpoints of a training run, written and read with Orbax, and the comparison of configs.

The folder of a run holds ``checkpoints/<step>/``, where ``step`` counts the steps done, with these items:

  params     the network's parameters
  ema        their running average, if ``ema_decay`` is set
  optimizer  the state of the optimiser
  config     JSON
  progress   JSON: number of skipped steps, fingerprint of the training images, hash of the teacher's weights
  metrics    JSON: if the step was validated, what its PSNR was measured on, and the PSNR unless it was not
             finite or images failed

With several processes, only process 0 reads and writes.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sadnet_jax.files import one_line, write_text
from sadnet_jax.nn.sadnet import SADNet, model_from_fields, param_shapes
from sadnet_jax.weights.paths import CHECKPOINTS, is_run, split_run_path

if TYPE_CHECKING:
  from sadnet_jax.training.state import TrainState

# Fields that may change when a run is resumed, because the weights do not depend on them. (Training images
# are compared by names and sizes instead of by path.)
_FREE_ON_RESUME = (
  # Changes rounding only.
  'accumulate',
  'log_every',
  'checkpoint_every',
  'keep_checkpoints',
  'data.train',
  'data.tiles_dir',
  # Which images they leave is compared; of tiles, from which images they were cut.
  'data.skip_bad',
  'validation',
  # Makes no difference before the first non-finite step.
  'on_nonfinite',
)
# Fields that later versions added, as JSON: with these values nothing changes.
_NEUTRAL_FIELDS = {
  'data.pairs_share': '0.0',
  'noise.camera': '""',
  'noise.camera_share': '0.0',
  'noise.grain_share': '0.0',
  'noise.clean_share': '0.0',
  'optimizer.offset_rate': '1.0',
  'teacher': '""',
  'teacher_share': '0.0',
}
# Where Orbax stores metrics in a checkpoint.
_METRICS_FILE = ('metrics', 'metrics')
# Fields of a network that do not change what trained weights mean.
_FREE_WITH_SAME_WEIGHTS = ('model.dtype', 'model.offset_init')


@contextlib.contextmanager
def open_for_training(
  run: str | Path, keep: int, measured_on: str | None = None
) -> Iterator[ocp.CheckpointManager]:
  """Opens the checkpoints of a run for `save` and `restore_latest`.

  Saving happens in the background; leaving the context waits for it. The newest ``keep`` checkpoints and the
  one with the highest PSNR are kept, older ones are deleted. PSNRs that were measured on other images or with
  other noise are not compared: of each kind the best is kept.

  Args:
    run: Folder of the run; must exist.
    keep: Number of newest checkpoints to keep.
    measured_on: What the PSNRs of this run are measured on, see `save`; the best checkpoint is that of the
      highest of these.

  Yields:
    The manager.

  Raises:
    ValueError: A checkpoint could not be written, for example because the disk is full.
  """

  def psnr(metrics):
    """Ranks checkpoints; one that was not validated, or on something else, is never the best."""
    return metrics['psnr'] if 'psnr' in metrics and metrics.get('measured_on') == measured_on else -math.inf

  policies = [checkpoint_managers.LatestN(keep), _BestOfEachKind()]
  options = ocp.CheckpointManagerOptions(
    best_fn=psnr,
    preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
    cleanup_tmp_directories=True,
    create=False,
    multiprocessing_options=_this_process_only(),
  )
  folder = (Path(run) / CHECKPOINTS).absolute()
  with _write_errors(folder):
    folder.mkdir(exist_ok=True)
    manager = _Manager(folder, options=options)
  try:
    yield manager
  finally:
    with _write_errors(folder):
      manager.close()


class _Manager(ocp.CheckpointManager):
  """CheckpointManager with its own preemption check disabled: `distributed.StopSignal` does that."""

  def reached_preemption(self, step: int) -> bool:
    """Always False."""
    return False


@dataclasses.dataclass
class _BestOfEachKind(checkpoint_managers.PreservationPolicy):
  """Keeps the checkpoint of highest PSNR for everything that PSNR was measured on."""

  def should_preserve(
    self,
    checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: checkpoint_managers.PreservationContext,
  ) -> Sequence[bool]:
    best: dict[Any, tuple[float, int]] = {}
    for i, checkpoint in enumerate(checkpoints):
      # A checkpoint without metrics is the rest of an interrupted deletion.
      metrics: Any = checkpoint.metrics or {}
      if 'psnr' in metrics:
        kind = metrics.get('measured_on')
        best[kind] = max(best.get(kind, (-math.inf, i)), (metrics['psnr'], i))
    kept = {i for _, i in best.values()}
    return [i in kept for i in range(len(checkpoints))]


def save(
  manager: ocp.CheckpointManager,
  state: 'TrainState',
  config: dict[str, Any],
  images: str,
  validation: Mapping[str, Any] | None = None,
  *,
  teacher: str = '',
) -> None:
  """Starts saving a state in the background; does nothing if its step is already saved.

  Args:
    manager: From `open_for_training`.
    state: Fully replicated.
    config: Config of the run.
    images: Fingerprint of the training images.
    validation: From `validation_metrics`, if this step was validated.
    teacher: `params_hash` of the weights that the run learns from; '' for none.

  Raises:
    ValueError: This checkpoint or the one before could not be written. Earlier ones are intact.
  """
  step = int(state.step)
  if step == manager.latest_step():
    return
  items = {
    'params': ocp.args.StandardSave(_on_host(state.params)),
    'optimizer': ocp.args.StandardSave(_on_host(_keys_as_numbers(state.opt_state))),
    'config': ocp.args.JsonSave(config),
    'progress': ocp.args.JsonSave(
      {'skipped_steps': int(state.skipped), 'images': images, 'teacher': teacher}
    ),
  }
  if state.ema is not None:
    items['ema'] = ocp.args.StandardSave(_on_host(state.ema))
  with _write_errors(manager.directory):
    manager.save(step, args=ocp.args.Composite(**items), metrics=dict(validation or {}))


def validation_metrics(psnr: float | None, measured_on: str | None) -> dict[str, Any]:
  """Returns what a checkpoint says about the validation of its step.

  Args:
    psnr: The PSNR in dB; None if it does not compare with others, because it is not finite or lacks images.
    measured_on: Identifies the images and the noise.
  """
  return {'measured_on': measured_on} if psnr is None else {'psnr': psnr, 'measured_on': measured_on}


def is_validated(manager: ocp.CheckpointManager, step: int) -> bool:
  """Whether the step of a checkpoint was validated."""
  return bool(manager.metrics(step))


def add_validation(manager: ocp.CheckpointManager, step: int, validation: Mapping[str, Any]) -> None:
  """Adds the validation of a step to its checkpoint, which was saved without one.

  Args:
    manager: From `open_for_training`.
    step: The step.
    validation: From `validation_metrics`.

  Raises:
    ValueError: It could not be written; the checkpoint is as before.
  """
  with _write_errors(manager.directory):
    write_text(Path(manager.directory, str(step), *_METRICS_FILE), json.dumps(dict(validation)))
    manager.reload()


def _is_key(leaf):
  return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _keys_as_numbers(tree):
  """With the numbers of random keys, which optimisers that add noise have in their state."""
  return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _keys_again(tree, like):
  """Inverse of `_keys_as_numbers`, given a tree with keys in the same places."""
  return jax.tree.map(
    lambda key, leaf: jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(key)) if _is_key(key) else leaf,
    like,
    tree,
  )


def _on_host(tree):
  """Copies a replicated tree to the host, so that the next step cannot overwrite it while it is saved."""
  return jax.tree.map(lambda a: np.array(a.addressable_data(0) if isinstance(a, jax.Array) else a), tree)


def wait(manager: ocp.CheckpointManager) -> None:
  """Waits until the last `save` is on disk.

  Raises:
    ValueError: The checkpoint could not be written.
  """
  with _write_errors(manager.directory):
    manager.wait_until_finished()


def restore_latest(
  manager: ocp.CheckpointManager, state: 'TrainState', config: dict[str, Any], images: str
) -> 'TrainState':
  """Restores the newest checkpoint to resume a run.

  Args:
    manager: From `open_for_training`.
    state: A state with the structure, shapes and dtypes to restore.
    config: The config to resume with.
    images: Fingerprint of the training images.

  Returns:
    The restored state, or ``state`` itself if there is no checkpoint.

  Raises:
    ValueError: The run was started with another config (each differing field is named) or on other images,
      or the checkpoint cannot be read.
  """
  step = manager.latest_step()
  if step is None:
    return state
  saved = _restore(manager, step, config=ocp.args.JsonRestore(), progress=ocp.args.JsonRestore())
  try:
    check_same(saved['config'], config, _free_on_resume(config))
  except ValueError as error:
    raise ValueError(
      f'{error}; give the values of the checkpoint to continue this run, or begin a new one with another '
      '--workdir, and with --config.init_from=FOLDER_OF_THIS_RUN to start from its weights'
    ) from None
  if saved['progress']['images'] != images:
    raise ValueError(
      f'the training images have changed: their fingerprint is {images}, but the checkpoint was trained on '
      f'{saved["progress"]["images"]}; restore the original images, or start a new run with another --workdir'
    )
  trees = {'params': state.params, 'optimizer': _keys_as_numbers(state.opt_state)}
  if state.ema is not None:
    trees['ema'] = state.ema
  restored = _restore(
    manager, step, **{name: ocp.args.StandardRestore(_template(tree)) for name, tree in trees.items()}
  )
  restored = jax.tree.map(jnp.asarray, restored)
  restored['optimizer'] = _keys_again(restored['optimizer'], state.opt_state)
  return state.replace(
    step=step,
    params=restored['params'],
    opt_state=restored['optimizer'],
    ema=restored.get('ema'),
    skipped=jnp.int32(saved['progress']['skipped_steps']),
  )


def check_teacher(manager: ocp.CheckpointManager, name: str, teacher: str) -> None:
  """Raises ValueError if a run learned from other weights until its newest checkpoint.

  Args:
    manager: From `open_for_training`.
    name: What the config calls the teacher.
    teacher: As `save` takes it.
  """
  step = manager.latest_step()
  if step is None:
    return
  progress = _restore(manager, step, progress=ocp.args.JsonRestore())['progress']
  # Runs that began before the hash was stored have none.
  if (used := progress.get('teacher', teacher)) != teacher:
    raise ValueError(
      f'the teacher, {name}, has changed: its weights have the hash {teacher}, but the run learned from '
      f'those of {used}; restore them, or start a new run with another --workdir'
    )


def _free_on_resume(config):
  """Fields that may differ from those in the checkpoint."""
  free = set(_FREE_ON_RESUME)
  if config['data']['reader'] != 'tiles':
    free |= {'data.tile_px', 'data.stride_px'}
  if config['data']['reader'] == 'memory':
    free.add('data.crops_per_image')
  if config['optimizer']['schedule'] == 'step_halving':
    free.add('steps')  # This schedule does not depend on the length of the run.
  else:
    free.add('optimizer.halve_every')
  if config['optimizer']['name'] == 'adam':
    free.add('optimizer.bias_rate')  # Other optimisers may use it.
  if tuple(config['noise']['sigma_255_range']):
    free.add('noise.sigma_255')  # Then it is that of validation alone.
  return free


def load_run(run: str | Path) -> tuple[SADNet, dict[str, Any], int, dict[str, Any]]:
  """Loads the network and weights of a run, as described by the config in its checkpoint.

  Args:
    run: Folder of the run, for the newest checkpoint, or of one checkpoint (``RUN/checkpoints/5000``).

  Returns:
    The network, its parameters (their running average if the run kept one), the step, and the config.

  Raises:
    ValueError: There is no such checkpoint, or it cannot be read.
  """
  folder, wanted = split_run_path(run)
  if not is_run(run):
    raise ValueError(f"{run}: no folder '{CHECKPOINTS}' in it; give the folder of a training run")
  options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=_this_process_only())
  with ocp.CheckpointManager(folder / CHECKPOINTS, options=options) as manager:
    steps = sorted(manager.all_steps())
    if not steps:
      raise ValueError(f'{run}: no checkpoint has been saved yet')
    if wanted is not None and wanted not in steps:
      raise ValueError(f'{run}: no checkpoint of step {wanted}; the run has those of {steps}')
    step = steps[-1] if wanted is None else wanted
    config = _restore(manager, step, config=ocp.args.JsonRestore())['config']
    try:
      model = model_from_fields(config['model'])
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(f'{run}: its config does not describe a network of this version ({error})') from error
    item = 'ema' if config.get('ema_decay') else 'params'
    template = _template(param_shapes(model))
    params = _restore(manager, step, **{item: ocp.args.StandardRestore(template)})[item]
  return model, params, step, config


def load_matching_run(run: str | Path, config: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, Any]]:
  """Loads parameters, step and config of a run like `load_run`, if network and noise are those of ``config``.

  Raises:
    ValueError: As `load_run`, or a field of ``model`` or ``noise`` differs; all are named.
  """
  _, params, step, saved = load_run(run)
  compared = ('model', 'noise')
  check_same(
    {part: saved[part] for part in compared},
    {part: config[part] for part in compared},
    set(_FREE_WITH_SAME_WEIGHTS),
  )
  return params, step, saved


def check_same_network(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Raises ValueError if weights of one network mean something else in another.

  Args:
    saved: Fields of the network the weights were trained in, as in a config's ``model``.
    wanted: Fields of the network to use them in.
  """
  check_same({'model': saved}, {'model': wanted}, set(_FREE_WITH_SAME_WEIGHTS))


def check_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], ignored: Set[str]) -> None:
  """Raises ValueError naming every field in which two configs differ.

  Args:
    saved: The config in the checkpoint.
    wanted: The config it is used with.
    ignored: Fields (``model.dtype``) or groups of fields (``validation``) that may differ.
  """
  saved, wanted = _flatten(saved), _flatten(wanted)
  # Runs that began before a field existed trained with the value that changes nothing.
  saved = {name: value for name, value in _NEUTRAL_FIELDS.items() if name in wanted} | saved
  differing = [
    f'{name}: checkpoint {saved.get(name)}, config {wanted.get(name)}'
    for name in sorted({*saved, *wanted})
    if saved.get(name) != wanted.get(name) and not _is_below(name, ignored)
  ]
  if differing:
    raise ValueError(f'the checkpoint was trained with another config: {"; ".join(differing)}')


def _is_below(name, ignored):
  """Whether a field, or a group that contains it, is in a set."""
  parts = name.split('.')
  return any('.'.join(parts[:n]) in ignored for n in range(1, len(parts) + 1))


def _flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
  """{'a': {'b': 1}} -> {'a.b': '1'}; values as JSON, in which tuples equal lists."""
  flat: dict[str, str] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = json.dumps(_as_compared(prefix + name, value))
  return flat


def _as_compared(name, value):
  if name == 'noise.clip':
    # In older runs it is a bool, which equals a probability of 0 or 1.
    return float(value)
  if name == 'init_from' and value:
    # The folder of the weights may have moved.
    return Path(value).name
  if name == 'teacher' and value:
    # So may it; `check_teacher` compares the weights.
    return 'given'
  return value


def _this_process_only():
  """Keeps Orbax from waiting for other processes, which hold the same values."""
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def _template(tree):
  """NumPy arrays with the shapes and dtypes of a tree that take no memory."""
  return jax.tree.map(lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape), tree)


def _restore(manager, step, **items):
  try:
    return dict(manager.restore(step, args=ocp.args.Composite(**items)).items())
  except Exception as error:
    # Orbax and the libraries below it raise almost anything for damaged files.
    raise ValueError(
      f'{manager.directory / str(step)}: the checkpoint cannot be read ({_reason(error)}); move this folder '
      'away to continue from the checkpoint before'
    ) from error


@contextlib.contextmanager
def _write_errors(folder: Any) -> Iterator[None]:
  """Turns whatever Orbax raises when writing fails into a ValueError."""
  try:
    yield
  except Exception as error:
    raise ValueError(
      f'{folder}: the checkpoint could not be written ({_reason(error)}); earlier checkpoints are intact: '
      'make sure that the folder is writable and the disk has room, then run the same command again'
    ) from error


def _reason(error):
  return f'{type(error).__name__}: {one_line(error, 300)}'
