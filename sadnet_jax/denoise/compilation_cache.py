"""Keeps compiled programs on disk, which makes the commands start fast the second time.

``train.py`` and ``evaluate.py`` use JAX's own cache (`enabled`). It finds a program by what tracing and
lowering give, which takes half a second for the network. ``sadnet-denoise`` keeps the network's programs
itself (`keeping_programs`, `compiled`), and finds them by the network and the shapes.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import hashlib
import importlib.metadata
import os
from pathlib import Path
import pickle
import platform
import re
import tempfile
import time
from typing import TYPE_CHECKING
import warnings

from sadnet_jax.files import replacing, user_cache_folder
from sadnet_jax.machine import usable_cores

if TYPE_CHECKING:
  import jax

# A program of SADNet takes about 0.1 MB in JAX's cache, and 1.4 MB as `compiled` keeps it, on a CPU.
MAX_BYTES = 2**28
_SUFFIX = '-cache'
_LEFT_BEHIND_S = 3600
# Programs that compile longer are kept: the network always does, the small ones around it do not.
_MIN_COMPILE_SECONDS = 0.1
# What a program of the network depends on, beside its arguments: the sources in these folders.
_SOURCE_ROOMS = ('nn', 'ops', 'denoise')
_ACCELERATOR_PACKAGE = re.compile(r'(nvidia|jax-(cuda|rocm)|libtpu)', re.IGNORECASE)
_DAMAGED = 'Error reading persistent compilation cache entry'
_SHA256_BYTES = 32
# The folder of `compiled`, within `keeping_programs`.
_folder: Path | None = None


def enable(folder: str | Path | None = None) -> Path | None:
  """Turns on JAX's persistent compilation cache; call it before anything is compiled.

  A cache that the user has set up (``JAX_COMPILATION_CACHE_DIR``) is left alone. The least recently used
  programs of earlier runs are removed if they take more than `MAX_BYTES`.

  Args:
    folder: Parent of the cache folder, which is created and named after the processor; by default
      in the user's cache folder.

  Returns:
    The cache folder. None, and nothing is cached, if the user has a cache, if the user's folder is unknown,
    or if the cache folder cannot be written to or other users may write to it: a stored program can do
    anything when it is loaded.
  """
  import jax

  if _users_cache():
    return None
  prepared = _prepared(folder, 'jax')
  if prepared is not None:
    jax.config.update('jax_compilation_cache_dir', str(prepared))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _MIN_COMPILE_SECONDS)
  return prepared


@contextlib.contextmanager
def keeping_programs(folder: str | Path | None = None) -> Iterator[Path | None]:
  """`compiled` keeps programs while the context is open.

  Not if the user has a cache (``JAX_COMPILATION_CACHE_DIR``) or turned caching off
  (``JAX_ENABLE_COMPILATION_CACHE=false``), nor where `enable` would not.

  Args:
    folder: As `enable` takes it.

  Yields:
    The folder of the programs; None if none are kept.
  """
  import jax

  global _folder
  before = _folder
  if getattr(jax.config, 'jax_enable_compilation_cache', True) and not _users_cache():
    from jax.experimental.compilation_cache import compilation_cache as cache_of_jax

    # A cache that was on before still answers after it was turned off, with programs that cannot be stored.
    cache_of_jax.reset_cache()
    _folder = _prepared(folder, 'programs')
  try:
    yield _folder
  finally:
    _folder = before


def compiled(
  make: Callable[[], 'jax.stages.Wrapped'], arguments: tuple, device: 'jax.Device', about: str
) -> 'jax.stages.Compiled':
  """A jitted function compiled for these arguments, in this run or an earlier one.

  Args:
    make: Returns the function; only called to compile it.
    arguments: Its arguments, or their shapes: trees of tuples, lists and dicts.
    device: Where the arguments are.
    about: What else the program depends on, apart from the sources of this package, versions, and the
      environment's settings of JAX and XLA.
  """
  # JAX's cache, if it is on, gives programs that cannot be stored again.
  if _folder is None or _users_cache():
    return make().lower(*arguments).compile()
  path, program = None, None
  # Whatever goes wrong with a stored program, or with storing one, it can be compiled.
  with contextlib.suppress(Exception):
    path = _folder / f'network-{_key(arguments, device, about)}{_SUFFIX}'
    program = _load(path, device)
  if program is None:
    program = make().lower(*arguments).compile()
    with contextlib.suppress(Exception):
      _store(path, program)
  return program


def _key(arguments, device, about):
  import flax
  import jax
  import jaxlib

  shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arguments)
  # XLA divides its loops among the cores that it may use.
  names = ('JAX_', 'XLA_', 'NPROC', 'PJRT_NPROC')
  settings = sorted(item for item in os.environ.items() if item[0].startswith(names))
  versions = [jax.__version__, jaxlib.__version__, flax.__version__, *_accelerator_versions(device)]
  place = [str(device), device.device_kind, device.client.platform_version, usable_cores()]
  text = repr((about, shapes, settings, versions, place, _sources_sha256()))
  return hashlib.sha256(text.encode()).hexdigest()


def _accelerator_versions(device):
  """Versions of cuDNN and similar packages: programs depend on their kernels, and JAX does not pin them."""
  if device.platform == 'cpu':
    return []
  found = importlib.metadata.distributions()
  return sorted(f'{d.name} {d.version}' for d in found if _ACCELERATOR_PACKAGE.match(d.name or ''))


def _load(path, device):
  """A stored program; None if there is none or its file is damaged."""
  from jax.experimental import serialize_executable

  content = _read_checked(path)
  if content is None:
    return None
  # For `_shrink`, on file systems that do not note when a file is read.
  os.utime(path)
  stored, in_tree, out_tree = pickle.loads(content)
  return serialize_executable.deserialize_and_load(
    stored, in_tree, out_tree, backend=device.client, execution_devices=[device]
  )


def _store(path, program):
  from jax.experimental import serialize_executable

  content = pickle.dumps(serialize_executable.serialize(program))
  with replacing(path) as temporary:
    temporary.write_bytes(hashlib.sha256(content).digest() + content)


def _users_cache():
  """The folder of JAX's own cache, None or '' if that is off."""
  import jax

  return getattr(jax.config, 'jax_compilation_cache_dir', None)


def _prepared(parent, name):
  """The folder of this processor's programs; None if it cannot be written to, or by others too."""
  # CPU programs use the instructions of one processor, but JAX's keys do not name it: machines that share
  # a home folder must not share programs.
  try:
    folder = Path(parent or user_cache_folder() / name, _processor())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder):
      return None
    with tempfile.TemporaryFile(dir=folder):
      pass
    _shrink(folder)
  except (OSError, ValueError):
    return None
  return folder


def _is_private(folder):
  """Whether no other user may write to a folder."""
  status = folder.stat()
  return not hasattr(os, 'getuid') or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _read_checked(path):
  """What follows a file's SHA-256; None if there is no such file or it is damaged."""
  try:
    stored = path.read_bytes()
  except OSError:
    return None
  sha256, content = stored[:_SHA256_BYTES], stored[_SHA256_BYTES:]
  return content if hashlib.sha256(content).digest() == sha256 else None


@functools.cache
def _sources_sha256():
  package = Path(__file__).parent.parent
  files = sorted(file for room in _SOURCE_ROOMS for file in (package / room).glob('*.py'))
  return hashlib.sha256(b'\0'.join(file.read_bytes() for file in files)).hexdigest()


@contextlib.contextmanager
def enabled() -> Iterator[None]:
  """`enable`, and at the end `clear` if a program could not be read; other warnings are left as they are.

  ``JAX_ENABLE_COMPILATION_CACHE=false`` in the environment turns all caching off.
  """
  folder = enable()
  damaged = False
  with warnings.catch_warnings():
    # JAX's warning of a damaged program is needed here even where all warnings are hidden.
    warnings.filterwarnings('always', message=_DAMAGED)
    show = warnings.showwarning

    def watch(message, *arguments, **options):
      nonlocal damaged
      if str(message).startswith(_DAMAGED):
        damaged = True
      else:
        show(message, *arguments, **options)

    warnings.showwarning = watch
    try:
      yield
    finally:
      if folder is not None and damaged:
        clear(folder)


def clear(folder: Path) -> None:
  """Removes all cached programs: JAX neither replaces a damaged one nor names it."""
  for path in folder.glob(f'*{_SUFFIX}'):
    path.unlink(missing_ok=True)


def _shrink(folder):
  # JAX's own size limit needs another package and locks the folder at each use.
  entries = []
  for path in folder.glob(f'*{_SUFFIX}'):
    # Another process may have removed it.
    with contextlib.suppress(FileNotFoundError):
      entries.append((path, path.stat()))
  # Left by processes that were killed while they wrote.
  for path in folder.glob('.' + 12 * '[0-9a-f]'):
    with contextlib.suppress(FileNotFoundError):
      if time.time() - path.stat().st_mtime > _LEFT_BEHIND_S:
        path.unlink()
  entries.sort(key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime), reverse=True)
  kept_bytes = 0
  for path, status in entries:
    kept_bytes += status.st_size
    if kept_bytes > MAX_BYTES:
      path.unlink(missing_ok=True)


def _processor():
  """A name for the architecture and its instruction set extensions."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    extensions = next((line for line in lines if line.lower().startswith(('flags', 'features'))), '')
  except OSError:
    extensions = platform.processor()
  text = f'{platform.machine()} {extensions}'
  return f'{platform.machine() or "unknown"}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
