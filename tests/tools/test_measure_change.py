"""What denoising changes in pictures."""

import re

import numpy as np
from PIL import Image
import pytest

from configs import default
from sadnet_jax import Denoiser
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights.safetensors import save_weights
from tests.support.command import finish, start
from tests.support.small_networks import PLAIN, random_variables
from tools.measure_change import Change, change, summary


def test_a_change_is_its_size_and_its_effect_on_the_means():
  before = np.full((2, 2, 3), 100, np.uint8)
  after = before.copy()
  after[0, :, 0] += 4
  after[1, :, 0] -= 4
  after[..., 2] -= 1
  found = change(before, after)
  assert found.mean_abs == pytest.approx((4 + 0 + 1) / 3)
  np.testing.assert_allclose(found.mean, [0, 0, -1])
  assert summary([found, Change(1.0, np.array([0.2, -0.4, 0]))]) == (
    '2 pictures: changed by 1.33 levels on average (the most by 1.67), means of channels by at most 1.00'
  )


def test_the_command_measures_the_first_pictures(tmp_path):
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (16, 24, 3), dtype=np.uint8) for _ in range(3)]
  (tmp_path / 'images').mkdir()
  for name, image in zip('abc', images, strict=True):
    Image.fromarray(image).save(tmp_path / 'images' / f'{name}.png')
  config = default.get_config()
  config.model.update(PLAIN)
  model, weights = SADNet(**PLAIN), tmp_path / 'small.safetensors'
  params = random_variables(model)['params']
  save_weights(weights, params, model=config.model.to_dict(), step=1, about={})
  options = [f'--model={weights}', f'--images={tmp_path / "images"}']
  process = start('-m', 'tools.measure_change', *options, '--first=2')
  output, _ = finish(process)
  expected = [change(image, Denoiser(model, params)(image)) for image in images[:2]]
  assert [float(text) for text in re.findall(r'by (\d+\.\d+) on average', output)] == [
    pytest.approx(each.mean_abs, abs=0.006) for each in expected
  ]
  assert '2 pictures: changed by ' in output
  process = start('-m', 'tools.measure_change', *options, '--first=-1')
  assert '-1 is not a non-negative integer' in finish(process, succeeds=False)[1]
