"""The noise of cameras, synthesised on clean 8-bit photographs inside a jitted training step.

A photograph is taken back to what the sensor saw (`unprocess`), sampled through a Bayer mosaic, given
shot and read noise, and developed again (demosaicing, white balance, colour matrix, gamma, tone curve).
Developing the same raw image without the noise and subtracting leaves the noise alone, which is added
to the photograph: whatever the pipeline itself changes never enters the pair. Then the noise may be
blurred to the grain of resized or smoothed pictures, and the result is clipped, rounded to 8 bits and,
for a share of the pictures, compressed as JPEG (`sadnet_jax.data.jpeg`).

Everything is a function of a random key and the image, so it can be jitted and mapped over a batch.

Sources: T. Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019 (the pipeline and
its constants, and the noise of `brooks`); S. W. Zamir et al., "CycleISP", CVPR 2020 (`cycleisp_sidd`);
S. Guo et al., "Toward Convolutional Blind Denoising of Real Photographs", CVPR 2019 (`cbdnet`, and
adding the difference of two developed images).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.data.jpeg import jpeg_loss
from sadnet_jax.data.noise import round_to_8_bits
from sadnet_jax.images.photograph import BT601_LUMA

# XYZ -> camera for four cameras (Brooks et al.), and linear sRGB -> XYZ (IEC 61966-2-1).
_XYZ_TO_CAMERA = np.array(
  [
    [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
    [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
    [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
    [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
  ],
  np.float32,
)
_RGB_TO_XYZ = np.array(
  [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
  np.float32,
)
_GAMMA = 2.2
# JPEG's grid starts at a random offset below this: its chroma blocks are 16 pixels wide.
_JPEG_GRID_PX = 16


@dataclasses.dataclass(frozen=True)
class CameraNoise:
  """How the noise of a picture is drawn.

  The variance of a raw value x in [0, 1] is ``shot * x + read + (relative * x)**2 + constant**2``.

  Attributes:
    shot: Range of the shot noise's variance per unit of signal, drawn log-uniformly; (0, 0) for none.
    read_line: (slope, intercept, deviation) of ln(read variance) against ln(shot), the deviation normal.
    relative: Range of a standard deviation proportional to the signal, drawn uniformly.
    constant: Range of a constant standard deviation, drawn uniformly.
    gains: Whether white balance and a camera's colour matrix are applied; else only the response curve.
    mosaic: Probability of a Bayer mosaic; without it all three channels are measured at each pixel.
    grain: Probability that the developed noise is given the grain of smoothed or resized pictures: its luma
      and chroma are blurred and reweighted; the energy of the whole stays, and so does the brightness that
      the clipping of noise and the tone curve have changed.
    grain_px: Range of the standard deviation of luma's Gaussian blur in pixels, drawn log-uniformly.
    grain_chroma_px: Range of chroma's blur as a multiple of luma's, drawn uniformly.
    grain_chroma: Range of the factor that chroma is multiplied by beside luma, drawn log-uniformly.
    grain_gain: Range of the factor on the standard deviation of such noise, drawn log-uniformly.
    jpeg: Probability that the noisy picture is compressed.
    jpeg_quality: Lowest and highest quality, drawn uniformly.
  """

  shot: tuple[float, float]
  read_line: tuple[float, float, float] = (0.0, -math.inf, 0.0)
  relative: tuple[float, float] = (0.0, 0.0)
  constant: tuple[float, float] = (0.0, 0.0)
  gains: bool = True
  mosaic: float = 1.0
  grain: float = 0.0
  grain_px: tuple[float, float] = (0.25, 1.6)
  grain_chroma_px: tuple[float, float] = (1.0, 1.0)
  grain_chroma: tuple[float, float] = (1.0, 1.0)
  grain_gain: tuple[float, float] = (1.0, 1.0)
  jpeg: float = 0.0
  jpeg_quality: tuple[int, int] = (60, 100)


PRESETS = {
  # Brooks et al.: fitted to the Darmstadt Noise Dataset, natural logarithms.
  'brooks': CameraNoise(shot=(1e-4, 0.012), read_line=(2.18, 1.20, 0.26)),
  # CycleISP's constants for SIDD: log10(read) = 1.85 log10(shot) + 0.30 +- 0.20, here as natural logarithms.
  'cycleisp_sidd': CameraNoise(
    shot=(6.87e-4, 2.19e-2), read_line=(1.85, 0.30 * math.log(10), 0.20 * math.log(10))
  ),
  # CBDNet: sigma_s up to 0.16 and sigma_c up to 0.06, standard deviations, for each channel. Its 201 measured
  # response curves are not published with a licence; the gamma and tone curve of this module stand in their
  # place.
  'cbdnet': CameraNoise(
    shot=(0.0, 0.0), relative=(0.0, 0.16), constant=(0.0, 0.06), gains=False, mosaic=0.8, jpeg=1.0
  ),
  # Ours: from the faint noise of ISO 100 to phones in the dark. The grain covers most of what pairs of JPEGs
  # show (PolyU: correlation of 0.5 to 0.8 at one pixel's distance and 0.5 to 0.9 between channels, chroma
  # smoother than luma), the rest what a phone's raw developer leaves (RENOIR's Mi3: 0.5 to 0.6, and none).
  'photo': CameraNoise(
    shot=(3e-6, 2e-2),
    read_line=(2.18, 1.20, 0.26),
    grain=0.7,
    grain_px=(0.25, 1.6),
    grain_chroma_px=(1.0, 2.5),
    grain_chroma=(0.1, 1.2),
    grain_gain=(0.5, 1.25),
    jpeg=0.35,
    jpeg_quality=(60, 100),
  ),
}


def add_camera_noise(key: jax.Array, clean: jax.Array, noise: CameraNoise) -> jax.Array:
  """A photograph as a camera would have given it.

  Args:
    key: Random key; all choices come from it.
    clean: [H, W, 3] in [0, 1], an 8-bit photograph; H and W at least 8 pixels.
    noise: What to draw from, such as ``PRESETS['photo']``.

  Returns:
    [H, W, 3] in [0, 1], on 8-bit levels.
  """
  keys = dict(
    zip(('camera', 'levels', 'mosaic', 'noise', 'grain', 'jpeg'), jax.random.split(key, 6), strict=True)
  )
  camera = draw_camera(keys['camera'], noise.gains)
  raw = unprocess(clean, camera)
  deviation = jnp.sqrt(draw_levels(keys['levels'], noise).variance(raw))
  raw_noise = deviation * jax.random.normal(keys['noise'], raw.shape)

  def developed(*measured):
    return process(_through_mosaic(keys['mosaic'], jnp.stack(measured), noise.mosaic), camera)

  if noise.grain == 0:
    noiseless, plus = developed(raw, raw + raw_noise)
    change = plus - noiseless
  else:
    noiseless, plus, minus = developed(raw, raw + raw_noise, raw - raw_noise)
    # Clipping and the tone curve move the mean of noise. This shift, which both signs of the noise have in
    # common, gets no grain: what makes up for the noise that a blur takes away would multiply it.
    shift = (plus + minus) / 2 - noiseless
    change = shift + _with_grain(keys['grain'], (plus - minus) / 2, noise)
  noisy = round_to_8_bits(clean + change)
  return _maybe_jpeg(keys['jpeg'], noisy, noise)


@dataclasses.dataclass(frozen=True)
class Camera:
  """One camera's colours.

  Attributes:
    to_camera: Linear sRGB -> the camera's own colours, [3, 3].
    to_rgb: Its inverse.
    gains: Gains of red, green and blue: white balance times digital gain, [3].
  """

  to_camera: jax.Array
  to_rgb: jax.Array
  gains: jax.Array


def draw_camera(key: jax.Array, has_gains: bool) -> Camera:
  """Draws a camera as Brooks et al. do; without gains, one whose colours are linear sRGB."""
  if not has_gains:
    return Camera(jnp.eye(3), jnp.eye(3), jnp.ones(3))
  keys = jax.random.split(key, 4)
  shares = jax.random.uniform(keys[0], (4,), minval=1e-3)
  xyz_to_camera = jnp.tensordot(shares / shares.sum(), _XYZ_TO_CAMERA, 1)
  to_camera = xyz_to_camera @ _RGB_TO_XYZ
  to_camera /= to_camera.sum(axis=1, keepdims=True)
  # A digital gain of 1 / N(0.8, 0.1), bounded; white balance.
  digital = 1 / jnp.clip(0.8 + 0.1 * jax.random.normal(keys[1]), 0.5, 1.1)
  red = jax.random.uniform(keys[2], minval=1.9, maxval=2.4)
  blue = jax.random.uniform(keys[3], minval=1.5, maxval=1.9)
  return Camera(to_camera, jnp.linalg.inv(to_camera), digital * jnp.stack([red, jnp.float32(1), blue]))


def unprocess(image: jax.Array, camera: Camera) -> jax.Array:
  """sRGB [..., 3] in [0, 1] -> raw values [..., 3] in [0, 1], before the mosaic."""
  linear = 0.5 - jnp.sin(jnp.arcsin(1 - 2 * jnp.clip(image, 0, 1)) / 3)
  linear = jnp.maximum(linear, 1e-8) ** _GAMMA
  raw = linear @ camera.to_camera.T
  # Dividing by the gains would make white grey: near white, gains above 1 fade out (highlights kept).
  grey = raw.mean(axis=-1, keepdims=True)
  kept = (jnp.maximum(grey - 0.9, 0) / 0.1) ** 2
  scale = 1 / camera.gains
  return jnp.clip(raw * jnp.maximum(kept + (1 - kept) * scale, scale), 0, 1)


def process(raw: jax.Array, camera: Camera) -> jax.Array:
  """Develops demosaiced raw values [..., 3] to sRGB in [0, 1]; negative values stay until the last clip."""
  # What is saturated after white balance is white. Otherwise the colour matrix would make green of it that
  # alone keeps noise.
  balanced = jnp.minimum(raw * camera.gains, 1)
  linear = jnp.clip(balanced @ camera.to_rgb.T, 1e-8, 1)
  encoded = linear ** (1 / _GAMMA)
  return 3 * encoded**2 - 2 * encoded**3


class NoiseLevels(NamedTuple):
  """What one picture's noise is made of: see `CameraNoise` for the variance they give.

  Attributes:
    shot, read: Scalars.
    relative, constant: For each channel, [3].
  """

  shot: jax.Array
  read: jax.Array
  relative: jax.Array
  constant: jax.Array

  def variance(self, raw: jax.Array) -> jax.Array:
    """The variance of raw values, of their shape."""
    return self.shot * raw + self.read + (self.relative * raw) ** 2 + self.constant**2


def draw_levels(key: jax.Array, noise: CameraNoise) -> NoiseLevels:
  """Draws how noisy one picture is."""
  keys = jax.random.split(key, 4)
  relative = jax.random.uniform(keys[2], (3,), minval=noise.relative[0], maxval=noise.relative[1])
  constant = jax.random.uniform(keys[3], (3,), minval=noise.constant[0], maxval=noise.constant[1])
  if noise.shot[1] == 0:
    return NoiseLevels(jnp.float32(0), jnp.float32(0), relative, constant)
  shot = log_uniform(keys[0], noise.shot)
  slope, intercept, deviation = noise.read_line
  log_read = slope * jnp.log(shot) + intercept + deviation * jax.random.normal(keys[1])
  return NoiseLevels(shot, jnp.exp(log_read), relative, constant)


def _through_mosaic(key, raw, probability):
  """What demosaicing makes of raw images [N, H, W, 3] measured through a Bayer filter of random phase."""
  keys = jax.random.split(key, 2)
  row, column = jax.random.randint(keys[0], (2,), 0, 2)
  demosaiced = demosaic(raw, row, column)
  return jnp.where(jax.random.bernoulli(keys[1], probability), demosaiced, raw)


def demosaic(raw: jax.Array, row: jax.Array | int, column: jax.Array | int) -> jax.Array:
  """Keeps of each pixel the channel a Bayer mosaic measures, and fills the others in bilinearly.

  Args:
    raw: [N, H, W, 3].
    row, column: 0 or 1: where the mosaic's red pixels begin.

  Returns:
    [N, H, W, 3].
  """
  height, width = raw.shape[1:3]
  is_red_row = (jnp.arange(height) % 2 == row)[:, None]
  is_red_column = (jnp.arange(width) % 2 == column)[None, :]
  red, blue = is_red_row & is_red_column, ~is_red_row & ~is_red_column
  masks = jnp.stack([red, ~(red | blue), blue], axis=-1)
  # Reflection without repeating the border keeps the phase of the mosaic.
  padded = jnp.pad(raw * masks, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='reflect')

  def shifted(dy, dx):
    return padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

  centre = shifted(0, 0)
  cross = shifted(-1, 0) + shifted(1, 0) + shifted(0, -1) + shifted(0, 1)
  corners = shifted(-1, -1) + shifted(-1, 1) + shifted(1, -1) + shifted(1, 1)
  is_green = np.array([0, 1, 0], np.float32)
  return centre + cross * (0.25 * is_green + 0.5 * (1 - is_green)) + 0.25 * corners * (1 - is_green)


def _with_grain(key, developed, noise):
  """The noise [H, W, 3] of a picture, of mean zero; for a share of the pictures with another grain."""
  keys = jax.random.split(key, 5)
  sigma_px = log_uniform(keys[0], noise.grain_px)
  low, high = noise.grain_chroma_px
  chroma_sigma_px = sigma_px * jax.random.uniform(keys[1], minval=low, maxval=high)
  luma = (developed @ BT601_LUMA)[..., None]
  chroma = log_uniform(keys[2], noise.grain_chroma) * blur_noise(developed - luma, chroma_sigma_px)
  grainy = blur_noise(luma, sigma_px) + chroma
  energy, new_energy = jnp.mean(developed**2), jnp.mean(grainy**2)
  gain = log_uniform(keys[3], noise.grain_gain) * jnp.sqrt(energy / jnp.maximum(new_energy, 1e-20))
  return jnp.where(jax.random.bernoulli(keys[4], noise.grain), gain * grainy, developed)


def log_uniform(key: jax.Array, limits: tuple[float, float]) -> jax.Array:
  """Draws a scalar between two limits above 0, its logarithm uniformly."""
  low, high = limits
  return jnp.exp(jax.random.uniform(key, minval=math.log(low), maxval=math.log(high)))


def blur_noise(noise: jax.Array, sigma_px: jax.Array | float) -> jax.Array:
  """Blurs noise by a Gaussian and scales it so that its energy stays.

  Args:
    noise: [H, W, C], of mean zero.
    sigma_px: Standard deviation of the blur in pixels.

  Returns:
    [H, W, C].
  """
  energy = jnp.mean(noise**2)
  # Products with circulant matrices: opposite borders are neighbours, so that the noise stays even.
  rows, columns = (_circulant_blur(size, sigma_px) for size in noise.shape[:2])
  blurred = jnp.einsum('hi,wj,ijc->hwc', rows, columns, noise)
  return blurred * jnp.sqrt(energy / jnp.maximum(jnp.mean(blurred**2), 1e-20))


def _circulant_blur(size, sigma_px):
  distance = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size))
  distance = jnp.minimum(distance, size - distance)
  weights = jnp.exp(-0.5 * (distance / sigma_px) ** 2)
  return weights / weights.sum(axis=1, keepdims=True)


def _maybe_jpeg(key, image, noise):
  """For a share of the pictures, what JPEG makes of one, its blocks beginning anywhere."""
  if noise.jpeg == 0:
    return image
  keys = jax.random.split(key, 4)
  height, width = image.shape[:2]
  grid = _JPEG_GRID_PX
  top, left = jax.random.randint(keys[0], (2,), 0, grid)
  bottom, right = grid + -height % grid, grid + -width % grid
  padded = jnp.pad(image, ((grid, bottom), (grid, right), (0, 0)), mode='symmetric')
  size = (height + bottom, width + right, 3)
  shifted = jax.lax.dynamic_slice(padded, (top, left, 0), size)
  low, high = noise.jpeg_quality
  quality = jax.random.randint(keys[1], (), low, high + 1)
  subsampled = jax.random.bernoulli(keys[2], 0.5)
  compressed = jpeg_loss(shifted, quality, subsampled)
  compressed = jax.lax.dynamic_slice(compressed, (grid - top, grid - left, 0), image.shape)
  return jnp.where(jax.random.bernoulli(keys[3], noise.jpeg), compressed, image)
