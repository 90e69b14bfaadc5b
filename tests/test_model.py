import functools
import json

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax import ContextBlock, OffsetBlock, ResBlock, RSABlock, SADNet, mean_abs_offsets
from sadnet_jax.authors_weights import params_from_state_dict
from sadnet_jax.model import UpConv, pad_to_multiple, upsample_2x

# The smallest network with eight deformable groups.
SMALL = {'width': 8, 'offset_width': 8}
GOLDEN_NETWORKS = {
  'sadnet_color_c8': SADNet(channels=3, **SMALL),
  'sadnet_gray_c8_dilation1248': SADNet(channels=1, dilations=(1, 2, 4, 8), **SMALL),
}
# Table 1 of the paper: RSAB, offset transfer, context block.
ABLATION = {
  '---': {'use_rsab': False, 'use_offset_transfer': False, 'use_context': False},
  'R--': {'use_rsab': True, 'use_offset_transfer': False, 'use_context': False},
  '--C': {'use_rsab': False, 'use_offset_transfer': False, 'use_context': True},
  'R-C': {'use_rsab': True, 'use_offset_transfer': False, 'use_context': True},
  'RO-': {'use_rsab': True, 'use_offset_transfer': True, 'use_context': False},
  'ROC': {'use_rsab': True, 'use_offset_transfer': True, 'use_context': True},
}
VERSION_1 = {'rsab_order': 'deform_last', 'dilations': (1, 2, 4, 8)}


def to_nhwc(array):
  return array.transpose(0, 2, 3, 1)


def image(seed=0, *, batch=1, size=(8, 8), channels=3):
  rng = np.random.default_rng(seed)
  return rng.uniform(size=(batch, *size, channels)).astype(np.float32)


@functools.lru_cache
def param_shapes(model):
  """Shapes and dtypes of the parameters; nothing is computed."""
  x = jax.ShapeDtypeStruct((1, 8, 8, model.channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), x)['params']


def count(model):
  return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model)))


def random_variables(model, seed=0):
  """Parameters that are zero nowhere, so that every part of the network matters."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    scale = 1 / np.sqrt(leaf.size / leaf.shape[-1]) if len(leaf.shape) == 4 else 0.1
    return (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

  return {'params': jax.tree.map(draw, param_shapes(model))}


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, x):
  return model.apply(variables, x)


@functools.partial(jax.jit, static_argnums=0)
def init(model, x):
  return model.init(jax.random.key(0), x)


# --- The authors' network.


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


@pytest.mark.parametrize(
  ('kind', 'channels', 'parameters'), [('color', 3, 4_234_723), ('gray', 1, 4_234_081)]
)
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


# --- Resampling.


def test_upsampling_equals_pytorch(golden):
  with np.load(golden / 'bilinear_up2.npz') as archive:
    x, y = to_nhwc(archive['x']), to_nhwc(archive['y'])
  np.testing.assert_allclose(upsample_2x(x), y, atol=1e-6)


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (4, 1)])
def test_upsampling_one_pixel_repeats_it(size):
  x = np.full((2, *size, 3), 0.7, np.float32)
  np.testing.assert_allclose(upsample_2x(x), np.full((2, 2 * size[0], 2 * size[1], 3), 0.7), atol=1e-6)


def test_up_convolution_equals_a_loop():
  rng = np.random.default_rng(0)
  x, kernel, bias = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 2, 4, 6)), rng.normal(size=6)
  want = np.zeros((2, 6, 10, 6))
  for i, j, a, b in np.ndindex(3, 5, 2, 2):
    want[:, 2 * i + a, 2 * j + b] = x[:, i, j] @ kernel[a, b] + bias
  module = UpConv(6)
  x = x.astype(np.float32)
  shapes = jax.tree.map(jnp.shape, module.init(jax.random.key(0), x)['params'])
  assert shapes == {'kernel': (2, 2, 4, 6), 'bias': (6,)}
  got = module.apply({'params': {'kernel': kernel.astype(np.float32), 'bias': bias.astype(np.float32)}}, x)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (2, 3), (3, 2), (5, 17), (7, 8), (8, 7), (9, 4), (31, 37)])
def test_padding_equals_numpy_reflection(size):
  x = image(1, batch=2, size=size)
  extra = [(0, 0), (0, -size[0] % 8), (0, -size[1] % 8), (0, 0)]
  np.testing.assert_array_equal(pad_to_multiple(jnp.asarray(x), 8), np.pad(x, extra, mode='reflect'))


def test_padding_returns_a_multiple_itself():
  x = jnp.asarray(image(2, size=(16, 24)))
  assert pad_to_multiple(x, 8) is x


# --- Sizes.


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (2, 3), (7, 8), (8, 8), (31, 37), (65, 37)])
def test_any_image_size_keeps_its_shape(size, channels):
  model = SADNet(channels=channels, **SMALL)
  x = image(3, size=size, channels=channels)
  y = apply(model, random_variables(model), x)
  chex.assert_shape(y, x.shape)
  chex.assert_tree_all_finite(y)
  # Parameters are random: a network that returned its input would have gone unnoticed so far.
  assert np.abs(y - x).max() > 1e-3


def test_odd_image_is_the_crop_of_the_padded_image():
  model = SADNet(**SMALL)
  variables = random_variables(model)
  x = image(4, size=(31, 37))
  padded = np.pad(x, [(0, 0), (0, 1), (0, 3), (0, 0)], mode='reflect')
  got = apply(model, variables, x)
  np.testing.assert_allclose(got, apply(model, variables, padded)[:, :31, :37], atol=1e-6)


def test_empty_batch_keeps_its_shape():
  model = SADNet(**SMALL)
  chex.assert_shape(apply(model, random_variables(model), image(batch=0, size=(9, 16))), (0, 9, 16, 3))


def test_each_image_is_denoised_independently_of_its_batch():
  model = SADNet(**SMALL)
  variables = random_variables(model)
  x = image(5, batch=3, size=(16, 24))
  together = apply(model, variables, x)
  alone = np.concatenate([apply(model, variables, x[i : i + 1]) for i in range(3)])
  np.testing.assert_allclose(together, alone, atol=1e-5)
  reversed_batch = apply(model, variables, x[::-1])
  np.testing.assert_allclose(reversed_batch[::-1], together, atol=1e-5)


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
def test_ablation_network_runs_with_its_parameters(row):
  model = SADNet(**ABLATION[row], **SMALL)
  assert count(model) == expected_count(**ABLATION[row])
  x = image(6)
  y = apply(model, random_variables(model), x)
  chex.assert_equal_shape([x, y])
  chex.assert_tree_all_finite(y)
  assert np.abs(y - x).max() > 1e-3


def test_ablation_networks_differ_from_each_other():
  counts = {row: count(SADNet(**options, **SMALL)) for row, options in ABLATION.items()}
  assert len(set(counts.values())) == len(counts)
  assert counts['---'] < counts['R--'] < counts['RO-'] < counts['ROC']
  assert counts['---'] < counts['--C'] < counts['R-C'] < counts['ROC']


def test_version_1_has_the_same_parameters_but_another_order():
  model = SADNet(**SMALL)
  version_1 = SADNet(**VERSION_1, **SMALL)
  chex.assert_trees_all_equal_shapes_and_dtypes(param_shapes(version_1), param_shapes(model))
  variables, x = random_variables(model), image(7, size=(16, 16))
  results = [
    apply(network, variables, x)
    for network in (
      model,
      version_1,
      model.clone(rsab_order='deform_last'),
      model.clone(dilations=(1, 2, 4, 8)),
    )
  ]
  chex.assert_tree_all_finite(results)
  for i in range(4):
    for j in range(i):
      assert np.abs(results[i] - results[j]).max() > 1e-4, (i, j)


def test_number_of_dilations_is_free():
  model = SADNet(dilations=(1, 2), **SMALL)
  assert count(model) == expected_count(**ABLATION['ROC'], branches=2)
  chex.assert_shape(apply(model, random_variables(model), image()), (1, 8, 8, 3))


def test_last_kernel_1_changes_only_the_last_layer():
  shapes, pointwise = (param_shapes(SADNet(last_kernel=k, **SMALL)) for k in (3, 1))
  assert shapes.pop('out')['kernel'].shape == (3, 3, 8, 3)
  assert pointwise.pop('out')['kernel'].shape == (1, 1, 8, 3)
  chex.assert_trees_all_equal_shapes(shapes, pointwise)
  model = SADNet(last_kernel=1, **SMALL)
  chex.assert_shape(apply(model, random_variables(model), image()), (1, 8, 8, 3))


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
  x = image(8, size=(16, 16))
  model = SADNet(dtype=jnp.bfloat16, **SMALL)
  assert {leaf.dtype for leaf in jax.tree.leaves(param_shapes(model))} == {jnp.dtype(jnp.float32)}
  variables = random_variables(model)
  y = apply(model, variables, x)
  assert y.dtype == jnp.float32
  noise, exact = y - x, apply(SADNet(**SMALL), variables, x) - x
  error = np.linalg.norm(noise - exact) / np.linalg.norm(exact)
  # Not zero: the computation was in bfloat16 indeed.
  assert 1e-4 < error < 5e-2


def test_bfloat16_image_gives_bfloat16():
  model = SADNet(**SMALL)
  y = apply(model, random_variables(model), jnp.asarray(image(), jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  chex.assert_tree_all_finite(y)


def test_float64_image_gives_float64():
  model = SADNet(**SMALL)
  variables = random_variables(model)
  with jax.enable_x64(True):
    y = apply(model, variables, image(9).astype(np.float64))
  assert y.dtype == np.float64
  np.testing.assert_allclose(y, apply(model, variables, image(9)), atol=1e-5)


# --- Residual learning and offsets.


def test_without_last_layer_the_network_is_the_identity():
  model = SADNet(**SMALL)
  variables = random_variables(model)
  variables['params']['out'] = jax.tree.map(np.zeros_like, variables['params']['out'])
  x = image(10, size=(9, 15))
  np.testing.assert_array_equal(apply(model, variables, x), x)


def test_reading_offsets_does_not_change_the_result_and_equals_a_computation_by_hand():
  model = SADNet(**SMALL)
  variables, x = random_variables(model), image(11, batch=2, size=(16, 24))

  @jax.jit
  def apply_and_record(variables, x):
    return model.apply(variables, x, mutable=['intermediates'])

  @jax.jit
  def apply_and_capture(variables, x):
    return model.apply(variables, x, mutable=['intermediates'], capture_intermediates=True)[1]

  y, state = apply_and_record(variables, x)
  np.testing.assert_allclose(y, apply(model, variables, x), atol=1e-6)
  got = mean_abs_offsets(state['intermediates'])
  assert sorted(got) == ['scale1', 'scale2', 'scale3', 'scale4']
  captured = apply_and_capture(variables, x)['intermediates']
  for scale in range(1, 5):
    (predicted,) = captured[f'dres{scale}']['conv_offset_mask']['__call__']
    assert predicted.shape[-1] == 216
    want = np.abs(predicted[..., :144]).mean()
    assert want > 1e-3
    assert float(got[f'scale{scale}']) == pytest.approx(want, rel=1e-5)


def test_offsets_are_zero_at_the_start_only_if_initialised_so():
  for offset_init in ('zeros', 'xavier'):
    model = SADNet(offset_init=offset_init, **SMALL)
    state = model.apply(init(model, image()), image(12), mutable=['intermediates'])[1]
    values = np.array(list(mean_abs_offsets(state['intermediates']).values()))
    assert values.shape == (4,)
    assert (values == 0).all() if offset_init == 'zeros' else (values > 0).all()


def test_network_without_rsab_has_no_offsets():
  model = SADNet(**ABLATION['--C'], **SMALL)
  state = model.apply(random_variables(model), image(), mutable=['intermediates'])[1]
  assert mean_abs_offsets(state.get('intermediates', {})) == {}


# --- Blocks.


def apply_block(block, *inputs, seed=0):
  """Result of a block with random parameters, and those parameters."""
  shapes = jax.eval_shape(block.init, jax.random.key(0), *inputs)['params']
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
  return jax.jit(block.apply)({'params': params}, *inputs), params


def convolve(x, layer, dilation=1):
  """A 3x3 or 1x1 convolution that keeps the size, written with shifted slices."""
  kernel, bias = layer['kernel'], layer['bias']
  radius = kernel.shape[0] // 2 * dilation
  height, width = x.shape[1:3]
  padded = np.pad(x, [(0, 0), (radius, radius), (radius, radius), (0, 0)])
  return bias + sum(
    padded[:, a * dilation : a * dilation + height, b * dilation : b * dilation + width] @ kernel[a, b]
    for a, b in np.ndindex(kernel.shape[:2])
  )


def leaky(x):
  return np.where(x > 0, x, 0.2 * x)


def test_res_block_is_the_formula():
  x = image(20, size=(5, 7), channels=8)
  y, params = apply_block(ResBlock(8), x)
  chex.assert_shape(y, (1, 5, 7, 8))
  want = x + convolve(leaky(convolve(x, params['conv1'])), params['conv2'])
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_res_block_projects_before_the_skip():
  x = image(21, size=(5, 7), channels=3)
  y, params = apply_block(ResBlock(8, project=True), x)
  chex.assert_shape(y, (1, 5, 7, 8))
  x = convolve(x, params['conv0'])
  np.testing.assert_allclose(y, x + convolve(leaky(convolve(x, params['conv1'])), params['conv2']), atol=1e-5)


def test_context_block_is_the_formula():
  x = image(22, size=(9, 10), channels=16)
  y, params = apply_block(ContextBlock(16, dilations=(1, 2, 4)), x)
  chex.assert_shape(y, (1, 9, 10, 16))
  compressed = convolve(x, params['conv0'])
  chex.assert_shape(compressed, (1, 9, 10, 4))
  branches = [leaky(convolve(compressed, params[f'conv{i}'], d)) for i, d in ((1, 1), (2, 2), (3, 4))]
  want = x + convolve(np.concatenate(branches, -1), params['fusion'])
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_offset_block_doubles_the_upsampled_coarser_offsets():
  x, coarser = image(23, size=(6, 10), channels=16), image(24, size=(3, 5), channels=8)
  y, params = apply_block(OffsetBlock(8), x, coarser)
  chex.assert_shape(y, (1, 6, 10, 8))
  own = leaky(convolve(x, params['offset_conv1']))
  both = np.concatenate([own, 2 * np.asarray(upsample_2x(coarser))], -1)
  want = leaky(convolve(leaky(convolve(both, params['offset_conv2'])), params['offset_conv3']))
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_offset_block_at_the_coarsest_scale_has_no_second_layer():
  x = image(25, size=(6, 10), channels=16)
  y, params = apply_block(OffsetBlock(8), x)
  chex.assert_shape(y, (1, 6, 10, 8))
  assert sorted(params) == ['offset_conv1', 'offset_conv3']
  want = leaky(convolve(leaky(convolve(x, params['offset_conv1'])), params['offset_conv3']))
  np.testing.assert_allclose(y, want, atol=1e-5)


@pytest.mark.parametrize('order', ['deform_first', 'deform_last'])
def test_rsab_with_zero_offsets_is_a_half_weighted_res_block(order):
  x, features = image(26, size=(5, 7), channels=16), image(27, size=(5, 7), channels=6)
  block = RSABlock(16, deformable_groups=4, order=order)
  _, params = apply_block(block, x, features)
  shapes = jax.tree.map(jnp.shape, params)
  assert shapes['conv_offset_mask'] == {'kernel': (3, 3, 6, 4 * 9 * 3), 'bias': (4 * 9 * 3,)}
  # All zeros: regular sampling, and the mask is sigmoid(0) = 1/2.
  params['conv_offset_mask'] = jax.tree.map(np.zeros_like, params['conv_offset_mask'])
  y = jax.jit(block.apply)({'params': params}, x, features)
  chex.assert_shape(y, (1, 5, 7, 16))
  half = {**params['deform_conv'], 'kernel': params['deform_conv']['kernel'] / 2}
  first, second = (half, params['conv1']) if order == 'deform_first' else (params['conv1'], half)
  np.testing.assert_allclose(y, x + convolve(leaky(convolve(x, first)), second), atol=1e-5)


def test_rsab_takes_first_channels_as_offsets_and_last_as_mask():
  x, features = image(28, size=(6, 7), channels=8), image(29, size=(6, 7), channels=4)
  block = RSABlock(8)
  _, params = apply_block(block, x, features)
  params['conv_offset_mask'] = jax.tree.map(np.zeros_like, params['conv_offset_mask'])
  bias = params['conv_offset_mask']['bias']
  bias[0:144:2], bias[1:144:2] = 1, -2
  # sigmoid(log 3) = 3/4.
  bias[144:] = np.log(3)
  y = jax.jit(block.apply)({'params': params}, x, features)
  # Everything is read one pixel lower and two to the left, zeros from outside.
  shifted = np.pad(x, [(0, 0), (0, 1), (2, 0), (0, 0)])[:, 1:, :7]
  scaled = {**params['deform_conv'], 'kernel': 0.75 * params['deform_conv']['kernel']}
  want = x + convolve(leaky(convolve(shifted, scaled)), params['conv1'])
  # The pixel of the image that the shifted copy does not hold is read as padding elsewhere: interior only.
  interior = np.s_[:, 1:-2, 3:-1]
  np.testing.assert_allclose(y[interior], want[interior], atol=1e-5)


# --- Errors.


@pytest.mark.parametrize(
  ('shape', 'match'),
  [
    ((1, 8, 8, 1), r'noisy: got shape \(1, 8, 8, 1\), want \[N, H, W, 3\] with H, W of at least 1'),
    ((8, 8, 3), r'noisy: got shape \(8, 8, 3\), want \[N, H, W, 3\]'),
    ((1, 3, 8, 8), r'noisy: got shape \(1, 3, 8, 8\), want \[N, H, W, 3\]'),
    ((1, 0, 8, 3), r'noisy: got shape \(1, 0, 8, 3\), want \[N, H, W, 3\]'),
    ((1, 8, 0, 3), r'noisy: got shape \(1, 8, 0, 3\), want \[N, H, W, 3\]'),
  ],
)
def test_unfit_image_is_refused_with_got_and_wanted(shape, match):
  model = SADNet(**SMALL)
  with pytest.raises(ValueError, match=match):
    model.apply(random_variables(model), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'channels': 0}, r'SADNet\.channels: got 0, want at least 1'),
    ({'width': 12}, r'SADNet\.width: got 12, want a multiple of deformable_groups = 8'),
    ({'width': 0}, r'SADNet\.width: got 0, want a multiple of deformable_groups = 8'),
    ({'width': 8, 'deformable_groups': 3}, r'SADNet\.width: got 8, want a multiple of deformable_groups = 3'),
    ({'offset_width': 0}, r'SADNet\.offset_width: got 0, want at least 1'),
    ({'dilations': ()}, r'SADNet\.dilations: got \(\), want one or more rates of at least 1'),
    ({'dilations': (1, 0)}, r'SADNet\.dilations: got \(1, 0\), want one or more rates of at least 1'),
    ({'rsab_order': 'last'}, r"SADNet\.rsab_order: got 'last', want 'deform_first' or 'deform_last'"),
    ({'last_kernel': 2}, r'SADNet\.last_kernel: got 2, want 1 or 3'),
    ({'offset_init': 'ones'}, r"SADNet\.offset_init: got 'ones', want 'zeros' or 'xavier'"),
  ],
)
def test_unfit_option_is_refused_with_got_and_wanted(options, match):
  with pytest.raises(ValueError, match=match):
    SADNet(**options)


def test_width_need_not_fit_deformable_groups_without_rsab():
  model = SADNet(width=4, use_rsab=False)
  chex.assert_shape(apply(model, random_variables(model), image()), (1, 8, 8, 3))


def test_parameters_are_those_of_a_plain_linen_tree():
  # Checkpoints and the conversion rely on these names.
  model = SADNet(**SMALL)
  assert isinstance(model, nn.Module)
  names = {f'{kind}{scale}' for kind in ('res', 'offset', 'dres') for scale in range(1, 5)}
  names |= {f'{kind}{scale}' for kind in ('down', 'up') for scale in range(1, 4)}
  names |= {f'dconv{scale}_1' for scale in range(1, 4)} | {'context', 'out'}
  assert set(param_shapes(model)) == names
