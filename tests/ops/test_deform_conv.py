import json
from pathlib import Path
import re

import chex
import jax
from jax import lax
import jax.export
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import jax.test_util
import numpy as np
import pytest

from sadnet_jax.ops import deform_conv2d, deform_conv2d_packed, target_platform
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
from tests.support.fast_jit import fast_jit

CASES = {
  case['name']: case
  for case in json.loads((Path(__file__).parent.parent / 'golden' / 'deform_conv2d_float64.json').read_text())
}


def load_case(golden, name):
  """Inputs, output, cotangent and gradients of one case in our layout, and its options."""
  to_ours = {'weight': (2, 3, 1, 0), 'bias': (0,)}
  with np.load(golden / 'deform_conv2d_float64.npz') as archive:
    arrays = {
      key.partition('/')[2]: archive[key].astype(np.float64)
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


# --- Equal to torchvision and to the definition.


@pytest.mark.parametrize(
  ('name', 'platform'), [*((name, 'cpu') for name in CASES), ('sadnet_like', 'cuda'), ('unmodulated', 'cuda')]
)
def test_output_and_gradients_equal_torchvision(golden, name, platform, monkeypatch):
  monkeypatch.setattr('sadnet_jax.ops.platform.MIN_VALUES_FOR_BARRIERS', 0)
  # The case that is like SADNet is compiled with all optimisations, as users do. A program traced for an
  # accelerator runs on a CPU, too.
  run = output_and_gradients if name == 'sadnet_like' else fast_output_and_gradients
  with jax.enable_x64(True), target_platform(platform):
    inputs, y, cotangent, expected, options = load_case(golden, name)
    output, got = run(lambda *args: deform_conv2d(*args, **options), inputs, cotangent)
    assert output.dtype == np.float64
    assert relative_error(output, y) < 1e-10
    for key, gradient, want in zip(NAMES, got, expected, strict=True):
      assert (gradient is None) == (want is None), key
      if want is not None:
        assert relative_error(gradient, want) < 1e-10, key


def test_samples_far_outside_have_no_gradient_on_any_platform():
  x, offset, mask, kernel, bias = asymmetric_inputs(7)
  cotangent = np.random.default_rng(8).normal(size=(3, 3, 5, 4))
  # Most locations lie outside, some on the first and last row and column outside.
  inputs = x, np.round(6 * offset), mask, kernel, bias
  results = []
  for platform in ('cpu', 'cuda'):
    with jax.enable_x64(True), target_platform(platform):
      results.append(
        fast_output_and_gradients(lambda *args: deform_conv2d(*args, **ASYMMETRIC), inputs, cotangent)
      )
  assert np.abs(results[0][1][0]).max() > 0
  chex.assert_trees_all_close(*results, rtol=1e-12, atol=1e-12)


def test_packed_offsets_and_logits_equal_separate_arrays_in_value_and_gradients():
  x, offset, _, kernel, bias = asymmetric_inputs(5)
  rng = np.random.default_rng(6)
  logits = rng.normal(size=(*offset.shape[:3], offset.shape[3] // 2))
  cotangent = rng.normal(size=(3, 3, 5, 4))

  def separate(x, offset, logits, kernel, bias):
    return deform_conv2d(x, offset, jax.nn.sigmoid(logits), kernel, bias, **ASYMMETRIC)

  def packed(x, offset, logits, kernel, bias):
    return deform_conv2d_packed(x, jnp.concatenate([offset, logits], axis=-1), kernel, bias, **ASYMMETRIC)

  with jax.enable_x64(True):
    inputs = (x, offset, logits, kernel, bias)
    want, got = (fast_output_and_gradients(f, inputs, cotangent) for f in (separate, packed))
  chex.assert_trees_all_close(got, want, rtol=1e-12, atol=1e-12)


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
    monkeypatch.setattr('sadnet_jax.ops.sampling.UNROLLED_CHANNELS', channels)
    with jax.enable_x64(True):
      # A function of its own, so that JAX does not reuse the first program.
      results.append(
        fast_output_and_gradients(lambda *args: deform_conv2d(*args, **ASYMMETRIC), inputs, cotangent)
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


def test_gradients_equal_finite_differences():
  inputs = asymmetric_inputs(3, batch=2)
  with jax.enable_x64(True):

    @jax.jit
    def function(*args):
      return deform_conv2d(*args, **ASYMMETRIC)

    inputs = [jnp.asarray(a) for a in inputs]
    jax.test_util.check_grads(function, inputs, order=1, modes=['rev'], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
  ('modulated', 'kernel_size', 'stride', 'padding', 'dilation', 'groups'),
  [
    (True, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (False, (3, 2), (2, 1), (1, 0), (2, 1), 2),
    (True, (1, 4), (3, 2), (0, 3), (1, 2), 4),
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


@pytest.mark.parametrize('size', [(1, 1), (5, 1), (31, 37)])
def test_any_image_size_equals_slow_loops(size):
  inputs = simple_inputs(10, batch=1, size=size, channels=2, features=1)
  want = deform_conv2d_loops(
    *inputs, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, deformable_groups=2
  )
  assert relative_error(simple(*inputs), want) < 1e-5


# --- The border, and extreme offsets.


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


@pytest.mark.parametrize('axis', ['y', 'x'])
@pytest.mark.parametrize('value', [1e30, -1e30, np.inf, -np.inf])
def test_huge_and_infinite_offsets_sample_zeros_with_finite_gradients(value, axis):
  x, offset, mask, kernel, bias = simple_inputs(5)
  offset[..., 'yx'.index(axis) :: 2] = value
  y = simple(x, offset, mask, kernel, bias)
  np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))
  dx, doffset, dmask, dkernel, dbias = gradients(simple, (x, offset, mask, kernel, bias), np.ones_like(y))
  # Everything sampled is zero, so only the bias has an effect.
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


@pytest.mark.parametrize('channel', [6, 7])
def test_the_gradient_of_a_nan_offset_is_nan(channel):
  x, offset, mask, kernel, bias = simple_inputs(9)
  offset[1, 4, 2, channel] = np.nan
  _, doffset, *_ = gradients(simple, (x, offset, mask, kernel, bias), np.ones(x.shape, np.float32))
  assert np.isnan(doffset[1, 4, 2, channel])


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


def test_second_derivatives_by_reverse_over_reverse():
  """Of the squared gradients, as gradient penalties need, against differences in float64."""
  with jax.enable_x64(True):
    inputs = tuple(np.float64(a) for a in simple_inputs(10, batch=1, size=(3, 4), channels=2, features=2))
    first = jax.grad(lambda *args: jnp.sum(simple(*args) ** 2), argnums=(0, 1, 2, 3))

    def penalty(*args):
      return sum(jnp.sum(g**2) for g in first(*args))

    second = jax.jit(jax.grad(penalty, argnums=(0, 1, 2, 3)))(*inputs)
    penalty = jax.jit(penalty)
    rng, step = np.random.default_rng(11), 1e-6
    for which, gradient in enumerate(second):
      along = rng.normal(size=gradient.shape)
      ends = []
      for sign in (1, -1):
        moved = list(inputs)
        moved[which] = inputs[which] + sign * step * along
        ends.append(float(penalty(*moved)))
      assert np.vdot(gradient, along) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_one_exported_program_takes_images_of_any_size():
  shapes = jax.export.symbolic_args_specs(simple_inputs(), ('n,h,w,4', 'n,h,w,36', 'n,h,w,18', '...', '...'))
  exported = jax.export.export(jax.jit(simple))(*shapes)
  for batch, size in ((1, (7, 9)), (3, (2, 5))):
    inputs = simple_inputs(12, batch=batch, size=size)
    np.testing.assert_allclose(exported.call(*inputs), simple(*inputs), atol=1e-5)


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


# --- Sizes and dtypes.


def test_empty_batch_gives_empty_output_and_zero_gradients():
  inputs = asymmetric_inputs(batch=0, dtype=np.float32)

  def function(*args):
    return deform_conv2d(*args, **ASYMMETRIC)

  chex.assert_shape(function(*inputs), (0, 3, 5, 4))
  got = gradients(function, inputs, np.zeros((0, 3, 5, 4), np.float32))
  for gradient, array in zip(got, inputs, strict=True):
    np.testing.assert_array_equal(gradient, np.zeros_like(array))


@pytest.mark.parametrize(
  ('x_dtype', 'kernel_dtype', 'want'),
  [
    (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
    (jnp.bfloat16, np.float32, np.float32),
    (np.float32, np.float64, np.float64),
  ],
)
def test_output_has_the_common_dtype_and_gradients_have_those_of_their_arrays(x_dtype, kernel_dtype, want):
  with jax.enable_x64(True):
    x, offset, mask, kernel, bias = simple_inputs(11, batch=1, size=(2, 3))
    inputs = (
      jnp.asarray(x, x_dtype),
      jnp.asarray(offset),
      jnp.asarray(mask, x_dtype),
      jnp.asarray(kernel, kernel_dtype),
      jnp.asarray(bias),
    )
    y, got = fast_output_and_gradients(simple, inputs, jnp.ones((1, 2, 3, 4), want))
    assert y.dtype == want
    for gradient, array in zip(got, inputs, strict=True):
      assert gradient.dtype == array.dtype


def test_bfloat16_is_close_to_float32():
  x, offset, mask, kernel, bias = simple_inputs(12, size=(8, 9))
  cotangent = np.random.default_rng(13).normal(size=x.shape)
  # Both get the same rounded inputs, so that only the arithmetic differs.
  half = [jnp.asarray(a, jnp.bfloat16) for a in (x, offset, mask, kernel, bias)]
  single = [a.astype(jnp.float32) for a in half]
  cotangent = jnp.asarray(cotangent, jnp.bfloat16)
  y, got = fast_output_and_gradients(simple, half, cotangent)
  exact, want = fast_output_and_gradients(simple, single, cotangent.astype(jnp.float32))
  assert y.dtype == jnp.bfloat16
  assert relative_error(y.astype(jnp.float32), exact) < 1e-2
  for key, a, b in zip(NAMES, got, want, strict=True):
    assert a.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(a, np.float32)).all(), key
    assert relative_error(a.astype(jnp.float32), b) < 1e-2, key


def test_bfloat16_bias_has_its_gradient_summed_in_float32():
  inputs = [jnp.asarray(a, jnp.bfloat16) for a in simple_inputs(14, batch=1, size=(31, 37))]
  got = fast_output_and_gradients(simple, inputs, jnp.ones((1, 31, 37, 4), jnp.bfloat16))[1][-1]
  # In bfloat16 a sum of ones stops growing at 256, where the next number is 258.
  np.testing.assert_array_equal(got, np.full(4, jnp.asarray(31 * 37, jnp.bfloat16)))


# --- JAX transformations.


def test_jit_equals_eager():
  inputs = asymmetric_inputs(14, dtype=np.float32)
  got = jax.jit(lambda *args: deform_conv2d(*args, **ASYMMETRIC))(*inputs)
  np.testing.assert_allclose(got, deform_conv2d(*inputs, **ASYMMETRIC), atol=1e-5)


def stacked_inputs(count):
  """Several sets of x, offset and mask with a leading axis, and one kernel and bias."""
  sets = [simple_inputs(20 + i, batch=1, size=(4, 5)) for i in range(count)]
  return tuple(np.stack([s[i] for s in sets]) for i in range(3)), sets[0][3:]


def test_vmap_equals_a_loop():
  stacked, shared = stacked_inputs(3)
  got = jax.vmap(simple, in_axes=(0, 0, 0, None, None))(*stacked, *shared)
  for i in range(3):
    np.testing.assert_allclose(got[i], simple(*(a[i] for a in stacked), *shared), atol=1e-5)


def test_gradient_of_vmap_equals_a_loop():
  stacked, shared = stacked_inputs(3)

  def loss(*args):
    return jnp.sum(simple(*args) ** 2)

  def vmapped_loss(*args):
    return jnp.sum(jax.vmap(loss, in_axes=(0, 0, 0, None, None))(*args))

  got = fast_jit(jax.grad(vmapped_loss, argnums=(0, 1, 2, 3, 4)))(*stacked, *shared)
  single = fast_jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))
  loop = [single(*(a[i] for a in stacked), *shared) for i in range(3)]
  for index, key in enumerate(NAMES):
    terms = np.stack([g[index] for g in loop])
    want = terms if index < 3 else terms.sum(0)
    assert relative_error(got[index], want) < 1e-5, key


def test_pmap_over_two_devices_equals_a_loop():
  stacked, shared = stacked_inputs(2)
  got = jax.pmap(simple, in_axes=(0, 0, 0, None, None))(*stacked, *shared)
  assert len(got.sharding.device_set) == 2
  for i in range(2):
    np.testing.assert_allclose(got[i], simple(*(a[i] for a in stacked), *shared), atol=1e-5)


def test_shard_map_over_two_devices_gives_the_gradients_of_both_images():
  """As docs/network.md says, with ``check_vma=False``."""
  stacked, shared = stacked_inputs(2)
  images = [a.reshape(-1, *a.shape[2:]) for a in stacked]

  def gradient(*args):
    return jax.grad(lambda *args: jnp.sum(simple(*args) ** 2), argnums=3)(*args)

  mesh, split, same = Mesh(np.asarray(jax.devices()[:2]), ('devices',)), P('devices'), P()
  summed = jax.shard_map(
    lambda *args: jax.lax.psum(gradient(*args), 'devices'),
    mesh=mesh,
    in_specs=(split, split, split, same, same),
    out_specs=same,
    check_vma=False,
  )
  assert relative_error(fast_jit(summed)(*images, *shared), fast_jit(gradient)(*images, *shared)) < 1e-5


# --- Memory and fusion: properties of the compiled program, which is not run.


def compile_large_layer(function):
  """Bytes of every input and of all temporaries, for the finest scale of SADNet and a 480x320 image."""
  sizes = ((1, 320, 480, 32), (1, 320, 480, 144), (1, 320, 480, 72), (3, 3, 32, 32), (32,))
  inputs = [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]
  compiled = fast_jit(function).lower(*inputs).compile()
  return [4 * a.size for a in inputs], compiled.memory_analysis().temp_size_in_bytes


def large_layer(*args):
  return deform_conv2d(*args, padding=1, deformable_groups=8)


def test_forward_does_not_store_the_samples_of_all_taps():
  input_bytes, temporary = compile_large_layer(large_layer)
  # The samples of all nine taps would be 9 times x; the padded copy of x and one block are less than 3.
  assert temporary < 3 * input_bytes[0]
  assert temporary < sum(input_bytes)


def test_backward_does_not_store_the_samples_of_all_taps():
  gradient = jax.grad(lambda *args: jnp.sum(large_layer(*args) ** 2), argnums=(0, 1, 2, 3, 4))
  input_bytes, temporary = compile_large_layer(gradient)
  # x padded, its gradient padded, the output and its cotangent, and one block; not nine samples of x.
  assert temporary < sum(input_bytes)
  assert temporary < 9 * input_bytes[0]


def operations_by_computation(program):
  """Computation -> names of the operations in it, from the text of an optimised HLO module."""
  computations, current = {}, []
  for line in program.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      current = computations.setdefault(line.split(' (')[0], [])
    elif match := re.match(r'\s+(?:ROOT )?\S+ = \S+ ([\w-]+)\(', line):
      current.append(match[1])
  return computations


@pytest.mark.parametrize('pass_name', ['forward', 'backward'])
def test_fusion_barriers_are_needed_and_separate_locating_from_gathering(pass_name, monkeypatch):
  inputs = simple_inputs(16, batch=1)

  def compile_with(barriers):
    monkeypatch.setattr('sadnet_jax.ops.platform.MIN_VALUES_FOR_BARRIERS', 0 if barriers else 2**40)

    def function(*args):
      return deform_conv2d(*args, padding=1, deformable_groups=2)

    def gradient(*args):
      return jax.grad(lambda *args: jnp.sum(function(*args) ** 2), argnums=(0, 1, 2, 3, 4))(*args)

    return jax.jit(function if pass_name == 'forward' else gradient).lower(*inputs).compile()

  def merged(compiled):
    """Computations that both locate samples (floor) and gather them."""
    computations = operations_by_computation(compiled.as_text())
    assert any('floor' in operations for operations in computations.values())
    assert any('gather' in operations for operations in computations.values())
    return [name for name, operations in computations.items() if {'floor', 'gather'} <= set(operations)]

  with_barriers, without = compile_with(True), compile_with(False)
  assert not merged(with_barriers)
  assert merged(without), 'XLA no longer merges the loops: fusion_barrier may be unnecessary now'
  chex.assert_trees_all_close(with_barriers(*inputs), without(*inputs), rtol=1e-4, atol=1e-4)
