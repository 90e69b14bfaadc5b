"""Draws PSNR against the number of pixels that training has seen, for several trainings.

  python -m tools.plot_pixels --curves=docs/curves/color_50.json,docs/curves/color.json,RUN \\
    --set='CBSD68, 8 images, sigma 50, unclipped' --before=color50_a:85196800 --output=pixels.png

A curve is a file in docs/curves or the folder of a run. Each ``--set`` gets a panel. A stage that started
from the weights of another given curve or stage counts their pixels too; ``--before`` gives those of a stage
whose start is in no curve. Pixels are steps * batch_size * patch_px**2. ``--fit=RUN,RUN`` fits a line to the
last PSNR of finished stages of one task against the logarithm of their pixels, on the first set; ``--target``
prints where it reaches a PSNR, which is an extrapolation.
Needs ``pip install '.[train,plot]'``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sadnet_jax.files import check_output, replacing
from sadnet_jax.weights.paths import SAFETENSORS_SUFFIX
from tools.plot_training import Curve, curve_of_runs, new_figure, png, read_curve, set_label

if TYPE_CHECKING:
  from matplotlib.figure import Figure


_COLUMNS, _PANEL_INCHES, _FONT = 2, (4.8, 3.6), 8


class Measured(NamedTuple):
  """PSNR during one stage.

  Attributes:
    curve: Name of the curve it belongs to.
    run: Name of the stage's run.
    pixels: Pixels seen in all, [N].
    psnr: In dB, [N].
  """

  curve: str
  run: str
  pixels: np.ndarray
  psnr: np.ndarray


def measured_stages(curves: Sequence[Curve], label: str, before: Mapping[str, int]) -> list[Measured]:
  """Finds what was measured on one set, by the pixels seen until then.

  Args:
    curves: The trainings.
    label: The set as a training curve labels it, such as 'CBSD68, 8 images, sigma 50, unclipped'.
    before: Name of a stage's run -> pixels seen before it.

  Returns:
    The stages that were measured on this set, in the order of the curves.

  Raises:
    ValueError: No stage was measured on this set, the start of a stage is unknown, or two stages have the
      same name.
  """
  ends: dict[str, int] = {}
  runs = [stage.run for curve in curves for stage in curve.stages]
  if repeated := sorted({run for run in runs if runs.count(run) > 1}):
    raise ValueError(
      f'--curves: several runs are named {", ".join(repeated)}; rename them in the .json files'
    )
  stages, labels = [], set()
  for curve in curves:
    for stage in curve.stages:
      if stage.settings is None:
        raise ValueError(f'{stage.run}: has no checkpoint, so its batch size is unknown; give other runs')
      start = stage.settings['init_from'].removesuffix(SAFETENSORS_SUFFIX)
      seen = before.get(stage.run, ends.get(start, 0 if not start else None))
      if seen is None:
        raise ValueError(
          f'{stage.run}: started from {start}, which is in no curve before it; pass its curve first, or the '
          f'pixels seen before this stage with --before={stage.run}:PIXELS'
        )
      each = stage.pixels_per_step
      ends[stage.run] = ends[curve.name] = seen + stage.steps * each
      for name, values in stage.validation.items():
        labels.add(set_label(name, stage))
        if set_label(name, stage) == label:
          pixels = seen + np.asarray(values['step']) * each
          stages.append(Measured(curve.name, stage.run, pixels, np.asarray(values['psnr'])))
  if not stages:
    raise ValueError(f'--set: nothing was measured on {label!r}; choose from {"; ".join(sorted(labels))}')
  return stages


def fitted_line(stages: Sequence[Measured], runs: Sequence[str]) -> tuple[float, float]:
  """Fits the last PSNR of the stages of these runs: (dB at one pixel, dB for ten times the pixels).

  Raises:
    ValueError: Fewer than two runs, or one was not measured.
  """
  ends = {stage.run: (np.log10(stage.pixels[-1]), stage.psnr[-1]) for stage in stages}
  if len(runs) < 2 or set(runs) - set(ends):
    raise ValueError(f'--fit: got {", ".join(runs)}; give two or more of {", ".join(ends)}')
  pixels, psnr = np.array([ends[run] for run in runs]).T
  slope, intercept = np.polyfit(pixels, psnr, 1)
  return float(intercept), float(slope)


def draw(panels: Mapping[str, Sequence[Measured]], line: tuple[float, float] | None = None) -> 'Figure':
  """Draws the stages of each set in a panel, one colour a curve.

  Args:
    panels: Label of a set -> what was measured on it.
    line: From `fitted_line`, of the first set.

  Raises:
    ValueError: Matplotlib is missing.
  """
  columns = min(len(panels), _COLUMNS)
  rows = -(-len(panels) // columns)
  figure = new_figure(_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows)
  names = list(dict.fromkeys(stage.curve for stages in panels.values() for stage in stages))
  for number, (label, stages) in enumerate(panels.items()):
    axes = figure.add_subplot(rows, columns, number + 1)
    _draw_set(axes, stages, names, line if number == 0 else None)
    axes.set_title(label, fontsize=_FONT)
  return figure


def _draw_set(axes, stages, names, line):
  from matplotlib.ticker import LogLocator, NullFormatter

  for stage in stages:
    first = not any(line.get_label() == stage.curve for line in axes.lines)
    axes.plot(
      stage.pixels / 1e6,
      stage.psnr,
      marker='.',
      linewidth=1.2,
      color=f'C{names.index(stage.curve)}',
      label=stage.curve if first else None,
    )
  if line:
    ends = np.array([min(s.pixels[0] for s in stages), 3 * max(s.pixels[-1] for s in stages)])
    text = f'fit: {line[1]:+.2f} dB for ten times as many'
    fitted = line[0] + line[1] * np.log10(ends)
    axes.plot(ends / 1e6, fitted, color='0.6', linestyle='--', linewidth=1, label=text)
  axes.set(xscale='log', xlabel='millions of pixels seen in training', ylabel='PSNR, dB')
  # The default labels of a range below two decades touch each other.
  axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter('{x:,g}')
  axes.xaxis.set_minor_formatter(NullFormatter())
  axes.grid(color='0.9', linewidth=0.6)
  axes.tick_params(labelsize=_FONT)
  # Below the axes, where no line is.
  axes.legend(fontsize=_FONT, frameon=False, loc='upper center', bbox_to_anchor=(0.5, -0.2), ncols=2)


def _read(source):
  if source.endswith('.json'):
    return read_curve(source)
  return curve_of_runs([source], Path(source).name, {})[0]


def main() -> None:
  """Defines the flags and runs."""
  from absl import flags

  from sadnet_jax import command_line

  curves = flags.DEFINE_list('curves', None, 'Files in docs/curves and folders of runs.', required=True)
  # The label of a set contains commas.
  labels = flags.DEFINE_multi_string(
    'set', None, "Like 'CBSD68, 8 images, sigma 50, unclipped'; may be given several times.", required=True
  )
  before = flags.DEFINE_list('before', [], 'RUN:PIXELS for stages whose start is in no given curve.')
  fit = flags.DEFINE_list('fit', [], 'Runs whose last PSNR a line is fitted to.')
  target = flags.DEFINE_float('target', None, 'Print where the fitted line reaches this PSNR in dB.')
  output = flags.DEFINE_string('output', None, 'The picture to write, *.png.', required=True)
  overwrite = flags.DEFINE_bool('overwrite', False, 'Replace an existing file.')

  def command() -> None:
    path = Path(output.value)
    check_output(path, '.png', overwrite=overwrite.value)
    known = {}
    for text in before.value:
      run, _, pixels = text.rpartition(':')
      if not run or not pixels.isdigit():
        raise ValueError(f'--before: {text!r} must be RUN:PIXELS, such as color50_a:85196800')
      known[run] = int(pixels)
    read = [_read(source) for source in curves.value]
    panels = {label: measured_stages(read, label, known) for label in labels.value}
    line = fitted_line(panels[labels.value[0]], fit.value) if fit.value else None
    if target.value is not None and line is None:
      raise ValueError('--target: needs a line; pass the runs to fit with --fit')
    with replacing(path) as temporary:
      temporary.write_bytes(png(draw(panels, line)))
    for label, stages in panels.items():
      for stage in stages:
        print(
          f'{label}: {stage.curve}, {stage.run}: {stage.psnr[-1]:.2f} dB after '
          f'{stage.pixels[-1] / 1e6:,.0f} million pixels'
        )
    if line and target.value is not None:
      needed = 10 ** ((target.value - line[0]) / line[1])
      print(f'by the fitted line, {target.value:g} dB takes {needed / 1e6:,.0f} million pixels')

  command_line.run(command)


if __name__ == '__main__':
  main()
