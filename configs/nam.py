"""Real noise in JPEG images: a network trained on SIDD and RENOIR, fine-tuned on PolyU; table 6.

  python train.py --config=configs/nam.py --config.init_from=runs/sidd
  python train.py --config=configs/nam.py:held_out --config.init_from=runs/sidd

Data: PolyU as downloaded (its folder ``CroppedImages``), in ``real/PolyU`` under
SADNET_DATA, or ``--config.data.train.polyu=FOLDER``. With ``held_out`` one scene of
every camera is kept from training, to validate on, and to evaluate on
(``--datasets=polyu_held_out``). The weights to start from are a
run's folder or one of its checkpoints; ``--config.init_from=''`` starts from none.

The paper gives neither rate nor length of the fine-tuning: those here are ours.
Paper, Nam (the 25 patches of CBDNet), PSNR in dB / SSIM: 42.92 / 0.9839. Ours, from weights of Gaussian
noise instead of SIDD's, held_out, by 1,000 steps of another recipe: 42.88, and averaged with the weights that
it began from 43.23, as sadnet_jax/weights/pretrained/color_real.md says. By this recipe: not measured.
"""

import ml_collections

from configs import sidd
from sadnet_jax.data.test_sets import POLYU_HELD_OUT


def get_config(scenes: str = 'all') -> ml_collections.ConfigDict:
  """Fine-tuning on 'all' scenes of PolyU, or without those 'held_out'."""
  if scenes not in ('all', 'held_out'):
    raise ValueError(f"configs/nam.py: got argument {scenes!r}, want 'all' or 'held_out'")
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
