"""The counts beside the benchmarks' figures are those of the layers, and the rates are this machine's."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import limits
from benchmarks.limits import Limits, deform_conv_cost, network_cost
from sadnet_jax.nn.sadnet import SADNet

# One pixel of each scale, written down from the paper's layers: encoder, context, decoder, offset block,
# offsets and mask, deformable convolution, convolution after it, output.
MULTIPLY_ACCUMULATES_A_PIXEL = (
  (3 * 32 + 2 * 9 * 32**2)
  + (32 * 64 + 64 * 32)
  + 9 * (32 * 32 + 64 * 32 + 32 * 32)
  + (9 * 32 * 216 + 2 * 9 * 32**2)
  + 9 * 32 * 3,
  (4 * 32 * 64 + 2 * 9 * 64**2)
  + (64 * 128 + 128 * 64)
  + 9 * (64 * 32 + 64 * 32 + 32 * 32)
  + (9 * 32 * 216 + 2 * 9 * 64**2),
  (4 * 64 * 128 + 2 * 9 * 128**2)
  + (128 * 256 + 256 * 128)
  + 9 * (128 * 32 + 64 * 32 + 32 * 32)
  + (9 * 32 * 216 + 2 * 9 * 128**2),
  (4 * 128 * 256 + 2 * 9 * 256**2)
  + (256 * 64 + 4 * 9 * 64**2 + 256 * 256)
  + 9 * (256 * 32 + 32 * 32)
  + (9 * 32 * 216 + 2 * 9 * 256**2),
)


def _blending(pixels):
  """Of all scales: four multiply-accumulates for each sampled value."""
  return sum(2 * 4 * 9 * (32 << s) * pixels // 4**s for s in range(4))


def test_network_cost_is_the_sum_over_the_layers():
  pixels = 320 * 480
  products = 2 * sum(per_pixel * pixels // 4**s for s, per_pixel in enumerate(MULTIPLY_ACCUMULATES_A_PIXEL))
  flops, _ = network_cost((1, 320, 480, 3))
  assert flops == products + _blending(pixels)
  # XLA's count of a plain version, 98.7 G, also has everything elementwise.
  assert flops == pytest.approx(2 * 49.4e9, rel=0.05)


def test_network_cost_grows_with_the_pixels_and_in_training():
  one, many = network_cost((1, 320, 480, 3)), network_cost((16, 320, 480, 3))
  assert many.flops == 16 * one.flops
  assert 15 * one.bytes < many.bytes < 16 * one.bytes
  assert network_cost((1, 313, 475, 3)) == one
  step = network_cost((1, 320, 480, 3), training=True)
  assert step.flops == 3 * one.flops
  assert 2 * one.bytes < step.bytes < 3 * one.bytes
  assert network_cost((1, 320, 480, 3), value_bytes=2).bytes * 2 == one.bytes


def test_products_are_what_xla_counts_in_the_convolutions():
  """Without deformable convolutions XLA counts what this does, less what falls on the border."""
  shape = (1, 512, 512, 3)
  model = SADNet(use_rsab=False)
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  counted = jax.jit(model.apply).lower(variables, jax.ShapeDtypeStruct(shape, jnp.float32)).cost_analysis()
  pixels = 512 * 512
  # Per scale: offset block, offsets and mask are not there, and a convolution stands for the deformable one.
  missing = [9 * (32 * 32 + 64 * 32 + c * 32) + 9 * 32 * 216 for c in (32, 64, 128)]
  missing.append(9 * (32 * 32 + 256 * 32) + 9 * 32 * 216)
  expected = (
    network_cost(shape).flops
    - _blending(pixels)
    - 2 * sum(per_pixel * pixels // 4**s for s, per_pixel in enumerate(missing))
  )
  assert counted['flops'] == pytest.approx(expected, rel=0.015)


def test_deform_conv_cost_of_a_small_example():
  n, h, w, c = 2, 5, 7, 16
  forward = deform_conv_cost((n, h, w, c))
  assert forward.flops == 2 * n * h * w * 9 * c * c + 2 * n * h * w * 9 * c * 4
  x, offset, mask, kernel = n * h * w * c, n * h * w * 144, n * h * w * 72, 9 * c * c
  assert forward.bytes == 4 * (x + offset + mask + kernel + c + x)
  backward = deform_conv_cost((n, h, w, c), backward=True)
  assert backward == (2 * forward.flops, 4 * (2 * (x + offset + mask + kernel + c) + x))
  assert deform_conv_cost((n, h, w, c), value_bytes=2) == (forward.flops, forward.bytes // 2)


def test_the_limit_is_the_larger_bound():
  rates = Limits(flops_per_second=100.0, bytes_per_second=10.0)
  assert rates.seconds(200, 10) == 2
  assert rates.seconds(200, 50) == 5
  assert rates.best(Limits(50.0, 20.0)) == Limits(100.0, 20.0)
  assert Limits(**rates.to_json()) == rates


@pytest.mark.parametrize('precision', ['float32', 'tf32', 'bfloat16'])
def test_rates_are_measured(monkeypatch, precision):
  monkeypatch.setitem(limits._MATRIX_SIDES, 'cpu', (64, 128))
  monkeypatch.setattr(limits, '_COPY_BYTES', 2**20)
  found = limits.measure_limits(precision)
  # No machine is slower or faster than that.
  assert 1e6 < found.flops_per_second < 1e15
  assert 1e6 < found.bytes_per_second < 1e13
