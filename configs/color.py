"""Colour images, additive white Gaussian noise: tables 1 and 3 of the paper.

  python train.py --config=configs/color.py:50 --config.data.train.clean=FOLDER

The argument is sigma_255: 30, 50 or 70, one model each (any positive number works), or ``blind`` for one
model for all levels from 0 to 75. Data: a folder of clean images; the paper uses DIV2K_train_HR. With images
of that size, ``--config.data.reader=tiles`` (cuts them into tiles first, as the authors do) or ``memory``
avoids decoding a whole image for every patch.

Paper, CBSD68 / Kodak24 (full images), PSNR in dB: sigma 30: 30.64 / 31.86,
sigma 50: 28.32 / 29.64, sigma 70: 26.93 / 28.28. Ours: not measured.
"""

import ml_collections

from configs import default

BLIND_SIGMA_255_RANGE = (0.0, 75.0)


def get_config(noise: str = '50') -> ml_collections.ConfigDict:
  """Returns the paper's recipe for colour images at one noise level, or 'blind'."""
  config = default.get_config()
  config.model.channels = 3
  config.data.train.clean = 'train/DIV2K_train_HR'
  set_noise(config, noise)
  return config


def set_noise(config: ml_collections.ConfigDict, noise: str) -> None:
  """Sets the noise level of training from a config's argument: sigma_255, or 'blind'."""
  if noise == 'blind':
    config.noise.sigma_255_range = BLIND_SIGMA_255_RANGE
  else:
    config.noise.sigma_255 = default.number(noise, "sigma_255 or 'blind'")
