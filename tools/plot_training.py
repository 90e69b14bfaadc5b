"""The training curve of one run or of several that followed each other: its numbers, and a picture of them.

  python -m tools.plot_training --curve=RUN --output=curve.png
  python -m tools.plot_training --curve=FIRST,SECOND --output=curve.png
  python -m tools.plot_training --curve=docs/curves/NAME.json --output=curve.png

Of a run, what it logged until its newest checkpoint is drawn; of ``RUN/checkpoints/STEP``, until that
one. In the second line, each run began from the weights of the one before (``config.init_from``): they
are the stages of one training. The third draws again what `publish_weights` has kept of runs that may
be gone. Needs ``pip install 'sadnet-jax[evaluate,plot]'``.
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

from sadnet_jax.files import replacing
from sadnet_jax.training.run_folder import METRICS_FILE, read_metrics
from sadnet_jax.weights import checkpoints, safetensors
from sadnet_jax.weights.index import FOLDER
from sadnet_jax.weights.paths import CHECKPOINTS, has_checkpoint, split_run_path
from sadnet_jax.weights.safetensors import params_hash

if TYPE_CHECKING:
  from matplotlib.figure import Figure
# Of the moving average: of the training, or of the logged steps, whichever is longer.
_WINDOW, _LEAST_IN_WINDOW = 1 / 40, 5
# Percentile of the losses of a stage that the panel reaches to.
_SHOWN = 98
# Inches: the width, the panels of loss, PSNR and learning rate, and what is around them.
_WIDTH, _LOSS, _PSNR, _RATE, _AROUND = 8.0, 2.6, 1.6, 1.1, 0.8
_DPI, _COLOURS, _FONT = 120, 48, 9
_LIGHT, _STRONG, _GREY = '#a6c8e4', '#08519c', '0.45'

_LOGGED = ('step', 'loss', 'learning_rate')
_PSNR_PREFIX = 'psnr/'
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
        f'{began}/{CHECKPOINTS}/{step}'
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
  folder, steps = split_run_path(run)
  config, params, lines = None, None, read_metrics(folder)
  if has_checkpoint(folder):
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
      if name.startswith(_PSNR_PREFIX):
        of_set = validation.setdefault(name.removeprefix(_PSNR_PREFIX), {'step': [], 'psnr': []})
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
  folder, step = split_run_path(init_from)
  return (folder.name if init_from else ''), step


def _short(value):
  """Enough digits for a picture; whole numbers, such as steps, as such."""
  short = float(f'{value:.7g}')
  return int(short) if short.is_integer() else short


def round_up(steps: float) -> int:
  """The first of 1, 2, 5, 10, 20, 50, ... that is as many."""
  return next(n * 10**power for power in itertools.count() for n in (1, 2, 5) if n * 10**power >= steps)


_SHA256 = 'params_sha256'


def paths(folder: str | Path, name: str) -> tuple[Path, Path]:
  """Where the numbers and the picture are, of weights in a folder with an index.

  Of the package's own, that is outside of it: who denoises does not need them.
  """
  folder = Path(folder).resolve()
  curves = folder.parents[2] / 'docs' / 'curves' if folder == FOLDER.resolve() else folder / 'curves'
  return curves / f'{name}.json', curves / f'{name}.png'


def link(folder: str | Path, name: str) -> str | None:
  """The path of the picture from the card's folder, for the card; None where there is none."""
  _, picture = paths(folder, name)
  return Path(os.path.relpath(picture, Path(folder).resolve())).as_posix() if picture.exists() else None


def check_kept(folder: str | Path, name: str, params_sha256: str) -> None:
  """Checks the curve that is there, if there is one.

  Raises:
    ValueError: It is of other weights than those of that `params_hash`, or not whole.
  """
  there = [path for path in paths(folder, name) if path.exists()]
  if len(there) == 1:
    raise ValueError(f'{there[0]}: got a curve without its picture or its numbers, want both, or --curve=RUN')
  if there and (got := read_curve(there[0]).about.get(_SHA256)) != params_sha256:
    raise ValueError(
      f'{there[0]}: got the training curve of other weights ({got}), want that of {params_sha256}: pass '
      f'--curve=RUN, or remove it and {there[1].name}'
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
  """The contents of both files.

  Args:
    runs: As of `curve_of_runs`.
    name: Of the weights.
    dtype: Of the published file.
    step: Of the weights.
    params_sha256: `params_hash` of the weights as they are published.
    average_of: What their file tells by `weights.AVERAGE_OF`, if they are an average: the last run is then
      the last of those.
    about: What else to tell of them.

  Raises:
    ValueError: As `curve_of_runs`; the weights are not those of the last run; or Matplotlib is missing.
  """
  told = {safetensors.AVERAGE_OF: average_of} if average_of else {}
  curve, params = curve_of_runs(runs, name, {**about, **told, _SHA256: params_sha256})
  if average_of and params is not None and not average_of.endswith(got := params_hash(params)):
    raise ValueError(
      f'--curve: got {runs[-1]} with the weights {got}, want the run, or its checkpoint, that is the last of '
      f'the average {average_of}'
    )
  if (reached := curve.stages[-1].steps) != step:
    raise ValueError(
      f'--curve: got {runs[-1]} until step {reached}, want until {step}, that of the weights: the run that '
      f'they are of, or its checkpoint (RUN/checkpoints/{step})'
    )
  if (
    not average_of and params is not None and params_hash(safetensors.rounded(params, dtype)) != params_sha256
  ):
    raise ValueError(
      f'--curve: got {runs[-1]}, which has other weights at step {step}, want the run of these'
    )
  return curve.to_json().encode(), png(draw(curve))


def write(folder: str | Path, name: str, contents: tuple[bytes, bytes]) -> None:
  """Writes both files, each whole or not at all."""
  for path, content in zip(paths(folder, name), contents, strict=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
      temporary.write_bytes(content)


def smoothed(steps: npt.ArrayLike, values: npt.ArrayLike, window: int) -> np.ndarray:
  """The mean of the values whose steps are at most half a window away, at every step.

  Near the first step it is over as many steps before as after, so as to follow a steep beginning.

  Args:
    steps: Increasing, [N].
    values: [N].
    window: Steps.
  """
  at = np.asarray(steps)
  half = np.minimum(window / 2, at - at[0])
  near = np.abs(at - at[:, None]) <= half[:, None]
  return near @ np.asarray(values) / near.sum(axis=1)


def draw(curve: Curve) -> 'Figure':
  """Draws a curve by the step of all stages: loss, PSNR where there was validation, learning rate.

  The loss is shown up to what all but the highest of it reach; where it begins is told beside it.

  Raises:
    ValueError: Matplotlib is missing.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ValueError("matplotlib: got no such package, want it (pip install 'sadnet-jax[plot]')") from error
  heights = [_LOSS, _PSNR, _RATE] if any(stage.validation for stage in curve.stages) else [_LOSS, _RATE]
  figure = Figure((_WIDTH, sum(heights) + _AROUND), dpi=_DPI, layout='constrained')
  panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
  begins = list(itertools.accumulate((stage.steps for stage in curve.stages), initial=0))
  total = begins.pop()
  _draw_loss(panels[0], curve, begins)
  if len(panels) == 3:
    _draw_psnr(panels[1], curve.stages, begins)
  for begin, stage in zip(begins, curve.stages, strict=True):
    rate = stage.training['learning_rate']
    panels[-1].plot(np.add(stage.training['step'], begin), rate, color=_GREY, linewidth=1.2)
  panels[-1].set(ylim=(0, None), xlim=(0, total), ylabel='learning rate', xlabel='step')
  panels[-1].xaxis.set_major_formatter('{x:,.0f}')
  for axes in panels:
    axes.yaxis.set_major_formatter('{x:g}')
    axes.tick_params(labelsize=_FONT)
    axes.grid(color='0.9', linewidth=0.6)
    for begin in begins[1:]:
      axes.axvline(begin, color='black', linewidth=0.9, linestyle=(0, (4, 3)))
    for label in (axes.xaxis.label, axes.yaxis.label):
      label.set_size(_FONT)
  stages = f' in {len(begins)} stages' if len(begins) > 1 else ''
  panels[0].set_title(f'{curve.name}: {total:,} steps{stages}', fontsize=_FONT + 1, pad=18 if stages else 6)
  for number, begin in enumerate(begins if stages else [], 1):
    text = f'stage {number}' if number == 1 else f'{number}'
    place = {'xycoords': panels[0].get_xaxis_transform(), 'textcoords': 'offset points', 'va': 'bottom'}
    panels[0].annotate(text, (begin, 1), (0, 3), fontsize=_FONT - 1, **place)
  return figure


def _draw_loss(axes, curve, begins):
  steps = [np.asarray(stage.training['step']) for stage in curve.stages]
  losses = [stage.training['loss'] for stage in curve.stages]
  total = begins[-1] + curve.stages[-1].steps
  window = round_up(total * max(_WINDOW, _LEAST_IN_WINDOW / sum(map(len, losses))))
  labels = [
    f'logged steps, mean of every {curve.interval_steps:,} '
    f'(from {losses[0][0]:.3g} at step {steps[0][0]:,.0f})',
    f'moving mean, {window:,} steps',
  ]
  # Not across stages, which may differ in what their loss is of.
  for begin, at, loss in zip(begins, steps, losses, strict=True):
    axes.plot(at + begin, loss, color=_LIGHT, linewidth=0.9)
    axes.plot(at + begin, smoothed(at, loss, window), color=_STRONG, linewidth=1.6)
  low, high = min(map(min, losses)), max(np.percentile(loss, _SHOWN) for loss in losses)
  margin = 0.08 * (high - low) or 0.01
  # Above, the legend has room.
  axes.set(ylim=(low - margin, high + 4 * margin), ylabel=_loss_label(curve.stages))
  axes.legend(axes.lines[:2], labels, loc='upper right', fontsize=_FONT)


def _loss_label(stages):
  """Tells the loss where all stages tell the same."""
  losses = {stage.settings['loss'] if stage.settings else '' for stage in stages}
  known = len(losses) == 1 and '' not in losses
  return f'training loss ({losses.pop()})' if known else 'training loss'


def _set_label(name, stage):
  """What was measured, by what the stage tells: ``CBSD68, 8 images, sigma 50``."""
  if stage.settings is None:
    return name
  parts, sigma = [name], stage.settings['noise']['sigma_255']
  if images := stage.settings['validation_images']:
    parts.append(f'{images} images')
  if sigma:
    parts.append(f'sigma {sigma:g}')
  return ', '.join(parts)


def _draw_psnr(axes, stages, begins):
  """A line for all that was measured alike, broken where a stage ends."""
  lines: dict[str, list[tuple[float, float]]] = {}
  for begin, stage in zip(begins, stages, strict=True):
    for name, of_set in stage.validation.items():
      points = lines.setdefault(_set_label(name, stage), [])
      points += zip(np.add(of_set['step'], begin), of_set['psnr'], strict=True)
      points.append((np.nan, np.nan))
  for number, (label, points) in enumerate(lines.items(), 1):
    axes.plot(*np.array(points).T, color=f'C{number}', marker='.', linewidth=1.2, label=label)
  axes.set_ylabel('PSNR, dB')
  place = {'loc': 'lower right', 'bbox_to_anchor': (1, 1), 'borderpad': 0}
  axes.legend(ncols=len(lines), fontsize=_FONT, frameon=False, **place)


def png(figure: 'Figure') -> bytes:
  """A figure as a PNG file of few colours, which is small; the same for the same figure."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  (canvas := FigureCanvasAgg(figure)).draw()
  picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
  file = io.BytesIO()
  picture.quantize(_COLOURS).save(file, 'PNG', optimize=True)
  return file.getvalue()


def main() -> None:
  """The command."""
  from absl import flags

  from sadnet_jax import command_line

  curve = flags.DEFINE_list('curve', None, 'Runs in their order, or a .json of a curve.', required=True)
  output = flags.DEFINE_string('output', None, 'File to write, .png.', required=True)
  overwrite = flags.DEFINE_bool('overwrite', False, 'Write over an output that is there.')

  def command():
    path, sources = Path(output.value), curve.value
    if path.suffix.lower() != '.png':
      raise ValueError(f'--output: got {path}, want a name that ends in .png')
    if path.exists() and not overwrite.value:
      raise ValueError(f'--output: got {path}, which exists, want a new file, or pass --overwrite')
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
