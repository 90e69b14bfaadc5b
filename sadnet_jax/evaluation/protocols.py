"""What happens to an image before and after the denoiser, by published protocol.

==========  ======================  ==============  =============================
name        noisy image             both images     output, before it is measured
==========  ======================  ==============  =============================
unclipped   noise added, as floats  whole           clipped, rounded to 8 bits
clipped8    the same, clipped and   whole           clipped, rounded to 8 bits
            rounded to 8 bits
authors     as clipped8             cropped to      clipped
                                    multiples of 8
rounded     real noise              whole           clipped, rounded to 8 bits
float       real noise              whole           clipped
==========  ======================  ==============  =============================

`unclipped` is that of DnCNN, FFDNet, DRUNet, SwinIR and Restormer; `clipped8` that of RNAN,
RIDNet and SADNet's published test, whose noisy images are files; `authors` is what the
test script of SADNet's authors measures. `float` is how SIDD's validation blocks are measured.
The crop keeps the top left corner. The noisy image is measured as the denoiser gets it.
"""

import dataclasses

import numpy as np

from sadnet_jax.data.noise import add_benchmark_noise
from sadnet_jax.evaluation.metrics import round_to_8_bits


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One row of the table above.

  Attributes:
    name: Labels results.
    text: The row in words.
    clips_noisy: The noise added is clipped and rounded to 8 bits.
    multiple: What the sides are cropped to a multiple of; 1 does not crop.
    rounds: The output is rounded to 8 bits.
  """

  name: str
  text: str
  clips_noisy: bool = False
  multiple: int = 1
  rounds: bool = True

  def prepare(
    self, noisy: np.ndarray | None, clean: np.ndarray, sigma_255: float | None
  ) -> tuple[np.ndarray, np.ndarray]:
    """The pair of images that is evaluated.

    Args:
      noisy: uint8 [H, W, C] of real noise, or None to add noise.
      clean: uint8 [H, W, C].
      sigma_255: Standard deviation of the noise to add on the scale of 8-bit images;
        unused where ``noisy`` is given.

    Returns:
      Noisy and clean, float32 [H', W', C]; clean in [0, 1].

    Raises:
      ValueError: Neither noisy image nor sigma; or nothing is left of an image that is cropped.
    """
    clean = clean.astype(np.float32) / 255
    if noisy is None:
      if sigma_255 is None:
        raise ValueError('sigma_255: got None and no noisy image, want one of the two')
      prepared = add_benchmark_noise(clean, sigma_255)
      prepared = round_to_8_bits(prepared).astype(np.float32) if self.clips_noisy else prepared
    else:
      prepared = noisy.astype(np.float32) / 255
    height, width = (side // self.multiple * self.multiple for side in clean.shape[:2])
    if not height or not width:
      raise ValueError(
        f'protocol {self.name}: got an image of {clean.shape[1]}x{clean.shape[0]} pixels, want sides of at '
        f'least {self.multiple}, since they are cropped to multiples of it'
      )
    return prepared[:height, :width], clean[:height, :width]

  def finish(self, denoised: np.ndarray) -> np.ndarray:
    """What is measured of the denoiser's output: clipped, and rounded where the protocol does."""
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
# To choose from; the other two are for sets of real noise, each of which has its own.
PROTOCOLS = {p.name: p for p in (UNCLIPPED, CLIPPED8, AUTHORS)}


def of_training(clip: float) -> Protocol:
  """The protocol like most of a training's noisy images: `clipped8` where more than half are clipped."""
  return CLIPPED8 if clip > 0.5 else UNCLIPPED
