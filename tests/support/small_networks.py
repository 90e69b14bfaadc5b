"""Small SADNets, their images and parameters, and functions that initialise and apply them."""

import functools

import jax
import numpy as np

from sadnet_jax.nn.sadnet import param_shapes
from tests.support.fast_jit import fast_jit

# The smallest network with eight deformable groups.
SMALL = {'width': 8, 'offset_width': 8}
# Without deformable convolutions and context: half the time to trace and compile. For what is not about them.
PLAIN = {**SMALL, 'use_rsab': False, 'use_offset_transfer': False, 'use_context': False}


def to_nhwc(array):
  return array.transpose(0, 2, 3, 1)


def image(seed=0, *, batch=1, size=(8, 8), channels=3):
  rng = np.random.default_rng(seed)
  return rng.uniform(size=(batch, *size, channels)).astype(np.float32)


def count(model):
  return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model)))


def random_variables(model, seed=0):
  """Parameters of a SADNet without zeros, so that every part of the network affects the output."""
  return {'params': random_like(param_shapes(model), seed)}


def random_like(shapes, seed=0):
  """Such parameters for a tree of shapes."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    scale = 1 / np.sqrt(leaf.size / leaf.shape[-1]) if len(leaf.shape) == 4 else 0.1
    return (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

  return jax.tree.map(draw, shapes)


@functools.partial(fast_jit, static_argnums=0)
def apply(model, variables, x):
  return model.apply(variables, x)


@functools.partial(fast_jit, static_argnums=0)
def init(model, x):
  # This generator compiles several times faster than the default one.
  return model.init(jax.random.key(0, impl='rbg'), x)
