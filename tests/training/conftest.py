"""What makes tests of whole runs fast: compiling takes most of the time of a short run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.training import loop
from sadnet_jax.training.loop import step_from_config
from sadnet_jax.training.state import create_train_state, model_from_config, state_from_params


@pytest.fixture(scope='module')
def compiled_once(quick_to_compile):
  """Runs whose compiled programs are equal share their step and their first weights.

  Not those with images in memory, which belong to their step.
  """
  steps, first = {}, {}

  def step_of(config, devices, images=None, pairs=None, teacher=None):
    fields = json.loads(config.to_json_best_effort())
    for name in (
      'log_every',
      'checkpoint_every',
      'keep_checkpoints',
      'validation',
      'init_from',
      'on_nonfinite',
    ):
      del fields[name]
    if config.optimizer.schedule == 'step_halving':
      del fields['steps']
    if images is not None or teacher is not None:
      return step_from_config(config, devices, images, pairs, teacher)
    fields['data'] = config.data.patch_px
    key = (json.dumps(fields, sort_keys=True), tuple(d.id for d in devices))
    if key not in steps:
      steps[key] = step_from_config(config, devices)
    return steps[key]

  def first_state(config):
    model = model_from_config(config.model)
    key = (model, config.seed)
    if key not in first:
      first[key] = jax.tree.map(np.asarray, create_train_state(config).params)
    return state_from_params(config, model, jax.tree.map(jnp.array, first[key]))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'step_from_config', step_of)
    patch.setattr(loop, 'create_train_state', first_state)
    yield
