"""What the benchmarks that train share: their options, and the recipe of configs/color_fast.py in memory."""

import argparse
from pathlib import Path

import ml_collections

from configs import color_fast


def make_parser(description: str | None, *, steps: int) -> argparse.ArgumentParser:
  """A parser with the options ``--images``, ``--steps`` and ``--json``.

  Args:
    description: The script's docstring.
    steps: Of each run, by default.
  """
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument(
    '--images', default='train/BSD432', help='clean; may be relative to SADNET_DATA (default: %(default)s)'
  )
  parser.add_argument('--steps', type=int, default=steps, help='of each run (default: %(default)s)')
  parser.add_argument('--json', type=Path, metavar='FILE', help='also write the results to this file')
  return parser


def check_steps(parser: argparse.ArgumentParser, steps: int) -> None:
  """Ends the script with its usage unless a run has a step."""
  if steps < 1:
    parser.error(f'--steps: got {steps}, want at least 1')


def run_config(noise: str, images: str | Path, steps: int) -> ml_collections.ConfigDict:
  """The recipe of color_fast.py for so many steps, its data in memory.

  Args:
    noise: As in color_fast.py.
    images: Folder of clean images.
    steps: Of the run; the warm-up takes half of them at most.
  """
  config = color_fast.get_config(noise)
  config.data.train.clean = str(images)
  config.data.reader = 'memory'
  config.steps = steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 2)
  return config
