import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.nn import Conv, DeformConv, FusionConv, UpConv
from sadnet_jax.ops import conv2d, deform_conv2d
from tests.support.deform_conv_layers import ASYMMETRIC, asymmetric_inputs, simple_inputs
from tests.support.fast_jit import fast_jit
from tests.support.small_networks import image


def random_params(shapes):
  rng = np.random.default_rng(35)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


# --- Conv, FusionConv, UpConv.


@pytest.mark.parametrize('size', [1, 3])
def test_fusion_equals_the_convolution_of_the_concatenation(size):
  a, b = image(33, batch=2, size=(5, 7), channels=3), image(34, batch=2, size=(5, 7), channels=4)
  module = FusionConv(6, size)
  shapes = jax.eval_shape(module.init, jax.random.key(0), a, b)['params']
  assert jax.tree.map(lambda leaf: leaf.shape, shapes) == {'kernel': (size, size, 7, 6), 'bias': (6,)}
  params = random_params(shapes)
  want = conv2d(np.concatenate([a, b], axis=-1), params['kernel'], params['bias'])
  np.testing.assert_allclose(module.apply({'params': params}, a, b), want, rtol=1e-5, atol=1e-5)
  narrow = module.clone(dtype=jnp.bfloat16).apply({'params': params}, a, b)
  assert narrow.dtype == jnp.bfloat16
  both = [jnp.asarray(array, jnp.bfloat16) for array in (np.concatenate([a, b], axis=-1), params['kernel'])]
  # Rounded once, as the convolution of the concatenation is.
  np.testing.assert_array_equal(narrow, conv2d(*both, params['bias']))


@pytest.mark.parametrize(
  ('size', 'stride', 'dilation'),
  [(1, 1, 1), (2, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 4), (2, 2, 2)],
)
def test_convolution_equals_flax_in_parameters_output_and_gradients(size, stride, dilation):
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
  shapes = [jax.eval_shape(m.init, jax.random.key(0), x)['params'] for m in (module, flax_module)]
  chex.assert_trees_all_equal_shapes_and_dtypes(*shapes)
  params = random_params(shapes[0])
  results = [output_and_gradients(m, params, x) for m in (module, flax_module)]
  span = (size - 1) * dilation
  want = (9, 12) if stride == 1 else ((9 - span - 1) // stride + 1, (12 - span - 1) // stride + 1)
  chex.assert_shape(results[0][0], (2, *want, 5))
  chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)


def output_and_gradients(module, params, x):
  """Output, and the gradients of its product with random numbers of mean 1/2, in float32."""

  @fast_jit
  def run(params, x):
    def loss(params, x):
      y = module.apply({'params': params}, x)
      weights = np.random.default_rng(32).uniform(size=y.shape).astype(np.float32)
      return jnp.sum(weights * y), y

    gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return y, gradients

  return run(params, x)


@pytest.mark.parametrize(
  'make',
  [lambda d: Conv(5, 3, dtype=d), lambda d: Conv(5, 2, stride=2, dtype=d), lambda d: UpConv(5, dtype=d)],
)
def test_bias_gradient_in_bfloat16_is_that_of_float32(make):
  x = image(33, batch=4, size=(64, 64), channels=3)
  params = random_params(jax.eval_shape(make(None).init, jax.random.key(0), x)['params'])
  _, (exact, _) = output_and_gradients(make(jnp.float32), params, x)
  y, (rounded, _) = output_and_gradients(make(jnp.bfloat16), params, x)
  assert y.dtype == jnp.bfloat16
  assert rounded['bias'].dtype == jnp.float32
  # A sum in bfloat16 would be off by percents: it has 8 bits for up to 65,536 summands.
  np.testing.assert_allclose(rounded['bias'], exact['bias'], rtol=5e-3)
  assert not np.array_equal(rounded['kernel'], exact['kernel'])


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


# --- DeformConv.


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


def test_a_module_with_zero_groups_is_rejected():
  x, offset, mask, *_ = simple_inputs()
  with pytest.raises(ValueError, match='groups must be an int that divides the 4 input channels, not 0'):
    jax.eval_shape(DeformConv(6, groups=0, deformable_groups=2).init, jax.random.key(0), x, offset, mask)
