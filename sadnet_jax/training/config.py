"""Refuses a config that no run can work with, before anything is compiled."""

import math

import ml_collections

from sadnet_jax.training.state import model_from_config, optimizer_from_config
from sadnet_jax.training.step import LOSSES

CLEAN_SETS = ('clean', 'div2k')
PAIRED_SETS = ('sidd', 'renoir', 'polyu', 'pairs')


def training_sets(config: ml_collections.ConfigDict) -> dict[str, str]:
  """The data sets that ``config.data.train`` gives a folder for: name -> folder."""
  return {name: folder for name, folder in config.data.train.items() if folder}


def is_paired(config: ml_collections.ConfigDict) -> bool:
  """Whether a run trains on pairs, which are noisy already, rather than on clean images."""
  return bool(set(training_sets(config)) & set(PAIRED_SETS))


def check_config(config: ml_collections.ConfigDict, device_count: int) -> None:
  """Raises ValueError for the first field that cannot work.

  Args:
    config: As `configs/default.py`.
    device_count: Devices of all processes.
  """
  _check_ranges(config)
  _check_options(config)
  parts = device_count * config.accumulate
  if config.batch_size % parts:
    raise ValueError(
      f'config.batch_size: got {config.batch_size}, want a multiple of {parts} '
      f'({device_count} devices, accumulate {config.accumulate})'
    )
  if config.data.reader == 'tiles' and config.data.patch_px > config.data.tile_px:
    raise ValueError(
      f'config.data.patch_px: got {config.data.patch_px}, want at most the {config.data.tile_px} of a tile '
      '(data.tile_px)'
    )
  if config.data.reader == 'memory' and config.batch_size * config.steps >= 2**31:
    raise ValueError(
      f'config.steps: got {config.steps} steps of {config.batch_size} patches, want fewer than 2**31 patches '
      "in all with data.reader = 'memory'"
    )
  _check_training_sets(config)
  model_from_config(config.model)
  optimizer_from_config(config)


def _check_ranges(config):
  at_least = {
    'batch_size': 1,
    'accumulate': 1,
    'steps': 1,
    'log_every': 1,
    'checkpoint_every': 1,
    'keep_checkpoints': 1,
    'data.patch_px': 1,
    'data.tile_px': 1,
    'data.stride_px': 1,
    'data.crops_per_image': 1,
    'validation.every': 0,
    'validation.images': 0,
    'validation.pictures': 0,
    'noise.sigma_255': 0,
  }
  for name, least in at_least.items():
    value = _field(config, name)
    # So that NaN is refused, too.
    if not value >= least:
      raise ValueError(f'config.{name}: got {value}, want at least {least}')
  if not 0 <= config.seed < 2**31:
    raise ValueError(f'config.seed: got {config.seed}, want 0 to 2**31 - 1')
  if not 0 <= config.ema_decay < 1:
    raise ValueError(f'config.ema_decay: got {config.ema_decay}, want 0 (no average) to less than 1')
  if config.data.reader == 'tiles' and config.data.stride_px > config.data.tile_px:
    raise ValueError(
      f'config.data.stride_px: got {config.data.stride_px}, want at most the {config.data.tile_px} of a '
      'tile, or parts of the images are left out'
    )
  if not math.isfinite(config.noise.sigma_255):
    raise ValueError(f'config.noise.sigma_255: got {config.noise.sigma_255}, want a finite number')
  sigmas = config.noise.sigma_255_range
  numbers = all(isinstance(s, int | float) and math.isfinite(s) for s in sigmas)
  if len(sigmas) not in (0, 2) or not numbers or (sigmas and not 0 <= sigmas[0] <= sigmas[1] != 0):
    raise ValueError(
      f'config.noise.sigma_255_range: got {tuple(sigmas)}, want (lowest, highest) with 0 <= lowest <= '
      'highest and highest above 0, or () for sigma_255 alone'
    )


def _check_options(config):
  options: dict[str, list] = {
    'loss': sorted(LOSSES),
    'on_nonfinite': ['stop', 'skip'],
    'data.reader': ['files', 'tiles', 'memory'],
    'model.channels': [3, 1],
  }
  for name, values in options.items():
    if _field(config, name) not in values:
      raise ValueError(f'config.{name}: got {_field(config, name)!r}, want one of {values}')


def _check_training_sets(config):
  sets = training_sets(config)
  if not sets:
    raise ValueError(
      'config.data.train: got no folder for any data set, want at least one: '
      'for a folder of clean images, --config.data.train.clean=FOLDER; for one of pairs, '
      '--config=configs/pairs.py --config.data.train.pairs=FOLDER'
    )
  paired = sorted(set(sets) & set(PAIRED_SETS))
  if paired and set(sets) & set(CLEAN_SETS):
    raise ValueError(f'config.data.train: got {sorted(sets)}, want clean images or pairs, not both')
  noise = config.noise.sigma_255 > 0 or any(config.noise.sigma_255_range)
  if paired and noise:
    raise ValueError(
      f'config.noise: got sigma_255 = {config.noise.sigma_255:g} with pairs ({", ".join(paired)}), want '
      'sigma_255 = 0 and no range: they are noisy already'
    )
  if not paired and not noise:
    raise ValueError('config.noise.sigma_255: got 0 with clean images, want a positive number, or a range')
  if config.data.held_out and not paired:
    raise ValueError(
      f'config.data.held_out: got {tuple(config.data.held_out)} with clean images, want (): only pairs have '
      'scenes'
    )
  if 'div2k' in sets and config.data.reader != 'tiles':
    raise ValueError(f"config.data.reader: got {config.data.reader!r} with div2k, want 'tiles'")


def _field(config, name):
  for part in name.split('.'):
    config = config[part]
  return config
