"""Image files whose every pixel encodes its image and position."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sadnet_jax.data.examples import Example

# Height and width: landscape, portrait, square; the smallest side is 9.
SIZES = ((12, 31), (20, 9), (9, 9), (33, 17), (10, 40))


def labelled_image(number: int) -> np.ndarray:
  """uint8 [H, W, 3]: ten times the image's number, row, column."""
  height, width = SIZES[number]
  y, x = np.mgrid[:height, :width]
  return np.stack([np.full_like(y, 10 * number), y, x], axis=-1).astype(np.uint8)


def write_examples(folder: Path, *, pairs: bool = False) -> list[Example]:
  """Writes all as PNG; the noisy version of a pixel is 255 less the clean one."""
  examples = []
  for number in range(len(SIZES)):
    clean, noisy = folder / f'{number}_clean.png', folder / f'{number}_noisy.png'
    Image.fromarray(labelled_image(number)).save(clean)
    Image.fromarray(255 - labelled_image(number)).save(noisy)
    examples.append(Example(str(number), f'scene {number}', (clean,), noisy if pairs else None))
  return examples


def place_of(patch: np.ndarray) -> tuple[int, int, int, int]:
  """Image, row, column and orientation (of 8) of a patch; fails if it is no crop of an image."""
  number, top, left = patch[0, 0, 0] // 10, patch[..., 1].min(), patch[..., 2].min()
  crop = labelled_image(number)[top : top + patch.shape[0], left : left + patch.shape[1]]
  rotations = [np.rot90(patch, k) for k in range(4)]
  matches = [np.array_equal(crop, o) for o in rotations + [np.fliplr(r) for r in rotations]]
  assert sum(matches) == 1
  return int(number), int(top), int(left), matches.index(True)


def images_of(patches: Sequence[np.ndarray]) -> list[int]:
  """The image each patch is of."""
  return [int(patch[0, 0, 0]) // 10 for patch in patches]
