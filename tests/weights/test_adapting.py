"""Weights converted as a start for training another network."""

import jax
import numpy as np
import pytest

from configs import default
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights import adapting, loading
from sadnet_jax.weights.safetensors import save_weights
from tests.support.small_networks import SMALL, apply, image, random_variables

GROUPS = 4
MANY = SADNet(**{**SMALL, 'deformable_groups': GROUPS})
PARAMS = random_variables(MANY)['params']


def _fields(**changed):
  config = default.get_config()
  config.model.update({**SMALL, 'deformable_groups': GROUPS, **changed})
  return config.model.to_dict()


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'many_groups.safetensors'
  save_weights(path, PARAMS, model=_fields(), step=1, about={})
  return path


def _with_predictions(params, change):
  """The parameters, with ``change`` applied to kernels and biases of the layers that predict offsets."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: change(leaf) if 'conv_offset_mask' in jax.tree_util.keystr(path) else leaf, params
  )


@pytest.mark.parametrize('fewer', [2, 1])
def test_groups_that_sample_alike_are_merged_without_a_change(fewer):
  """Groups 0 and 1 (all, for one group) sample at the same places, which differ from those of 2 and 3."""
  merged = GROUPS // fewer

  def alike(predicting):
    offsets, logits = np.split(np.asarray(predicting), [GROUPS * 9 * 2], axis=-1)
    parts = [np.reshape(part, (*part.shape[:-1], GROUPS, -1)) for part in (offsets, logits)]
    return np.concatenate(
      [np.repeat(part[..., ::merged, :], merged, -2).reshape(*part.shape[:-2], -1) for part in parts], -1
    )

  params = _with_predictions(PARAMS, alike)
  found = adapting.merge_groups(params, GROUPS, fewer)
  few = SADNet(**{**SMALL, 'deformable_groups': fewer})
  np.testing.assert_allclose(
    apply(few, {'params': found}, image()), apply(MANY, {'params': params}, image()), atol=1e-5
  )


def test_merged_groups_predict_the_means_of_theirs():
  bias = np.arange(GROUPS * 27, dtype=np.float32)
  params = _with_predictions(PARAMS, lambda leaf: bias if leaf.ndim == 1 else leaf)
  found = adapting.merge_groups(params, GROUPS, 2)['dres1']['conv_offset_mask']['bias']
  # Of four groups, dy of the first tap is in channels 0, 18, 36 and 54; its logits are in 72, 81, 90 and 99.
  assert [found[i] for i in (0, 18, 36, 45)] == [9, 45, 76.5, 94.5]
  assert found[1] == 10  # dx


def test_weights_with_more_groups_start_a_network_with_fewer(file, caplog):
  _, found = loading.load_params(file, _fields(deformable_groups=2), as_start=True)
  assert caplog.messages == ['the weights have 4 deformable groups: merged into 2, as a start']
  jax.tree.map(np.testing.assert_array_equal, found, adapting.merge_groups(PARAMS, GROUPS, 2))
  # And a grey one.
  _, found = loading.load_params(file, _fields(deformable_groups=2, channels=1), as_start=True)
  assert (found['out']['bias'].shape, found['dres1']['conv_offset_mask']['bias'].shape) == ((1,), (54,))
  # Only for training: results of converted weights would not be those of the published ones.
  with pytest.raises(ValueError, match=r'model\.deformable_groups: checkpoint 4, config 2'):
    loading.load_params(file, _fields(deformable_groups=2))
  for groups in (8, 3):
    with pytest.raises(ValueError, match=rf'model\.deformable_groups: checkpoint 4, config {groups}'):
      loading.load_params(file, _fields(deformable_groups=groups), as_start=True)
