"""Additive white Gaussian noise: with JAX for training, with NumPy for benchmarks."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Image = TypeVar('Image', np.ndarray, jax.Array)


def add_gaussian_noise(
  keys: jax.Array,
  clean: jax.Array,
  *,
  sigma_255_range: tuple[float, float],
  clip: float,
  texture: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """Adds Gaussian noise to a batch of training images, white unless ``texture`` changes that.

  Args:
    keys: One random key per image, [N]; an image's noise depends on its own key alone,
      if they are of JAX's default implementation (not rbg).
    clean: [N, H, W, C] in [0, 1].
    sigma_255_range: Lowest and highest standard deviation on the scale of 8-bit images, 0 to 255. Each image
      draws its own uniformly; if both are equal, nothing is drawn.
    clip: Probability that an image is clipped to [0, 1] and rounded to 8 bits, as if stored in a file. Each
      image draws for itself; nothing is drawn at 0 or 1.
    texture: Function of (key, white noise [H, W, C] of variance 1) that gives the noise to scale.

  Returns:
    The noisy images, [N, H, W, C].
  """
  low, high = sigma_255_range

  def noise(key):
    standard = jax.random.normal(key, clean.shape[1:], clean.dtype)
    if texture is not None:
      standard = texture(jax.random.fold_in(key, 4), standard)
    if low == high:
      return standard * (low / 255)
    sigma = jax.random.uniform(jax.random.fold_in(key, 0), (), clean.dtype, low / 255, high / 255)
    return standard * sigma

  noisy = clean + jax.vmap(noise)(keys)
  if clip == 0:
    return noisy
  stored = round_to_8_bits(noisy)
  if clip == 1:
    return stored
  is_stored = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), clip))(keys)
  return jnp.where(is_stored[:, None, None, None], stored, noisy)


def round_to_8_bits(image: Image) -> Image:
  """Clips to [0, 1] and rounds to the nearest of 256 levels, as saving a PNG does.

  Values are rounded, never floored: flooring costs a noticeable part of a decibel at high PSNR.
  """
  xp: Any = np if isinstance(image, np.ndarray) else jnp
  return xp.round(xp.clip(image, 0, 1) * 255) / 255


def add_benchmark_noise(clean: np.ndarray, sigma_255: float) -> np.ndarray:
  """Adds white Gaussian noise to a test image as published benchmarks do.

  The generator starts from seed 0 for every image, so the noise does not depend on the set the image is in:
  ``numpy.random.seed(0)``, then ``numpy.random.normal(0, sigma / 255, shape)``.

  Args:
    clean: [H, W, C] in [0, 1].
    sigma_255: Standard deviation on the scale of 8-bit images, 0 to 255.

  Returns:
    float32 [H, W, C], not clipped.

  Source: KAIR (Kai Zhang), and the benchmarks that follow it.
  """
  return (clean + np.random.RandomState(0).normal(0, sigma_255 / 255, clean.shape)).astype(np.float32)
