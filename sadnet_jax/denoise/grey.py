"""Grey images through a network for colour.

Such a network was trained on noise that is independent in the three channels. In a grey image repeated to
three equal channels, the noise is equal too, and the network takes it for detail. So noise is added that is
orthogonal to grey: its three channels add up to zero, so their mean is still the grey image, and with
sqrt(3) times the standard deviation of the image's own noise, the sum of both is independent in the
channels, as in training. The mean of the three denoised channels is the result.
"""

import functools
import math

import numpy as np

from sadnet_jax.images.photograph import to_float

# Period of the added noise: 3 MiB for three channels.
NOISE_PX = 512
# Most 2x2 blocks that noise is estimated from.
_MAX_BLOCKS = 2**20
# Of a normal distribution, the median of the absolute value over the standard deviation.
_MEDIAN_OF_NORMAL = 0.6745


def has_equal_channels(image: np.ndarray) -> bool:
  """Whether an image of several channels [..., C] is grey: all channels are equal."""
  return image.shape[-1] > 1 and all(
    np.array_equal(image[..., 0], image[..., channel]) for channel in range(1, image.shape[-1])
  )


def noise_deviation(image: np.ndarray) -> float:
  """Estimates the standard deviation of white noise in a grey image.

  The median of the absolute differences across the diagonals of 2x2 blocks (the finest wavelet of Haar;
  Donoho and Johnstone, 1994), which detail changes little where most blocks are smooth. Of a large image,
  only every so many rows of blocks are used, so that memory does not grow with it.

  Args:
    image: [H, W], floats, or integers of the full range.

  Returns:
    The standard deviation in the unit of floats, of integers for a range of [0, 1]; 0 if a side is shorter
    than 2. Of integers it comes in steps of 0.74 levels, since the differences are halves of levels.
  """
  height, width = (side // 2 * 2 for side in image.shape)
  if not height or not width:
    return 0.0
  step = 2 * math.ceil(height * width / (4 * _MAX_BLOCKS))
  corners = [to_float(image[row:height:step, column:width:2]) for row in (0, 1) for column in (0, 1)]
  differences = (corners[0] - corners[1] - corners[2] + corners[3]) / 2
  return float(np.median(np.abs(differences)) / _MEDIAN_OF_NORMAL)


def as_colour(
  grey: np.ndarray, deviation: float, rows: np.ndarray, columns: np.ndarray, channels: int
) -> np.ndarray:
  """Repeats a part of a grey image to several channels and adds noise that their mean cancels.

  The noise of a pixel follows from its place, so parts that overlap agree, and equal images give equal
  results. It repeats every `NOISE_PX` pixels.

  Args:
    grey: float32 [h, w, 1].
    deviation: Standard deviation of the image's noise, from `noise_deviation`.
    rows: Rows of the image that the part is taken from, [h].
    columns: Columns, [w].
    channels: Channels of the network.

  Returns:
    float32 [h, w, channels].
  """
  if not deviation:
    return np.repeat(grey, channels, axis=-1)
  noise = _noise(channels)[(rows % NOISE_PX)[:, None], columns % NOISE_PX]
  noise *= np.float32(deviation * math.sqrt(channels))
  noise += grey
  return noise


@functools.cache
def _noise(channels):
  """Normal noise of deviation 1, less its mean: float32 [NOISE_PX, NOISE_PX, channels]."""
  noise = np.random.default_rng(0).standard_normal((NOISE_PX, NOISE_PX, channels), np.float32)
  return noise - noise.mean(axis=-1, keepdims=True)
