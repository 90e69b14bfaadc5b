"""The network of the first version of the paper (arXiv v1), for any experiment of the second.

  python train.py --config=configs/v1.py:color-50 --config.data.train.clean=FOLDER
  python train.py --config=configs/v1.py:sidd

The argument is ``color-NOISE`` or ``gray-NOISE`` with NOISE as in color.py, ``sidd``, ``nam`` or
``nam-held_out`` (the last two start from ``runs/v1-sidd``). Data and command are those of the respective
file.
Differences: the deformable convolution comes last in every RSAB, the dilations of the context block are
1, 2, 4, 8, the last layer is 1x1, and the learning rate is halved every 200,000 steps (``nam``: as in
nam.py).

Paper v1, PSNR in dB: colour, CBSD68 / Kodak24: sigma 30: 30.64 / 31.86, sigma 50:
28.30 / 29.62, sigma 70: 26.91 / 28.25; grey, BSD68 / Kodak24: 28.61 / 29.99,
26.49 / 27.93, 25.22 / 26.68; DND 39.37, SIDD validation 39.36, Nam 43.02. Ours: not measured.
"""

import ml_collections

from configs import color, gray, nam, sidd

_EXPERIMENTS = {'color': color, 'gray': gray, 'nam': nam, 'sidd': sidd}


def get_config(experiment: str = 'color-50') -> ml_collections.ConfigDict:
  """Returns an experiment of the ECCV 2020 paper with the network and schedule of arXiv v1."""
  name, _, argument = experiment.partition('-')
  if name not in _EXPERIMENTS or (argument and name == 'sidd'):
    raise ValueError(
      f"the argument of configs/v1.py is {experiment!r}, but must be 'color-50', 'gray-50' (or another "
      "noise), 'sidd', 'nam' or 'nam-held_out'"
    )
  get = _EXPERIMENTS[name].get_config
  config = get(argument) if argument else get()
  config.model.rsab_order = 'deform_last'
  config.model.dilations = (1, 2, 4, 8)
  config.model.last_kernel = 1
  if name == 'nam':
    config.init_from = 'runs/v1-sidd'
  else:
    config.optimizer.halve_every = 200_000
  return config
