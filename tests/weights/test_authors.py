import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax import SADNet
from sadnet_jax.nn.sadnet import param_shapes
from sadnet_jax.ops.platform import target_platform
from sadnet_jax.weights.authors import (
  check_in_authors_code,
  model_from_state_dict,
  params_from_state_dict,
  state_dict_from_params,
)
from sadnet_jax.weights.torch_files import read_state_dict
from tests.support.small_networks import SMALL, count, random_variables, to_nhwc

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


# Both networks and both platforms, in two programs instead of four.
@pytest.mark.parametrize(
  ('name', 'platform'), [('sadnet_color_c8', 'cpu'), ('sadnet_gray_c8_dilation1248', 'cuda')]
)
def test_output_and_every_gradient_equal_the_authors_network(golden, name, platform, monkeypatch):
  monkeypatch.setattr('sadnet_jax.ops.platform.MIN_VALUES_FOR_BARRIERS', 0)
  model = GOLDEN_NETWORKS[name]
  arrays, state_dict, gradients = load_golden(golden, name)
  params = params_from_state_dict(state_dict, param_shapes(model))
  wanted = params_from_state_dict(gradients, param_shapes(model))

  # Optimised, as users run it.
  @jax.jit
  def output_and_gradients(params, x, cotangent):
    y, pull_back = jax.vjp(lambda p, v: model.apply({'params': p}, v), params, x)
    return y, *pull_back(cotangent)

  # What is traced for an accelerator runs on a CPU as well.
  with target_platform(platform):
    y, dparams, dx = output_and_gradients(params, to_nhwc(arrays['x']), to_nhwc(arrays['cotangent']))
    inferred = jax.jit(lambda p, v: model.apply({'params': p}, v))(params, to_nhwc(arrays['x']))
  # Inference on a CPU uses another algorithm, see `adaptive_conv`.
  np.testing.assert_allclose(inferred, to_nhwc(arrays['y']), rtol=0, atol=1e-5)
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


@pytest.mark.parametrize('file', ['sadnet_color_c8', 'sadnet_color_c8_dataparallel'])
def test_a_file_of_the_authors_network_gives_its_output(golden, file):
  arrays, _, _ = load_golden(golden, 'sadnet_color_c8')
  state_dict = read_state_dict(golden / f'{file}.pth')
  model = model_from_state_dict(state_dict)
  assert model == GOLDEN_NETWORKS['sadnet_color_c8']
  params = params_from_state_dict(state_dict, param_shapes(model))
  y = jax.jit(model.apply)({'params': params}, to_nhwc(arrays['x']))
  np.testing.assert_allclose(y, to_nhwc(arrays['y']), rtol=0, atol=1e-5)


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


def test_a_state_dict_that_does_not_fit_is_refused_and_every_tensor_named(golden):
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
    text[text.index(start) :].split(';')[0] for start in ('unexpected tensors', 'missing', 'wrong shape')
  )
  assert 'res9.conv1.weight' in unexpected
  assert 'stray' in unexpected
  assert 'res1.conv0.bias' in missing
  assert 'dres2.dcnpack.weight' in missing
  assert 'up3.weight is (2, 2, 64, 31) in our layout instead of (2, 2, 64, 32)' in misshapen
  assert 'out.bias is (1,) in our layout instead of (3,)' in misshapen


def test_state_dict_of_the_grey_network_does_not_fit_the_colour_network(golden):
  gray = load_golden(golden, 'sadnet_gray_c8_dilation1248')[1]
  template = param_shapes(GOLDEN_NETWORKS['sadnet_color_c8'])
  with pytest.raises(ValueError, match=r'res1\.conv0\.weight is \(1, 1, 1, 8\).*instead of \(1, 1, 3, 8\)'):
    params_from_state_dict(gray, template)


def test_weights_must_be_floating_point(golden):
  state_dict, template = color_state_dict(golden)
  state_dict['out.bias'] = state_dict['out.bias'].astype(np.int64)
  with pytest.raises(ValueError, match=r"dtype \['out\.bias is int64 instead of floating-point'\]"):
    params_from_state_dict(state_dict, template)


def test_names_of_our_own_tree_are_unexpected(golden):
  state_dict, template = color_state_dict(golden)
  state_dict['res1.conv1.kernel'] = state_dict['res1.conv1.weight']
  state_dict['dres1.deform_conv.weight'] = state_dict['dres1.dcnpack.weight']
  with pytest.raises(
    ValueError,
    match=r"unexpected tensors \['res1\.conv1\.kernel', 'dres1\.deform_conv\.weight'\]; missing \[\]",
  ):
    params_from_state_dict(state_dict, template)


def test_all_names_or_none_have_the_prefix(golden):
  state_dict, template = color_state_dict(golden)
  state_dict['module.out.bias'] = state_dict['out.bias']
  match = (
    r'1 of 97 names in the state dict have the prefix module\.: module\.out\.bias does, res1\.conv0\.weight '
    'does not; rename'
  )
  with pytest.raises(ValueError, match=match):
    params_from_state_dict(state_dict, template)
  del state_dict['out.bias']
  with pytest.raises(ValueError, match='1 of 96 names in the state dict have the prefix'):
    model_from_state_dict(state_dict)


# --- And back.


@pytest.mark.parametrize(('kind', 'channels'), [('color', 3), ('gray', 1)])
def test_our_parameters_have_the_authors_names_shapes_and_order(golden, kind, channels):
  listed = json.loads((golden / 'state_dict_full.json').read_text())[kind]['state_dict']
  template = param_shapes(SADNet(channels=channels))
  zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), template)
  state_dict = state_dict_from_params(zeros)
  assert {name: list(array.shape) for name, array in state_dict.items()} == listed
  assert list(state_dict) == list(listed)


@pytest.mark.parametrize('name', GOLDEN_NETWORKS)
def test_the_authors_tensors_come_back_bit_by_bit(golden, name):
  want = load_golden(golden, name)[1]
  template = param_shapes(GOLDEN_NETWORKS[name])
  got = state_dict_from_params(params_from_state_dict(want, template))
  chex.assert_trees_all_equal(got, want)
  # JAX's arrays too, in any dtype.
  half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params_from_state_dict(want, template))
  assert {array.dtype for array in state_dict_from_params(half).values()} == {jnp.dtype(jnp.bfloat16)}


def test_parameters_of_another_network_are_refused():
  with pytest.raises(ValueError, match=r"params: \['dense'\] are not modules of a SADNet"):
    state_dict_from_params({'dense': {'kernel': np.zeros((2, 2))}, 'out': {'bias': np.zeros(3)}})


# --- The network of a state dict.

VARIANTS = [
  {},
  {'channels': 1, 'width': 16, 'offset_width': 5},
  {'deformable_groups': 2, 'last_kernel': 1},
  {'dilations': tuple(range(1, 12))},
  {'use_context': False},
  {'use_offset_transfer': False},
  {'use_rsab': False},
]


@pytest.mark.parametrize('fields', VARIANTS, ids=str)
def test_a_network_is_inferred_from_its_state_dict(fields):
  model = SADNet(**{**SMALL, **fields})
  params = random_variables(model)['params']
  state_dict = state_dict_from_params(params)
  inferred = model_from_state_dict(state_dict, dilations=model.dilations)
  if not model.use_rsab:
    # Nothing depends on the width of offsets if there are none.
    inferred = dataclasses.replace(inferred, offset_width=model.offset_width)
  assert inferred == model
  chex.assert_trees_all_equal(params_from_state_dict(state_dict, param_shapes(model)), params)
  # Convolutions are sorted by number, not as text.
  context = [name for name in state_dict if name.startswith('context.conv')]
  assert context == [f'context.conv{i // 2}.{("weight", "bias")[i % 2]}' for i in range(len(context))]


def test_each_convolution_needs_a_rate_of_dilation(golden):
  state_dict, _ = color_state_dict(golden)
  match = (
    r'dilations: 3 rates \(1, 2, 4\) given, but the context block in the state dict has 4 convolutions; '
    'give a rate for each'
  )
  with pytest.raises(ValueError, match=match):
    model_from_state_dict(state_dict, dilations=(1, 2, 4))
  assert model_from_state_dict(state_dict, dilations=(1, 2, 4, 8)).dilations == (1, 2, 4, 8)


@pytest.mark.parametrize(
  ('name', 'tensor', 'match'),
  [
    (
      'res1.conv0.weight',
      None,
      r'res1\.conv0\.weight is missing among its 95 tensors \(res1\.conv0\.bias, .*, \.\.\.\)',
    ),
    ('out.weight', None, r'out\.weight is missing among its 95 tensors'),
    (
      'out.weight',
      np.zeros(3),
      r'out\.weight: shape \(3,\) is not that of a convolution kernel, which has 4 axes',
    ),
    (
      'dres1.dcnpack.conv_offset_mask.weight',
      np.zeros((215, 8, 3, 3)),
      r'conv_offset_mask\.weight: 215 outputs are not a multiple of 27, the number for each deform',
    ),
    ('dres1.dcnpack.conv_offset_mask.weight', None, r'dres1\.dcnpack\.conv_offset_mask\.weight is missing'),
    ('offset1.offset_conv1.weight', None, r'offset1\.offset_conv1\.weight is missing'),
    (
      'res1.conv0.weight',
      np.zeros((0, 3, 1, 1)),
      r'SADNet\.width must be a multiple of deformable_groups = 8, not 0',
    ),
  ],
)
def test_a_state_dict_of_another_network_is_refused(golden, name, tensor, match):
  state_dict, _ = color_state_dict(golden)
  del state_dict[name]
  if tensor is not None:
    state_dict[name] = tensor
  with pytest.raises(ValueError, match=match):
    model_from_state_dict(state_dict)


@pytest.mark.parametrize(
  ('fields', 'match'),
  [
    ({'use_rsab': False}, 'use_rsab is False, only True is supported'),
    ({'use_offset_transfer': False}, 'use_offset_transfer is False, only True is supported'),
    ({'use_context': False}, 'use_context is False, only True is supported'),
    ({'rsab_order': 'deform_last'}, 'rsab_order is deform_last, only deform_first is supported'),
    ({'last_kernel': 1}, 'last_kernel is 1, only 3 is supported'),
    ({'deformable_groups': 4}, 'deformable_groups is 4, only 8 is supported'),
    (
      {'dilations': (1, 2, 4)},
      r'dilations is \(1, 2, 4\), only \(1, 2, 3, 4\) or \(1, 2, 4, 8\) is supported',
    ),
    ({'channels': 8}, 'width is 8, which must differ from the number of channels'),
    (
      {'use_rsab': False, 'last_kernel': 1},
      'use_rsab is False, only True is supported; last_kernel is 1, only 3 is supported',
    ),
  ],
)
def test_networks_that_the_authors_code_lacks_are_refused(fields, match):
  with pytest.raises(ValueError, match=f"the authors' code has no such network: {match}$"):
    check_in_authors_code(SADNet(**{**SMALL, **fields}))


@pytest.mark.parametrize('fields', [{}, {'channels': 1, 'width': 16}, {'dilations': [1, 2, 4, 8]}], ids=str)
def test_networks_of_the_authors_code_are_accepted(fields):
  check_in_authors_code(SADNet(**{**SMALL, **fields}))
