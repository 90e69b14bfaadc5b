import re

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax import SADNet, mean_abs_offsets
from sadnet_jax.nn.blocks import Inside
from sadnet_jax.nn.sadnet import pad_to_multiple, param_shapes, scale_of
from tests.support.fast_jit import fast_jit
from tests.support.small_networks import SMALL, apply, count, image, init, random_variables

MODEL = SADNet(**SMALL)
# Tests share these sizes, so that each is compiled once.
SIZE, ODD_SIZE = (16, 24), (31, 37)

# Table 1 of the paper: RSAB, offset transfer, context block.
ABLATION = {
  '---': {'use_rsab': False, 'use_offset_transfer': False, 'use_context': False},
  'R--': {'use_rsab': True, 'use_offset_transfer': False, 'use_context': False},
  '--C': {'use_rsab': False, 'use_offset_transfer': False, 'use_context': True},
  'R-C': {'use_rsab': True, 'use_offset_transfer': False, 'use_context': True},
  'RO-': {'use_rsab': True, 'use_offset_transfer': True, 'use_context': False},
  'ROC': {'use_rsab': True, 'use_offset_transfer': True, 'use_context': True},
}
# arXiv v1.
VERSION_1 = {'rsab_order': 'deform_last', 'dilations': (1, 2, 4, 8)}


# --- Sizes.


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (2, 3), (3, 2), (5, 17), (7, 8), (8, 7), (9, 4), (31, 37)])
def test_padding_equals_numpy_reflection(size):
  x = image(1, batch=2, size=size)
  extra = [(0, 0), (0, -size[0] % 8), (0, -size[1] % 8), (0, 0)]
  np.testing.assert_array_equal(pad_to_multiple(jnp.asarray(x), 8), np.pad(x, extra, mode='reflect'))
  on_host = pad_to_multiple(x, 8)
  assert type(on_host) is np.ndarray
  np.testing.assert_array_equal(on_host, np.pad(x, extra, mode='reflect'))


def test_padding_returns_a_multiple_itself():
  x = jnp.asarray(image(2, size=(16, 24)))
  assert pad_to_multiple(x, 8) is x


@pytest.mark.parametrize(('size', 'channels'), [((1, 1), 3), ((2, 9), 1), (ODD_SIZE, 3)])
def test_any_image_size_keeps_its_shape(size, channels):
  model = SADNet(channels=channels, **SMALL)
  x = image(3, size=size, channels=channels)
  y = apply(model, random_variables(model), x)
  chex.assert_shape(y, x.shape)
  chex.assert_tree_all_finite(y)
  # The network does not just return its input.
  assert np.abs(y - x).max() > 1e-3


def test_odd_image_is_the_crop_of_the_padded_image():
  variables = random_variables(MODEL)
  x = image(4, size=ODD_SIZE)
  padded = np.pad(x, [(0, 0), (0, 1), (0, 3), (0, 0)], mode='reflect')
  got = apply(MODEL, variables, x)
  np.testing.assert_allclose(got, apply(MODEL, variables, padded)[:, :31, :37], atol=1e-6)


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'rsab_order': 'deform_last', 'dilations': (1, 2, 4, 8)},
    {'use_rsab': False, 'last_kernel': 1},
  ],
)
def test_an_image_in_a_larger_array_is_denoised_as_if_alone(fields):
  model = SADNet(**SMALL, **fields)
  variables = random_variables(model)
  network = fast_jit(lambda noisy, height, width: model.apply(variables, noisy, Inside(height, width)))
  height, width = 24, 8
  noisy = image(size=(height, width), batch=2)
  # What is outside is not read at all.
  larger = np.full((2, 32, 24, 3), np.inf, np.float32)
  larger[:, :height, :width] = noisy
  alone = apply(model, variables, noisy)
  np.testing.assert_allclose(network(larger, height, width)[:, :height, :width], alone, atol=1e-6)
  with pytest.raises(ValueError, match=r'multiples of 8, but has shape \(1, 12, 8, 3\)'):
    model.apply(variables, image(size=(12, 8)), Inside(8, 8))
  for inside in (Inside(12, 8), Inside(8, np.int32(24)), Inside(0, 8)):
    with pytest.raises(ValueError, match=r'inside must have sides that are multiples of 8 and at most those'):
      model.apply(variables, image(size=(16, 16)), inside)


def test_a_list_of_dilations_gives_the_same_network():
  model = SADNet(**SMALL, dilations=[1, 2])
  assert model == SADNet(**SMALL, dilations=(1, 2))
  # As a static argument of `jax.jit` must be.
  assert hash(model) == hash(SADNet(**SMALL, dilations=(1, 2)))


def test_empty_batch_keeps_its_shape():
  chex.assert_shape(apply(MODEL, random_variables(MODEL), image(batch=0, size=(9, 16))), (0, 9, 16, 3))


def test_each_image_is_denoised_independently_of_its_batch():
  variables = random_variables(MODEL)
  x = image(5, batch=3, size=SIZE)
  together = apply(MODEL, variables, x)
  alone = np.concatenate([apply(MODEL, variables, x[i : i + 1]) for i in range(3)])
  np.testing.assert_allclose(together, alone, atol=1e-5)


# --- Variants.


def convolution_parameters(size, inputs, outputs):
  return size * size * inputs * outputs + outputs


def expected_count(*, use_rsab, use_offset_transfer, use_context, c=8, o=8, channels=3, branches=4):
  """Parameters of the network by the paper's description, c base and o offset channels."""
  p = convolution_parameters
  widths = [c, 2 * c, 4 * c, 8 * c]
  total = p(1, channels, c) + p(3, c, channels)
  total += sum(2 * p(3, w, w) for w in widths)  # Encoder ResBlocks.
  total += sum(p(2, w, 2 * w) for w in widths[:3])  # Strided convolutions.
  # Transposed convolution and, after the concatenation, 1x1 convolution of each decoder scale.
  total += sum(p(2, 2 * w, w) + p(1, 2 * w, w) for w in widths[:3])
  # RSAB: a deformable and a regular 3x3 convolution. Without RSAB the ResBlock has two regular ones.
  total += sum(2 * p(3, w, w) for w in widths)
  if use_rsab:
    total += sum(p(3, w, o) + p(3, o, o) + p(3, o, 8 * 9 * 3) for w in widths)
  if use_offset_transfer:
    total += 3 * p(3, 2 * o, o)
  if use_context:
    w = 8 * c
    total += p(1, w, w // 4) + branches * p(3, w // 4, w // 4) + p(1, branches * w // 4, w)
  return total


@pytest.mark.parametrize('row', ABLATION)
def test_ablation_network_has_as_many_parameters_as_the_paper_describes(row):
  assert count(SADNet(**ABLATION[row], **SMALL)) == expected_count(**ABLATION[row])


@pytest.mark.parametrize('row', ['--C', 'R--'])
def test_ablation_network_runs(row):
  model = SADNet(**ABLATION[row], **SMALL)
  x = image(6)
  y = apply(model, random_variables(model), x)
  chex.assert_equal_shape([x, y])
  chex.assert_tree_all_finite(y)
  assert np.abs(y - x).max() > 1e-3


def test_version_1_has_the_same_parameters_but_another_order_and_dilations():
  version_1 = SADNet(**VERSION_1, **SMALL)
  chex.assert_trees_all_equal_shapes_and_dtypes(param_shapes(version_1), param_shapes(MODEL))
  variables, x = random_variables(MODEL), image(7, size=SIZE)
  y = apply(MODEL.clone(rsab_order='deform_last'), variables, x)
  chex.assert_tree_all_finite(y)
  assert np.abs(y - apply(MODEL, variables, x)).max() > 1e-4
  programs = [str(jax.make_jaxpr(model.apply)(variables, x)) for model in (version_1, MODEL)]
  assert ['rhs_dilation=(8, 8)' in program for program in programs] == [True, False]


@pytest.mark.parametrize(
  'fields',
  [
    *ABLATION.values(),
    VERSION_1,
    {'channels': 1, 'width': 12, 'offset_width': 5, 'deformable_groups': 4},
    {'last_kernel': 1, 'dilations': (1, 2), 'dtype': jnp.bfloat16},
  ],
  ids=str,
)
def test_shapes_are_those_of_the_initialised_network(fields):
  model = SADNet(**{**SMALL, **fields})
  initialised = jax.eval_shape(model.init, jax.random.key(0), image(channels=model.channels))['params']
  chex.assert_trees_all_equal_shapes_and_dtypes(param_shapes(model), initialised)


def test_weights_are_float32_whatever_the_default_of_jax():
  model = SADNet(**SMALL)
  with jax.enable_x64(True):
    initialised = jax.eval_shape(model.init, jax.random.key(0), image())['params']
  chex.assert_trees_all_equal_shapes_and_dtypes(param_shapes(model), initialised)


def test_number_of_dilations_is_free():
  model = SADNet(dilations=(1, 2), **SMALL)
  assert count(model) == expected_count(**ABLATION['ROC'], branches=2)


def test_last_kernel_1_changes_only_the_last_layer():
  wanted = {**param_shapes(SADNet(**SMALL))}
  assert wanted['out']['kernel'].shape == (3, 3, 8, 3)
  wanted['out'] = {**wanted['out'], 'kernel': jax.ShapeDtypeStruct((1, 1, 8, 3), jnp.float32)}
  model = SADNet(last_kernel=1, **SMALL)
  chex.assert_trees_all_equal_shapes_and_dtypes(param_shapes(model), wanted)


@pytest.mark.parametrize('offset_init', ['zeros', 'xavier'])
def test_initialisation_is_that_of_the_paper(offset_init):
  params = init(SADNet(offset_init=offset_init, **SMALL), image())['params']
  for path, value in jax.tree_util.tree_leaves_with_path(params):
    names = [part.key for part in path]
    if names[-1] == 'bias' or (names[-2] == 'conv_offset_mask' and offset_init == 'zeros'):
      np.testing.assert_array_equal(value, np.zeros(value.shape), err_msg=str(names))
      continue
    kh, kw, inputs, outputs = value.shape
    xavier = np.sqrt(6 / (kh * kw * (inputs + outputs)))
    bound = 1 / np.sqrt(kh * kw * inputs) if names[-2] == 'deform_conv' else xavier
    largest = np.abs(value).max()
    # The smallest kernel has 24 numbers, whose largest is above 0.7 of the bound almost surely.
    assert 0.7 * bound < largest <= bound * (1 + 1e-6), names


def test_bfloat16_computes_close_to_float32_and_keeps_float32_outside():
  x = image(8, size=SIZE)
  model = SADNet(dtype=jnp.bfloat16, **SMALL)
  assert {leaf.dtype for leaf in jax.tree.leaves(param_shapes(model))} == {jnp.dtype(jnp.float32)}
  variables = random_variables(model)
  y = apply(model, variables, x)
  assert y.dtype == jnp.float32
  noise, exact = y - x, apply(MODEL, variables, x) - x
  error = np.linalg.norm(noise - exact) / np.linalg.norm(exact)
  # The lower bound shows that the computation was in bfloat16.
  assert 1e-4 < error < 5e-2


def test_bfloat16_image_gives_bfloat16():
  x = jnp.asarray(image(), jnp.bfloat16)
  assert jax.eval_shape(MODEL.apply, random_variables(MODEL), x).dtype == jnp.bfloat16


def test_float64_image_gives_float64():
  variables = random_variables(MODEL)
  with jax.enable_x64(True):
    y = apply(MODEL, variables, image(9, size=SIZE).astype(np.float64))
  assert y.dtype == np.float64
  np.testing.assert_allclose(y, apply(MODEL, variables, image(9, size=SIZE)), atol=1e-5)


def test_modules_keep_their_names():
  # Checkpoints and the conversion of the authors' weights rely on these names.
  names = {f'{kind}{scale}' for kind in ('res', 'offset', 'dres') for scale in range(1, 5)}
  names |= {f'{kind}{scale}' for kind in ('down', 'up') for scale in range(1, 4)}
  names |= {f'dconv{scale}_1' for scale in range(1, 4)} | {'context', 'out'}
  assert set(param_shapes(SADNet(**SMALL))) == names


@pytest.mark.parametrize('row', ['ROC', '---'])
def test_the_scale_of_a_module_is_that_of_the_image_it_makes(row):
  sides = {}

  def record(call, arguments, options, context):
    result = call(*arguments, **options)
    if len(context.module.path) == 1 and context.method_name == '__call__':
      sides[context.module.name] = result.shape[1:3]
    return result

  model = SADNet(**ABLATION[row], **SMALL)
  x = jax.ShapeDtypeStruct((1, 48, 80, 3), jnp.float32)
  with nn.intercept_methods(record):
    params = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  assert set(sides) == set(params)
  for name, side in sides.items():
    assert side == (48 // 2 ** (scale_of(name) - 1), 80 // 2 ** (scale_of(name) - 1)), name
  assert {scale_of(name) for name in sides} == {1, 2, 3, 4}
  assert [scale_of(name) for name in ('Conv_0', 'head', 'res5', 'res1x')] == [None] * 4


# --- Residual learning and offsets.


def test_without_last_layer_the_network_is_the_identity():
  variables = random_variables(MODEL)
  variables['params']['out'] = jax.tree.map(np.zeros_like, variables['params']['out'])
  x = image(10, size=ODD_SIZE)
  np.testing.assert_array_equal(apply(MODEL, variables, x), x)


@fast_jit
def apply_and_capture(variables, x):
  return MODEL.apply(variables, x, mutable=['intermediates'], capture_intermediates=True)


def test_reading_offsets_does_not_change_the_result_and_equals_a_computation_by_hand():
  variables, x = random_variables(MODEL), image(11, size=SIZE)
  y, state = apply_and_capture(variables, x)
  captured = state['intermediates']
  np.testing.assert_allclose(y, apply(MODEL, variables, x), atol=1e-6)
  got = mean_abs_offsets(captured)
  assert sorted(got) == ['scale1', 'scale2', 'scale3', 'scale4']
  for scale in range(1, 5):
    (predicted,) = captured[f'dres{scale}']['conv_offset_mask']['__call__']
    assert predicted.shape[-1] == 216
    want = np.abs(predicted[..., :144]).mean()
    assert want > 1e-3
    assert float(got[f'scale{scale}']) == pytest.approx(want, rel=1e-5)


def test_offsets_are_zero_at_the_start_only_if_initialised_so():
  for offset_init in ('zeros', 'xavier'):
    # The option only changes the initialisation.
    variables = init(SADNet(offset_init=offset_init, **SMALL), image())
    _, state = apply_and_capture(variables, image(12, size=SIZE))
    values = np.array(list(mean_abs_offsets(state['intermediates']).values()))
    assert values.shape == (4,)
    assert (values == 0).all() if offset_init == 'zeros' else (values > 0).all()


def test_network_without_rsab_has_no_offsets():
  model = SADNet(**ABLATION['--C'], **SMALL)
  state = jax.eval_shape(
    lambda v, x: model.apply(v, x, mutable=['intermediates'])[1], random_variables(model), image()
  )
  assert mean_abs_offsets(state.get('intermediates', {})) == {}


# --- Errors.


@pytest.mark.parametrize('shape', [(1, 8, 8, 1), (8, 8, 3), (1, 3, 8, 8), (1, 0, 8, 3), (1, 8, 0, 3)])
def test_image_of_another_shape_is_rejected(shape):
  match = re.escape(f'noisy must be [N, H, W, 3] with H and W at least 1, but has shape {shape}')
  with pytest.raises(ValueError, match=match):
    MODEL.apply(random_variables(MODEL), np.zeros(shape, np.float32))


@pytest.mark.parametrize('dtype', [np.uint8, np.bool_, np.complex64])
def test_image_that_is_not_floating_point_is_rejected(dtype):
  match = rf'noisy must be floating point with values in \[0, 1\], but has dtype {np.dtype(dtype)}'
  with pytest.raises(ValueError, match=match):
    MODEL.apply(random_variables(MODEL), np.ones((1, 8, 8, 3), dtype))


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'channels': 0}, r'SADNet\.channels must be at least 1, not 0'),
    ({'deformable_groups': 0}, r'SADNet\.deformable_groups must be at least 1, not 0'),
    ({'deformable_groups': -8}, r'SADNet\.deformable_groups must be at least 1, not -8'),
    (
      {'deformable_groups': 0, 'use_rsab': False},
      r'SADNet\.deformable_groups must be at least 1, not 0',
    ),
    ({'width': 12}, r'SADNet\.width must be a multiple of deformable_groups = 8, not 12'),
    ({'width': 0}, r'SADNet\.width must be a multiple of deformable_groups = 8, not 0'),
    (
      {'width': 8, 'deformable_groups': 3},
      r'SADNet\.width must be a multiple of deformable_groups = 3, not 8',
    ),
    ({'offset_width': 0}, r'SADNet\.offset_width must be at least 1, not 0'),
    ({'dilations': ()}, r'SADNet\.dilations must be one or more rates from 1 to 1048576, not \(\)'),
    ({'dilations': (1, 0)}, r'SADNet\.dilations must be one or more rates from 1 to 1048576, not \(1, 0\)'),
    (
      {'rsab_order': 'last'},
      r"SADNet\.rsab_order must be one of \('deform_first', 'deform_last'\), not 'last'",
    ),
    ({'last_kernel': 2}, r'SADNet\.last_kernel must be 1 or 3, not 2'),
    ({'offset_init': 'ones'}, r"SADNet\.offset_init must be one of \('zeros', 'xavier'\), not 'ones'"),
  ],
)
def test_invalid_option_is_rejected_with_what_is_valid(options, match):
  with pytest.raises(ValueError, match=match):
    SADNet(**options)


def test_width_need_not_fit_deformable_groups_without_rsab():
  model = SADNet(width=4, use_rsab=False)
  assert jax.eval_shape(model.apply, random_variables(model), image()).shape == (1, 8, 8, 3)


def test_the_network_and_its_gradient_are_traced_under_strict_settings_of_jax():
  model = SADNet(**SMALL, dtype=jnp.bfloat16)

  def mean(params, noisy):
    return jnp.mean(model.apply({'params': params}, noisy).astype(jnp.float32))

  def mean_inside(params, noisy, side):
    return jnp.mean(model.apply({'params': params}, noisy, Inside(side, side)).astype(jnp.float32))

  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    jax.eval_shape(jax.grad(mean), param_shapes(model), image())
    jax.eval_shape(mean_inside, param_shapes(model), image(), jnp.int32(8))
