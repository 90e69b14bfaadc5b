"""README's tables of results and of speed are what the committed files give."""

import json

import pytest

from benchmarks import readme_results, readme_speed, report
from sadnet_jax import pretrained
from tests.support.command import ROOT, finish, start


def _content(**changes):
  result = {
    'title': 'Kodak24',
    'version': "FFDNet's centre crops, 24 images of 500x500",
    'channels': 3,
    'sigma_255': 50.0,
    'protocol': 'clipped8',
    'method': {'name': 'bm3d'},
    'failures': [],
    'compared_with': 'CBM3D',
    'mean': {'psnr_noisy': 14.866, 'psnr': 28.456, 'ssim_wang': 0.8123, 'ssim_matlab': 0.8765},
    'published': [
      {'method': 'DnCNN', 'psnr': 28.95, 'differs': []},
      {'method': 'CBM3D', 'psnr': 28.46, 'differs': ['protocol unclipped', 'full images']},
    ],
  }
  machine = {'cores': 2, 'cpu': 'A', 'device': 'cpu'}
  environment = {**machine, 'commit': '0123456789', 'uncommitted_changes': False}
  about = {'command': 'python evaluate.py', 'environment': environment, 'failures': []}
  return {**about, 'results': [result | changes]}


def test_readme_is_what_the_files_give():
  finish(start(ROOT / 'benchmarks' / 'readme_results.py', '--check'))


def test_a_table_stands_between_its_lines():
  begin, end = '<!-- speed: by benchmarks/readme_results.py -->', '<!-- end of speed -->'
  text = f'before\n{begin}\nold\n{end}\nafter\n'
  assert readme_results.replaced(text, 'speed', 'new') == f'before\n{begin}\n\nnew\n\n{end}\nafter\n'
  for wrong in (text + text, 'before', f'{end}{begin}'):
    with pytest.raises(ValueError, match='got no single pair of the lines <!-- speed: by'):
      readme_results.replaced(wrong, 'speed', 'new')


def test_the_part_on_speed_has_a_few_rows_and_the_whole_command():
  section = next(section for section in report.SECTIONS if section.stem == 'against_pytorch')
  content = report.read(section, 'cpu')
  text = readme_speed.markdown()
  for key, row in content['rows'].items():
    assert (f'| {row["what"]} |' in text) == (key in readme_speed.ROWS)
  assert report.measured_with(section, content) in text
  headings = [line for line in text.splitlines() if line.startswith('### ') and line.endswith(', CPU')]
  assert headings == ['### The command, CPU', '### Beside PyTorch, CPU', '### The whole training loop, CPU']


def test_a_part_on_speed_without_results_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  with pytest.raises(SystemExit, match=r'denoiser_cpu\.json: got no results, want those of denoiser\.py'):
    readme_speed.markdown()


def test_the_network_stands_beside_the_paper():
  colour, grey, paper = readme_results.network().splitlines()[2:]
  # The authors' networks have as many; 49.4 GMAC were counted of theirs, with other operations.
  assert colour.startswith('| ours, colour | 4,234,723 |')
  assert grey.startswith('| ours, grey | 4,234,081 |')
  gmac = float(colour.split('|')[3])
  assert 0.94 * 49.4 < gmac < 49.4
  assert paper.endswith('| 4,321k | 50.1 |')


def test_a_row_names_what_differs_from_the_paper(tmp_path):
  (tmp_path / 'classical.json').write_text(json.dumps(_content()))
  table = readme_results.markdown([tmp_path / 'classical.json'])
  row = table.splitlines()[2]
  assert row == (
    "| Kodak24, FFDNet's centre crops, 24 images of 500x500 | 50 | clipped8 | CBM3D | 14.87 | 28.46 "
    '| 0.8123 / 0.8765 | CBM3D 28.46 (protocol unclipped, full images) |  | DnCNN 28.95 |'
  )
  assert table.endswith('- `classical`: `python evaluate.py`; 2 cores, A, cpu; commit 0123456')


def test_figures_of_the_same_images_and_protocol_are_subtracted():
  published = [{'method': 'CBM3D', 'psnr': 28.4, 'differs': []}]
  published += [{'method': 'DnCNN', 'psnr': 28.95, 'differs': []}]
  published += [{'method': 'SADNet (paper)', 'psnr': 29.64, 'differs': ['full images']}]
  ((*_, published, difference, others),) = readme_results.rows('classical', _content(published=published))
  assert (published, difference, others) == ('CBM3D 28.40', '+0.06', 'DnCNN 28.95')


def test_weights_are_named_with_their_data():
  table = readme_results.weights().splitlines()
  assert len(table) == 2 + len(pretrained.available())
  (default,) = (line for line in table if ' (default for color) | ' in line)
  name, task, data = default.split(' | ')[:3]
  assert name == '| [`color_blind`](sadnet_jax/weights/pretrained/color_blind.md) (default for color)'
  assert task == 'colour, Gaussian noise of sigma 0 to 75, not clipped'
  assert data.startswith('BSD432')


def test_rows_of_weights_and_of_what_nothing_is_published_for():
  content = _content(method={'name': 'sadnet'}, compared_with=None, sigma_255=None)
  ((_, sigma, _, method, _, psnr, _, *published),) = readme_results.rows('color_50', content)
  assert (sigma, method, psnr, published) == ('real', '`color_50`', '28.46', ['', '', 'DnCNN 28.95'])


def test_what_is_not_whole_or_not_repeatable_is_refused(tmp_path):
  with pytest.raises(SystemExit, match='got Kodak24 with failures or without some figure'):
    readme_results.rows('a', _content(failures=[{'name': '1'}]))
  with pytest.raises(SystemExit, match='without some figure'):
    readme_results.rows('a', _content(mean={'psnr': None}))
  for part in ({'failures': [{'name': 'dnd'}]}, {'results': []}):
    (tmp_path / 'a.json').write_text(json.dumps(_content() | part))
    with pytest.raises(SystemExit, match=r'a\.json: got an evaluation that failed in part, or of nothing'):
      readme_results.markdown([tmp_path / 'a.json'])
  content = _content()
  content['environment']['uncommitted_changes'] = True
  (tmp_path / 'a.json').write_text(json.dumps(content))
  with pytest.raises(SystemExit, match=r'a\.json: got results of code that is in no commit'):
    readme_results.markdown([tmp_path / 'a.json'])


def test_bm3d_is_what_is_published():
  """The harness without any network: a wrong scale, clip or mean would be far off."""
  differences = []
  for file in readme_results.RESULTS.glob('*.json'):
    for result in json.loads(file.read_text())['results']:
      for figure in result['published']:
        if figure['method'] == result['compared_with'] and result['method']['name'] == 'bm3d':
          differences += [] if figure['differs'] else [result['mean']['psnr'] - figure['psnr']]
  assert differences
  # The package of today is some 0.1 dB above the published figures.
  assert max(map(abs, differences)) < 0.2
