"""Grey images through a network for colour, with the published weights."""

from pathlib import Path
import tracemalloc

import numpy as np
import pytest

from sadnet_jax import Denoiser
from sadnet_jax.denoise.grey import as_colour, has_equal_channels, noise_deviation
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.images.arrays import read_image
from sadnet_jax.nn.sadnet import SADNet
from tests.support.real_data import DATA, needs
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


def test_the_noise_of_a_large_picture_is_estimated_from_some_of_its_rows():
  noisy = np.random.default_rng(0).normal(0, 0.1, (1502, 4098)).astype(np.float32)
  assert noise_deviation(noisy) == pytest.approx(0.1, rel=0.01)
  assert noise_deviation(np.uint16(np.round(1000 * (noisy + 1)))) == pytest.approx(100 / 65535, rel=0.01)


def _as_colour(grey, deviation, top=0, left=0):
  rows, columns = np.arange(grey.shape[0]) + top, np.arange(grey.shape[1]) + left
  return as_colour(grey[..., None], deviation, rows, columns, 3)


def test_the_noise_becomes_independent_in_the_channels_and_their_mean_stays():
  # Larger than the period of the added noise.
  grey = 0.5 + np.random.default_rng(1).normal(0, 0.1, (600, 601)).astype(np.float32)
  colour = _as_colour(grey, 0.1)
  np.testing.assert_allclose(colour.mean(axis=-1), grey, atol=1e-6)
  np.testing.assert_allclose(np.cov(colour.reshape(-1, 3).T), 0.03 * np.eye(3), atol=0.001)
  flat = np.full((8, 8), 0.25, np.float32)
  np.testing.assert_array_equal(_as_colour(flat, 0), np.repeat(flat[..., None], 3, axis=2))


def test_parts_of_a_picture_get_the_noise_of_the_whole():
  grey = np.random.default_rng(1).uniform(size=(530, 540)).astype(np.float32)
  whole = _as_colour(grey, 0.1)
  np.testing.assert_array_equal(_as_colour(grey[500:, 7:], 0.1, 500, 7), whole[500:, 7:])


def test_grey_pictures_are_denoised_by_colour_weights_and_equal_channels_stay_equal():
  noisy, clean = _noisy(25)
  denoiser = Denoiser.from_pretrained('color')
  denoised = denoiser(noisy)
  assert psnr(noisy / 255, clean / 255) < 20.6
  assert psnr(denoised / 255, clean / 255) > 28.5
  as_rgb = np.repeat(noisy, 3, axis=2)
  assert has_equal_channels(as_rgb)
  assert not has_equal_channels(noisy)
  np.testing.assert_array_equal(denoiser(as_rgb), np.repeat(denoised, 3, axis=2))


@pytest.mark.parametrize('tile_px', ['whole', 32])
def test_pictures_of_a_batch_are_treated_each_by_its_own_kind(tile_px):
  """Grey pictures in a batch are as they are alone, and so are the colour ones."""
  instance = Denoiser(SADNet(**SMALL), {}, tile_px=tile_px, overlap_px=8, strength=0.5, chroma_strength=1)
  instance.network = lambda noisy, **_: noisy**2
  colour = np.random.default_rng(2).integers(0, 256, (3, 40, 41, 3), np.uint8)
  colour[1] = colour[1, ..., :1]
  done = []
  denoised = instance(colour, progress=lambda *counts: done.append(counts))
  for image, found in zip(colour, denoised, strict=True):
    np.testing.assert_array_equal(found, instance(image))
  np.testing.assert_array_equal(denoised[1, ..., 0], instance(colour[1, ..., 0]))
  assert (denoised[1] == denoised[1, ..., :1]).all()
  assert [count for count, _ in done] == list(range(1, done[-1][1] + 1))


@pytest.mark.parametrize('channels', [1, 3])
def test_a_grey_picture_takes_little_more_memory_than_its_result(channels):
  instance = Denoiser(SADNet(**SMALL), {}, tile_px=256, overlap_px=8)
  instance.network = lambda noisy, **_: noisy
  height, width = 1500, 1600
  picture = np.repeat(
    np.random.default_rng(0).integers(0, 256, (height, width, 1), np.uint8), channels, axis=2
  )
  instance(picture[:300, :300])
  tracemalloc.start()
  try:
    instance(picture)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  # The result, one row of tiles, and the estimate of the noise.
  assert peak < (9 + channels) * height * width


@needs('test/BSD68')
@pytest.mark.parametrize(
  ('weights', 'wanted'), [('gray', [31.41, 28.94, 25.84]), ('color', [31.13, 28.26, 24.27])]
)
def test_the_figures_of_grey_pictures_in_the_documentation(weights, wanted):
  denoiser = Denoiser.from_pretrained(weights)
  files = sorted(Path(DATA, 'test', 'BSD68').glob('*.png'))[:8]
  clean = np.stack([read_image(path, 1)[:256, :256] for path in files])
  figures = []
  for sigma_255 in (15, 25, 50):
    noise = [np.random.default_rng(seed).normal(0, sigma_255, clean.shape[1:]) for seed in range(len(files))]
    noisy = np.uint8(np.clip(np.round(clean + noise), 0, 255))
    denoised = denoiser(noisy)
    figures.append(
      [
        np.mean([psnr(a / 255, b / 255) for a, b in zip(images, clean, strict=True)])
        for images in (noisy, denoised)
      ]
    )
  noisy_psnr, denoised_psnr = np.transpose(figures)
  np.testing.assert_allclose(noisy_psnr, [24.97, 20.65, 15.12], atol=0.005)
  np.testing.assert_allclose(denoised_psnr, wanted, atol=0.01)


def test_a_grey_network_takes_colour_images_whose_channels_are_equal():
  instance = Denoiser(SADNet(channels=1, **SMALL), {}, tile_px='whole')
  instance.network = lambda noisy, **_: noisy * np.float32(0.5)
  grey = np.random.default_rng(2).uniform(size=(9, 8, 1)).astype(np.float32)
  np.testing.assert_array_equal(instance(np.repeat(grey, 3, axis=2)), np.repeat(grey / 2, 3, axis=2))
