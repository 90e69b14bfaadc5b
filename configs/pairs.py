"""Real noise, from any folder of noisy and clean images: the recipe of sidd.py.

  python train.py --config=configs/pairs.py --config.data.train.pairs=FOLDER

Data: pairs, told by the names of their files or folders as docs/data.md says; without a folder given,
``train/pairs`` under SADNET_DATA. Pairs of many megapixels are better cut into tiles first
(``--config.data.reader=tiles``). To begin from published weights: ``--config.init_from=color_real`` for
JPEG images of cameras, color_blind for others, with a lower rate and fewer steps.

  python evaluate.py --config=configs/pairs.py --checkpoint=runs/pairs --datasets=pairs:FOLDER

Not an experiment of the paper. Ours: not measured.
"""

import ml_collections

from configs import sidd


def get_config() -> ml_collections.ConfigDict:
  """The recipe for real noise on pairs of one's own."""
  config = sidd.get_config()
  config.data.train.sidd = config.data.train.renoir = ''
  config.data.train.pairs = 'train/pairs'
  config.data.reader = 'files'
  return config
