"""Image quality. Contract: arrays [..., H, W, C] in [0, 1], one number an image.

SSIM has two conventions, `ssim_wang` and `ssim_matlab`; a value of one says nothing beside one of the other.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Side of the windows of both.
SSIM_WINDOW_PX = 11
_REACH_PX = SSIM_WINDOW_PX // 2
_GAUSSIAN = np.exp(-(np.arange(-_REACH_PX, _REACH_PX + 1) ** 2) / (2 * 1.5**2))
_WEIGHTS = (_GAUSSIAN / _GAUSSIAN.sum()).astype(np.float32)
# Sides of what is compiled are multiples of this.
_COMPILED_PX = 32
# (K1 * peak)**2 and (K2 * peak)**2.
_C1, _C2 = 0.01**2, 0.03**2


def round_to_8_bits(image: np.ndarray) -> np.ndarray:
  """Clips to [0, 1] and rounds to the nearest of 256 levels, as saving a PNG does.

  Never floored: truncation costs a noticeable part of a decibel at high PSNR.
  """
  return np.round(np.clip(image, 0, 1) * 255) / 255


def psnr(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratio over all pixels and channels, peak 1.

  10 * log10(1 / mean((image - reference)**2)), computed in float64.

  Args:
    image: [..., H, W, C].
    reference: The same shape.

  Returns:
    Decibels, [...]; infinite where the images are equal.

  Raises:
    ValueError: The shapes differ.
  """
  image, reference = np.asarray(image, np.float64), np.asarray(reference, np.float64)
  if image.shape != reference.shape:
    raise ValueError(
      f'image and reference: got shapes {image.shape} and {reference.shape}, want equal shapes'
    )
  mean_square = np.mean((image - reference) ** 2, axis=(-3, -2, -1))
  with np.errstate(divide='ignore'):
    return -10 * np.log10(mean_square)


def ssim_wang(image: np.ndarray | jax.Array, reference: np.ndarray | jax.Array) -> jax.Array:
  """Structural similarity as Wang et al. (2004) define it, peak 1.

  The mean, over channels and over all windows that lie inside the image, of
  (2 mx my + C1) (2 vxy + C2) / ((mx^2 + my^2 + C1) (vx + vy + C2)). A window is 11x11
  pixels of one channel under a Gaussian of sigma 1.5, which weights its means m,
  variances v and covariance vxy; C1 = 0.01^2, C2 = 0.03^2.

  Computed on the device in float32, in a form without cancellation. Sides are extended
  to multiples of 32 pixels, which are not counted, so that few sizes compile.

  Args:
    image: [..., H, W, C], floating point; H and W at least 11.
    reference: The same shape.

  Returns:
    float32 [...]: 1 where the images are equal, less elsewhere.

  Raises:
    ValueError: Shapes that differ or are no [..., H, W, C]; integers; images smaller
      than a window.

  Source:
    "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004.
    The authors' later program scales large images down first; this does not.
  """
  _check_ssim_pair(image, reference)
  height, width = image.shape[-3:-1]
  if min(height, width) < SSIM_WINDOW_PX:
    raise ValueError(
      f'image: got {height}x{width} pixels, want at least {SSIM_WINDOW_PX}x{SSIM_WINDOW_PX}, the window of '
      'ssim_wang (ssim_matlab takes any size)'
    )
  return _mean_ssim(image, reference, volume=False)


def ssim_matlab(image: np.ndarray | jax.Array, reference: np.ndarray | jax.Array) -> jax.Array:
  """Structural similarity as MATLAB's ``ssim`` gives it for a colour image: a volume.

  As `ssim_wang`, but a window is 11x11x11, across rows, columns and channels; it lies
  around each pixel of each channel, and beyond the borders of any of the three axes
  the image goes on as it is there (replicate padding).

  A grey image is to MATLAB a plane with windows of 11x11. One channel here gives the
  same: a Gaussian over copies of one channel changes nothing.

  Args:
    image: [..., H, W, C] of any size, floating point.
    reference: The same shape.

  Returns:
    float32 [...]: 1 where the images are equal, less elsewhere.

  Raises:
    ValueError: Shapes that differ or are no [..., H, W, C]; integers.
  """
  _check_ssim_pair(image, reference)
  return _mean_ssim(image, reference, volume=True)


def _check_ssim_pair(image, reference):
  if image.shape != reference.shape or image.ndim < 3:
    raise ValueError(
      f'image and reference: got shapes {image.shape} and {reference.shape}, want equal shapes [..., H, W, C]'
    )
  # On the scale of 8-bit images the constants would vanish: a plausible number, and wrong.
  if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (image, reference)):
    raise ValueError(
      f'image and reference: got {image.dtype} and {reference.dtype}, want floating point in [0, 1] '
      '(divide 8-bit images by 255)'
    )


def _mean_ssim(image, reference, volume):
  height, width = image.shape[-3:-1]
  image, reference = (_extend(x, _REACH_PX if volume else 0) for x in (image, reference))
  # A program for each axis: XLA merges the passes of a single one, several times as slow on a CPU.
  mean, variance = _pixels(image, reference, volume)
  for axis in (-2, -1):
    mean, variance = _pool_axis(mean, variance, axis)
  inside = 0 if volume else 2 * _REACH_PX
  return _ssim_of_moments(mean, variance, height - inside, width - inside)


def _extend(image, before_px):
  """Goes on beyond the borders of an image as it is there, up to the next size that is compiled for."""
  sides = [side + 2 * before_px for side in image.shape[-3:-1]]
  after = [before_px + -side % _COMPILED_PX for side in sides]
  pad = [(0, 0)] * (image.ndim - 3) + [(before_px, px) for px in after] + [(0, 0)]
  pad_with = np.pad if isinstance(image, np.ndarray) else jnp.pad
  return jnp.asarray(pad_with(image, pad, mode='edge'), jnp.float32)


@functools.partial(jax.jit, static_argnames='volume')
def _pixels(image, reference, volume):
  """Means and variances of image, reference and difference, [3, ..., C, H, W], before pooling over H, W."""
  mean = jnp.moveaxis(jnp.stack([image, reference, image - reference]), -1, -3)
  if not volume:
    return mean, None
  # weights[i, j]: of channel i in the window around channel j.
  channels = mean.shape[-3]
  padded = np.pad(np.eye(channels, dtype=np.float32), ((0, 0), (_REACH_PX, _REACH_PX)), mode='edge')
  weights = np.lib.stride_tricks.sliding_window_view(padded, SSIM_WINDOW_PX, axis=1) @ _WEIGHTS
  return _pool(mean, [(weights[i, :, None, None], mean[..., i : i + 1, :, :], None) for i in range(channels)])


@functools.partial(jax.jit, static_argnames='axis')
def _pool_axis(mean, variance, axis):
  """Pools over the windows inside one axis, which gets shorter by 10."""
  count = mean.shape[axis] - 2 * _REACH_PX

  def shifted(x, start):
    return None if x is None else lax.slice_in_dim(x, start, start + count, axis=x.ndim + axis)

  parts = [(weight, shifted(mean, k), shifted(variance, k)) for k, weight in enumerate(_WEIGHTS)]
  return _pool(shifted(mean, _REACH_PX), parts)


def _pool(centre, parts):
  """Mean and variance of a mixture of parts, each a weight, a mean, and a variance or None for 0.

  The variance is the mean of the parts' variances plus the variance of their means (law of total
  variance). The latter is taken about ``centre``, the part in the middle: E[x^2] - E[x]^2 about 0
  would leave float32 few digits where an image is bright and flat.
  """
  first, second = 0, 0
  for weight, mean, variance in parts:
    off = mean - centre
    first += weight * off
    second += weight * (off**2 if variance is None else off**2 + variance)
  return centre + first, second - first**2


@jax.jit
def _ssim_of_moments(mean, variance, rows, columns):
  """The mean over the first rows and columns: those of the windows of the image itself."""
  # With d = x - y, 2 mx my = mx^2 + my^2 - md^2 and 2 vxy = vx + vy - vd, so that SSIM = (1 - a) (1 - b):
  # no covariance, and no difference of numbers that are almost equal.
  a = mean[2] ** 2 / (mean[0] ** 2 + mean[1] ** 2 + _C1)
  b = variance[2] / (variance[0] + variance[1] + _C2)
  lost = a + b - a * b
  height, width = lost.shape[-2:]
  of_image = (jnp.arange(height) < rows)[:, None] & (jnp.arange(width) < columns)

  def average(x):
    total = jnp.sum(jnp.where(of_image, x, 0), (-3, -2, -1), keepdims=True)
    return total / (x.shape[-3] * rows * columns)

  # A float32 sum of thousands of numbers is off in the sixth digit: sum what is left about it, too.
  rough = average(lost)
  return 1 - (rough + average(lost - rough))[..., 0, 0, 0]
