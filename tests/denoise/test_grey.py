"""Grey images through a network for colour, with the published weights."""

from pathlib import Path

import numpy as np
import pytest

from sadnet_jax import Denoiser
from sadnet_jax.denoise.grey import as_colour, has_equal_channels, noise_deviation
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.images.arrays import read_image
from sadnet_jax.nn.sadnet import SADNet
from tests.support.small_networks import SMALL

CROP = Path(__file__).parents[1] / 'crops' / 'chelsea.png'


def _noisy(sigma_255):
  clean = read_image(CROP, 1)
  noise = np.random.default_rng(0).normal(0, sigma_255, clean.shape)
  return np.uint8(np.clip(np.round(clean + noise), 0, 255)), clean


@pytest.mark.parametrize('sigma_255', [15, 25])
def test_the_noise_of_a_photograph_is_estimated(sigma_255):
  noisy, _ = _noisy(sigma_255)
  assert noise_deviation(noisy[..., 0].astype(float)) == pytest.approx(sigma_255, rel=0.1)
  assert noise_deviation(np.zeros((1, 9))) == 0


def test_the_noise_becomes_independent_in_the_channels_and_their_mean_stays():
  grey = 0.5 + np.random.default_rng(1).normal(0, 0.1, (2, 200, 201, 1)).astype(np.float32)
  colour = as_colour(grey, 3)
  np.testing.assert_allclose(colour.mean(axis=-1, keepdims=True), grey, atol=1e-6)
  for image in colour:
    covariance = np.cov(image.reshape(-1, 3).T)
    np.testing.assert_allclose(covariance, 0.03 * np.eye(3), atol=0.001)
  flat = np.full((1, 8, 8, 1), 0.25, np.float32)
  np.testing.assert_array_equal(as_colour(flat, 3), np.repeat(flat, 3, axis=3))


def test_grey_pictures_are_denoised_by_colour_weights_and_equal_channels_stay_equal():
  noisy, clean = _noisy(25)
  denoiser = Denoiser.from_pretrained('color_blind')
  denoised = denoiser(noisy)
  assert psnr(noisy / 255, clean / 255) < 20.6
  assert psnr(denoised / 255, clean / 255) > 28.5
  as_rgb = np.repeat(noisy, 3, axis=2)
  assert has_equal_channels(as_rgb)
  assert not has_equal_channels(noisy)
  np.testing.assert_array_equal(denoiser(as_rgb), np.repeat(denoised, 3, axis=2))


def test_a_grey_network_takes_colour_images_whose_channels_are_equal():
  instance = Denoiser(SADNet(channels=1, **SMALL), {}, tile_px='whole')
  instance.network = lambda noisy, **_: noisy * np.float32(0.5)
  grey = np.random.default_rng(2).uniform(size=(9, 8, 1)).astype(np.float32)
  np.testing.assert_array_equal(instance(np.repeat(grey, 3, axis=2)), np.repeat(grey / 2, 3, axis=2))
