"""Two layers for the tests of `deform_conv2d`, and functions that run and compare them."""

import jax
import numpy as np

from sadnet_jax import deform_conv2d
from tests.support.fast_jit import fast_jit

NAMES = ('x', 'offset', 'mask', 'kernel', 'bias')
# Nothing is square or symmetric, so that confusing two axes changes the result.
ASYMMETRIC = {
  'stride': (2, 1),
  'padding': (1, 0),
  'dilation': (2, 1),
  'groups': 2,
  'deformable_groups': 3,
}


def relative_error(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape
  return np.linalg.norm(got - want) / np.linalg.norm(want)


def asymmetric_inputs(seed=0, *, batch=3, modulated=True, biased=True, dtype=np.float64):
  """Inputs for the options ASYMMETRIC; no location closer than 0.1 to an integer.

  At integer locations the operator is not differentiable, so finite differences fail there.
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
  """float32 inputs of a padded 3x3 layer with stride 1, whose output is as large as its input."""
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


def compute_output_and_gradients(function, inputs, cotangent):
  """function(*inputs), and the gradients of sum(output * cotangent) for all inputs that are not None."""
  output, pull_back = jax.vjp(function, *inputs)
  return output, pull_back(cotangent)


output_and_gradients = jax.jit(compute_output_and_gradients, static_argnums=0)
fast_output_and_gradients = fast_jit(compute_output_and_gradients, static_argnums=0)


def gradients(function, inputs, cotangent):
  return output_and_gradients(function, inputs, cotangent)[1]
