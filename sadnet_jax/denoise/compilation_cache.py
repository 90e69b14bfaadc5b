"""Keeps compiled programs on disk, which makes the commands start fast the second time.

``train.py`` and ``evaluate.py`` use JAX's own cache (`enabled`). It finds a program by what tracing and
lowering give, which takes a quarter of a second for the network. ``sadnet-denoise`` keeps the network's
programs itself (`keep_programs`, `compiled`), and finds them by the network and the shapes.
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
import tempfile
from typing import TYPE_CHECKING
import warnings

from sadnet_jax.files import replacing

if TYPE_CHECKING:
  import jax

# A program of SADNet takes about 0.1 MB in JAX's cache, and 1.4 MB as `compiled` keeps it, on a CPU.
MAX_BYTES = 2**28
_SUFFIX = '-cache'
# Programs that compile longer are kept: the network always does, the small ones around it do not.
_MIN_COMPILE_SECONDS = 0.1
# What a program of the network depends on, beside its arguments: the sources in these folders.
_TRACED_ROOMS = ('nn', 'ops', 'denoise')
_DAMAGED = 'Error reading persistent compilation cache entry'
_SHA256_BYTES = 32
# The folder of `compiled`, once `keep_programs` has set it up.
_folder: Path | None = None


def enable(folder: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> Path | None:
  """Turns on JAX's persistent compilation cache; call it before anything is compiled.

  A cache that the user has set up (``JAX_COMPILATION_CACHE_DIR``) is left alone.

  Args:
    folder: Parent of the cache folder, which is created and named after the processor; by default
      the user's cache folder.
    max_bytes: Largest size kept from earlier runs; the least recently used programs are removed first.

  Returns:
    The cache folder; None if the user has a cache, or if the folder cannot be written to, in which case
    nothing is cached.
  """
  import jax

  if (writable := _prepared(folder, max_bytes)) is not None:
    jax.config.update('jax_compilation_cache_dir', str(writable))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _MIN_COMPILE_SECONDS)
  return writable


def keep_programs(folder: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> Path | None:
  """Makes `compiled` keep programs.

  ``JAX_ENABLE_COMPILATION_CACHE=false`` in the environment turns it off.

  Args:
    folder: As `enable` takes it.
    max_bytes: As `enable` takes it.

  Returns:
    As `enable`.
  """
  global _folder
  _folder = _prepared(folder, max_bytes) if _setting('jax_enable_compilation_cache') else None
  return _folder


def compiled(
  make: Callable[[], 'jax.stages.Wrapped'], arguments: tuple, device: 'jax.Device', about: str
) -> 'jax.stages.Compiled':
  """A jitted function compiled for these arguments, in this run or an earlier one.

  Args:
    make: Returns the function; only called to compile it.
    arguments: Its arguments, or their shapes: trees of tuples, lists and dicts.
    device: Where the arguments are.
    about: What else the program depends on, apart from the sources of this package, the versions and
      settings of JAX and XLA, and the processor.
  """
  import jax

  # JAX's cache, if there is one, gives programs that cannot be written again.
  if _folder is None or _setting('jax_compilation_cache_dir'):
    return make().lower(*arguments).compile()
  from jax.experimental import serialize_executable

  shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arguments)
  settings = sorted(item for item in os.environ.items() if item[0].startswith(('JAX_', 'XLA_')))
  versions = [importlib.metadata.version(name) for name in ('jax', 'jaxlib')]
  text = repr((about, str(device), shapes, settings, versions, os.cpu_count(), _sources_sha256()))
  path = _folder / f'network-{hashlib.sha256(text.encode()).hexdigest()}{_SUFFIX}'
  content = _read_checked(path)
  # Whatever goes wrong with a stored program, or with storing one, it can be compiled.
  if content is not None:
    with contextlib.suppress(Exception):
      stored, in_tree, out_tree = pickle.loads(content)
      return serialize_executable.deserialize_and_load(
        stored, in_tree, out_tree, backend=device.client, execution_devices=[device]
      )
  program = make().lower(*arguments).compile()
  with contextlib.suppress(Exception):
    content = pickle.dumps(serialize_executable.serialize(program))
    with replacing(path) as temporary:
      temporary.write_bytes(hashlib.sha256(content).digest() + content)
  return program


def _setting(name):
  import jax

  return getattr(jax.config, name)


def _prepared(folder, max_bytes):
  """The folder of this processor's programs; None if the user has a cache or it cannot be written to."""
  if _setting('jax_compilation_cache_dir'):
    return None
  # CPU programs use the instructions of one processor, but JAX's keys do not name it: machines that share
  # a home folder must not share programs.
  folder = Path(folder or _user_folder(), _processor())
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
    _shrink(folder, max_bytes)
  except OSError:
    return None
  return folder


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
  files = sorted(file for room in _TRACED_ROOMS for file in (package / room).glob('*.py'))
  return hashlib.sha256(b'\0'.join(file.read_bytes() for file in files)).hexdigest()


@contextlib.contextmanager
def enabled() -> Iterator[None]:
  """`enable`, and at the end `clear` if a program could not be read; other warnings are left as they are.

  ``JAX_ENABLE_COMPILATION_CACHE=false`` in the environment turns all caching off.
  """
  folder = enable()
  damaged = False
  with warnings.catch_warnings():
    # JAX's warning of a damaged program is needed here even where the caller hides all of them.
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


def _user_folder():
  from platformdirs import user_cache_dir

  return Path(user_cache_dir('sadnet-jax'), 'jax')


def _shrink(folder, max_bytes):
  # JAX's own size limit needs another package and locks the folder at each use.
  entries = [(path, path.stat()) for path in folder.glob(f'*{_SUFFIX}')]
  entries.sort(key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime), reverse=True)
  kept_bytes = 0
  for path, status in entries:
    kept_bytes += status.st_size
    if kept_bytes > max_bytes:
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
