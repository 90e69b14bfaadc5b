"""Memory of the compiled programs: what XLA plans, and what a process or a GPU takes at most.

  python benchmarks/memory_use.py --json memory_use.json

Temporary, argument and output bytes are those of ``memory_analysis``. Each program runs once in a
process of its own; its resident memory at most (VmHWM of Linux) counts beyond that of a process that
imports the same and finds its devices, once after compilation and once after the run. On a GPU the
device's ``peak_bytes_in_use`` is there too. ``--runs`` repeats all this; what XLA plans does not change.

The limit beside a forward pass is what the finest deformable convolution reads and writes: without fusing
it with the layer that predicts its offsets, as much is there at once.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import statistics
import sys

sys.path.append(str(Path(__file__).resolve().parent.parent))

import jax

from benchmarks import common, limits
from benchmarks.programs import PROGRAMS

# On a CPU.
FORWARD_TEMPORARY_MB = 220
# The finest scale of the images of a forward pass, [N, H, W, C] of its deformable convolution.
_FINEST = {'forward_480x320': (1, 320, 480, 32), 'forward_1920x1080': (1, 1080, 1920, 32)}


def peak_resident_bytes() -> int | None:
  """The most that this process has had in memory; None where the system is no Linux.

  Not ``ru_maxrss``, which begins with what the process that started this one had.
  """
  status = Path('/proc/self/status')
  lines = status.read_text().splitlines() if status.exists() else []
  found = next((line for line in lines if line.startswith('VmHWM:')), None)
  return None if found is None else int(found.split()[1]) * 1024


def peak_device_bytes() -> int | None:
  """The most that was allocated on the device; None where it does not tell, as a CPU."""
  return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def run_once(name: str) -> dict[str, int | None]:
  """Compiles and runs a program, or only finds the devices ('nothing'), and says what that took."""
  if name == 'nothing':
    jax.local_devices()
    return {'resident': peak_resident_bytes()}
  program = PROGRAMS[name][1]()
  compiled = program.function.lower(*program.arguments).compile()
  planned = compiled.memory_analysis()
  resident_compiled = peak_resident_bytes()
  jax.block_until_ready(compiled(*program.zeros()))
  return {
    'temporary': planned.temp_size_in_bytes,
    'argument': planned.argument_size_in_bytes,
    'output': planned.output_size_in_bytes,
    # Of the outputs, what takes the place of donated arguments.
    'alias': planned.alias_size_in_bytes,
    'resident_compiled': resident_compiled,
    'resident': peak_resident_bytes(),
    'device': peak_device_bytes(),
  }


def measure(name: str, runs: int, imported: int | None) -> dict[str, object]:
  """A row of the table.

  Args:
    name: Of `PROGRAMS`.
    runs: Processes; the median counts.
    imported: Resident bytes of a process that only imports.
  """
  every = [common.in_fresh_process('memory_use.py', ['--once', name]) for _ in range(runs)]
  found = {part: median([one[part] for one in every]) for part in every[0]}
  for part in ('resident_compiled', 'resident'):
    found[part] = None if found[part] is None or imported is None else found[part] - imported
  row: dict[str, object] = {'what': PROGRAMS[name][0], 'bytes': found}
  if name in _FINEST:
    row['limit_bytes'] = limits.deform_conv_cost(_FINEST[name]).bytes
  return row


def median(values: Sequence[int | None]) -> int | None:
  """Of what was measured; None where it was not."""
  return None if None in values else int(statistics.median(values))  # type: ignore[type-var]


def marks(rows: dict[str, dict], device: str) -> dict[str, dict]:
  """The one of the forward pass, where it was measured; it is for CPUs."""
  if device != 'cpu' or 'forward_480x320' not in rows:
    return {}
  what = f'{rows["forward_480x320"]["what"]}: temporary MB'
  got = rows['forward_480x320']['bytes']['temporary'] / 1e6
  return {'forward_480x320_temporary': common.at_most(what, got, FORWARD_TEMPORARY_MB)}


def print_table(rows: dict[str, dict]) -> None:
  columns = ('temporary', 'argument', 'output', 'resident_compiled', 'resident', 'device')
  heads = (*columns[:3], 'compiled', 'run', 'device', 'limit')
  print(f'{"MB":<40}' + ''.join(f'{head:>11}' for head in heads))
  for row in rows.values():
    values = [*(row['bytes'][column] for column in columns), row.get('limit_bytes')]
    cells = ['' if value is None else f'{value / 1e6:.1f}' for value in values]
    print(f'{row["what"]:<40}' + ''.join(f'{cell:>11}' for cell in cells))


def main(argv: Sequence[str] | None = None) -> None:
  parser = common.make_parser(__doc__, runs=3)
  parser.add_argument('--only', nargs='+', choices=list(PROGRAMS), default=list(PROGRAMS), metavar='PROGRAM')
  parser.add_argument(
    '--once', choices=[*PROGRAMS, 'nothing'], metavar='PROGRAM', help='in this process, once; prints JSON'
  )
  arguments = parser.parse_args(argv)
  if arguments.once:
    print(json.dumps(run_once(arguments.once)))
    return
  options = ['--runs', str(arguments.runs)]
  if arguments.only != list(PROGRAMS):
    options += ['--only', *arguments.only]
  results = common.describe('memory_use.py', options)
  imports = [common.in_fresh_process('memory_use.py', ['--once', 'nothing']) for _ in range(arguments.runs)]
  imported = median([one['resident'] for one in imports])
  results['imported_bytes'] = imported
  results['rows'] = {name: measure(name, arguments.runs, imported) for name in arguments.only}
  results['marks'] = marks(results['rows'], jax.default_backend())
  print_table(results['rows'])
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
