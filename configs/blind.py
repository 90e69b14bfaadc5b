"""Blind Gaussian denoising for both protocols, in colour or grey.

  python train.py --config=configs/blind.py --config.data.train.clean=FOLDER --config.init_from=color
  python train.py --config=configs/blind.py:gray --config.data.train.clean=FOLDER --config.init_from=color

The argument is ``color`` or ``gray``. Each patch draws its own sigma from 0 to 75, and half of the patches
are clipped and rounded to 8 bits, so that one network serves the protocols unclipped and clipped8. For
``gray``, some patches get correlated grain or camera noise converted to grey, because its weights serve all
grey pictures. The learning rates are meant for fine-tuning; from random weights, higher ones train faster.

Ours: ``color``, from weights for unclipped noise, 6,500 and then 13,500 of these steps on BSD432 and CID22
(see sadnet_jax/weights/pretrained/color.md): CBSD68 at sigma 25 and 50 unclipped 31.28 and 28.08 dB, clipped8
31.10 and 28.01 dB. ``gray``, from what the 6,500 gave, 6,000 of these steps on the same images: BSD68 at
sigma 15, 25 and 50 unclipped 31.35, 28.99 and 26.07 dB, clipped8 31.33, 28.99 and 26.03 dB.
"""

import ml_collections

from configs import color_fast


def get_config(channels: str = 'color') -> ml_collections.ConfigDict:
  """Returns the recipe for 'color' or 'gray' images."""
  if channels not in ('color', 'gray'):
    raise ValueError(f"the argument of configs/blind.py is {channels!r}, but must be 'color' or 'gray'")
  config = color_fast.get_config('blind')
  config.data.reader = 'memory'
  config.data.patch_px = 128
  config.batch_size = 4
  config.steps = 20_000 if channels == 'color' else 6_000
  config.noise.clip = 0.5
  config.optimizer.learning_rate = 6e-4
  config.optimizer.clip_norm = 0.1
  config.ema_decay = 0.998
  config.checkpoint_every = 250
  config.validation.every = 1_000
  config.validation.clean = ('test/CBSD68',)
  if channels == 'gray':
    config.model.channels = 1
    # At 6e-4, training from weights for colour diverged: the offsets grew beyond the patch.
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 300
    config.noise.grain_share = 0.15
    config.noise.camera = 'photo'
    config.noise.camera_share = 0.2
    config.validation.clean = ('test/BSD68',)
  return config
