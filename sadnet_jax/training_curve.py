"""The training curve of one run or of several that followed each other: its numbers, and a picture of them.

  python -m sadnet_jax.training_curve --curve=RUN --output=curve.png
  python -m sadnet_jax.training_curve --curve=FIRST,SECOND --output=curve.png
  python -m sadnet_jax.training_curve --curve=docs/curves/NAME.json --output=curve.png

Of a run, what it logged until its newest checkpoint is drawn; of ``RUN/checkpoints/STEP``, until that
one. In the second line, each run began from the weights of the one before (``config.init_from``): they
are the stages of one training. The third draws again what `publish_weights` has kept of runs that may
be gone. Needs ``pip install 'sadnet-jax[evaluate,plot]'``.
"""

import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from sadnet_jax import checkpoints
from sadnet_jax.curve_numbers import Curve, curve_of_runs, read_curve, round_up
from sadnet_jax.files import replacing

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
      name = checkpoints.split_path(sources[-1])[0].name if sources else ''
      read, _ = curve_of_runs(sources, name, {})
    with replacing(path) as temporary:
      temporary.write_bytes(png(draw(read)))
    print(f'{path}: {sum(stage.steps for stage in read.stages)} steps in {len(read.stages)} stage(s)')

  command_line.run(command)


if __name__ == '__main__':
  main()
