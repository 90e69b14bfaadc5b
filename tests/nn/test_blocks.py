import chex
import jax
import numpy as np
import pytest

from sadnet_jax import ContextBlock, OffsetBlock, ResBlock, RSABlock
from sadnet_jax.nn.blocks import upsample_2x
from tests.support.fast_jit import fast_jit
from tests.support.small_networks import image, to_nhwc


def test_upsampling_equals_pytorch(golden):
  with np.load(golden / 'bilinear_up2.npz') as archive:
    x, y = to_nhwc(archive['x']), to_nhwc(archive['y'])
  np.testing.assert_allclose(upsample_2x(x), y, atol=1e-6)


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (4, 1)])
def test_upsampling_one_pixel_repeats_it(size):
  x = np.full((2, *size, 3), 0.7, np.float32)
  np.testing.assert_allclose(upsample_2x(x), np.full((2, 2 * size[0], 2 * size[1], 3), 0.7), atol=1e-6)


def apply_block(block, *inputs, seed=0):
  """Result of a block with random parameters, and those parameters."""
  shapes = jax.eval_shape(block.init, jax.random.key(0), *inputs)['params']
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
  return fast_jit(block.apply)({'params': params}, *inputs), params


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
  shapes = jax.tree.map(np.shape, params)
  assert shapes['conv_offset_mask'] == {'kernel': (3, 3, 6, 4 * 9 * 3), 'bias': (4 * 9 * 3,)}
  # All zeros: regular sampling, and the mask is sigmoid(0) = 1/2.
  params['conv_offset_mask'] = jax.tree.map(np.zeros_like, params['conv_offset_mask'])
  y = fast_jit(block.apply)({'params': params}, x, features)
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
  y = fast_jit(block.apply)({'params': params}, x, features)
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
    ({'order': 'last'}, r"RSABlock\.order must be one of \('deform_first', 'deform_last'\), not 'last'"),
    ({'offset_init': 'ones'}, r"RSABlock\.offset_init must be one of \('zeros', 'xavier'\), not 'ones'"),
  ],
)
def test_rsab_rejects_unknown_options(options, match):
  x = image(channels=8)
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(RSABlock(8, **options).init, jax.random.key(0), x, x)
