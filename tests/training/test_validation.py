"""What is measured while a run is training."""

import jax
import numpy as np
import pytest

from sadnet_jax.denoise import tile_memory
from sadnet_jax.training.validation import ValidationSet, check_images, find_validation_sets, make_validator
from tests.support import dataset_files, matlab_files


def test_sidd_blocks_are_a_folder_of_pairs(tmp_path):
  names = ('ValidationNoisyBlocksSrgb', 'ValidationGtBlocksSrgb')
  content = matlab_files.sidd(tmp_path / 'SIDD', names, (2, 4, 16, 16, 3))
  (found,), missing = find_validation_sets((), (str(tmp_path / 'SIDD'), 'nowhere'), (), images=4)
  assert (found.name, missing) == ('SIDD', {'not found': ['nowhere']})
  assert [image.name for image in found.images] == ['0001_01', '0001_03', '0002_01', '0002_03']
  for read, name in zip(found.images[1].read(3), names, strict=True):
    np.testing.assert_array_equal(read, content[name][0, 2])
  assert found.protocol.name == 'float'
  check_images(found, 3)
  with pytest.raises(ValueError, match='0001_01: the blocks of SIDD are in colour'):
    check_images(found, 1)
  # A network of grey images trains without them.
  folder = str(tmp_path / 'SIDD')
  assert find_validation_sets((), (folder,), (), images=4, channels=1) == ([], {'in colour': [folder]})


def test_pairs_come_first_where_they_decide(tmp_path):
  for name in ('clean/1', 'pairs/1_noisy', 'pairs/1_gt'):
    dataset_files.write(tmp_path / f'{name}.png', dataset_files.picture(16, 16, 0))
  folders = [(str(tmp_path / name),) for name in ('clean', 'pairs')]
  for first, names in ((False, ['clean', 'pairs']), (True, ['pairs', 'clean'])):
    sets, _ = find_validation_sets(*folders, (), images=0, pairs_first=first)
    assert [s.name for s in sets] == names


def test_a_folder_with_the_benchmark_alone_is_no_validation_set(tmp_path):
  matlab_files.sidd(tmp_path / 'SIDD', ('BenchmarkNoisyBlocksSrgb',), (1, 1, 16, 16, 3))
  folder = str(tmp_path / 'SIDD')
  assert find_validation_sets((), (folder,), (), images=0) == ([], {'not found': [folder]})


def test_an_empty_name_is_not_the_working_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  dataset_files.write(tmp_path / 'holiday' / '1.png', dataset_files.picture(16, 16, 0))
  # As a flag without a value gives it.
  assert find_validation_sets(('',), ('',), (), images=0) == ([], {})


def test_sets_of_one_name_are_kept_apart(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for folder in ('old/set', 'set'):
    dataset_files.write(tmp_path / folder / '1.png', dataset_files.picture(16, 16, 0))
  sets, _ = find_validation_sets(('old/set', 'set', 'set'), (), (), images=0)
  assert [s.name for s in sets] == ['set', 'set (2)', 'set (3)']
  sets, _ = find_validation_sets(('set', 'old/set'), (), (), images=0)
  assert [s.name for s in sets] == ['set', 'old/set']


def test_a_damaged_image_is_found_by_reading_all(tmp_path):
  for i in range(3):
    dataset_files.write(tmp_path / 'images' / f'{i}.png', dataset_files.picture(16, 16, i))
  dataset_files.truncate(tmp_path / 'images' / '2.png')
  (found,), _ = find_validation_sets((str(tmp_path / 'images'),), (), (), images=0)
  check_images(ValidationSet('first two', found.images[:2]), 3)
  with pytest.raises(ValueError, match=r'2\.png: the file is damaged or incomplete'):
    check_images(found, 3)


class _Network:
  """A network that adds its weight to every pixel, on a device with memory for some pixels only."""

  channels = 3
  # From these follows how large a tile may be.
  use_rsab, width = False, 8

  def __init__(self, most_px):
    self.most_px, self.compiled_for = most_px, []

  def apply(self, variables, noisy, inside=None):
    if noisy.shape[1] * noisy.shape[2] > self.most_px:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    self.compiled_for.append(noisy.shape[1:3])
    return noisy + variables['params']


def _validate(network, folder, offset=0.2):
  sets, _ = find_validation_sets((str(folder),), (), (), images=0)
  validate = make_validator(network, sets, sigma_255=0, clip=0, pictures=0)
  # Twice, with other weights: nothing is compiled anew.
  validate(jax.device_put(np.float32(1)), lambda: False)
  compiled = len(network.compiled_for)
  results = validate(jax.device_put(np.float32(offset)), lambda: False)
  assert len(network.compiled_for) == compiled
  return results[folder.name]


@pytest.mark.parametrize('areas_px', [(160**2,), (400**2, 160**2)])
def test_large_images_are_validated_in_tiles(tmp_path, monkeypatch, areas_px):
  monkeypatch.setattr(tile_memory, 'AREAS_PX', areas_px)
  for name, size in (('large', (170, 200)), ('small', (16, 24))):
    dataset_files.write(tmp_path / 'images' / f'{name}.png', np.full((*size, 3), 100, np.uint8))
  network = _Network(most_px=160**2)
  result = _validate(network, tmp_path / 'images')
  assert result.failed == ()
  assert result.denoised_psnr == pytest.approx(20 * np.log10(1 / 0.2), abs=1e-3)
  # The small one as a whole and not padded.
  assert (16, 24) in network.compiled_for


def test_images_of_many_sizes_share_programs(tmp_path):
  for i in range(9):
    dataset_files.write(tmp_path / 'images' / f'{i}.png', np.full((16 + i, 24 + 3 * i, 3), 100, np.uint8))
  network = _Network(most_px=10**6)
  result = _validate(network, tmp_path / 'images')
  assert result.denoised_psnr == pytest.approx(20 * np.log10(1 / 0.2), abs=1e-3)
  assert len(network.compiled_for) == 1


def test_an_image_that_fails_is_logged_by_name_and_left_out(tmp_path, caplog):
  for name in 'ab':
    dataset_files.write(tmp_path / 'images' / f'{name}.png', np.full((16, 24, 3), 100, np.uint8))
  dataset_files.truncate(tmp_path / 'images' / 'a.png')
  result = _validate(_Network(most_px=160**2), tmp_path / 'images')
  assert result.failed == ('a',)
  assert result.denoised_psnr == pytest.approx(20 * np.log10(1 / 0.2), abs=1e-3)
  assert 'validation on images: a failed and is left out: ' in caplog.text
  dataset_files.write(tmp_path / 'images' / 'a.png', np.full((200, 170, 3), 100, np.uint8))
  result = _validate(_Network(most_px=500), tmp_path / 'images')
  assert result.failed == ('a',)
  assert '170x200 pixels: the device fails on tiles' in caplog.text
