import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import SMALL, count, param_shapes, to_nhwc

from sadnet_jax import SADNet
from sadnet_jax.authors_weights import params_from_state_dict

GOLDEN_NETWORKS = {
  'sadnet_color_c8': SADNet(channels=3, **SMALL),
  'sadnet_gray_c8_dilation1248': SADNet(channels=1, dilations=(1, 2, 4, 8), **SMALL),
}


def load_golden(golden, name):
  """Arrays of a reference network, and its state dicts of parameters and gradients."""
  with np.load(golden / f'{name}.npz') as archive:
    arrays = {key: archive[key] for key in archive.files}
  parts = {'param': {}, 'grad': {}}
  for key, array in arrays.items():
    kind, colon, tensor = key.partition(':')
    if colon:
      parts[kind][tensor] = array
  return arrays, parts['param'], parts['grad']


@pytest.mark.parametrize('name', GOLDEN_NETWORKS)
def test_output_and_every_gradient_equal_the_authors_network(golden, name):
  model = GOLDEN_NETWORKS[name]
  arrays, state_dict, gradients = load_golden(golden, name)
  params = params_from_state_dict(state_dict, param_shapes(model))
  wanted = params_from_state_dict(gradients, param_shapes(model))

  # Optimised, as users run it.
  @jax.jit
  def output_and_gradients(params, x, cotangent):
    y, pull_back = jax.vjp(lambda p, v: model.apply({'params': p}, v), params, x)
    return y, *pull_back(cotangent)

  y, dparams, dx = output_and_gradients(params, to_nhwc(arrays['x']), to_nhwc(arrays['cotangent']))
  np.testing.assert_allclose(y, to_nhwc(arrays['y']), rtol=0, atol=1e-5)
  # Gradients differ in size by orders of magnitude, so each tensor has its own scale.
  got = {'x': dx, **dict(jax.tree_util.tree_leaves_with_path(dparams))}
  want = {'x': to_nhwc(arrays['grad_x']), **dict(jax.tree_util.tree_leaves_with_path(wanted))}
  assert got.keys() == want.keys()
  for key in want:
    error = np.linalg.norm(got[key] - want[key]) / np.linalg.norm(want[key])
    assert error < 1e-4, (key, error)


@pytest.mark.parametrize(('kind', 'channels', 'parameters'), [('color', 3, 4234723), ('gray', 1, 4234081)])
def test_authors_state_dict_fills_the_full_network_exactly(golden, kind, channels, parameters):
  listed = json.loads((golden / 'state_dict_full.json').read_text())[kind]
  template = param_shapes(SADNet(channels=channels))
  assert count(SADNet(channels=channels)) == listed['parameters'] == parameters
  state_dict = {name: np.zeros(shape, np.float32) for name, shape in listed['state_dict'].items()}
  chex.assert_trees_all_equal_shapes_and_dtypes(params_from_state_dict(state_dict, template), template)


# --- Checkpoints in the authors' format.


def color_state_dict(golden):
  return load_golden(golden, 'sadnet_color_c8')[1], param_shapes(GOLDEN_NETWORKS['sadnet_color_c8'])


def test_state_dict_of_data_parallel_gives_the_same_parameters(golden):
  state_dict, template = color_state_dict(golden)
  wrapped = {f'module.{name}': tensor for name, tensor in state_dict.items()}
  chex.assert_trees_all_equal(
    params_from_state_dict(wrapped, template), params_from_state_dict(state_dict, template)
  )


def test_state_dict_takes_the_dtype_of_the_template(golden):
  state_dict, template = color_state_dict(golden)
  half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), template)
  chex.assert_trees_all_equal_shapes_and_dtypes(params_from_state_dict(state_dict, half), half)


def test_unfit_state_dict_is_refused_and_every_tensor_named(golden):
  state_dict, template = color_state_dict(golden)
  del state_dict['res1.conv0.bias'], state_dict['dres2.dcnpack.weight']
  state_dict['res9.conv1.weight'] = np.zeros((8, 8, 3, 3), np.float32)
  state_dict['stray'] = np.zeros(3, np.float32)
  state_dict['up3.weight'] = np.zeros((64, 31, 2, 2), np.float32)
  state_dict['out.bias'] = np.zeros(1, np.float32)
  with pytest.raises(ValueError, match='does not fit this SADNet') as error:
    params_from_state_dict(state_dict, template)
  text = str(error.value)
  unexpected, missing, misshapen = (
    text[text.index(start) :].split(';')[0] for start in ('unexpected tensors', 'missing', 'of another shape')
  )
  assert 'res9.conv1.weight' in unexpected
  assert 'stray' in unexpected
  assert 'res1.conv0.bias' in missing
  assert 'dres2.deform_conv.kernel' in missing
  assert 'up3.weight is (2, 2, 64, 31) in our layout, want (2, 2, 64, 32)' in misshapen
  assert 'out.bias is (1,) in our layout, want (3,)' in misshapen


def test_state_dict_of_the_grey_network_does_not_fit_the_colour_network(golden):
  gray = load_golden(golden, 'sadnet_gray_c8_dilation1248')[1]
  template = param_shapes(GOLDEN_NETWORKS['sadnet_color_c8'])
  with pytest.raises(ValueError, match=r'res1\.conv0\.weight is \(1, 1, 1, 8\).*want \(1, 1, 3, 8\)'):
    params_from_state_dict(gray, template)
