import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax import DeformConv, deform_conv2d
from tests.support.deform_conv_layers import (
  ASYMMETRIC,
  NAMES,
  asymmetric_inputs,
  fast_output_and_gradients,
  gradients,
  relative_error,
  simple,
  simple_inputs,
)
from tests.support.fast_jit import fast_jit

# --- The module.


def test_module_owns_kernel_and_bias_and_starts_uniform():
  x, offset, mask = simple_inputs(40, channels=16, groups=1)[:3]
  params = fast_jit(DeformConv(32, padding=1).init)(jax.random.key(0), x, offset, mask)['params']
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
  params = fast_jit(module.init)(jax.random.key(1), x, offset, mask)['params']
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
  module = DeformConv(4, padding=1, dtype=jnp.bfloat16)
  y, variables = fast_jit(module.init_with_output)(jax.random.key(2), x, offset, mask)
  assert y.dtype == jnp.bfloat16
  assert {a.dtype for a in variables['params'].values()} == {jnp.dtype(jnp.float32)}


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
    _, got = fast_output_and_gradients(simple, inputs, jnp.ones_like(y))
    for gradient, array in zip(got, inputs, strict=True):
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
    assert relative_error(a.astype(jnp.float32), b) < 1e-2, key


def test_bfloat16_bias_has_its_gradient_summed_in_float32():
  inputs = [jnp.asarray(a, jnp.bfloat16) for a in simple_inputs(14, batch=1, size=(31, 37))]
  got = gradients(simple, inputs, jnp.ones((1, 31, 37, 4), jnp.bfloat16))[-1]
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
    ({}, {'stride': 1.0}, r'stride: got 1\.0, want an int or a pair of ints, each at least 1'),
    ({}, {'stride': None}, r'stride: got None, want an int or a pair of ints, each at least 1'),
    ({}, {'padding': (1, None)}, r'padding: got \(1, None\), want an int or a pair of ints, each at least 0'),
    ({}, {'dilation': '11'}, r"dilation: got '11', want an int or a pair of ints, each at least 1"),
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
    (
      {'x': (2, 5, 6, 0), 'kernel': (3, 3, 0, 6)},
      {},
      r'x: got shape \(2, 5, 6, 0\), want at least one channel',
    ),
    ({'x': (2, 0, 6, 4)}, {'padding': 2}, r'x: got shape \(2, 0, 6, 4\), too small for kernel 3x3'),
    ({'offset': (2, 5, 6, 18)}, {}, r'offset: got shape \(2, 5, 6, 18\), want \(2, 5, 6, 36\)'),
    ({}, {'stride': 2}, r'offset: got shape \(2, 5, 6, 36\), want \(2, 3, 3, 36\)'),
    ({'mask': (2, 6, 5, 18)}, {}, r'mask: got shape \(2, 6, 5, 18\), want \(2, 5, 6, 18\)'),
    ({'bias': (4,)}, {}, r'bias: got shape \(4,\), want \(6,\)'),
    ({}, {'block_pixels': 0}, r'block_pixels: got 0, want an int of at least 1, or None'),
    ({}, {'block_pixels': 1.5}, r'block_pixels: got 1\.5, want an int of at least 1, or None'),
    ({}, {'groups': 1.0}, r'groups: got 1\.0, want a divisor of the 4 input channels'),
    ({}, {'deformable_groups': None}, r'deformable_groups: got None, want a divisor of the 4 input channels'),
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


@pytest.mark.parametrize('position', range(5))
def test_integer_arrays_are_refused(position):
  inputs = shapes()
  name = ('x', 'offset', 'mask', 'kernel', 'bias')[position]
  inputs[position] = jax.ShapeDtypeStruct(inputs[position].shape, jnp.int32)
  with pytest.raises(ValueError, match=rf'{name}: got dtype int32, want floating point'):
    jax.eval_shape(lambda *args: deform_conv2d(*args, padding=1, deformable_groups=2), *inputs)


def test_a_module_with_zero_groups_is_refused():
  x, offset, mask, *_ = shapes()
  with pytest.raises(ValueError, match='groups: got 0, want a divisor of the 4 input channels'):
    jax.eval_shape(DeformConv(6, groups=0, deformable_groups=2).init, jax.random.key(0), x, offset, mask)


def test_the_arguments_that_the_error_tests_change_are_valid():
  def function(*args):
    return deform_conv2d(*args, padding=1, deformable_groups=2)

  assert jax.eval_shape(function, *shapes()).shape == (2, 5, 6, 6)


@pytest.mark.parametrize('name', ['stride', 'padding', 'dilation'])
@pytest.mark.parametrize('value', [np.int64(1), (np.int64(1), 1), [1, np.int32(1)]])
def test_pairs_may_be_numpy_integers_and_lists(name, value):
  inputs = simple_inputs(15, batch=1, size=(4, 5))
  got = deform_conv2d(*inputs, **{'padding': 1, 'deformable_groups': 2, name: value})
  np.testing.assert_allclose(got, simple(*inputs), atol=1e-5)
