"""What happens to an image before and after the denoiser, by published protocol.

==========  ========================  ===================  ===========================
name        noisy image               both images          output, before measurement
==========  ========================  ===================  ===========================
unclipped   noise added, as floats    whole                clipped, rounded to 8 bits
clipped8    noise added, clipped and  whole                clipped, rounded to 8 bits
            rounded to 8 bits
authors     as clipped8               cropped to           clipped
                                      multiples of 8
rounded     real noise                whole                clipped, rounded to 8 bits
float       real noise                whole                clipped
==========  ========================  ===================  ===========================

DnCNN, FFDNet, DRUNet, SwinIR and Restormer use `unclipped`. RNAN, RIDNet and the published test of
SADNet, whose noisy images are files, use `clipped8`. `authors` is what the test script of SADNet's authors
measures. SIDD's validation blocks are measured as in `float`. The crop keeps the top left corner.
The noisy image is measured exactly as the denoiser receives it.
"""

import dataclasses

import numpy as np

from sadnet_jax.data.noise import add_benchmark_noise, round_to_8_bits


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One row of the table above.

  Attributes:
    name: Labels results.
    text: The row in words.
    clips_noisy: Whether the noisy image is clipped and rounded to 8 bits after noise is added.
    multiple: Sides are cropped to a multiple of this; 1 does not crop.
    rounds: Whether the output is rounded to 8 bits.
  """

  name: str
  text: str
  clips_noisy: bool = False
  multiple: int = 1
  rounds: bool = True

  def prepare(
    self, noisy: np.ndarray | None, clean: np.ndarray, sigma_255: float | None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pair of images to evaluate.

    Args:
      noisy: uint8 [H, W, C] with real noise, or None to add noise to ``clean``.
      clean: uint8 [H, W, C].
      sigma_255: Standard deviation of the noise to add, on the scale of 8-bit images; unused if
        ``noisy`` is given.

    Returns:
      Noisy and clean, float32 [H', W', C]; clean in [0, 1].

    Raises:
      ValueError: Neither ``noisy`` nor ``sigma_255`` is given, or the crop leaves nothing of the image.
    """
    clean = clean.astype(np.float32) / 255
    if noisy is None:
      if sigma_255 is None:
        raise ValueError('there is neither a noisy image nor a sigma_255 for the noise to add; give one')
      prepared = add_benchmark_noise(clean, sigma_255)
      prepared = round_to_8_bits(prepared).astype(np.float32) if self.clips_noisy else prepared
    else:
      prepared = noisy.astype(np.float32) / 255
    height, width = (side // self.multiple * self.multiple for side in clean.shape[:2])
    if not height or not width:
      raise ValueError(
        f'protocol {self.name} crops sides to multiples of {self.multiple} and needs at least '
        f'{self.multiple} pixels, not an image of {clean.shape[1]}x{clean.shape[0]}'
      )
    return prepared[:height, :width], clean[:height, :width]

  def finish(self, denoised: np.ndarray) -> np.ndarray:
    """Returns the output as it is measured: clipped, and rounded if the protocol rounds."""
    return round_to_8_bits(denoised) if self.rounds else np.clip(denoised, 0, 1)


UNCLIPPED = Protocol('unclipped', 'noise not clipped, output rounded to 8 bits')
CLIPPED8 = Protocol('clipped8', 'noisy clipped and rounded to 8 bits, output rounded', clips_noisy=True)
AUTHORS = Protocol(
  'authors',
  'added noise clipped and rounded to 8 bits, sides cropped to multiples of 8, output not rounded',
  clips_noisy=True,
  multiple=8,
  rounds=False,
)
ROUNDED = Protocol('rounded', 'real noise, output rounded to 8 bits')
FLOAT = Protocol('float', 'real noise, output not rounded', rounds=False)
# Choices for clean images. The other two are for real noise; each set of real noise has its own.
PROTOCOLS = {p.name: p for p in (UNCLIPPED, CLIPPED8, AUTHORS)}


def protocol_for_training(clip: float) -> Protocol:
  """Returns the protocol whose noise is closest to the training noise.

  Args:
    clip: Probability that the noise of a training patch was clipped: ``config.noise.clip``.

  Returns:
    `CLIPPED8` if more than half of the patches were clipped, else `UNCLIPPED`.
  """
  return CLIPPED8 if clip > 0.5 else UNCLIPPED
