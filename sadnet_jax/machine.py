"""The machine: hardware, versions and commit, which make a result reproducible, and free memory."""

from collections.abc import Mapping, Sequence
import importlib.metadata
import os
from pathlib import Path
import platform
import subprocess
from typing import Any


def environment(packages: Sequence[str]) -> dict[str, object]:
  """Describes what a result was computed with.

  Args:
    packages: Distributions whose versions matter, besides JAX's; the version of a missing one is None.

  Returns:
    Processor, cores and load, JAX's devices, versions, and the commit (None outside a clone).
  """
  # Here, because reading free memory must not load JAX.
  import jax

  in_clone = _git('ls-files', '--error-unmatch', Path(__file__).name) is not None
  return {
    'cpu': _processor(),
    'cores': os.cpu_count(),
    'load_before': os.getloadavg()[0],
    'device': jax.local_devices()[0].device_kind,
    'devices': jax.local_device_count(),
    'python': platform.python_version(),
    'versions': {name: version(name) for name in ('jax', 'jaxlib', *packages)},
    'commit': _git('rev-parse', 'HEAD') if in_clone else None,
    'uncommitted_changes': bool(_git('status', '--porcelain', '--untracked-files=no')) if in_clone else None,
  }


def is_committed(environment: Mapping[str, Any]) -> bool:
  """Whether an `environment` names a commit that contains all of the code that ran."""
  return environment['commit'] is not None and not environment['uncommitted_changes']


def version(distribution: str) -> str | None:
  """The installed version of a distribution, None if it is not installed."""
  try:
    return importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return None


def free_host_bytes() -> int | None:
  """Memory this process may still allocate, None where the system does not say."""
  found = [free for free in (_free_in_system(), free_in_container()) if free is not None]
  return min(found) if found else None


def free_in_container(folder: Path = Path('/sys/fs/cgroup')) -> int | None:
  """What is left of a container's memory limit (cgroup version 2), None if there is no limit.

  Args:
    folder: The cgroup's files.
  """
  try:
    limit = int((folder / 'memory.max').read_text())
    current = int((folder / 'memory.current').read_text())
    stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
    # The system evicts cached files when memory is needed.
    return max(0, limit - current + int(stat.get('inactive_file', 0)))
  except (OSError, ValueError):
    return None


def _free_in_system():
  try:
    for line in Path('/proc/meminfo').read_text().splitlines():
      if line.startswith('MemAvailable:'):
        return int(line.split()[1]) * 1024
  except (OSError, ValueError):
    pass
  return None


def _processor():
  """The processor's model name where Linux gives it."""
  cpu_info = Path('/proc/cpuinfo')
  lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
  models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
  return models[0] if models else platform.processor() or platform.machine()


def _git(*arguments):
  """The output of git in this file's folder; None where it fails, as outside a clone."""
  try:
    done = subprocess.run(
      ['git', *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
  except OSError:
    return None
  return done.stdout.strip() if done.returncode == 0 else None
