"""Memory of the compiled programs: what XLA plans, and the peak of the process and of the GPU.

  python benchmarks/memory.py --json memory.json

Temporary, argument and output bytes are those of ``memory_analysis``. Each program runs once in its own
process. The peak resident memory of this process (Linux's VmHWM) is given beyond that of a process that
imports the same and finds its devices, once after compilation and once after the run. On a GPU, the device's
``peak_bytes_in_use`` is also given. ``--runs`` repeats all this; the median counts.

The limit beside a forward pass is what the finest deformable convolution reads and writes: without fusing it
with the layer that predicts its offsets, a program holds that much at once.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import statistics
import sys

sys.path.append(str(Path(__file__).resolve().parent.parent))

import jax

from benchmarks import common, tables
from benchmarks.programs import PROGRAMS

# Target on a CPU.
FORWARD_TEMPORARY_MB = 220
# [N, H, W, C] of the finest deformable convolution of a forward pass.
_FINEST = {'forward_480x320': (1, 320, 480, 32), 'forward_1920x1080': (1, 1080, 1920, 32)}


def peak_resident_bytes() -> int | None:
  """Peak resident memory of this process, or None on a system other than Linux.

  Not ``ru_maxrss``, which starts from the memory of the parent process.
  """
  status = Path('/proc/self/status')
  lines = status.read_text().splitlines() if status.exists() else []
  found = next((line for line in lines if line.startswith('VmHWM:')), None)
  return None if found is None else int(found.split()[1]) * 1024


def peak_device_bytes() -> int | None:
  """Peak memory allocated on the device, or None if the device does not report it, such as a CPU."""
  return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def run_once(name: str) -> dict[str, int | None]:
  """Compiles and runs a program, or only finds the devices ('nothing'), and returns the memory it took."""
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
    # The part of the outputs that reuses donated arguments.
    'alias': planned.alias_size_in_bytes,
    'resident_compiled': resident_compiled,
    'resident': peak_resident_bytes(),
    'device': peak_device_bytes(),
  }


def measure(name: str, runs: int, imported: int | None) -> dict[str, object]:
  """A row of the table.

  Args:
    name: Of `PROGRAMS`.
    runs: Number of processes; the median counts.
    imported: Resident bytes of a process that only imports.
  """
  every = [common.in_fresh_process('memory.py', ['--once', name]) for _ in range(runs)]
  found = {part: median([one[part] for one in every]) for part in every[0]}
  for part in ('resident_compiled', 'resident'):
    found[part] = None if found[part] is None or imported is None else found[part] - imported
  row: dict[str, object] = {'what': PROGRAMS[name][0], 'bytes': found}
  if name in _FINEST:
    row['limit_bytes'] = common.deform_conv_cost(_FINEST[name]).bytes
  return row


def median(values: Sequence[int | None]) -> int | None:
  """The median, or None if any value is missing."""
  return None if None in values else int(statistics.median(values))  # type: ignore[type-var]


def targets(rows: dict[str, dict], device: str) -> dict[str, dict]:
  """The target for the forward pass on a CPU, if it was measured."""
  if device != 'cpu' or 'forward_480x320' not in rows:
    return {}
  what = f'{rows["forward_480x320"]["what"]}: temporary memory, MB'
  got = rows['forward_480x320']['bytes']['temporary'] / 1e6
  return {'forward_480x320_temporary': common.at_most(what, got, FORWARD_TEMPORARY_MB)}


def main(argv: Sequence[str] | None = None) -> None:
  parser = common.make_parser(__doc__, runs=3)
  parser.add_argument('--only', nargs='+', choices=list(PROGRAMS), default=list(PROGRAMS), metavar='PROGRAM')
  parser.add_argument(
    '--once',
    choices=[*PROGRAMS, 'nothing'],
    metavar='PROGRAM',
    help='run once in this process and print JSON',
  )
  arguments = parser.parse_args(argv)
  if arguments.once:
    print(json.dumps(run_once(arguments.once)))
    return
  options = ['--runs', str(arguments.runs)]
  if arguments.only != list(PROGRAMS):
    options += ['--only', *arguments.only]
  results = common.describe('memory.py', options)
  imports = [common.in_fresh_process('memory.py', ['--once', 'nothing']) for _ in range(arguments.runs)]
  imported = median([one['resident'] for one in imports])
  results['imported_bytes'] = imported
  results['rows'] = {name: measure(name, arguments.runs, imported) for name in arguments.only}
  results['targets'] = targets(results['rows'], jax.default_backend())
  print('\n'.join(tables.memory_table(results)))
  common.finish(results, arguments.json)


if __name__ == '__main__':
  main()
