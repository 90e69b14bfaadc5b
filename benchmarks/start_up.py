"""How long it takes until the first image: imports, tracing, compilation, first call.

  python benchmarks/start_up.py --runs 5 --json start_up.json

Every start is a process of its own, so that nothing is warm but the system's cache of files. Each is
measured without a compilation cache, and with one that a start before has filled, as the command
`sadnet-denoise` keeps it, in a temporary folder. Lowering is tracing the function and turning it into
StableHLO; it is never cached. No arithmetic rate is a limit to any of this but to the second call, which
only computes: beside it stands the limit of the forward pass.
"""

from collections.abc import Sequence
from pathlib import Path
import sys
import tempfile

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import common, limits

_FORWARD = 'network forward, one 480x320 image'
_STEP = 'training step, 4 patches of 128x128'
# Row -> (text in the table, stage of start_up_once.py, the stage's part, whether a cache can matter).
ROWS = {
  'import_jax': ('import of jax', 'import', 'import_jax', False),
  'import_flax': ('import of flax', 'import', 'import_flax', False),
  'import_sadnet_jax': ('import of sadnet_jax', 'import', 'import_sadnet_jax', False),
  'find_devices': ('finding the devices', 'import', 'find_devices', False),
  'lower_forward': (f'{_FORWARD}: lowering', 'forward_480x320', 'lower', True),
  'compile_forward': (f'{_FORWARD}: compilation', 'forward_480x320', 'compile', True),
  'lower_training_step': (f'{_STEP}: lowering', 'training_step_4x128', 'lower', True),
  'compile_training_step': (f'{_STEP}: compilation', 'training_step_4x128', 'compile', True),
  'load_weights': ('first image, 480x320: loading the weights', 'first_image', 'load_weights', True),
  'first_call': ('first image, 480x320: first call', 'first_image', 'first_call', True),
  'second_call': ('first image, 480x320: second call', 'first_image', 'second_call', True),
  'until_first_image': (
    'first image, 480x320: all before the second call',
    'first_image',
    'until_first_image',
    True,
  ),
}


def starts(stage: str, runs: int, cached: bool) -> dict[str, list[float]]:
  """Seconds of each part in each of ``runs`` starts.

  Args:
    stage: Of start_up_once.py.
    runs: How many.
    cached: From a cache that one more start has filled, which does not count.
  """
  if not cached:
    return _by_part([common.in_fresh_process('start_up_once.py', [stage]) for _ in range(runs)])
  with tempfile.TemporaryDirectory() as folder:
    every = [common.in_fresh_process('start_up_once.py', [stage, folder]) for _ in range(1 + runs)]
  return _by_part(every[1:])


def _by_part(every):
  return {part: [start[part] for start in every] for part in every[0]}


def measure(runs: int) -> dict[str, dict]:
  """All rows of the table."""
  rows: dict[str, dict] = {row: {'what': what} for row, (what, *_) in ROWS.items()}
  for stage in dict.fromkeys(stage for _, stage, _, _ in ROWS.values()):
    for cached in (False, True):
      wanted = {
        row: part for row, (_, of, part, matters) in ROWS.items() if of == stage and (matters or not cached)
      }
      if wanted:
        found = starts(stage, runs, cached)
        for row, part in wanted.items():
          rows[row]['filled_cache' if cached else 'no_cache'] = common.summary(found[part])
  return rows


def main(argv: Sequence[str] | None = None) -> None:
  arguments = common.make_parser(__doc__, runs=5).parse_args(argv)
  results = common.describe('start_up.py', ['--runs', str(arguments.runs)])
  results['rows'] = rows = measure(arguments.runs)
  # Last, since it takes memory that the processes above may need.
  precision, found = common.default_limits()
  rows['second_call']['limit_seconds'] = found.seconds(*limits.network_cost((1, 320, 480, 3)))
  results |= {'limits': {precision: found.to_json()}, 'marks': {}}
  print(f'{"seconds":<56}{"no cache":>12}{"filled cache":>14}{"limit":>10}')
  for row in rows.values():
    cached = f'{row["filled_cache"]["seconds"]:.3f}' if 'filled_cache' in row else ''
    limit = f'{row["limit_seconds"]:.3f}' if 'limit_seconds' in row else ''
    print(f'{row["what"]:<56}{row["no_cache"]["seconds"]:>12.3f}{cached:>14}{limit:>10}')
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
