"""What each part of the network gives: table 1 of the paper.

  python train.py --config=configs/ablation.py:rsab --config.data.train.clean=FOLDER

The argument is a row of ROWS: colour, sigma 50, the recipe and data of color.py. A ResBlock
stands in for every RSAB that is left out.

Paper, Kodak24: PAPER_PSNR. Ours, all rows trained alike at half the width for 1,000 steps by
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
  """One row of the table, named as in ROWS."""
  config = color.get_config('50')
  set_row(config, row)
  return config


def set_row(config: ml_collections.ConfigDict, row: str) -> None:
  """Takes the network of a config to a row of the table."""
  if row not in ROWS:
    raise ValueError(f'configs/ablation.py: got argument {row!r}, want one of {", ".join(ROWS)}')
  config.model.use_rsab, config.model.use_offset_transfer, config.model.use_context = ROWS[row]
