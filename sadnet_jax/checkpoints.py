"""Checkpoints of a run, by Orbax.

A run's folder holds ``checkpoints/<step>/`` with three items: ``params`` (the
network's weights), ``optimizer`` (the optimiser's state) and ``config`` (JSON).
The step is the number of optimiser updates done.
"""

from collections.abc import Iterator
import contextlib
from pathlib import Path
from typing import Any

from flax.training.train_state import TrainState
import jax
import orbax.checkpoint as ocp

FOLDER = 'checkpoints'


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


def restore_latest(manager: ocp.CheckpointManager, state: TrainState) -> TrainState:
  """The newest checkpoint in the form of ``state``; ``state`` itself if there is none."""
  step = manager.latest_step()
  if step is None:
    return state
  like = jax.tree.map(ocp.utils.to_shape_dtype_struct, (state.params, state.opt_state))
  restored = manager.restore(
    step,
    args=ocp.args.Composite(
      params=ocp.args.StandardRestore(like[0]), optimizer=ocp.args.StandardRestore(like[1])
    ),
  )
  return state.replace(step=step, params=restored['params'], opt_state=restored['optimizer'])


def restore_params(run: str | Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
  """The weights of a run's newest checkpoint, for evaluation.

  Args:
    run: The run's folder (that holds ``checkpoints``), or one checkpoint's
      (``RUN/checkpoints/5000``).

  Returns:
    Step, parameters as NumPy arrays, and the config the run was started with.

  Raises:
    ValueError: There is no checkpoint.
  """
  folder = Path(run).absolute()
  wanted = None
  if folder.parent.name == FOLDER and folder.name.isdigit():
    wanted, folder = int(folder.name), folder.parent.parent
  if not (folder / FOLDER).is_dir():
    raise ValueError(f"{run}: got no folder '{FOLDER}' in it, want the folder of a training run")
  options = ocp.CheckpointManagerOptions(read_only=True)
  with ocp.CheckpointManager(folder / FOLDER, options=options) as manager:
    step = manager.latest_step() if wanted is None else wanted
    if step is None or step not in manager.all_steps():
      raise ValueError(
        f'{run}: got checkpoints of steps {list(manager.all_steps())}, want {wanted or "at least one"}'
      )
    restored = manager.restore(
      step, args=ocp.args.Composite(params=ocp.args.PyTreeRestore(), config=ocp.args.JsonRestore())
    )
  return step, restored['params'], restored['config']
