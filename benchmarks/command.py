"""The command `sadnet-denoise` on pictures: peak memory and time by size, start-up, seams between tiles.

  python benchmarks/command.py --images test/Kodak24 --megapixels 12 100 --qualities fast --json fast.json

The pictures are mosaics of the given photographs with Gaussian noise added, then 8 bits. Every run of the
command is a new process. The first on each picture with each quality finds an empty compilation cache, as a
user's very first picture does, and compiles; its peak memory is what the system reports. The next finds a
filled one; it is left out where the first took more than five minutes. PSNR is that of the written picture
against the mosaic without noise. A seam is measured as the largest
difference between an image denoised in two by two tiles of the given overlap, blended, and the same image
denoised whole. Start-up and seams are measured with the quality 'balanced'.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import common, tables
from sadnet_jax.data.folders import find_data_dir
from sadnet_jax.denoise.denoiser import OVERLAP_PX, Denoiser
from sadnet_jax.denoise.quality import BALANCED, QUALITIES, default_weights
from sadnet_jax.denoise.tiling import RAMP_PX, Axis, TilePlan, blend_tiles
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.images.arrays import find_images
from sadnet_jax.images.photograph import to_8_bits, to_float
from sadnet_jax.weights.index import available

COMMAND = common.ROOT / 'sadnet_jax' / '__main__.py'
# Above this, compiling is a small part of the time.
_LONGEST_REPEATED_SECONDS = 300
# Side of the image that is denoised in two by two tiles.
SEAM_IMAGE_PX = 896
# Runs a command and prints its seconds and peak memory. A small process of its own, because Linux counts the
# peak memory of the process that starts another as that one's too.
_MEASURE = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
# In KiB on Linux, in bytes on macOS.
unit = 2**20 if sys.platform == 'darwin' else 2**10
used = {'seconds': time.perf_counter() - start, 'peak_mib': usage.ru_maxrss / unit}
print(json.dumps({**used, 'status': os.waitstatus_to_exitcode(status)}))
"""
# Targets: seconds of the first picture with a filled cache, and the time of 'fast' over that of 'balanced'.
START_SECONDS, FAST_SHARE = 3.0, 0.4
# Multiples of 16, so that the tiles begin at multiples of 8, as those of `Denoiser`.
OVERLAPS_PX = (0, 64, 96, 112, 128, 144, 160, 176)


def mosaic(photographs: Sequence[Path], height: int, width: int, sigma_255: float) -> np.ndarray:
  """A mosaic of the photographs plus Gaussian noise: float32 [height, width, 3], not clipped."""
  rng = np.random.default_rng(0)
  tiles = [np.asarray(Image.open(path).convert('RGB')) for path in photographs]
  side = min(min(tile.shape[:2]) for tile in tiles)
  image = np.empty((height, width, 3), np.float32)
  number = 0
  for top in range(0, height, side):
    for left in range(0, width, side):
      part = image[top : top + side, left : left + side]
      clean = tiles[number % len(tiles)][: part.shape[0], : part.shape[1]].astype(np.float32)
      part[...] = (clean + rng.normal(0, sigma_255, clean.shape)) / 255
      number += 1
  return image


def save(path: Path, image: np.ndarray) -> None:
  Image.fromarray(to_8_bits(image)).save(path, compress_level=1)


def run_command(noisy: Path, output: Path, quality: str, cache: Path) -> dict:
  """Wall seconds and peak memory of one run of the command."""
  # The command's own cache, in another place.
  environ = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': '', 'XDG_CACHE_HOME': str(cache)}
  # Set by `common`; users have JAX's default.
  environ.pop('XLA_PYTHON_CLIENT_PREALLOCATE', None)
  command = [COMMAND, noisy, '-o', output, '--quality', quality, '--overwrite', '--quiet']
  used = measure([sys.executable, *command], environ)
  if status := used.pop('status'):
    raise SystemExit(f'{noisy.name}: the command failed with exit status {status}')
  return used


def measure(command: Sequence[str | Path], environ: Mapping[str, str]) -> dict:
  """Runs a command to its end: ``seconds``, ``peak_mib`` (the peak of its memory) and exit ``status``."""
  process = subprocess.run(
    [sys.executable, '-c', _MEASURE, *command], env=environ, stdout=subprocess.PIPE, text=True, check=True
  )
  return json.loads(process.stdout)


def measure_sizes(photographs, arguments, folder: Path) -> list[dict]:
  """Rows of the command on pictures with aspect ratio 4:3."""
  rows = []
  noisy, output = folder / 'noisy.png', folder / 'out.png'
  for megapixels in arguments.megapixels:
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(megapixels * 1e6 / height)
    clean = to_8_bits(mosaic(photographs, height, width, 0))
    save(noisy, mosaic(photographs, height, width, arguments.sigma_255))
    picture = {'height': height, 'width': width, 'psnr_noisy': _psnr(noisy, clean)}
    for quality in arguments.qualities:
      cache = folder / f'{quality}-{megapixels}'
      used = run_command(noisy, output, quality, cache)
      row = {**picture, 'quality': quality, **used, 'psnr': _psnr(output, clean)}
      line = '{width}x{height}, {quality}: {seconds:.1f} s, {peak_mib:.0f} MiB, {psnr:.2f} dB'
      print(line.format(**row), flush=True)
      if row['seconds'] < _LONGEST_REPEATED_SECONDS:
        row['later_seconds'] = run_command(noisy, output, quality, cache)['seconds']
        print(f'  with a filled cache: {row["later_seconds"]:.1f} s', flush=True)
      rows.append(row)
  return rows


def _psnr(path, clean):
  return float(psnr(to_float(np.asarray(Image.open(path))), to_float(clean)))


def measure_start(photographs, arguments, folder: Path) -> dict:
  """Seconds of the command on a picture of 512x512, with an empty and with a filled cache."""
  noisy = folder / 'noisy.png'
  save(noisy, mosaic(photographs, 512, 512, arguments.sigma_255))
  first, later = [], []
  for repeat in range(arguments.repeats):
    cache = folder / f'cache{repeat}'
    for found in (first, later):
      found.append(run_command(noisy, folder / 'out.png', BALANCED, cache)['seconds'])
  return {'first_seconds': first, 'later_seconds': later}


def measure_seams(photographs, arguments) -> list[dict]:
  """Difference between two by two tiles of exact overlaps and the whole image, in levels of 1/255."""
  denoiser = Denoiser.from_pretrained(default_weights(3, BALANCED), tile_px='whole')
  rows = []
  for sigma_255 in arguments.seam_sigmas_255:
    # Clipped and rounded as a file's.
    noisy = to_float(to_8_bits(mosaic(photographs, SEAM_IMAGE_PX, SEAM_IMAGE_PX, sigma_255)))
    whole = denoiser(noisy)
    for overlap_px in OVERLAPS_PX:
      side = (SEAM_IMAGE_PX + overlap_px) // 2
      axis = Axis(SEAM_IMAGE_PX, side, (0, SEAM_IMAGE_PX - side), min(RAMP_PX, overlap_px))
      blended = blend_tiles(TilePlan(axis, axis), lambda r, c: denoiser(noisy[r, c]))  # noqa: B023
      difference = np.abs(np.concatenate([part for _, part in blended]) - whole) * 255
      rows.append(
        {
          'sigma_255': sigma_255,
          'overlap_px': overlap_px,
          'largest': float(difference.max()),
          'mean': float(difference.mean()),
        }
      )
  return rows


def targets(start: Mapping[str, list[float]], sizes: Sequence[Mapping]) -> dict[str, dict]:
  """The targets on a CPU, of what was measured."""
  found = {}
  if start:
    what = 'command, 512x512, filled cache: seconds'
    found['start'] = common.at_most(what, statistics.median(start['later_seconds']), START_SECONDS)
  for pixels in {row['width'] * row['height'] for row in sizes}:
    rows = {row['quality']: row for row in sizes if row['width'] * row['height'] == pixels}
    if {'fast', BALANCED} <= set(rows):
      fast, balanced = rows['fast'], rows[BALANCED]
      for name, cache in (('seconds', 'empty'), ('later_seconds', 'filled')):
        if name in fast and name in balanced:
          what = (
            f'command, {fast["width"]}x{fast["height"]}, {cache} cache: time of fast over that of balanced'
          )
          share = fast[name] / balanced[name]
          found[f'fast_{pixels}_{cache}'] = common.at_most(what, share, FAST_SHARE)
  return found


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.make_parser(__doc__)
  parser.add_argument('--images', default='test/Kodak24', help='photographs; may be relative to SADNET_DATA')
  parser.add_argument(
    '--qualities',
    choices=tuple(QUALITIES),
    nargs='+',
    default=list(QUALITIES),
    help='default: all',
  )
  parser.add_argument('--megapixels', type=float, nargs='*', default=[12], help='default: 12')
  parser.add_argument(
    '--sigma_255', type=float, default=25, help='standard deviation of the noise (default: 25)'
  )
  parser.add_argument('--repeats', type=int, default=3, help='runs with an empty cache (default: 3)')
  parser.add_argument(
    '--seam_sigmas_255', type=float, nargs='*', default=[5, 25, 50], help='default: 5 25 50'
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  arguments = parse_arguments(argv)
  photographs = find_images(find_data_dir(arguments.images, '--images'))
  results: dict[str, Any] = common.describe('command.py', common.options_of(arguments), ('flax',))
  results |= {'model': default_weights(3, BALANCED), 'sigma_255': arguments.sigma_255}
  names = sorted({default_weights(3, quality) for quality in (*arguments.qualities, BALANCED)})
  results['weights'] = {name: available()[name].sha256 for name in names}
  # Before the seams: JAX's memory in this process must not affect the command.
  with tempfile.TemporaryDirectory() as temporary:
    if arguments.repeats:
      results['start_512x512'] = measure_start(photographs, arguments, Path(temporary))
      print(results['start_512x512'], flush=True)
    results['sizes'] = measure_sizes(photographs, arguments, Path(temporary))
  results['default_overlap_px'] = OVERLAP_PX
  results['seams'] = measure_seams(photographs, arguments)
  if results['device'] == 'cpu':
    results['targets'] = targets(results.get('start_512x512', {}), results['sizes'])
  print('\n'.join(tables.command_tables(results)))
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
