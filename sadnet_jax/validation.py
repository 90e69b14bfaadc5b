"""PSNR on test images while a run is training."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from sadnet_jax.datasets.layouts import Example, find_examples, read_example
from sadnet_jax.images import look_for_data_dir
from sadnet_jax.metrics import psnr, round_to_8_bits
from sadnet_jax.model import SADNet
from sadnet_jax.noise import add_benchmark_noise

HELD_OUT = 'held_out'


@dataclasses.dataclass(frozen=True)
class ValidationSet:
  """Images to measure on, named as in the log."""

  name: str
  examples: Sequence[Example]


@dataclasses.dataclass(frozen=True)
class SetResult:
  """What was measured on one set: means over its images in dB, and pictures.

  Attributes:
    noisy_psnr: Before; the noisy images as the network gets them.
    denoised_psnr: After, clipped and rounded to 8 bits.
    pictures: uint8 [H, 3 * W, C]: noisy, denoised and clean side by side, by name.
  """

  noisy_psnr: float
  denoised_psnr: float
  pictures: dict[str, np.ndarray]


def find_validation_sets(
  clean: Sequence[str], pairs: Sequence[str], held_out: Sequence[Example], images: int
) -> tuple[list[ValidationSet], list[str]]:
  """The sets that are there, and the folders that are not.

  Args:
    clean: Folders of clean images, as given or below SADNET_DATA.
    pairs: Folders of noisy and clean images, likewise.
    held_out: Pairs kept from training; the first set, where there are any.
    images: How many of every set, evenly spread; 0 for all.

  Raises:
    ValueError: A folder that is there has nothing of the kind in it.
  """
  sets, missing = [ValidationSet(HELD_OUT, _spread(held_out, images))] if held_out else [], []
  for layout, folders in (('clean', clean), ('pairs', pairs)):
    for folder in folders:
      found = look_for_data_dir(folder)
      if found is None:
        missing.append(folder)
      else:
        name = found.resolve().name
        # Two folders of one name go by what they were given as.
        name = folder if any(s.name == name for s in sets) else name
        sets.append(ValidationSet(name, _spread(find_examples(layout, found).examples, images)))
  return sets, missing


def _spread(examples, count):
  if not count or count >= len(examples):
    return list(examples)
  return [examples[i * len(examples) // count] for i in range(count)]


def make_validator(
  model: SADNet, sets: Sequence[ValidationSet], *, sigma_255: float, protocol: str, pictures: int
) -> Callable[[Any, Callable[[], bool]], Mapping[str, SetResult] | None]:
  """A function from parameters to the result of every set.

  It compiles once a size of image, reads an image when it is measured, and runs on the
  device that holds the parameters. Its second argument is asked before every image
  whether to give up; then the result is None.

  Args:
    model: The network.
    sets: What to measure on.
    sigma_255: Standard deviation of the noise added to clean images.
    protocol: How it is added, see `add_benchmark_noise`.
    pictures: Pictures to return of every set.
  """
  apply = jax.jit(lambda params, noisy: model.apply({'params': params}, noisy))

  def measure(params, validation_set, gives_up):
    before, after = [], []
    shown: dict[str, np.ndarray] = {}
    for example in validation_set.examples:
      if gives_up():
        return None
      noisy, clean = read_example(example, model.channels)
      clean = clean.astype(np.float32) / 255
      if noisy is None:
        noisy = add_benchmark_noise(clean, sigma_255, protocol)
      else:
        noisy = noisy.astype(np.float32) / 255
      denoised = round_to_8_bits(np.asarray(apply(params, noisy[None])[0]))
      before.append(psnr(noisy, clean))
      after.append(psnr(denoised, clean))
      if len(shown) < pictures:
        side_by_side = np.concatenate([noisy, denoised, clean], axis=1)
        shown[example.name] = np.round(np.clip(side_by_side, 0, 1) * 255).astype(np.uint8)
    return SetResult(float(np.mean(before)), float(np.mean(after)), shown)

  def measure_all(params, gives_up):
    results = {}
    for validation_set in sets:
      result = measure(params, validation_set, gives_up)
      if result is None:
        return None
      results[validation_set.name] = result
    return results

  return measure_all
