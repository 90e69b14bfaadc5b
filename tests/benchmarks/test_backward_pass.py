"""The hand-written backward pass and JAX's: what is timed, and that they must agree."""

import json

import jax
import numpy as np
import pytest

from benchmarks import backward_pass
from benchmarks.common import Limits
from sadnet_jax.ops import platform


def test_only_the_hand_written_path_has_conditionals(monkeypatch):
  monkeypatch.setattr(platform, 'MIN_VALUES_FOR_BARRIERS', 0)
  inputs = backward_pass.random_inputs((1, 6, 9, 8))
  both = backward_pass.compile_both(inputs)
  assert jax.default_backend() == 'cpu'
  assert ' conditional(' in both['by_hand'].as_text()
  assert ' conditional(' not in both['autodiff'].as_text()
  for got, expected in zip(both['by_hand'](*inputs), both['autodiff'](*inputs), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_writes_a_row_for_each_shape(tmp_path, monkeypatch):
  monkeypatch.setattr(backward_pass, 'SHAPES', ((1, 6, 9, 8),))
  backward_pass.main(['--runs', '2', '--json', str(tmp_path / 'out.json')])
  content = json.loads((tmp_path / 'out.json').read_text())
  row = content['rows']['1x6x9x8']
  assert [len(row[name]['runs_seconds']) for name in ('by_hand', 'autodiff')] == [2, 2]
  assert row['autodiff']['temporary_bytes'] > 0
  assert row['limit_ms'] == pytest.approx(
    1e3 * Limits(**content['limits']['float32']).seconds(row['flops'], row['bytes'])
  )
  assert content['command'] == 'python benchmarks/backward_pass.py --runs 2'


def test_disagreeing_gradients_are_not_timed():
  both = {'by_hand': lambda x: (x,), 'autodiff': lambda x: (1.01 * x,)}
  with pytest.raises(SystemExit, match=r'operator: relative difference of the gradients is 9\.9e-03, must'):
    backward_pass.check_agreement('operator', both, [jax.numpy.ones(3)])
