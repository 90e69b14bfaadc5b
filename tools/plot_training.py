"""The training curve of a run, or of several runs that followed each other: its data and a picture of it.

  python -m tools.plot_training --curve=RUN --output=curve.png
  python -m tools.plot_training --curve=FIRST,SECOND --output=curve.png
  python -m tools.plot_training --curve=docs/curves/NAME.json --output=curve.png

A run is drawn up to its newest checkpoint, or with ``RUN/checkpoints/STEP`` up to that one. In the second
line, each run started from the weights of the previous one (``config.init_from``): they are the stages of one
training. The third line draws a curve again whose data `publish_weights` has stored; the runs may be gone.
Needs ``pip install '.[train,plot]'``.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import itertools
import json
import os
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from sadnet_jax.extras import required

with required('train,plot'):
  from sadnet_jax.data.test_sets import IMAGE_SETS
  from sadnet_jax.evaluation.protocols import protocol_for_training
  from sadnet_jax.evaluation.results import shareable
  from sadnet_jax.files import check_output, replacing
  from sadnet_jax.training.run_folder import METRICS_FILE, read_metrics
  from sadnet_jax.training.validation import HELD_OUT
  from sadnet_jax.weights import checkpoints, safetensors
  from sadnet_jax.weights.index import FOLDER
  from sadnet_jax.weights.paths import CHECKPOINTS, has_checkpoint, split_run_path
  from sadnet_jax.weights.safetensors import params_hash

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# Columns that are read from a run's log, and the prefix of its PSNR columns.
_LOGGED = ('step', 'loss', 'learning_rate')
_PSNR_PREFIX = 'psnr/'
# Fields of a run's config that are stored: what distinguishes stages, and no paths of the machine.
_SETTINGS = ('seed', 'steps', 'batch_size', 'accumulate', 'loss', 'ema_decay', 'noise', 'optimizer', 'model')
# A curve has at most this many points.
_MAX_INTERVALS = 500
# Key of `Curve.about`: `params_hash` of the published weights.
_SHA256 = 'params_sha256'

# Window of the moving average: this share of the training, and at least this many logged points.
_WINDOW, _MIN_POINTS_IN_WINDOW = 1 / 40, 5
# The panel of the loss shows values up to this percentile of each stage.
_SHOWN_PERCENTILE = 98
# Inches: width; heights of the panels of loss, PSNR and learning rate; space around them.
_WIDTH, _LOSS, _PSNR, _RATE, _AROUND = 8.0, 2.6, 1.6, 1.1, 0.8
_DPI, _COLOURS, _FONT = 120, 48, 9
_LABELS_IN_A_LINE = 2
# Known sets with real noise.
_REAL_SETS = {known.title for known in IMAGE_SETS.values() if known.layout != 'clean'}
_LIGHT, _STRONG, _GREY = '#a6c8e4', '#08519c', '0.45'


# The data.


@dataclasses.dataclass(frozen=True)
class Stage:
  """One run of a training. Its steps count from the start of the run.

  Attributes:
    run: Name of the run's folder.
    steps: Number of steps after which the weights were taken.
    settings: Fields of the config, ``init_from`` (name of the run or weights it started from),
      ``validation_images`` (images of each set that were measured; 0 is all), ``validation_pairs`` (names of
      the sets with real noise) and ``held_out`` (scenes); None without a checkpoint.
    training: 'step', 'loss' and 'learning_rate' -> means over the lines logged in each interval.
    validation: Name of a set -> 'step' and 'psnr' in dB.
  """

  run: str
  steps: int
  settings: Mapping[str, Any] | None
  training: Mapping[str, Sequence[float]]
  validation: Mapping[str, Mapping[str, Sequence[float]]]

  @property
  def pixels_per_step(self) -> int:
    """Pixels of the patches of a step; 0 without settings."""
    return self.settings['batch_size'] * self.settings['patch_px'] ** 2 if self.settings else 0


@dataclasses.dataclass(frozen=True)
class Curve:
  """The curve of a training.

  Attributes:
    name: Name of the weights.
    about: Further facts about them.
    interval_steps: Length of the intervals of `Stage.training` in steps.
    stages: The stages in order.
  """

  name: str
  about: Mapping[str, str]
  interval_steps: int
  stages: Sequence[Stage]

  def to_json(self) -> str:
    """The text that `read_curve` reads; each list of numbers is on one line."""
    text = json.dumps(dataclasses.asdict(self), indent=1)
    return re.sub(r'\[\n[-+\d.e,\s]*\]', lambda numbers: ' '.join(numbers[0].split()), text) + '\n'


def read_curve(path: str | Path) -> Curve:
  """Reads a file written by `Curve.to_json`; ValueError if it cannot be read."""
  try:
    fields = json.loads(Path(path).read_text())
    return Curve(**{**fields, 'stages': [Stage(**stage) for stage in fields['stages']]})
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise ValueError(f'{path}: not a curve written by publish_weights ({error!r})') from error


# From the logs of runs.


def curve_of_runs(
  runs: Sequence[str | Path], name: str, about: Mapping[str, str]
) -> tuple[Curve, dict[str, Any] | None]:
  """Reads the curve of one or several runs from their logs.

  Args:
    runs: Folders in the order of the training. A run counts up to its newest checkpoint or, without
      checkpoints, up to its last line; RUN/checkpoints/STEP counts up to that step. The first may be the
      .json file of a stored curve, if the runs before are gone; of the runs given, what it has is replaced.
    name: Name of the curve.
    about: `Curve.about`.

  Returns:
    The curve, and the parameters of the last run (their running average if it has one), or None if it has no
    checkpoints.

  Raises:
    ValueError: No run is given, a log is missing or incomplete, or a run did not start from the previous one.
  """
  stored = read_curve(runs[0]) if runs and str(runs[0]).endswith('.json') else None
  logs = [_read_log(Path(run)) for run in (runs if stored is None else runs[1:])]
  if not logs:
    raise ValueError('--curve: give the folder of a run, or of several in order')
  # Of a run that is published again, the file may have an earlier state.
  given = {log.run for log in logs}
  earlier = [] if stored is None else [stage for stage in stored.stages if stage.run not in given]
  for before, log in itertools.pairwise([*earlier[-1:], *logs]):
    # Weights that were published with a curve have its name.
    published_as = stored.name if stored is not None and log is logs[0] else before.run
    _check_start(log, before, published_as, {stage.run for stage in (*earlier, *logs)})
  if stored is None:
    logged_every = np.median(np.concatenate([np.diff(log.logged[:, 0], prepend=0) for log in logs]))
    interval = next_round_number(max(sum(log.steps for log in logs) / _MAX_INTERVALS, logged_every))
  else:
    interval = stored.interval_steps
  stages = [*earlier, *(_stage(log, interval) for log in logs)]
  return Curve(name, dict(about), interval, stages), logs[-1].params


def _check_start(log, before, published_as, runs):
  """Raises ValueError if a run did not start from the one before it, or from the weights published of it."""
  if log.config is None:
    return
  # A file of weights does not say which run it is from.
  start, step = _start_of(log.config['init_from'])
  if start == before.run and step not in (None, before.steps):
    raise ValueError(
      f'--curve: {log.run} started from step {step} of {before.run}, not {before.steps}; give '
      f'{start}/{CHECKPOINTS}/{step}'
    )
  if not start or (start not in (before.run, published_as) and start in runs):
    raise ValueError(
      f'--curve: {log.run} started from {start or "no weights"}, not from {before.run}; give the runs of '
      'one training in order'
    )


class _Log(NamedTuple):
  """A run's log up to a step. ``logged`` has one row per line and the columns `_LOGGED`."""

  run: str
  steps: int
  config: dict[str, Any] | None
  params: dict[str, Any] | None
  lines: list[dict[str, Any]]
  logged: np.ndarray


def _read_log(run):
  folder, steps = split_run_path(run)
  config, params, lines = None, None, read_metrics(folder)
  if has_checkpoint(folder):
    _, params, steps, config = checkpoints.load_run(run)
  elif steps is None:
    steps = max((metrics['step'] for metrics in lines), default=0)
  lines = [metrics for metrics in lines if metrics['step'] <= steps]
  logged = [[metrics[name] for name in _LOGGED] for metrics in lines if set(_LOGGED) <= set(metrics)]
  last = logged[-1][0] if logged else 0
  # A run that was killed may have a checkpoint after its last line.
  if not logged or last + (config['log_every'] if config else 0) < steps:
    raise ValueError(
      f'{folder / METRICS_FILE}: has {len(logged)} lines with {", ".join(_LOGGED)}, the last at step {last}; '
      f'lines up to step {steps} are needed'
    )
  return _Log(folder.name, steps, config, params, lines, np.array(logged))


def _stage(log, interval):
  number = (log.logged[:, 0] - 1) // interval
  means = np.array([log.logged[number == n].mean(axis=0) for n in np.unique(number)])
  training = {name: list(map(_short, column)) for name, column in zip(_LOGGED, means.T, strict=True)}
  validation: dict[str, dict[str, list[float]]] = {}
  for metrics in log.lines:
    for name in metrics:
      if name.startswith(_PSNR_PREFIX):
        measured = validation.setdefault(name.removeprefix(_PSNR_PREFIX), {'step': [], 'psnr': []})
        measured['step'].append(metrics['step'])
        measured['psnr'].append(_short(metrics[name]))
  settings = None if log.config is None else _settings(log.config)
  return Stage(log.run, log.steps, settings, training, validation)


def _settings(config):
  settings = {name: config[name] for name in _SETTINGS if name in config}
  return {
    **settings,
    'patch_px': config['data']['patch_px'],
    'init_from': _start_of(config['init_from'])[0],
    'validation_images': config['validation']['images'],
    'validation_pairs': [Path(folder).name for folder in config['validation'].get('pairs', ())],
    'held_out': list(config['data'].get('held_out', ())),
  }


def _start_of(init_from):
  """Name of the run or weights that a run started from ('' for none), and the step of a checkpoint."""
  folder, step = split_run_path(shareable(init_from) if '://' in init_from else init_from)
  return (folder.name if init_from else ''), step


def _short(value):
  """A value with enough digits for a picture; whole numbers, such as steps, as integers."""
  short = float(f'{value:.7g}')
  return int(short) if short.is_integer() else short


def next_round_number(steps: float) -> int:
  """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least as large."""
  return next(n * 10**power for power in itertools.count() for n in (1, 2, 5) if n * 10**power >= steps)


# The files beside published weights.


def paths(folder: str | Path, name: str) -> tuple[Path, Path]:
  """Files of the data and of the picture of a curve.

  For the package's own weights they are outside the package, because denoising does not need them.

  Args:
    folder: The folder of the index.
    name: Name of the weights.
  """
  folder = Path(folder).resolve()
  curves = folder.parents[2] / 'docs' / 'curves' if folder == FOLDER.resolve() else folder / 'curves'
  return curves / f'{name}.json', curves / f'{name}.png'


def link(folder: str | Path, name: str) -> str | None:
  """Path of the picture relative to the card's folder, or None if there is no picture."""
  _, picture = paths(folder, name)
  return Path(os.path.relpath(picture, Path(folder).resolve())).as_posix() if picture.exists() else None


def pixels_seen(folder: str | Path, name: str) -> int | None:
  """Pixels that the runs of a curve have seen in training; None without a curve or without their settings."""
  numbers, _ = paths(folder, name)
  seen = [s.steps * s.pixels_per_step for s in read_curve(numbers).stages] if numbers.exists() else []
  return sum(seen) if all(seen) and seen else None


def check_existing(folder: str | Path, name: str, params_sha256: str) -> None:
  """Checks an existing curve.

  Raises:
    ValueError: It is of weights with another `params_hash`, or its data or its picture is missing.
  """
  existing = [path for path in paths(folder, name) if path.exists()]
  if len(existing) == 1:
    raise ValueError(f'{existing[0]}: the data or the picture of this curve is missing; pass --curve=RUN')
  if existing and (found := read_curve(existing[0]).about.get(_SHA256)) != params_sha256:
    raise ValueError(
      f'{existing[0]}: is the curve of other weights ({found}, not {params_sha256}); pass --curve=RUN, or '
      f'remove it and {existing[1].name}'
    )


def make(
  runs: Sequence[str],
  name: str,
  *,
  dtype: str,
  step: int,
  params_sha256: str,
  average_of: str = '',
  about: Mapping[str, str],
) -> tuple[bytes, bytes]:
  """Makes the contents of both files after checking that the runs are those of the weights.

  Args:
    runs: See `curve_of_runs`.
    name: Name of the weights.
    dtype: Dtype of the published file.
    step: Step of the weights.
    params_sha256: `params_hash` of the weights as published.
    average_of: For an average, the file's metadata `safetensors.AVERAGE_OF`; the last run must then be the
      last one averaged.
    about: Further facts to store.

  Returns:
    The data as JSON and the picture as PNG.

  Raises:
    ValueError: See `curve_of_runs`; or the weights are not those of the last run, or Matplotlib is missing.
  """
  average = {safetensors.AVERAGE_OF: average_of} if average_of else {}
  curve, params = curve_of_runs(runs, name, {**about, **average, _SHA256: params_sha256})
  if average_of and params is not None and not average_of.endswith(found := params_hash(params)):
    raise ValueError(
      f'--curve: {runs[-1]} has the weights {found}; the last run must be the last one of the average '
      f'{average_of}'
    )
  if (reached := curve.stages[-1].steps) != step:
    raise ValueError(
      f'--curve: {runs[-1]} ends at step {reached}, but the weights are of step {step}; give their run or '
      f'its checkpoint (RUN/checkpoints/{step})'
    )
  if (
    not average_of and params is not None and params_hash(safetensors.rounded(params, dtype)) != params_sha256
  ):
    raise ValueError(f'--curve: {runs[-1]} has other weights at step {step}; give the run of these weights')
  return curve.to_json().encode(), png(draw(curve))


def write(folder: str | Path, name: str, contents: tuple[bytes, bytes]) -> None:
  """Writes both files, each atomically."""
  for path, content in zip(paths(folder, name), contents, strict=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
      temporary.write_bytes(content)


# The picture.


def smoothed(steps: npt.ArrayLike, values: npt.ArrayLike, window: int) -> np.ndarray:
  """Moving mean: at every step, the mean of the values at most half a window away.

  Near the first step, the window is shortened to be symmetric, in order to follow a steep start.

  Args:
    steps: Increasing, [N].
    values: [N].
    window: Width of the window in steps.

  Returns:
    float [N].
  """
  steps = np.asarray(steps)
  half = np.minimum(window / 2, steps - steps[0])
  near = np.abs(steps - steps[:, None]) <= half[:, None]
  return near @ np.asarray(values) / near.sum(axis=1)


def new_figure(width: float, height: float) -> 'Figure':
  """An empty figure of a size in inches; ValueError if Matplotlib is missing."""
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ValueError("Matplotlib is missing; from the clone: pip install '.[plot]'") from error
  return Figure((width, height), dpi=_DPI, layout='constrained')


def draw(curve: Curve) -> 'Figure':
  """Draws a curve over the steps of all stages: loss, PSNR if there was validation, learning rate.

  The panel of the loss cuts off its highest values; the legend gives the first one.

  Raises:
    ValueError: Matplotlib is missing.
  """
  heights = [_LOSS, _PSNR, _RATE] if any(stage.validation for stage in curve.stages) else [_LOSS, _RATE]
  figure = new_figure(_WIDTH, sum(heights) + _AROUND)
  panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
  starts = list(itertools.accumulate((stage.steps for stage in curve.stages), initial=0))
  total = starts.pop()
  _draw_loss(panels[0], curve, starts)
  if len(panels) == 3:
    _draw_psnr(panels[1], curve.stages, starts)
  for start, stage in zip(starts, curve.stages, strict=True):
    rate = stage.training['learning_rate']
    panels[-1].plot(np.add(stage.training['step'], start), rate, color=_GREY, linewidth=1.2)
  panels[-1].set(ylim=(0, None), xlim=(0, total), ylabel='learning rate', xlabel='step')
  panels[-1].xaxis.set_major_formatter('{x:,.0f}')
  for axes in panels:
    axes.yaxis.set_major_formatter('{x:g}')
    axes.tick_params(labelsize=_FONT)
    axes.grid(color='0.9', linewidth=0.6)
    for start in starts[1:]:
      axes.axvline(start, color='black', linewidth=0.9, linestyle=(0, (4, 3)))
    for label in (axes.xaxis.label, axes.yaxis.label):
      label.set_size(_FONT)
  stages = f' in {len(starts)} stages' if len(starts) > 1 else ''
  panels[0].set_title(f'{curve.name}: {total:,} steps{stages}', fontsize=_FONT + 1, pad=18 if stages else 6)
  for number, start in enumerate(starts if stages else [], 1):
    text = f'stage {number}' if number == 1 else f'{number}'
    place = {'xycoords': panels[0].get_xaxis_transform(), 'textcoords': 'offset points', 'va': 'bottom'}
    panels[0].annotate(text, (start, 1), (0, 3), fontsize=_FONT - 1, **place)
  return figure


def _draw_loss(axes, curve, starts):
  steps = [np.asarray(stage.training['step']) for stage in curve.stages]
  losses = [stage.training['loss'] for stage in curve.stages]
  total = starts[-1] + curve.stages[-1].steps
  window = next_round_number(total * max(_WINDOW, _MIN_POINTS_IN_WINDOW / sum(map(len, losses))))
  labels = [
    f'logged steps, mean of every {curve.interval_steps:,} '
    f'(from {losses[0][0]:.3g} at step {steps[0][0]:,.0f})',
    f'moving mean, {window:,} steps',
  ]
  # Each stage on its own, since their losses may differ.
  for start, at, loss in zip(starts, steps, losses, strict=True):
    axes.plot(at + start, loss, color=_LIGHT, linewidth=0.9)
    axes.plot(at + start, smoothed(at, loss, window), color=_STRONG, linewidth=1.6)
  low, high = min(map(min, losses)), max(np.percentile(loss, _SHOWN_PERCENTILE) for loss in losses)
  margin = 0.08 * (high - low) or 0.01
  # Room for the legend at the top.
  axes.set(ylim=(low - margin, high + 4 * margin), ylabel=_loss_label(curve.stages))
  axes.legend(axes.lines[:2], labels, loc='upper right', fontsize=_FONT)


def _loss_label(stages):
  """Label with the name of the loss if all stages have the same."""
  losses = {stage.settings['loss'] if stage.settings else '' for stage in stages}
  known = len(losses) == 1 and '' not in losses
  return f'training loss ({losses.pop()})' if known else 'training loss'


def set_label(name, stage):
  """What was measured, as far as it is known: ``CBSD68, 8 images, sigma 50, unclipped``."""
  settings = stage.settings
  if settings is None:
    return name
  parts, noise = [name], settings['noise']
  if images := settings['validation_images']:
    parts.append(f'{images} images')
  if name == HELD_OUT:
    if scenes := settings.get('held_out'):
      parts.append(f'{len(scenes)} scenes')
  elif name not in {*_REAL_SETS, *settings.get('validation_pairs', ())} and noise['sigma_255']:
    parts.append(f'sigma {noise["sigma_255"]:g}')
    if 'clip' in noise:
      parts.append(protocol_for_training(noise['clip']).name)
  return ', '.join(parts)


def _draw_psnr(axes, stages, starts):
  """One line for everything that was measured in the same way, interrupted between stages."""
  lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
  for start, stage in zip(starts, stages, strict=True):
    for name, measured in stage.validation.items():
      scenes = (stage.settings or {}).get('held_out') if name == HELD_OUT else None
      points = lines.setdefault((set_label(name, stage), str(scenes)), [])
      points += zip(np.add(measured['step'], start), measured['psnr'], strict=True)
      points.append((np.nan, np.nan))
  for number, ((label, _), points) in enumerate(lines.items(), 1):
    axes.plot(*np.array(points).T, color=f'C{number}', marker='.', linewidth=1.2, label=label)
  axes.set_ylabel('PSNR, dB')
  place = {'loc': 'lower right', 'bbox_to_anchor': (1, 1), 'borderpad': 0}
  axes.legend(ncols=min(len(lines), _LABELS_IN_A_LINE), fontsize=_FONT, frameon=False, **place)


def png(figure: 'Figure') -> bytes:
  """A figure as a small PNG file with few colours; equal figures give equal files."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  (canvas := FigureCanvasAgg(figure)).draw()
  picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
  file = io.BytesIO()
  # Pillow's default method merges the colours of thin lines, such as orange and red.
  picture.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).save(file, 'PNG', optimize=True)
  return file.getvalue()


# The command.


def main() -> None:
  """The command."""
  from absl import flags

  from sadnet_jax import command_line

  curve = flags.DEFINE_list(
    'curve', None, 'Runs in order, or the .json file of a curve, alone or before runs.', required=True
  )
  output = flags.DEFINE_string('output', None, 'File to write, .png.', required=True)
  overwrite = flags.DEFINE_bool('overwrite', False, 'Replace an existing file.')

  def command():
    path, sources = Path(output.value), curve.value
    check_output(path, '.png', overwrite=overwrite.value)
    if len(sources) == 1 and sources[0].endswith('.json'):
      read = read_curve(sources[0])
    else:
      name = split_run_path(sources[-1])[0].name if sources else ''
      read, _ = curve_of_runs(sources, name, {})
    with replacing(path) as temporary:
      temporary.write_bytes(png(draw(read)))
    print(f'{path}: {sum(stage.steps for stage in read.stages)} steps in {len(read.stages)} stage(s)')

  command_line.run(command)


if __name__ == '__main__':
  main()
