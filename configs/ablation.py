"""What each part of the network contributes: table 1 of the paper.

  python train.py --config=configs/ablation.py:rsab --config.data.train.clean=FOLDER

The argument names a row of ROWS. All rows train on colour images at sigma 50 with the recipe and data of
color.py. Without RSAB, a ResBlock takes the place of each RSAB.

Paper, Kodak24: PAPER_PSNR. Ours, at half the width and 1,000 steps for all rows, from
benchmarks/ablation.py: docs/ablation.md. At the paper's scale: not measured.
"""

import ml_collections

from configs import color

# RSAB, offset transfer, context block.
ROWS = {
  'none': (False, False, False),
  'rsab': (True, False, False),
  'context': (False, False, True),
  'rsab_context': (True, False, True),
  'rsab_offset': (True, True, False),
  'full': (True, True, True),
}
# Table 1: dB, Kodak24, colour, sigma 50.
PAPER_PSNR = {
  'none': 29.05,
  'rsab': 29.55,
  'context': 29.12,
  'rsab_context': 29.60,
  'rsab_offset': 29.59,
  'full': 29.64,
}


def get_config(row: str = 'full') -> ml_collections.ConfigDict:
  """Returns the config of one row of ROWS."""
  config = color.get_config('50')
  set_row(config, row)
  return config


def set_row(config: ml_collections.ConfigDict, row: str) -> None:
  """Sets the network of a config to a row of ROWS."""
  if row not in ROWS:
    raise ValueError(f'the argument of configs/ablation.py is {row!r}, but must be one of {", ".join(ROWS)}')
  config.model.use_rsab, config.model.use_offset_transfer, config.model.use_context = ROWS[row]
