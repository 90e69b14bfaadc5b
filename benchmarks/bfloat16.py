"""Whether training in bfloat16 follows training in float32: the loss of both over thousands of steps.

  python benchmarks/bfloat16.py --images train/BSD432 --json bfloat16.json

The recipe of configs/color_fast.py at sigma 50, on one device, with the clean images in device memory. All
dtypes start from the same weights and see the same patches with the same noise. Each figure is the mean of
the loss over 50 steps (the last one over the remaining steps); the table shows every tenth.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import statistics
import sys

# Read by TensorFlow when it is imported.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import jax
import ml_collections

# The configs are not installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import common, tables
from sadnet_jax.data.folders import find_data_dir
from sadnet_jax.training.config import check_config
from sadnet_jax.training.inputs import open_training_data
from sadnet_jax.training.loop import describe_divergence, step_from_config
from sadnet_jax.training.state import create_train_state

DTYPES = ('float32', 'bfloat16')
AVERAGED_STEPS = 50


def run_config(images: Path, dtype: str, steps: int) -> ml_collections.ConfigDict:
  """The config of one run."""
  config = common.short_run_config('50', images, steps)
  config.model.dtype = dtype
  return config


def curve(config: ml_collections.ConfigDict) -> list[float]:
  """Trains and returns the loss, averaged over each `AVERAGED_STEPS` steps.

  Raises:
    ValueError: The config is invalid, or the run diverged.
  """
  devices = jax.local_devices()[:1]
  check_config(config, len(devices))
  data = open_training_data(config, devices[:1])
  take_step = step_from_config(config, devices, data.device_images)
  state = create_train_state(config)
  batches = data.batches(0, devices)
  means = []
  every = range(1, config.steps + 1)
  for first in range(0, config.steps, AVERAGED_STEPS):
    steps = every[first : first + AVERAGED_STEPS]
    taken = []
    for _ in steps:
      state, metrics = take_step(state, next(batches))
      taken.append(metrics)
    # Read together, so that the device does not wait in between.
    taken = jax.device_get(taken)
    for step, metrics in zip(steps, taken, strict=True):
      if not metrics['finite']:
        raise ValueError(describe_divergence(step, {name: float(value) for name, value in metrics.items()}))
    means.append(statistics.fmean(float(metrics['loss']) for metrics in taken))
    print(f'{config.model.dtype}: step {steps[-1]} of {config.steps}, loss {means[-1]:.5f}', flush=True)
  return means


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.make_training_parser(__doc__, steps=2000)
  parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=DTYPES, help='default: float32 bfloat16')
  arguments = parser.parse_args(argv)
  arguments.dtypes = list(dict.fromkeys(arguments.dtypes))
  return arguments


def main(argv: Sequence[str] | None = None) -> None:
  arguments = parse_arguments(argv)
  images = find_data_dir(arguments.images, '--images').resolve()
  results = common.describe('bfloat16.py', common.options_of(arguments))
  curves = {dtype: curve(run_config(images, dtype, arguments.steps)) for dtype in arguments.dtypes}
  ends = [*range(AVERAGED_STEPS, arguments.steps, AVERAGED_STEPS), arguments.steps]
  results |= {
    'dtypes': arguments.dtypes,
    'averaged_steps': AVERAGED_STEPS,
    'rows': [
      {'step': step, **{dtype: curves[dtype][i] for dtype in arguments.dtypes}} for i, step in enumerate(ends)
    ],
  }
  print('\n'.join(tables.bfloat16_table(results)))
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
