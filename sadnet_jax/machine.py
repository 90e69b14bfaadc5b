"""The machine: hardware, versions and commit, which make a result reproducible, and memory."""

from collections.abc import Mapping, Sequence
import ctypes
import importlib.metadata
import importlib.util
import os
from pathlib import Path
import platform
import re
import subprocess
import sys
from typing import Any

# Parameters of glibc's mallopt, with their values: M_ARENA_MAX, one arena for all threads, because the others
# hold no large blocks; M_MMAP_MAX, no mappings of their own for these; M_TRIM_THRESHOLD, nothing is returned.
_KEEP_FREED = ((-8, 1), (-4, 0), (-1, -1))
# Environment variables by which users choose or set up another allocator.
_ALLOCATOR_VARIABLES = ('MALLOC_', 'GLIBC_TUNABLES', 'LD_PRELOAD')


def environment(packages: Sequence[str]) -> dict[str, object]:
  """Describes what a result was computed with.

  Args:
    packages: Distributions whose versions matter, besides JAX's; the version of a missing one is None.

  Returns:
    Processor, cores and load, JAX's devices and precision of products, versions, and the commit (None outside
    a clone) and whether code was changed or added since.
  """
  # Here, because reading free memory must not load JAX.
  import jax

  in_clone = _git('ls-files', '--error-unmatch', Path(__file__).name) is not None
  return {
    'cpu': _processor(),
    'cores': os.cpu_count(),
    'load_before': os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
    'device': jax.local_devices()[0].device_kind,
    'devices': jax.local_device_count(),
    'matmul_precision': getattr(jax.config, 'jax_default_matmul_precision', None) or 'default',
    'python': platform.python_version(),
    'versions': {name: version(name) for name in ('jax', 'jaxlib', *packages)},
    'commit': _git('rev-parse', 'HEAD') if in_clone else None,
    'uncommitted_changes': bool(_uncommitted()) if in_clone else None,
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


def keep_freed_memory() -> bool:
  """Lets this process keep freed memory for its next allocations; call it before JAX starts threads.

  XLA allocates the buffers of a program anew for each run. The GNU C library returns large blocks to the
  system once they are free, and the system clears every page of the next ones: a sixth of the processor time
  of a training step. This is for programs that run over and over: where sizes change, more memory is taken.

  Returns:
    Whether freed memory is kept. It is not without that library, if JAX has a plugin for an accelerator
    (``JAX_PLATFORMS=cpu`` says that it is not used), or if the environment sets up the allocator
    (``MALLOC_*``, ``GLIBC_TUNABLES``, ``LD_PRELOAD``).
  """
  if sys.platform != 'linux' or may_have_accelerator() or _allocator_is_set_up():
    return False
  libc = ctypes.CDLL(None)
  return hasattr(libc, 'gnu_get_libc_version') and all(libc.mallopt(*setting) for setting in _KEEP_FREED)


def may_have_accelerator():
  """Whether JAX has a plugin for one and is not told to use the CPU alone."""
  if os.environ.get('JAX_PLATFORMS') == 'cpu':
    return False
  return any(importlib.util.find_spec(name) for name in ('jax_plugins', 'libtpu'))


# On NVIDIA GPUs before Hopper they add float32 in memory by loops of compare and swap instead of by the
# instruction for it (openxla/xla#46225).
_SLOW_SCATTER, _HOPPER = ('0.10.2', '0.11.0'), 9
_NATIVE_ATOMICS = '-nvptx-allow-ftz-atomics'


def slow_gradients_note() -> str | None:
  """What to say about training on this GPU with a version of jaxlib that is slow on it; None if it is not."""
  import jax

  found, device = version('jaxlib'), jax.local_devices()[0]
  if device.platform != 'gpu' or found not in _SLOW_SCATTER:
    return None
  # Such as 8.0, or gfx90a of another vendor.
  capability = re.fullmatch(r'(\d+)\.\d+', str(getattr(device, 'compute_capability', '')))
  is_older = capability is not None and int(capability[1]) < _HOPPER
  if not is_older or _NATIVE_ATOMICS in os.environ.get('XLA_FLAGS', ''):
    return None
  return (
    f'jaxlib {found} is slow at the gradients of deformable convolutions on this GPU; use another version '
    f'than {" and ".join(_SLOW_SCATTER)}, or set XLA_FLAGS=--xla_backend_extra_options={_NATIVE_ATOMICS}'
  )


def _allocator_is_set_up():
  return any(name.startswith(_ALLOCATOR_VARIABLES) for name in os.environ)


def usable_cores() -> int:
  """Cores that this process may run on; all of them where the system does not say."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def free_host_bytes() -> int | None:
  """Memory this process may still allocate, None where the system does not say."""
  found = [free for free in (_free_in_system(), free_in_container()) if free is not None]
  return min(found) if found else None


# The files of a cgroup's limits and of its use of memory, and the field of memory.stat with the cached files
# that the system evicts when memory is needed: of version 2, then of version 1.
_CGROUP_FILES = (
  (('memory.max', 'memory.high'), 'memory.current', 'inactive_file'),
  (('memory.limit_in_bytes',), 'memory.usage_in_bytes', 'total_inactive_file'),
)


def free_in_container(
  folder: Path = Path('/sys/fs/cgroup'), groups: Path = Path('/proc/self/cgroup')
) -> int | None:
  """What is left of the memory limits of this process's cgroup and of those above it; None without a limit.

  Containers, Slurm and systemd set such limits.

  Args:
    folder: Where cgroups are mounted, those of version 1 in its subfolder ``memory``.
    groups: The file that names the groups of the process.
  """
  found = [_free_in_group(group) for group in _groups(folder, groups)]
  return min((free for free in found if free is not None), default=None)


def _groups(folder, groups):
  """The folders of the process's group and of all groups above it, in both versions."""
  try:
    lines = [line.split(':', 2) for line in groups.read_text().splitlines()]
  except OSError:
    lines = []
  for root, own in ((folder, ''), (folder / 'memory', 'memory')):
    names = [path for _, controllers, path in lines if own in controllers.split(',')]
    # In a container, the group's path may be that outside; there the mounted folder itself is the group.
    path = root / (names[0] if names else '').strip('/')
    yield from (group for group in (path, *path.parents) if group.is_relative_to(root))


def _free_in_group(group):
  for limits, used, cached in _CGROUP_FILES:
    try:
      texts = [(group / name).read_text().strip() for name in limits if (group / name).exists()]
      numbers = [int(text) for text in texts if text != 'max']
      if numbers:
        stat = dict(line.split() for line in (group / 'memory.stat').read_text().splitlines())
        return max(0, min(numbers) - int((group / used).read_text()) + int(stat.get(cached, 0)))
    except (OSError, ValueError):
      continue
  return None


def _free_in_system():
  try:
    for line in Path('/proc/meminfo').read_text().splitlines():
      if line.startswith('MemAvailable:'):
        return int(line.split()[1]) * 1024
  except (OSError, ValueError):
    pass
  return None


def host_bytes() -> int | None:
  """Memory of this machine, used or not; None where the system does not say."""
  try:
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  except (AttributeError, OSError, ValueError):
    return None


def _processor():
  """The processor's model name where Linux gives it."""
  cpu_info = Path('/proc/cpuinfo')
  lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
  models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
  return models[0] if models else platform.processor() or platform.machine()


# Where a file that git does not know can change a result; others of the user's cannot.
_CODE = (':/configs/*.py', ':/sadnet_jax/*.py')


def _uncommitted():
  """The changed files of this clone, and its new files of code."""
  changed = _git('status', '--porcelain', '--untracked-files=no')
  return changed or _git('ls-files', '--others', '--exclude-standard', '--full-name', '--', *_CODE)


def _git(*arguments):
  """The output of git in this file's folder; None where it fails, as outside a clone."""
  try:
    done = subprocess.run(['git', *arguments], cwd=Path(__file__).parent, capture_output=True, check=False)
  except OSError:
    return None
  # Names of files need not be text.
  return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None
