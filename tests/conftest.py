"""Tests run on the CPU, split into eight virtual devices, whatever the machine has."""

import os
from pathlib import Path
import tempfile

import jax
import pytest

# Many tests compile the same programs, some in processes of their own: compile each once.
_CACHE = tempfile.TemporaryDirectory(prefix='sadnet-jax-tests-')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
jax.config.update('jax_compilation_cache_dir', _CACHE.name)
# Before anything asks for a device: afterwards both settings are fixed.
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture(scope='session')
def golden() -> Path:
  """Directory of the reference results; see the README there."""
  return Path(__file__).parent / 'golden'
