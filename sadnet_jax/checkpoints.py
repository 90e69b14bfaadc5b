"""Checkpoints of a run, by Orbax.

A run's folder holds ``checkpoints/<step>/`` with three items: ``params`` (the
network's weights), ``optimizer`` (the optimiser's state) and ``config`` (JSON).
The step is the number of optimiser updates done.
"""

from collections.abc import Iterator, Mapping, Set
import contextlib
import json
from pathlib import Path
from typing import Any

from flax.training.train_state import TrainState
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sadnet_jax.model import SADNet

FOLDER = 'checkpoints'
# What a run may be continued with another value of: nothing of it reaches the weights
# (a moved folder of images is the same data).
_FREE_ON_RESUME = frozenset({'log_every', 'checkpoint_every', 'keep_checkpoints', 'data.train_dir'})
# Neither changes what the weights mean.
_FREE_IN_EVALUATION = frozenset({'model.dtype', 'model.offset_init'})


@contextlib.contextmanager
def open_for_training(workdir: str | Path, keep: int) -> Iterator[ocp.CheckpointManager]:
  """A manager that saves in the background and keeps the newest ``keep``.

  Leaving the context waits for what is being written.
  """
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
  with ocp.CheckpointManager((Path(workdir) / FOLDER).absolute(), options=options) as manager:
    yield manager


def save(manager: ocp.CheckpointManager, state: TrainState, config: dict[str, Any]) -> None:
  """Starts to save a state, unless its step is saved already."""
  step = int(state.step)
  if step == manager.latest_step():
    return
  manager.save(
    step,
    args=ocp.args.Composite(
      params=ocp.args.StandardSave(state.params),
      optimizer=ocp.args.StandardSave(state.opt_state),
      config=ocp.args.JsonSave(config),
    ),
  )


def restore_latest(manager: ocp.CheckpointManager, state: TrainState, config: dict[str, Any]) -> TrainState:
  """The newest checkpoint in the form of ``state``; ``state`` itself if there is none.

  Raises:
    ValueError: The run was started with another config; each field is named.
  """
  step = manager.latest_step()
  if step is None:
    return state
  saved = _restore(manager, step, config=ocp.args.JsonRestore())['config']
  ignored = _FREE_ON_RESUME
  if config['optimizer']['schedule'] == 'step_halving':
    ignored = ignored | {'steps'}  # This schedule does not depend on the length of the run.
  _check_same(saved, config, ignored)
  restored = _restore(
    manager,
    step,
    params=ocp.args.StandardRestore(_shapes(state.params)),
    optimizer=ocp.args.StandardRestore(_shapes(state.opt_state)),
  )
  return state.replace(step=step, params=restored['params'], opt_state=restored['optimizer'])


def split_path(path: str | Path) -> tuple[Path, int | None]:
  """The folder of a run, and the step where the path is of one of its checkpoints."""
  path = Path(path).absolute()
  if path.parent.name == FOLDER and path.name.isdigit():
    return path.parent.parent, int(path.name)
  return path, None


def restore_params(run: str | Path, model: SADNet, config: dict[str, Any]) -> tuple[int, dict[str, Any]]:
  """The weights of a run's newest checkpoint, for evaluation.

  Args:
    run: The run's folder (that holds ``checkpoints``), or one checkpoint's
      (``RUN/checkpoints/5000``).
    model: The network the weights are for.
    config: The config the network was built from.

  Returns:
    Step and parameters.

  Raises:
    ValueError: There is no checkpoint, or it is of another network.
  """
  folder, wanted = split_path(run)
  if not (folder / FOLDER).is_dir():
    raise ValueError(f"{run}: got no folder '{FOLDER}' in it, want the folder of a training run")
  with ocp.CheckpointManager(folder / FOLDER, options=ocp.CheckpointManagerOptions(create=False)) as manager:
    steps = sorted(manager.all_steps())
    if not steps or (wanted is not None and wanted not in steps):
      raise ValueError(f'{run}: got checkpoints of steps {steps}, want {wanted or "at least one"}')
    step = steps[-1] if wanted is None else wanted
    saved = _restore(manager, step, config=ocp.args.JsonRestore())['config']
    _check_same({'model': saved['model']}, {'model': config['model']}, _FREE_IN_EVALUATION)
    image = jax.ShapeDtypeStruct((1, 8, 8, model.channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    return step, _restore(manager, step, params=ocp.args.StandardRestore(_shapes(params)))['params']


def _restore(manager, step, **items):
  return manager.restore(step, args=ocp.args.Composite(**items))


def _shapes(tree):
  """What to restore, and where to: shapes and dtypes on this machine's first device."""
  place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)


def _check_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], ignored: Set[str]) -> None:
  """Raises ValueError naming every field in which two configs differ."""
  saved, wanted = _flatten(saved), _flatten(wanted)
  differing = [
    f'{name}: checkpoint {saved.get(name)}, config {wanted.get(name)}'
    for name in sorted({*saved, *wanted} - ignored)
    if saved.get(name) != wanted.get(name)
  ]
  if differing:
    raise ValueError(f'the checkpoint is of a run with another config: {"; ".join(differing)}')


def _flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
  """{'a': {'b': 1}} -> {'a.b': '1'}, values as JSON, where tuples are lists."""
  flat: dict[str, str] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = json.dumps(value)
  return flat
