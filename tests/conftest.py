"""Tests run on the CPU, split into eight virtual devices, whatever the machine has."""

import gc
import os
from pathlib import Path
import signal
import tempfile

import jax
import pytest

# Many tests compile the same programs, some in processes of their own: compile each once. Each
# worker that tests run in has its own cache: JAX's is not made to be written to by several at once.
_CACHE = tempfile.TemporaryDirectory(prefix='sadnet-jax-tests-')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
jax.config.update('jax_compilation_cache_dir', _CACHE.name)
# Before anything asks for a device: afterwards both settings are fixed.
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)

# A shell that starts the tests in the background has them ignore it, and with them all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


# What takes minutes starts first, so that no process is left alone with it at the end.
_LONG = ('test_interruptions.py', 'test_training.py', 'test_distributed.py', 'test_sampling_plot.py')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope='session')
def golden() -> Path:
  """Directory of the reference results; see the README there."""
  return Path(__file__).parent / 'golden'


@pytest.fixture(autouse=True)
def few_programs():
  """Lets compiled programs go before they take more mappings than Linux gives a process (65,530)."""
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


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
  """The working folder, empty."""
  monkeypatch.chdir(tmp_path)
  return tmp_path
