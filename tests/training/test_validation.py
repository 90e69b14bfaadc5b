"""What is measured while a run is training."""

import numpy as np
import pytest

from sadnet_jax.training.validation import ValidationSet, check_images, find_validation_sets
from tests.support import dataset_files, matlab_files


def test_sidd_blocks_are_a_folder_of_pairs(tmp_path):
  names = ('ValidationNoisyBlocksSrgb', 'ValidationGtBlocksSrgb')
  content = matlab_files.sidd(tmp_path / 'SIDD', names, (2, 4, 16, 16, 3))
  (found,), missing = find_validation_sets((), (str(tmp_path / 'SIDD'), 'nowhere'), (), images=4)
  assert (found.name, missing) == ('SIDD', ['nowhere'])
  assert [image.name for image in found.images] == ['0001_01', '0001_03', '0002_01', '0002_03']
  for read, name in zip(found.images[1].read(3), names, strict=True):
    np.testing.assert_array_equal(read, content[name][0, 2])
  assert found.protocol.name == 'float'
  check_images(found, 3)
  with pytest.raises(ValueError, match='0001_01: the blocks of SIDD are in colour'):
    check_images(found, 1)


def test_a_folder_with_the_benchmark_alone_is_no_validation_set(tmp_path):
  matlab_files.sidd(tmp_path / 'SIDD', ('BenchmarkNoisyBlocksSrgb',), (1, 1, 16, 16, 3))
  assert find_validation_sets((), (str(tmp_path / 'SIDD'),), (), images=0) == ([], [str(tmp_path / 'SIDD')])


def test_a_damaged_image_is_found_by_reading_all(tmp_path):
  for i in range(3):
    dataset_files.write(tmp_path / 'images' / f'{i}.png', dataset_files.picture(16, 16, i))
  dataset_files.truncate(tmp_path / 'images' / '2.png')
  (found,), _ = find_validation_sets((str(tmp_path / 'images'),), (), (), images=0)
  check_images(ValidationSet('first two', found.images[:2]), 3)
  with pytest.raises(ValueError, match=r'2\.png: the file is damaged or incomplete'):
    check_images(found, 3)
