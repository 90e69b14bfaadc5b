"""README's table of results is what the committed files give."""

import json

from command import ROOT, finish, start

from benchmarks import readme_results


def _content(**changes):
  result = {
    'title': 'Kodak24',
    'version': "FFDNet's centre crops, 24 images of 500x500",
    'channels': 3,
    'sigma_255': 50.0,
    'protocol': 'clipped8',
    'method': {'name': 'bm3d'},
    'mean': {'psnr_noisy': 14.866, 'psnr': 28.456, 'ssim_wang': 0.8123, 'ssim_matlab': 0.8765},
    'published': [
      {'method': 'DnCNN', 'psnr': 28.95, 'protocol': 'unclipped', 'version': ''},
      {'method': 'SADNet (paper)', 'psnr': 29.64, 'protocol': 'clipped8', 'version': 'full images'},
    ],
  }
  environment = {'cores': 2, 'cpu': 'A', 'device': 'cpu', 'commit': '0123456789'}
  return {'command': 'python evaluate.py', 'environment': environment, 'results': [result | changes]}


def test_readme_is_what_the_files_give():
  finish(start(ROOT / 'benchmarks' / 'readme_results.py', '--check'))


def test_a_row_names_what_differs_from_the_paper(tmp_path):
  (tmp_path / 'classical.json').write_text(json.dumps(_content()))
  table = readme_results.markdown([tmp_path / 'classical.json'])
  row = table.splitlines()[2]
  assert row == (
    "| Kodak24, FFDNet's centre crops, 24 images of 500x500 | 50 | clipped8 | CBM3D | 14.87 | 28.46 "
    '| 0.8123 / 0.8765 | 29.64 (full images) | -1.18 |'
  )
  assert table.endswith('- `classical`: `python evaluate.py`; 2 cores, A, cpu; commit 0123456')


def test_rows_of_weights_of_real_noise_and_of_what_the_paper_has_not():
  ((*_, method, noisy, psnr, ssim, paper, difference),) = readme_results.rows(
    'color_50', _content(method={'name': 'sadnet'}, published=[], sigma_255=None)
  )
  assert (method, noisy, psnr, paper, difference) == ('`color_50`', '14.87', '28.46', '', '')
  assert ssim == '0.8123 / 0.8765'
  (row,) = readme_results.rows('a', _content(version='full images, 24 images of 768x512'))
  assert row[-2:] == ('29.64', '-1.18')
