"""Which pictures are denoised, and the targets made of what is measured."""

import numpy as np
from PIL import Image

from benchmarks import many_sizes, tables


def test_no_two_pictures_have_the_same_size(tmp_path):
  Image.fromarray(np.full((200, 300, 3), 100, np.uint8)).save(tmp_path / 'a.png')
  found = many_sizes.pictures([tmp_path / 'a.png'], 50, sigma_255=10)
  shapes = {picture.shape for picture in found}
  assert len(shapes) == 50
  assert all(96 <= side <= 192 for shape in shapes for side in shape[:2])
  assert abs(np.concatenate([picture.ravel() for picture in found]).std() - 10) < 0.5


def test_targets_are_of_the_median_run_and_of_the_growth_after_the_tenth_size():
  results = {
    'device': 'cpu',
    'folder_seconds': [30, 70, 40],
    'folder_cpu_seconds': [31, 33, 32],
    'seconds': 90,
    'resident_mib': [*range(100, 120), 259],
    'differences': [{'size': [96, 96], 'shared': 0.0, 'reflected': 9.0, 'reflected_mean': 0.1}],
  }
  folder, growth = many_sizes.targets(results).values()
  assert (folder['value'], folder['reached']) == (40, True)
  assert (growth['value'], growth['reached']) == (150, True)
  assert many_sizes.targets({**results, 'device': 'gpu'}) == {}
  assert any('30 pictures' in line and '40' in line for line in tables.many_sizes_table(results))
