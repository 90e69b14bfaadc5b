"""Tests run on the CPU, split into eight virtual devices, whatever the machine has."""

from pathlib import Path

import jax
import pytest

# Before anything asks for a device: afterwards both settings are fixed.
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture(scope='session')
def golden() -> Path:
  """Directory of the reference results; see the README there."""
  return Path(__file__).parent / 'golden'
