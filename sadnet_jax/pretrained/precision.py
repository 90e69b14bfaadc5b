"""What it costs to publish weights in float16."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sadnet_jax.datasets.examples import Example, read_example
from sadnet_jax.evaluation.protocols import Protocol
from sadnet_jax.metrics import psnr
from sadnet_jax.model import SADNet


def float16_cost(
  model: SADNet,
  params: Mapping[str, Any],
  rounded: Mapping[str, Any],
  *,
  examples: Sequence[Example],
  sigmas_255: Sequence[float | None],
  protocol: Protocol,
  source: str,
) -> str:
  """The difference in PSNR that rounding to float16 makes, in words.

  Args:
    model: The network.
    params: Its weights, float32.
    rounded: The same rounded to float16, as float32.
    examples: Clean images, or pairs of real noise.
    sigmas_255: Standard deviations of the noise to add to them, on the scale of 8-bit images; None alone for
      pairs.
    protocol: How it is added, and how PSNR is measured.
    source: What the examples are called.

  Returns:
    The largest and the mean difference in dB, and over what.

  Raises:
    ValueError: An image cannot be read.
  """
  differences = []
  apply = jax.jit(model.apply)
  for example in examples:
    images = read_example(example, model.channels)
    for sigma_255 in sigmas_255:
      noisy, clean = protocol.prepare(*images, sigma_255)
      exact, other = (
        psnr(protocol.finish(np.asarray(apply({'params': p}, noisy[None])[0])), clean)
        for p in (params, rounded)
      )
      differences.append(float(other - exact))
  levels = [f'{s:g}' for s in sigmas_255 if s is not None]
  noise = f'sigma {", ".join(levels)}' if levels else 'real noise'
  return (
    f'float16 against float32: PSNR differs by {max(map(abs, differences)):.4f} dB at most, '
    f'{np.mean(differences):+z.4f} dB on average, over {len(examples)} images ({source}), '
    f'{noise}, {protocol.name}'
  )
