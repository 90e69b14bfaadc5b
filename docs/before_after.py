"""Makes docs/images/before_after.jpg, the picture at the top of the README.

  python docs/before_after.py PATH/TO/PolyU/CroppedImages

A crop of a noisy photograph of PolyU's data set (Canon EOS 80D, ISO 3200) and the same crop denoised with
the published weights ``photo``, side by side and magnified twice. The scene, Canon80D_ball, was held out
of the training of these weights. PolyU's licence, beside the picture, has to stay with it.
"""

from pathlib import Path
import sys

import numpy as np
from PIL import Image

from sadnet_jax import Denoiser

PHOTOGRAPH = 'Canon80D_8_8_3200_ball_1_real.JPG'
# (left, top, right, bottom) in pixels of the photograph.
BOX = (130, 168, 306, 308)
MAGNIFICATION = 2
GAP_PX = 8
OUTPUT = Path(__file__).parent / 'images' / 'before_after.jpg'


def main(folder: str) -> None:
  """Denoises the whole photograph and saves the two crops."""
  noisy = Image.open(Path(folder, PHOTOGRAPH)).convert('RGB')
  denoised = Image.fromarray(Denoiser.from_pretrained('photo')(np.asarray(noisy)))
  size = (MAGNIFICATION * (BOX[2] - BOX[0]), MAGNIFICATION * (BOX[3] - BOX[1]))
  both = Image.new('RGB', (2 * size[0] + GAP_PX, size[1]), 'white')
  for i, picture in enumerate((noisy, denoised)):
    crop = picture.resize(size, Image.Resampling.BICUBIC, box=BOX)
    both.paste(crop, (i * (size[0] + GAP_PX), 0))
  both.save(OUTPUT, quality=92, subsampling=0)


if __name__ == '__main__':
  main(sys.argv[1])
