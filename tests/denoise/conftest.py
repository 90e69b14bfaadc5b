"""What tests of the command share."""

import numpy as np
import pytest

from sadnet_jax.denoise.compiled_network import CompiledNetwork
from sadnet_jax.denoise.denoiser import Denoiser


@pytest.fixture
def stand_in_network():
  """Replaces the network by a function of the pixels, which saves compiling it. `undo` brings it back."""

  def denoise(self, noisy, **_):
    # Differs between the networks for colour and for grey.
    return np.float32(0.8) * noisy + np.float32(0.05 * self.model.channels)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(CompiledNetwork, '__call__', denoise)
    yield patch


@pytest.fixture
def denoiser(weights):
  """The denoiser of the tiny weights that the commands are given."""
  return Denoiser.from_checkpoint(weights)
