"""The training loop as a whole with each data reader: images per second and the time spent waiting for data.

  python benchmarks/training_loop.py --json training_loop.json

Trains the network at full width with `sadnet_jax.training.loop.train`, on clean images (BSD432) and on pairs
(PolyU), with each reader and dtype, and reads the log of the second half of the steps. Cutting tiles and
compilation do not count.
"""

import argparse
from collections.abc import Sequence
import json
import os
from pathlib import Path
import statistics
import sys
import tempfile

# Read by TensorFlow when it is imported.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import jax

# The configs are not installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import common, tables
from configs import color_fast, nam
from sadnet_jax import machine
from sadnet_jax.data.folders import find_data_dir
from sadnet_jax.training import loop

READERS = ('files', 'tiles', 'memory')


def measure(data: str, folder: Path, reader: str, dtype: str, arguments: argparse.Namespace) -> dict:
  """The rates of one training run."""
  config = color_fast.get_config('50') if data == 'clean' else nam.get_config()
  config.data.train.clean = ''
  config.data.train[data] = str(folder)
  config.data.reader = reader
  config.data.tiles_dir = str(arguments.tiles_dir)
  config.data.patch_px = arguments.patch_px
  config.batch_size = arguments.batch_size
  config.model.dtype = dtype
  config.init_from = ''
  config.optimizer.warmup_steps = 0
  config.validation.every = 0
  config.steps = arguments.steps
  config.checkpoint_every = config.steps
  config.log_every = max(config.steps // 10, 1)
  with tempfile.TemporaryDirectory() as workdir:
    # One device, as the limit is that of one.
    loop.train(config, workdir, jax.local_devices()[:1])
    lines = [json.loads(line) for line in Path(workdir, 'metrics.jsonl').read_text().splitlines()]
  later = lines[len(lines) // 2 :]
  rate = statistics.median(line['images_per_second'] for line in later)
  return {
    'data': data,
    'reader': reader,
    'dtype': dtype,
    'images_per_second': rate,
    'seconds_per_step': config.batch_size / rate,
    'waiting_for_data': statistics.mean(line['waiting_for_data'] for line in later),
  }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.make_parser(__doc__)
  relative = 'may be relative to SADNET_DATA (default: %(default)s)'
  parser.add_argument('--clean_dir', default='train/BSD432', help=f'clean images, {relative}')
  parser.add_argument('--polyu_dir', default='real/PolyU', help=f'the PolyU data set, {relative}')
  parser.add_argument('--patch_px', type=int, default=128, help='side of a patch (default: 128)')
  parser.add_argument('--batch_size', type=int, default=16, help='patches per step (default: 16)')
  parser.add_argument('--steps', type=int, default=20, help='steps of each run (default: 20)')
  parser.add_argument('--dtypes', nargs='+', default=['float32'], help='default: float32')
  parser.add_argument('--readers', nargs='+', default=READERS, choices=READERS)
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  arguments = parse_arguments(argv)
  sets = {
    'clean': find_data_dir(arguments.clean_dir, '--clean_dir').resolve(),
    'polyu': find_data_dir(arguments.polyu_dir, '--polyu_dir').resolve(),
  }
  packages = ('flax', 'optax', 'tensorflow', 'tensorflow-cpu', 'tensorflow-datasets')
  results = common.describe('training_loop.py', common.options_of(arguments), packages)
  results |= {'devices': 1}
  results |= {name: getattr(arguments, name) for name in ('patch_px', 'batch_size', 'steps')}
  rows = []
  with tempfile.TemporaryDirectory() as temporary:
    arguments.tiles_dir = Path(temporary)
    for data, folder in sets.items():
      for reader in arguments.readers:
        rows += [measure(data, folder, reader, dtype, arguments) for dtype in arguments.dtypes]
  precision, limits = common.default_limits()
  # The network and its gradients; noise, loss and optimizer count nothing.
  cost = common.network_cost((arguments.batch_size, arguments.patch_px, arguments.patch_px, 3), training=True)
  results |= {'limits': {precision: limits.to_json()}, 'limit_seconds': limits.seconds(*cost), 'rows': rows}
  print('\n'.join(tables.training_loop_table(results)))
  common.finish(results, arguments.json)


if __name__ == '__main__':
  # As train.py does.
  machine.keep_freed_memory()
  main()
