"""Image quality. Contract: arrays [..., H, W, C] in [0, 1], one number an image, dB."""

import numpy as np


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
