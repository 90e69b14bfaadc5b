import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.ops import add_bias, conv2d, target_platform
from tests.support.small_networks import image


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
@pytest.mark.parametrize(('size', 'channels'), [(1, 3), (1, 9), (2, 3)])
def test_convolution_without_overlap_equals_that_xla_conv(platform, size, channels):
  x, kernel = (
    image(36, batch=2, size=(9, 7), channels=channels),
    image(37, size=(size, size), channels=channels * 5),
  )
  kernel, bias = kernel.reshape(size, size, channels, 5), np.arange(5, dtype=np.float32)

  def xla_conv(padding):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, (size, size), padding, dimension_numbers=numbers) + bias

  with target_platform(platform):
    np.testing.assert_allclose(conv2d(x, kernel, bias, stride=size), xla_conv('VALID'), rtol=1e-5)
    around = ((1, 2), (2, 1))
    got = conv2d(x, kernel, bias, stride=size, padding=around)
  np.testing.assert_allclose(got, xla_conv(around), rtol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_bias_is_added_to_every_channel_in_the_dtype_of_the_image(dtype):
  y, bias = jnp.zeros((2, 3, 5, 4), dtype), jnp.array([0.5, -1.0, 2.0, 3.0])
  got = add_bias(y, bias)
  assert got.dtype == dtype
  np.testing.assert_array_equal(got.astype(jnp.float32), np.broadcast_to(bias, y.shape))
