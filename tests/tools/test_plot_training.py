"""The training curve: its data is what the runs logged, and its picture shows it."""

import dataclasses
import io
import json
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.training.run_folder import read_metrics
from sadnet_jax.weights.index import FOLDER
from tests.support.command import ROOT, finish, start
from tests.support.logged_runs import losses, save_checkpoint, small_config, write_log
from tests.support.small_networks import SMALL, random_variables
from tools.plot_training import Curve, Stage, curve_of_runs, draw, pixels_seen, png, read_curve, smoothed

PARAMS = random_variables(SADNet(**SMALL))['params']


def _column(lines, name):
  return [line[name] for line in lines]


def _curve(*runs):
  return curve_of_runs(runs, 'small', {})[0]


def test_pixels_are_those_of_all_stages():
  # 6,000 steps of four patches of 96x96, then 3,400 of four of 128x128.
  assert pixels_seen(FOLDER, 'color_50') == 6000 * 4 * 96**2 + 3400 * 4 * 128**2
  assert pixels_seen(FOLDER, 'unknown') is None


def test_the_data_is_that_of_the_log(tmp_path):
  lines = losses(40)
  validated = {'step': 20, 'psnr/a': 27.25, 'psnr/b': 28.5}
  run = write_log(tmp_path / 'run', [*lines[:2], validated, *lines[2:], {'step': 40, 'psnr/a': 27.5}])
  curve = _curve(run)
  (stage,) = curve.stages
  assert (curve.name, curve.interval_steps, stage.run, stage.steps) == ('small', 10, 'run', 40)
  assert stage.training['step'] == [10, 20, 30, 40]
  for name in ('loss', 'learning_rate'):
    np.testing.assert_allclose(stage.training[name], _column(lines, name), rtol=1e-6)
  assert stage.validation == {
    'a': {'step': [20, 40], 'psnr': [27.25, 27.5]},
    'b': {'step': [20], 'psnr': [28.5]},
  }
  assert stage.settings is None


def test_a_long_run_is_averaged_over_intervals(tmp_path):
  lines = losses(4003, every=3)
  curve = _curve(write_log(tmp_path / 'run', lines))
  assert curve.interval_steps == 10
  training = curve.stages[0].training
  means = []
  for first in range(1, 4003, 10):
    in_interval = [line for line in lines if first <= line['step'] < first + 10]
    means.append([np.mean(_column(in_interval, name)) for name in ('step', 'loss', 'learning_rate')])
  for got, expected in zip(training.values(), np.transpose(means), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_curve_has_no_signature_of_the_url_that_its_run_started_from(tmp_path):
  run = write_log(tmp_path / 'run', losses(30))
  url = 'https://jane:key@host/weights/first.safetensors?X-Signature=5ec#sha256=ab'
  save_checkpoint(run, PARAMS, small_config(init_from=url), 30)
  assert _curve(run).stages[0].settings['init_from'] == 'first.safetensors'


def test_a_run_counts_up_to_its_checkpoint_and_half_lines_do_not(tmp_path):
  first = write_log(tmp_path / 'first', losses(40), end='{"step": 45, "psnr/a": 3}\n\0\0\n{"step": 50, "lo')
  save_checkpoint(first, PARAMS, small_config(seed=3, init_from='/home/me/runs/zero/checkpoints/5'), 20)
  # Two steps after the last line that was written.
  save_checkpoint(first, PARAMS, small_config(log_every=10), 32)
  second = write_log(tmp_path / 'second', losses(30))
  save_checkpoint(second, PARAMS, small_config(init_from=str(first)), 30)
  curve, params = curve_of_runs([first / 'checkpoints' / '20', second], 'small', {})
  assert [(stage.run, stage.steps, len(stage.training['loss'])) for stage in curve.stages] == [
    ('first', 20, 2),
    ('second', 30, 3),
  ]
  first_settings, second_settings = (stage.settings for stage in curve.stages)
  assert (first_settings['seed'], first_settings['init_from']) == (3, 'zero')
  assert (second_settings['seed'], second_settings['init_from']) == (0, 'first')
  assert second_settings['validation_images'] == 0
  assert second_settings['patch_px'] == 128
  assert second_settings['optimizer'] == small_config()['optimizer']
  assert '/home/me' not in curve.to_json()
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
  assert _curve(first).stages[0].training['step'] == [10, 20, 30]
  assert _column(read_metrics(first), 'step') == [10, 20, 30, 40, 45]
  with pytest.raises(ValueError, match='first started from no weights, not from second; give the runs'):
    _curve(second, first)
  third = write_log(tmp_path / 'third', losses(30))
  save_checkpoint(third, PARAMS, small_config(init_from=str(second)), 30)
  assert [stage.run for stage in _curve(second, third).stages] == ['second', 'third']
  with pytest.raises(ValueError, match='--curve: third started from second, not from first; give the runs'):
    _curve(first / 'checkpoints' / '20', third, second)
  fourth = write_log(tmp_path / 'fourth', losses(30))
  save_checkpoint(fourth, PARAMS, small_config(init_from=f'{first}/checkpoints/20'), 30)
  assert [stage.steps for stage in _curve(first / 'checkpoints' / '20', fourth).stages] == [20, 30]
  with pytest.raises(
    ValueError, match='fourth started from step 20 of first, not 32; give first/checkpoints/20'
  ):
    _curve(first, fourth)


def test_a_stored_curve_stands_for_runs_that_are_gone(tmp_path):
  first = write_log(tmp_path / 'small', losses(40))
  save_checkpoint(first, PARAMS, small_config(), 40)
  second = write_log(tmp_path / 'second', losses(30))
  save_checkpoint(second, PARAMS, small_config(init_from=str(first)), 30)
  (tmp_path / 'small.json').write_text(_curve(first, second).to_json())
  # It began from the published weights, which have the name of the first run.
  third = write_log(tmp_path / 'third', losses(20))
  save_checkpoint(third, PARAMS, small_config(init_from='small'), 20)
  curve, params = curve_of_runs([tmp_path / 'small.json', third], 'small', {'commit': 'abc'})
  assert curve.stages[:2] == _curve(first, second).stages
  assert [(stage.run, stage.steps) for stage in curve.stages] == [
    ('small', 40),
    ('second', 30),
    ('third', 20),
  ]
  assert curve.stages[2] == _curve(third).stages[0]
  assert curve.about == {'commit': 'abc'}
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
  # Publishing it again replaces what is stored of it.
  (tmp_path / 'small.json').write_text(curve.to_json())
  again, _ = curve_of_runs([tmp_path / 'small.json', third], 'small', {'commit': 'abc'})
  assert again == curve
  save_checkpoint(third, PARAMS, small_config(init_from=''), 30)
  with pytest.raises(ValueError, match='third started from no weights, not from second'):
    curve_of_runs([tmp_path / 'small.json', third], 'small', {})
  with pytest.raises(ValueError, match='--curve: give the folder of a run'):
    curve_of_runs([tmp_path / 'small.json'], 'small', {})


def test_without_checkpoints_a_run_counts_up_to_its_last_line_or_the_given_step(tmp_path):
  run = write_log(tmp_path / 'run', losses(40), end='{"step": 50')
  assert _curve(run).stages[0].steps == 40
  assert _curve(run / 'checkpoints' / '20').stages[0].training['step'] == [10, 20]
  with pytest.raises(
    ValueError, match=r'jsonl: has 4 lines with .*, the last at step 40; lines up to step 50 are needed'
  ):
    _curve(run / 'checkpoints' / '50')


def test_runs_without_a_curve_are_refused(tmp_path):
  with pytest.raises(ValueError, match='--curve: give the folder of a run'):
    _curve()
  with pytest.raises(ValueError, match=r'metrics\.jsonl: cannot be read \(No such file'):
    _curve(tmp_path)
  write_log(tmp_path, [{'step': 5, 'psnr/a': 27.0}])
  with pytest.raises(ValueError, match=r'has 0 lines with step, loss, learning_rate, .* up to step 5'):
    _curve(tmp_path)


def test_a_curve_is_read_as_it_was_written(tmp_path):
  run = write_log(tmp_path / 'run', [*losses(40), {'step': 40, 'psnr/a': 27.5}])
  save_checkpoint(run, PARAMS, small_config(), 40)
  curve, _ = curve_of_runs([run], 'small', {'commit': 'abc [1,  2]'})
  path = tmp_path / 'small.json'
  path.write_text(curve.to_json())
  again = read_curve(path)
  assert again.to_json() == curve.to_json()
  assert (again.about, again.stages[0].validation) == (curve.about, curve.stages[0].validation)
  assert '    "step": [ 10, 20, 30, 40 ],' in path.read_text().splitlines()
  assert png(draw(again)) == png(draw(curve))
  for text in ('{', '[]', '{"stages": 3}', json.dumps({**json.loads(curve.to_json()), 'colour': 'red'})):
    path.write_text(text)
    with pytest.raises(ValueError, match=r'small\.json: not a curve written by publish_weights'):
      read_curve(path)


def test_the_moving_mean_is_centred_and_short_at_the_start():
  steps, values = np.array([3, 4, 8, 11, 12, 13, 30]), np.random.default_rng(0).normal(size=7)
  got = smoothed(steps, values, 10)
  for i, step in enumerate(steps):
    half = min(5, step - 3)
    near = [value for at, value in zip(steps, values, strict=True) if abs(at - step) <= half]
    assert got[i] == pytest.approx(np.mean(near))
  assert got[0] == values[0]


def _two_stages():
  """Stages of 40 and 20 steps; the second has an additional validation set."""
  stages = []
  for run, steps, sets in (('first', 40, ('a',)), ('second', 20, ('a', 'b'))):
    lines = losses(steps, every=2)
    training = {name: _column(lines, name) for name in ('step', 'loss', 'learning_rate')}
    validation = {name: {'step': [10, 20], 'psnr': [27.0, 28.0]} for name in sets}
    stages.append(Stage(run, steps, None, training, validation))
  return Curve('small', {}, 2, stages)


def test_stages_are_drawn_one_after_the_other():
  curve = _two_stages()
  first, second = curve.stages
  loss, psnr, rate = draw(curve).axes
  light, smooth, light_2, smooth_2, border = (line.get_xydata() for line in loss.lines)
  np.testing.assert_allclose(light, np.transpose([first.training['step'], first.training['loss']]))
  np.testing.assert_allclose(light_2[:, 0], np.arange(42, 61, 2))
  np.testing.assert_allclose(light_2[:, 1], second.training['loss'])
  # 5 of 30 points of 60 steps, rounded up.
  for drawn, stage in ((smooth, first), (smooth_2, second)):
    np.testing.assert_allclose(drawn[:, 1], smoothed(stage.training['step'], stage.training['loss'], 10))
  assert [text.get_text() for text in loss.get_legend().get_texts()] == [
    'logged steps, mean of every 2 (from 0.27 at step 2)',
    'moving mean, 10 steps',
  ]
  assert set(border[:, 0]) == {40}
  a, b = (line.get_xydata() for line in psnr.lines[:2])
  np.testing.assert_array_equal(a[:, 0], [10, 20, np.nan, 50, 60, np.nan])
  np.testing.assert_array_equal(a[:, 1], [27, 28, np.nan, 27, 28, np.nan])
  np.testing.assert_array_equal(b[~np.isnan(b)], [50, 27, 60, 28])
  rates = np.concatenate([line.get_ydata() for line in rate.lines[:2]])
  np.testing.assert_array_equal(rates, first.training['learning_rate'] + second.training['learning_rate'])
  assert rate.get_xlim() == (0, 60)
  assert loss.get_title() == 'small: 60 steps in 2 stages'
  assert [text.get_text() for text in loss.texts] == ['stage 1', '2']


def test_labels_give_what_is_known_of_the_measurement():
  curve = _two_stages()
  all_images, eight = (
    {'loss': loss, 'noise': {'sigma_255': 50.0}, 'validation_images': images}
    for loss, images in (('l1', 0), ('l2', 8))
  )
  for settings, label, sets in (
    ((None, None), 'training loss', ['a', 'b']),
    ((all_images, all_images), 'training loss (l1)', ['a, sigma 50', 'b, sigma 50']),
    (
      (all_images, eight),
      'training loss',
      ['a, sigma 50', 'a, 8 images, sigma 50', 'b, 8 images, sigma 50'],
    ),
    ((None, {**eight, 'noise': {'sigma_255': 0.0}}), 'training loss', ['a', 'a, 8 images', 'b, 8 images']),
    (
      # The second stage was measured with clipped noise.
      [{**eight, 'noise': {'sigma_255': 50.0, 'clip': share}} for share in (0.5, 1.0)],
      'training loss (l2)',
      [
        'a, 8 images, sigma 50, unclipped',
        'a, 8 images, sigma 50, clipped8',
        'b, 8 images, sigma 50, clipped8',
      ],
    ),
    (
      [{**all_images, 'validation_pairs': ['a']}, all_images],
      'training loss (l1)',
      ['a', 'a, sigma 50', 'b, sigma 50'],
    ),
  ):
    stages = [dataclasses.replace(s, settings=new) for s, new in zip(curve.stages, settings, strict=True)]
    loss, psnr, _ = draw(dataclasses.replace(curve, stages=stages)).axes
    assert loss.get_ylabel() == label
    assert [text.get_text() for text in psnr.get_legend().get_texts()] == sets


def test_sets_of_real_noise_have_no_sigma_and_other_held_out_scenes_another_line():
  measured = {name: {'step': [10], 'psnr': [30.0]} for name in ('held_out', 'Nam', 'PolyU', 'Kodak24')}
  stages = [
    Stage(
      'run',
      10,
      {'noise': {'sigma_255': 25.0, 'clip': 1.0}, 'validation_images': 8, 'held_out': scenes, 'loss': 'l1'},
      {'step': [10], 'loss': [0.1], 'learning_rate': [1e-3]},
      measured,
    )
    for scenes in (['a', 'b'], ['c', 'd'])
  ]
  figure = draw(Curve('small', {}, 10, stages))
  labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
  assert labels == [
    'held_out, 8 images, 2 scenes',
    'Nam, 8 images',
    'PolyU, 8 images',
    'Kodak24, 8 images, sigma 25, clipped8',
    'held_out, 8 images, 2 scenes',
  ]
  # The labels of five lines leave the panels their width.
  png(figure)
  assert figure.axes[1].get_position().width > 0.8


def test_one_stage_without_validation_has_two_panels():
  (first, _), curve = _two_stages().stages, _two_stages()
  figure = draw(dataclasses.replace(curve, stages=[dataclasses.replace(first, validation={})]))
  loss, rate = figure.axes
  assert (len(loss.lines), len(rate.lines), len(loss.texts)) == (2, 1, 0)
  assert loss.get_title() == 'small: 40 steps'


def test_a_loss_that_never_changes_is_drawn():
  stage = Stage('run', 5, None, {'step': [5], 'loss': [0.1], 'learning_rate': [1e-3]}, {})
  low, high = draw(Curve('small', {}, 5, [stage])).axes[0].get_ylim()
  assert low < 0.1 < high


def test_lines_of_several_sets_keep_their_colours_in_the_picture():
  picture = png(draw(read_curve(ROOT / 'docs' / 'curves' / 'photo_fast.json')))
  pixels = np.asarray(Image.open(io.BytesIO(picture)).convert('RGB')).reshape(-1, 3).astype(int)
  # Orange, green and red, as Matplotlib defines them.
  for colour in ([255, 127, 14], [44, 160, 44], [214, 39, 40]):
    assert np.abs(pixels - colour).max(axis=1).min() < 30


def test_the_picture_is_small_and_reproducible(tmp_path):
  rng = np.random.default_rng(0)
  lines = [{**line, 'loss': line['loss'] + rng.normal()} for line in losses(50_000, every=100)]
  lines += [{'step': step, 'psnr/a': 28 + rng.normal()} for step in range(1000, 50_001, 1000)]
  curve = _curve(write_log(tmp_path / 'run', lines))
  assert len(curve.stages[0].training['loss']) == 500
  picture = png(draw(curve))
  assert len(picture) < 60_000
  assert picture == png(draw(curve))
  pixels = np.asarray(Image.open(io.BytesIO(picture)).convert('RGB'))
  assert pixels.shape == (732, 960, 3)
  for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
    assert (edge == 255).all()
  assert len(curve.to_json()) < 25_000


def test_without_matplotlib_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(ValueError, match=r"Matplotlib is missing; .* '\.\[plot\]'"):
    draw(_two_stages())


def test_the_command_draws_runs_and_stored_curves(tmp_path):
  runs = [write_log(tmp_path / name, losses(steps)) for name, steps in (('first', 40), ('second', 60))]
  curve, _ = curve_of_runs(runs, 'second', {})
  (tmp_path / 'stored.json').write_text(curve.to_json())
  (tmp_path / 'existing.png').write_text('kept')
  commands = [
    (','.join(map(str, runs)), 'a.png', None),
    (tmp_path / 'stored.json', 'b.png', None),
    (runs[0], 'existing.png', 'existing.png exists; choose another name or pass --overwrite'),
  ]
  started = [
    (start('-m', 'tools.plot_training', f'--curve={curves}', f'--output={tmp_path / output}'), output, error)
    for curves, output, error in commands
  ]
  for process, output, error in started:
    printed, errors = finish(process, succeeds=error is None)
    if error is None:
      assert f'{output}: 100 steps in 2 stage(s)' in printed
      assert (tmp_path / output).read_bytes() == png(draw(curve))
    else:
      assert error in errors
  assert (tmp_path / 'existing.png').read_text() == 'kept'
