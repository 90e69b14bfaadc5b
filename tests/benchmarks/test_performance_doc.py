"""docs/PERFORMANCE.md is what the committed results give, and its tables say what the results say."""

import json

import pytest

from benchmarks import performance_tables, report
from benchmarks.pytorch.rows import ROWS
from benchmarks.report import SECTIONS
from sadnet_jax import pretrained
from sadnet_jax.denoise.denoiser import OVERLAP_PX
from tests.support.command import ROOT, finish, start

RATES = {'flops_per_second': 4.6e11, 'bytes_per_second': 2.1e10}
MACHINE = {
  'cpu': 'A',
  'cores': 2,
  'device': 'cpu',
  'gpu': None,
  'python': '3.11.7',
  'versions': {'jax': '0.10.2', 'tensorflow': None},
  'commit': '0123456789',
  'uncommitted_changes': False,
}


def _row(what, pytorch, jax, **changes):
  return {'what': what, 'runs': 5, 'in_turn': True, 'pytorch': pytorch, 'jax': jax} | changes


def _against_pytorch(**changes):
  ours = {'ms': 500.0, 'limit_ms': 250.0, 'limit_share': 0.5}
  rows = {
    'forward_1x320x480': _row(
      'forward', {'eager': {'ms': 2000.0}, 'compile': {'not_run': 'no compiler'}}, {'float32': ours}
    ),
    'deform_forward_1x40x60x256': _row('operator', {'eager': {'ms': 10.0}}, {'float32': {**ours, 'ms': 4.0}}),
  }
  return {
    **MACHINE,
    'seed': 0,
    'limits': {'float32': RATES},
    'agreement': {
      'forward_max_abs_difference': 1.7e-6,
      'forward_max_abs': 2.537,
      'gradient_relative_difference': 1.5e-4,
    },
    'rows': rows,
    'marks': {
      'forward_1x320x480': {
        'what': 'forward: times as fast',
        'value': 4.0,
        'want': 3.0,
        'sense': 'at least',
        'reached': True,
      }
    },
    **changes,
  }


def _section(stem):
  return next(section for section in SECTIONS if section.stem == stem)


@pytest.fixture
def results(tmp_path, monkeypatch):
  """An empty folder in place of the committed results."""
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  monkeypatch.setattr(report, 'ROOT', tmp_path.parent)
  return tmp_path


def test_the_page_is_what_the_files_give():
  finish(start(ROOT / 'benchmarks' / 'performance_doc.py', '--check'))


def test_tiles_were_measured_with_the_overlap_that_is_the_default():
  content = json.loads((ROOT / 'benchmarks' / 'results' / 'denoiser_cpu.json').read_text())
  assert content['default_overlap_px'] == OVERLAP_PX
  assert content['model'] in pretrained.available()
  measured = max(row['overlap_px'] for row in content['seams'] if row['overlap_px'] <= OVERLAP_PX)
  largest = {row['sigma_255']: row['largest'] for row in content['seams'] if row['overlap_px'] == measured}
  assert measured > OVERLAP_PX - 16
  assert len(largest) == 3
  assert max(largest.values()) < 1


def test_every_script_of_a_section_is_there():
  for section in SECTIONS:
    assert (ROOT / 'benchmarks' / f'{section.stem}.py').is_file()


@pytest.mark.parametrize(
  ('value', 'text'),
  [(0, '0'), (1262.5, '1262'), (99.96, '100.0'), (8.2, '8.20'), (0.05824, '0.0582'), (-1.234, '-1.23')],
)
def test_figures_have_three_digits_that_count(value, text):
  assert performance_tables.figure(value) == text


def test_beside_pytorch_every_ratio_is_of_times_in_the_same_precision():
  lines = performance_tables.beside_pytorch(_against_pytorch())
  assert lines[4] == (
    '| milliseconds | PyTorch eager | torch.compile | JAX | PyTorch eager / JAX | torch.compile / JAX '
    '| limit | limit / JAX | runs |'
  )
  assert lines[6] == '| forward | 2000 |  | 500 | 4.00 |  | 250 | 50% | 5 |'
  assert lines[7] == '| operator | 10.0 |  | 4.00 | 2.50 |  | 250 | 50% | 5 |'
  assert lines[9:] == ['- forward, torch.compile: not run: no compiler']
  assert 'differed by 1.7e-06 at most' in lines[0]


def test_rows_that_were_not_measured_are_named():
  (*_, empty, last) = performance_tables.against_pytorch(_against_pytorch())
  assert empty == ''
  assert last.startswith('Not measured: deform_conv2d 1x320x480x32, forward; ')
  assert last.endswith('; SADNet forward, 16 images 1920x1080.')
  assert ROWS['forward_1x320x480'].what not in last
  everything = {key: _row(row.what, {}, {}) for key, row in ROWS.items()}
  lines = performance_tables.against_pytorch(_against_pytorch(rows=everything))
  assert not any('Not measured' in line for line in lines)


def test_each_precision_has_a_table_of_its_own():
  pytorch = {
    'eager': {'ms': 30.0},
    'compile': {'ms': 20.0},
    'tf32': {'ms': 12.0},
    'channels_last_tf32': {'ms': 9.0},
    'compile_tf32': {'ms': 8.0},
  }
  jax = {
    'float32': {'ms': 10.0, 'limit_ms': 5.0, 'limit_share': 0.5},
    'tf32': {'not_run': 'out of memory', 'limit_ms': 2.0, 'limit_share': None},
  }
  limits = {'float32': RATES, 'tf32': RATES}
  rows = {'forward_1x320x480': _row('forward', pytorch, jax, in_turn=False)}
  lines = performance_tables.beside_pytorch(_against_pytorch(limits=limits, rows=rows))
  assert '| forward | 30.0 | 20.0 | 10.0 | 3.00 | 2.00 | 5.00 | 50% | 5, not in turn |' in lines
  assert '| forward | 12.0 | 9.00 | 8.00 |  |  |  |  | 2.00 |  | 5, not in turn |' in lines
  assert lines[-1] == '- forward, JAX: not run: out of memory'


def test_start_up():
  timed = {'seconds': 1.25, 'runs_seconds': [1.0, 1.25, 1.5]}
  rows = {
    'a': {'what': 'import', 'no_cache': timed},
    'b': {'what': 'call', 'no_cache': timed, 'filled_cache': {'seconds': 0.06}, 'limit_seconds': 0.5},
  }
  lines = performance_tables.start_up({'rows': rows})
  assert lines[2:] == ['| import | 1.25 |  |  | 3 |', '| call | 1.25 | 0.0600 | 0.500 | 3 |']


def test_memory_of_a_device_that_does_not_tell_has_no_column():
  found = {
    'temporary': 325_260_420,
    'argument': 18_782_092,
    'output': 1_843_200,
    'resident_compiled': 207_300_000,
    'resident': 619_200_000,
    'device': None,
  }
  rows = {'a': {'what': 'forward', 'bytes': found, 'limit_bytes': 172_100_000}}
  head, _, row = performance_tables.memory_use({'rows': rows})
  assert 'device' not in head
  assert row == '| forward | 325 | 18.8 | 1.84 | 207 | 619 | 172 |'
  rows['b'] = {'what': 'step', 'bytes': found | {'device': 10**9, 'resident': None}}
  head, *_, last = performance_tables.memory_use({'rows': rows})
  assert 'device' in head
  assert last == '| step | 325 | 18.8 | 1.84 | 207 |  | 1000 |  |'


def test_growth():
  row = {
    'what': '960x640',
    'pixels': 614_400,
    'tiles': 2,
    'tile_size': [640, 576],
    'pixels_of_tiles': 737_280,
    'tiled': {'seconds': 4.1, 'us_per_pixel': 6.67, 'runs_seconds': [4.0, 4.1, 4.2]},
    'whole': {'not_run': 'needs 28.4 GB, got 20.0 GB free'},
    'limit_ms': 1830.0,
    'limit_share': 0.446,
  }
  lines = performance_tables.growth({'rows': {'960x640': row}})
  assert lines[2] == '| 960x640 | 2 of 576x640 | 1.20 | 4.10 | 6.67 |  | 2.98 | 45% | 3 |'
  assert lines[4:] == ['- 960x640, whole: not run: needs 28.4 GB, got 20.0 GB free']


def test_marks_say_where_they_were_measured():
  content = _against_pytorch()
  missed = content['marks']['forward_1x320x480'] | {'value': 2.0, 'reached': False}
  rows = performance_tables.marks({'CPU, `a`': content, 'CPU, `b`': {'marks': {'x': missed}}, 'c': {}})[2:]
  assert rows == [
    '| forward: times as fast | CPU, `a` | 4.00 | at least 3 | yes |',
    '| forward: times as fast | CPU, `b` | 2.00 | at least 3 | **no** |',
  ]


def test_commands_that_the_results_do_not_tell_are_those_that_give_them():
  content = _against_pytorch()
  section = _section('against_pytorch')
  script = 'python benchmarks/against_pytorch.py'
  two = f'{script} --runs 5 --seed 0 --only forward_1x320x480 deform_forward_1x40x60x256'
  assert section.command(content) == two
  content['rows']['training_16x128x128'] = _row('step', {}, {}, runs=3)
  assert section.command(content) == f'{two} && {script} --runs 3 --seed 0 --only training_16x128x128'
  light = {key: _row('row', {}, {}) for key, row in ROWS.items() if not row.heavy}
  assert section.command(content | {'rows': light}) == f'{script} --runs 5 --seed 0'
  light['forward_1x320x480'] = _row('row', {}, {}, runs=15)
  again = f'{script} --runs 15 --seed 0 --only forward_1x320x480'
  assert section.command(content | {'rows': light}) == f'{script} --runs 5 --seed 0 && {again}'
  assert _section('growth').command({'command': 'python benchmarks/growth.py --runs 2'}).endswith('--runs 2')


def test_the_page_says_what_was_not_measured_and_how_to(results):
  text = report.page('Opening.\n\n## Tried\n\nAll.\n')
  assert text.count('Not measured: no GPU was at hand.') == len(SECTIONS)
  for section in SECTIONS:
    assert f'### {section.title}, CPU\n\nNot measured: {section.why_not_on_cpu}.' in text
  assert '`python benchmarks/growth.py --json /tmp/growth_gpu.json`' in text
  assert text.count('copy it to `benchmarks/results`') == 1
  assert '--json benchmarks' not in text
  assert 'None of them is measured.\n\nOn a GPU, not measured: forward and training at least 2 times' in text
  assert text.index('Opening.') < text.index('## What was to be reached')
  assert text.endswith('_gpu.json`\n\n## Tried\n\nAll.\n')


def test_the_page_has_tables_of_what_was_measured(results):
  (results / 'against_pytorch_cpu.json').write_text(json.dumps(_against_pytorch()))
  gpu = _against_pytorch(device='gpu', gpu='NVIDIA X')
  (results / 'against_pytorch_gpu.json').write_text(json.dumps(gpu))
  text = report.page('Opening.')
  assert text.count('Not measured: no GPU was at hand.') == len(SECTIONS) - 1
  assert 'On a GPU, not measured' not in text
  assert text.count('| forward | 2000 |') == 2
  assert 'float32: 460 GFLOP/s in matrix products, 21.0 GB/s read and written.' in text
  machine = '2 cores, A, {}; Python 3.11.7, jax 0.10.2; commit 0123456.'
  assert machine.format('no GPU') in text
  assert machine.format('NVIDIA X') in text


def test_results_of_an_earlier_form_of_the_script_do_not_count(results):
  old = {'rows': {'network_forward': {'what': 'forward', 'pytorch_ms': 1.0, 'jax_ms': 1.0, 'ratio': 1.0}}}
  (results / 'against_pytorch_cpu.json').write_text(json.dumps(MACHINE | old))
  assert report.read(_section('against_pytorch'), 'cpu') is None


@pytest.mark.parametrize('changes', [{'uncommitted_changes': True}, {'commit': None}])
def test_results_of_code_in_no_commit_are_refused(results, changes):
  (results / 'against_pytorch_cpu.json').write_text(json.dumps(_against_pytorch(**changes)))
  with pytest.raises(
    SystemExit, match=r'against_pytorch_cpu\.json: got results of code that is in no commit'
  ):
    report.page('')


def test_loss_curves_show_every_tenth_mean_and_the_farthest():
  rows = [{'step': 50 * i, 'float32': 0.1, 'bfloat16': 0.1 + 0.001 * (i == 13)} for i in range(1, 22)]
  content = {'dtypes': ['float32', 'bfloat16'], 'averaged_steps': 50, 'rows': rows}
  lines = performance_tables.loss_curves(content)
  assert lines[2] == '| step | float32 | bfloat16 | bfloat16 against float32 |'
  assert [line.split(' | ')[0] for line in lines[4:6]] == ['| 500', '| 1000']
  assert lines[7:] == [
    'Of all 21 means, bfloat16 is farthest from float32 at step 650: +1.00%; at the end +0.00%.'
  ]
  lines = performance_tables.loss_curves({**content, 'dtypes': ['float32'], 'rows': rows[:2]})
  assert lines[2:] == ['| step | float32 |', '|---|---:|', '| 100 | 0.100 |']


def test_seams_stand_by_sigma_and_overlap():
  seams = [
    {'sigma_255': sigma, 'overlap_px': px, 'largest': sigma / (1 + px)}
    for sigma in (25.0, 50.0)
    for px in (0, 16)
  ]
  content = {'sizes': [], 'default_overlap_px': 80, 'seams': seams}
  lines = performance_tables.denoiser(content)
  assert '(the default is 80)' in lines[3]
  assert lines[5:] == [
    '| sigma | 0 | 16 |',
    '|---|---:|---:|',
    '| 25 | 25.0 | 1.47 |',
    '| 50 | 50.0 | 2.94 |',
  ]
  assert len(performance_tables.denoiser(content | {'seams': []})) == 2


def test_the_backward_pass_by_hand_beside_jax():
  row = {
    'what': 'operator',
    'by_hand': {'seconds': 0.1, 'runs_seconds': [0.1, 0.1], 'temporary_bytes': 40_000_000},
    'autodiff': {'seconds': 0.25, 'runs_seconds': [0.2, 0.3], 'temporary_bytes': 90_000_000},
    'limit_ms': 30.0,
  }
  lines = performance_tables.vjp_against_autodiff({'rows': {'1x2x3x4': row}})
  assert lines[-1] == '| operator | 100 | 250 | 2.50 | 30.0 | 40.0 | 90.0 | 2 |'
