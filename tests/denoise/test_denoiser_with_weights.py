"""What random networks cannot show: weights give one picture by tiles, and the default ones are sane."""

from pathlib import Path

import numpy as np
from PIL import Image
import pytest
import skimage

from sadnet_jax import Denoiser, pretrained

PHOTOGRAPH = Path(skimage.__file__).parent / 'data' / 'coffee.png'
DEFAULT = next(name for name, entry in pretrained.available().items() if 'color' in entry.default_for)
LEVEL = 1 / 255


@pytest.fixture(scope='module')
def denoiser():
  return Denoiser.from_pretrained(DEFAULT)


def photograph(height, width):
  return np.asarray(Image.open(PHOTOGRAPH).convert('RGB'))[:height, :width].astype(np.float32) / 255


def with_noise(image, sigma_255, seed=0):
  noise = np.random.default_rng(seed).normal(0, sigma_255 / 255, image.shape)
  return (image + noise).astype(np.float32)


@pytest.mark.parametrize(
  ('weights', 'sigma_255'),
  [(DEFAULT, 5), (DEFAULT, 25), (DEFAULT, 50), ('color_50', 50), ('color_real', 5), ('color_real', 25)],
)
def test_tiles_give_what_the_whole_image_does(weights, sigma_255):
  """Two times two, which overlap by the default."""
  noisy = with_noise(photograph(392, 392), sigma_255)
  whole = Denoiser.from_pretrained(weights)
  by_tiles = Denoiser(whole.model, whole.params, tile_px=256)
  seen = []
  difference = by_tiles(noisy, progress=lambda done, total: seen.append(total)) - whole(noisy)
  assert seen == [4] * 4
  assert np.abs(difference).max() < LEVEL


def test_without_overlap_there_would_be_seams(denoiser):
  noisy = with_noise(photograph(160, 384), 25)
  by_tiles = Denoiser(denoiser.model, denoiser.params, tile_px=192, overlap_px=0)
  assert np.abs(by_tiles(noisy) - denoiser(noisy)).max() > 10 * LEVEL


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 1), (8, 8), (13, 29)])
def test_small_images_are_sane(denoiser, size):
  clean = photograph(*size)
  denoised = denoiser(with_noise(clean, 10))
  assert denoised.shape == clean.shape
  assert np.abs(denoised - clean).mean() < 0.1


@pytest.mark.parametrize('value', [0, 3, 60, 128, 200, 255])
def test_flat_dark_and_saturated_images_stay(denoiser, value):
  image = np.full((48, 64, 3), value, np.uint8)
  difference = np.abs(denoiser(image).astype(int) - image)
  assert difference.max() <= 6
  assert difference.mean() <= 2


@pytest.mark.parametrize('value', [0, 20, 128, 255])
def test_noise_on_flat_images_goes(denoiser, value):
  """As a photograph has it: clipped at black and white, and of 8 bits."""
  clean = np.full((64, 64, 3), value / 255, np.float32)
  noisy = np.round(np.clip(with_noise(clean, 15), 0, 1) * 255).astype(np.uint8)
  denoised = denoiser(noisy).astype(float)
  assert denoised.std() < noisy.std() / 2
  # Clipped noise moves the mean, which no denoiser can know.
  assert abs(denoised.mean() - noisy.mean()) < 3


def test_saturated_colours_stay(denoiser):
  """Blocks of full red, green, blue, black and white."""
  colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255]], np.uint8)
  image = np.repeat(np.repeat(colours[None], 32, axis=1), 48, axis=0)
  difference = np.abs(denoiser(image).astype(int) - image)
  assert difference.mean() < 3
  assert np.quantile(difference, 0.99) < 40


def test_the_ensemble_is_not_worse(denoiser):
  clean = photograph(96, 96)
  noisy = with_noise(clean, 40)
  ensemble = Denoiser(denoiser.model, denoiser.params, ensemble=True)
  error = [np.mean((d(noisy) - clean) ** 2) for d in (denoiser, ensemble)]
  assert error[1] < error[0]
