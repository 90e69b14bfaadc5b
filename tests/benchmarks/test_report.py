"""The committed pages are what the committed results give, and tables compute the right figures."""

import json

import pytest

from benchmarks import common, report, tables
from sadnet_jax import pretrained
from sadnet_jax.denoise.denoiser import OVERLAP_PX
from sadnet_jax.weights.loading import REPLACED
from tests.support.command import ROOT, finish, start

LIMITS = {'float32': {'flops_per_second': 4.6e11, 'bytes_per_second': 2.1e10}}


def test_the_committed_pages_are_up_to_date():
  finish(start(ROOT / 'benchmarks' / 'report.py', '--check'))


def test_every_benchmark_and_every_result_is_in_the_report():
  results = {path.stem.rpartition('_')[0] for path in report.RESULTS.glob('*.json')}
  assert results <= {'ablation', *(benchmark.name for benchmark in report.BENCHMARKS)}
  for benchmark in report.BENCHMARKS:
    assert (ROOT / 'benchmarks' / (benchmark.script or f'{benchmark.name}.py')).is_file()


def test_seams_were_measured_with_the_default_overlap():
  content = json.loads((report.RESULTS / 'command_cpu.json').read_text())
  assert content['default_overlap_px'] == OVERLAP_PX
  assert content['model'] in {*pretrained.available(), *REPLACED}
  measured = max(row['overlap_px'] for row in content['seams'] if row['overlap_px'] <= OVERLAP_PX)
  seams = [row for row in content['seams'] if row['overlap_px'] == measured]
  assert measured > OVERLAP_PX - 16
  assert len({row['sigma_255'] for row in seams}) == 3
  # At single pixels; the mean is what can be seen.
  assert max(row['largest'] for row in seams) < 7
  assert max(row['mean'] for row in seams) < 0.15


def test_bm3d_has_its_published_psnr():
  """The protocol without any network: a wrong scale, clip or mean would be far off."""
  differences = [
    result['mean']['psnr'] - published['psnr']
    for result in report.evaluations()['bm3d']['results']
    for published in result['published']
    if published['method'] == result['compared_with'] and not published['differs']
  ]
  assert differences
  # Today's package is some 0.1 dB above the published figures.
  assert max(map(abs, differences)) < 0.2


@pytest.mark.parametrize(
  ('environment', 'reason'),
  [
    ({'commit': 'a', 'uncommitted_changes': True}, 'on uncommitted code; measure again in a clean clone'),
    ({'commit': None}, "outside a clone, .* after pip install -e '.\\[bench,train\\]'"),
  ],
)
def test_results_of_uncommitted_code_are_refused(tmp_path, monkeypatch, environment, reason):
  (tmp_path / 'memory_cpu.json').write_text(json.dumps({'uncommitted_changes': False, **environment}))
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  with pytest.raises(SystemExit, match=rf'memory_cpu\.json: measured {reason}'):
    report.performance_page('')


@pytest.mark.parametrize(('name', 'found'), [('memory_gpu', 'cpu'), ('memory_cpu', 'NVIDIA H200')])
def test_results_of_another_kind_of_device_are_refused(tmp_path, monkeypatch, name, found):
  content = {'commit': 'a', 'uncommitted_changes': False, 'device': found}
  (tmp_path / f'{name}.json').write_text(json.dumps(content))
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  with pytest.raises(SystemExit, match=rf'{name}\.json: measured on {found}, not on a (GPU|CPU)'):
    report.performance_page('')


def test_incomplete_evaluations_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  (tmp_path / 'evaluation').mkdir()
  result = {'title': 'Kodak24', 'failures': [], 'mean': {'psnr': 30.0}}
  environment = {'commit': 'a', 'uncommitted_changes': False}
  for wrong in (
    {'results': []},
    {'failures': [{'name': 'dnd'}]},
    {'results': [result | {'failures': [{'name': '1'}]}]},
    {'results': [result | {'mean': {'psnr': None}}]},
    {'complete': False},
  ):
    content = {'environment': environment, 'failures': [], 'results': [result], **wrong}
    (tmp_path / 'evaluation' / 'a.json').write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r'a\.json: the evaluation is incomplete'):
      report.evaluations()


def test_a_difference_is_given_only_for_the_same_images_and_protocol():
  result = {
    'title': 'Kodak24',
    'version': 'crops',
    'channels': 3,
    'sigma_255': 50.0,
    'protocol': 'clipped8',
    'method': {'name': 'bm3d'},
    'compared_with': 'CBM3D',
    'mean': {'psnr_noisy': 14.866, 'psnr': 28.456, 'ssim_wang': 0.8123, 'ssim_matlab': 0.8765},
    'published': [
      {'method': 'DnCNN', 'psnr': 28.95, 'differs': []},
      {'method': 'CBM3D', 'psnr': 28.4, 'differs': []},
    ],
  }
  environment = {'cores': 2, 'cpu': 'A', 'device': 'cpu', 'commit': '0123456789'}

  def row():
    content = {'command': 'python evaluate.py', 'environment': environment, 'results': [result]}
    return report.results_table({'a': content})[2]

  same = '| Kodak24, crops | 50 | clipped8 | CBM3D | 14.87 | 28.46 | 0.8123 / 0.8765 '
  assert row() == same + '| CBM3D 28.40 | +0.06 | DnCNN 28.95 |'
  result['published'][1]['differs'] = ['full images']
  assert row() == same + '| (CBM3D 28.40; full images) |  | DnCNN 28.95 |'


def test_the_network_is_as_large_as_the_papers():
  colour, grey, _ = report.network_table()[2:]
  # The authors' networks have the same number of parameters; theirs was counted as 49.4 GMAC.
  assert colour.startswith('| ours, colour | 4,234,723 |')
  assert grey.startswith('| ours, grey | 4,234,081 |')
  gmac = float(colour.split('|')[3])
  assert 0.94 * 49.4 < gmac < 49.4


def test_a_part_is_replaced_between_its_comments():
  begin, end = '<!-- speed: written by benchmarks/report.py -->', '<!-- end of speed -->'
  text = f'before\n{begin}\nold\n{end}\nafter\n'
  assert report.replace_part(text, 'speed', 'new') == f'before\n{begin}\n\nnew\n\n{end}\nafter\n'
  for wrong in (text + text, 'before', f'{end}{begin}'):
    with pytest.raises(ValueError, match='needs the line <!-- speed: written by'):
      report.replace_part(wrong, 'speed', 'new')


@pytest.mark.parametrize(
  ('value', 'text'),
  [(0, '0'), (1262.5, '1262'), (99.96, '100.0'), (8.2, '8.20'), (0.05824, '0.0582'), (-1.234, '-1.23')],
)
def test_figures_have_three_significant_digits(value, text):
  assert tables.figure(value) == text


def test_ratios_compare_the_same_precision():
  pytorch = {
    'eager': {'ms': 30.0},
    'compile': {'not_run': 'no compiler'},
    'tf32': {'ms': 12.0},
    'compile_tf32': {'ms': 8.0},
  }
  jax = {
    'float32': {'ms': 10.0, 'limit_ms': 5.0, 'limit_share': 0.5},
    'tf32': {'ms': 4.0, 'limit_ms': 2.0, 'limit_share': 0.5},
  }
  onnx = {'float32': {'ms': 25.0}}
  row = {'what': 'forward', 'runs': 5, 'in_turn': True, 'pytorch': pytorch, 'onnx_runtime': onnx, 'jax': jax}
  agreement = {
    'forward_max_abs_difference': 1.7e-6,
    'forward_max_abs': 2.5,
    'gradient_relative_difference': 1.5e-4,
  }
  content = {
    'limits': dict.fromkeys(('float32', 'tf32'), LIMITS['float32']),
    'agreement': agreement,
    'rows': {'forward_1x320x480': row},
  }
  lines = tables.pytorch_tables(content)
  assert '| forward | 30.0 |  | 25.0 | 10.0 | 3.00 | 2.50 | 5.00 | 50% | 5 |' in lines
  assert '- forward, torch.compile: not run: no compiler' in lines
  assert '| forward | 12.0 | 8.00 | 4.00 | 3.00 | 2.00 | 2.00 | 50% | 5 |' in lines
  assert lines[-1].startswith('Not measured: deform_conv2d 1x320x480x32, forward; ')


def test_precisions_that_only_pytorch_was_timed_in_are_beside_float32():
  pytorch = {'eager': {'ms': 30.0}, 'channels_last': {'ms': 24.0}, 'channels_last_bfloat16': {'ms': 12.0}}
  jax = {'float32': {'ms': 10.0, 'limit_ms': 5.0, 'limit_share': 0.5}}
  row = {'what': 'step', 'runs': 5, 'in_turn': True, 'pytorch': pytorch, 'onnx_runtime': {}, 'jax': jax}
  found = dict.fromkeys(
    ('forward_max_abs_difference', 'forward_max_abs', 'gradient_relative_difference'), 1e-6
  )
  content = {'limits': LIMITS, 'agreement': found, 'rows': {'training_4x128x128': row}}
  lines = tables.pytorch_tables(content)
  assert (
    '| milliseconds | PyTorch eager | channels-last | channels-last, bfloat16 | JAX | eager / JAX | '
    'fastest other / JAX | limit | limit / JAX | runs |'
  ) in lines
  assert '| step | 30.0 | 24.0 | 12.0 | 10.0 | 3.00 | 1.20 | 5.00 | 50% | 5 |' in lines


def test_units_of_the_tables():
  timed = {'seconds': 1.25, 'runs_seconds': [1.0, 1.25, 1.5]}
  rows = {'a': {'what': 'call', 'no_cache': timed, 'filled_cache': {'seconds': 0.06}, 'limit_seconds': 0.5}}
  assert tables.start_up_table({'rows': rows})[2] == '| call | 1.25 | 0.0600 | 0.500 | 3 |'
  found = dict.fromkeys(('argument', 'output', 'resident_compiled', 'resident'), 18_782_092)
  row = {'what': 'forward', 'bytes': {'temporary': 325_260_420, **found, 'device': None}}
  head, _, line = tables.memory_table({'rows': {'a': row}})
  assert 'device' not in head
  assert line == '| forward | 325 | 18.8 | 18.8 | 18.8 | 18.8 |  |'
  row = {
    'what': '960x640',
    'pixels': 614_400,
    'tiles': 2,
    'tile_size': [640, 576],
    'pixels_of_tiles': 737_280,
    'tiled': {'seconds': 4.1, 'us_per_pixel': 6.67, 'runs_seconds': [4.0, 4.1, 4.2]},
    'whole': {'not_run': 'too large'},
    'limit_ms': 1830.0,
    'limit_share': 0.446,
  }
  lines = tables.image_size_table({'rows': {'960x640': row}})
  assert lines[2] == '| 960x640 | 2 of 576x640 | 1.20 | 4.10 | 6.67 |  | 2.98 | 45% | 3 |'
  row = {
    'what': 'operator',
    'by_hand': {'seconds': 0.1, 'runs_seconds': [0.1, 0.1], 'temporary_bytes': 40_000_000},
    'autodiff': {'seconds': 0.25, 'runs_seconds': [0.2, 0.3], 'temporary_bytes': 90_000_000},
    'limit_ms': 30.0,
  }
  line = tables.backward_pass_table({'rows': {'a': row}})[-1]
  assert line == '| operator | 100 | 250 | 2.50 | 30.0 | 40.0 | 90.0 | 2 |'


def test_every_tenth_mean_of_the_loss_and_the_largest_difference():
  rows = [{'step': 50 * i, 'float32': 0.1, 'bfloat16': 0.1 + 0.001 * (i == 13)} for i in range(1, 22)]
  content = {'dtypes': ['float32', 'bfloat16'], 'averaged_steps': 50, 'rows': rows}
  lines = tables.bfloat16_table(content)
  assert [line.split(' | ')[0] for line in lines[4:6]] == ['| 500', '| 1000']
  assert lines[7:] == [
    'Of all 21 means, bfloat16 differs most from float32 at step 650: +1.00%; at the end by +0.00%.'
  ]


def test_speed_is_that_of_the_table():
  content = report.PYTORCH.read('cpu')
  milliseconds = content['rows']['forward_1x320x480']['jax']['float32']['ms']
  assert f'{milliseconds / 1e3:.2f} s' in report.speed()
  assert common.ROOT == ROOT
