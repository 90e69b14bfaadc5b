"""A whole evaluation: its figures, files and failures, with methods that are no networks."""

import csv
import dataclasses
import json

import numpy as np
from PIL import Image
import pytest

from sadnet_jax.evaluation import run
from sadnet_jax.evaluation.methods import Noisy
from sadnet_jax.evaluation.results import write_json
from sadnet_jax.evaluation.submissions import sidd
from sadnet_jax.images.arrays import read_image
from sadnet_jax.weights.safetensors import params_hash
from tests.support import dataset_files, matlab_files
from tests.support.evaluation_options import evaluation_options as _options


class Smooth:
  """The mean of each pixel and the one to its left, in batches; remembers what it is given."""

  name = 'smooth'
  batch = 2

  def __init__(self):
    self.planned, self.prepared, self.calls = [], [], []

  def describe(self):
    return {'name': self.name, 'taps': 2}

  def check(self, channels, real):
    pass

  def plan(self, sizes):
    self.planned.append(list(sizes))

  def group(self, size):
    return tuple(size)

  def prepare(self, shape):
    self.prepared.append(shape)

  def denoise(self, noisy, sigma_255):
    self.calls.append(([image.shape for image in noisy], sigma_255))
    return [(image + np.roll(image, 1, axis=1)) / 2 for image in noisy]


class Fails(Noisy):
  """Cannot denoise what is 24 pixels wide."""

  name = 'fails'

  def denoise(self, noisy, sigma_255):
    if noisy[0].shape[1] == 24:
      raise ValueError('got an image of 24 columns, want any other')
    return super().denoise(noisy, sigma_255)


def _results(tmp_path):
  return json.loads((tmp_path / 'output' / 'results.json').read_text())


@pytest.fixture
def photographs(tmp_path):
  """Five smooth images in three sizes, which alternate in the order of names."""
  folder = tmp_path / 'photographs'
  for i, (height, width) in enumerate([(19, 33), (40, 24), (19, 33), (12, 17), (19, 33)]):
    y, x = np.mgrid[:height, :width] / 8
    waves = np.stack([np.sin(x + i), np.cos(y), np.sin(x * y)], axis=-1)
    dataset_files.write(folder / f'{i}.png', np.uint8(127.5 + 127.5 * waves))
  return folder


def _expected(folder, name, sigma_255, denoise):
  """PSNR in dB before and after, in float64 and by NumPy's own generator."""
  clean = read_image(folder / f'{name}.png', 3) / 255
  np.random.seed(0)
  noisy = clean + np.random.normal(0, sigma_255 / 255, clean.shape)
  levels = np.round(np.clip(denoise(noisy), 0, 1) * 255)
  return tuple(-10 * np.log10(np.mean((a - clean) ** 2)) for a in (noisy, levels / 255))


def test_figures_files_and_order(photographs, tmp_path, capsys):
  method = Smooth()
  run.evaluate([method], _options(tmp_path, photographs, sigmas_255=[25.0, 50.0]))
  content = _results(tmp_path)
  assert [(r['sigma_255'], r['protocol'], r['method']) for r in content['results']] == [
    (sigma, 'unclipped', {'name': 'smooth', 'taps': 2}) for sigma in (25.0, 50.0)
  ]
  for result in content['results']:
    assert [image['name'] for image in result['images']] == ['0', '1', '2', '3', '4']
    for image in result['images']:
      expected = _expected(
        photographs, image['name'], result['sigma_255'], lambda noisy: (noisy + np.roll(noisy, 1, axis=1)) / 2
      )
      # Half a level of rounding decides here and there: float32 against float64.
      assert (image['psnr_noisy'], image['psnr']) == pytest.approx(expected, abs=2e-3)
      assert image['ssim_wang'] > image['ssim_wang_noisy']
    mean = np.mean([image['psnr'] for image in result['images']])
    assert result['mean']['psnr'] == pytest.approx(mean, abs=1e-9)
  printed = capsys.readouterr().out
  assert f'{content["results"][1]["mean"]["psnr"]:.3f}' in printed
  assert 'photographs: 5 images, 3 of 33x19' in printed
  with open(tmp_path / 'output' / 'images.csv', newline='') as file:
    lines = list(csv.DictReader(file))
  assert [(line['sigma_255'], line['name']) for line in lines[4:6]] == [('25', '4'), ('50', '0')]
  assert float(lines[5]['psnr']) == content['results'][1]['images'][0]['psnr']
  assert '</html>' in (tmp_path / 'output' / 'index.html').read_text()


def test_the_pictures_are_those_measured(photographs, tmp_path):
  run.evaluate([Noisy()], _options(tmp_path, photographs, protocols=['clipped8']))
  (result,) = _results(tmp_path)['results']
  folder = tmp_path / 'output' / 'photographs-sigma25-clipped8-noisy'
  for image in result['images']:
    clean = read_image(photographs / f'{image["name"]}.png', 3) / 255
    denoised = read_image(folder / 'denoised' / f'{image["name"]}.png', 3) / 255
    assert image['psnr'] == pytest.approx(-10 * np.log10(np.mean((denoised - clean) ** 2)), abs=1e-4)
    # The noisy image is the denoised one, the method being what it is.
    comparison = read_image(folder / 'comparison' / f'{image["name"]}.png', 3) / 255
    np.testing.assert_array_equal(comparison, np.concatenate([denoised, denoised, clean], axis=1))


def test_images_of_a_group_are_denoised_in_batches_of_one_size(photographs, tmp_path):
  method = Smooth()
  run.evaluate([method], _options(tmp_path, photographs, pictures=False, page_images=0))
  assert method.planned == [[(19, 33), (40, 24), (19, 33), (12, 17), (19, 33)]]
  wide, high, small = (19, 33, 3), (40, 24, 3), (12, 17, 3)
  assert method.calls == [([wide, wide], 25.0), ([wide], 25.0), ([high], 25.0), ([small], 25.0)]
  assert method.prepared == [wide, wide, high, small]
  assert sorted(p.name for p in (tmp_path / 'output').iterdir()) == [
    'images.csv',
    'index.html',
    'results.json',
  ]


def test_the_authors_protocol_measures_what_is_left_of_the_crop(photographs, tmp_path):
  (photographs / '3.png').unlink()
  run.evaluate([Noisy()], _options(tmp_path, photographs, protocols=['authors']))
  (result,) = _results(tmp_path)['results']
  assert {(i['height'], i['width']) for i in result['images']} == {(16, 32), (40, 24)}


def test_small_images_have_no_ssim_of_the_valid_region(tmp_path):
  dataset_files.write(tmp_path / 'tiny' / 'a.png', dataset_files.picture(7, 9, 0))
  run.evaluate([Noisy()], _options(tmp_path, tmp_path / 'tiny'))
  (result,) = _results(tmp_path)['results']
  assert result['mean']['ssim_wang'] is None
  assert 0 < result['mean']['ssim_matlab'] < 1


def test_images_that_are_equal_are_no_harm(tmp_path):
  pixels = dataset_files.picture(16, 16, 0)
  dataset_files.write(tmp_path / 'pairs' / 'a_noisy.png', pixels)
  dataset_files.write(tmp_path / 'pairs' / 'a_clean.png', pixels)
  run.evaluate([Noisy()], _options(tmp_path, tmp_path / 'pairs'))
  (result,) = _results(tmp_path)['results']
  assert result['sigma_255'] is None
  assert result['protocol'] == 'rounded'
  assert result['mean']['psnr'] is None  # Infinite, which JSON has no word for.
  assert result['images'][0]['ssim_wang'] == 1


def _damage_truncated(folder):
  dataset_files.truncate(folder / '2.png')
  return r'2\.png: got a damaged image file', 5


def _damage_no_image(folder):
  (folder / '2.png').write_text('not an image')
  return r'2\.png: got no readable image', 4


def _damage_sixteen_bits(folder):
  Image.fromarray(np.zeros((19, 33), np.uint16)).save(folder / '2.png')
  return r'2\.png: got an image of mode I;16, want 8-bit', 5


@pytest.mark.parametrize('damage', [_damage_truncated, _damage_no_image, _damage_sixteen_bits])
def test_a_bad_image_is_named_and_the_rest_evaluated_if_asked(photographs, tmp_path, damage, capsys):
  match, count = damage(photographs)
  with pytest.raises(ValueError, match=match):
    run.evaluate([Smooth()], _options(tmp_path, photographs))
  options = _options(tmp_path, photographs, keep_going=True, overwrite=True, sigmas_255=[25.0, 50.0])
  with pytest.raises(ValueError, match=rf'got 1 failure\(s\), want none; the rest is evaluated\n.*{match}'):
    run.evaluate([Smooth()], options)
  content = _results(tmp_path)
  result, _ = content['results']
  assert [image['name'] for image in result['images']] == ['0', '1', '3', '4']
  assert [failure['name'] for failure in result['failures']] == ['2']
  assert content['failures'] == result['failures']
  # Of those whose heads can be read.
  assert f'photographs: {count} images' in capsys.readouterr().out


def test_bad_pairs_are_named_and_the_rest_evaluated_if_asked(tmp_path):
  folder = tmp_path / 'pairs'
  for i in range(3):
    dataset_files.write(folder / f'{i}_noisy.png', dataset_files.picture(16, 16, i))
    dataset_files.write(folder / f'{i}_clean.png', dataset_files.picture(16, 17 if i == 1 else 16, 9 + i))
  (folder / '2_noisy.png').unlink()
  with pytest.raises(ValueError, match=r'2_clean\.png: got a clean image .* without a noisy one.*keep-going'):
    run.evaluate([Noisy()], _options(tmp_path, folder))
  with pytest.raises(ValueError, match=r'got 2 failure\(s\)') as error:
    run.evaluate([Noisy()], _options(tmp_path, folder, keep_going=True, overwrite=True))
  assert '1_noisy: got images of different sizes' in str(error.value)
  assert [i['name'] for i in _results(tmp_path)['results'][0]['images']] == ['0_noisy']


def test_sets_that_are_not_there_are_told_before_anything_is_evaluated(photographs, tmp_path):
  (tmp_path / 'empty').mkdir()
  for bad, match in [
    ('cbsd86', "--datasets: got 'cbsd86', which is neither a data set nor a folder"),
    ('dnd', 'dnd: got no DND with info.mat'),
    (tmp_path / 'empty', 'empty: got no image'),
    (photographs / '0.png', 'which is a file'),
  ]:
    with pytest.raises(ValueError, match=match):
      run.evaluate([Noisy()], _options(tmp_path, photographs, bad))
    assert not (tmp_path / 'output').exists()
  options = _options(tmp_path, 'cbsd86', photographs, 'dnd', keep_going=True)
  with pytest.raises(ValueError, match=r'got 2 failure\(s\)'):
    run.evaluate([Noisy()], options)
  content = _results(tmp_path)
  assert len(content['results'][0]['images']) == 5
  assert [failure['name'] for failure in content['failures']] == ['cbsd86', 'dnd']


def test_numbers_that_are_none_are_no_result(photographs, tmp_path):
  class Unsound(Noisy):
    name = 'unsound'

    def denoise(self, noisy, sigma_255):
      return [image * (np.nan if image.shape[1] == 24 else 1) for image in noisy]

  with pytest.raises(ValueError, match='1: unsound: got NaN or infinity in the denoised image'):
    run.evaluate([Unsound()], _options(tmp_path, photographs, keep_going=True))
  assert [i['name'] for i in _results(tmp_path)['results'][0]['images']] == ['0', '2', '3', '4']


def test_names_that_differ_by_endings_alone_are_images_of_their_own(tmp_path):
  for name, width in (('c.bmp', 16), ('c.png', 24), ('c.png.jpg', 32)):
    dataset_files.write(tmp_path / 'images' / name, dataset_files.picture(16, width, 0))
  run.evaluate([Noisy()], _options(tmp_path, tmp_path / 'images'))
  images = _results(tmp_path)['results'][0]['images']
  assert [(i['name'], i['width']) for i in images] == [('c.bmp', 16), ('c.png', 24), ('c.png.jpg', 32)]
  assert len(list((tmp_path / 'output').glob('images-*/denoised/*.png'))) == 3


def test_a_method_that_does_not_fit_a_set_is_one_failure(photographs, tmp_path):
  class Grey(Noisy):
    name = 'grey'

    def check(self, channels, real):
      if channels == 3:
        raise ValueError('grey: got colour, want grey')

  options = _options(tmp_path, photographs)
  with pytest.raises(ValueError, match='grey: got colour, want grey'):
    run.evaluate([Noisy(), Grey()], options)
  assert not options.output.exists()
  with pytest.raises(ValueError, match=r'got 1 failure\(s\).*\n.*, grey: grey: got colour'):
    run.evaluate([Noisy(), Grey()], dataclasses.replace(options, keep_going=True))
  assert [r['method']['name'] for r in _results(tmp_path)['results']] == ['noisy']


def test_what_a_method_refuses_is_a_failure_of_those_images(photographs, tmp_path):
  with pytest.raises(ValueError, match='1: got an image of 24 columns'):
    run.evaluate([Fails()], _options(tmp_path, photographs, keep_going=True))
  assert [i['name'] for i in _results(tmp_path)['results'][0]['images']] == ['0', '2', '3', '4']


def test_what_was_evaluated_before_an_error_is_kept(photographs, tmp_path):
  with pytest.raises(ValueError, match='got an image of 24 columns'):
    run.evaluate([Noisy(), Fails()], _options(tmp_path, photographs))
  assert [r['method']['name'] for r in _results(tmp_path)['results']] == ['noisy']
  assert '</html>' in (tmp_path / 'output' / 'index.html').read_text()


def test_options_that_cannot_be_are_refused(photographs, tmp_path):
  for changes, match in [
    ({'protocols': ['clipped']}, "--protocols: got 'clipped', want some of unclipped, clipped8, authors"),
    ({'sigmas_255': [300.0]}, '--sigmas: got 300, want numbers from 0 to 255'),
    ({'sigmas_255': []}, 'got no sigma for the noise to add, want --sigmas'),
    ({'datasets': []}, '--datasets: got nothing, want one or more'),
    ({'protocols': ['authors', 'authors']}, '--protocols: got authors,authors, want each once'),
    ({'sidd_forms': ['zip']}, "--sidd_forms: got 'zip', want some of csv, uint8, cell"),
  ]:
    with pytest.raises(ValueError, match=match):
      run.evaluate([Noisy()], _options(tmp_path, photographs, **changes))
  dataset_files.write(tmp_path / 'grey' / '1.png', dataset_files.picture(16, 16, 0, channels=1))
  with pytest.raises(ValueError, match='got grey images, want colour; for grey ones use a network'):
    run.evaluate([Noisy()], _options(tmp_path, tmp_path / 'grey', channels=3))


def test_nothing_is_written_over_unless_asked(photographs, tmp_path):
  run.evaluate([Noisy()], _options(tmp_path, photographs))
  with pytest.raises(ValueError, match='got a folder with something in it, want an empty one, or pass'):
    run.evaluate([Noisy()], _options(tmp_path, photographs))
  run.evaluate([Noisy()], _options(tmp_path, photographs, sigmas_255=[50.0], overwrite=True))
  assert _results(tmp_path)['results'][0]['sigma_255'] == 50
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'--output: got .*file, which is a file, want a folder'):
    run.evaluate([Noisy()], _options(tmp_path, photographs, output=tmp_path / 'file'))


def test_folders_of_one_name_have_pictures_of_their_own(tmp_path):
  for parent in ('a', 'b'):
    dataset_files.write(tmp_path / parent / 'same' / '1.png', dataset_files.picture(16, 16, ord(parent)))
  run.evaluate([Noisy()], _options(tmp_path, tmp_path / 'a' / 'same', tmp_path / 'b' / 'same'))
  pictures = [read_image(p, 3) for p in (tmp_path / 'output').glob('same-*/denoised/1.png')]
  assert len(pictures) == 2
  assert not np.array_equal(*pictures)


def test_sidd_validation_is_measured_block_by_block(tmp_path):
  content = matlab_files.sidd(
    tmp_path / 'SIDD', ('ValidationNoisyBlocksSrgb', 'ValidationGtBlocksSrgb'), (2, 3, 16, 16, 3)
  )
  run.evaluate([Noisy()], _options(tmp_path, 'sidd_val', pictures=False))
  (result,) = _results(tmp_path)['results']
  assert (result['protocol'], result['sigma_255']) == ('float', None)
  noisy, clean = (
    content[name][1, 0] / 255 for name in ('ValidationNoisyBlocksSrgb', 'ValidationGtBlocksSrgb')
  )
  image = result['images'][3]
  assert image['name'] == '0002_01'
  assert image['psnr'] == pytest.approx(-10 * np.log10(np.mean((noisy - clean) ** 2)), abs=1e-4)
  assert result['published'][0] == {
    'method': 'SADNet (paper)',
    'psnr': 39.46,
    'ssim': None,
    'protocols': ['float'],
    'version': '',
    'differs': ['all 1280 images'],
  }


def test_sidd_benchmark_in_three_forms(tmp_path, capsys):
  content = matlab_files.sidd(tmp_path / 'test' / 'SIDD', ('BenchmarkNoisyBlocksSrgb',), (2, 3, 16, 16, 3))
  blocks = content['BenchmarkNoisyBlocksSrgb']
  method = Smooth()
  run.evaluate([method], _options(tmp_path, 'sidd_benchmark', sidd_forms=['csv', 'uint8', 'cell']))
  (submission,) = _results(tmp_path)['submissions']
  assert submission['files'] == [
    'sidd_benchmark-smooth/csv/SubmitSrgb.csv',
    'sidd_benchmark-smooth/uint8/SubmitSrgb.mat',
    'sidd_benchmark-smooth/cell/SubmitSrgb.mat',
  ]
  assert len(method.calls) == 3
  expected = (blocks / 255 + np.roll(blocks / 255, 1, axis=3)) / 2
  written = sidd.read_variables(tmp_path / 'output' / submission['files'][1], sidd.VARIABLE)[sidd.VARIABLE]
  np.testing.assert_allclose(written, expected * 255, atol=0.501)
  assert capsys.readouterr().out.count('no problem') == 3
  assert '0002_01' in (tmp_path / 'output' / 'index.html').read_text()


def test_dnd_patches_are_cut_out_of_their_surroundings(tmp_path):
  truth = matlab_files.dnd(tmp_path / 'test' / 'DND', [(40, 50), (60, 33)], DND_BOXES)
  run.evaluate([Noisy()], _options(tmp_path, 'dnd', dnd_margin_px=5))
  (submission,) = _results(tmp_path)['submissions']
  assert submission['files'] == ['dnd-noisy', 'dnd-noisy/bundled']
  row0, column0, row1, column1 = DND_BOXES[1][0]
  crop = sidd.read_variables(tmp_path / 'output' / 'dnd-noisy' / '0002_01.mat', 'Idenoised_crop')
  np.testing.assert_array_equal(crop['Idenoised_crop'], truth[1][row0 - 1 : row1, column0 - 1 : column1])


DND_BOXES = np.array(
  [[[1, 1, 12, 12], [29, 39, 40, 50]], [[7, 3, 18, 14], [49, 22, 60, 33]]],
)


def test_a_hash_is_of_names_and_values():
  params = {'a': {'kernel': np.arange(4, dtype=np.float32)}}
  assert params_hash(params) == params_hash({'a': {'kernel': np.arange(4, dtype=np.float32)}})
  others = [
    {'b': {'kernel': np.arange(4, dtype=np.float32)}},
    {'a': {'kernel': np.arange(4, dtype=np.float32)[::-1]}},
    {'a': {'kernel': np.arange(4, dtype=np.float32).reshape(2, 2)}},
  ]
  assert params_hash(params) not in [params_hash(other) for other in others]


def test_json_is_whole_or_not_there(tmp_path):
  write_json(tmp_path / 'a.json', {'a': 1})
  with pytest.raises(ValueError, match='Out of range float values'):
    write_json(tmp_path / 'a.json', {'a': float('nan')})
  assert json.loads((tmp_path / 'a.json').read_text()) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_names_of_output_folders():
  assert run.folder_name(['sadnet'], ['cbsd68', 'pairs:a/b c'], [30.0, 12.5], ['unclipped']) == (
    'cbsd68+b_c-sigma30+12.5-unclipped'
  )
  assert run.folder_name(['noisy', 'bm3d'], ['nam'], [], ['unclipped']) == 'noisy+bm3d-nam'
