"""What kind of noise each training patch gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.data.noise import add_gaussian_noise
from sadnet_jax.data.training_noise import TrainingNoise, make_add_noise
from tests.support.fast_jit import fast_jit

SIGMA = (50.0, 50.0)
COUNT = 300


def _keys(count=COUNT):
  return jax.random.split(jax.random.key(7), count)


def _clean(count=COUNT, channels=3, size=16):
  clean = jax.random.uniform(jax.random.key(1), (count, 1, 1, channels), minval=0.3, maxval=0.7)
  return jnp.round(jnp.broadcast_to(clean, (count, size, size, channels)) * 255) / 255


def test_gaussian_noise_alone_is_that_of_add_gaussian_noise_bit_for_bit():
  keys, clean = _keys(4), _clean(4)
  got = make_add_noise(TrainingNoise((0.0, 75.0), clip=0.5))(keys, clean)
  np.testing.assert_array_equal(got, add_gaussian_noise(keys, clean, sigma_255_range=(0.0, 75.0), clip=0.5))


def test_patches_are_shared_out_between_the_kinds():
  noise = TrainingNoise(SIGMA, camera='brooks', camera_share=0.5, clean_share=0.2)
  keys, clean = _keys(), _clean()
  noisy = np.asarray(fast_jit(make_add_noise(noise))(keys, clean))
  is_clean = (noisy == np.asarray(clean)).all(axis=(1, 2, 3))
  gaussian = np.asarray(add_gaussian_noise(keys, clean, sigma_255_range=SIGMA, clip=0))
  is_gaussian = (np.abs(noisy - gaussian) < 1e-6).all(axis=(1, 2, 3))
  shares = is_clean.mean(), is_gaussian.mean()
  # Three standard errors of shares of 300 draws.
  assert shares == pytest.approx((0.2, 0.3), abs=0.08)
  # The rest is on 8-bit levels, as a camera's files are.
  rest = noisy[~is_clean & ~is_gaussian] * 255
  np.testing.assert_allclose(rest, np.round(rest), atol=1e-3)


def test_grain_correlates_neighbours_and_channels_and_keeps_the_variance():
  noise = TrainingNoise(SIGMA, grain_share=1.0)
  clean = _clean(64, size=32)
  residual = np.asarray(fast_jit(make_add_noise(noise))(_keys(64), clean) - clean)
  assert residual.std() == pytest.approx(50 / 255, rel=0.02)
  deviations = residual.std(axis=(1, 2, 3))
  assert deviations == pytest.approx(np.full(64, 50 / 255), rel=0.12)
  neighbours = (residual[:, 1:] * residual[:, :-1]).mean(axis=(1, 2, 3)) / deviations**2
  assert neighbours.min() < 0.2
  assert neighbours.max() > 0.8
  channels = (residual[..., 0] * residual[..., 1]).mean(axis=(1, 2)) / deviations**2
  # Uniform up to 0.95.
  assert np.quantile(channels, [0.1, 0.5, 0.9]) == pytest.approx([0.095, 0.475, 0.855], abs=0.15)


def test_grain_of_grey_patches_is_only_blurred():
  clean = _clean(8, channels=1, size=32)
  grainy = fast_jit(make_add_noise(TrainingNoise(SIGMA, grain_share=1.0)))(_keys(8), clean) - clean
  assert np.asarray(grainy).std() == pytest.approx(50 / 255, rel=0.05)


def test_grey_patches_get_the_luma_of_camera_noise():
  noise = TrainingNoise(SIGMA, camera='photo', camera_share=1.0)
  clean = _clean(8, channels=1)
  noisy = np.asarray(fast_jit(make_add_noise(noise))(_keys(8), clean))
  assert noisy.shape == clean.shape
  np.testing.assert_allclose(noisy * 255, np.round(noisy * 255), atol=1e-3)
  colour = np.asarray(fast_jit(make_add_noise(noise))(_keys(8), np.repeat(clean, 3, axis=-1)))
  assert np.abs(colour[..., 0] - colour[..., 2]).max() > 4 / 255
  np.testing.assert_allclose(noisy[..., 0], colour @ np.float32([0.299, 0.587, 0.114]), atol=0.51 / 255)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'grain_share': 1.5}, 'noise.grain_share is 1.5, but must be a share from 0 to 1'),
    ({'clean_share': float('nan')}, 'noise.clean_share is nan'),
    (
      {'camera': 'photo', 'camera_share': 0.7, 'clean_share': 0.4},
      'noise.camera_share is 0.7 and noise.clean_share 0.4, but together they must be at most 1',
    ),
    ({'camera': 'leica', 'camera_share': 0.5}, "noise.camera is 'leica', but must be one of .*'photo'"),
    ({'camera': 'photo'}, "noise.camera is 'photo' and noise.camera_share 0.0: set both"),
    ({'camera_share': 0.5}, "noise.camera is '' and noise.camera_share 0.5: set both"),
  ],
)
def test_refuses(fields, message):
  with pytest.raises(ValueError, match=message):
    TrainingNoise(SIGMA, **fields)
