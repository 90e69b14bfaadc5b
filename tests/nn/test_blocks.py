import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax import ContextBlock, OffsetBlock, ResBlock, RSABlock
from sadnet_jax.nn.blocks import upsample_2x
from sadnet_jax.nn.layers import Conv, FusionConv, UpConv
from sadnet_jax.ops import add_bias, conv2d, target_platform
from tests.support.small_networks import image, to_nhwc

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
  shapes = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(module.init, jax.random.key(0), x)['params'])
  assert shapes == {'kernel': (2, 2, 4, 6), 'bias': (6,)}
  got = module.apply({'params': {'kernel': kernel.astype(np.float32), 'bias': bias.astype(np.float32)}}, x)
  np.testing.assert_allclose(got, want, atol=1e-5)


# --- Convolutions.


@pytest.mark.parametrize('size', [1, 3])
def test_fusion_equals_the_convolution_of_the_concatenation(size):
  a, b = image(33, batch=2, size=(5, 7), channels=3), image(34, batch=2, size=(5, 7), channels=4)
  module = FusionConv(6, size)
  params = module.init(jax.random.key(0), a, b)['params']
  assert jax.tree.map(lambda leaf: leaf.shape, params) == {'kernel': (size, size, 7, 6), 'bias': (6,)}
  params['bias'] = np.random.default_rng(35).normal(size=6).astype(np.float32)
  want = conv2d(np.concatenate([a, b], axis=-1), params['kernel'], params['bias'])
  np.testing.assert_allclose(module.apply({'params': params}, a, b), want, atol=1e-6)
  narrow = module.clone(dtype=jnp.bfloat16).apply({'params': params}, a, b)
  assert narrow.dtype == jnp.bfloat16
  both = [jnp.asarray(array, jnp.bfloat16) for array in (np.concatenate([a, b], axis=-1), params['kernel'])]
  # Rounded once, as the convolution of the concatenation is.
  np.testing.assert_array_equal(narrow, conv2d(*both, params['bias']))


@pytest.mark.parametrize(
  ('size', 'stride', 'dilation'),
  [(1, 1, 1), (2, 1, 1), (2, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 1, 4), (2, 2, 2)],
)
def test_convolution_equals_flax_in_float32_with_its_parameters_and_gradients(size, stride, dilation):
  x = image(30, batch=2, size=(9, 12), channels=3)
  module = Conv(5, size, stride=stride, dilation=dilation)
  flax_module = nn.Conv(
    5,
    (size, size),
    strides=stride,
    padding='SAME' if stride == 1 else 'VALID',
    kernel_dilation=dilation,
    kernel_init=nn.initializers.xavier_uniform(),
  )
  params = module.init(jax.random.key(0), x)['params']
  chex.assert_trees_all_equal_shapes_and_dtypes(params, flax_module.init(jax.random.key(0), x)['params'])
  chex.assert_trees_all_equal(params, flax_module.init(jax.random.key(0), x)['params'])
  params['bias'] = np.random.default_rng(31).normal(size=5).astype(np.float32)
  results = [_output_and_gradients(m, params, x) for m in (module, flax_module)]
  span = (size - 1) * dilation
  want = (9, 12) if stride == 1 else ((9 - span - 1) // stride + 1, (12 - span - 1) // stride + 1)
  chex.assert_shape(results[0][0], (2, *want, 5))
  chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
@pytest.mark.parametrize(('size', 'channels'), [(1, 3), (1, 9), (2, 3)])
def test_convolution_without_overlap_equals_that_of_xla(platform, size, channels):
  x, kernel = (
    image(36, batch=2, size=(9, 7), channels=channels),
    image(37, size=(size, size), channels=channels * 5),
  )
  kernel, bias = kernel.reshape(size, size, channels, 5), np.arange(5, dtype=np.float32)

  def of_xla(padding):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, (size, size), padding, dimension_numbers=numbers) + bias

  with target_platform(platform):
    np.testing.assert_allclose(conv2d(x, kernel, bias, stride=size), of_xla('VALID'), rtol=1e-5)
    around = ((1, 2), (2, 1))
    got = conv2d(x, kernel, bias, stride=size, padding=around)
  np.testing.assert_allclose(got, of_xla(around), rtol=1e-5)


def _output_and_gradients(module, params, x):
  """Output, and the gradients of its product with numbers of mean 1/2, in float32."""
  y = module.apply({'params': params}, x)
  weights = np.random.default_rng(32).uniform(size=y.shape).astype(np.float32)

  @jax.jit
  def gradients(params, x):
    return jax.grad(lambda p, x: jnp.sum(weights * module.apply({'params': p}, x)), argnums=(0, 1))(params, x)

  return y, gradients(params, x)


@pytest.mark.parametrize(
  'make',
  [lambda d: Conv(5, 3, dtype=d), lambda d: Conv(5, 2, stride=2, dtype=d), lambda d: UpConv(5, dtype=d)],
)
def test_bias_gradient_in_bfloat16_is_that_of_float32(make):
  x = image(33, batch=4, size=(64, 64), channels=3)
  params = make(None).init(jax.random.key(0), x)['params']
  _, (exact, _) = _output_and_gradients(make(jnp.float32), params, x)
  y, (rounded, _) = _output_and_gradients(make(jnp.bfloat16), params, x)
  assert y.dtype == jnp.bfloat16
  assert rounded['bias'].dtype == jnp.float32
  # A sum in bfloat16 would be off by percents: it has 8 bits for up to 65,536 summands.
  np.testing.assert_allclose(rounded['bias'], exact['bias'], rtol=5e-3)
  assert not np.array_equal(rounded['kernel'], exact['kernel'])


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_bias_is_added_to_every_channel_in_the_dtype_of_the_image(dtype):
  y, bias = jnp.zeros((2, 3, 5, 4), dtype), jnp.array([0.5, -1.0, 2.0, 3.0])
  got = add_bias(y, bias)
  assert got.dtype == dtype
  np.testing.assert_array_equal(got.astype(jnp.float32), np.broadcast_to(bias, y.shape))


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
  # A tap that leaves the shifted copy may still be inside the image; two 3x3 layers spread that by 2 px.
  interior = np.s_[:, 2:, :-2]
  np.testing.assert_allclose(y[interior], want[interior], atol=1e-5)


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'order': 'last'}, r"RSABlock\.order: got 'last', want one of \('deform_first', 'deform_last'\)"),
    ({'offset_init': 'ones'}, r"RSABlock\.offset_init: got 'ones', want one of \('zeros', 'xavier'\)"),
  ],
)
def test_rsab_refuses_unknown_options_with_got_and_wanted(options, match):
  x = image(channels=8)
  with pytest.raises(ValueError, match=match):
    RSABlock(8, **options).init(jax.random.key(0), x, x)
