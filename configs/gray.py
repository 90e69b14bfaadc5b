"""Grey images, additive white Gaussian noise: table 2 of the paper.

  python train.py --config=configs/gray.py:50 --config.data.train.clean=FOLDER

Argument and data are those of color.py; colour images are converted to grey.

Paper, BSD68 / Kodak24 (full images), PSNR in dB: sigma 30: 28.61 / 30.00,
sigma 50: 26.51 / 27.96, sigma 70: 25.24 / 26.72. Ours: not measured.
"""

import ml_collections

from configs import color


def get_config(noise: str = '50') -> ml_collections.ConfigDict:
  """Returns the paper's recipe for grey images at one noise level, or 'blind'."""
  config = color.get_config(noise)
  config.model.channels = 1
  config.validation.clean = ('test/BSD68', 'test/Kodak24')
  return config
