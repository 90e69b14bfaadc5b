"""One method on one set: add noise, denoise, measure."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import numpy as np

from sadnet_jax.evaluation.image_sets import EvaluationImage, ImageSet
from sadnet_jax.evaluation.methods import Method, denoise_batch
from sadnet_jax.evaluation.metrics import SSIM_WINDOW_PX, psnr, ssim_matlab, ssim_wang
from sadnet_jax.evaluation.protocols import Protocol
from sadnet_jax.evaluation.results import Failure, ImageResult, SetResult


@dataclasses.dataclass(frozen=True)
class Scored:
  """An image with its result.

  Attributes:
    result: Its metrics.
    noisy: float32 [H, W, C], as the method received it.
    denoised: [H, W, C], as it was measured.
    clean: float32 [H, W, C].
  """

  result: ImageResult
  noisy: np.ndarray
  denoised: np.ndarray
  clean: np.ndarray


def evaluate_set(
  method: Method,
  image_set: ImageSet,
  *,
  channels: int,
  sigma_255: float | None,
  protocol: Protocol,
  keep_going: bool,
  on_image: Callable[[Scored], None] = lambda scored: None,
) -> SetResult:
  """Evaluates a method on all images of a set.

  Args:
    method: The denoiser.
    image_set: The images.
    channels: 3, or 1 to convert colour files to grey.
    sigma_255: Standard deviation of the added noise, on the scale of 8-bit images; None for real noise.
    protocol: What is done before and after denoising.
    keep_going: Whether to record failures and continue instead of raising.
    on_image: Called with every image and its result, in the order of denoising.

  Returns:
    The results in the order of the set.

  Raises:
    ValueError: A file cannot be read, the images of a pair differ in size, a file has no partner, or the
      method fails; unless ``keep_going``.
  """
  if not keep_going:
    refuse_problems(image_set)
  failures = [Failure(problem.partition(': ')[0], problem) for problem in image_set.problems]
  results: dict[str, ImageResult] = {}

  def attempt(images: Sequence[EvaluationImage], function, *arguments):
    """Calls the function; with ``keep_going``, a ValueError is recorded for the images and gives None."""
    try:
      return function(*arguments)
    except ValueError as error:
      if not keep_going:
        raise
      failures.extend(Failure(image.name, str(error)) for image in images)
      return None

  for images in _batches(method, image_set, protocol, attempt):
    read = [(i, attempt([i], _read, i, channels, sigma_255, protocol)) for i in images]
    ready = [(image, pair) for image, pair in read if pair is not None]
    if not ready:
      continue
    batch = [noisy for _, (noisy, _) in ready]
    done = attempt([image for image, _ in ready], denoise_batch, method, batch, sigma_255)
    if done is None:
      continue
    denoised, seconds = done
    measured = [
      (noisy, protocol.finish(out), clean) for (_, (noisy, clean)), out in zip(ready, denoised, strict=True)
    ]
    for scored in _score([image.name for image, _ in ready], measured, seconds / len(batch)):
      results[scored.result.name] = scored.result
      on_image(scored)
  ordered = tuple(results[image.name] for image in image_set.images if image.name in results)
  return SetResult(image_set, channels, sigma_255, protocol, method.describe(), ordered, tuple(failures))


def refuse_problems(image_set: ImageSet) -> None:
  """Raises a ValueError if some files of a set cannot be used, naming the first."""
  if image_set.problems:
    count = len(image_set.problems)
    more = f'; {count - 1} more like it' if count > 1 else ''
    raise ValueError(f'{image_set.problems[0]}{more} (--keep-going evaluates the rest)')


def _batches(method, image_set, protocol, attempt) -> Iterator[list[EvaluationImage]]:
  """Yields batches of images of one group, group after group."""
  shapes = [(image, attempt([image], image.shape)) for image in image_set.images]
  sizes = [
    (image, tuple(side // protocol.multiple * protocol.multiple for side in shape[:2]))
    for image, shape in shapes
    if shape
  ]
  method.plan([size for _, size in sizes])
  groups: dict = {}
  for image, size in sizes:
    groups.setdefault(method.group(size), []).append(image)
  for images in groups.values():
    for first in range(0, len(images), method.batch):
      yield images[first : first + method.batch]


def _read(image, channels, sigma_255, protocol):
  noisy, clean = image.read(channels)
  try:
    return protocol.prepare(noisy, clean, sigma_255)
  except ValueError as error:
    raise ValueError(f'{image.name}: {error}') from error


def _score(names, measured, seconds) -> list[Scored]:
  """Measures (noisy, denoised, clean) of each image; images of one size at once."""
  scored: dict[str, Scored] = {}
  for shape in {clean.shape for _, _, clean in measured}:
    same_size = [
      (name, images) for name, images in zip(names, measured, strict=True) if images[2].shape == shape
    ]
    noisy, denoised, clean = (np.stack([images[i] for _, images in same_size]) for i in range(3))
    before, after = _metrics(noisy, clean), _metrics(denoised, clean)
    for k, (name, images) in enumerate(same_size):
      values = {f'{m}_noisy': before[m][k] for m in before} | {m: after[m][k] for m in after}
      result = ImageResult(name, shape[0], shape[1], seconds=seconds, **values)
      scored[name] = Scored(result, *images)
  return [scored[name] for name in names]


def _metrics(images, clean) -> dict[str, list[Any]]:
  """Returns N values for each metric; both arguments are [N, H, W, C]."""
  has_window = min(clean.shape[1:3]) >= SSIM_WINDOW_PX
  return {
    'psnr': psnr(images, clean).tolist(),
    'ssim_wang': ssim_wang(images, clean).tolist() if has_window else [None] * len(images),
    'ssim_matlab': ssim_matlab(images, clean).tolist(),
  }
