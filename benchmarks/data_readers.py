"""Training patches per second of each data reader, without training.

  python benchmarks/data_readers.py --json data_readers.json

Reads clean images (BSD432) and pairs (PolyU) as files, as tiles of 300 pixels, and from device memory, each
until the patches are on the first device. What a run does once (cutting tiles, loading all images) is timed
separately. CPU time is that of all threads of this process. Nothing else is computed, so a row says what a
reader can do at most, not what it takes from a training step.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import functools
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import Any

# Read by TensorFlow when the modules below import it.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import jax

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import common, tables
from sadnet_jax.data import layouts, on_device, pipeline, tiles
from sadnet_jax.data.folders import find_data_dir
from sadnet_jax.data.pipeline import FileImages, ImageSource, TileImages

CHANNELS = 3
TILE_PX, STRIDE_PX = 300, 150
WARM_UP_SECONDS = 2.0
# No run gets this far.
LAST_STEP = 10**7

Batches = Iterator[dict[str, jax.Array]]


def streamed(source: ImageSource, patch_px: int, batch_size: int, crops_per_image: int) -> Batches:
  """Batches made by tf.data, on the first device."""
  batches = pipeline.patches(
    source,
    patch_px=patch_px,
    batch_size=batch_size,
    crops_per_image=crops_per_image,
    seed=0,
    first_step=0,
    last_step=LAST_STEP,
  )
  return pipeline.prefetch_to_devices(batches, jax.local_devices()[:1])


def sampled(images: on_device.DeviceImages, patch_px: int, batch_size: int) -> Batches:
  """Batches cut from images in the memory of the first device."""
  placed = jax.device_put(images, jax.local_devices()[0])
  sample = functools.partial(
    on_device.sample, batch_size=batch_size, patch_px=patch_px, first=0, count=batch_size
  )
  compiled = jax.jit(lambda images, step: sample(images, seed_key=jax.random.key(0), step=step))
  return (compiled(placed, step) for step in range(LAST_STEP))


def measure(batches: Batches, batch_size: int, seconds: float) -> dict[str, float]:
  """Patches per second and CPU milliseconds per patch, after warm-up.

  Args:
    batches: Endless.
    batch_size: Patches per batch.
    seconds: Time to measure for.
  """
  run_for(batches, WARM_UP_SECONDS)
  cpu_before, start = time.process_time(), time.perf_counter()
  patches = run_for(batches, seconds) * batch_size
  return {
    'patches': patches,
    'patches_per_second': patches / (time.perf_counter() - start),
    'cpu_ms_per_patch': 1e3 * (time.process_time() - cpu_before) / patches,
  }


def run_for(batches: Batches, seconds: float) -> int:
  """Takes batches until the time is over and returns their number."""
  end, count = time.perf_counter() + seconds, 0
  while time.perf_counter() < end:
    jax.block_until_ready(next(batches))
    count += 1
  return count


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
  """The result of a call and its seconds."""
  start = time.perf_counter()
  return function(), time.perf_counter() - start


def measure_set(name: str, folder: Path, tiles_dir: Path, arguments: argparse.Namespace) -> list[dict]:
  """Rows of all readers on one data set."""
  examples = layouts.find_examples(name, folder).examples
  cut, cut_seconds = timed(
    lambda: tiles.prepare(name, folder, tiles_dir, tile_px=TILE_PX, stride_px=STRIDE_PX)
  )
  images, load_seconds = timed(lambda: on_device.load([examples], CHANNELS, jax.local_devices()[:1])[0])
  size = (arguments.patch_px, arguments.batch_size)
  readers = [
    ('files', crops, 0.0, lambda crops: streamed(FileImages(examples, CHANNELS), *size, crops))
    for crops in arguments.crops_per_image
  ]
  readers += [
    ('tiles', crops, cut_seconds, lambda crops: streamed(TileImages([cut], CHANNELS), *size, crops))
    for crops in arguments.crops_per_image
  ]
  # All images are decoded once, so every patch has its own image.
  readers += [('memory', 1, load_seconds, lambda _: sampled(images, *size))]
  rows = []
  for reader, crops, once_seconds, open_batches in readers:
    row = {'data': name, 'reader': reader, 'crops_per_image': crops, 'once_seconds': once_seconds}
    row |= {'images': len(examples), 'tiles': len(cut), 'memory_bytes': images.nbytes}
    row |= measure(open_batches(crops), arguments.batch_size, arguments.seconds)
    print(f'{name}, {reader}, {crops}: {row["patches_per_second"]:.0f} patches/s', flush=True)
    rows.append(row)
  return rows


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.make_parser(__doc__)
  relative = 'may be relative to SADNET_DATA (default: %(default)s)'
  parser.add_argument('--clean_dir', default='train/BSD432', help=f'clean images, {relative}')
  parser.add_argument('--polyu_dir', default='real/PolyU', help=f'the PolyU data set, {relative}')
  parser.add_argument(
    '--tiles_dir', type=common.folder, help='where to keep the tiles (default: a temporary folder)'
  )
  parser.add_argument('--patch_px', type=int, default=128, help='side of a patch (default: 128)')
  parser.add_argument('--batch_size', type=int, default=16, help='patches per batch (default: 16)')
  parser.add_argument(
    '--crops_per_image',
    type=int,
    nargs='+',
    default=[1, 4],
    help='patches per decoded image, of files and tiles (default: 1 4)',
  )
  parser.add_argument('--seconds', type=float, default=10, help='time to measure each row (default: 10)')
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  arguments = parse_arguments(argv)
  sets = {
    'clean': find_data_dir(arguments.clean_dir, '--clean_dir'),
    'polyu': find_data_dir(arguments.polyu_dir, '--polyu_dir'),
  }
  packages = ('array_record', 'numpy', 'pillow', 'tensorflow', 'tensorflow-cpu', 'tensorflow-datasets')
  options = common.options_of(arguments, ['tiles_dir'])
  results = common.describe('data_readers.py', options, packages)
  results |= {name: getattr(arguments, name) for name in ('patch_px', 'batch_size', 'seconds')}
  rows: list[dict] = []
  with tempfile.TemporaryDirectory() as temporary:
    for name, folder in sets.items():
      rows += measure_set(name, folder, arguments.tiles_dir or Path(temporary), arguments)
  results['rows'] = rows
  print('\n'.join(tables.data_readers_table(results)))
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
