"""The backward pass by hand and by JAX: what is timed beside each other."""

import jax
import numpy as np

from benchmarks import vjp_against_autodiff
from sadnet_jax import deform_geometry


def test_only_the_hand_written_path_has_conditionals(monkeypatch):
  monkeypatch.setattr(deform_geometry, '_LEAST_SPLIT_VALUES', 0)
  inputs = vjp_against_autodiff.random_inputs((1, 6, 9, 8))
  both = vjp_against_autodiff.compile_both(inputs)
  assert jax.default_backend() == 'cpu'
  assert ' conditional(' in both['by hand'].as_text()
  assert ' conditional(' not in both['autodiff'].as_text()
  for got, wanted in zip(both['by hand'](*inputs), both['autodiff'](*inputs), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
