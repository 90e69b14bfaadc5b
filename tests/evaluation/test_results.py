"""Results: published ones, ours beside them in a table, and files without paths or secrets."""

import json
import math
import re

import pytest

from sadnet_jax.data.test_sets import IMAGE_SETS
from sadnet_jax.evaluation.image_sets import ImageSet
from sadnet_jax.evaluation.literature import PAPER, published
from sadnet_jax.evaluation.protocols import AUTHORS, CLIPPED8, FLOAT, PROTOCOLS, ROUNDED, UNCLIPPED
from sadnet_jax.evaluation.results import ImageResult, SetResult, format_table, shareable, write_json

GAUSSIAN = [('cbsd68', 3), ('kodak24', 3), ('bsd68', 1), ('kodak24', 1)]
FULL_KODAK = 'full images, 24 images, 18 of 768x512, 6 of 512x768'
CROPS_OF_KODAK = "FFDNet's centre crops, 24 images of 500x500"
NAM = "CBDNet's 25 patches, 25 images of 512x512"


def _image(number, psnr=28.5, **measures):
  measures = {
    'psnr_noisy': 14.15,
    'ssim_wang_noisy': 0.2,
    'ssim_wang': 0.8,
    'ssim_matlab_noisy': 0.3,
    'ssim_matlab': 0.9,
    'seconds': 0.125,
    **measures,
  }
  return ImageResult(name=str(number), height=9, width=13, psnr=psnr, **measures)


def _result(
  name,
  count,
  sigma_255=50.0,
  protocol=CLIPPED8,
  *,
  channels=3,
  version='some images',
  title=None,
  method='sadnet',
  psnr=28.5,
  **measures,
):
  """A result with `count` images that have equal metrics."""
  image_set = ImageSet(name, title or name.upper(), version, channels, None, ())
  images = tuple(_image(i, psnr, **measures) for i in range(count))
  return SetResult(image_set, channels, sigma_255, protocol, {'name': method}, images, ())


def _rows(results):
  """The rows of the table, as dicts by column, and the lines below."""
  lines = format_table(results).split('\n')
  cells = [re.split(r'  +', line.strip()) for line in lines[: len(results) + 1]]
  assert {len(row) for row in cells} == {len(cells[0])}
  return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]], lines[len(results) + 1 :]


@pytest.mark.parametrize(
  ('name', 'channels', 'sigma_255', 'psnr'),
  [
    ('cbsd68', 3, 50.0, 28.32),
    ('cbsd68', 1, 50, 26.51),
    ('bsd68', 1, 30.0, 28.61),
    ('kodak24', 3, 70.0, 28.28),
    ('kodak24', 1, 70, 26.72),
    ('nam', 3, None, 42.92),
    ('sidd_val', 3, None, 39.46),
  ],
)
def test_the_paper_comes_first(name, channels, sigma_255, psnr):
  rows = published(name, channels, sigma_255)
  assert (rows[0].method, rows[0].psnr) == (PAPER, psnr)
  assert [row.method for row in rows].count(PAPER) == 1
  assert len({row.method for row in rows}) == len(rows)


@pytest.mark.parametrize(
  ('name', 'channels', 'sigma_255'),
  [
    ('cbsd68', 3, 10.0),
    ('cbsd68', 3, 30.5),
    ('cbsd68', 3, None),
    ('bsd68', 3, 50.0),
    ('nam', 1, None),
    ('nam', 3, 50.0),
    ('sidd_val', 3, 50.0),
    ('polyu', 3, None),
    ('photos', 3, 50.0),
  ],
)
def test_nothing_is_invented_where_nothing_was_published(name, channels, sigma_255):
  assert published(name, channels, sigma_255) == []


def test_grey_cbsd68_is_bsd68():
  for sigma_255 in (15, 25, 30, 50, 70):
    assert published('cbsd68', 1, sigma_255) == published('bsd68', 1, sigma_255)
  assert published('cbsd68', 1, 50) != published('cbsd68', 3, 50)


def test_versions_and_protocols_of_published_results_exist():
  found = set()
  for name, channels in GAUSSIAN:
    for sigma_255 in (15, 25, 30, 50, 70):
      for row in published(name, channels, sigma_255):
        assert set(row.protocols) <= set(PROTOCOLS)
        found.add((name, row.version))
  for name in ('nam', 'sidd_val'):
    for row in published(name, 3, None):
      assert row.protocols[0] == {'nam': ROUNDED, 'sidd_val': FLOAT}[name].name
      # The paper may have measured what its script computes, which for the blocks of SIDD is the same.
      authors = row.method == PAPER or name == 'sidd_val'
      assert row.protocols[1:] == ((AUTHORS.name,) if authors else ())
      found.add((name, row.version))
  for name, version in found:
    assert not version or version in IMAGE_SETS[name].versions.values()
  # Results for Kodak24 always name the version: the two are different images.
  assert ('kodak24', '') not in found


def test_published_psnr_falls_with_sigma_and_exceeds_that_of_noisy_images():
  for name, channels in GAUSSIAN:
    by_method = {}
    for sigma_255 in (15, 25, 30, 50, 70):
      for row in published(name, channels, sigma_255):
        assert row.psnr > -20 * math.log10(sigma_255 / 255) + 5
        by_method.setdefault(row.method, []).append(row.psnr)
    assert all(len(figures) == 3 for figures in by_method.values())
    assert all(figures == sorted(figures, reverse=True) for figures in by_method.values())


@pytest.mark.parametrize(
  ('result', 'psnr', 'differs'),
  [
    (_result('cbsd68', 68), 28.32, []),
    (_result('cbsd68', 68, protocol=UNCLIPPED), 28.32, ['protocol clipped8 or authors']),
    (_result('cbsd68', 68, protocol=AUTHORS), 28.32, []),
    # A subset is not comparable.
    (_result('cbsd68', 67), 28.32, ['all 68 images']),
    (_result('cbsd68', 68, channels=1), 26.51, []),
    (_result('kodak24', 24, version=FULL_KODAK), 29.64, []),
    (_result('kodak24', 24, version=CROPS_OF_KODAK), 29.64, ['full images']),
    (_result('kodak24', 23, version=FULL_KODAK), 29.64, ['all 24 images']),
    (_result('nam', 25, None, ROUNDED, version=NAM), 42.92, []),
    (
      _result('nam', 15, None, ROUNDED, version='the 15 crops, 15 images of 512x512'),
      42.92,
      ["CBDNet's 25 patches", 'all 25 images'],
    ),
    (_result('sidd_val', 1280, None, FLOAT), 39.46, []),
    (_result('sidd_val', 1279, None, FLOAT), 39.46, ['all 1280 images']),
    (_result('sidd_val', 1280, None, AUTHORS), 39.46, []),
    (_result('sidd_val', 1280, None, ROUNDED), 39.46, ['protocol float or authors']),
  ],
)
def test_the_paper_is_comparable_only_with_the_same_protocol_and_images(result, psnr, differs):
  paper = result.compared_with()
  assert (paper.method, paper.psnr, result.differences(paper)) == (PAPER, psnr, differs)
  (written,) = (p for p in result.to_json()['published'] if p['method'] == result.to_json()['compared_with'])
  assert (written['psnr'], written['differs']) == (psnr, differs)


def test_bm3d_is_compared_with_bm3d_and_noisy_images_with_nothing():
  colour = _result('kodak24', 24, protocol=UNCLIPPED, version=CROPS_OF_KODAK, method='bm3d').compared_with()
  assert (colour.method, colour.psnr) == ('CBM3D', 28.46)
  assert _result('bsd68', 68, 25.0, channels=1, method='bm3d').compared_with().psnr == 28.57
  assert _result('cbsd68', 68, 30.0, method='bm3d').compared_with() is None
  assert _result('cbsd68', 68, method='noisy').compared_with() is None


def test_sets_that_the_paper_lacks_are_not_compared():
  for result in (_result('cbsd68', 68, 25.0), _result('mcmaster', 18), _result('polyu', 100, None, ROUNDED)):
    assert result.compared_with() is None
    assert result.to_json()['compared_with'] is None


def test_the_table_shows_the_difference_to_the_paper():
  results = [
    _result('cbsd68', 68, title='CBSD68', psnr=28.3),
    _result('cbsd68', 68, title='CBSD68', protocol=UNCLIPPED, psnr=27.5, method='bm3d'),
    _result('cbsd68', 68, 25.5, psnr=31.0),
    _result('nam', 25, None, ROUNDED, version=NAM, psnr=43.0),
  ]
  rows, notes = _rows(results)
  assert rows[0] == {
    'data set': 'CBSD68',
    'sigma': '50',
    'protocol': 'clipped8',
    'method': 'sadnet',
    'noisy': '14.150',
    'PSNR': '28.300',
    'SSIM W': '0.8000',
    'SSIM M': '0.9000',
    's/image': '0.125',
    'published': '28.32',
    'diff': '-0.02',
    'by': 'SADNet (paper)',
  }
  assert [(row['published'], row['diff'], row['by']) for row in rows[1:]] == [
    ('27.38', '+0.12', 'CBM3D'),
    ('-', '-', '-'),
    ('42.92', '+0.08', 'SADNet (paper)'),
  ]
  assert [row['sigma'] for row in rows] == ['50', '50', '25.5', 'real']
  assert [row['method'] for row in rows] == ['sadnet', 'bm3d', 'sadnet', 'sadnet']
  # The version of each set once; nothing has a star.
  assert notes[1:] == ['CBSD68: some images', f'NAM: {NAM}']
  assert not any('*' in note for note in notes)


def test_other_protocols_and_images_get_a_star_and_a_note():
  results = [
    _result('cbsd68', 68, protocol=UNCLIPPED, psnr=28.0),
    _result('cbsd68', 68, psnr=28.4),
    _result('kodak24', 24, version=CROPS_OF_KODAK, title='KODAK24', psnr=30.0),
    _result('sidd_val', 2, None, FLOAT, title='SIDD validation', psnr=40.0),
  ]
  rows, notes = _rows(results)
  assert [(row['published'], row['diff']) for row in rows] == [
    ('28.32*', '-0.32*'),
    ('28.32', '+0.08'),
    ('29.64*', '+0.36*'),
    ('39.46*', '+0.54*'),
  ]
  assert notes[-1] == (
    '* the published result is for: CBSD68, SADNet (paper): protocol clipped8 or authors; '
    'KODAK24, SADNet (paper): full images; SIDD validation, SADNet (paper): all 1280 images'
  )


def test_means_are_over_the_images_that_have_the_metric():
  image_set = ImageSet('photos', 'photos', 'some images', 3, None, ())
  images = (_image(0, 20.0, ssim_wang=None), _image(1, 30.0, ssim_wang=0.5), _image(2, 40.0, ssim_wang=0.7))
  (row,), _ = _rows([SetResult(image_set, 3, 50.0, CLIPPED8, {'name': 'sadnet'}, images, ())])
  assert (row['PSNR'], row['SSIM W'], row['SSIM M']) == ('30.000', '0.6000', '0.9000')


def test_the_table_has_dashes_for_missing_values_and_shows_infinity():
  results = [
    # All failed.
    _result('cbsd68', 0),
    # Without noise: equal to the clean image, and too small for a window.
    _result('cbsd68', 68, psnr=math.inf, psnr_noisy=math.inf, ssim_wang=None),
  ]
  rows, notes = _rows(results)
  measures = ('noisy', 'PSNR', 'SSIM W', 'SSIM M', 's/image', 'published', 'diff')
  assert [rows[0][m] for m in measures] == ['-', '-', '-', '-', '-', '28.32*', '-']
  assert [rows[1][m] for m in measures] == ['inf', 'inf', '-', '0.9000', '0.125', '28.32', '+inf']
  assert notes[-1].endswith('CBSD68, SADNet (paper): all 68 images')


def test_the_columns_are_aligned():
  results = [
    _result('cbsd68', 68, protocol=UNCLIPPED, seconds=123.4),
    _result('sidd_val', 1280, None, FLOAT, title='SIDD validation', method='a longer name', psnr=9.5),
    _result('photos', 0, 5.0),
  ]
  lines = format_table(results).split('\n')[:4]
  cells = [list(re.finditer(r'\S+(?: \S+)*', line)) for line in lines]
  assert {len(row) for row in cells} == {12}
  for column in range(12):
    places = {row[column].end() if 4 <= column < 11 else row[column].start() for row in cells}
    assert len(places) == 1


def test_json_is_written_completely_or_not_at_all(tmp_path):
  write_json(tmp_path / 'a.json', {'a': 1})
  with pytest.raises(ValueError, match='Out of range float values'):
    write_json(tmp_path / 'a.json', {'a': float('nan')})
  assert json.loads((tmp_path / 'a.json').read_text()) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']


@pytest.mark.parametrize(
  ('text', 'shared'),
  [
    ('--checkpoint=/home/jane/runs/color/w.safetensors', '--checkpoint=w.safetensors'),
    ("'--output=/home/jane doe/new results/out'", "'--output=out'"),
    ('--datasets=clean:/home/jane/photos/,pairs:/home/jane/a', '--datasets=clean:photos,pairs:a'),
    ('--config=/home/jane/configs/color.py:50 --sigmas=5', '--config=color.py:50 --sigmas=5'),
    ('--data=/data --datasets=/data/test/CBSD68', '--data=data --datasets=test/CBSD68'),
    ('/data/test/CBSD68/2.png: damaged (see /tmp/x.log)', 'test/CBSD68/2.png: damaged (see x.log)'),
    ('https://jane:key@host/w.safetensors?X-Signature=5ec', 'https://host/w.safetensors'),
    ("'s3://bucket/w.pth?a=1&b=2' /home/data/x", "'s3://bucket/w.pth' x"),
    ('file:///home/jane/w.safetensors', 'w.safetensors'),
    # What is relative, or no path at all, stays.
    ('runs/color ./a ../b ~/c 3 images/s, 1 / 2, [...]', 'runs/color ./a ../b ~/c 3 images/s, 1 / 2, [...]'),
    ('https://host/w.safetensors', 'https://host/w.safetensors'),
    ('--checkpoint=hf://Owner/Name@v1/w.safetensors', '--checkpoint=hf://Owner/Name@v1/w.safetensors'),
  ],
)
def test_published_results_hold_no_absolute_path_and_no_signature(text, shared):
  assert shareable({'a': [text, 1, None]}, '/data') == {'a': [shared, 1, None]}


def test_paths_below_the_working_folder_become_relative(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('SADNET_DATA', '/sets of images')
  assert shareable(f'{tmp_path}/runs/color and /sets of images/test/1.png') == 'runs/color and test/1.png'
