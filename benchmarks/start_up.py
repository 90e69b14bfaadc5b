"""How long it takes until the first image: imports, tracing, compilation, first call.

  python benchmarks/start_up.py --runs 5 --json start_up.json

Every start is a new process, so that nothing is warm but the system's file cache. Each is measured without a
compilation cache, and with a cache in a temporary folder that an earlier start has filled: JAX's cache for
the single programs, and for the first image what the command `sadnet-denoise` keeps. JAX never caches
lowering, which is tracing the function and converting it to StableHLO; the command skips it. No rate of the
machine limits any of this except the second call, which only computes: the limit of the forward pass is shown
beside it.

``--once STAGE`` runs one start in this process and prints the seconds of its parts as JSON. No package is
imported before the clock runs; hence the imports inside functions.
"""

import argparse
from collections.abc import Sequence
import contextlib
import json
from pathlib import Path
import sys
import tempfile
import time

sys.path.append(str(Path(__file__).resolve().parent.parent))

_FORWARD = 'network forward, one 480x320 image'
_STEP = 'training step, 4 patches of 128x128'
_FIRST = 'first image, 480x320'
# Row -> (text in the table, stage, part of the stage, whether a cache can matter).
ROWS = {
  'import_jax': ('import of jax', 'import', 'import_jax', False),
  'import_flax': ('import of flax', 'import', 'import_flax', False),
  'import_sadnet_jax': ('import of sadnet_jax', 'import', 'import_sadnet_jax', False),
  'find_devices': ('finding devices', 'import', 'find_devices', False),
  'lower_forward': (f'{_FORWARD}: lowering', 'forward_480x320', 'lower', True),
  'compile_forward': (f'{_FORWARD}: compilation', 'forward_480x320', 'compile', True),
  'lower_training_step': (f'{_STEP}: lowering', 'training_step_4x128', 'lower', True),
  'compile_training_step': (f'{_STEP}: compilation', 'training_step_4x128', 'compile', True),
  'load_weights': (f'{_FIRST}: loading the weights', 'first_image', 'load_weights', True),
  'first_call': (f'{_FIRST}: first call', 'first_image', 'first_call', True),
  'second_call': (f'{_FIRST}: second call', 'first_image', 'second_call', True),
  'until_first_image': (
    f'{_FIRST}: the parts up to the first result together',
    'first_image',
    'until_first_image',
    True,
  ),
}
STAGES = tuple(dict.fromkeys(stage for _, stage, _, _ in ROWS.values()))


# One start, in this process.


class Clock:
  """Splits the time into named parts.

  Attributes:
    parts: Seconds by name.
  """

  def __init__(self):
    """Starts the clock."""
    self.parts: dict[str, float] = {}
    self._last = time.perf_counter()

  def note(self, name: str) -> None:
    """Names the time since the last call of `note` or `skip`."""
    now = time.perf_counter()
    self.parts[name] = now - self._last
    self._last = now

  def skip(self) -> None:
    """Discards the time since the last call of `note` or `skip`."""
    self._last = time.perf_counter()


def run_once(stage: str, cache: str | None) -> dict[str, float]:
  """One start: seconds of its parts.

  Args:
    stage: Of `STAGES`.
    cache: Folder of the compilation cache, or None for no cache.
  """
  clock = Clock()
  _import_packages(clock)
  with _cache(cache, like_command=stage == 'first_image') if cache else contextlib.nullcontext():
    clock.skip()
    if stage == 'first_image':
      _denoise_first_image(clock)
      until_first = [seconds for part, seconds in clock.parts.items() if part != 'second_call']
      clock.parts['until_first_image'] = sum(until_first)
    elif stage != 'import':
      _compile_program(clock, stage)
  return clock.parts


@contextlib.contextmanager
def _cache(folder, *, like_command):
  """The cache of the command `sadnet-denoise`, or that of train.py."""
  from sadnet_jax.denoise import compilation_cache

  with contextlib.ExitStack() as stack:
    if like_command:
      found = stack.enter_context(compilation_cache.keeping_programs(folder))
    else:
      found = compilation_cache.enable(folder)
    if found is None:
      raise SystemExit(f'{folder}: cannot write a compilation cache to this folder; give a writable one')
    yield


def _import_packages(clock):
  import jax

  clock.note('import_jax')
  import flax.linen  # noqa: F401

  clock.note('import_flax')
  # By name: the package imports its modules lazily.
  from sadnet_jax import Denoiser, SADNet  # noqa: F401

  clock.note('import_sadnet_jax')
  jax.local_devices()
  clock.note('find_devices')


def _compile_program(clock, name):
  """Lowers and compiles one of `programs.PROGRAMS`."""
  from benchmarks.programs import PROGRAMS

  program = PROGRAMS[name][1]()
  clock.skip()
  lowered = program.function.lower(*program.arguments)
  clock.note('lower')
  lowered.compile()
  clock.note('compile')


def _denoise_first_image(clock):
  """Denoises a 480x320 image twice, with weights that ship with the package."""
  import numpy as np

  from sadnet_jax import Denoiser

  noisy = np.random.default_rng(0).integers(0, 256, (320, 480, 3), np.uint8)
  clock.skip()
  denoiser = Denoiser.from_pretrained('color')
  clock.note('load_weights')
  denoiser(noisy)
  clock.note('first_call')
  denoiser(noisy)
  clock.note('second_call')


# Many starts, each in its own process.


def starts(stage: str, runs: int, cached: bool) -> dict[str, list[float]]:
  """Seconds of each part in each of several starts.

  Args:
    stage: Of `STAGES`.
    runs: Number of starts.
    cached: Use a cache that an additional start, which does not count, has filled.
  """
  from benchmarks import common

  with tempfile.TemporaryDirectory() as folder:
    options = ['--once', stage, *(['--cache', folder] if cached else [])]
    every = [common.in_fresh_process('start_up.py', options) for _ in range(runs + cached)]
  counted = every[1:] if cached else every
  return {part: [start[part] for start in counted] for part in counted[0]}


def measure(runs: int) -> dict[str, dict]:
  """All rows of the table, without limits."""
  from benchmarks import common

  rows: dict[str, dict] = {row: {'what': what} for row, (what, *_) in ROWS.items()}
  for stage in STAGES:
    for cached in (False, True):
      measured = {
        row: part
        for row, (_, row_stage, part, cache_matters) in ROWS.items()
        if row_stage == stage and (cache_matters or not cached)
      }
      if measured:
        found = starts(stage, runs, cached)
        for row, part in measured.items():
          rows[row]['filled_cache' if cached else 'no_cache'] = common.summary(found[part])
  return rows


def main(argv: Sequence[str] | None = None) -> None:
  from benchmarks import common, tables

  arguments = common.make_parser(__doc__, runs=5).parse_args(argv)
  results = common.describe('start_up.py', common.options_of(arguments))
  results['rows'] = rows = measure(arguments.runs)
  # Last, since it takes memory that the processes above may need.
  precision, limits = common.default_limits()
  rows['second_call']['limit_seconds'] = limits.seconds(*common.network_cost((1, 320, 480, 3)))
  results['limits'] = {precision: limits.to_json()}
  print('\n'.join(tables.start_up_table(results)))
  common.finish(results, arguments.json)


def main_once(argv: Sequence[str]) -> None:
  """``--once STAGE [--cache FOLDER]``."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--once', choices=STAGES, required=True)
  parser.add_argument('--cache')
  arguments = parser.parse_args(argv)
  print(json.dumps(run_once(arguments.once, arguments.cache)))


if __name__ == '__main__':
  if '--once' in sys.argv:
    main_once(sys.argv[1:])
  else:
    main()
