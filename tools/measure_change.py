"""Measures what denoising changes in pictures: how much on average, and the mean colour.

  python -m tools.measure_change --model=photo --images=test/CBSD68

Of pictures without noise, the mean absolute change says how much is lost; of noisy ones, the change of
the mean says how far brightness and colours shift. Both are in levels of 255, after rounding to 8 bits. The
folder may be relative to SADNET_DATA. Needs ``pip install '.[evaluate]'``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sadnet_jax.extras import required

with required('evaluate'):
  from absl import flags

  from sadnet_jax import Denoiser, command_line
  from sadnet_jax.data.folders import find_data_dir
  from sadnet_jax.images.arrays import find_images, read_image


class Change(NamedTuple):
  """What changed in one picture, in levels of 255.

  Attributes:
    mean_abs: Mean absolute change of the values.
    mean: Change of each channel's mean, [C].
  """

  mean_abs: float
  mean: np.ndarray


def change(before: np.ndarray, after: np.ndarray) -> Change:
  """Compares a picture, uint8 [H, W, C], with what it became, uint8 of the same shape."""
  difference = after.astype(np.float64) - before
  return Change(float(np.abs(difference).mean()), difference.mean(axis=(0, 1)))


def measure(denoiser: Denoiser, paths: Sequence[Path]) -> list[Change]:
  """Denoises pictures and compares each with itself; prints a line for each."""
  found = []
  for path in paths:
    image = read_image(path, denoiser.model.channels)
    found.append(change(image, denoiser(image)))
    means = ', '.join(f'{value:+.2f}' for value in found[-1].mean)
    print(f'{path.name}: changed by {found[-1].mean_abs:.2f} on average, means by {means}', flush=True)
  return found


def summary(found: Sequence[Change]) -> str:
  """A sentence about all pictures."""
  largest = max(float(np.abs(each.mean).max()) for each in found)
  return (
    f'{len(found)} pictures: changed by {np.mean([each.mean_abs for each in found]):.2f} levels on average '
    f'(the most by {max(each.mean_abs for each in found):.2f}), means of channels by at most {largest:.2f}'
  )


def main() -> None:
  """Defines the flags and runs."""
  model = flags.DEFINE_string('model', 'photo', 'Weights, as sadnet-denoise takes them.')
  images = flags.DEFINE_string('images', None, 'Folder of pictures.', required=True)
  first = flags.DEFINE_integer(
    'first', 0, 'Only this many pictures, in the order of their names; 0 for all.', lower_bound=0
  )

  def command() -> None:
    paths = find_images(find_data_dir(images.value, '--images'))
    print(summary(measure(Denoiser.from_pretrained(model.value), paths[: first.value or None])))

  command_line.run(command)


if __name__ == '__main__':
  main()
