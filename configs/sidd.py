"""Real noise of smartphones and cameras: tables 4 and 5 of the paper.

  python train.py --config=configs/sidd.py

Data: SIDD Medium (sRGB) and RENOIR as downloaded, in ``real/SIDD_Medium_Srgb`` and ``real/RENOIR`` under
SADNET_DATA, or in ``--config.data.train.sidd=FOLDER --config.data.train.renoir=FOLDER`` (an empty value skips
the set). The first run cuts them into tiles of 300x300, which takes a while and about four times the space of
the images; ``python -m sadnet_jax.data sidd --folder=FOLDER`` does it beforehand. Validation uses SIDD's
validation files in ``test/SIDD`` and the patches in ``test/Nam`` under SADNET_DATA, if they exist.

  python evaluate.py --config=configs/sidd.py --checkpoint=runs/sidd --datasets=sidd_val,dnd

Paper, PSNR in dB / SSIM: DND 39.59 / 0.9523, SIDD validation 39.46. Ours: not measured.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """Returns the paper's recipe for real noise: L1 loss, pairs instead of synthetic noise."""
  config = default.get_config()
  config.loss = 'l1'
  config.noise.sigma_255 = 0.0
  config.data.train.sidd = 'real/SIDD_Medium_Srgb'
  config.data.train.renoir = 'real/RENOIR'
  config.data.reader = 'tiles'
  # The first existing one decides which checkpoint is best; test/SIDD has SIDD's validation .mat files.
  config.validation.pairs = ('test/SIDD', 'test/Nam')
  return config
