"""The noise that training adds to clean patches: Gaussian, a camera's, or none, drawn for each patch."""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from sadnet_jax.data.camera_noise import PRESETS, add_camera_noise, blur_noise, log_uniform
from sadnet_jax.data.noise import add_gaussian_noise, round_to_8_bits
from sadnet_jax.images.photograph import BT601_LUMA

# The grain of Gaussian noise: standard deviation of its blur in pixels, log-uniform.
_GRAIN_PX = (0.25, 1.6)


@dataclasses.dataclass(frozen=True)
class TrainingNoise:
  """Which noise a run adds to its clean patches. The remaining patches get Gaussian noise.

  Attributes:
    sigma_255_range: Lowest and highest standard deviation of Gaussian noise, on the scale of 8-bit images.
    clip: Probability that a patch with Gaussian noise is clipped to [0, 1] and rounded to 8 bits.
    camera: A name of `camera_noise.PRESETS`, or '' for none.
    camera_share: Share of the patches with this camera noise.
    grain_share: Share, among the patches with Gaussian noise, of those whose noise is blurred (at equal
      energy) and correlated between the channels.
    clean_share: Share of the patches without noise.

  Raises:
    ValueError: An unknown camera, or shares that are not between 0 and 1, also in sum.
  """

  sigma_255_range: tuple[float, float]
  clip: float = 0.0
  camera: str = ''
  camera_share: float = 0.0
  grain_share: float = 0.0
  clean_share: float = 0.0

  def __post_init__(self) -> None:
    """Raises ValueError for impossible shares."""
    for name in ('camera_share', 'grain_share', 'clean_share'):
      # Written this way round to reject NaN too.
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'noise.{name} is {getattr(self, name)}, but must be a share from 0 to 1')
    if self.camera_share + self.clean_share > 1:
      raise ValueError(
        f'noise.camera_share is {self.camera_share} and noise.clean_share {self.clean_share}, '
        'but together they must be at most 1'
      )
    if self.camera and self.camera not in PRESETS:
      raise ValueError(f'noise.camera is {self.camera!r}, but must be one of {sorted(PRESETS)}, or empty')
    if bool(self.camera) != bool(self.camera_share):
      raise ValueError(
        f'noise.camera is {self.camera!r} and noise.camera_share {self.camera_share}: '
        'set both for camera noise, or neither'
      )


def make_add_noise(noise: TrainingNoise) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Builds the function that makes noisy patches of clean ones.

  Args:
    noise: What to draw from.

  Returns:
    (one random key per patch [N], clean [N, H, W, C] in [0, 1]) -> noisy [N, H, W, C]. A patch's noise
    depends on its own key alone.
  """
  return functools.partial(_add_noise, noise)


# On an accelerator, products would be rounded to 10 bits (TF32) by default, which is half a level in JPEG.
@jax.default_matmul_precision('highest')
def _add_noise(noise, keys, clean):
  gaussian = functools.partial(add_gaussian_noise, sigma_255_range=noise.sigma_255_range, clip=noise.clip)
  if noise.grain_share:
    gaussian = functools.partial(gaussian, texture=functools.partial(_grain, noise.grain_share))
  noisy = gaussian(keys, clean)
  if not noise.camera and not noise.clean_share:
    return noisy
  kind = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 2)))(keys)[:, None, None, None]
  if noise.camera:
    camera_keys = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys)
    from_camera = jax.vmap(functools.partial(_add_camera_noise, noise.camera))(camera_keys, clean)
    noisy = jnp.where(kind < noise.clean_share + noise.camera_share, from_camera, noisy)
  return jnp.where(kind < noise.clean_share, clean, noisy)


def _add_camera_noise(camera, key, clean):
  if clean.shape[-1] == 3:
    return add_camera_noise(key, clean, PRESETS[camera])
  # A grey patch gets the luma of a colour camera's noise.
  noisy = add_camera_noise(key, jnp.repeat(clean, 3, axis=-1), PRESETS[camera])
  return round_to_8_bits((noisy @ BT601_LUMA)[..., None])


def _grain(share, key, white):
  """White noise [H, W, C] of variance 1; for a share of the patches with grain instead."""
  keys = jax.random.split(key, 3)
  sigma_px = log_uniform(keys[0], _GRAIN_PX)
  correlation = jax.random.uniform(keys[1], maxval=0.95)
  mean = white.mean(axis=-1, keepdims=True)
  # For channels of variance 1 and this covariance.
  own, common = jnp.sqrt(1 - correlation), jnp.sqrt(1 + (white.shape[-1] - 1) * correlation)
  correlated = own * (white - mean) + common * mean
  return jnp.where(jax.random.bernoulli(keys[2], share), blur_noise(correlated, sigma_px), white)
