"""The statistics of noise, on noise whose correlations are known."""

import json

import numpy as np
from PIL import Image
import pytest

from tests.support.command import finish, start
from tools.plot_noise import flat_blocks, noise_statistics


def _flat(size=256, value=0.5):
  return np.full((size, size, 3), value, np.float32)


def test_white_noise_is_uncorrelated_and_has_its_deviation():
  noise = np.random.default_rng(1).normal(0, [0.01, 0.02, 0.03], (256, 256, 3))
  measured = noise_statistics(_flat() + noise, _flat())
  assert measured['deviation'] == pytest.approx([2.55, 5.1, 7.65], rel=0.03)
  assert measured['distance'] == pytest.approx([1, 0, 0, 0, 0], abs=0.03)
  assert measured['channels'] == pytest.approx([0, 0, 0], abs=0.03)


def test_correlations_are_those_of_a_moving_average():
  white = np.random.default_rng(2).normal(0, 0.02, (258, 258, 1))
  # The mean of 3x3: correlation 2/3 at one pixel's distance, 1/3 at two, none further away.
  grain = sum(white[r : r + 256, c : c + 256] for r in range(3) for c in range(3)) / 9
  own = np.random.default_rng(3).normal(0, grain.std(), (256, 256))
  # Green is red; half of blue's variance is shared with them.
  noise = np.concatenate([grain, grain, (grain + own[..., None]) / np.sqrt(2)], axis=-1)
  measured = noise_statistics(_flat() + noise, _flat())
  assert measured['channels'] == pytest.approx([1, np.sqrt(0.5), np.sqrt(0.5)], abs=0.04)
  red = noise_statistics(_flat() + grain, _flat())
  assert red['distance'] == pytest.approx([1, 2 / 3, 1 / 3, 0, 0], abs=0.05)


def test_detail_dark_and_bright_blocks_are_passed_over():
  clean = _flat(128)
  clean[:32, :32] += np.random.default_rng(0).normal(0, 0.1, (32, 32, 3))
  clean[:32, 32:64], clean[:32, 64:96] = 0.01, 0.99
  found = {(rows.start, columns.start) for rows, columns in flat_blocks(clean, 13)}
  assert found == {(r, c) for r in range(0, 128, 32) for c in range(0, 128, 32)} - {(0, 0), (0, 32), (0, 64)}
  assert noise_statistics(clean, clean) is None
  assert noise_statistics(_flat(value=0.0), _flat(value=0.0)) is None


def test_the_command_writes_the_picture_and_its_numbers(tmp_path):
  rng = np.random.default_rng(5)
  (tmp_path / 'set').mkdir()
  for name in 'ab':
    clean = np.full((64, 64, 3), 120)
    for role, noise in (('clean', 0), ('noisy', rng.normal(0, 5, clean.shape))):
      Image.fromarray(np.uint8(np.round(clean + noise))).save(tmp_path / 'set' / f'{name}_{role}.png')
  arguments = ('-m', 'tools.plot_noise', f'--pairs=pairs:{tmp_path / "set"}', '--presets=brooks')
  output, _ = finish(start(*arguments, f'--output={tmp_path / "noise.png"}'))
  assert '2 of set, 2 of brooks' in output
  with Image.open(tmp_path / 'noise.png') as picture:
    assert picture.size == (1080, 360)
  numbers = json.loads((tmp_path / 'noise.json').read_text())
  assert numbers['set']['deviation']['mean'] == pytest.approx([5] * 3, rel=0.1)
  _, errors = finish(start(*arguments, f'--output={tmp_path / "noise.png"}'), succeeds=False)
  assert 'noise.png exists; choose another name or pass --overwrite' in errors
  arguments = (*arguments[:2], f'{arguments[2]},{arguments[2].partition("=")[2]}', '--overwrite')
  _, errors = finish(start(*arguments, f'--output={tmp_path / "noise.png"}'), succeeds=False)
  assert '--pairs, --presets: set would name two sources; rename a folder' in errors
