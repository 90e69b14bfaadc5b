"""The results file of the comparison with PyTorch is read, merged and judged; this needs no torch."""

import json

import pytest

from benchmarks.common import Limits
from benchmarks.pytorch import results
from benchmarks.pytorch.rows import HEAVY_RUNS_ON_CPU, ROWS, chosen_rows

FORWARD, TRAINING = 'forward_1x320x480', 'training_4x128x128'
LARGE, SMALL = 'deform_backward_1x320x480x32', 'deform_backward_4x128x128x32'


def _result(ms):
  return {'ms': ms, 'runs_ms': [ms]}


def _row(key, torch_ms, jax_ms, **variants):
  cost = ROWS[key].cost()
  row = {
    'what': ROWS[key].what,
    'runs': 1,
    'in_turn': True,
    'pytorch': {'eager': _result(torch_ms)} | variants,
    'jax': {'float32': _result(jax_ms)},
    'flops': cost.flops,
    'bytes': cost.bytes,
  }
  return row | {'ratio': results.ratio(row)}


def _results(rows, rate=1e12, **changes):
  machine = {'cpu': 'A', 'cores': 2, 'gpu': None, 'device': 'cpu', 'devices': 1, 'torch_threads': 2}
  code = {
    'python': '3.12.0',
    'versions': {'jax': '1'},
    'commit': '0123',
    'uncommitted_changes': False,
    'seed': 0,
    'commands': [f'python run.py --only {" ".join(rows)}'],
  }
  limits = {'float32': Limits(rate, 1e12).to_json()}
  return {**machine, **code, 'load_before': 0.1, 'limits': limits, 'agreement': {}, 'rows': rows, **changes}


def test_every_row_has_a_key_a_text_and_a_cost():
  assert ROWS[FORWARD].what == 'SADNet forward, 1 image 480x320'
  assert ROWS['forward_16x1080x1920'].what == 'SADNet forward, 16 images 1920x1080'
  assert ROWS[TRAINING].what == 'SADNet training step, 4 patches 128x128'
  assert ROWS[LARGE].what == 'deform_conv2d 1x320x480x32, backward'
  assert ROWS[LARGE].cost().flops == 2 * ROWS['deform_forward_1x320x480x32'].cost().flops
  # 65,536 pixels in three passes, against 153,600 in one.
  assert ROWS[TRAINING].cost().flops / ROWS[FORWARD].cost().flops == pytest.approx(3 * 65536 / 153600)


def test_heavy_rows_run_on_a_cpu_only_on_request():
  heavy = {key for key, row in ROWS.items() if row.heavy}
  assert heavy == {'training_16x128x128', 'forward_16x320x480', 'forward_1x1080x1920', 'forward_16x1080x1920'}
  assert {row.key for row in chosen_rows(None, 'cpu')} == set(ROWS) - heavy
  assert {row.key for row in chosen_rows(None, 'gpu')} == set(ROWS)
  (row,) = chosen_rows(['forward_1x1080x1920'], 'cpu')
  assert (row.runs(10, 'cpu'), row.runs(1, 'cpu'), row.runs(10, 'gpu')) == (HEAVY_RUNS_ON_CPU, 1, 10)
  assert ROWS[FORWARD].runs(10, 'cpu') == 10


def test_each_precision_has_its_limit():
  row = _row(FORWARD, 300, 100)
  row['jax'] |= {'bfloat16': _result(50), 'tf32': {'not_run': 'why'}}
  rates = {'float32': Limits(1e12, 1e9), 'bfloat16': Limits(1e12, 1e9), 'tf32': Limits(1e9, 1e12)}
  found = results.with_limits(row, rates)
  assert found['limit_ms'] == found['jax']['float32']['limit_ms'] == pytest.approx(row['bytes'] / 1e6)
  assert found['limit_share'] == pytest.approx(row['bytes'] / 1e6 / 100)
  assert found['jax']['bfloat16']['limit_share'] == pytest.approx(row['bytes'] / 2 / 1e6 / 50)
  assert found['jax']['tf32'] == {'not_run': 'why', 'limit_ms': row['flops'] / 1e6, 'limit_share': None}


def test_a_run_of_some_rows_keeps_the_others(tmp_path):
  path = tmp_path / 'results.json'
  assert results.read_results(path) is None
  first = results.merge(None, _results({TRAINING: _row(TRAINING, 8, 4)}, rate=1e12))
  results.write_results(path, first)
  old = results.read_results(path)
  assert old == first
  new = _results({FORWARD: _row(FORWARD, 9, 3), TRAINING: _row(TRAINING, 8, 2)}, rate=2e12, load_before=0.9)
  results.check_same_environment(old, new, path)
  both = results.merge(old, _results({FORWARD: _row(FORWARD, 9, 3)}, rate=2e12))
  assert list(both['rows']) == [FORWARD, TRAINING]
  assert both['commands'] == [f'python run.py --only {key}' for key in (TRAINING, FORWARD)]
  # The higher rate is the machine's, for the old row too.
  assert both['limits']['float32']['flops_per_second'] == 2e12
  assert both['rows'][TRAINING]['limit_ms'] == pytest.approx(first['rows'][TRAINING]['limit_ms'] / 2)
  assert results.merge(both, _results({}, rate=1e12))['limits'] == both['limits']
  assert results.merge(old, new)['rows'][TRAINING]['ratio'] == 4


@pytest.mark.parametrize(
  'change',
  [{'commit': '4567'}, {'uncommitted_changes': True}, {'cpu': 'B'}, {'versions': {'jax': '2'}}, {'seed': 1}],
)
def test_rows_of_another_environment_are_refused(tmp_path, change):
  (name,) = change
  with pytest.raises(
    ValueError, match=rf'results\.json: its rows were measured with {name} .*; only rows of the same'
  ):
    results.check_same_environment(_results({}), _results({}, **change), tmp_path / 'results.json')


@pytest.mark.parametrize(
  ('content', 'match'),
  [
    ('{', 'not JSON'),
    ('[]', 'not results of this script'),
    (json.dumps({'rows': {}}), 'not results of this script'),
    (json.dumps(_results({'network_forward': {}})), 'not results of this script'),
  ],
)
def test_other_files_are_refused(tmp_path, content, match):
  path = tmp_path / 'other.json'
  path.write_text(content)
  with pytest.raises(ValueError, match=rf'other\.json: {match}'):
    results.read_results(path)


def test_targets_on_a_cpu():
  growth = ROWS[LARGE].shape[1] * ROWS[LARGE].shape[2] / (4 * 128 * 128)
  onnx = {'onnx_runtime': {'float32': _result(99)}}
  rows = {
    FORWARD: _row(FORWARD, 300, 100, compile_bfloat16=_result(150)) | onnx,
    TRAINING: _row(TRAINING, 399, 100, channels_last_bfloat16=_result(150), compile={'not_run': 'why'}),
    LARGE: _row(LARGE, 1, 100 * growth * 1.25),
    SMALL: _row(SMALL, 1, 100),
  }
  found = results.targets(rows, 'cpu')
  assert {
    name: (target['value'], target['sense'], target['target'], target['reached'])
    for name, target in found.items()
  } == {
    FORWARD: (3.0, 'at least', 3, True),
    f'{FORWARD}_fastest': (0.99, 'at least', 1, False),
    TRAINING: (3.99, 'at least', 4, False),
    f'{TRAINING}_fastest': (1.5, 'at least', 1, True),
    'deform_backward_growth': (pytest.approx(1.25), 'at most', 1.5, True),
  }
  rows[LARGE]['jax']['float32'] = _result(100 * growth * 1.51)
  assert not results.targets(rows, 'cpu')['deform_backward_growth']['reached']
  del rows[SMALL]
  rows[FORWARD]['pytorch']['eager'] = {'not_run': 'why'}
  assert set(results.targets(rows, 'cpu')) == {f'{FORWARD}_fastest', TRAINING, f'{TRAINING}_fastest'}


def test_targets_on_a_gpu_compare_the_same_precision():
  row = _row(FORWARD, 4, 2, compile=_result(3), tf32=_result(1.5), compile_tf32={'not_run': 'why'})
  row['pytorch'] |= {'channels_last': _result(1.9), 'channels_last_tf32': _result(1.2)}
  row['jax']['tf32'] = _result(1)
  rows = {FORWARD: row, LARGE: _row(LARGE, 1, 1)}
  found = results.targets(rows, 'gpu')
  assert {name: (target['value'], target['reached']) for name, target in found.items()} == {
    f'{FORWARD}_float32_eager': (2.0, True),
    f'{FORWARD}_float32_compile': (1.5, True),
    f'{FORWARD}_float32_fastest': (0.95, False),
    f'{FORWARD}_float32_ms': (2, True),
    f'{FORWARD}_tf32_eager': (1.5, False),
    f'{FORWARD}_tf32_fastest': (1.2, True),
    f'{FORWARD}_tf32_ms': (1, True),
  }


def test_the_table_shows_what_was_not_run():
  row = _row(FORWARD, 300, 100, compile={'not_run': 'no compiler'}, tf32=_result(200))
  row['jax']['tf32'] = _result(50)
  rates = dict.fromkeys(('float32', 'tf32'), Limits(1e13, 1e13))
  lines = results.table_lines(results.with_limits(row, rates))
  assert lines[0].split()[-6:] == ['300.00', '100.00', '3.00', '9.49', '9%', '1']
  assert lines[1:] == [
    '  PyTorch torch.compile: not run: no compiler',
    '  PyTorch tf32: 200.00 ms',
    '  JAX tf32: 50.00 ms, 19% of its limit',
  ]
  row = _row(FORWARD, 300, 100)
  row['pytorch']['eager'] = row['jax']['float32'] = {'not_run': 'needs about 9.0 GiB; 8.0 GiB are free'}
  row['ratio'] = None
  lines = results.table_lines(results.with_limits(row, rates))
  assert lines[0].split()[-8:] == ['not', 'run', 'not', 'run', 'none', '9.49', 'none', '1']
  assert lines[1:] == [
    f'  {name}: not run: needs about 9.0 GiB; 8.0 GiB are free' for name in ('PyTorch eager', 'JAX float32')
  ]
