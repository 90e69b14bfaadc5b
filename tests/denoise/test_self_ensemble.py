import itertools

import numpy as np

from sadnet_jax.denoise.denoiser import TRANSFORMS, self_ensemble


def noisy(size=(5, 7)):
  return np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)


def test_what_is_not_changed_comes_back():
  np.testing.assert_allclose(self_ensemble(lambda x: x, noisy()), noisy(), rtol=1e-6)


def test_all_eight_flips_and_rotations_are_denoised_once():
  seen = []
  x = noisy((4, 4))
  self_ensemble(lambda turned: seen.append(turned) or turned, x)
  wanted = []
  for transposed, rows, columns in itertools.product((False, True), (1, -1), (1, -1)):
    turned = x.transpose(0, 2, 1, 3) if transposed else x
    wanted.append(turned[:, ::rows, ::columns])
  assert len(seen) == TRANSFORMS
  assert all(sum(np.array_equal(s, w) for s in seen) == 1 for w in wanted)


def test_the_mean_is_of_what_was_turned_back():
  # A denoiser that marks the top left corner of whatever it is given.
  def mark(x):
    marked = np.zeros_like(x)
    marked[:, 0, 0] = 8
    return marked

  result = self_ensemble(mark, noisy())
  wanted = np.zeros_like(result)
  wanted[:, [0, 0, -1, -1], [0, -1, 0, -1]] = 2
  np.testing.assert_array_equal(result, wanted)


def test_a_constant_added_stays():
  np.testing.assert_allclose(self_ensemble(lambda x: x + 1, noisy()), noisy() + 1, rtol=1e-6)
