"""Noise: its statistics and its seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.data.noise import add_benchmark_noise, add_gaussian_noise, round_to_8_bits

BLIND = (10.0, 60.0)


def _keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def test_training_noise_has_the_stated_sigma_and_mean():
  clean = jnp.full((4, 64, 64, 3), 0.5)
  error = np.asarray(add_gaussian_noise(_keys(4), clean, sigma_255_range=(25.0, 25.0), clip=0) - clean)
  # 49,152 samples: the standard error of both is far below these bounds.
  assert error.std() == pytest.approx(25 / 255, rel=0.02)
  assert abs(error.mean()) < 0.002


@pytest.mark.parametrize('sigmas', [(50.0, 50.0), BLIND])
def test_training_noise_clips_only_when_asked(sigmas):
  clean = jnp.zeros((2, 16, 16, 1)).at[1].set(1)
  free = add_gaussian_noise(_keys(2), clean, sigma_255_range=sigmas, clip=0)
  clipped = add_gaussian_noise(_keys(2), clean, sigma_255_range=sigmas, clip=1)
  assert free.min() < 0
  assert free.max() > 1
  np.testing.assert_allclose(clipped, np.round(np.clip(free, 0, 1) * 255) / 255, atol=1e-7)


@pytest.mark.parametrize('kind', [np.asarray, jnp.asarray])
def test_rounding_is_to_the_nearest_level_and_clips(kind):
  rounded = round_to_8_bits(kind(np.array([-0.2, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.3])))
  assert type(rounded) is type(kind(0))
  np.testing.assert_allclose(rounded * 255, [0, 0, 1, 255, 255], rtol=1e-6)


def test_a_share_of_the_patches_is_clipped_and_the_rest_is_not():
  keys, clean = _keys(2000), jnp.zeros((2000, 5, 3, 1)).at[1::2].set(1)
  mixed = np.asarray(add_gaussian_noise(keys, clean, sigma_255_range=(50.0, 50.0), clip=0.3))
  free = np.asarray(add_gaussian_noise(keys, clean, sigma_255_range=(50.0, 50.0), clip=0))
  clipped = np.asarray(add_gaussian_noise(keys, clean, sigma_255_range=(50.0, 50.0), clip=1))
  is_free = (mixed == free).all(axis=(1, 2, 3))
  is_clipped = (mixed == clipped).all(axis=(1, 2, 3))
  assert (is_free != is_clipped).all()
  # Three standard errors of a share of 2,000 draws.
  assert is_clipped.mean() == pytest.approx(0.3, abs=3 * np.sqrt(0.3 * 0.7 / 2000))


@pytest.mark.parametrize('sigmas', [(50.0, 50.0), BLIND])
def test_an_image_has_the_noise_of_its_key_wherever_it_is_in_the_batch(sigmas):
  keys = _keys(5, seed=3)
  clean = jnp.zeros((5, 7, 9, 3))
  whole = add_gaussian_noise(keys, clean, sigma_255_range=sigmas, clip=0)
  part = add_gaussian_noise(keys[3:], clean[3:], sigma_255_range=sigmas, clip=0)
  np.testing.assert_array_equal(whole[3:], part)
  assert not np.array_equal(whole[0], whole[1])


def test_a_range_of_one_sigma_is_that_sigma_bit_for_bit():
  keys, clean = _keys(3), jax.random.uniform(jax.random.key(1), (3, 9, 7, 3))
  want = [
    np.asarray(c) + np.asarray(jax.random.normal(k, c.shape)) * np.float32(35 / 255)
    for k, c in zip(keys, clean, strict=True)
  ]
  np.testing.assert_array_equal(add_gaussian_noise(keys, clean, sigma_255_range=(35.0, 35.0), clip=0), want)


def test_blind_noise_is_that_of_one_sigma_scaled_image_by_image():
  keys, clean = _keys(6), jnp.zeros((6, 11, 5, 3))
  blind = np.asarray(add_gaussian_noise(keys, clean, sigma_255_range=BLIND, clip=0))
  ratios = blind / np.asarray(add_gaussian_noise(keys, clean, sigma_255_range=(255.0, 255.0), clip=0))
  sigmas_255 = 255 * ratios[:, 0, 0, 0]
  np.testing.assert_allclose(
    255 * ratios, np.broadcast_to(sigmas_255[:, None, None, None], ratios.shape), rtol=1e-5
  )
  assert len(set(sigmas_255.round(2))) == 6
  assert ((BLIND[0] <= sigmas_255) & (sigmas_255 <= BLIND[1])).all()


def test_blind_sigmas_are_uniform_between_the_two():
  count = 4000
  clean = jnp.zeros((count, 2, 1, 1))
  blind = np.asarray(add_gaussian_noise(_keys(count), clean, sigma_255_range=BLIND, clip=0))
  standard = np.asarray(add_gaussian_noise(_keys(count), clean, sigma_255_range=(255.0, 255.0), clip=0))
  # The least of a batch's noise may be zero but for rounding: the larger of two pixels gives the sigma.
  largest = np.abs(standard).argmax(axis=1, keepdims=True)
  sigmas_255 = (
    255 * (np.take_along_axis(blind, largest, 1) / np.take_along_axis(standard, largest, 1)).ravel()
  )
  assert BLIND[0] <= sigmas_255.min() < BLIND[0] + 0.1
  assert BLIND[1] - 0.1 < sigmas_255.max() <= BLIND[1]
  # Kolmogorov and Smirnov: uniform draws are further off in one of 1,000 cases.
  quantiles = (np.sort(sigmas_255) - BLIND[0]) / (BLIND[1] - BLIND[0])
  assert np.abs(quantiles - (np.arange(count) + 0.5) / count).max() < 1.95 / np.sqrt(count)
  # A sigma says nothing of the noise that it scales.
  for pixel in standard.reshape(count, 2).T:
    assert abs(np.corrcoef(sigmas_255, pixel)[0, 1]) < 3.3 / np.sqrt(count)
    assert abs(np.corrcoef(sigmas_255, np.abs(pixel))[0, 1]) < 3.3 / np.sqrt(count)


def test_blind_noise_up_to_zero_sigma_is_as_a_whole_the_mixture():
  clean = jnp.full((256, 32, 32, 1), 0.5)
  error = np.asarray(
    add_gaussian_noise(_keys(256, seed=5), clean, sigma_255_range=(0.0, 75.0), clip=0) - clean
  )
  # The mean of sigma**2 over 0 to 75 is 75**2 / 3; 256 draws of it have a standard error of 5.6%.
  assert error.var() == pytest.approx((75 / 255) ** 2 / 3, rel=0.17)
  assert abs(error.mean()) < 0.002


def test_benchmark_noise_is_numpy_seed_0_and_normal():
  clean = np.random.default_rng(1).random((13, 17, 3)).astype(np.float32)
  np.random.seed(0)
  expected = clean + np.random.normal(0, 50 / 255, clean.shape)
  noisy = add_benchmark_noise(clean, 50)
  np.testing.assert_allclose(noisy, expected, atol=1e-6)
  assert noisy.dtype == np.float32
  # Not clipped.
  assert noisy.min() < 0
  assert noisy.max() > 1


def test_benchmark_noise_does_not_depend_on_what_was_drawn_before_nor_change_what_is_drawn_after():
  clean = np.zeros((5, 7, 3), np.float32)
  np.random.seed(3)
  first, drawn = add_benchmark_noise(clean, 25), np.random.random()
  np.random.seed(3)
  assert drawn == np.random.random()
  np.testing.assert_array_equal(add_benchmark_noise(clean, 25), first)


def test_no_benchmark_noise_is_the_clean_image():
  clean = np.random.default_rng(1).random((5, 7, 1)).astype(np.float32)
  np.testing.assert_array_equal(add_benchmark_noise(clean, 0), clean)
