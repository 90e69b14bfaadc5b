"""What each part of the network gives: table 1 of the paper.

  python train.py --config=configs/ablation.py:rsab --config.data.train.clean=FOLDER

The argument is the row: colour, sigma 50, the recipe and data of color.py. A ResBlock
stands in for every RSAB that is left out.

================  =====================================  ==================  ============
argument          parts                                  paper, Kodak24, dB  ours
================  =====================================  ==================  ============
none              neither                                29.05               not measured
rsab              RSAB                                   29.55               not measured
context           context block                          29.12               not measured
rsab_context      RSAB, context block                    29.60               not measured
rsab_offset       RSAB, offset transfer                  29.59               not measured
full              RSAB, offset transfer, context block   29.64               not measured
================  =====================================  ==================  ============
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


def get_config(row: str = 'full') -> ml_collections.ConfigDict:
  """One row of the table, named as in ROWS."""
  if row not in ROWS:
    raise ValueError(f'configs/ablation.py: got argument {row!r}, want one of {", ".join(ROWS)}')
  config = color.get_config('50')
  config.model.use_rsab, config.model.use_offset_transfer, config.model.use_context = ROWS[row]
  return config
