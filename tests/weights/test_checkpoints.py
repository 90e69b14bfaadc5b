"""Runs of earlier versions continue: no field of a config orphans them."""

import jax
import numpy as np
import optax
import pytest

from configs import default
from sadnet_jax.nn.sadnet import SADNet, model_from_fields
from sadnet_jax.training.state import TrainState
from sadnet_jax.weights import checkpoints
from tests.support.logged_runs import save_checkpoint
from tests.support.small_networks import SMALL

PARAMS = {'kernel': np.zeros(1, np.float32)}
# The fields of the first version whose runs can be continued; all runs have them.
FIRST_VERSION = {
  '': 'accumulate batch_size checkpoint_every ema_decay init_from keep_checkpoints log_every loss '
  'on_nonfinite seed steps',
  'data.': 'crops_per_image held_out patch_px reader skip_bad stride_px tile_px tiles_dir',
  'data.train.': 'clean div2k pairs polyu renoir sidd',
  'model.': 'channels deformable_groups dilations dtype last_kernel offset_init offset_width rsab_order '
  'use_context use_offset_transfer use_rsab width',
  'noise.': 'clip sigma_255 sigma_255_range',
  'optimizer.': 'b1 b2 bias_rate clip_norm eps halve_every learning_rate name schedule warmup_steps',
  'validation.': 'clean every held_out images pairs pictures',
}
ALWAYS = {group + name for group, names in FIRST_VERSION.items() for name in names.split()}


def _fields(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, dict):
      yield from _fields(value, f'{prefix}{name}.')
    else:
      yield prefix + name


def _without(config, field):
  """A config of a version that did not have a field."""
  first, _, rest = field.partition('.')
  kept = {name: value for name, value in config.items() if name != first}
  if rest and (inner := _without(config[first], rest)):
    kept[first] = inner
  return kept


CONFIG = default.get_config().to_dict()
ADDED = sorted(set(_fields(CONFIG)) - ALWAYS)


def test_no_field_of_earlier_runs_is_gone():
  assert sorted(ALWAYS - set(_fields(CONFIG))) == []


@pytest.mark.parametrize('field', ADDED)
def test_a_run_that_began_before_a_field_existed_continues(tmp_path, field):
  save_checkpoint(tmp_path, PARAMS, _without(CONFIG, field), 5)
  state = TrainState.create(
    apply_fn=SADNet(**SMALL).apply, params=PARAMS, tx=optax.scale_by_adam(), ema=None, skipped=np.int32(0)
  )
  with checkpoints.open_for_training(tmp_path, keep=1) as manager:
    try:
      restored = checkpoints.restore_latest(manager, state, CONFIG, 'images')
    except ValueError as error:
      pytest.fail(f'{error}: enter the value of {field} that changes nothing in checkpoints._NEUTRAL_FIELDS')
  assert restored.step == 5
  # The network of the run, too, is described without the field.
  assert model_from_fields(_without(CONFIG, field)['model']) == model_from_fields(CONFIG['model'])


@pytest.mark.parametrize('field', ['noise.clean_share', 'teacher_share'])
def test_with_another_value_of_a_later_field_it_does_not_continue(field):
  changed = default.get_config()
  changed.update_from_flattened_dict({field: 0.5})
  with pytest.raises(ValueError, match=rf'{field}: checkpoint 0\.0, config 0\.5'):
    checkpoints.check_same(_without(CONFIG, field), changed.to_dict(), set())


def test_the_comparison_finds_a_field_without_an_entry():
  with pytest.raises(ValueError, match='later: checkpoint None, config 1'):
    checkpoints.check_same(CONFIG, {**CONFIG, 'later': 1}, set())


def test_optimisers_with_random_keys_continue_where_they_were(tmp_path):
  tx = optax.chain(optax.add_noise(0.01, 0.55, jax.random.key(3)), optax.scale_by_adam())

  def start():
    return TrainState.create(
      apply_fn=SADNet(**SMALL).apply, params=PARAMS, tx=tx, ema=None, skipped=np.int32(0)
    )

  state = start().apply_gradients(grads=PARAMS)
  with checkpoints.open_for_training(tmp_path, keep=1) as manager:
    checkpoints.save(manager, state, CONFIG, 'images')
    checkpoints.wait(manager)
    restored = checkpoints.restore_latest(manager, start(), CONFIG, 'images')
  continued, want = (s.apply_gradients(grads=PARAMS) for s in (restored, state))
  assert (continued.params['kernel'] == want.params['kernel']).all()
  assert (continued.params['kernel'] != restored.params['kernel']).all()
