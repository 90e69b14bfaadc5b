import json
from pathlib import Path

import chex
import jax
from jax import lax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from sadnet_jax import deform_conv2d
from sadnet_jax.ops import sampling
from sadnet_jax.ops.platform import target_platform
from tests.support.deform_conv_layers import (
  ASYMMETRIC,
  NAMES,
  asymmetric_inputs,
  fast_output_and_gradients,
  gradients,
  output_and_gradients,
  relative_error,
  simple,
  simple_inputs,
)
from tests.support.deform_conv_oracle import deform_conv2d_loops

CASES = {
  case['name']: case
  for case in json.loads((Path(__file__).parent.parent / 'golden' / 'deform_conv2d_float64.json').read_text())
}


def load_case(golden, name, dtype):
  """Inputs, output, cotangent and gradients of one case in our layout, and its options."""
  to_ours = {'weight': (2, 3, 1, 0), 'bias': (0,)}
  with np.load(golden / 'deform_conv2d_float64.npz') as archive:
    arrays = {
      key.partition('/')[2]: archive[key].astype(dtype)
      for key in archive.files
      if key.partition('/')[0] == name
    }
  arrays = {
    key: value.transpose(to_ours.get(key.removeprefix('grad_'), (0, 2, 3, 1)))
    for key, value in arrays.items()
  }
  options = {
    key: CASES[name][key] for key in ('stride', 'padding', 'dilation', 'groups', 'deformable_groups')
  }
  inputs = [arrays.get(key) for key in ('x', 'offset', 'mask', 'weight', 'bias')]
  gradients = [arrays.get(f'grad_{key}') for key in ('x', 'offset', 'mask', 'weight', 'bias')]
  return inputs, arrays['y'], arrays['cotangent'], gradients, options


# --- The reference implementation and the definition.


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
@pytest.mark.parametrize('name', CASES)
def test_float64_output_and_gradients_equal_torchvision(golden, name, platform, monkeypatch):
  monkeypatch.setattr('sadnet_jax.ops.platform.MIN_VALUES_FOR_BARRIERS', 0)
  # What is traced for an accelerator runs on a CPU as well.
  with jax.enable_x64(True), target_platform(platform):
    inputs, y, cotangent, wanted, options = load_case(golden, name, np.float64)
    output, got = output_and_gradients(lambda *args: deform_conv2d(*args, **options), inputs, cotangent)
    assert output.dtype == np.float64
    assert relative_error(output, y) < 1e-10
    for key, gradient, want in zip(NAMES, got, wanted, strict=True):
      assert (gradient is None) == (want is None), key
      if want is not None:
        assert relative_error(gradient, want) < 1e-10, key


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
@pytest.mark.parametrize('name', CASES)
def test_float32_output_equals_torchvision(golden, name, platform, monkeypatch):
  monkeypatch.setattr('sadnet_jax.ops.platform.MIN_VALUES_FOR_BARRIERS', 0)
  inputs, y, _, _, options = load_case(golden, name, np.float32)
  with target_platform(platform):
    got = jax.jit(lambda *args: deform_conv2d(*args, **options))(*inputs)
  assert got.dtype == jnp.float32
  assert relative_error(got, y) < 1e-5


@pytest.mark.parametrize('modulated', [True, False])
@pytest.mark.parametrize('biased', [True, False])
def test_equals_slow_loops_on_asymmetric_sizes(modulated, biased):
  inputs = asymmetric_inputs(modulated=modulated, biased=biased)
  want = deform_conv2d_loops(*inputs, **ASYMMETRIC)
  with jax.enable_x64(True):
    got = deform_conv2d(*inputs, **ASYMMETRIC)
  assert got.dtype == np.float64
  assert relative_error(got, want) < 1e-13


def test_written_out_sums_over_channels_change_no_gradient(monkeypatch):
  inputs, cotangent = asymmetric_inputs(3), np.random.default_rng(4).normal(size=(3, 3, 5, 4))
  results = []
  for channels in (0, 100):
    monkeypatch.setattr(sampling, 'UNROLLED_CHANNELS', channels)
    with jax.enable_x64(True):
      results.append(
        output_and_gradients(lambda *args: deform_conv2d(*args, **ASYMMETRIC), inputs, cotangent)
      )
  chex.assert_trees_all_close(*results, rtol=1e-12, atol=1e-12)


def test_block_size_changes_neither_output_nor_gradients():
  inputs = asymmetric_inputs(1)
  cotangent = np.random.default_rng(2).normal(size=(3, 3, 5, 4))
  with jax.enable_x64(True):

    def everything(block_pixels):
      def function(*args):
        return deform_conv2d(*args, **ASYMMETRIC, block_pixels=block_pixels)

      return jax.tree.leaves(fast_output_and_gradients(function, inputs, cotangent))

    want = everything(None)
    # 45 pixels in all: 1 leaves no remainder, 7 leaves one, 1000 is more than there are.
    for block_pixels in (1, 7, 1000):
      for got, array in zip(everything(block_pixels), want, strict=True):
        assert relative_error(got, array) < 1e-13, block_pixels


@pytest.mark.parametrize('modulated', [True, False])
def test_gradients_equal_finite_differences(modulated):
  inputs = asymmetric_inputs(3, batch=2, modulated=modulated)
  with jax.enable_x64(True):
    given = [jnp.asarray(a) for a in inputs if a is not None]

    @jax.jit
    def function(*args):
      return deform_conv2d(*(args if modulated else (*args[:2], None, *args[2:])), **ASYMMETRIC)

    jax.test_util.check_grads(function, given, order=1, modes=['rev'], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('modulated', [True, False])
@pytest.mark.parametrize(
  ('kernel_size', 'stride', 'padding', 'dilation', 'groups'),
  [
    ((3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((3, 2), (2, 1), (1, 0), (2, 1), 2),
    ((1, 4), (3, 2), (0, 3), (1, 2), 4),
  ],
)
def test_without_displacement_is_a_regular_convolution(
  modulated, kernel_size, stride, padding, dilation, groups
):
  rng = np.random.default_rng(4)
  x = rng.normal(size=(2, 11, 8, 8)).astype(np.float32)
  kernel = rng.normal(size=(*kernel_size, 8 // groups, 12)).astype(np.float32)
  want = lax.conv_general_dilated(
    x,
    kernel,
    stride,
    [(p, p) for p in padding],
    rhs_dilation=dilation,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )
  samples = 2 * kernel_size[0] * kernel_size[1]
  got = deform_conv2d(
    x,
    np.zeros((*want.shape[:3], 2 * samples), np.float32),
    np.ones((*want.shape[:3], samples), np.float32) if modulated else None,
    kernel,
    stride=stride,
    padding=padding,
    dilation=dilation,
    groups=groups,
    deformable_groups=2,
  )
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize('size', [(1, 1), (1, 8), (5, 1), (31, 37)])
def test_any_image_size_equals_slow_loops(size):
  inputs = simple_inputs(10, batch=1, size=size, channels=2, features=1)
  want = deform_conv2d_loops(
    *inputs, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, deformable_groups=2
  )
  assert relative_error(simple(*inputs), want) < 1e-5


# --- The border, and offsets that are not sensible.


def sample_at(image, y, x):
  """What a 1x1 kernel of weight 1 reads from a [H, W] image at the location (y, x)."""
  offset = np.zeros((1, *image.shape, 2), np.float32)
  offset[0, 0, 0] = y, x
  kernel = np.ones((1, 1, 1, 1), np.float32)
  return float(deform_conv2d(image[None, :, :, None], offset, None, kernel)[0, 0, 0, 0])


@pytest.mark.parametrize(
  ('y', 'x', 'want'),
  [
    (0.0, 0.0, 2.0),
    (0.5, 0.25, 0.5 * (0.75 * 2 + 0.25 * 3) + 0.5 * (0.75 * 7 + 0.25 * 11)),
    (-0.25, 0.0, 0.75 * 2),
    (0.0, -0.75, 0.25 * 2),
    (-0.5, -0.5, 0.25 * 2),
    (1.25, 2.0, 0.75 * 13),
    (1.0, 2.5, 0.5 * 13),
    (1.5, 2.75, 0.5 * 0.25 * 13),
    (-0.5, 0.5, 0.5 * (0.5 * 2 + 0.5 * 3)),
    (-1.0, 0.0, 0.0),
    (0.0, -1.0, 0.0),
    (2.0, 0.0, 0.0),
    (0.0, 3.0, 0.0),
    (-1.5, 1.0, 0.0),
    (0.0, 3.5, 0.0),
  ],
)
def test_outside_neighbours_count_as_zero(y, x, want):
  image = np.array([[2, 3, 5], [7, 11, 13]], np.float32)
  assert sample_at(image, y, x) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize('axis', ['y', 'x', 'both'])
@pytest.mark.parametrize('value', [1e30, -1e30, np.inf, -np.inf])
def test_huge_and_infinite_offsets_sample_zeros_with_finite_gradients(value, axis):
  x, offset, mask, kernel, bias = simple_inputs(5)
  if axis in ('y', 'both'):
    offset[..., 0::2] = value
  if axis in ('x', 'both'):
    offset[..., 1::2] = value
  y = simple(x, offset, mask, kernel, bias)
  np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))
  dx, doffset, dmask, dkernel, dbias = gradients(simple, (x, offset, mask, kernel, bias), np.ones_like(y))
  # Nothing was read, so nothing but the bias has an influence.
  for gradient in (dx, doffset, dmask, dkernel):
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
  np.testing.assert_allclose(dbias, np.full(bias.shape, y.size / bias.size))


def test_one_infinite_offset_leaves_the_gradients_of_the_others():
  x, offset, mask, kernel, bias = simple_inputs(6)
  offset[0, 2, 3, 5] = np.inf
  far = offset.copy()
  far[0, 2, 3, 5] = 100.0
  cotangent = np.random.default_rng(7).normal(size=x.shape).astype(np.float32)
  got = gradients(simple, (x, offset, mask, kernel, bias), cotangent)
  want = gradients(simple, (x, far, mask, kernel, bias), cotangent)
  chex.assert_trees_all_close(got, want, atol=1e-6)


@pytest.mark.parametrize('channel', [0, 1, 31])
def test_nan_offset_spoils_only_its_own_pixel(channel):
  x, offset, mask, kernel, bias = simple_inputs(8)
  clean = np.asarray(simple(x, offset, mask, kernel, bias))
  offset[1, 4, 2, channel] = np.nan
  y = np.asarray(simple(x, offset, mask, kernel, bias))
  spoiled = np.zeros(y.shape, bool)
  spoiled[1, 4, 2] = True
  np.testing.assert_array_equal(np.isnan(y), spoiled)
  np.testing.assert_allclose(y[~spoiled], clean[~spoiled], atol=1e-6)


def test_nan_offset_spoils_no_gradient_of_other_pixels():
  x, offset, mask, kernel, bias = simple_inputs(9)
  offset[1, 4, 2, 7] = np.nan
  cotangent = np.ones(x.shape, np.float32)
  dx, doffset, dmask, _, _ = gradients(simple, (x, offset, mask, kernel, bias), cotangent)
  other = np.ones(x.shape[:3], bool)
  other[1, 4, 2] = False
  assert np.isfinite(np.asarray(doffset)[other]).all()
  assert np.isfinite(np.asarray(dmask)[other]).all()
  assert np.isfinite(np.asarray(dx)[0]).all()


# --- Mathematical laws.


def plain_convolution(x, kernel):
  return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def constant_offset(x, dy, dx):
  return np.tile(np.array([dy, dx], np.float32), (*x.shape[:3], 18))


@pytest.mark.parametrize(('dy', 'dx'), [(1, 2), (-2, 1), (0, -3), (3, 0)])
def test_whole_offset_equals_shifted_image_in_the_interior(dy, dx):
  x, _, _, kernel, _ = simple_inputs(30, size=(12, 13))
  got = simple(x, constant_offset(x, dy, dx), None, kernel)
  want = plain_convolution(np.roll(x, (-dy, -dx), axis=(1, 2)), kernel)
  # Away from the border by the kernel's radius and the displacement nothing wraps around.
  interior = np.s_[:, 4:-4, 4:-4]
  np.testing.assert_allclose(got[interior], want[interior], atol=1e-5)


def test_half_pixel_offset_averages_the_two_shifted_results():
  x, _, _, kernel, _ = simple_inputs(31, size=(9, 10))
  regular = plain_convolution(x, kernel)
  down = simple(x, constant_offset(x, 0.5, 0), None, kernel)
  right = simple(x, constant_offset(x, 0, 0.5), None, kernel)
  np.testing.assert_allclose(down[:, :-1], (regular[:, :-1] + regular[:, 1:]) / 2, atol=1e-5)
  np.testing.assert_allclose(right[:, :, :-1], (regular[:, :, :-1] + regular[:, :, 1:]) / 2, atol=1e-5)


@pytest.mark.parametrize('argument', ['x', 'mask', 'kernel'])
def test_is_linear_in_image_mask_and_kernel(argument):
  inputs = simple_inputs(32)[:4]
  position = NAMES.index(argument)
  first = inputs[position]
  second = np.random.default_rng(33).normal(size=first.shape).astype(np.float32)

  def function(value):
    return simple(*inputs[:position], value, *inputs[position + 1 :])

  got = function(2 * first - 3 * second)
  np.testing.assert_allclose(got, 2 * function(first) - 3 * function(second), atol=1e-3)
