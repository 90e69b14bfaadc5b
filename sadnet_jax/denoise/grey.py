"""Grey images through a network for colour.

Such a network was trained on noise that is independent in the three channels. In a grey image repeated to
three equal channels, the noise is equal too, and the network takes it for detail. So noise is added that is
orthogonal to grey: its three channels add up to zero, so their mean is still the grey image, and with
sqrt(3) times the standard deviation of the image's own noise, the sum of both is independent in the
channels, as in training. The mean of the three denoised channels is the result.
"""

import math

import numpy as np

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
  Donoho and Johnstone, 1994), which detail changes little where most blocks are smooth.

  Args:
    image: [H, W].

  Returns:
    The standard deviation in the image's unit; 0 if a side is shorter than 2.
  """
  height, width = (side // 2 * 2 for side in image.shape)
  if not height or not width:
    return 0.0
  blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2)
  differences = (blocks[:, 0, :, 0] - blocks[:, 0, :, 1] - blocks[:, 1, :, 0] + blocks[:, 1, :, 1]) / 2
  return float(np.median(np.abs(differences)) / _MEDIAN_OF_NORMAL)


def as_colour(grey: np.ndarray, channels: int) -> np.ndarray:
  """Repeats grey images to several channels and adds noise that their mean cancels.

  The noise is the same in every call, so equal images give equal results.

  Args:
    grey: float32 [N, H, W, 1].
    channels: Channels of the network.

  Returns:
    float32 [N, H, W, channels].
  """
  colour = np.repeat(grey, channels, axis=3)
  random = np.random.default_rng(0)
  for image in colour:
    deviation = noise_deviation(image[..., 0]) * math.sqrt(channels)
    if deviation:
      noise = random.standard_normal(image.shape, np.float32)
      noise -= noise.mean(axis=-1, keepdims=True)
      image += np.float32(deviation) * noise
  return colour
