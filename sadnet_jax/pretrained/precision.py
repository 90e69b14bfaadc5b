"""What it costs to publish weights in float16."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sadnet_jax.evaluation.protocols import Protocol
from sadnet_jax.images import find_images, read_image
from sadnet_jax.metrics import psnr
from sadnet_jax.model import SADNet


def float16_cost(
  model: SADNet,
  params: Mapping[str, Any],
  rounded: Mapping[str, Any],
  *,
  images: Path,
  sigmas_255: Sequence[float],
  protocol: Protocol,
) -> str:
  """The difference in PSNR that rounding to float16 makes, in words.

  Args:
    model: The network.
    params: Its weights, float32.
    rounded: The same rounded to float16, as float32.
    images: Folder of clean images.
    sigmas_255: Standard deviations of the noise to add to them, on the scale of 8-bit images.
    protocol: How it is added, and how PSNR is measured.

  Returns:
    The largest and the mean difference in dB, and over what.

  Raises:
    ValueError: The folder has no images, or one that cannot be read.
  """
  differences = []
  apply = jax.jit(model.apply)
  for path in (paths := find_images(images)):
    image = read_image(path, model.channels)
    for sigma_255 in sigmas_255:
      noisy, clean = protocol.prepare(None, image, sigma_255)
      exact, other = (
        psnr(protocol.finish(np.asarray(apply({'params': p}, noisy[None])[0])), clean)
        for p in (params, rounded)
      )
      differences.append(float(other - exact))
  sigmas = ', '.join(f'{s:g}' for s in sigmas_255)
  return (
    f'float16 against float32: PSNR differs by {max(map(abs, differences)):.4f} dB at most, '
    f'{np.mean(differences):+.4f} dB on average, over {len(paths)} images ({images.name}), '
    f'sigma {sigmas}, {protocol.name}'
  )
