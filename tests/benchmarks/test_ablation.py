"""The ablation: rows are trained alike, finished runs are kept, and the statistics are right."""

import json
import shutil
import types

import numpy as np
from PIL import Image
import pytest

from benchmarks import ablation, report, tables
from configs.ablation import PAPER_PSNR, ROWS
from sadnet_jax.weights.checkpoints import check_same

MACHINE = {'cpu': 'A', 'cores': 2, 'device': 'cpu', 'gpu': None, 'python': '3.11.7'}
CLEAN = {'commit': '0123456789', 'uncommitted_changes': False}


@pytest.fixture
def images(tmp_path):
  folder = tmp_path / 'images'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(2):
    Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(folder / f'{i}.png')
  return folder


@pytest.fixture
def options(images, tmp_path):
  """Two steps of a tiny network."""
  size = ['--steps', '2', '--width', '8', '--offset_width', '8', '--patch_px', '8', '--batch_size', '2']
  folders = ['--images', str(images), '--test', str(images), '--workdir', str(tmp_path / 'runs')]
  return [*size, *folders, '--json', str(tmp_path / 'a.json')]


@pytest.fixture
def trainer(monkeypatch):
  """Replaces training. Records the runs; the run ``stops`` ends one step early. PSNR counts the runs."""
  fake = types.SimpleNamespace(runs=[], stops=None, saves=True)

  def train(config, folder, devices):
    fake.runs.append(folder.name)
    step = config.steps - (folder.name == fake.stops)
    if fake.saves:
      (folder / 'checkpoints' / str(step)).mkdir(parents=True, exist_ok=True)
    return types.SimpleNamespace(step=step)

  def evaluate(folder, image_set):
    psnr = 20.0 + len(fake.runs)
    return {'psnr': psnr, 'images': {image.name: psnr for image in image_set.images}}

  monkeypatch.setattr(ablation.loop, 'train', train)
  monkeypatch.setattr(ablation, 'evaluate', evaluate)
  monkeypatch.setattr(ablation.jax, 'clear_caches', lambda: None)
  return fake


def _results(psnr, **changes):
  """Results with the PSNR of each row by seed."""
  rows = {
    row: {
      'parameters': 1000,
      'seeds': {str(seed): {'psnr': value, 'starts': [CLEAN]} for seed, value in enumerate(values)},
    }
    for row, values in psnr.items()
  }
  config = ablation.run_config('full', 0, ablation.parse_arguments([])).to_dict()
  about = {'config': config, 'test': 'Kodak24, crops', 'protocol': 'unclipped', 'sigma_255': 50.0}
  command = {'command': 'python benchmarks/ablation.py', 'versions': {'jax': '0.10.2'}}
  return {**MACHINE, **CLEAN, **command, **about, 'rows': rows, **changes}


def _levels(*noise):
  """Each row at the paper's level, with the same noise of each seed."""
  return {row: [level + value for value in noise] for row, level in PAPER_PSNR.items()}


def test_rows_of_a_seed_differ_only_in_their_parts():
  arguments = ablation.parse_arguments(['--width', '8'])
  full = ablation.run_config('full', 3, arguments).to_dict()
  assert (full['seed'], full['model']['width'], full['steps'], full['noise']['clip']) == (3, 8, 1000, False)
  assert (full['optimizer']['name'], full['loss'], full['data']['reader']) == ('muon', 'l1', 'memory')
  parts = ('use_rsab', 'use_offset_transfer', 'use_context')
  for row, used in ROWS.items():
    config = ablation.run_config(row, 3, arguments).to_dict()
    assert tuple(config['model'][part] for part in parts) == used
    check_same(config, full, {f'model.{part}' for part in parts})


def test_a_row_is_trained_evaluated_and_kept(options, tmp_path):
  arguments = ablation.parse_arguments(options)
  config, folder = ablation.run_config('none', 0, arguments), tmp_path / 'run'
  # Muon takes seconds to compile.
  config.optimizer.name = 'adam'
  image_set = ablation.open_test(arguments.test)
  result = ablation.train_and_evaluate(config, folder, image_set, CLEAN)
  # Two steps leave the image nearly as noisy as it was.
  assert 5 < result['psnr'] < 20
  assert result['psnr'] == pytest.approx(np.mean(list(result['images'].values())))
  assert sorted(result['images']) == ['0', '1']
  assert result['starts'] == [CLEAN]
  assert (folder / 'checkpoints' / '2').is_dir()
  # A finished run needs no checkpoint.
  shutil.rmtree(folder / 'checkpoints')
  assert ablation.train_and_evaluate(config, folder, image_set, CLEAN) == result


def test_other_test_images_are_evaluated_again(options, images, trainer, tmp_path):
  ablation.main(options)
  (tmp_path / 'others').mkdir()
  shutil.copy(images / '1.png', tmp_path / 'others')
  ablation.main([*options, '--test', str(tmp_path / 'others')])
  results = json.loads((tmp_path / 'a.json').read_text())
  assert results['test'] == 'others, 1 images of 20x24'
  assert all(list(found['seeds']['0']['images']) == ['1'] for found in results['rows'].values())


def test_results_of_all_rows_are_written(options, trainer, tmp_path, capsys):
  ablation.main(options)
  results = json.loads((tmp_path / 'a.json').read_text())
  assert {row: found['seeds']['0']['psnr'] for row, found in results['rows'].items()} == {
    row: 21.0 + i for i, row in enumerate(ROWS)
  }
  assert str(tmp_path / 'runs') not in results['command']
  assert '--steps 2 --width 8' in results['command']
  parameters = [found['parameters'] for found in results['rows'].values()]
  assert min(parameters) == parameters[0]
  assert max(parameters) == parameters[-1]
  assert '| context block | `none` | +2.000 | one seed | not known | +0.07 |' in capsys.readouterr().out


def test_all_rows_of_a_seed_come_first(options, trainer):
  ablation.main([*options, '--seeds', '1', '0'])
  assert trainer.runs == [f'{row}-seed{seed}' for seed in (1, 0) for row in ROWS]


def test_finished_runs_are_not_trained_again(options, trainer, tmp_path):
  trainer.stops = 'context-seed0'
  with pytest.raises(SystemExit, match=r'context-seed0: stopped at step 1; run the same command again'):
    ablation.main(options)
  assert trainer.runs == ['none-seed0', 'rsab-seed0', 'context-seed0']
  trainer.stops = None
  ablation.main(options)
  assert trainer.runs[3:] == ['context-seed0', *(f'{row}-seed0' for row in list(ROWS)[3:])]
  before = json.loads((tmp_path / 'a.json').read_text())
  ablation.main(options)
  assert len(trainer.runs) == 7
  assert json.loads((tmp_path / 'a.json').read_text())['rows'] == before['rows']


@pytest.mark.parametrize('saves', [True, False])
def test_every_commit_of_a_run_is_recorded(options, trainer, tmp_path, monkeypatch, saves):
  """A start that left no checkpoint does not count."""
  trainer.stops, trainer.saves = 'none-seed0', saves
  describe = ablation.common.describe
  for commit in ('a' * 40, 'b' * 40):
    monkeypatch.setattr(
      ablation.common, 'describe', lambda *given, c=commit: {**describe(*given), **CLEAN, 'commit': c}
    )
    with pytest.raises(SystemExit):
      ablation.main(options)
  trainer.stops = None
  ablation.main(options)
  rows = json.loads((tmp_path / 'a.json').read_text())['rows']
  assert [len(rows[row]['seeds']['0']['starts']) for row in ROWS] == [1 + saves, 1, 1, 1, 1, 1]


def test_a_folder_of_other_runs_is_refused(options, trainer):
  ablation.main(options)
  with pytest.raises(ValueError, match=r'none-seed0: .* 3; choose another --workdir'):
    ablation.main([*options, '--steps', '3'])


def test_test_images_are_clean_and_in_colour(images):
  for path in images.glob('*.png'):
    Image.open(path).convert('L').save(path)
  with pytest.raises(ValueError, match=r"--test: '.*' has grey images; give a set of clean colour images"):
    ablation.open_test(str(images))
  for name in ('a_real.png', 'a_mean.png'):
    Image.new('RGB', (16, 16)).save(images / name)
  with pytest.raises(ValueError, match=r'has pairs'):
    ablation.open_test(f'pairs:{images}')


@pytest.mark.parametrize(
  ('change', 'where'),
  [({'uncommitted_changes': True}, 'on uncommitted code'), ({'commit': None}, 'outside a clone')],
)
def test_results_of_uncommitted_code_are_refused(tmp_path, monkeypatch, change, where):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  content = _results(_levels(0))
  content['rows']['rsab']['seeds']['0']['starts'] = [CLEAN, CLEAN | change]
  (tmp_path / 'ablation_cpu.json').write_text(json.dumps(content))
  with pytest.raises(SystemExit, match=f'measured {where}'):
    report.ablation_page()


def test_results_without_a_complete_seed_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  (tmp_path / 'ablation_cpu.json').write_text(json.dumps(_results(_levels(0) | {'full': []})))
  with pytest.raises(SystemExit, match='no seed was trained for all rows'):
    report.ablation_page()


def test_a_row_has_its_mean_its_spread_and_the_papers_psnr():
  content = _results(_levels(0, 0) | {'none': [27.0, 27.2], 'rsab': [27.5, 27.3]})
  lines = tables.ablation_tables(content)
  head, _, none, rsab, *_ = lines
  assert 'standard deviation over 2 seeds' in head
  assert none == '| `none` | none | 1,000 | 27.100 | 0.141 |  | 29.05 |  |'
  assert rsab == '| `rsab` | RSAB | 1,000 | 27.400 | 0.141 | +0.300 | 29.55 | +0.50 |'
  added = lines[lines.index('') + 1 :][:9]
  # Six rows, two of variance 0.02, the others of 0: the standard error of a difference is 0.082 dB.
  assert added[2] == '| RSAB | `none` | +0.300 | +0.100 to +0.500 | yes | +0.50 |'
  assert added[6] == '| offset transfer | `rsab` | +2.190 | +2.090 to +2.290 | yes | +0.04 |'
  assert added[7] == '| offset transfer | `rsab_context` | +0.040 | +0.040 to +0.040 | no | +0.04 |'
  # All pairs of rows that differ in one part.
  assert [line.split(' | ')[:2] for line in added[2:]] == [
    ['| RSAB', '`none`'],
    ['| context block', '`none`'],
    ['| context block', '`rsab`'],
    ['| RSAB', '`context`'],
    ['| offset transfer', '`rsab`'],
    ['| offset transfer', '`rsab_context`'],
    ['| context block', '`rsab_offset`'],
  ]


def test_noise_is_the_spread_between_seeds():
  # The standard deviation of a row is 0.1 dB, and so is that of a difference of two means of 2 runs.
  content = _results(_levels(0, 0.1 * 2**0.5))
  assert tables.standard_error(content) == pytest.approx(0.1)
  assert tables.degrees_of_freedom(content) == 6
  # Student's t for 97.5% and 6 degrees of freedom.
  assert tables.chance_bound(content) == pytest.approx(2.447 * 0.1, rel=1e-3)
  *_, text = tables.ablation_tables(content)
  assert 'over 2 seeds, pooled over all rows, is 0.100 dB' in text
  assert 'two means of 2 runs is 0.100 dB' in text
  assert 'below 0.245 dB in 95%' in text
  assert '7 differences that a part makes, 2 exceed this bound and 5 cannot' in text
  assert "7 have the sign of the paper's" in text
  assert '5 of its 7 differences would be too small' in text


def test_no_difference_exceeds_large_noise():
  levels = {row: [29 - level / 100, 30 - level / 100] for row, level in PAPER_PSNR.items()}
  *_, text = tables.ablation_tables(_results(levels))
  assert 'below 1.730 dB' in text
  assert '0 exceed this bound' in text
  assert "0 have the sign of the paper's" in text
  assert '7 of its 7 differences' in text


def test_noise_is_not_known_with_one_seed():
  content = _results(_levels(0) | {'none': [29.05, 29.0], 'rsab': [29.55, 29.5]})
  *lines, text = tables.ablation_tables(content)
  assert text.startswith('Each row was trained once, with seed 0.')
  assert text.endswith('Excluded, because not all rows are trained yet: seed 1.')
  assert '| `rsab` | RSAB | 1,000 | 29.550 | one seed | +0.500 | 29.55 | +0.50 |' in lines
