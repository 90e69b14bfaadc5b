"""Noise: its statistics, its seeds, and the benchmark protocols."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.noise import add_benchmark_noise, add_training_noise


def test_training_noise_has_the_stated_sigma_and_mean():
  keys = jax.random.split(jax.random.key(0), 4)
  clean = jnp.full((4, 64, 64, 3), 0.5)
  error = np.asarray(add_training_noise(keys, clean, sigma_255=25, clip=False) - clean)
  # 49,152 samples: the standard error of both is far below these bounds.
  assert error.std() == pytest.approx(25 / 255, rel=0.02)
  assert abs(error.mean()) < 0.002


def test_training_noise_clips_only_when_asked():
  keys = jax.random.split(jax.random.key(0), 2)
  clean = jnp.zeros((2, 16, 16, 1))
  free = add_training_noise(keys, clean, sigma_255=50, clip=False)
  clipped = add_training_noise(keys, clean, sigma_255=50, clip=True)
  assert free.min() < 0
  np.testing.assert_array_equal(clipped, jnp.clip(free, 0, 1))


def test_an_image_has_the_noise_of_its_key_wherever_it_is_in_the_batch():
  keys = jax.random.split(jax.random.key(3), 5)
  clean = jnp.zeros((5, 7, 9, 3))
  whole = add_training_noise(keys, clean, 50, clip=False)
  part = add_training_noise(keys[3:], clean[3:], 50, clip=False)
  np.testing.assert_array_equal(whole[3:], part)
  assert not np.array_equal(whole[0], whole[1])


def test_unclipped_protocol_is_numpy_seed_0_and_normal():
  clean = np.random.default_rng(1).random((13, 17, 3)).astype(np.float32)
  np.random.seed(0)
  expected = clean + np.random.normal(0, 50 / 255, clean.shape)
  noisy = add_benchmark_noise(clean, 50, 'unclipped')
  np.testing.assert_allclose(noisy, expected, atol=1e-6)
  assert noisy.dtype == np.float32


def test_clipped8_protocol_has_256_levels_of_the_same_noise():
  clean = np.random.default_rng(1).random((13, 17, 3)).astype(np.float32)
  levels = add_benchmark_noise(clean, 50, 'clipped8') * 255
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
  assert levels.min() == 0
  assert levels.max() == 255
  np.testing.assert_allclose(
    levels, np.round(np.clip(add_benchmark_noise(clean, 50, 'unclipped'), 0, 1) * 255), atol=1e-4
  )


def test_unknown_protocol_is_named():
  with pytest.raises(ValueError, match=r"protocol: got 'float', want one of \('unclipped', 'clipped8'\)"):
    add_benchmark_noise(np.zeros((2, 2, 1)), 50, 'float')
