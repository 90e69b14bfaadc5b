"""Additive white Gaussian noise: on the device for training, in NumPy for benchmarks."""

import jax
import jax.numpy as jnp
import numpy as np


def add_training_noise(
  keys: jax.Array, clean: jax.Array, sigma_255_range: tuple[float, float], clip: float
) -> jax.Array:
  """Adds white Gaussian noise to a batch, each image from its own key.

  Args:
    keys: One random key an image, [N].
    clean: [N, H, W, C] in [0, 1].
    sigma_255_range: Lowest and highest standard deviation on the scale of 8-bit
      images, 0 to 255. Every image draws its own between them, evenly; where they are
      equal there is nothing to draw.
    clip: Probability that an image is clipped to [0, 1] and rounded to 8 bits, as a
      file would store it. Each image draws for itself; nothing is drawn at 0 or 1.

  Returns:
    [N, H, W, C], noisy.
  """
  low, high = sigma_255_range

  def noise(key):
    standard = jax.random.normal(key, clean.shape[1:], clean.dtype)
    if low == high:
      return standard * (low / 255)
    sigma = jax.random.uniform(jax.random.fold_in(key, 0), (), clean.dtype, low / 255, high / 255)
    return standard * sigma

  noisy = clean + jax.vmap(noise)(keys)
  if clip == 0:
    return noisy
  stored = jnp.round(jnp.clip(noisy, 0, 1) * 255) / 255
  if clip == 1:
    return stored
  drawn = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), clip))(keys)
  return jnp.where(drawn[:, None, None, None], stored, noisy)


def add_benchmark_noise(clean: np.ndarray, sigma_255: float) -> np.ndarray:
  """The noisy version of a test image.

  The generator starts from seed 0 for every image, so an image's noise does not
  depend on the set it is in: NumPy's ``seed(0)``, then ``normal(0, sigma / 255,
  shape)``, as in KAIR and the benchmarks that follow it.

  Args:
    clean: [H, W, C] in [0, 1].
    sigma_255: Standard deviation on the scale of 8-bit images, 0 to 255.

  Returns:
    float32 [H, W, C], not clipped.
  """
  return (clean + np.random.RandomState(0).normal(0, sigma_255 / 255, clean.shape)).astype(np.float32)
