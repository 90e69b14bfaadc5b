"""Real noise from any folder of noisy and clean pairs, with the recipe of sidd.py.

  python train.py --config=configs/pairs.py --config.data.train.pairs=FOLDER

Data: pairs, recognised by the names of their files or folders (docs/data.md); by default in ``train/pairs``
under SADNET_DATA. Cut images of many megapixels into tiles with ``--config.data.reader=tiles``. To fine-tune
published weights, add ``--config.init_from=photo`` for pictures of cameras or ``color`` for others;
docs/train.md shows a whole command.

  python evaluate.py --config=configs/pairs.py --checkpoint=runs/pairs --datasets=pairs:FOLDER

Not an experiment of the paper. Ours: not measured.
"""

import ml_collections

from configs import sidd


def get_config() -> ml_collections.ConfigDict:
  """Returns the recipe for real noise, on your own pairs."""
  config = sidd.get_config()
  config.data.train.sidd = config.data.train.renoir = ''
  config.data.train.pairs = 'train/pairs'
  config.data.reader = 'files'
  return config
