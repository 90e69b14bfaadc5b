"""Colour images, additive white Gaussian noise: tables 1 and 3 of the paper.

  python train.py --config=configs/color.py:50 --config.data.train_dir=FOLDER

The argument is sigma_255: 30, 50 or 70, one model each (any positive number
works). Data: a folder of clean images; the paper's is DIV2K_train_HR.

Paper, CBSD68 / Kodak24 (full images), PSNR in dB: sigma 30: 30.64 / 31.86,
sigma 50: 28.32 / 29.64, sigma 70: 26.93 / 28.28. Ours: not measured.
"""

import ml_collections

from configs import default


def get_config(sigma_255: str = '50') -> ml_collections.ConfigDict:
  """The paper's recipe for colour images at one noise level."""
  config = default.get_config()
  config.model.channels = 3
  config.noise.sigma_255 = float(sigma_255)
  return config
