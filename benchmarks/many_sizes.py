"""Pictures of many sizes: the time for a folder with an empty cache, and memory as the sizes add up.

  python benchmarks/many_sizes.py --images test/Kodak24 --json many_sizes.json

The pictures are crops of the given photographs with added noise; no two have the same size, and sides are 96
to 192 pixels. `sadnet-denoise` denoises a folder of 30 of them with an empty compilation cache, which a
program for each size would spend with compiling. Another process denoises pictures of 200 sizes by `Denoiser`
and reports its resident memory (Linux) after the 10th and after the last. In both, no program is there yet.

What sharing programs changes is the largest difference from the network compiled for exactly the picture's
size, in levels of 1/255. Beside it stands the difference that filling up the shared array by reflection would
make, as the network does to reach a multiple of 8.
"""

import argparse
from collections.abc import Sequence
import json
import os
from pathlib import Path
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent))

import jax

from benchmarks import common, tables
from benchmarks.command import COMMAND, save
from sadnet_jax import Denoiser
from sadnet_jax.data.folders import find_data_dir
from sadnet_jax.images.arrays import find_images

SIDES_PX = (96, 192)
FOLDER_PICTURES = 30
# Goals on two CPU cores, set before the programs were shared.
MOST_SECONDS = 60
MOST_GROWTH_MIB = 200
# Sizes after which memory should not grow.
FIRST_SIZES = 10


def sizes(count: int) -> list[tuple[int, int]]:
  """Random heights and widths, no two the same."""
  rng = np.random.default_rng(0)
  low, high = SIDES_PX
  found: dict[tuple[int, int], None] = {}
  while len(found) < count:
    height, width = (int(side) for side in rng.integers(low, high + 1, 2))
    found[height, width] = None
  return list(found)


def pictures(photographs: Sequence[Path], count: int, sigma_255: float) -> list[np.ndarray]:
  """Noisy crops, uint8 [height, width, 3], one of each of `sizes`."""
  rng = np.random.default_rng(1)
  images = [np.asarray(Image.open(path).convert('RGB')) for path in photographs]
  found = []
  for number, (height, width) in enumerate(sizes(count)):
    image = images[number % len(images)]
    top, left = (int(rng.integers(0, a - b + 1)) for a, b in zip(image.shape, (height, width), strict=False))
    crop = image[top : top + height, left : left + width]
    found.append(np.clip(np.round(crop + rng.normal(0, sigma_255, crop.shape)), 0, 255).astype(np.uint8))
  return found


def measure_folder(photographs: Sequence[Path], model: str, sigma_255: float) -> tuple[float, float]:
  """Seconds, and CPU seconds, of the command on a folder of small pictures, with an empty cache."""
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    (folder / 'in').mkdir()
    for number, noisy in enumerate(pictures(photographs, FOLDER_PICTURES, sigma_255)):
      save(folder / 'in' / f'{number:02}.png', noisy / np.float32(255))
    environ = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': '', 'XDG_CACHE_HOME': str(folder / 'cache')}
    command = [sys.executable, COMMAND, folder / 'in', '-o', folder / 'out', '--model', model, '--quiet']
    start, used = time.perf_counter(), _cpu_seconds_of_children()
    subprocess.run(command, env=environ, check=True)
    return time.perf_counter() - start, _cpu_seconds_of_children() - used


def _cpu_seconds_of_children():
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def resident_mib() -> float:
  """Resident memory of this process."""
  pages = int(Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def run_once(photographs: Sequence[Path], model: str, sigma_255: float, count: int) -> dict[str, Any]:
  """Denoises pictures of many sizes in this process: resident MiB after each, and seconds in all."""
  denoiser = Denoiser.from_pretrained(model)
  resident = []
  start = time.perf_counter()
  for noisy in pictures(photographs, count, sigma_255):
    denoiser(noisy)
    resident.append(resident_mib())
  return {'seconds': time.perf_counter() - start, 'resident_mib': resident}


def measure_differences(photographs: Sequence[Path], model: str, sigma_255: float, count: int) -> list[dict]:
  """Largest difference of each of a few pictures from the network compiled for its size."""
  denoiser = Denoiser.from_pretrained(model)
  exact = jax.jit(lambda params, noisy: denoiser.model.apply({'params': params}, noisy))
  rows = []
  for noisy in pictures(photographs, count, sigma_255):
    image = noisy.astype(np.float32) / np.float32(255)
    height, width, _ = image.shape
    wanted = np.asarray(exact(denoiser.params, image[None]))[0]
    largest = SIDES_PX[1]
    filled = np.pad(image, ((0, largest - height), (0, largest - width), (0, 0)), mode='reflect')
    reflected = np.asarray(exact(denoiser.params, filled[None]))[0, :height, :width]
    rows.append(
      {
        'size': [height, width],
        'shared': float(np.abs(denoiser(image) - wanted).max() * 255),
        'reflected': float(np.abs(reflected - wanted).max() * 255),
        'reflected_mean': float(np.abs(reflected - wanted).mean() * 255),
      }
    )
  return rows


def targets(results: dict[str, Any]) -> dict[str, dict]:
  """The targets, which were set for a CPU."""
  if results['device'] != 'cpu':
    return {}
  grown = results['resident_mib'][-1] - results['resident_mib'][FIRST_SIZES - 1]
  what = f'{FOLDER_PICTURES} pictures of {FOLDER_PICTURES} sizes, empty cache: seconds'
  many = f'resident memory from {FIRST_SIZES} to {len(results["resident_mib"])} sizes: growth in MiB'
  return {
    'folder_seconds': common.at_most(what, statistics.median(results['folder_seconds']), MOST_SECONDS),
    'growth_mib': common.at_most(many, grown, MOST_GROWTH_MIB),
  }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.make_parser(__doc__, runs=3)
  parser.add_argument('--images', default='test/Kodak24', help='photographs; may be relative to SADNET_DATA')
  parser.add_argument('--model', default='color', help='default: %(default)s')
  parser.add_argument('--sizes', type=common.at_least_one, default=200, help='default: %(default)s')
  parser.add_argument('--compared', type=common.at_least_one, default=5, help='default: %(default)s')
  parser.add_argument(
    '--sigma_255', type=float, default=25, help='standard deviation of the noise (default: 25)'
  )
  parser.add_argument('--once', action='store_true', help='denoise the sizes in this process and print JSON')
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  arguments = parse_arguments(argv)
  photographs = find_images(find_data_dir(arguments.images, '--images'))
  of = (photographs, arguments.model, arguments.sigma_255)
  if arguments.once:
    print(json.dumps(run_once(*of, arguments.sizes)))
    return
  options = common.options_of(arguments, exclude=('once',))
  results: dict[str, Any] = common.describe('many_sizes.py', options, ('flax',))
  measured = [measure_folder(*of) for _ in range(arguments.runs)]
  results['folder_seconds'], results['folder_cpu_seconds'] = (list(x) for x in zip(*measured, strict=True))
  results |= common.in_fresh_process('many_sizes.py', [*options, '--once'])
  results['differences'] = measure_differences(*of, arguments.compared)
  results['targets'] = targets(results)
  print('\n'.join(tables.many_sizes_table(results)))
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
