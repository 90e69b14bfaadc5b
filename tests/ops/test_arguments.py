"""The checks of shapes and options, through `deform_conv2d`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.ops import deform_conv2d
from tests.support.deform_conv_layers import simple, simple_inputs


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
    ({'x': (5, 6, 4)}, {}, r'x must have 4 axes \[N, H, W, C\], but has shape \(5, 6, 4\)'),
    (
      {'kernel': (3, 4, 6)},
      {},
      r'kernel must have 4 axes \[Kh, Kw, C / groups, O\], but has shape \(3, 4, 6\)',
    ),
    ({}, {'groups': 0}, r'groups must be an int that divides the 4 input channels, not 0'),
    ({}, {'groups': 3}, r'groups must be an int that divides the 4 input channels, not 3'),
    ({}, {'groups': 4}, r'groups must be an int that divides the 6 output channels, not 4'),
    (
      {},
      {'deformable_groups': 0},
      r'deformable_groups must be an int that divides the 4 input channels, not 0',
    ),
    (
      {},
      {'deformable_groups': 3},
      r'deformable_groups must be an int that divides the 4 input channels, not 3',
    ),
    (
      {},
      {'groups': 2},
      r'kernel has 4 input channels per group, but must have 2: x has 4 channels, and groups is 2',
    ),
    ({}, {'stride': 0}, r'stride must be an int or a pair of ints, each at least 1, not 0'),
    ({}, {'stride': (1, 2, 3)}, r'stride must be an int or a pair of ints, each at least 1, not \(1, 2, 3\)'),
    ({}, {'padding': (1, -1)}, r'padding must be an int or a pair of ints, each at least 0, not \(1, -1\)'),
    ({}, {'stride': 1.0}, r'stride must be an int or a pair of ints, each at least 1, not 1\.0'),
    ({}, {'stride': None}, r'stride must be an int or a pair of ints, each at least 1, not None'),
    (
      {},
      {'padding': (1, None)},
      r'padding must be an int or a pair of ints, each at least 0, not \(1, None\)',
    ),
    ({}, {'dilation': '11'}, r"dilation must be an int or a pair of ints, each at least 1, not '11'"),
    (
      {},
      {'dilation': (1, 1.5)},
      r'dilation must be an int or a pair of ints, .* at least 1, not \(1, 1\.5\)',
    ),
    (
      {'x': (2, 2, 6, 4)},
      {'padding': 0},
      r'x of shape \(2, 2, 6, 4\) is too small for kernel 3x3, .*the output would be 0x4',
    ),
    (
      {'x': (2, 5, 6, 0), 'kernel': (3, 3, 0, 6)},
      {},
      r'x has shape \(2, 5, 6, 0\), but needs at least one channel',
    ),
    ({'x': (2, 0, 6, 4)}, {'padding': 2}, r'x of shape \(2, 0, 6, 4\) is too small for kernel 3x3'),
    ({'offset': (2, 5, 6, 18)}, {}, r'offset has shape \(2, 5, 6, 18\), but must have \(2, 5, 6, 36\)'),
    ({}, {'stride': 2}, r'offset has shape \(2, 5, 6, 36\), but must have \(2, 3, 3, 36\)'),
    ({'mask': (2, 6, 5, 18)}, {}, r'mask has shape \(2, 6, 5, 18\), but must have \(2, 5, 6, 18\)'),
    ({'bias': (4,)}, {}, r'bias has shape \(4,\), but must have \(6,\)'),
    ({}, {'block_pixels': 0}, r'block_pixels must be an int of at least 1 or None, not 0'),
    ({}, {'block_pixels': 1.5}, r'block_pixels must be an int of at least 1 or None, not 1\.5'),
    ({}, {'groups': 1.0}, r'groups must be an int that divides the 4 input channels, not 1\.0'),
    (
      {},
      {'deformable_groups': None},
      r'deformable_groups must be an int that divides the 4 input channels, not None',
    ),
    (
      {
        'x': (1, 40000, 40000, 4),
        'offset': (1, 40000, 40000, 36),
        'mask': (1, 40000, 40000, 18),
      },
      {},
      r'x of shape \(1, 40000, 40000, 4\) is too large: it has 3200320008 rows',
    ),
  ],
)
def test_invalid_arguments_are_rejected_with_what_is_valid(changed, options, match):
  def function(*args):
    return deform_conv2d(*args, **{'padding': 1, 'deformable_groups': 2, **options})

  # Evaluated abstractly, because the last case would not fit into memory.
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(function, *shapes(**changed))


@pytest.mark.parametrize('position', range(5))
def test_integer_arrays_are_rejected(position):
  inputs = shapes()
  name = ('x', 'offset', 'mask', 'kernel', 'bias')[position]
  inputs[position] = jax.ShapeDtypeStruct(inputs[position].shape, jnp.int32)
  with pytest.raises(ValueError, match=rf'{name} must be floating point, but has dtype int32'):
    jax.eval_shape(lambda *args: deform_conv2d(*args, padding=1, deformable_groups=2), *inputs)


def test_the_arguments_that_the_error_tests_start_from_are_valid():
  def function(*args):
    return deform_conv2d(*args, padding=1, deformable_groups=2)

  assert jax.eval_shape(function, *shapes()).shape == (2, 5, 6, 6)


@pytest.mark.parametrize('name', ['stride', 'padding', 'dilation'])
@pytest.mark.parametrize('value', [np.int64(1), (np.int64(1), 1), [1, np.int32(1)]])
def test_pairs_may_be_numpy_integers_and_lists(name, value):
  inputs = simple_inputs(15, batch=1, size=(4, 5))
  got = deform_conv2d(*inputs, **{'padding': 1, 'deformable_groups': 2, name: value})
  np.testing.assert_allclose(got, simple(*inputs), atol=1e-5)
