import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.ops import add_bias, conv2d, target_platform
from tests.support.small_networks import image


def xla_conv(x, kernel):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=numbers)


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
@pytest.mark.parametrize(('size', 'channels'), [(1, 3), (1, 9), (2, 3)])
def test_convolution_without_overlap_equals_that_xla_conv(platform, size, channels):
  x, kernel = (
    image(36, batch=2, size=(9, 7), channels=channels),
    image(37, size=(size, size), channels=channels * 5),
  )
  kernel, bias = kernel.reshape(size, size, channels, 5), np.arange(5, dtype=np.float32)

  def strided(padding):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, (size, size), padding, dimension_numbers=numbers) + bias

  with target_platform(platform):
    np.testing.assert_allclose(conv2d(x, kernel, bias, stride=size), strided('VALID'), rtol=1e-5)
    around = ((1, 2), (2, 1))
    got = conv2d(x, kernel, bias, stride=size, padding=around)
  np.testing.assert_allclose(got, strided(around), rtol=1e-5)


@pytest.mark.parametrize('size', [3, 5])
@pytest.mark.parametrize(('width', 'channels'), [(1, 16), (7, 3), (12, 16)])
def test_convolution_to_few_channels_equals_that_of_xla(size, width, channels):
  x = image(38, batch=2, size=(6, width), channels=channels)
  kernel = image(39, size=(size, size), channels=channels * 3).reshape(size, size, channels, 3)

  with target_platform('cpu'):
    y, pullback = jax.vjp(conv2d, x, kernel)
    np.testing.assert_allclose(conv2d(x, kernel), xla_conv(x, kernel), rtol=1e-5)
    # Several pixels were computed together, so this compared two ways.
    assert f'f32[{size},{size + 3},{channels},12]' in str(jax.make_jaxpr(conv2d)(x, kernel))
  expected, xla_pullback = jax.vjp(xla_conv, x, kernel)
  np.testing.assert_allclose(y, expected, rtol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, pullback(y), xla_pullback(y))


@pytest.mark.parametrize(
  ('batch', 'size', 'channels', 'outputs', 'joined'),
  [(4, (3, 128), 32, 32, (1, 3, 516)), (8, (2, 64), 32, 64, (2, 2, 260)), (4, (2, 64), 64, 64, (2, 2, 130))],
)
def test_narrow_images_are_joined_side_by_side_without_seeing_each_other(
  batch, size, channels, outputs, joined
):
  x = image(40, batch=batch, size=size, channels=channels)
  kernel = image(41, size=(3, 3), channels=channels * outputs).reshape(3, 3, channels, outputs)

  def joins(platform, dtype):
    with target_platform(platform):
      # A new function, since JAX keeps what it has traced without regard to the platform.
      program = str(jax.make_jaxpr(lambda *args: conv2d(*args))(x.astype(dtype), kernel.astype(dtype)))
    return f'[{",".join(map(str, (*joined, outputs)))}] = conv_general_dilated' in program

  assert joins('cpu', jnp.float32)
  assert not joins('cuda', jnp.float32)
  assert not joins('cpu', jnp.bfloat16)

  with target_platform('cpu'):
    y, pullback = jax.vjp(conv2d, x, kernel)
    dx, dkernel = pullback(y)
  expected, xla_pullback = jax.vjp(xla_conv, x, kernel)
  expected_dx, expected_dkernel = xla_pullback(y)
  np.testing.assert_allclose(y, expected, rtol=1e-5)
  np.testing.assert_allclose(dx, expected_dx, rtol=1e-5)
  np.testing.assert_array_equal(dkernel, expected_dkernel)


def test_narrow_images_have_second_derivatives():
  x, kernel = image(42, batch=4, size=(1, 128), channels=32), image(43, size=(3, 3), channels=32 * 32)

  def second(convolve):
    def squares(x, kernel):
      return jnp.sum(convolve(x, kernel) ** 2)

    kernels = kernel.reshape(3, 3, 32, 32)
    return jax.grad(lambda kernel: jnp.sum(jax.grad(squares)(x, kernel) ** 2))(kernels)

  with target_platform('cpu'):
    got = second(conv2d)
  expected = second(xla_conv)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_bias_is_added_to_every_channel_in_the_dtype_of_the_image(dtype):
  y, bias = jnp.zeros((2, 3, 5, 4), dtype), jnp.array([0.5, -1.0, 2.0, 3.0])
  got = add_bias(y, bias)
  assert got.dtype == dtype
  np.testing.assert_array_equal(got.astype(jnp.float32), np.broadcast_to(bias, y.shape))
