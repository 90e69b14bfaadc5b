"""Everyday photographs: camera noise, clipped Gaussian noise and real pairs in one run.

  python train.py --config=configs/photo.py --config.data.train.clean=FOLDER --config.init_from=color
  python train.py --config=configs/photo.py:fast --config.data.train.clean=FOLDER

RENOIR's pairs are crops of ours that are not published (docs/data.md); for the real pairs of PolyU alone add
``--config.data.train.pairs= --config.data.held_out="('Canon5D2_fruit', 'Canon80D_ball', 'Nikon800_stair',
'SonyA7II_book', 'SonyA7II_door')"``.

30% of the patches are real pairs. Of the rest, 50% get camera noise (see sadnet_jax/data/camera_noise.py),
42% clipped Gaussian noise (some with grain) and 8% none. Real pairs (docs/data.md lists their folders) are
PolyU's original scenes without those that its held-out crops show, and RENOIR's pairs of one phone without
six. ``fast`` is a network of half the width and half the deformable groups (a quarter of the parameters) that
also learns from the output of the published weights ``photo``.

Ours: 8,000 of these steps from the first ``color``, then 5,300 with 65% real pairs (see
sadnet_jax/weights/pretrained/photo.md): PolyU's held-out crops 38.77 dB, Nam 43.00 dB, CBSD68 at sigma 25,
clipped8, 30.83 dB. ``fast``, 8,000 of these steps with patches of 80 pixels and eight groups, then 18,500
with 50% real pairs (photo_fast.md beside it): 38.56, 42.60 and 30.31 dB.
"""

import ml_collections

from configs import blind

# The scenes of POLYU_HELD_OUT as the files of ``OriginalImages`` name them (instead of Canon600D_book, which
# it does not have, one that shows the same things), and every fourth pair of RENOIR's Mi3.
HELD_OUT = (
  'Canon5D2_fruit',
  'Canon80D_ball',
  'Nikon800_stair',
  'SonyA7II_book',
  'SonyA7II_door',
  *(f'noisy/{number}' for number in ('08', '13', '19', '24', '32', '38')),
)


def get_config(size: str = 'full') -> ml_collections.ConfigDict:
  """Returns the recipe for the network of 'full' width, or the 'fast' one of half the width."""
  if size not in ('full', 'fast'):
    raise ValueError(f"the argument of configs/photo.py is {size!r}, but must be 'full' or 'fast'")
  config = blind.get_config('color')
  config.data.train.clean = 'train/DIV2K_train_HR'
  config.data.train.polyu = 'real/PolyU/OriginalImages'
  config.data.train.pairs = 'real/RENOIR_Mi3'
  config.data.pairs_share = 0.3
  config.data.held_out = HELD_OUT
  config.steps = 8_000
  config.noise.clip = 1.0
  config.noise.camera = 'photo'
  config.noise.camera_share = 0.5
  config.noise.grain_share = 0.3
  config.noise.clean_share = 0.08
  config.validation.clean = ('test/CBSD68', 'test/Kodak24')
  # Not more often, because the scenes have several megapixels.
  config.validation.every = 2_000
  if size == 'fast':
    config.model.width = config.model.offset_width = 16
    config.model.deformable_groups = 4
    config.teacher, config.teacher_share = 'photo', 0.5
    # It starts from random weights; the full network is fine-tuned.
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = 0.2
    # With 1 and a learning rate of 2.5e-3, the offsets of scales 3 and 4 grew to hundreds of pixels.
    config.optimizer.offset_rate = 0.1
  return config
