"""Folders of training runs: what they logged, and a checkpoint."""

import json

import numpy as np
import optax

from configs import color
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.training.state import TrainState
from sadnet_jax.weights import checkpoints
from tests.support.small_networks import SMALL


def small_config(noise='25', **changes):
  """The config of a small colour network, as a dict."""
  config = color.get_config(noise)
  config.model.update(SMALL)
  return {**config.to_dict(), **changes}


def losses(steps, every=10, start=0.5):
  """Lines with a loss that falls, and is another at every step."""
  return [
    {
      'step': step,
      'loss': start / step + 0.01 * (step % 7),
      'learning_rate': 1e-3 / step,
      'offset/scale1': 1.0,
    }
    for step in range(every, steps + 1, every)
  ]


def write_log(folder, lines, end=''):
  folder.mkdir(exist_ok=True)
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines) + end)
  return folder


def save_checkpoint(folder, params, config, step):
  """Saves weights as those of a step of a run."""
  folder.mkdir(exist_ok=True)
  state = TrainState.create(
    apply_fn=SADNet(**SMALL).apply, params=params, tx=optax.scale_by_adam(), ema=None, skipped=np.int32(0)
  )
  with checkpoints.open_for_training(folder, keep=3) as manager:
    checkpoints.save(manager, state.replace(step=step), config, 'images')
