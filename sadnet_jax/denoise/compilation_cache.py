"""Compiled programs kept on disk, so that a command starts fast the second time."""

import hashlib
from pathlib import Path
import platform
import tempfile

# A program of SADNet takes about 0.1 MB on a CPU.
MAX_BYTES = 2**28
_SUFFIX = '-cache'
# Everything that takes longer is kept: the network does on any machine, what surrounds it does not.
_MIN_COMPILE_SECONDS = 0.1
_DAMAGED = 'Error reading persistent compilation cache entry'


def enable(folder: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> Path | None:
  """Turns JAX's persistent compilation cache on; to be called before anything is compiled.

  A cache that the user has set up (``JAX_COMPILATION_CACHE_DIR``) stays as it is.

  Args:
    folder: Where to keep programs, in a folder for this kind of processor; by default in the user's
      cache folder. Made if missing.
    max_bytes: What is kept at most from runs before; what was not used for longest goes first.

  Returns:
    The folder; None if it is the user's own, or cannot be written to and nothing will be kept.
  """
  import jax

  if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
    return None
  # Programs for a CPU are of its own instructions, and JAX finds them by their source alone: a home
  # that several machines share must not mix them.
  folder = Path(folder or _user_folder(), _processor())
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
    _shrink(folder, max_bytes)
  except OSError:
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _MIN_COMPILE_SECONDS)
  return folder


def is_damage(warning: str) -> bool:
  """Whether a warning of JAX tells that a kept program could not be read."""
  return warning.startswith(_DAMAGED)


def clear(folder: Path) -> None:
  """Removes all kept programs: JAX never replaces a damaged one, nor tells which it is."""
  for path in folder.glob(f'*{_SUFFIX}'):
    path.unlink(missing_ok=True)


def _user_folder():
  from platformdirs import user_cache_dir

  return Path(user_cache_dir('sadnet-jax'), 'jax')


def _shrink(folder, max_bytes):
  # JAX's own limit needs a further package, and locks the folder at each use.
  entries = [(path, path.stat()) for path in folder.glob(f'*{_SUFFIX}')]
  entries.sort(key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime), reverse=True)
  kept_bytes = 0
  for path, status in entries:
    kept_bytes += status.st_size
    if kept_bytes > max_bytes:
      path.unlink(missing_ok=True)


def _processor():
  """A name for what programs are compiled for: the architecture and its extensions."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    extensions = next((line for line in lines if line.lower().startswith(('flags', 'features'))), '')
  except OSError:
    extensions = platform.processor()
  text = f'{platform.machine()} {extensions}'
  return f'{platform.machine() or "unknown"}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
