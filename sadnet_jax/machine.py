"""Hardware, versions and commit: what makes a figure repeatable."""

from collections.abc import Mapping, Sequence
import importlib.metadata
import os
from pathlib import Path
import platform
import subprocess
from typing import Any

import jax


def environment(packages: Sequence[str]) -> dict[str, object]:
  """What a result is written with.

  Args:
    packages: Distributions whose versions matter, beside JAX's; one may be missing.
  """
  cpu_info = Path('/proc/cpuinfo')
  lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
  models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]

  in_clone = _git('ls-files', '--error-unmatch', Path(__file__).name) is not None

  return {
    'cpu': models[0] if models else platform.processor() or platform.machine(),
    'cores': os.cpu_count(),
    'load_before': os.getloadavg()[0],
    'device': jax.local_devices()[0].device_kind,
    'devices': jax.local_device_count(),
    'python': platform.python_version(),
    'versions': {name: _version(name) for name in ('jax', 'jaxlib', *packages)},
    'commit': _git('rev-parse', 'HEAD') if in_clone else None,
    'uncommitted_changes': bool(_git('status', '--porcelain', '--untracked-files=no')) if in_clone else None,
  }


def is_committed(environment: Mapping[str, Any]) -> bool:
  """Whether what a result was written with, as from `environment`, names a commit that is all of its code."""
  return environment['commit'] is not None and not environment['uncommitted_changes']


def _git(*arguments):
  """What git says of the folder of this file; None where it fails, as outside a clone."""
  try:
    done = subprocess.run(
      ['git', *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
  except OSError:
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def _version(name):
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def free_host_bytes() -> int | None:
  """What this process may still take of the machine's memory, None where the system does not tell."""
  found = [free for free in (_free_of_machine(), _free_of_group()) if free is not None]
  return min(found) if found else None


def _free_of_machine():
  try:
    for line in Path('/proc/meminfo').read_text().splitlines():
      if line.startswith('MemAvailable:'):
        return int(line.split()[1]) * 1024
  except (OSError, ValueError):
    pass
  return None


def _free_of_group(folder: Path = Path('/sys/fs/cgroup')):
  """Of the limit that a container was given (cgroup version 2)."""
  try:
    limit = int((folder / 'memory.max').read_text())
    current = int((folder / 'memory.current').read_text())
    stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
    # Cached files give way.
    return max(0, limit - current + int(stat.get('inactive_file', 0)))
  except (OSError, ValueError):
    return None
