"""Validation: PSNR on test images during training."""

import collections
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import Any

from absl import logging
import jax
import numpy as np

from sadnet_jax.data.examples import Example
from sadnet_jax.data.folders import look_for_data_dir
from sadnet_jax.data.layouts import find_examples, refuse_pairs
from sadnet_jax.data.test_sets import SIDD_FILES
from sadnet_jax.denoise import tile_memory
from sadnet_jax.denoise.denoiser import Denoiser
from sadnet_jax.evaluation import image_sets
from sadnet_jax.evaluation.image_sets import EvaluationImage, FileImage
from sadnet_jax.evaluation.methods import MAX_SIZES
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.evaluation.protocols import FLOAT, ROUNDED, Protocol, protocol_for_training
from sadnet_jax.files import one_line
from sadnet_jax.images.arrays import side_by_side
from sadnet_jax.nn.sadnet import SADNet

HELD_OUT = 'held_out'


@dataclasses.dataclass(frozen=True)
class ValidationSet:
  """Images to validate on.

  Attributes:
    name: Name in the log.
    images: Clean images, or pairs.
    protocol: How pairs are evaluated; None for clean images, whose noise is that of the config.
  """

  name: str
  images: Sequence[EvaluationImage]
  protocol: Protocol | None = None


@dataclasses.dataclass(frozen=True)
class ValidationResult:
  """Result on one set.

  Attributes:
    noisy_psnr: Mean PSNR of the network's inputs in dB; NaN if every image failed.
    denoised_psnr: Mean PSNR of its outputs in dB, likewise.
    pictures: Name -> uint8 [H, 3 * W, C]: noisy, denoised and clean side by side.
    failed: Names of the images that could not be read or denoised and are not in the means.
  """

  noisy_psnr: float
  denoised_psnr: float
  pictures: dict[str, np.ndarray]
  failed: tuple[str, ...] = ()


def find_validation_sets(
  clean: Sequence[str],
  pairs: Sequence[str],
  held_out: Sequence[Example],
  images: int,
  *,
  channels: int = 3,
  pairs_first: bool = False,
) -> tuple[list[ValidationSet], dict[str, list[str]]]:
  """Opens the validation sets that exist.

  Args:
    clean: Folders of clean images; relative paths are also looked for in SADNET_DATA, empty ones skipped.
    pairs: Folders of noisy and clean pairs, or of SIDD's validation blocks; likewise.
    held_out: Pairs held out from training; they become the first set.
    images: Number of images to use of each set, evenly spread; 0 for all.
    channels: 3, or 1 for a network of grey images, which cannot use SIDD's blocks.
    pairs_first: Whether the sets of pairs stand before those of clean images.

  Returns:
    The sets, and the folders that are skipped, by the reason.

  Raises:
    ValueError: An existing folder contains no images of its kind.
  """
  sets: list[ValidationSet] = []
  skipped = collections.defaultdict(list)
  if held_out:
    sets.append(ValidationSet(HELD_OUT, _spread([FileImage(e) for e in held_out], images), ROUNDED))
  kinds = [('clean', clean), ('pairs', pairs)]
  for layout, folders in reversed(kinds) if pairs_first else kinds:
    # An empty name, as of an empty flag, would be the working folder.
    for folder in filter(None, folders):
      found = look_for_data_dir(folder)
      blocks = _sidd_blocks(found) if found and layout == 'pairs' else None
      if found is None or blocks == 'benchmark':
        skipped['not found'].append(folder)
      elif blocks and channels == 1:
        skipped['in colour'].append(folder)
      else:
        name = _unused_name(folder, found, {s.name for s in sets})
        sets.append(_validation_set(name, layout, found, blocks, images))
  return sets, dict(skipped)


def _sidd_blocks(folder: Path) -> str | None:
  """The kind of SIDD's blocks in a folder: 'validation', or 'benchmark' alone, or None."""
  for kind in ('validation', 'benchmark'):
    if all((folder / name).is_file() for name in SIDD_FILES[kind]):
      return kind
  return None


def _validation_set(name, layout, folder, blocks, images):
  if blocks:
    return ValidationSet(name, _spread(image_sets.sidd_blocks(folder), images), FLOAT)
  if layout == 'clean':
    refuse_pairs(folder)
  found = [FileImage(example) for example in find_examples(layout, folder).examples]
  return ValidationSet(name, _spread(found, images), ROUNDED if layout == 'pairs' else None)


def _unused_name(folder, found, used):
  """The folder's name, or if another set has it, the path as it was given, or a numbered name."""
  name = found.resolve().name
  numbered = (f'{name} ({number})' for number in itertools.count(2))
  return next(n for n in itertools.chain((name, folder), numbered) if n not in used)


def _spread(images, count):
  if not count or count >= len(images):
    return list(images)
  return [images[i * len(images) // count] for i in range(count)]


def check_images(validation_set: ValidationSet, channels: int) -> None:
  """Reads every image once, so that a bad one is found before anything is trained; ValueError names it."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    collections.deque(pool.map(lambda image: image.read(channels)[0], validation_set.images), maxlen=0)


def measured_on(validation_set: ValidationSet, *, sigma_255: float, clip: float) -> str:
  """Identifies what a PSNR is measured on: only such of the same images and noise can be compared.

  Args:
    validation_set: The set.
    sigma_255: As in `make_validator`.
    clip: As in `make_validator`.
  """
  digest = hashlib.sha256()
  for image in validation_set.images:
    digest.update(f'{image.name} {image.shape()}\n'.encode(errors='surrogateescape'))
  protocol = validation_set.protocol or protocol_for_training(clip)
  noise = protocol.name if validation_set.protocol else f'{protocol.name}, sigma {sigma_255:g}'
  count = len(validation_set.images)
  return f'{validation_set.name}: {count} images, {digest.hexdigest()[:8]}, {noise}'


def make_validator(
  model: SADNet, sets: Sequence[ValidationSet], *, sigma_255: float, clip: float, pictures: int
) -> Callable[[Any, Callable[[], bool]], Mapping[str, ValidationResult] | None]:
  """Returns a function (params, interrupted) -> result of every set by name.

  The function compiles once per image size, reads each image when it needs it, and runs on the device that
  holds the parameters. An image that `Denoiser` would cut into tiles is denoised by it, and so are the images
  of a set of more than MAX_SIZES sizes, which then share programs. An image that fails is logged and left
  out. The function calls ``interrupted`` before each image and returns None once that is true.

  Args:
    model: The network.
    sets: The sets to validate on.
    sigma_255: Standard deviation of the noise added to clean images, on the scale of 8-bit images.
    clip: Probability that training noise is clipped; selects the protocol for clean images.
    pictures: Number of pictures to return per set.
  """
  denoise = _Network(model)
  added_noise = protocol_for_training(clip)
  shares_programs = {s.name: len({image.shape()[:2] for image in s.images}) > MAX_SIZES for s in sets}

  def measure(params, validation_set, interrupted):
    protocol = validation_set.protocol or added_noise
    before, after, failed = [], [], []
    shown: dict[str, np.ndarray] = {}
    for image in validation_set.images:
      if interrupted():
        return None
      try:
        noisy, clean = image.read(model.channels)
        noisy, clean = protocol.prepare(noisy, clean, sigma_255)
        denoised = protocol.finish(denoise(params, noisy, shares_programs[validation_set.name]))
        scores = psnr(noisy, clean), psnr(denoised, clean)
      except Exception as error:
        # Hours of training are worth more than one score.
        logging.warning(
          'validation on %s: %s failed and is left out: %s', validation_set.name, image.name, one_line(error)
        )
        failed.append(image.name)
        continue
      before.append(scores[0])
      after.append(scores[1])
      if len(shown) < pictures:
        shown[image.name] = side_by_side(noisy, denoised, clean)
    noisy_psnr, denoised_psnr = (float(np.mean(x)) if x else float('nan') for x in (before, after))
    return ValidationResult(noisy_psnr, denoised_psnr, shown, tuple(failed))

  def measure_all(params, interrupted):
    results = {}
    for validation_set in sets:
      result = measure(params, validation_set, interrupted)
      if result is None:
        return None
      results[validation_set.name] = result
    return results

  return measure_all


class _Network:
  """Denoises an image in one piece, or in tiles if it does not fit in memory."""

  def __init__(self, model):
    self._model = model
    self._apply = jax.jit(lambda params, noisy: model.apply({'params': params}, noisy))
    self._denoiser: Denoiser | None = None

  def __call__(self, params: Any, noisy: np.ndarray, shares_programs: bool) -> np.ndarray:
    """float32 [H, W, C] -> the same shape, by a program that other sizes can share or by one of its own."""
    height, width, _ = noisy.shape
    # No device is too small for the smallest tile.
    fits = height * width <= tile_memory.AREAS_PX[-1] or self._with(params).plan(height, width).tiles == 1
    if fits and not shares_programs:
      try:
        return np.asarray(self._apply(params, noisy[None])[0])
      except jax.errors.JaxRuntimeError as error:
        if not tile_memory.is_out_of_memory(error):
          raise
    return self._with(params).apply(noisy)

  def _with(self, params):
    if self._denoiser is None:
      (device,) = jax.tree.leaves(params)[0].devices()
      self._denoiser = Denoiser(self._model, params, device=device)
    self._denoiser.replace_params(params)
    return self._denoiser
