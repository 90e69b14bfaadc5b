"""Checkpoints of a run, by Orbax.

A run's folder holds ``checkpoints/<step>/`` with the items ``params`` (the network's
weights), ``ema`` (their running average, where it is kept), ``optimizer`` (the
optimiser's state), ``config`` (JSON), ``progress`` (JSON: steps skipped, the training
images) and ``metrics`` (JSON: PSNR, where the step was validated). The step is the number
of steps done. With several processes, process 0 alone reads and writes.
"""

from collections.abc import Iterator, Mapping, Set
import contextlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sadnet_jax.nn.sadnet import SADNet, model_from_fields, param_shapes
from sadnet_jax.training.state import TrainState
from sadnet_jax.weights import safetensors
from sadnet_jax.weights.index import available
from sadnet_jax.weights.loading import is_name_or_url, locate

FOLDER = 'checkpoints'
# What a run may be continued with another value of: nothing of it reaches the weights
# (what was trained on is compared by content, not by place).
_FREE_ON_RESUME = (
  'log_every',
  'checkpoint_every',
  'keep_checkpoints',
  'data.train',
  'data.tiles_dir',
  'validation',
  # Read once, before the first step.
  'init_from',
  # Until the first such step, both give the same.
  'on_nonfinite',
)
# None changes what the weights mean.
_FREE_IN_EVALUATION = ('model.dtype', 'model.offset_init')


@contextlib.contextmanager
def open_for_training(workdir: str | Path, keep: int) -> Iterator[ocp.CheckpointManager]:
  """A manager that saves in the background and keeps the newest ``keep`` and the best.

  Leaving the context waits for what is being written.

  Raises:
    ValueError: What was being written could not be (a full disk).
  """
  # Without metrics is what an interrupted deletion leaves.
  best = checkpoint_managers.BestN(get_metric_fn=_psnr, n=1, keep_checkpoints_without_metrics=False)
  options = ocp.CheckpointManagerOptions(
    best_fn=_psnr,
    preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), best]),
    cleanup_tmp_directories=True,
    create=False,
    multiprocessing_options=_this_process_alone(),
  )
  folder = (Path(workdir) / FOLDER).absolute()
  with _write_errors(folder):
    folder.mkdir(exist_ok=True)
    manager = _Manager(folder, options=options)
  try:
    yield manager
  finally:
    with _write_errors(folder):
      manager.close()


def _this_process_alone():
  """Other processes have no part in a checkpoint: what they hold is the same."""
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


class _Manager(ocp.CheckpointManager):
  """Orbax's, which asks JAX for preemption by itself, and at other steps than training does."""

  def reached_preemption(self, step: int) -> bool:
    """Never: `distributed.StopSignal` asks."""
    return False


def wait(manager: ocp.CheckpointManager) -> None:
  """Waits until what is being saved is written; ValueError where it cannot be."""
  with _write_errors(manager.directory):
    manager.wait_until_finished()


def save(
  manager: ocp.CheckpointManager,
  state: TrainState,
  config: dict[str, Any],
  images: str,
  psnr: float | None = None,
) -> None:
  """Starts to save a state, unless its step is saved already.

  Args:
    manager: As opened by `open_for_training`.
    state: Fully replicated.
    config: The run's config.
    images: Fingerprint of the training images.
    psnr: What validation measured at this step, in dB, or None.

  Raises:
    ValueError: This one or the one before could not be written; those before are good.
  """
  step = int(state.step)
  if step == manager.latest_step():
    return
  items = {
    'params': ocp.args.StandardSave(_on_host(state.params)),
    'optimizer': ocp.args.StandardSave(_on_host(state.opt_state)),
    'config': ocp.args.JsonSave(config),
    'progress': ocp.args.JsonSave({'skipped_steps': int(state.skipped), 'images': images}),
  }
  if state.ema is not None:
    items['ema'] = ocp.args.StandardSave(_on_host(state.ema))
  with _write_errors(manager.directory):
    manager.save(step, args=ocp.args.Composite(**items), metrics={} if psnr is None else {'psnr': psnr})


def _psnr(metrics):
  """What the best checkpoint has most of; one that was not validated is never the best."""
  return metrics.get('psnr', -math.inf)


def restore_latest(
  manager: ocp.CheckpointManager, state: TrainState, config: dict[str, Any], images: str
) -> TrainState:
  """The newest checkpoint in the form of ``state``; ``state`` itself if there is none.

  Raises:
    ValueError: The run was started with another config (each field is named) or on
      other images, or the checkpoint cannot be read.
  """
  step = manager.latest_step()
  if step is None:
    return state
  saved = _restore(manager, step, config=ocp.args.JsonRestore(), progress=ocp.args.JsonRestore())
  ignored = set(_FREE_ON_RESUME)
  if config['optimizer']['schedule'] == 'step_halving':
    ignored.add('steps')  # This schedule does not depend on the length of the run.
  check_same(saved['config'], config, ignored)
  if saved['progress']['images'] != images:
    raise ValueError(
      f'the checkpoint is of a run on other training images: got {images}, want '
      f'{saved["progress"]["images"]}; the order of the data would change: put them back, or start a new run '
      'with another --workdir'
    )
  trees = {'params': state.params, 'optimizer': state.opt_state}
  if state.ema is not None:
    trees['ema'] = state.ema
  restored = _restore(
    manager, step, **{name: ocp.args.StandardRestore(_template(tree)) for name, tree in trees.items()}
  )
  restored = jax.tree.map(jnp.asarray, restored)
  return state.replace(
    step=step,
    params=restored['params'],
    opt_state=restored['optimizer'],
    ema=restored.get('ema'),
    skipped=jnp.int32(saved['progress']['skipped_steps']),
  )


def split_path(path: str | Path) -> tuple[Path, int | None]:
  """The folder of a run, and the step where the path is of one of its checkpoints."""
  path = Path(path).absolute()
  if path.parent.name == FOLDER and path.name.isdigit():
    return path.parent.parent, int(path.name)
  return path, None


def is_run(path: str | Path) -> bool:
  """Whether a path is the folder of a run, or of one of its checkpoints."""
  return (split_path(path)[0] / FOLDER).is_dir()


def has_checkpoint(folder: Path) -> bool:
  """Whether anything is saved yet in the folder of a run."""
  return any((folder / FOLDER).glob('[0-9]*'))


def load_run(run: str | Path) -> tuple[SADNet, dict[str, Any], int, dict[str, Any]]:
  """The network of a run and its weights, built from the config that is saved beside them.

  Args:
    run: The run's folder, for its newest checkpoint, or one checkpoint's.

  Returns:
    The network, its parameters (their running average where it was kept), step, and the config.

  Raises:
    ValueError: There is no checkpoint, or it cannot be read.
  """
  with _open_for_reading(run) as (manager, step):
    saved = _restore(manager, step, config=ocp.args.JsonRestore())['config']
    try:
      model = model_from_fields(saved['model'])
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(f'{run}: got a config of no network ({error}), want one of this version') from error
    return model, _restore_weights(manager, step, model, saved), step, saved


def load_run_of(run: str | Path, config: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, Any]]:
  """Parameters, step and config of a run as from `load_run`.

  Raises:
    ValueError: As `load_run`, or it is of another network or other noise than the config's.
  """
  _, params, step, saved = load_run(run)
  same = ('model', 'noise')
  check_same({p: saved[p] for p in same}, {p: config[p] for p in same}, set(_FREE_IN_EVALUATION))
  return params, step, saved


@contextlib.contextmanager
def _open_for_reading(run):
  """A manager of a run's checkpoints, and the step that is meant."""
  folder, wanted = split_path(run)
  if not is_run(run):
    raise ValueError(
      f"{run}: got no folder '{FOLDER}' in it, want the folder of a training run, or a {safetensors.SUFFIX} "
      f'file (convert_weights makes one of a .pth), or the URL of one, or one of {", ".join(available())}'
    )
  options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=_this_process_alone())
  with ocp.CheckpointManager(folder / FOLDER, options=options) as manager:
    steps = sorted(manager.all_steps())
    if not steps or (wanted is not None and wanted not in steps):
      raise ValueError(f'{run}: got checkpoints of steps {steps}, want {wanted or "at least one"}')
    yield manager, steps[-1] if wanted is None else wanted


def _restore_weights(manager, step, model, saved_config):
  item = 'ema' if saved_config.get('ema_decay') else 'params'
  template = _template(param_shapes(model))
  return _restore(manager, step, **{item: ocp.args.StandardRestore(template)})[item]


@contextlib.contextmanager
def _write_errors(folder: Any) -> Iterator[None]:
  """Whatever Orbax raises where a checkpoint cannot be written, as a ValueError."""
  try:
    yield
  except Exception as error:
    raise ValueError(
      f'{folder}: got a checkpoint that could not be written ({_short(error)}), want a folder that can be '
      'written to, with room on its disk; checkpoints saved before are good: make room, then run the same '
      'command again'
    ) from error


def _restore(manager, step, **items):
  try:
    return dict(manager.restore(step, args=ocp.args.Composite(**items)).items())
  except Exception as error:
    # Orbax and what is below it raise whatever the damage led to.
    folder = manager.directory / str(step)
    raise ValueError(
      f'{folder}: got a checkpoint that cannot be read ({_short(error)}), want a complete one; '
      'move that folder away to continue from the one before'
    ) from error


def _short(error):
  return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


def _on_host(tree):
  """A copy of a replicated tree, which the next step cannot write over while it is saved."""
  return jax.tree.map(lambda a: np.array(a.addressable_data(0) if isinstance(a, jax.Array) else a), tree)


def _template(tree):
  """NumPy arrays of the shapes and dtypes of a tree, of no memory of their own."""
  return jax.tree.map(lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape), tree)


def check_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], ignored: Set[str]) -> None:
  """Raises ValueError naming every field in which two configs differ."""
  saved, wanted = _flatten(saved), _flatten(wanted)
  differing = [
    f'{name}: checkpoint {saved.get(name)}, config {wanted.get(name)}'
    for name in sorted({*saved, *wanted})
    if saved.get(name) != wanted.get(name) and not _is_below(name, ignored)
  ]
  if differing:
    raise ValueError(f'the checkpoint is of a run with another config: {"; ".join(differing)}')


def _is_below(name, ignored):
  """Whether a field, or a group of fields it is in, is in a set."""
  parts = name.split('.')
  return any('.'.join(parts[:n]) in ignored for n in range(1, len(parts) + 1))


def _flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
  """{'a': {'b': 1}} -> {'a.b': '1'}, values as JSON, where tuples are lists."""
  flat: dict[str, str] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f'{prefix}{name}.')
    else:
      # Runs that began when noise.clip was a switch have a bool, equal to a probability of 0 or 1.
      flat[prefix + name] = json.dumps(float(value) if prefix + name == 'noise.clip' else value)
  return flat


def restore_params(run: str | Path, model: SADNet, config: dict[str, Any]) -> tuple[int, dict[str, Any]]:
  """The weights of one of a run's checkpoints: their running average where it was kept.

  Args:
    run: The run's folder (that holds ``checkpoints``), for its newest checkpoint, or
      one checkpoint's (``RUN/checkpoints/5000``), or a file of `weights`, the URL of one, or a
      name of `pretrained.available`, unless a run of that name is there.
    model: The network the weights are for.
    config: The config the network was built from.

  Returns:
    Step and parameters.

  Raises:
    ValueError: There is no checkpoint, it is of another network, or it cannot be read.
  """
  if is_name_or_url(run):
    run = locate(run)
  if Path(run).suffix == safetensors.SUFFIX:
    params, metadata = safetensors.load_weights(run, model)
    check_same(
      {'model': safetensors.model_fields(run, metadata)}, {'model': config['model']}, set(_FREE_IN_EVALUATION)
    )
    return int(metadata['step']), params
  with _open_for_reading(run) as (manager, step):
    saved = _restore(manager, step, config=ocp.args.JsonRestore())['config']
    check_same({'model': saved['model']}, {'model': config['model']}, set(_FREE_IN_EVALUATION))
    return step, _restore_weights(manager, step, model, saved)
