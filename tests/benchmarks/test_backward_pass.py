"""The hand-written backward pass and JAX's: what is timed, and that they must agree."""

import json

import jax
import pytest

from benchmarks import backward_pass, common
from benchmarks.common import Limits
from sadnet_jax.ops import platform


def test_a_row_is_written_and_only_the_hand_written_path_has_conditionals(tmp_path, monkeypatch):
  compiled = {}

  def compile_both(inputs):
    compiled.update(compile_again(inputs))
    return compiled

  compile_again = backward_pass.compile_both
  monkeypatch.setattr(backward_pass, 'compile_both', compile_both)
  monkeypatch.setattr(platform, 'MIN_VALUES_FOR_BARRIERS', 0)
  monkeypatch.setattr(backward_pass, 'SHAPES', ((1, 6, 9, 8),))
  limits = Limits(1e9, 1e9)
  monkeypatch.setattr(common, 'default_limits', lambda: ('float32', limits))
  # The gradients must agree, or this fails.
  backward_pass.main(['--runs', '2', '--json', str(tmp_path / 'out.json')])
  assert jax.default_backend() == 'cpu'
  assert ' conditional(' in compiled['by_hand'].as_text()
  assert ' conditional(' not in compiled['autodiff'].as_text()
  content = json.loads((tmp_path / 'out.json').read_text())
  row = content['rows']['1x6x9x8']
  assert [len(row[name]['runs_seconds']) for name in ('by_hand', 'autodiff')] == [2, 2]
  assert row['autodiff']['temporary_bytes'] > 0
  assert row['limit_ms'] == pytest.approx(1e3 * limits.seconds(row['flops'], row['bytes']))
  assert content['command'] == 'python benchmarks/backward_pass.py --runs 2'


def test_disagreeing_gradients_are_not_timed():
  both = {'by_hand': lambda x: (x,), 'autodiff': lambda x: (1.01 * x,)}
  with pytest.raises(SystemExit, match=r'operator: relative difference of the gradients is 9\.9e-03, must'):
    backward_pass.check_agreement('operator', both, [jax.numpy.ones(3)])
