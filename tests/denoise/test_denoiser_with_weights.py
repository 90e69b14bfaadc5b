"""What random weights cannot show: tiles give the whole image's result, and the default weights are sane."""

from pathlib import Path

import numpy as np
from PIL import Image
import pytest
import skimage

from sadnet_jax import Denoiser, pretrained
from sadnet_jax.images.photograph import to_8_bits

PHOTOGRAPH = Path(skimage.__file__).parent / 'data' / 'coffee.png'
WEIGHTS = pretrained.available()
DEFAULT = next(name for name, entry in WEIGHTS.items() if 'color' in entry.default_for)
LEVEL = 1 / 255
# Two times two of these tiles, with the default overlap, cover the image.
TILE_PX, IMAGE_PX = 200, 280


@pytest.fixture(scope='module')
def denoiser():
  return Denoiser.from_pretrained(DEFAULT, tile_px='whole')


def with_options(denoiser, **options):
  """A denoiser that shares the programs of another."""
  other = Denoiser(denoiser.model, {}, **options)
  other.network = denoiser.network
  return other


def photograph(height, width):
  return np.asarray(Image.open(PHOTOGRAPH).convert('RGB'))[:height, :width].astype(np.float32) / 255


def with_noise(image, sigma_255, seed=0):
  noise = np.random.default_rng(seed).normal(0, sigma_255 / 255, image.shape)
  return (image + noise).astype(np.float32)


def sigma_of(entry):
  """A noise level that the weights were trained on."""
  return entry.noise.sigma_255[1] if entry.noise.sigma_255 else 25


@pytest.mark.parametrize(
  ('weights', 'sigma_255'),
  [
    (DEFAULT, 5),
    (DEFAULT, 50),
    *((name, sigma_of(entry)) for name, entry in WEIGHTS.items() if name != DEFAULT),
  ],
)
def test_tiles_give_the_result_of_the_whole_image(denoiser, weights, sigma_255, monkeypatch):
  model, params, _ = pretrained.load(weights)
  if model == denoiser.model:
    monkeypatch.setattr(denoiser.network, 'params', params)
  else:
    denoiser = Denoiser(model, params, tile_px='whole')
  noisy = with_noise(photograph(IMAGE_PX, IMAGE_PX)[..., : model.channels], sigma_255)
  if WEIGHTS[weights].noise.clipped == 1:
    noisy = to_8_bits(noisy).astype(np.float32) / 255
  whole = denoiser(noisy)
  seen = []
  tiled = with_options(denoiser, tile_px=TILE_PX)
  difference = tiled(noisy, progress=lambda done, total: seen.append(total)) - whole
  assert seen == [4] * 4
  # Weights for several kinds of noise look at more distant pixels, to tell which it is.
  most = {'photo': 10, 'gray': 8, 'photo_fast': 6, 'color': 3}.get(weights, 1)
  assert np.abs(difference).max() < most * LEVEL
  assert np.abs(difference).mean() < 0.15 * LEVEL
  # The border of a tile, which the overlap drops, would show.
  corner = denoiser(noisy[:TILE_PX, :TILE_PX]) - whole[:TILE_PX, :TILE_PX]
  assert np.abs(corner).max() > 6 * LEVEL


@pytest.mark.parametrize('size', [(1, 1), (7, 1), (8, 8)])
def test_small_images_are_sane(denoiser, size):
  clean = photograph(*size)
  noisy = to_8_bits(with_noise(clean, 10)).astype(np.float32) / 255
  denoised = denoiser(noisy)
  assert denoised.shape == clean.shape
  assert np.abs(denoised - clean).mean() < 0.05


# All have some noise of their own: the saucer and the dark corner of the coffee, for example.
@pytest.mark.parametrize(('name', 'most'), [('coffee', 0.8), ('chelsea', 1.0), ('astronaut', 1.5)])
def test_clean_photographs_stay_and_colours_of_noisy_ones_too(denoiser, name, most):
  clean = np.asarray(Image.open(PHOTOGRAPH.with_name(f'{name}.png')).convert('RGB'))[:200, :280]
  assert np.abs(denoiser(clean).astype(int) - clean).mean() < most
  denoised = denoiser(to_8_bits(with_noise(clean / 255, 10)))
  np.testing.assert_allclose(denoised.mean((0, 1)), clean.mean((0, 1)), atol=0.3)


@pytest.mark.parametrize('value', [0, 3, 128, 255])
def test_flat_images_stay(denoiser, value):
  image = np.full((64, 64, 3), value, np.uint8)
  difference = np.abs(denoiser(image).astype(int) - image)
  assert difference.max() <= 6
  assert difference.mean() <= 2


@pytest.mark.parametrize('value', [0, 20, 128, 255])
@pytest.mark.parametrize(('weights', 'most'), [('photo', 4), ('color', 3)])
def test_noise_on_flat_images_goes(denoiser, weights, most, value, monkeypatch):
  """Noise as in a photograph: clipped at black and white, in 8 bits."""
  monkeypatch.setattr(denoiser.network, 'params', pretrained.load(weights)[1])
  noisy = to_8_bits(with_noise(np.full((64, 64, 3), value / 255, np.float32), 15))
  denoised = denoiser(noisy).astype(float)
  assert denoised.std() < noisy.std() / 2
  # Clipping moves the mean of the noise. At black, `photo` undoes only part of that.
  assert abs(denoised.mean() - value) < most


def test_saturated_colours_stay(denoiser):
  """Quarters of full red, green, blue and white, then of black in their place."""
  for colours in ([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], [(0, 0, 0), (255, 0, 0)] * 2):
    quarters = np.array(colours, np.uint8).reshape(2, 2, 3)
    image = quarters.repeat(32, axis=0).repeat(32, axis=1)
    difference = np.abs(denoiser(image).astype(int) - image)
    assert difference.mean() < 3
    assert np.quantile(difference, 0.99) < 40


def test_the_ensemble_is_better(denoiser):
  clean = photograph(64, 64)
  noisy = to_8_bits(with_noise(clean, 40)).astype(np.float32) / 255
  error = [np.mean((d(noisy) - clean) ** 2) for d in (denoiser, with_options(denoiser, ensemble=True))]
  assert error[1] < error[0]
