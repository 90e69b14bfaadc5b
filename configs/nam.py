"""Real noise in JPEG images: fine-tunes a network trained on SIDD and RENOIR on PolyU; table 6.

  python train.py --config=configs/nam.py --config.init_from=runs/sidd
  python train.py --config=configs/nam.py:held_out --config.init_from=runs/sidd

Data: PolyU as downloaded (its folder ``CroppedImages``), in ``real/PolyU`` under SADNET_DATA or in
``--config.data.train.polyu=FOLDER``. With ``held_out``, one scene of each camera is held out from training,
to validate on and to evaluate on (``--datasets=polyu_held_out``). ``init_from`` is the folder of a run or of
one of its checkpoints; ``--config.init_from=''`` starts from random weights.

The paper gives neither learning rate nor length of the fine-tuning; those here are ours.
Paper, Nam (the 25 patches of CBDNet), PSNR in dB / SSIM: 42.92 / 0.9839. Ours, held_out, from weights for
Gaussian noise instead of SIDD's, after 1,000 steps of another recipe: 42.88 dB, and 43.23 dB averaged with
the weights it started from (color_real, last published in commit 6ea805f). With this recipe: not measured.
"""

import ml_collections

from configs import sidd
from sadnet_jax.data.test_sets import POLYU_HELD_OUT


def get_config(scenes: str = 'all') -> ml_collections.ConfigDict:
  """Returns the config to fine-tune on 'all' scenes of PolyU, or without the 'held_out' ones."""
  if scenes not in ('all', 'held_out'):
    raise ValueError(f"the argument of configs/nam.py is {scenes!r}, but must be 'all' or 'held_out'")
  config = sidd.get_config()
  config.init_from = 'runs/sidd'
  config.data.train.sidd = config.data.train.renoir = ''
  config.data.train.polyu = 'real/PolyU'
  config.data.held_out = POLYU_HELD_OUT if scenes == 'held_out' else ()
  config.steps = 60_000
  config.optimizer.halve_every = 20_000
  config.validation.pairs = ('test/Nam',)
  config.validation.every = 1_000
  config.checkpoint_every = 1_000
  return config
