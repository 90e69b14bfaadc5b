"""Losses: their values and gradients, against NumPy in float64 and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.training.step import LOSSES, charbonnier_loss, l1_loss, l2_loss

# By the papers' formulas, of the difference.
FORMULAS = {
  'l1': np.abs,
  'l2': np.square,
  'charbonnier': lambda difference: np.sqrt(difference**2 + 1e-3**2),
}


def test_every_loss_of_the_config_has_a_formula_here():
  assert set(FORMULAS) == set(LOSSES)


@pytest.mark.parametrize('name', FORMULAS)
def test_a_loss_is_the_mean_of_its_formula(name):
  rng = np.random.default_rng(0)
  denoised, clean = rng.uniform(-0.2, 1.2, (2, 3, 7, 5, 3))
  want = FORMULAS[name](denoised - clean).sum() / denoised.size
  got = jax.jit(LOSSES[name])(denoised.astype(np.float32), clean.astype(np.float32))
  assert got.shape == ()
  assert got.dtype == jnp.float32
  assert float(got) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize('name', FORMULAS)
def test_the_gradient_of_a_loss_is_its_difference_quotient(name):
  rng = np.random.default_rng(1)
  clean = rng.uniform(size=(2, 3, 4, 1))
  # Some within eps of the minimum, none within a quotient's step of the kink of L1.
  difference = rng.choice([-1, 1], clean.shape) * rng.choice([3e-4, 1e-3, 2e-2, 0.5], clean.shape)
  step = 1e-6
  formula = FORMULAS[name]
  want = (formula(difference + step) - formula(difference - step)) / (2 * step) / clean.size
  with jax.enable_x64(True):
    got = jax.grad(LOSSES[name])(clean + difference, clean)
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('name', FORMULAS)
def test_a_loss_does_not_depend_on_the_sign_of_the_difference(name):
  denoised, clean = np.random.default_rng(2).uniform(size=(2, 2, 5, 3, 1)).astype(np.float32)
  assert float(LOSSES[name](denoised, clean)) == float(LOSSES[name](clean, denoised)) > 0


def test_losses_of_a_known_difference():
  clean = jnp.zeros((1, 2, 2, 1))
  denoised = clean.at[0, 0, 0, 0].set(0.4).at[0, 1, 1, 0].set(-0.2)
  assert float(l1_loss(denoised, clean)) == pytest.approx(0.6 / 4)
  assert float(l2_loss(denoised, clean)) == pytest.approx((0.16 + 0.04) / 4)
  # 3, 4, 5: with a difference of 4/3 eps the root is 5/3 eps.
  assert float(charbonnier_loss(clean + 4e-3 / 3, clean)) == pytest.approx(5e-3 / 3, rel=1e-5)


def test_charbonnier_of_equal_images_is_eps_and_its_gradient_there_is_zero():
  image = jnp.full((1, 3, 5, 3), 0.3)
  value, gradient = jax.value_and_grad(charbonnier_loss)(image, image)
  assert float(value) == pytest.approx(1e-3, rel=1e-6)
  np.testing.assert_array_equal(gradient, np.zeros(image.shape))


def test_charbonnier_is_above_l1_by_less_and_less_and_by_eps_at_most():
  differences = np.array([0, 1e-4, 1e-3, 1e-2, 1e-1, 1], np.float64)
  with jax.enable_x64(True):
    excess = [float(charbonnier_loss(d, 0.0) - l1_loss(d, 0.0)) for d in differences]
    slope = float(jax.grad(charbonnier_loss)(1.0, 0.0))
  assert excess[0] == pytest.approx(1e-3, rel=1e-9)
  assert (np.diff(excess) < 0).all()
  # Far from zero, sqrt(d**2 + eps**2) is d + eps**2 / (2 * d).
  np.testing.assert_allclose(excess[-2:], [5e-6, 5e-7], rtol=1e-4)
  assert slope == pytest.approx(1, abs=1e-6)
