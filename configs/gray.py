"""Grey images, additive white Gaussian noise: table 2 of the paper.

  python train.py --config=configs/gray.py:50 --config.data.train_dir=FOLDER

The argument is sigma_255: 30, 50 or 70, one model each (any positive number
works). Data: a folder of clean images (colour is converted); the paper's is
DIV2K_train_HR.

Paper, BSD68 / Kodak24 (full images), PSNR in dB: sigma 30: 28.61 / 30.00,
sigma 50: 26.51 / 27.96, sigma 70: 25.24 / 26.72. Ours: not measured.
"""

import ml_collections

from configs import default


def get_config(sigma_255: str = '50') -> ml_collections.ConfigDict:
  """The paper's recipe for grey images at one noise level."""
  config = default.get_config()
  config.model.channels = 1
  config.noise.sigma_255 = float(sigma_255)
  return config
