"""A whole evaluation: its results, files and failures, with methods that are no networks."""

import contextlib
import csv
import dataclasses
import io
import json
from pathlib import Path
import sys

import numpy as np
from PIL import Image
import pytest

from sadnet_jax.evaluation import run
from sadnet_jax.evaluation.methods import Noisy, SingleImageMethod
from sadnet_jax.evaluation.submissions import sidd
from sadnet_jax.evaluation.submissions.mat_files import read_variables
from sadnet_jax.images.arrays import read_image
from tests.support import dataset_files, matlab_files
from tests.support.evaluation_options import evaluation_options as _options

# In the order of their names. Small, so that metrics are compiled for one size.
SIZES = [(19, 21), (21, 13), (19, 21), (12, 17), (19, 21)]


class Smooth:
  """The mean of each pixel and the one to its left, in batches; records its calls."""

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
    return [_smooth(image) for image in noisy]


def _smooth(image):
  return (image + np.roll(image, 1, axis=1)) / 2


class Fails(Noisy):
  """Cannot denoise images that are 13 pixels wide."""

  name = 'fails'

  def denoise(self, noisy, sigma_255):
    if noisy[0].shape[1] == 13:
      raise ValueError('13 columns are too few')
    return super().denoise(noisy, sigma_255)


class Darker(SingleImageMethod):
  """A method as docs/evaluate.md describes those of users."""

  name = 'darker'

  def denoise(self, noisy, sigma_255):
    return [image - sigma_255 / 255 for image in noisy]


def _results(output):
  return json.loads((output / 'results.json').read_text())


def _names(result):
  return [image['name'] for image in result['images']]


def _write_photographs(folder):
  """Five smooth images in three sizes."""
  for i, (height, width) in enumerate(SIZES):
    y, x = np.mgrid[:height, :width] / 8
    waves = np.stack([np.sin(x + i), np.cos(y), np.sin(x * y)], axis=-1)
    dataset_files.write(folder / f'{i}.png', np.uint8(127.5 + 127.5 * waves))
  return folder


@pytest.fixture
def photographs(tmp_path):
  return _write_photographs(tmp_path / 'photographs')


def test_a_method_of_ones_own_needs_a_name_and_a_function(tmp_path):
  for name in 'ab':
    # Which looks as if an absolute path began behind the bracket.
    _write_photographs(tmp_path / 'photographs' / 'holiday (1)' / name)
  options = run.Options(
    datasets=[f'clean:{tmp_path}/photographs'], output=tmp_path / 'mine', sigmas_255=[5.0], pictures=False
  )
  run.evaluate([Noisy(), Darker()], options)
  noisy, darker = _results(tmp_path / 'mine')['results']
  assert (noisy['method']['name'], darker['method']['name']) == ('noisy', 'darker')
  # The variance of the noise, of which rounding to 8 bits clips some, is the square of the offset.
  names = [f'holiday (1)/{folder}/{number}' for folder in 'ab' for number in range(5)]
  assert _names(noisy) == names
  rows = csv.DictReader((tmp_path / 'mine/images.csv').read_text().splitlines())
  assert [row['name'] for row in rows][:10] == names
  lost = noisy['mean']['psnr'] - darker['mean']['psnr']
  assert lost == pytest.approx(10 * np.log10(2), abs=0.5)


@dataclasses.dataclass
class Evaluated:
  """An evaluation that several tests look at."""

  photographs: Path
  output: Path
  method: Smooth
  printed: str
  content: dict


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory):
  """`Smooth` and `Noisy` on the photographs, at two sigmas under two protocols, with all files."""
  folder = tmp_path_factory.mktemp('evaluated')
  photographs, output, method = _write_photographs(folder / 'photographs'), folder / 'output', Smooth()
  options = _options(
    folder,
    photographs,
    sigmas_255=[25.0, 50.0],
    protocols=['unclipped', 'clipped8'],
    pictures=True,
    page_images=4,
  )
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
    arguments = [f'--datasets={photographs}', '--checkpoint=https://host/w.safetensors?signature=5ec']
    patch.setattr(sys, 'argv', [str(folder / 'evaluate.py'), *arguments])
    run.evaluate([method, Noisy()], options)
  return Evaluated(photographs, output, method, printed.getvalue(), _results(output))


def _expected_psnr(folder, name, sigma_255):
  """PSNR in dB before and after `Smooth`, in float64 and with NumPy's own generator."""
  clean = read_image(folder / f'{name}.png', 3) / 255
  np.random.seed(0)
  noisy = clean + np.random.normal(0, sigma_255 / 255, clean.shape)
  levels = np.round(np.clip(_smooth(noisy), 0, 1) * 255)
  return tuple(-10 * np.log10(np.mean((a - clean) ** 2)) for a in (noisy, levels / 255))


def test_results_of_every_method_sigma_and_protocol(evaluated):
  results = evaluated.content['results']
  assert [(r['sigma_255'], r['protocol'], r['method']) for r in results] == [
    (sigma, protocol, method)
    for sigma in (25.0, 50.0)
    for protocol in ('unclipped', 'clipped8')
    for method in ({'name': 'smooth', 'taps': 2}, {'name': 'noisy'})
  ]
  for result in results:
    assert _names(result) == ['0', '1', '2', '3', '4']
    mean = np.mean([image['psnr'] for image in result['images']])
    assert result['mean']['psnr'] == pytest.approx(mean, abs=1e-9)
  for result in (results[0], results[4]):
    for image in result['images']:
      expected = _expected_psnr(evaluated.photographs, image['name'], result['sigma_255'])
      # float32 and float64 differ here and there in how they round half a level.
      assert (image['psnr_noisy'], image['psnr']) == pytest.approx(expected, abs=2e-3)
      assert image['ssim_wang'] > image['ssim_wang_noisy']


def test_the_table_and_the_csv_have_the_same_results(evaluated):
  results = evaluated.content['results']
  for result in results:
    assert f'{result["mean"]["psnr"]:.3f}' in evaluated.printed
  assert 'photographs: 5 images, 3 of 21x19' in evaluated.printed
  with open(evaluated.output / 'images.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [(row['sigma_255'], row['method'], row['name']) for row in rows[4:6]] == [
    ('25', 'smooth', '4'),
    ('25', 'noisy', '0'),
  ]
  assert float(rows[5]['psnr']) == results[1]['images'][0]['psnr']


def test_the_pictures_are_the_measured_images(evaluated):
  result = evaluated.content['results'][3]
  folder = evaluated.output / 'photographs-sigma25-clipped8-noisy'
  for image in result['images']:
    clean = read_image(evaluated.photographs / f'{image["name"]}.png', 3) / 255
    denoised = read_image(folder / 'denoised' / f'{image["name"]}.png', 3) / 255
    assert image['psnr'] == pytest.approx(-10 * np.log10(np.mean((denoised - clean) ** 2)), abs=1e-4)
    # `Noisy` returns the noisy image.
    comparison = read_image(folder / 'comparison' / f'{image["name"]}.png', 3) / 255
    np.testing.assert_array_equal(comparison, np.concatenate([denoised, denoised, clean], axis=1))


def test_images_of_a_group_are_denoised_in_batches_of_one_size(evaluated):
  method = evaluated.method
  wide, tall, small = (19, 21, 3), (21, 13, 3), (12, 17, 3)
  assert method.planned == [SIZES] * 4
  assert method.calls[:4] == [([wide, wide], 25.0), ([wide], 25.0), ([tall], 25.0), ([small], 25.0)]
  assert method.prepared[:4] == [wide, wide, tall, small]


def test_names_that_are_not_utf8_are_escaped_in_json_csv_and_page(tmp_path):
  dataset_files.write(tmp_path / 'images' / 'caf\udce9.png', dataset_files.picture(19, 21, 0))
  run.evaluate([Noisy()], _options(tmp_path, tmp_path / 'images', pictures=True, page_images=2))
  output = tmp_path / 'output'
  assert _names(_results(output)['results'][0]) == ['caf\udce9']
  for file in ('results.json', 'images.csv', 'index.html'):
    assert 'caf\\udce9' in (output / file).read_text(encoding='utf-8')
  assert len(list(output.glob('*/*/caf\udce9.png'))) == 2


def test_results_and_page_do_not_say_where_files_are_on_this_machine(evaluated):
  assert evaluated.content['command'] == (
    'python evaluate.py --datasets=photographs --checkpoint=https://host/w.safetensors'
  )
  page = (evaluated.output / 'index.html').read_text(encoding='utf-8')
  assert '</html>' in page
  for text in (page, (evaluated.output / 'results.json').read_text()):
    assert 'signature' not in text
    assert str(evaluated.photographs.parent) not in text


def test_protocols_sizes_and_folders_of_one_name(tmp_path):
  """Crops of the protocol `authors`; images smaller than the window; two folders with the same name."""
  for parent, (height, width) in (('a', (19, 21)), ('b', (9, 12))):
    pixels = dataset_files.picture(height, width, ord(parent))
    dataset_files.write(tmp_path / parent / 'same' / '1.png', pixels)
  folders = (tmp_path / 'a' / 'same', tmp_path / 'b' / 'same')
  run.evaluate([Noisy()], _options(tmp_path, *folders, protocols=['authors'], pictures=True))
  first, second = _results(tmp_path / 'output')['results']
  assert [(r['images'][0]['height'], r['images'][0]['width']) for r in (first, second)] == [(16, 16), (8, 8)]
  assert second['mean']['ssim_wang'] is None
  assert 0 < second['mean']['ssim_matlab'] < 1
  pictures = [read_image(p, 3) for p in (tmp_path / 'output').glob('same-*/denoised/1.png')]
  assert sorted(picture.shape for picture in pictures) == [(8, 8, 3), (16, 16, 3)]
  # Only results, page and pictures are written.
  files = {p.name for p in (tmp_path / 'output').iterdir() if p.is_file()}
  assert files == {'images.csv', 'index.html', 'results.json'}


def test_equal_images_have_no_finite_psnr(tmp_path):
  pixels = dataset_files.picture(16, 16, 0)
  dataset_files.write(tmp_path / 'pairs' / 'a_noisy.png', pixels)
  dataset_files.write(tmp_path / 'pairs' / 'a_clean.png', pixels)
  run.evaluate([Noisy()], _options(tmp_path, tmp_path / 'pairs'))
  (result,) = _results(tmp_path / 'output')['results']
  assert result['sigma_255'] is None
  assert result['protocol'] == 'rounded'
  assert result['mean']['psnr'] is None  # Infinite, which JSON cannot express.
  assert result['images'][0]['ssim_wang'] == 1


def _truncated(folder):
  dataset_files.truncate(folder / '2.png')
  return 5  # Its header is intact.


def _no_image(folder):
  (folder / '2.png').write_text('not an image')
  return 4


def _sixteen_bits(folder):
  Image.fromarray(np.zeros((19, 21), np.uint16)).save(folder / '2.png')
  return 5


@pytest.mark.parametrize('damage', [_truncated, _no_image, _sixteen_bits])
def test_a_bad_image_is_named_and_the_rest_evaluated_if_asked(photographs, tmp_path, damage, capsys):
  readable = damage(photographs)
  with pytest.raises(ValueError, match=r'2\.png'):
    run.evaluate([Smooth()], _options(tmp_path, photographs))
  options = _options(tmp_path, photographs, keep_going=True, overwrite=True, sigmas_255=[25.0, 50.0])
  with pytest.raises(ValueError, match=r'^1 failure\(s\); everything else has been evaluated\n.*2\.png'):
    run.evaluate([Smooth()], options)
  content = _results(tmp_path / 'output')
  result, _ = content['results']
  assert _names(result) == ['0', '1', '3', '4']
  assert [failure['name'] for failure in result['failures']] == ['2']
  assert result['failures'][0]['error'].startswith('photographs/2.png: ')  # Relative to the data.
  assert content['failures'] == result['failures']
  assert content['complete']
  assert f'photographs: {readable} images' in capsys.readouterr().out


def test_bad_pairs_are_named_and_the_rest_evaluated_if_asked(tmp_path):
  folder = tmp_path / 'pairs'
  for i in range(3):
    dataset_files.write(folder / f'{i}_noisy.png', dataset_files.picture(16, 16, i))
    dataset_files.write(folder / f'{i}_clean.png', dataset_files.picture(16, 17 if i == 1 else 16, 9 + i))
  (folder / '2_noisy.png').unlink()
  with pytest.raises(ValueError, match=r'2_clean\.png: .*keep-going'):
    run.evaluate([Noisy()], _options(tmp_path, folder))
  with pytest.raises(ValueError, match=r'^2 failure\(s\)') as error:
    run.evaluate([Noisy()], _options(tmp_path, folder, keep_going=True, overwrite=True))
  assert '1_noisy' in str(error.value)
  content = _results(tmp_path / 'output')
  assert _names(content['results'][0]) == ['0_noisy']
  assert [failure['name'] for failure in content['results'][0]['failures']] == [
    'pairs/2_clean.png',
    '1_noisy',
  ]
  assert content['failures'] == content['results'][0]['failures']
  for path in (tmp_path / 'output').glob('*.*'):
    assert str(tmp_path) not in path.read_text()


def test_an_evaluation_that_fails_at_once_leaves_an_earlier_one(photographs, tmp_path, capsys):
  run.evaluate([Smooth()], _options(tmp_path, photographs, sigmas_255=[25.0, 50.0], pictures=True))
  before = {path: path.read_bytes() for path in (tmp_path / 'output').rglob('*') if path.is_file()}
  _no_image(photographs)
  with pytest.raises(ValueError, match=r'2\.png'):
    run.evaluate([Smooth()], _options(tmp_path, photographs, overwrite=True))
  assert {path: path.read_bytes() for path in before} == before
  capsys.readouterr()
  (photographs / '2.png').unlink()
  run.evaluate([Smooth()], _options(tmp_path, photographs, sigmas_255=[25.0], overwrite=True))
  stale = [path.name for path in (tmp_path / 'output').glob('*sigma50*')]
  assert f'folders of an earlier evaluation were kept: {", ".join(stale)}\n' in capsys.readouterr().out
  assert len(stale) == 1


def test_missing_sets_are_reported_before_anything_is_evaluated(photographs, tmp_path):
  (tmp_path / 'empty').mkdir()
  for bad, match in [
    ('cbsd86', "--datasets: 'cbsd86' is neither a known data set nor an existing folder"),
    ('dnd', 'DND with info.mat'),
    (tmp_path / 'empty', 'empty: '),
    (photographs / '0.png', r"--datasets: '.*0\.png' is a file"),
  ]:
    with pytest.raises(ValueError, match=match):
      run.evaluate([Noisy()], _options(tmp_path, photographs, bad))
    assert not (tmp_path / 'output').exists()
  options = _options(tmp_path, 'cbsd86', photographs, 'dnd', keep_going=True)
  with pytest.raises(ValueError, match=r'^2 failure\(s\)'):
    run.evaluate([Noisy()], options)
  content = _results(tmp_path / 'output')
  assert len(content['results'][0]['images']) == 5
  assert [failure['name'] for failure in content['failures']] == ['cbsd86', 'dnd']


def test_images_that_a_method_fails_on_are_failures(photographs, tmp_path):
  class Unsound(Noisy):
    name = 'unsound'

    def denoise(self, noisy, sigma_255):
      return [image * (np.nan if image.shape[1] == 13 else 1) for image in noisy]

  for method, match in (
    (Unsound(), '1: unsound: .* NaN or infinity'),
    (Fails(), '1: 13 columns are too few'),
  ):
    with pytest.raises(ValueError, match=match):
      run.evaluate([method], _options(tmp_path, photographs, keep_going=True, overwrite=True))
    assert _names(_results(tmp_path / 'output')['results'][0]) == ['0', '2', '3', '4']


def test_results_before_an_error_are_kept(photographs, tmp_path):
  with pytest.raises(ValueError, match='13 columns are too few'):
    run.evaluate([Noisy(), Fails()], _options(tmp_path, photographs))
  content = _results(tmp_path / 'output')
  assert [r['method']['name'] for r in content['results']] == ['noisy']
  assert not content['complete']
  assert '</html>' in (tmp_path / 'output' / 'index.html').read_text()


def test_a_method_that_does_not_fit_a_set_is_one_failure(photographs, tmp_path):
  class Grey(Noisy):
    name = 'grey'

    def check(self, channels, real):
      if channels == 3:
        raise ValueError('grey: these images are in colour')

  options = _options(tmp_path, photographs)
  with pytest.raises(ValueError, match=r'^grey: these images'):
    run.evaluate([Noisy(), Grey()], options)
  assert not options.output.exists()
  with pytest.raises(ValueError, match=r'^1 failure\(s\).*\n.*, grey: grey: these images'):
    run.evaluate([Noisy(), Grey()], dataclasses.replace(options, keep_going=True))
  assert [r['method']['name'] for r in _results(tmp_path / 'output')['results']] == ['noisy']


def test_names_that_differ_only_in_their_extension_stay_distinct(tmp_path):
  for name, width in (('c.bmp', 16), ('c.png', 18), ('c.png.jpg', 20)):
    dataset_files.write(tmp_path / 'images' / name, dataset_files.picture(16, width, 0))
  run.evaluate([Noisy()], _options(tmp_path, tmp_path / 'images', pictures=True))
  images = _results(tmp_path / 'output')['results'][0]['images']
  assert [(i['name'], i['width']) for i in images] == [('c.bmp', 16), ('c.png', 18), ('c.png.jpg', 20)]
  assert len(list((tmp_path / 'output').glob('images-*/denoised/*.png'))) == 3


def test_invalid_options_are_refused(photographs, tmp_path):
  for changes, match in [
    (
      {'protocols': ['clipped']},
      "--protocols: unknown name 'clipped'; choose from unclipped, clipped8, auth",
    ),
    ({'sigmas_255': [300.0]}, '--sigmas must be from 0 to 255, not 300'),
    ({'sigmas_255': []}, 'clean images need noise to be added; pass --sigmas'),
    ({'datasets': []}, '--datasets is empty; give at least one'),
    ({'protocols': ['authors', 'authors']}, '--protocols=authors,authors repeats a name'),
    ({'sidd_forms': ['zip']}, "--sidd_forms: unknown name 'zip'; choose from csv, uint8, cell"),
  ]:
    with pytest.raises(ValueError, match=match):
      run.evaluate([Noisy()], _options(tmp_path, photographs, **changes))
  dataset_files.write(tmp_path / 'grey' / '1.png', dataset_files.picture(16, 16, 0, channels=1))
  with pytest.raises(ValueError, match='grey: the images are grey and the network is for colour'):
    run.evaluate([Noisy()], _options(tmp_path, tmp_path / 'grey', channels=3))


def test_a_used_folder_is_written_to_only_if_asked(photographs, tmp_path):
  output = tmp_path / 'output'
  output.mkdir()
  (output / 'results.json').write_text('{}')
  with pytest.raises(
    ValueError, match='output: output folder is not empty; choose another one or pass --over'
  ):
    run.evaluate([Noisy()], _options(tmp_path, photographs))
  assert (output / 'results.json').read_text() == '{}'
  run.evaluate([Noisy()], _options(tmp_path, photographs, overwrite=True))
  assert _results(output)['results'][0]['sigma_255'] == 25
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'--output: .*file is a file; give a folder'):
    run.evaluate([Noisy()], _options(tmp_path, photographs, output=tmp_path / 'file'))


def test_sidd_validation_is_measured_block_by_block(tmp_path):
  content = matlab_files.sidd(
    tmp_path / 'SIDD', ('ValidationNoisyBlocksSrgb', 'ValidationGtBlocksSrgb'), (2, 3, 16, 16, 3)
  )
  run.evaluate([Noisy()], _options(tmp_path, 'sidd_val'))
  (result,) = _results(tmp_path / 'output')['results']
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
    'protocols': ['float', 'authors'],
    'version': '',
    'differs': ['all 1280 images'],
  }


def test_submission_to_sidd_in_three_forms(tmp_path, capsys):
  content = matlab_files.sidd(tmp_path / 'test' / 'SIDD', ('BenchmarkNoisyBlocksSrgb',), (2, 3, 16, 16, 3))
  blocks = content['BenchmarkNoisyBlocksSrgb']
  method = Smooth()
  options = _options(tmp_path, 'sidd_benchmark', sidd_forms=['csv', 'uint8', 'cell'], page_images=4)
  run.evaluate([method], options)
  (submission,) = _results(tmp_path / 'output')['submissions']
  assert submission['files'] == [
    'sidd_benchmark-smooth/csv/SubmitSrgb.csv',
    'sidd_benchmark-smooth/uint8/SubmitSrgb.mat',
    'sidd_benchmark-smooth/cell/SubmitSrgb.mat',
  ]
  assert len(method.calls) == 3
  written = read_variables(tmp_path / 'output' / submission['files'][1], sidd.VARIABLE)[sidd.VARIABLE]
  np.testing.assert_allclose(written, _smooth(blocks.swapaxes(1, 3) / 255).swapaxes(1, 3) * 255, atol=0.501)
  assert capsys.readouterr().out.count('no problem') == 3
  assert '0002_01' in (tmp_path / 'output' / 'index.html').read_text()


def test_submission_to_dnd_has_the_boxes_without_their_context(tmp_path):
  boxes = np.array([[[1, 1, 12, 12], [29, 39, 40, 50]], [[7, 3, 18, 14], [49, 22, 60, 33]]])
  truth = matlab_files.dnd(tmp_path / 'test' / 'DND', [(40, 50), (60, 33)], boxes)
  run.evaluate([Noisy()], _options(tmp_path, 'dnd', dnd_margin_px=5))
  (submission,) = _results(tmp_path / 'output')['submissions']
  assert submission['files'] == ['dnd-noisy', 'dnd-noisy/bundled']
  row0, column0, row1, column1 = boxes[1][0]
  crop = read_variables(tmp_path / 'output' / 'dnd-noisy' / '0002_01.mat', 'Idenoised_crop')
  np.testing.assert_array_equal(crop['Idenoised_crop'], truth[1][row0 - 1 : row1, column0 - 1 : column1])


def test_names_of_output_folders():
  assert run.folder_name(['sadnet'], ['cbsd68', 'pairs:a/b c'], [30.0, 12.5], ['unclipped']) == (
    'cbsd68+b_c-sigma30+12.5-unclipped'
  )
  assert run.folder_name(['noisy', 'bm3d'], ['nam'], [], ['unclipped']) == 'noisy+bm3d-nam'
  # By the authors' protocol real pairs are measured too.
  assert run.folder_name(['sadnet'], ['nam'], [], ['unclipped', 'authors']) == 'nam-authors'
