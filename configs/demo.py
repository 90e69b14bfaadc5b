"""A small SADNet that learns in minutes on a CPU, for `make demo`.

  python examples/demo.py

Half the paper's width, with the recipe of color_fast.py for 250 steps. Data: photographs that come with
scikit-image; examples/demo.py copies them. Result: docs/train.md.
"""

import ml_collections

from configs import color_fast


def get_config() -> ml_collections.ConfigDict:
  """Returns the config: width 16 instead of 32, sigma 50, 250 steps."""
  config = color_fast.get_config('50')
  config.model.width = 16
  config.model.offset_width = 16
  config.data.train.clean = 'demo_output/train'
  config.steps = 250
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 25
  config.log_every = 25
  config.checkpoint_every = 125
  config.validation.every = 0
  return config
