"""The numbers of a training curve, from the metrics files of the runs of a training.

A run logs the loss of single steps. Kept are the means of what was logged in every interval of steps, whose
length leaves about 500 intervals at most.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
from pathlib import Path
import re
from typing import Any, NamedTuple

import numpy as np

from sadnet_jax import checkpoints
from sadnet_jax.metrics_file import METRICS_FILE, read_metrics

_LOGGED = ('step', 'loss', 'learning_rate')
_PSNR = 'psnr/'
# Of the run's config: what tells one stage from another, and no folder of somebody's machine.
_SETTINGS = ('seed', 'steps', 'batch_size', 'accumulate', 'loss', 'ema_decay', 'noise', 'optimizer', 'model')
_MOST_INTERVALS = 500


@dataclasses.dataclass(frozen=True)
class Stage:
  """One run of a training; its steps count from the run's start.

  Attributes:
    run: Name of its folder.
    steps: That its weights were taken after.
    settings: Of its config, and ``init_from``, the name of the run or weights it began from, and
      ``validation_images``, how many of each set were measured (0: all); None where no checkpoint tells.
    training: 'step', 'loss' and 'learning_rate' -> means over the lines logged in an interval.
    validation: Name of a set -> 'step' and 'psnr', dB.
  """

  run: str
  steps: int
  settings: Mapping[str, Any] | None
  training: Mapping[str, Sequence[float]]
  validation: Mapping[str, Mapping[str, Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Curve:
  """The curve of a training.

  Attributes:
    name: Of the weights.
    about: What else is known of them.
    interval_steps: Length of the intervals of `Stage.training`.
    stages: In their order.
  """

  name: str
  about: Mapping[str, str]
  interval_steps: int
  stages: Sequence[Stage]

  def to_json(self) -> str:
    """As `read_curve` reads it; a list of numbers is one line."""
    text = json.dumps(dataclasses.asdict(self), indent=1)
    return re.sub(r'\[\n[-+\d.e,\s]*\]', lambda numbers: ' '.join(numbers[0].split()), text) + '\n'


def read_curve(path: str | Path) -> Curve:
  """Reads a file of `Curve.to_json`; ValueError where there is none, or something else."""
  try:
    fields = json.loads(Path(path).read_text())
    return Curve(**{**fields, 'stages': [Stage(**stage) for stage in fields['stages']]})
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f'{path}: got no readable curve ({error!r}), want a .json as publish_weights writes it'
    ) from error


def curve_of_runs(
  runs: Sequence[str | Path], name: str, about: Mapping[str, str]
) -> tuple[Curve, dict[str, Any] | None]:
  """Reads what runs have logged.

  Args:
    runs: Folders, in the order of the training: of a run, until its newest checkpoint or, where it has
      none, its last line; or of one of its checkpoints, RUN/checkpoints/STEP, until that step.
    name: Of the curve.
    about: Of the curve.

  Returns:
    The curve, and the weights of the last run (their running average where it was kept); None where it
    has no checkpoints.

  Raises:
    ValueError: There is no run, one has logged nothing or not as far, or a later one began from no
      weights, or from those of another of the runs than the one before.
  """
  if not runs:
    raise ValueError('--curve: got none, want the folder of a run, or of several in their order')
  logs = [_read_log(Path(run)) for run in runs]
  for before, log in itertools.pairwise(logs):
    if log.config is None:
      continue
    # A file of weights does not tell of which run it is.
    began, step = _began_from(log.config['init_from'])
    if began == before.run and step not in (None, before.steps):
      raise ValueError(
        f'--curve: got {before.run} until step {before.steps}, want until {step}, where {log.run} began: '
        f'{began}/{checkpoints.FOLDER}/{step}'
      )
    if not began or (began != before.run and began in {other.run for other in logs}):
      raise ValueError(
        f'--curve: got {log.run}, which began from {began or "no weights"}, after {before.run}, want it '
        'after the run it began from: the runs of one training in their order'
      )
  apart = np.median(np.concatenate([np.diff(log.logged[:, 0], prepend=0) for log in logs]))
  interval = round_up(max(sum(log.steps for log in logs) / _MOST_INTERVALS, apart))
  return Curve(name, dict(about), interval, [_stage(log, interval) for log in logs]), logs[-1].params


class _Log(NamedTuple):
  """What a run has logged until a step; ``logged`` has a row a line and the columns of _LOGGED."""

  run: str
  steps: int
  config: dict[str, Any] | None
  params: dict[str, Any] | None
  lines: list[dict[str, Any]]
  logged: np.ndarray


def _read_log(run):
  folder, steps = checkpoints.split_path(run)
  config, params, lines = None, None, read_metrics(folder)
  if checkpoints.has_checkpoint(folder):
    _, params, steps, config = checkpoints.load_run(run)
  elif steps is None:
    steps = max((metrics['step'] for metrics in lines), default=0)
  lines = [metrics for metrics in lines if metrics['step'] <= steps]
  logged = [[metrics[name] for name in _LOGGED] for metrics in lines if set(_LOGGED) <= set(metrics)]
  last = logged[-1][0] if logged else 0
  # A run that was killed may have saved a step after its last line.
  if not logged or last + (config['log_every'] if config else 0) < steps:
    raise ValueError(
      f'{folder / METRICS_FILE}: got {len(logged)} lines with {", ".join(_LOGGED)}, the last of step {last}, '
      f'want lines until step {steps}'
    )
  return _Log(folder.name, steps, config, params, lines, np.array(logged))


def _stage(log, interval):
  number = (log.logged[:, 0] - 1) // interval
  means = np.array([log.logged[number == n].mean(axis=0) for n in np.unique(number)])
  training = {name: list(map(_short, column)) for name, column in zip(_LOGGED, means.T, strict=True)}
  validation: dict[str, dict[str, list[float]]] = {}
  for metrics in log.lines:
    for name in metrics:
      if name.startswith(_PSNR):
        of_set = validation.setdefault(name.removeprefix(_PSNR), {'step': [], 'psnr': []})
        of_set['step'].append(metrics['step'])
        of_set['psnr'].append(_short(metrics[name]))
  settings = None if log.config is None else _settings(log.config)
  return Stage(log.run, log.steps, settings, training, validation)


def _settings(config):
  settings = {name: config[name] for name in _SETTINGS if name in config}
  return {
    **settings,
    'patch_px': config['data']['patch_px'],
    'init_from': _began_from(config['init_from'])[0],
    'validation_images': config['validation']['images'],
  }


def _began_from(init_from):
  """The name of the run's folder or the weights, or '', and the step, where it is of one checkpoint."""
  folder, step = checkpoints.split_path(init_from)
  return (folder.name if init_from else ''), step


def _short(value):
  """Enough digits for a picture; whole numbers, such as steps, as such."""
  short = float(f'{value:.7g}')
  return int(short) if short.is_integer() else short


def round_up(steps: float) -> int:
  """The first of 1, 2, 5, 10, 20, 50, ... that is as many."""
  return next(n * 10**power for power in itertools.count() for n in (1, 2, 5) if n * 10**power >= steps)
