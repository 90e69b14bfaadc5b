"""What the benchmarks share: options, processes of their own, marks, and the programs they compile."""

import json

import jax
import pytest

from benchmarks import command, common, start_up_once, training_loop
from benchmarks.programs import PROGRAMS, deform_conv_backward, network_forward, training_step
from sadnet_jax.nn.sadnet import SADNet, param_shapes


def test_runs_are_at_least_one(capsys):
  parser = common.make_parser('Measures.', runs=3)
  assert parser.parse_args([]).runs == 3
  with pytest.raises(SystemExit):
    parser.parse_args(['--runs', '0'])
  assert 'got 0, want at least 1' in capsys.readouterr().err


def test_results_tell_their_command_and_machine():
  found = common.describe('growth.py', ['--runs', '2'])
  assert found['command'] == 'python benchmarks/growth.py --runs 2'
  assert (found['device'], found['gpu']) == ('cpu', None)
  assert found['versions']['jax'] == jax.__version__


def test_options_are_those_that_give_the_arguments():
  for script in (training_loop, command):
    arguments = script.parse_arguments(['--json', 'a.json'])
    options = common.options_of(arguments)
    assert '--json' not in options
    again = script.parse_arguments(options)
    assert common.options_of(again) == options
  options = common.options_of(command.parse_arguments(['--megapixels', '0.5', '12', '--repeats', '0']))
  assert ' '.join(options) == (
    '--images test/Kodak24 --model color_blind --megapixels 0.5 12 --sigma_255 25 --repeats 0 '
    '--seam_sigmas_255 5 25 50'
  )
  assert common.describe('denoiser.py', options, ('flax',))['command'].endswith(' 5 25 50')


def test_the_median_counts():
  assert common.summary([3.0, 1.0, 2.0]) == {'seconds': 2.0, 'runs_seconds': [3.0, 1.0, 2.0]}


def test_marks_are_said_and_written(tmp_path, capsys):
  marks = {'a': common.at_most('memory, MB', 220.0, 220), 'b': common.at_most('spread', 0.41, 0.2)}
  common.finish({'marks': marks}, tmp_path / 'a.json')
  assert json.loads((tmp_path / 'a.json').read_text()) == {'marks': marks}
  assert capsys.readouterr().out.splitlines() == [
    'memory, MB: 220.00, want at most 220: reached',
    'spread: 0.41, want at most 0.2: not reached',
  ]


def test_a_fresh_process_has_its_own_cache_and_says_what_it_took(tmp_path):
  found = common.in_fresh_process('start_up_once.py', ['import', str(tmp_path)])
  assert set(found) == {'import_jax', 'import_flax', 'import_sadnet_jax', 'find_devices'}
  assert all(0 < seconds < 60 for seconds in found.values())
  # Importing takes far longer than looking at a CPU.
  assert found['import_jax'] > found['find_devices']
  assert list(tmp_path.iterdir())


def test_a_process_that_fails_ends_the_benchmark(tmp_path):
  (tmp_path / 'file').write_text('')
  options = ['import', str(tmp_path / 'file')]
  with pytest.raises(SystemExit, match=r'start_up_once\.py import .*file: ended with status 1'):
    common.in_fresh_process('start_up_once.py', options)


def test_every_stage_of_a_clock_is_the_time_since_the_last(monkeypatch):
  times = iter([10.0, 11.0, 15.0, 15.5])
  monkeypatch.setattr(start_up_once.time, 'perf_counter', lambda: next(times))
  clock = start_up_once.Clock()
  clock.note('first')
  clock.skip()
  clock.note('second')
  assert clock.parts == {'first': 1.0, 'second': 0.5}


def test_programs_take_what_they_are_made_for():
  model = SADNet()
  forward = network_forward(2, 16, 24)
  assert jax.eval_shape(forward.function, *forward.arguments).shape == (2, 16, 24, model.channels)
  step = training_step(2, 16)
  state, metrics = jax.eval_shape(step.function, *step.arguments)
  assert jax.tree.map(lambda leaf: leaf.shape, state.params) == jax.tree.map(
    lambda leaf: leaf.shape, param_shapes(model)
  )
  assert metrics['loss'].shape == ()
  backward = deform_conv_backward(1, 8, 12, 16)
  gradients = backward.function(*backward.zeros())
  assert [g.shape for g in gradients] == [a.shape for a in backward.arguments[:5]]


def test_programs_have_the_sizes_in_their_names():
  for name, shape in (('forward_480x320', (1, 320, 480, 3)), ('forward_1920x1080', (1, 1080, 1920, 3))):
    assert PROGRAMS[name][1]().arguments[1].shape == shape
  assert PROGRAMS['training_step_4x128'][1]().arguments[1]['clean'].shape == (4, 128, 128, 3)
  for name in ('deform_forward_320x480', 'deform_backward_320x480'):
    assert PROGRAMS[name][1]().arguments[0].shape == (1, 320, 480, 32)
