"""PSNR against pixels: stages that follow each other, across curves."""

import re

import numpy as np
import pytest

from sadnet_jax.nn.sadnet import SADNet
from tests.support.command import ROOT, finish, start
from tests.support.logged_runs import losses, save_checkpoint, small_config, write_log
from tests.support.small_networks import SMALL, random_variables
from tools.plot_pixels import Measured, draw, fitted_line, measured_stages
from tools.plot_training import Curve, Stage, read_curve


def _stage(run, steps, batch_size, start='', sigma_255=50.0, psnr=(27.0, 28.0)):
  settings = {
    'batch_size': batch_size,
    'patch_px': 10,
    'init_from': start,
    'validation_images': 8,
    'noise': {'sigma_255': sigma_255},
  }
  validation = {'A': {'step': [steps // 2, steps], 'psnr': list(psnr)}}
  return Stage(run, steps, settings, {}, validation)


LABEL = 'A, 8 images, sigma 50'


def test_pixels_add_up_over_stages_and_curves():
  one = Curve('one', {}, 1, [_stage('a', 100, 2), _stage('b', 10, 4, 'a')])
  two = Curve(
    'two',
    {},
    1,
    [_stage('c', 20, 1, 'one.safetensors'), _stage('d', 20, 1, 'a'), _stage('e', 20, 1, 'x', 25.0)],
  )
  stages = measured_stages([one, two], LABEL, {'e': 0})
  assert [stage.curve for stage in stages] == ['one', 'one', 'two', 'two']
  assert [stage.pixels.tolist() for stage in stages] == [
    [10_000, 20_000],
    [22_000, 24_000],
    [25_000, 26_000],
    [21_000, 22_000],
  ]
  with pytest.raises(ValueError, match='several runs are named a; rename them'):
    measured_stages([one, Curve('three', {}, 1, [_stage('a', 1, 1)])], LABEL, {})
  with pytest.raises(ValueError, match=r'e: started from x, which is in no curve .* --before=e:PIXELS'):
    measured_stages([one, two], LABEL, {})
  with pytest.raises(
    ValueError, match="nothing was measured on 'B'; choose from A, 8 images, sigma 25; A, 8"
  ):
    measured_stages([one, two], 'B', {'e': 0})


def test_the_line_fits_the_ends_of_the_stages():
  stages = [Measured('a', f'run{n}', np.array([1, 10**n]), np.array([0, 20 + 0.3 * n])) for n in (6, 7, 9)]
  stages.append(Measured('b', 'other', np.array([10**8]), np.array([30])))
  assert fitted_line(stages, ['run6', 'run7', 'run9']) == pytest.approx((20, 0.3))
  for runs in (['run6'], ['run6', 'run8']):
    with pytest.raises(ValueError, match='give two or more of run6, run7, run9, other'):
      fitted_line(stages, runs)


def test_each_set_gets_a_panel_and_each_curve_a_colour():
  measured = {
    'A': [Measured('one', 'a', np.array([1e6, 2e6]), np.array([27, 28]))],
    'B': [
      Measured('two', 'b', np.array([1e6, 2e6]), np.array([40, 41])),
      Measured('one', 'a', np.array([1e6, 2e6]), np.array([39, 40])),
    ],
  }
  first, second = draw(measured, (20.0, 1.0)).axes
  assert [axes.get_title() for axes in (first, second)] == ['A', 'B']
  assert [line.get_color() for line in second.lines] == ['C1', 'C0']
  # The fitted line is of the first set.
  assert [line.get_color() for line in first.lines] == ['C0', '0.6']


def test_the_command_draws_runs(tmp_path):
  params = random_variables(SADNet(**SMALL))['params']
  for name, init_from in (('first', ''), ('second', 'first')):
    run = write_log(
      tmp_path / name, [*losses(40), {'step': 40, 'psnr/A': 27.5 + len(name) / 10, 'psnr/Nam': 40}]
    )
    save_checkpoint(run, params, small_config(init_from=init_from and str(tmp_path / init_from)), 40)
  arguments = (
    '-m',
    'tools.plot_pixels',
    f'--curves={tmp_path / "first"},{tmp_path / "second"}',
    '--set=A, sigma 25, clipped8',
    '--set=Nam',
  )
  output, _ = finish(start(*arguments, f'--output={tmp_path / "a.png"}', '--fit=first,second', '--target=29'))
  assert 'A, sigma 25, clipped8: second, second: 28.10 dB after 21 million pixels' in output
  assert 'Nam: first, first: 40.00 dB after 10 million pixels' in output
  assert 'by the fitted line, 29 dB takes' in output
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def test_the_figure_of_the_documentation_can_be_drawn_again():
  text = (ROOT / 'docs/weights.md').read_text()
  (names,) = re.findall(r'--curves=(\S+)', text)
  curves = [read_curve(ROOT / name.replace('$C', 'docs/curves')) for name in names.split(',')]
  labels, before = re.findall("--set='([^']+)'", text), re.findall(r'--before=(\w+):(\d+)', text)
  assert len(labels) == 4
  for label in labels:
    assert measured_stages(curves, label, {run: int(pixels) for run, pixels in before})
