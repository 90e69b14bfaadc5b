"""What the benchmarks share: options, processes of their own, the form of their results."""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
import json
import os
from pathlib import Path
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any

import jax

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import limits
from sadnet_jax.machine import environment

# Read when JAX first looks for devices: on a GPU this process and those it starts share the memory.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')


def make_parser(description: str | None, *, runs: int) -> argparse.ArgumentParser:
  """A parser with the options ``--runs`` and ``--json``.

  Args:
    description: The script's docstring.
    runs: By default.
  """
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument(
    '--runs', type=_positive, default=runs, help='of everything; the median counts (default: %(default)s)'
  )
  parser.add_argument('--json', type=Path, metavar='FILE', help='also write the results to this file')
  return parser


def _positive(text):
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'got {value}, want at least 1')
  return value


def options_of(arguments: argparse.Namespace, leave_out: Collection[str] = ()) -> list[str]:
  """The options that give these arguments.

  Args:
    arguments: As parsed.
    leave_out: Names that make no difference to the figures, beside ``json``.
  """
  options = []
  for name, value in vars(arguments).items():
    if name != 'json' and name not in leave_out:
      values = value if isinstance(value, list | tuple) else [value]
      options += [f'--{name}', *(f'{v:g}' if isinstance(v, float) else str(v) for v in values)]
  return options


def describe(
  script: str, options: Sequence[str], packages: Sequence[str] = ('flax', 'optax')
) -> dict[str, object]:
  """What every result is written with: command, hardware, versions, commit.

  Args:
    script: Name of the file, as 'growth.py'.
    options: Those that make a difference to the figures.
    packages: Those whose versions do, beside JAX.
  """
  platform, kind = jax.default_backend(), jax.local_devices()[0].device_kind
  return {
    **environment(packages),
    'command': shlex.join(['python', f'benchmarks/{script}', *options]),
    'device': platform,
    'gpu': kind if platform == 'gpu' else None,
  }


def default_limits() -> tuple[limits.Precision, limits.Limits]:
  """The arithmetic that JAX takes of itself for float32, and the machine's rates in it."""
  precision: limits.Precision = 'tf32' if jax.default_backend() == 'gpu' else 'float32'
  return precision, limits.measure_limits(precision)


def in_fresh_process(script: str, options: Sequence[str]) -> dict:
  """Runs a script of this folder in a process of its own and reads the JSON that it prints last.

  Without a compilation cache, unless the script turns one on.

  Raises:
    SystemExit: It failed.
  """
  environ = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
  command = [sys.executable, str(Path(__file__).with_name(script)), *options]
  done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    raise SystemExit(f'{shlex.join(command)}: ended with status {done.returncode}')
  return json.loads(done.stdout.splitlines()[-1])


def seconds_of(call: Callable[[], object], times: int = 1) -> float:
  """Seconds of a call, the mean of so many."""
  start = time.perf_counter()
  for _ in range(times):
    jax.block_until_ready(call())
  return (time.perf_counter() - start) / times


def summary(runs: Sequence[float]) -> dict[str, object]:
  """Seconds of all runs, and their median."""
  return {'seconds': statistics.median(runs), 'runs_seconds': list(runs)}


def at_most(what: str, value: float, want: float) -> dict[str, object]:
  """A mark that is reached by a figure of at most ``want``."""
  return {'what': what, 'value': value, 'want': want, 'sense': 'at most', 'reached': value <= want}


def finish(results: dict, path: Path | None) -> None:
  """Says which marks are reached, if there are any, and writes all to a file if wanted."""
  print_marks(results.get('marks', {}))
  if path:
    path.write_text(json.dumps(results, indent=2) + '\n')


def print_marks(marks: Mapping[str, Mapping[str, Any]]) -> None:
  """Says which are reached, a line each."""
  for mark in marks.values():
    reached = 'reached' if mark['reached'] else 'not reached'
    print(f'{mark["what"]}: {mark["value"]:.2f}, want {mark["sense"]} {mark["want"]:g}: {reached}')
