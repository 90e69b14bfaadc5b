"""PSNR and SSIM. Arrays are [..., H, W, C] in [0, 1]; each image gives one number.

Two conventions of SSIM are in use, `ssim_wang` and `ssim_matlab`. Their values cannot be compared.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Side of the window of both SSIM conventions.
SSIM_WINDOW_PX = 11


def psnr(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratio over all pixels and channels, with peak 1.

  10 * log10(1 / mean((image - reference)**2)), computed in float64.

  Args:
    image: [..., H, W, C], floating point.
    reference: The same shape.

  Returns:
    Decibels, [...]; infinite where the images are equal.

  Raises:
    ValueError: The shapes differ or are not [..., H, W, C], the dtype is an integer, or the reference has
      values far above 1.
  """
  _check_pair(image, reference)
  image, reference = np.asarray(image), np.asarray(reference)
  squares = np.zeros(image.shape[:-3])
  for rows in _strips(image.shape[-3], image.shape):
    difference = image[..., rows, :, :].astype(np.float64) - reference[..., rows, :, :]
    squares = squares + np.sum(difference**2, axis=(-3, -2, -1))
  with np.errstate(divide='ignore'):
    return -10 * np.log10(squares / math.prod(image.shape[-3:]))


def ssim_wang(image: np.ndarray | jax.Array, reference: np.ndarray | jax.Array) -> jax.Array:
  """Structural similarity as defined by Wang et al. (2004), with peak 1.

  The mean of (2 mx my + C1) (2 vxy + C2) / ((mx^2 + my^2 + C1) (vx + vy + C2)) over all channels and
  all windows that lie inside the image. A window is 11x11 pixels of one channel. Its means m, variances v
  and covariance vxy are weighted by a Gaussian of sigma 1.5; C1 = 0.01^2, C2 = 0.03^2.

  Computed on the device in float32, in a form without cancellation. Sides are padded to multiples of
  32 pixels to avoid recompiling for every image size; the padding is not counted.

  Args:
    image: [..., H, W, C], floating point; H and W at least 11.
    reference: The same shape.

  Returns:
    float32 [...]: 1 where the images are equal, less elsewhere.

  Raises:
    ValueError: As for `psnr`, or the images are smaller than a window.

  Source:
    "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004. The authors' later
    program first downscales large images; this function does not.
  """
  _check_pair(image, reference)
  height, width = image.shape[-3:-1]
  if min(height, width) < SSIM_WINDOW_PX:
    raise ValueError(
      f'ssim_wang needs images of at least {SSIM_WINDOW_PX}x{SSIM_WINDOW_PX} pixels, the size of its window; '
      f'not {width}x{height} (ssim_matlab accepts any size)'
    )
  return _mean_ssim(image, reference, volume=False)


def ssim_matlab(image: np.ndarray | jax.Array, reference: np.ndarray | jax.Array) -> jax.Array:
  """Structural similarity as MATLAB's ``ssim`` computes it for a colour image, taken as a volume.

  Like `ssim_wang`, but a window is 11x11x11, across rows, columns and channels. There is a window
  around every pixel of every channel; edge values are repeated beyond the borders of all three axes.

  MATLAB takes a grey image as a plane with windows of 11x11. A single channel gives the same here,
  since a Gaussian average of identical copies changes nothing.

  Args:
    image: [..., H, W, C] of any size, floating point.
    reference: The same shape.

  Returns:
    float32 [...]: 1 where the images are equal, less elsewhere.

  Raises:
    ValueError: As for `psnr`.
  """
  _check_pair(image, reference)
  return _mean_ssim(image, reference, volume=True)


_REACH_PX = SSIM_WINDOW_PX // 2
_GAUSSIAN = np.exp(-(np.arange(-_REACH_PX, _REACH_PX + 1) ** 2) / (2 * 1.5**2))
_WEIGHTS = (_GAUSSIAN / _GAUSSIAN.sum()).astype(np.float32)
# (K1 * peak)**2 and (K2 * peak)**2.
_C1, _C2 = 0.01**2, 0.03**2
# Programs are compiled for sides that are multiples of this.
_COMPILED_PX = 32
# Pixels of a strip of a large image, whose SSIM would take many times its memory.
STRIP_PX = 2**22


# A reference may exceed 1 a little, as where it was resized; one of 8 bits goes up to 255.
_MAX_REFERENCE = 2


def _check_pair(image, reference):
  if image.shape != reference.shape or image.ndim < 3:
    raise ValueError(
      f'image and reference must have the same shape [..., H, W, C], not {image.shape} and {reference.shape}'
    )
  # On the scale of 8-bit images PSNR would be 48 dB less, and the constants of SSIM would vanish: the result
  # would look plausible and be wrong.
  if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (image, reference)):
    raise ValueError(
      f'image and reference must be floating point in [0, 1], not {image.dtype} and {reference.dtype} '
      '(divide 8-bit images by 255)'
    )
  if isinstance(reference, jax.core.Tracer) or not reference.size:
    return
  # By NumPy, since inside jit JAX would trace it.
  if (highest := float(np.asarray(reference).max())) > _MAX_REFERENCE:
    raise ValueError(
      f'reference must be in [0, 1], but has values up to {highest:g}; divide both images by 255'
    )


def _strips(height, shape):
  """Slices of rows that have `STRIP_PX` pixels each, of images of this shape [..., H, W, C]."""
  rows = max(1, STRIP_PX // max(1, math.prod(shape[:-3]) * shape[-2]))
  return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def _mean_ssim(image, reference, volume):
  """The mean over strips of windows, since all windows of a large image would need much memory."""
  border = _REACH_PX if volume else 0
  height, width = (side - 2 * (_REACH_PX - border) for side in image.shape[-3:-1])
  total = 0
  for rows in _strips(height, image.shape):
    # The windows of these rows look at 10 rows more; beyond the image its edges are repeated.
    seen = np.clip(np.arange(rows.start, rows.stop + 2 * _REACH_PX) - border, 0, image.shape[-3] - 1)
    parts = [_repeat_edges(x[..., seen, :, :], border) for x in (image, reference)]
    # The Gaussian window is separable: it is applied to one axis after another. Each axis is a program
    # of its own, because XLA merges the passes of a single one, which is several times slower on a CPU.
    mean, variance = _channel_moments(*parts, volume)
    for axis in (-2, -1):
      mean, variance = _window_moments(mean, variance, axis)
    count = rows.stop - rows.start
    total = total + _ssim_of_moments(mean, variance, count, width) * (count / height)
  return total


def _repeat_edges(image, border_px):
  """Repeats the edges left and right over a border, and at the end up to the next size compiled for."""
  height, width = image.shape[-3:-1]
  columns = border_px, border_px + -(width + 2 * border_px) % _COMPILED_PX
  pad = [(0, 0)] * (image.ndim - 3) + [(0, -height % _COMPILED_PX), columns, (0, 0)]
  pad_with = np.pad if isinstance(image, np.ndarray) else jnp.pad
  return jnp.asarray(pad_with(image, pad, mode='edge'), jnp.float32)


@functools.partial(jax.jit, static_argnames='volume')
def _channel_moments(image, reference, volume):
  """Means and variances, [3, ..., C, H, W], of image, reference and difference over windows of channels.

  Without ``volume`` a window has one channel; the variance is then 0 and returned as None.
  """
  mean = jnp.moveaxis(jnp.stack([image, reference, image - reference]), -1, -3)
  if not volume:
    return mean, None
  # weights[i, j]: weight of channel i in the window around channel j.
  channels = mean.shape[-3]
  padded = np.pad(np.eye(channels, dtype=np.float32), ((0, 0), (_REACH_PX, _REACH_PX)), mode='edge')
  weights = np.lib.stride_tricks.sliding_window_view(padded, SSIM_WINDOW_PX, axis=1) @ _WEIGHTS
  parts = [(weights[i, :, None, None], mean[..., i : i + 1, :, :], None) for i in range(channels)]
  return _mixture_moments(mean, parts)


@functools.partial(jax.jit, static_argnames='axis')
def _window_moments(mean, variance, axis):
  """Means and variances over the windows that lie inside one axis, which becomes 10 shorter."""
  count = mean.shape[axis] - 2 * _REACH_PX

  def shifted(x, start):
    return None if x is None else lax.slice_in_dim(x, start, start + count, axis=x.ndim + axis)

  parts = [(weight, shifted(mean, k), shifted(variance, k)) for k, weight in enumerate(_WEIGHTS)]
  return _mixture_moments(shifted(mean, _REACH_PX), parts)


def _mixture_moments(centre, parts):
  """Mean and variance of a mixture, by the law of total variance.

  Args:
    centre: c below. Any value gives the same result; the mean of the middle part loses the fewest digits.
    parts: (weight, mean, variance) of each; the weights sum to 1, and a variance of None is 0.
  """
  # In a part with mean m and variance v, E[(x - c)^2] = v + d^2 with d = m - c. So with weights w and any c:
  #   E[x]         = c + sum w d
  #   E[(x - c)^2] = sum w (v + d^2)
  #   Var[x]       = E[(x - c)^2] - (E[x] - c)^2 = sum w (v + d^2) - (sum w d)^2
  # With c = 0 this is E[x^2] - E[x]^2, which leaves float32 few digits in bright flat areas.
  first, second = 0, 0
  for weight, mean, variance in parts:
    d = mean - centre
    first += weight * d
    second += weight * (d**2 if variance is None else d**2 + variance)
  return centre + first, second - first**2


@jax.jit
def _ssim_of_moments(mean, variance, rows, columns):
  """The mean SSIM over the first rows and columns, which are the windows of the image itself."""
  # With d = x - y: 2 mx my = mx^2 + my^2 - md^2 and 2 vxy = vx + vy - vd. Hence
  #   (2 mx my + C1) / (mx^2 + my^2 + C1) = 1 - a  with  a = md^2 / (mx^2 + my^2 + C1),
  #   (2 vxy + C2) / (vx + vy + C2)       = 1 - b  with  b = vd / (vx + vy + C2),
  # and SSIM = (1 - a) (1 - b) = 1 - (a + b - a b): no covariance, no difference of nearly equal numbers.
  a = mean[2] ** 2 / (mean[0] ** 2 + mean[1] ** 2 + _C1)
  b = variance[2] / (variance[0] + variance[1] + _C2)
  lost = a + b - a * b
  height, width = lost.shape[-2:]
  in_image = (jnp.arange(height) < rows)[:, None] & (jnp.arange(width) < columns)

  def average(x):
    total = jnp.sum(jnp.where(in_image, x, 0), (-3, -2, -1), keepdims=True)
    return total / (x.shape[-3] * rows * columns)

  # A float32 sum of thousands of numbers is off in the sixth digit: add the mean of what remains about it.
  rough = average(lost)
  return 1 - (rough + average(lost - rough))[..., 0, 0, 0]
