"""Every config of the folder works and is what it says; what cannot work is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from configs import ablation, blind, color, color_fast, default, demo, gray, nam, pairs, photo, sidd, v1
from sadnet_jax.data.test_sets import POLYU_HELD_OUT
from sadnet_jax.training.config import check_config, training_sets
from sadnet_jax.training.state import model_from_config
from sadnet_jax.training.step import LOSSES

NOISES = ('30', '50', '70', 'blind')
# Config file, arguments, channels.
CONFIGS = [
  *((get, (noise,), 3) for get in (color, color_fast) for noise in NOISES),
  (blind, ('color',), 3),
  (blind, ('gray',), 1),
  (photo, (), 3),
  (photo, ('fast',), 3),
  *((gray, (noise,), 1) for noise in NOISES),
  *((ablation, (row,), 3) for row in ('none', 'rsab', 'context', 'rsab_context', 'rsab_offset', 'full')),
  *(
    (v1, (name,), 1 if 'gray' in name else 3)
    for name in ('color-50', 'gray-blind', 'sidd', 'nam', 'nam-held_out')
  ),
  *((nam, (scenes,), 3) for scenes in ('all', 'held_out')),
  *((file, (), 3) for file in (ablation, color, color_fast, demo, nam, pairs, sidd, v1)),
  (gray, (), 1),
]


def _name(value):
  return value.__name__.removeprefix('configs.') if hasattr(value, '__name__') else ':'.join(map(str, value))


# --- Every config.


@functools.lru_cache
def _parameters(model):
  """Parameters of a network, after it has shown that it maps an image to one like it."""
  image = jax.ShapeDtypeStruct((2, 16, 8, model.channels), jnp.float32)
  output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  assert (output.shape, output.dtype) == (image.shape, image.dtype)
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize(
  ('file', 'arguments', 'channels'), CONFIGS, ids=[':'.join([_name(f), *a]) for f, a, _ in CONFIGS]
)
def test_every_config_can_work(file, arguments, channels):
  config = file.get_config(*arguments)
  for device_count in (1, min(8, config.batch_size)):
    check_config(config, device_count)
  model = model_from_config(config.model)
  assert model.channels == channels
  assert _parameters(model) > 0
  # Fields that only one config has would be typing errors.
  assert set(_flat(config)) == set(_flat(default.get_config()))


def _flat(config):
  def walk(fields, prefix):
    for name, value in fields.items():
      yield from walk(value, f'{prefix}{name}.') if hasattr(value, 'items') else [(prefix + name, value)]

  return dict(walk(config, ''))


def _changed(config, base):
  """Fields in which two configs differ, with the values of the first."""
  values, others = _flat(config), _flat(base)
  return {name: value for name, value in values.items() if value != others[name]}


@pytest.mark.parametrize(
  ('get_config', 'message'),
  [
    (
      lambda: color.get_config('fifty'),
      r"the argument of the config is 'fifty', but must be sigma_255 or 'blind'",
    ),
    (lambda: gray.get_config(''), r"the argument of the config is '', but must be sigma_255 or 'blind'"),
    (
      lambda: color_fast.get_config('50dB'),
      r"the argument of the config is '50dB', but must be sigma_255 or",
    ),
    (
      lambda: v1.get_config('gray-much'),
      r"the argument of the config is 'much', but must be sigma_255 or 'blind'",
    ),
    (
      lambda: ablation.get_config('context_offset'),
      r"the argument of configs/ablation.py is 'context_offset', but must be one of none, rsab, context, "
      r'rsab_context, rsab_offset, full',
    ),
    (
      lambda: nam.get_config('heldout'),
      r"the argument of configs/nam.py is 'heldout', but must be 'all' or 'held_out'",
    ),
    (
      lambda: v1.get_config('nam-some'),
      r"the argument of configs/nam.py is 'some', but must be 'all' or 'held_out'",
    ),
    *(
      (
        functools.partial(v1.get_config, argument),
        rf"the argument of configs/v1.py is '{argument}', but must be 'color-50', 'gray-50' "
        r"\(or another noise\), 'sidd', 'nam' or 'nam-held_out'",
      )
      for argument in ('colour-50', 'color_fast-50', 'sidd-50', '')
    ),
  ],
)
def test_a_wrong_argument_of_a_config_is_rejected_with_the_accepted_ones(get_config, message):
  with pytest.raises(ValueError, match=message):
    get_config()


# --- What the configs say.


@pytest.mark.parametrize('file', [color, gray])
@pytest.mark.parametrize('noise', ['30', '50', '70'])
def test_synthetic_noise_is_trained_as_in_the_paper(file, noise):
  config = file.get_config(noise)
  assert (config.batch_size, config.data.patch_px, config.loss) == (16, 128, 'l2')
  assert (config.noise.sigma_255, tuple(config.noise.sigma_255_range)) == (float(noise), ())
  # Not in the paper but in the authors' code.
  assert config.noise.clip == 1
  assert list(training_sets(config)) == ['clean']
  _assert_the_papers_optimizer(config.optimizer, halve_every=300_000)


def test_real_noise_is_trained_as_in_the_paper():
  config = sidd.get_config()
  assert (config.batch_size, config.data.patch_px, config.loss) == (16, 128, 'l1')
  assert sorted(training_sets(config)) == ['renoir', 'sidd']
  assert (config.data.reader, config.data.tile_px, config.data.stride_px) == ('tiles', 300, 150)
  _assert_the_papers_optimizer(config.optimizer, halve_every=300_000)


def test_pairs_are_trained_as_real_noise():
  sets = {'data.train.sidd': '', 'data.train.renoir': '', 'data.train.pairs': 'train/pairs'}
  assert _changed(pairs.get_config(), sidd.get_config()) == {**sets, 'data.reader': 'files'}


def _assert_the_papers_optimizer(optimizer, halve_every):
  assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.eps) == ('adam', 0.9, 0.999, 1e-8)
  assert (optimizer.schedule, optimizer.learning_rate, optimizer.halve_every) == (
    'step_halving',
    1e-4,
    halve_every,
  )
  assert (optimizer.warmup_steps, optimizer.clip_norm) == (0, 0)


def test_fine_tuning_for_nam_starts_from_the_real_noise_and_trains_on_polyu():
  config = nam.get_config()
  assert config.init_from == 'runs/sidd'
  assert list(training_sets(config)) == ['polyu']
  assert config.loss == 'l1'
  # The weights fit, and are trained on as before.
  assert not any(name.startswith('model.') for name in _changed(config, sidd.get_config()))
  assert set(_changed(nam.get_config('held_out'), config)) == {'data.held_out'}
  assert tuple(config.data.held_out) == ()
  # One scene of every camera of PolyU.
  cameras = sorted(scene.split('_')[0] for scene in POLYU_HELD_OUT)
  assert cameras == ['Canon5D2', 'Canon600D', 'Canon80D', 'NikonD800', 'Sony']


def test_networks_have_the_parameters_measured_on_the_authors_code():
  def count(config):
    return _parameters(model_from_config(config.model))

  assert count(color.get_config()) == count(sidd.get_config()) == count(nam.get_config()) == 4_234_723
  assert count(gray.get_config()) == 4_234_081
  # A last layer of 1x1 instead of 3x3 from 32 channels.
  assert count(v1.get_config('color-30')) == 4_234_723 - 8 * 32 * 3
  assert count(v1.get_config('gray-30')) == 4_234_081 - 8 * 32


@pytest.mark.parametrize('file', [color, gray, color_fast])
def test_blind_differs_in_the_range_of_noise_only(file):
  assert _changed(file.get_config('blind'), file.get_config('50')) == {'noise.sigma_255_range': (0.0, 75.0)}


def test_rows_of_the_ablation_are_those_of_table_1():
  # RSAB, offset transfer, context block.
  table = {
    'none': '---',
    'rsab': 'R--',
    'context': '--C',
    'rsab_context': 'R-C',
    'rsab_offset': 'RO-',
    'full': 'ROC',
  }
  assert set(ablation.ROWS) == set(table)
  parts = ('use_rsab', 'use_offset_transfer', 'use_context')
  counts = {}
  for row, letters in table.items():
    config = ablation.get_config(row)
    assert tuple(config.model[part] for part in parts) == tuple(letter != '-' for letter in letters)
    # Colour, sigma 50, and nothing else differs between the rows.
    assert set(_changed(config, color.get_config('50'))) <= {f'model.{part}' for part in parts}
    counts[row] = _parameters(model_from_config(config.model))
  assert len(set(counts.values())) == len(counts)
  assert counts['full'] == _parameters(model_from_config(color.get_config().model))


@pytest.mark.parametrize(
  ('argument', 'base', 'schedule'),
  [
    ('color-30', color.get_config('30'), {'optimizer.halve_every': 200_000}),
    ('gray-blind', gray.get_config('blind'), {'optimizer.halve_every': 200_000}),
    ('sidd', sidd.get_config(), {'optimizer.halve_every': 200_000}),
    ('nam', nam.get_config(), {}),
    ('nam-held_out', nam.get_config('held_out'), {}),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_version_1_differs_by_order_dilations_last_layer_and_schedule(argument, base, schedule):
  network = {'model.rsab_order': 'deform_last', 'model.dilations': (1, 2, 4, 8), 'model.last_kernel': 1}
  start = {'init_from': 'runs/v1-sidd'} if argument.startswith('nam') else {}
  assert _changed(v1.get_config(argument), base) == network | schedule | start


# --- What is refused.

PAIRS = {'data.train.clean': '', 'data.train.pairs': 'somewhere', 'noise.sigma_255': 0.0}
TILES = {'data.reader': 'tiles'}


def _config(**changes):
  config = default.get_config()
  config.data.train.clean = 'somewhere'
  config.batch_size = 8
  config.update_from_flattened_dict(changes)
  return config


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    *(
      ({name: 0}, rf'config\.{re.escape(name)} is 0, but must be at least 1')
      for name in (
        'batch_size',
        'accumulate',
        'steps',
        'log_every',
        'checkpoint_every',
        'keep_checkpoints',
        'data.patch_px',
        'data.tile_px',
        'data.stride_px',
        'data.crops_per_image',
      )
    ),
    *(
      ({name: -1}, rf'config\.{re.escape(name)} is -1, but must be at least 0')
      for name in ('validation.every', 'validation.images', 'validation.pictures')
    ),
    ({'noise.sigma_255': -1.0}, r'config\.noise\.sigma_255 is -1\.0, but must be at least 0'),
    *(
      ({'seed': seed}, rf'config\.seed is {seed}, but must be 0 to 2\*\*31 - 1') for seed in (-1, 2147483648)
    ),
    *(
      ({'ema_decay': decay}, rf'config\.ema_decay is {decay}, but must be at least 0 \(no average\)')
      for decay in (1.0, -0.1)
    ),
    *(
      ({'noise.clip': clip}, rf'config\.noise\.clip is {clip}, but must be a probability from 0 to 1')
      for clip in (1.5, -0.5, float('nan'))
    ),
    (
      {'data.stride_px': 301, **TILES},
      r'config\.data\.stride_px is 301, but must be at most data\.tile_px = 300, or parts of the images',
    ),
    *(
      (
        {'noise.sigma_255_range': sigmas},
        rf'config\.noise\.sigma_255_range is {re.escape(str(sigmas))}, but must be \(lowest, highest\) with '
        r'0 <= lowest <= highest and highest above 0, or \(\) to train at sigma_255',
      )
      for sigmas in (
        (50.0,),
        (0.0, 50.0, 75.0),
        (-1.0, 75.0),
        (75.0, 0.0),
        (0.0, 0.0),
        (0.0, float('inf')),
        ('0', '75'),
      )
    ),
    ({'noise.sigma_255': float('inf')}, r'config\.noise\.sigma_255 is inf, but must be finite'),
    ({'noise.sigma_255': float('nan')}, r'config\.noise\.sigma_255 is nan, but must be at least 0'),
    ({'loss': 'l3'}, r"config\.loss is 'l3', but must be one of 'charbonnier', 'l1', 'l2'"),
    ({'on_nonfinite': 'go'}, r"config\.on_nonfinite is 'go', but must be one of 'stop', 'skip'"),
    (
      {'data.reader': 'tfds'},
      r"config\.data\.reader is 'tfds', but must be one of 'files', 'tiles', 'memory'",
    ),
    ({'model.channels': 2}, r'config\.model\.channels is 2, but must be one of 3, 1'),
    (
      {'batch_size': 6},
      r'config\.batch_size is 6, but must be a multiple of 4 \(4 devices, accumulate = 1\)',
    ),
    (
      {'accumulate': 3},
      r'config\.batch_size is 8, but must be a multiple of 12 \(4 devices, accumulate = 3\)',
    ),
    (
      {'data.patch_px': 301, **TILES},
      r'config\.data\.patch_px is 301, but must be at most data\.tile_px = 300',
    ),
    (
      {'steps': 2**28, 'data.reader': 'memory'},
      r"config\.steps is 268435456 with 8 patches per step; data\.reader = 'memory' needs fewer than 2\*\*31",
    ),
    (
      {'data.train.clean': ''},
      r'config\.data\.train names no folder; for a folder of clean images pass '
      r'--config\.data\.train\.clean=FOLDER, for one of noisy and clean pairs '
      r'--config=configs/pairs\.py --config\.data\.train\.pairs=FOLDER',
    ),
    *(
      (
        {
          **PAIRS,
          'data.train.pairs': '',
          f'data.train.{paired}': 'there',
          f'data.train.{clean}': 'here',
          **TILES,
        },
        rf'names clean images \({clean}\) and pairs \({paired}\), and config\.data\.pairs_share is 0\.0; set',
      )
      for clean, paired in (('clean', 'sidd'), ('div2k', 'renoir'), ('clean', 'polyu'), ('div2k', 'pairs'))
    ),
    (
      {**PAIRS, 'data.train.sidd': 'there', 'noise.sigma_255': 50.0},
      r'config\.noise would add noise to pairs \(pairs, sidd\), which are noisy already; set noise',
    ),
    (
      {**PAIRS, 'noise.camera': 'photo', 'noise.camera_share': 0.5},
      r'config\.noise\.camera_share is 0\.5, but config\.data\.train names only pairs \(pairs\), to which',
    ),
    ({**PAIRS, 'noise.clean_share': 0.1}, r'config\.noise\.clean_share is 0\.1, but .* names only pairs'),
    ({**PAIRS, 'noise.sigma_255_range': (0.0, 75.0)}, r'config\.noise would add noise to pairs \(pairs\)'),
    (
      {'noise.sigma_255': 0.0},
      r'config\.noise\.sigma_255 is 0, but training on clean images needs noise; set it or',
    ),
    (
      {'data.held_out': ('Sony_door',)},
      r"config\.data\.held_out is \('Sony_door',\), but only data sets of pairs have scenes to hold out",
    ),
    (
      {'data.train.div2k': 'there'},
      r"config\.data\.reader is 'files', but data\.train\.div2k can only be read as 'tiles'",
    ),
    # From the network and the optimiser, before anything is compiled; their texts are tested with them.
    ({'model.width': 12}, 'width'),
    ({'optimizer.schedule': 'linear'}, r"^config\.optimizer: unknown schedule 'linear'"),
    ({'optimizer.name': 'sgd'}, r"^config\.optimizer: unknown optimizer 'sgd'"),
    ({'steps': 100, 'optimizer.warmup_steps': 100}, r'^config\.optimizer: warmup_steps is 100, but must be'),
  ],
  ids=lambda value: ' '.join(f'{n}={v}' for n, v in value.items()) if isinstance(value, dict) else '',
)
def test_a_config_that_cannot_work_is_rejected_with_value_and_limits(changes, message):
  with pytest.raises(ValueError, match=message):
    check_config(_config(**changes), device_count=4)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'seed': 2**31 - 1},
    {'ema_decay': 0.9999},
    {'accumulate': 2},
    {'loss': 'charbonnier', 'on_nonfinite': 'skip'},
    {'data.patch_px': 300, **TILES},
    {'data.patch_px': 301},
    {'data.stride_px': 300},
    {'data.train.div2k': 'there', **TILES},
    {'noise.sigma_255': 0.0, 'noise.sigma_255_range': (0.0, 75.0)},
    {'noise.sigma_255_range': (25.0, 25.0)},
    PAIRS,
    {**PAIRS, 'data.held_out': ('Sony_door',), 'data.reader': 'memory'},
  ],
  ids=lambda changes: ' '.join(f'{n}={v}' for n, v in changes.items()),
)
def test_a_config_at_the_edge_of_what_works_is_accepted(changes):
  check_config(_config(**changes), device_count=4)


def test_training_sets_are_those_with_a_folder():
  config = _config(**{'data.train.polyu': 'there'})
  assert training_sets(config) == {'clean': 'somewhere', 'polyu': 'there'}


def test_a_config_may_add_a_loss(monkeypatch):
  with pytest.raises(
    ValueError, match=r"config\.loss is 'mine', but must be one of 'charbonnier', 'l1', 'l2'"
  ):
    check_config(_config(loss='mine'), device_count=4)
  monkeypatch.setitem(LOSSES, 'mine', lambda denoised, clean: 0.0)
  check_config(_config(loss='mine'), device_count=4)
