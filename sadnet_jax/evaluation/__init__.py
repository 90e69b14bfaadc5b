"""Evaluation on a folder of clean images with synthetic noise."""

from collections.abc import Callable, Iterator
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sadnet_jax.images import find_images, read_image, write_png
from sadnet_jax.metrics import psnr, round_to_8_bits
from sadnet_jax.model import SADNet
from sadnet_jax.noise import add_benchmark_noise

RESULTS_FILE = 'results.json'


@dataclasses.dataclass(frozen=True)
class ImageResult:
  """PSNR of one image in dB, before and after."""

  name: str
  noisy_psnr: float
  denoised_psnr: float


def make_denoiser(model: SADNet, params: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
  """A function from one noisy image to its denoised version, compiled once a size.

  Args:
    model: The network.
    params: Its weights.

  Returns:
    float32 [H, W, C] -> float32 [H, W, C], not clipped.
  """
  apply = jax.jit(lambda params, noisy: model.apply({'params': params}, noisy))
  params = jax.device_put(params)
  return lambda noisy: np.asarray(apply(params, noisy[None])[0])


def evaluate_folder(
  denoise: Callable[[np.ndarray], np.ndarray],
  dataset: str | Path,
  *,
  channels: int,
  sigma_255: float,
  protocol: str,
  output: str | Path,
) -> Iterator[ImageResult]:
  """Adds noise to each clean image, denoises, measures, and writes the pictures.

  PSNR is over all pixels and channels after clipping to [0, 1] and rounding to
  8 bits; the noisy image is measured as the network gets it.

  Args:
    denoise: Noisy [H, W, C] -> denoised [H, W, C].
    dataset: Folder of clean images.
    channels: 3, or 1 (colour files are converted).
    sigma_255: Standard deviation of the noise on the scale of 8-bit images.
    protocol: See `add_benchmark_noise`.
    output: Folder for ``denoised/`` (the result alone) and ``comparison/``
      (noisy, denoised, clean, side by side), both PNG.

  Yields:
    One result an image, in the order of the file names.

  Raises:
    ValueError: No folder, no image, a damaged image, a grey one for a colour
      network, or two that differ only in their ending.
  """
  dataset, output = Path(dataset), Path(output)
  paths = find_images(dataset)
  _check_distinct([p.relative_to(dataset).with_suffix('') for p in paths])
  for path in paths:
    clean = read_image(path, channels).astype(np.float32) / 255
    noisy = add_benchmark_noise(clean, sigma_255, protocol)
    denoised = round_to_8_bits(denoise(noisy))
    name = path.relative_to(dataset)
    write_png((output / 'denoised' / name).with_suffix('.png'), denoised)
    comparison = np.concatenate([noisy, denoised, clean], axis=1)
    write_png((output / 'comparison' / name).with_suffix('.png'), comparison)
    yield ImageResult(name.as_posix(), float(psnr(noisy, clean)), float(psnr(denoised, clean)))


def _check_distinct(stems: list[Path]) -> None:
  repeated = sorted({str(s) for s in stems if stems.count(s) > 1})
  if repeated:
    raise ValueError(
      f'got images that differ only in their ending: {repeated}, want distinct names, '
      'since the pictures written for them would have the same'
    )


def mean_psnr(results: list[ImageResult]) -> tuple[float, float]:
  """Averages over images: (noisy, denoised) in dB."""
  noisy = float(np.mean([r.noisy_psnr for r in results]))
  return noisy, float(np.mean([r.denoised_psnr for r in results]))


def write_results(output: str | Path, results: list[ImageResult], labels: dict[str, Any]) -> None:
  """Writes ``results.json``: the labels, the means, and every image.

  Args:
    output: Folder to write to.
    results: At least one.
    labels: What the figures depend on: data set, sigma, protocol, checkpoint.
  """
  noisy, denoised = mean_psnr(results)
  content = {
    **labels,
    'mean_psnr_noisy': noisy,
    'mean_psnr_denoised': denoised,
    'images': [dataclasses.asdict(r) for r in results],
  }
  Path(output, RESULTS_FILE).write_text(json.dumps(content, indent=2) + '\n')
