"""Time per pixel by image size, from 0.15 to 12 megapixels.

  python benchmarks/image_size.py --runs 3 --json image_size.json

8-bit colour images go through `sadnet_jax.Denoiser` with weights that ship with the package, in the tiles
that it chooses itself. The tiles together have more pixels than the image, because they overlap. For
comparison, the network runs on the whole image in the first turn, if memory allows. The limit is that of the
network on the whole image. Compilation is not counted: each size has a program of its own, as it gets after
some images, instead of one that it shares with larger sizes. All sizes are timed in turn, so that other load
on the machine affects all of them. A small image is denoised several times in a turn, after one call that is
not counted: it allocates again the memory that a large image released.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
import sys

sys.path.append(str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from benchmarks import common, tables
from sadnet_jax import Denoiser
from sadnet_jax.denoise.tile_memory import compiler_options, free_bytes
from sadnet_jax.files import one_line

MODEL = 'color'
SIGMA_255 = 25
# Width and height.
SIZES = ((480, 320), (960, 640), (1920, 1080), (3000, 2000), (4000, 3000))
# A turn denoises at least this many pixels.
PIXELS_A_TURN = 1_500_000
# Share of the free memory that a whole image may take.
SHARE_OF_MEMORY = 0.8
# Targets on a CPU: largest time per pixel over the smallest, minus 1; and the limit over the time of the
# largest size.
SPREAD = 0.15
LIMIT_SHARE = 0.7


def noisy_image(width: int, height: int) -> np.ndarray:
  """uint8 [height, width, 3]: waves and edges, with Gaussian noise."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:height, :width].astype(np.float32) / 40
  waves = np.stack([np.sin(x + y), np.sin(x - y), np.sign(np.sin(x) * np.sin(y))], axis=-1)
  noisy = 127.5 + 80 * waves + SIGMA_255 * rng.standard_normal(waves.shape, np.float32)
  return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


class _NotRunError(Exception):
  """Why the whole image was not run."""


def whole_network(denoiser: Denoiser, image: np.ndarray) -> Callable[[], object]:
  """Compiles the network for a whole image, runs it once, and returns the call.

  Raises:
    _NotRunError: The image does not fit in memory.
  """
  device = jax.local_devices()[0]
  noisy = jax.ShapeDtypeStruct((1, *image.shape), np.float32)
  function = jax.jit(
    lambda params, noisy: denoiser.model.apply({'params': params}, noisy),
    compiler_options=compiler_options(device.platform),
  )

  def call():
    return compiled(denoiser.params, jax.device_put(image[None] / np.float32(255), device))

  try:
    compiled = function.lower(denoiser.params, noisy).compile()
    planned = compiled.memory_analysis()
    needed = planned.temp_size_in_bytes + planned.argument_size_in_bytes + planned.output_size_in_bytes
    free = free_bytes(device)
    if free is not None and needed > SHARE_OF_MEMORY * free:
      raise _NotRunError(f'needs {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free')
    jax.block_until_ready(call())
  except jax.errors.JaxRuntimeError as error:
    raise _NotRunError(one_line(error, 200)) from error
  return call


def prepare(denoiser: Denoiser, width: int, height: int) -> tuple[dict, dict[str, Callable[[], object]]]:
  """A row of the table without its times, and the calls to time."""
  image = noisy_image(width, height)
  denoiser.prepare(*image.shape[:2])
  plan = denoiser.plan(*image.shape[:2])
  cost = common.network_cost((1, *image.shape))
  row = {
    'what': f'{width}x{height}',
    'pixels': width * height,
    'tiles': plan.tiles,
    'tile_size': plan.tile_size,
    'pixels_of_tiles': plan.pixels,
    'flops': cost.flops,
    'bytes': cost.bytes,
  }
  calls: dict[str, Callable[[], object]] = {'tiled': lambda: denoiser(image)}
  try:
    calls['whole'] = whole_network(denoiser, image)
  except _NotRunError as error:
    row['whole'] = {'not_run': str(error)}
  return row, calls


def measure(denoiser: Denoiser, sizes: Sequence[tuple[int, int]], runs: int) -> list[dict]:
  """All rows of the table, without limits."""
  prepared = [prepare(denoiser, *size) for size in sizes]
  taken: dict[tuple[int, str], list[float]] = {}
  for turn in range(runs):
    for i, (row, calls) in enumerate(prepared):
      times = -(-PIXELS_A_TURN // row['pixels'])
      for name, call in calls.items():
        if name == 'whole' and turn:
          continue
        if times > 1:
          jax.block_until_ready(call())
        taken.setdefault((i, name), []).append(common.seconds_of(call, times))
  rows = [row for row, _ in prepared]
  for (i, name), seconds in taken.items():
    found = common.summary(seconds)
    rows[i][name] = {**found, 'us_per_pixel': 1e6 * found['seconds'] / rows[i]['pixels']}
  return rows


def targets(rows: Sequence[dict], device: str) -> dict[str, dict]:
  """The targets on a CPU: the spread of the time per pixel, if several sizes were measured, and the limit."""
  if device != 'cpu':
    return {}
  first, last = rows[0]['what'], rows[-1]['what']
  found = {'limit': common.at_least(f'{last}, tiled: limit over time', rows[-1]['limit_share'], LIMIT_SHARE)}
  each = [row['tiled']['us_per_pixel'] for row in rows]
  if len(each) > 1:
    what = f'{first} to {last}, tiled: largest time per pixel over the smallest, minus 1'
    found['spread'] = common.at_most(what, max(each) / min(each) - 1, SPREAD)
  return found


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.make_parser(__doc__, runs=3)
  parser.add_argument(
    '--megapixels',
    type=float,
    nargs=2,
    default=(0.1, 12),
    metavar=('LEAST', 'MOST'),
    help=f'range of sizes to measure, of {", ".join(f"{w}x{h}" for w, h in SIZES)} (default: 0.1 12)',
  )
  arguments = parser.parse_args(argv)
  least, most = arguments.megapixels
  arguments.sizes = [(w, h) for w, h in SIZES if least <= w * h / 1e6 <= most]
  if not arguments.sizes:
    parser.error(f'--megapixels: none of the sizes is between {least:g} and {most:g}')
  return arguments


def main(argv: Sequence[str] | None = None) -> None:
  arguments = parse_arguments(argv)
  options = ['--runs', str(arguments.runs), '--megapixels', *(f'{m:g}' for m in arguments.megapixels)]
  results = common.describe('image_size.py', options)
  precision, limits = common.default_limits()
  rows = measure(Denoiser.from_pretrained(MODEL), arguments.sizes, arguments.runs)
  # Again, since other load may have slowed the machine down.
  limits = limits.best(common.default_limits()[1])
  for row in rows:
    row['limit_ms'] = 1e3 * limits.seconds(row['flops'], row['bytes'])
    row['limit_share'] = row['limit_ms'] / (1e3 * row['tiled']['seconds'])
  results |= {
    'limits': {precision: limits.to_json()},
    'model': MODEL,
    'rows': {row['what']: row for row in rows},
    'targets': targets(rows, jax.default_backend()),
  }
  print('\n'.join(tables.image_size_table(results)))
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
