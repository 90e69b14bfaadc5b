import functools
import json
from pathlib import Path

import chex
from deform_conv_oracle import deform_conv2d_loops
import jax
from jax import lax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from sadnet_jax import DeformConv, deform_conv2d

CASES = {
  case['name']: case
  for case in json.loads((Path(__file__).parent / 'golden' / 'deform_conv2d_float64.json').read_text())
}
# Nothing is square or symmetric, so that no two axes can be confused unnoticed.
ASYMMETRIC = {
  'stride': (2, 1),
  'padding': (1, 0),
  'dilation': (2, 1),
  'groups': 2,
  'deformable_groups': 3,
}
NAMES = ('x', 'offset', 'mask', 'kernel', 'bias')


def relative_error(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape
  return np.linalg.norm(got - want) / np.linalg.norm(want)


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


def asymmetric_inputs(seed=0, *, batch=3, modulated=True, biased=True, dtype=np.float64):
  """Inputs for the options ASYMMETRIC; no location closer than 0.1 to an integer.

  At integer locations the operator has a kink, where finite differences mean nothing.
  """
  rng = np.random.default_rng(seed)
  height, width, channels, features, kernel_size = 7, 6, 6, 4, (3, 2)
  samples = ASYMMETRIC['deformable_groups'] * kernel_size[0] * kernel_size[1]
  sites = (batch, 3, 5)
  whole = rng.integers(-3, 3, (*sites, 2 * samples))
  inputs = (
    rng.normal(size=(batch, height, width, channels)),
    whole + rng.uniform(0.1, 0.9, whole.shape),
    rng.uniform(0.1, 1, (*sites, samples)) if modulated else None,
    rng.normal(size=(*kernel_size, channels // ASYMMETRIC['groups'], features)),
    rng.normal(size=features) if biased else None,
  )
  return tuple(None if a is None else a.astype(dtype) for a in inputs)


def simple_inputs(seed=0, *, batch=2, size=(7, 9), channels=4, features=4, groups=2, offset_std=1.5):
  """float32 inputs of a padded 3x3 layer at stride 1, where all sizes stay the same."""
  rng = np.random.default_rng(seed)
  arrays = (
    rng.normal(size=(batch, *size, channels)),
    offset_std * rng.normal(size=(batch, *size, 18 * groups)),
    rng.uniform(size=(batch, *size, 9 * groups)),
    rng.normal(size=(3, 3, channels, features)),
    rng.normal(size=features),
  )
  return tuple(a.astype(np.float32) for a in arrays)


@jax.jit
def simple(x, offset, mask, kernel, bias=None):
  return deform_conv2d(x, offset, mask, kernel, bias, padding=1, deformable_groups=2)


@functools.partial(jax.jit, static_argnums=0)
def output_and_gradients(function, inputs, cotangent):
  """function(*inputs), and the gradients of its sum times cotangent for all inputs that are not None."""
  output, pull_back = jax.vjp(function, *inputs)
  return output, pull_back(cotangent)


def gradients(function, inputs, cotangent):
  return output_and_gradients(function, inputs, cotangent)[1]


# --- The reference implementation and the definition.


@pytest.mark.parametrize('name', CASES)
def test_float64_output_and_gradients_equal_torchvision(golden, name):
  with jax.enable_x64(True):
    inputs, y, cotangent, wanted, options = load_case(golden, name, np.float64)
    output, got = output_and_gradients(lambda *args: deform_conv2d(*args, **options), inputs, cotangent)
    assert output.dtype == np.float64
    assert relative_error(output, y) < 1e-10
    for key, gradient, want in zip(NAMES, got, wanted, strict=True):
      assert (gradient is None) == (want is None), key
      if want is not None:
        assert relative_error(gradient, want) < 1e-10, key


@pytest.mark.parametrize('name', CASES)
def test_float32_output_equals_torchvision(golden, name):
  inputs, y, _, _, options = load_case(golden, name, np.float32)
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


def test_block_size_changes_neither_output_nor_gradients():
  inputs = asymmetric_inputs(1)
  cotangent = np.random.default_rng(2).normal(size=(3, 3, 5, 4))
  with jax.enable_x64(True):

    def everything(block_pixels):
      def function(*args):
        return deform_conv2d(*args, **ASYMMETRIC, block_pixels=block_pixels)

      return jax.tree.leaves(output_and_gradients(function, inputs, cotangent))

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


# --- Sizes and dtypes.


def test_empty_batch_gives_empty_output_and_zero_gradients():
  inputs = asymmetric_inputs(batch=0, dtype=np.float32)

  def function(*args):
    return deform_conv2d(*args, **ASYMMETRIC)

  chex.assert_shape(function(*inputs), (0, 3, 5, 4))
  got = gradients(function, inputs, np.zeros((0, 3, 5, 4), np.float32))
  for gradient, array in zip(got, inputs, strict=True):
    np.testing.assert_array_equal(gradient, np.zeros_like(array))


@pytest.mark.parametrize('size', [(1, 1), (1, 8), (5, 1), (31, 37)])
def test_any_image_size_equals_slow_loops(size):
  inputs = simple_inputs(10, batch=1, size=size, channels=2, features=1)
  want = deform_conv2d_loops(
    *inputs, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, deformable_groups=2
  )
  assert relative_error(simple(*inputs), want) < 1e-5


@pytest.mark.parametrize(
  ('x_dtype', 'kernel_dtype', 'want'),
  [
    (np.float32, np.float32, np.float32),
    (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
    (np.float64, np.float64, np.float64),
    (jnp.bfloat16, np.float32, np.float32),
    (np.float32, np.float64, np.float64),
  ],
)
def test_output_dtype_is_common_to_input_and_kernel_and_gradients_keep_theirs(x_dtype, kernel_dtype, want):
  with jax.enable_x64(True):
    x, offset, mask, kernel, bias = simple_inputs(11, batch=1, size=(2, 3))
    inputs = (
      jnp.asarray(x, x_dtype),
      jnp.asarray(offset),
      jnp.asarray(mask, x_dtype),
      jnp.asarray(kernel, kernel_dtype),
      jnp.asarray(bias),
    )
    y = simple(*inputs)
    assert y.dtype == want
    for gradient, array in zip(gradients(simple, inputs, jnp.ones_like(y)), inputs, strict=True):
      assert gradient.dtype == array.dtype


def test_bfloat16_is_close_to_float32():
  x, offset, mask, kernel, bias = simple_inputs(12, size=(8, 9))
  cotangent = np.random.default_rng(13).normal(size=x.shape)
  # The same rounded numbers for both, so that only the arithmetic differs.
  half = [jnp.asarray(a, jnp.bfloat16) for a in (x, offset, mask, kernel, bias)]
  single = [a.astype(jnp.float32) for a in half]
  y = simple(*half)
  assert y.dtype == jnp.bfloat16
  assert relative_error(y.astype(jnp.float32), simple(*single)) < 1e-2
  cotangent = jnp.asarray(cotangent, jnp.bfloat16)
  got = gradients(simple, half, cotangent)
  want = gradients(simple, single, cotangent.astype(jnp.float32))
  for key, a, b in zip(NAMES, got, want, strict=True):
    assert a.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(a, np.float32)).all(), key
    # XLA on a CPU sums the gradient of a bfloat16 bias in bfloat16, as it does for any `y + bias`.
    assert relative_error(a.astype(jnp.float32), b) < (5e-2 if key == 'bias' else 1e-2), key


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

  got = jax.jit(jax.grad(vmapped_loss, argnums=(0, 1, 2, 3, 4)))(*stacked, *shared)
  single = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))
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


# --- Errors.


def shapes(**changed):
  """Abstract arguments of a valid call (N=2, 5x6, 4 -> 6 channels, 3x3), with some replaced."""
  wanted = {
    'x': (2, 5, 6, 4),
    'offset': (2, 5, 6, 36),
    'mask': (2, 5, 6, 18),
    'kernel': (3, 3, 4, 6),
    'bias': (6,),
  }
  return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in {**wanted, **changed}.values()]


@pytest.mark.parametrize(
  ('changed', 'options', 'match'),
  [
    ({'x': (5, 6, 4)}, {}, r'x: got shape \(5, 6, 4\), want 4 axes \[N, H, W, C\]'),
    ({'kernel': (3, 4, 6)}, {}, r'kernel: got shape \(3, 4, 6\), want 4 axes \[Kh, Kw, C / groups, O\]'),
    ({}, {'groups': 0}, r'groups: got 0, want a divisor of the 4 input channels'),
    ({}, {'groups': 3}, r'groups: got 3, want a divisor of the 4 input channels'),
    ({}, {'groups': 4}, r'groups: got 4, want a divisor of the 6 output channels'),
    ({}, {'deformable_groups': 0}, r'deformable_groups: got 0, want a divisor of the 4 input channels'),
    ({}, {'deformable_groups': 3}, r'deformable_groups: got 3, want a divisor of the 4 input channels'),
    ({}, {'groups': 2}, r'kernel: got 4 input channels per group, want 2 = 4 channels of x / 2 groups'),
    ({}, {'stride': 0}, r'stride: got 0, want an int or a pair of ints, each at least 1'),
    ({}, {'stride': (1, 2, 3)}, r'stride: got \(1, 2, 3\), want an int or a pair of ints, each at least 1'),
    ({}, {'padding': (1, -1)}, r'padding: got \(1, -1\), want an int or a pair of ints, each at least 0'),
    (
      {},
      {'dilation': (1, 1.5)},
      r'dilation: got \(1, 1\.5\), want an int or a pair of ints, .* at least 1',
    ),
    (
      {'x': (2, 2, 6, 4)},
      {'padding': 0},
      r'x: got shape \(2, 2, 6, 4\), too small for kernel 3x3, .*the output would be 0x4',
    ),
    ({'x': (2, 0, 6, 4)}, {'padding': 2}, r'x: got shape \(2, 0, 6, 4\), too small for kernel 3x3'),
    ({'offset': (2, 5, 6, 18)}, {}, r'offset: got shape \(2, 5, 6, 18\), want \(2, 5, 6, 36\)'),
    ({}, {'stride': 2}, r'offset: got shape \(2, 5, 6, 36\), want \(2, 3, 3, 36\)'),
    ({'mask': (2, 6, 5, 18)}, {}, r'mask: got shape \(2, 6, 5, 18\), want \(2, 5, 6, 18\)'),
    ({'bias': (4,)}, {}, r'bias: got shape \(4,\), want \(6,\)'),
    ({}, {'block_pixels': 0}, r'block_pixels: got 0, want at least 1'),
    (
      {
        'x': (1, 40000, 40000, 4),
        'offset': (1, 40000, 40000, 36),
        'mask': (1, 40000, 40000, 18),
      },
      {},
      r'x: got shape \(1, 40000, 40000, 4\), 3200320008 rows to sample from, want fewer than 2\*\*31',
    ),
  ],
)
def test_unfit_arguments_are_refused_with_got_and_wanted(changed, options, match):
  def function(*args):
    return deform_conv2d(*args, **{'padding': 1, 'deformable_groups': 2, **options})

  # Abstract evaluation: the last case would not fit into memory.
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(function, *shapes(**changed))


def test_the_arguments_that_the_error_tests_change_are_valid():
  def function(*args):
    return deform_conv2d(*args, padding=1, deformable_groups=2)

  assert jax.eval_shape(function, *shapes()).shape == (2, 5, 6, 6)


# --- Memory. Compiled, never run.


def temporary_bytes(function, inputs):
  return jax.jit(function).lower(*inputs).compile().memory_analysis().temp_size_in_bytes


def large_layer():
  """Finest scale of a 480x320 image in the full network: function, abstract inputs, their bytes."""
  sizes = ((1, 320, 480, 32), (1, 320, 480, 144), (1, 320, 480, 72), (3, 3, 32, 32), (32,))
  inputs = [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]

  def function(*args):
    return deform_conv2d(*args, padding=1, deformable_groups=8)

  return function, inputs, [4 * a.size for a in inputs]


def test_forward_holds_no_sample_of_every_tap():
  function, inputs, input_bytes = large_layer()
  temporary = temporary_bytes(function, inputs)
  # The sampled values of all nine taps would be 9 times x; the padded copy of x and one block fit into 3.
  assert temporary < 3 * input_bytes[0]
  assert temporary < sum(input_bytes)


def test_backward_needs_less_memory_than_its_inputs():
  function, inputs, input_bytes = large_layer()

  def loss(*args):
    return jnp.sum(function(*args) ** 2)

  temporary = temporary_bytes(jax.grad(loss, argnums=(0, 1, 2, 3, 4)), inputs)
  # x padded, its gradient padded, the output and its cotangent, and one block; not nine samples of x.
  assert temporary < sum(input_bytes)
  assert temporary < 9 * input_bytes[0]


# --- The module.


def test_module_owns_kernel_and_bias_and_starts_uniform():
  x, offset, mask = simple_inputs(40, channels=16, groups=1)[:3]
  params = DeformConv(32).init(jax.random.key(0), x, offset, mask)['params']
  assert jax.tree.map(jnp.shape, params) == {'kernel': (3, 3, 16, 32), 'bias': (32,)}
  assert {a.dtype for a in params.values()} == {jnp.dtype(jnp.float32)}
  np.testing.assert_array_equal(params['bias'], np.zeros(32))
  bound = 1 / np.sqrt(9 * 16)
  kernel = np.asarray(params['kernel'])
  assert np.abs(kernel).max() <= bound
  # A uniform sample of 4,608 comes close to both ends and has this standard deviation.
  assert kernel.min() < -0.99 * bound
  assert kernel.max() > 0.99 * bound
  assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)


def test_module_with_groups_scales_its_start_to_the_channels_of_a_group():
  x, offset, mask, _, _ = asymmetric_inputs(dtype=np.float32)
  module = DeformConv(4, kernel_size=(3, 2), use_bias=False, **ASYMMETRIC)
  params = module.init(jax.random.key(1), x, offset, mask)['params']
  assert jax.tree.map(jnp.shape, params) == {'kernel': (3, 2, 3, 4)}
  largest = np.abs(params['kernel']).max()
  assert 0.8 / np.sqrt(6 * 3) < largest <= 1 / np.sqrt(6 * 3)


def test_module_equals_function():
  x, offset, mask, kernel, bias = asymmetric_inputs(dtype=np.float32)
  module = DeformConv(4, kernel_size=(3, 2), **ASYMMETRIC)
  got = module.apply({'params': {'kernel': kernel, 'bias': bias}}, x, offset, mask)
  np.testing.assert_array_equal(got, deform_conv2d(x, offset, mask, kernel, bias, **ASYMMETRIC))
  unbiased = module.clone(use_bias=False)
  got = unbiased.apply({'params': {'kernel': kernel}}, x, offset)
  np.testing.assert_array_equal(got, deform_conv2d(x, offset, None, kernel, **ASYMMETRIC))


def test_module_dtype_sets_output_but_not_parameters():
  x, offset, mask = simple_inputs(41, groups=1)[:3]
  module = DeformConv(4, dtype=jnp.bfloat16)
  y, variables = module.init_with_output(jax.random.key(2), x, offset, mask)
  assert y.dtype == jnp.bfloat16
  assert {a.dtype for a in variables['params'].values()} == {jnp.dtype(jnp.float32)}
