import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.ops import (
  adaptive_conv2d,
  conv2d,
  deform_conv2d,
  deform_conv2d_packed,
  platform,
  predict_offset_mask,
)
from tests.support.fast_jit import fast_jit

GROUPS = 2
NAMES = ('x', 'offset_features', 'predict_kernel', 'predict_bias', 'kernel', 'bias')


def inputs(*, batch=2, size=(13, 5), dtype=np.float64, seed=0):
  """In the order of NAMES. Offsets are a few pixels, and at the border some point outside the image."""
  rng = np.random.default_rng(seed)
  shapes = ((batch, *size, 6), (batch, *size, 3), (3, 3, 3, 27 * GROUPS), (27 * GROUPS,), (3, 3, 6, 4), (4,))
  return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def defined(x, offset_features, predict_kernel, predict_bias, kernel, bias):
  """`adaptive_conv2d` by definition, from operators that have tests of their own."""
  offset_mask = conv2d(offset_features, predict_kernel, predict_bias)
  offset, logits = offset_mask[..., : 18 * GROUPS], offset_mask[..., 18 * GROUPS :]
  mask = jax.nn.sigmoid(logits)
  return deform_conv2d(x, offset, mask, kernel, bias, padding=1, deformable_groups=GROUPS)


def relative_error(got, want):
  return np.abs(np.asarray(got) - np.asarray(want)).max() / np.abs(np.asarray(want)).max()


def value_and_gradients(function, args):
  """Output, and the gradients of its product with fixed random numbers."""

  @fast_jit
  def run(weights, *args):
    output, pull_back = jax.vjp(function, *args)
    return output, pull_back(weights)

  weights = np.random.default_rng(2).normal(size=jax.eval_shape(function, *args).shape)
  return run(weights, *args)


@pytest.fixture(params=['strips', 'one strip', 'whole'])
def strategy(request, monkeypatch):
  """Strips of 3 rows (the last one overlaps), a single strip, or the whole image as on accelerators."""
  bytes_per_row = 5 * 9 * 6 * 8
  budget = 3 * bytes_per_row if request.param == 'strips' else 100 * bytes_per_row
  monkeypatch.setattr(platform, 'BLOCK_BYTES_CPU', budget)
  monkeypatch.setattr(platform, 'MIN_VALUES_FOR_BARRIERS', 0)
  with platform.target_platform('cuda' if request.param == 'whole' else 'cpu'):
    yield request.param


@pytest.fixture(scope='module')
def expected():
  """Output and gradients by definition, in float64; the gradient of the predicting kernel is XLA's own."""
  with jax.enable_x64(True):
    return value_and_gradients(defined, inputs())


@pytest.mark.parametrize('batch', [1, 2])
def test_output_is_that_of_prediction_and_deformable_convolution(strategy, batch, expected):
  with jax.enable_x64(True):
    args = inputs()
    args[:2] = [a[:batch] for a in args[:2]]
    got = fast_jit(functools.partial(adaptive_conv2d, deformable_groups=GROUPS))(*args)
    assert got.dtype == np.float64
    assert relative_error(got, expected[0][:batch]) < 1e-12


def test_gradients_are_those_of_prediction_and_deformable_convolution(strategy, expected):
  with jax.enable_x64(True):
    function = functools.partial(adaptive_conv2d, deformable_groups=GROUPS)
    output, gradients = value_and_gradients(function, inputs())
  assert relative_error(output, expected[0]) < 1e-12
  for name, gradient, want in zip(NAMES, gradients, expected[1], strict=True):
    assert relative_error(gradient, want) < 1e-12, name


def test_a_prediction_in_two_parts(monkeypatch):
  # With eight groups the offsets fill 144 of the first part's 192 outputs, and the masks both parts.
  monkeypatch.setattr(platform, 'BLOCK_BYTES_CPU', 2 * 5 * 9 * 8 * 4)
  monkeypatch.setattr(platform, 'MIN_VALUES_FOR_BARRIERS', 0)
  rng = np.random.default_rng(3)
  shapes = ((1, 7, 5, 8), (1, 7, 5, 3), (3, 3, 3, 216), (216,), (3, 3, 8, 4), (4,))
  args = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
  with platform.target_platform('cuda'):
    want = adaptive_conv2d(*args, deformable_groups=8)
  with platform.target_platform('cpu'):
    got = adaptive_conv2d(*args, deformable_groups=8)
  assert relative_error(got, want) < 1e-5


def test_without_bias():
  args = inputs(dtype=np.float32)
  got = adaptive_conv2d(*args[:5], None, deformable_groups=GROUPS)
  want = adaptive_conv2d(*args, deformable_groups=GROUPS) - args[5]
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_empty_batch_keeps_its_shape():
  args = inputs(batch=0, dtype=np.float32)
  chex.assert_shape(adaptive_conv2d(*args, deformable_groups=GROUPS), (0, 13, 5, 4))


def test_bfloat16_stays_and_is_close(strategy):
  args = inputs(dtype=np.float32)
  narrow = [jnp.asarray(a, jnp.bfloat16) if a.ndim == 4 else a for a in args]
  got = adaptive_conv2d(*narrow, deformable_groups=GROUPS)
  assert got.dtype == jnp.bfloat16
  # Compared with float32 on the same rounded inputs. A rounded prediction moves samples, hence the tolerance.
  want = adaptive_conv2d(*[jnp.asarray(a, jnp.float32) for a in narrow], deformable_groups=GROUPS)
  difference = np.asarray(got, np.float32) - np.asarray(want)
  assert np.linalg.norm(difference) / np.linalg.norm(want) < 0.03


def test_gradients_of_any_height_and_width_can_be_exported():
  args = inputs(dtype=np.float32)
  n, h, w = jax.export.symbolic_shape('n, h, w', constraints=['h >= 3', 'w >= 3', 'n*h*w*2 + 100 >= 0'])
  shapes = [
    jax.ShapeDtypeStruct((n, h, w, a.shape[3]) if name in NAMES[:2] else a.shape, a.dtype)
    for name, a in zip(NAMES, args, strict=True)
  ]
  gradient = jax.jit(jax.grad(lambda k, *a: jnp.sum(predict_offset_mask(a[0], k, a[1]))))
  exported = jax.export.export(gradient)(shapes[2], shapes[1], shapes[3])
  want = gradient(args[2], args[1], args[3])
  np.testing.assert_allclose(exported.call(args[2], args[1], args[3]), want, rtol=1e-4, atol=1e-4)


def test_non_finite_offsets_affect_the_same_pixels_in_strips_and_whole(monkeypatch):
  monkeypatch.setattr(platform, 'MIN_VALUES_FOR_BARRIERS', 0)
  args = inputs(dtype=np.float32)
  args[1] = args[1].copy()
  args[1][0, 6, 2] = np.nan
  args[1][1, 2, 4] = np.inf
  affected = []
  for name in ('cpu', 'cuda'):
    with platform.target_platform(name):
      affected.append(~np.isfinite(np.asarray(adaptive_conv2d(*args, deformable_groups=GROUPS))))
  assert affected[0].any()
  assert not affected[0].all()
  np.testing.assert_array_equal(*affected)


def test_vmap_over_images(monkeypatch):
  monkeypatch.setattr(platform, 'MIN_VALUES_FOR_BARRIERS', 0)
  args = inputs(dtype=np.float32)
  function = functools.partial(adaptive_conv2d, deformable_groups=GROUPS)
  one = lambda x, features: function(x[None], features[None], *args[2:])[0]  # noqa: E731
  np.testing.assert_allclose(jax.vmap(one)(args[0], args[1]), function(*args), atol=1e-4)


def test_prediction_of_another_shape_is_rejected():
  x, features, predict_kernel, predict_bias, kernel, bias = inputs(dtype=np.float32)
  offset_mask = conv2d(features, predict_kernel, predict_bias)
  with pytest.raises(
    ValueError, match=r'offset_mask has shape \(2, 13, 5, 54\), but must have \(2, 13, 5, 81\)'
  ):
    deform_conv2d_packed(x, offset_mask, kernel, bias, padding=1, deformable_groups=3)
  with pytest.raises(
    ValueError, match=r'offset_mask has shape \(2, 12, 5, 54\), but must have \(2, 13, 5, 54\)'
  ):
    adaptive_conv2d(x, features[:, 1:], predict_kernel, predict_bias, kernel, bias, deformable_groups=GROUPS)


# --- The convolution that predicts.


@pytest.mark.parametrize('size', [(1, 7), (16, 4), (34, 3)])
def test_prediction_and_its_gradients_equal_the_plain_convolution(size):
  with jax.enable_x64(True):
    args = inputs(size=size)[1:4]
    got, want = (value_and_gradients(function, args) for function in (predict_offset_mask, conv2d))
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert relative_error(g, w) < 1e-12


def test_kernel_gradient_of_bfloat16_is_summed_in_float32():
  x = np.ones((1, 64, 64, 1), np.float32)
  kernel = jnp.zeros((3, 3, 1, 1), jnp.bfloat16)
  gradient = jax.grad(lambda k: jnp.sum(predict_offset_mask(jnp.asarray(x, jnp.bfloat16), k, np.zeros(1))))(
    kernel
  )
  # Summed in bfloat16, it would stop growing at 256.
  assert float(gradient[1, 1, 0, 0]) == 64 * 64
