"""What it costs to publish weights in another dtype."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sadnet_jax.evaluation.protocols import Protocol
from sadnet_jax.images import find_images, read_image
from sadnet_jax.metrics import psnr
from sadnet_jax.model import SADNet


def rounding_cost(
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
    params: Its weights.
    rounded: The same, rounded.
    images: Folder of clean images.
    sigmas_255: Standard deviations of the noise to add to them.
    protocol: How it is added, and how PSNR is measured.
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
