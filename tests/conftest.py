"""Tests run on the CPU, split into eight virtual devices, whatever the machine has."""

import gc
import os
from pathlib import Path
import signal
import tempfile

import jax
import pytest

# Many tests compile the same programs, some in processes of their own: compile each once. Each
# worker that tests run in has its own cache, because JAX's cache does not support concurrent writers.
_CACHE = tempfile.TemporaryDirectory(prefix='sadnet-jax-tests-')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
jax.config.update('jax_compilation_cache_dir', _CACHE.name)
# Before anything asks for a device: afterwards both settings are fixed.
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)

# Tests started in the background inherit an ignored SIGINT; restore it, also for the processes they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


# What takes minutes starts first, so that no process is left alone with it at the end.
_LONG = ('test_interruptions.py', 'test_loop.py', 'test_distributed.py', 'test_plot_sampling.py')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope='session')
def golden() -> Path:
  """Directory of the reference results; see the README there."""
  return Path(__file__).parent / 'golden'


@pytest.fixture(autouse=True)
def clear_caches_when_many_programs():
  """Clears compiled programs before the process reaches Linux's limit of 65,530 memory mappings."""
  yield
  maps = Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > 30_000:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='session')
def weights(tmp_path_factory) -> Path:
  """A file of weights of a tiny network."""
  # Not before: most tests need none, and this imports the network.
  from tests.support.denoise_command import write_weights

  return write_weights(tmp_path_factory.mktemp('weights') / 'tiny.safetensors')


@pytest.fixture(scope='module')
def quick_to_compile():
  """Compiles without optimisations, for tests whose time is mostly that."""
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture
def no_home(monkeypatch):
  """Nobody knows the user's home folder, as in some containers."""
  for name in ('XDG_CACHE_HOME', 'HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr('pwd.getpwuid', lambda number: {}[number])


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
  """The working folder, empty."""
  monkeypatch.chdir(tmp_path)
  return tmp_path
