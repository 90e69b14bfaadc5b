"""Metrics: the contract, and parity with scikit-image."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from sadnet_jax.metrics import psnr, round_to_8_bits


def _pair(shape, seed=0):
  random = np.random.default_rng(seed)
  reference = random.random(shape)
  return np.clip(reference + random.normal(0, 0.1, shape), 0, 1), reference


def test_psnr_equals_scikit_image_on_an_odd_size():
  image, reference = _pair((31, 37, 3))
  assert psnr(image, reference) == pytest.approx(
    peak_signal_noise_ratio(reference, image, data_range=1), abs=1e-10
  )


def test_psnr_of_a_batch_is_that_of_its_images():
  image, reference = _pair((3, 9, 7, 1))
  np.testing.assert_allclose(
    psnr(image, reference), [psnr(i, r) for i, r in zip(image, reference, strict=True)]
  )


def test_psnr_of_a_known_error():
  # An error of 0.1 everywhere: 10 * log10(1 / 0.01).
  assert psnr(np.full((4, 4, 1), 0.6), np.full((4, 4, 1), 0.5)) == pytest.approx(20)


def test_psnr_of_equal_images_is_infinite():
  assert psnr(np.ones((2, 2, 1)), np.ones((2, 2, 1))) == np.inf


def test_psnr_is_computed_in_float64():
  # In float32 the square of an error this small would be lost beside 1.
  reference = np.zeros((1, 2, 1), np.float32)
  image = np.array([1, 1e-4], np.float32).reshape(1, 2, 1)
  expected = -10 * np.log10((1 + 1e-8) / 2)
  assert psnr(image, reference) == pytest.approx(expected, abs=1e-12)


def test_psnr_refuses_shapes_that_differ():
  with pytest.raises(ValueError, match=r'got shapes \(4, 4, 3\) and \(4, 4, 1\), want equal'):
    psnr(np.zeros((4, 4, 3)), np.zeros((4, 4, 1)))


def test_rounding_is_to_the_nearest_level_and_clips():
  values = np.array([-0.2, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.3])
  np.testing.assert_array_equal(round_to_8_bits(values) * 255, [0, 0, 1, 255, 255])
