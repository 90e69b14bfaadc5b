"""Geometric self-ensemble: the mean over the eight flips and rotations of the image.

The "+" of many papers' tables, as in Timofte et al., "Seven ways to improve example-based
single image super resolution", CVPR 2016.
"""

from collections.abc import Callable

import numpy as np

TRANSFORMS = 8


def self_ensemble(denoise: Callable[[np.ndarray], np.ndarray], noisy: np.ndarray) -> np.ndarray:
  """Denoises every flip and rotation, undoes it, and takes the mean.

  Args:
    denoise: [N, H, W, C] -> the same shape; is given [N, W, H, C] as well.
    noisy: float32 [N, H, W, C].

  Returns:
    float32 [N, H, W, C].
  """
  total = np.zeros_like(noisy)
  for turns in range(4):
    for flipped in (False, True):
      turned = np.rot90(noisy[:, :, ::-1] if flipped else noisy, turns, axes=(1, 2))
      back = np.rot90(denoise(np.ascontiguousarray(turned)), -turns, axes=(1, 2))
      total += back[:, :, ::-1] if flipped else back
  return total / np.float32(TRANSFORMS)
