"""How time grows with the image: microseconds a pixel, from 0.15 to 12 megapixels.

  python benchmarks/growth.py --runs 3 --json growth.json

Colour images of 8 bits go through `sadnet_jax.Denoiser` with weights that ship with the package, in the
tiles that it chooses itself; the pixels of all tiles are more than the image's, since they overlap. Beside
that stands the network alone on the whole image, once and where the memory does, and the limit: the
operations on the whole image over the machine's matrix rate, or the bytes over its copy rate. Compilation
is not counted. All sizes take turns, so that whatever else the machine does falls on all; a small image is
denoised several times in a turn, after once that is not counted, since the memory that a large one gave
back is fetched anew then.
"""

import argparse
from collections.abc import Callable, Sequence
import contextlib
from pathlib import Path
import sys

sys.path.append(str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from benchmarks import common, limits
from sadnet_jax import Denoiser, machine
from sadnet_jax.denoise.tiling import TilePlan

MODEL = 'color_blind'
SIGMA_255 = 25
# Width and height.
SIZES = ((480, 320), (960, 640), (1920, 1080), (3000, 2000), (4000, 3000))
# A turn takes at least so many pixels.
PIXELS_A_TURN = 1_500_000
# Of the free memory, what a whole image may take.
SHARE_OF_MEMORY = 0.8
# Largest time a pixel over the smallest, less one, on a CPU.
SPREAD = 0.2


class _FirstTileDone(Exception):  # noqa: N818
  """Stops the denoiser."""


def noisy_image(width: int, height: int) -> np.ndarray:
  """uint8 [height, width, 3]: waves and edges, with Gaussian noise."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:height, :width].astype(np.float32) / 40
  waves = np.stack([np.sin(x + y), np.sin(x - y), np.sign(np.sin(x) * np.sin(y))], axis=-1)
  noisy = 127.5 + 80 * waves + SIGMA_255 * rng.standard_normal(waves.shape, np.float32)
  return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def tiles_of(denoiser: Denoiser, image: np.ndarray) -> TilePlan:
  """Denoises the first tile, which compiles what all take, and says how the image is cut."""
  total = 0

  def stop(_, runs):
    nonlocal total
    total = runs
    raise _FirstTileDone

  with contextlib.suppress(_FirstTileDone):
    denoiser(image, progress=stop)
  plan = denoiser.plan(*image.shape[:2])
  assert plan.tiles == total, f'got {total} runs of the network, want one for each of {plan.tiles} tiles'
  return plan


class _NotRunError(Exception):
  """The text says why."""


def whole_network(denoiser: Denoiser, image: np.ndarray) -> Callable[[], object]:
  """The network alone on an image in one piece: a compiled call, which has run once.

  Raises:
    _NotRunError: The memory does not do.
  """
  device = jax.local_devices()[0]
  noisy = jax.ShapeDtypeStruct((1, *image.shape), np.float32)
  function = jax.jit(lambda params, noisy: denoiser.model.apply({'params': params}, noisy))
  params = denoiser.params

  def call():
    return compiled(params, jax.device_put(image[None] / np.float32(255), device))

  try:
    compiled = function.lower(params, noisy).compile()
    planned = compiled.memory_analysis()
    needed = planned.temp_size_in_bytes + planned.argument_size_in_bytes + planned.output_size_in_bytes
    free = free_bytes()
    if free is not None and needed > SHARE_OF_MEMORY * free:
      raise _NotRunError(f'needs {needed / 1e9:.1f} GB, got {free / 1e9:.1f} GB free')
    jax.block_until_ready(call())
  except jax.errors.JaxRuntimeError as error:
    raise _NotRunError(str(error).splitlines()[0]) from error
  return call


def free_bytes() -> int | None:
  """What is free for the network; None where nobody tells."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats['bytes_in_use']
  return machine.free_host_bytes()


def prepare(denoiser: Denoiser, width: int, height: int) -> tuple[dict, dict[str, Callable[[], object]]]:
  """A row of the table without its times, and what is to be timed."""
  image = noisy_image(width, height)
  plan = tiles_of(denoiser, image)
  cost = limits.network_cost((1, *image.shape))
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


def marks(rows: Sequence[dict], device: str) -> dict[str, dict]:
  """How the time a pixel in tiles spreads; it is for CPUs, and there is nothing to say of a single size."""
  each = [row['tiled']['us_per_pixel'] for row in rows]
  if device != 'cpu' or len(each) < 2:
    return {}
  what = f'{rows[0]["what"]} to {rows[-1]["what"]} in tiles: largest time a pixel over the smallest, less 1'
  return {'spread': common.at_most(what, max(each) / min(each) - 1, SPREAD)}


def print_table(rows: Sequence[dict]) -> None:
  print(
    f'{"us a pixel":<12}{"tiles":>7}{"of":>11}{"pixels":>8}{"tiled":>9}{"whole":>9}{"limit":>9}{"share":>8}'
  )
  for row in rows:
    size = 'x'.join(map(str, reversed(row['tile_size'])))
    whole = f'{row["whole"]["us_per_pixel"]:.3f}' if 'us_per_pixel' in row['whole'] else ''
    limit = 1e3 * row['limit_ms'] / row['pixels']
    print(
      f'{row["what"]:<12}{row["tiles"]:>7}{size:>11}{row["pixels_of_tiles"] / row["pixels"]:>7.2f}x'
      f'{row["tiled"]["us_per_pixel"]:>9.3f}{whole:>9}{limit:>9.3f}{row["limit_share"]:>8.2f}'
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.make_parser(__doc__, runs=3)
  parser.add_argument(
    '--megapixels',
    type=float,
    nargs=2,
    default=(0.1, 12),
    metavar=('LEAST', 'MOST'),
    help=f'sizes within, of {", ".join(f"{w}x{h}" for w, h in SIZES)} (default: 0.1 12)',
  )
  arguments = parser.parse_args(argv)
  least, most = arguments.megapixels
  arguments.sizes = [(w, h) for w, h in SIZES if least <= w * h / 1e6 <= most]
  if not arguments.sizes:
    parser.error(f'--megapixels: got {least:g} {most:g}, want a range with one of the sizes in it')
  return arguments


def main(argv: Sequence[str] | None = None) -> None:
  arguments = parse_arguments(argv)
  options = ['--runs', str(arguments.runs), '--megapixels', *(f'{m:g}' for m in arguments.megapixels)]
  results = common.describe('growth.py', options)
  precision, found = common.default_limits()
  rows = measure(Denoiser.from_pretrained(MODEL), arguments.sizes, arguments.runs)
  # Again, since other work may have slowed the machine down.
  found = found.best(common.default_limits()[1])
  for row in rows:
    row['limit_ms'] = 1e3 * found.seconds(row['flops'], row['bytes'])
    row['limit_share'] = row['limit_ms'] / (1e3 * row['tiled']['seconds'])
  print_table(rows)
  results |= {
    'limits': {precision: found.to_json()},
    'model': MODEL,
    'rows': {row['what']: row for row in rows},
  }
  results['marks'] = marks(rows, jax.default_backend())
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
