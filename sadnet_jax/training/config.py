"""Reads fields of a config, and rejects configs that cannot work, before anything is compiled."""

import math

import ml_collections

from sadnet_jax.data.training_noise import TrainingNoise, make_add_noise
from sadnet_jax.training.state import model_from_config, optimizer_from_config
from sadnet_jax.training.step import LOSSES, AddNoise

CLEAN_SETS = ('clean', 'div2k')
PAIRED_SETS = ('sidd', 'renoir', 'polyu', 'pairs')

_LEAST = {
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
_OPTIONS: dict[str, list] = {
  'on_nonfinite': ['stop', 'skip'],
  'data.reader': ['files', 'tiles', 'memory'],
  'model.channels': [3, 1],
}


def training_sets(config: ml_collections.ConfigDict) -> dict[str, str]:
  """Returns name -> folder of the data sets that ``config.data.train`` names a folder for."""
  return {name: folder for name, folder in config.data.train.items() if folder}


def training_noise(fields: ml_collections.ConfigDict) -> TrainingNoise:
  """Builds the noise of clean patches from ``config.noise``; ValueError for impossible shares."""
  return TrainingNoise(
    sigma_255_range=tuple(fields.sigma_255_range) or (fields.sigma_255,) * 2,
    clip=float(fields.clip),
    camera=fields.camera,
    camera_share=fields.camera_share,
    grain_share=fields.grain_share,
    clean_share=fields.clean_share,
  )


def noise_from_config(fields: ml_collections.ConfigDict) -> AddNoise:
  """Builds the function that adds noise to clean patches, from ``config.noise``."""
  return make_add_noise(training_noise(fields))


def check_config(config: ml_collections.ConfigDict, device_count: int) -> None:
  """Checks all fields that do not need the data.

  Args:
    config: With the fields of `configs/default.py`.
    device_count: Devices of all processes.

  Raises:
    ValueError: The first field that cannot work.
  """
  _check_ranges(config)
  _check_options(config)
  _check_sizes(config, device_count)
  _check_noise(config)
  _check_training_sets(config)
  model_from_config(config.model)
  try:
    optimizer_from_config(config)
  except ValueError as error:
    raise ValueError(f'config.optimizer: {error}') from error


def _check_ranges(config):
  for name, least in _LEAST.items():
    value = _field(config, name)
    # Written this way round to reject NaN too.
    if not value >= least:
      raise ValueError(f'config.{name} is {value}, but must be at least {least}')
  if not 0 <= config.seed < 2**31:
    raise ValueError(f'config.seed is {config.seed}, but must be 0 to 2**31 - 1')
  if not 0 <= config.ema_decay < 1:
    raise ValueError(
      f'config.ema_decay is {config.ema_decay}, but must be at least 0 (no average) and less than 1'
    )
  if not 0 <= config.teacher_share <= 1 or bool(config.teacher) != bool(config.teacher_share):
    raise ValueError(
      f'config.teacher is {config.teacher!r} and config.teacher_share {config.teacher_share}: set both to '
      'learn from a teacher, with a share above 0 and at most 1, or neither'
    )
  if not 0 <= float(config.noise.clip) <= 1:
    raise ValueError(f'config.noise.clip is {config.noise.clip}, but must be a probability from 0 to 1')


def _check_options(config):
  # A config's file may have added losses.
  for name, options in {'loss': sorted(LOSSES), **_OPTIONS}.items():
    if _field(config, name) not in options:
      raise ValueError(
        f'config.{name} is {_field(config, name)!r}, but must be one of {", ".join(map(repr, options))}'
      )


def _check_sizes(config, device_count):
  parts = device_count * config.accumulate
  if config.batch_size % parts:
    raise ValueError(
      f'config.batch_size is {config.batch_size}, but must be a multiple of {parts} '
      f'({device_count} devices, accumulate = {config.accumulate})'
    )
  if config.data.reader == 'tiles':
    if config.data.patch_px > config.data.tile_px:
      raise ValueError(
        f'config.data.patch_px is {config.data.patch_px}, but must be at most data.tile_px = '
        f'{config.data.tile_px}'
      )
    if config.data.stride_px > config.data.tile_px:
      raise ValueError(
        f'config.data.stride_px is {config.data.stride_px}, but must be at most data.tile_px = '
        f'{config.data.tile_px}, or parts of the images would be lost'
      )
  if config.data.reader == 'memory' and config.batch_size * config.steps >= 2**31:
    raise ValueError(
      f'config.steps is {config.steps} with {config.batch_size} patches per step; '
      "data.reader = 'memory' needs fewer than 2**31 patches in total"
    )


def _check_noise(config):
  if not math.isfinite(config.noise.sigma_255):
    raise ValueError(f'config.noise.sigma_255 is {config.noise.sigma_255}, but must be finite')
  sigmas = config.noise.sigma_255_range
  numbers = all(isinstance(s, int | float) and math.isfinite(s) for s in sigmas)
  if len(sigmas) not in (0, 2) or not numbers or (sigmas and not 0 <= sigmas[0] <= sigmas[1] != 0):
    raise ValueError(
      f'config.noise.sigma_255_range is {tuple(sigmas)}, but must be (lowest, highest) with 0 <= lowest <= '
      'highest and highest above 0, or () to train at sigma_255'
    )
  try:
    training_noise(config.noise)
  except ValueError as error:
    raise ValueError(f'config.{error}') from error


def _check_training_sets(config):
  sets = training_sets(config)
  if not sets:
    raise ValueError(
      'config.data.train names no folder; for a folder of clean images pass '
      '--config.data.train.clean=FOLDER, for one of noisy and clean pairs '
      '--config=configs/pairs.py --config.data.train.pairs=FOLDER'
    )
  paired = sorted(set(sets) & set(PAIRED_SETS))
  clean = sorted(set(sets) & set(CLEAN_SETS))
  share = config.data.pairs_share
  if paired and clean and not 0 < share < 1:
    raise ValueError(
      f'config.data.train names clean images ({", ".join(clean)}) and pairs ({", ".join(paired)}), and '
      f'config.data.pairs_share is {share}; set the share of the patches that come from the pairs, '
      'between 0 and 1'
    )
  if not (paired and clean) and share != 0:
    raise ValueError(
      f'config.data.pairs_share is {share}, but config.data.train names only {", ".join(sorted(sets))}; '
      'set it to 0, or add clean images or pairs'
    )
  if share and config.data.reader != 'memory':
    raise ValueError(
      f'config.data.reader is {config.data.reader!r}, but clean images and pairs together can only be read '
      "with 'memory'"
    )
  noise = config.noise.sigma_255 > 0 or any(config.noise.sigma_255_range)
  if paired and not clean and noise:
    raise ValueError(
      f'config.noise would add noise to pairs ({", ".join(paired)}), which are noisy already; set '
      'noise.sigma_255 = 0 and noise.sigma_255_range = ()'
    )
  shares = [name for name in ('camera_share', 'grain_share', 'clean_share') if config.noise[name]]
  if paired and not clean and shares:
    raise ValueError(
      f'config.noise.{shares[0]} is {config.noise[shares[0]]}, but config.data.train names only pairs '
      f'({", ".join(paired)}), to which no noise is added; set it to 0, or add clean images'
    )
  if clean and not noise:
    raise ValueError(
      'config.noise.sigma_255 is 0, but training on clean images needs noise; set it or noise.sigma_255_range'
    )
  if wrong := [scene for scene in config.data.held_out if not isinstance(scene, str)]:
    raise ValueError(
      f'config.data.held_out has {wrong[0]!r}, which is no text; put the names of scenes in quotes: '
      f'--config.data.held_out="(\'{wrong[0]}\',)"'
    )
  if config.data.held_out and not paired:
    raise ValueError(
      f'config.data.held_out is {tuple(config.data.held_out)}, but only data sets of pairs have scenes to '
      'hold out; set it to ()'
    )
  if 'div2k' in sets and config.data.reader != 'tiles':
    raise ValueError(
      f"config.data.reader is {config.data.reader!r}, but data.train.div2k can only be read as 'tiles'"
    )


def _field(config, name):
  for part in name.split('.'):
    config = config[part]
  return config
