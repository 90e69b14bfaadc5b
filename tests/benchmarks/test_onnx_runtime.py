"""ONNX Runtime beside JAX: both denoise the same image, and the ratio is that of the best times."""

import pytest

from benchmarks import onnx_runtime, tables
from sadnet_jax import Denoiser, SADNet
from tests.support.small_networks import SMALL, random_variables


def test_both_denoise_the_same_image():
  model = SADNet(**SMALL, use_rsab=False)
  row = onnx_runtime.measure(Denoiser(model, random_variables(model)['params']), [(16, 8)], 2)['16x8']
  assert row['largest_difference'] < 2e-6
  best = {name: min(row[name]['runs_seconds']) for name in ('jax', 'onnx_runtime')}
  assert row['ratio_of_best'] == pytest.approx(best['onnx_runtime'] / best['jax'])
  row = {'what': 'a', 'ratio_of_best': 2.5, 'largest_difference': 4.2e-7}
  row |= {name: {'runs_seconds': [2 * best, best]} for name, best in (('jax', 0.4), ('onnx_runtime', 1))}
  assert tables.onnx_runtime_table({'rows': {'a': row}})[-1] == '| a | 0.400 | 1.00 | 2.50 | 4.2e-07 | 2 |'


def test_networks_that_disagree_are_not_timed(monkeypatch):
  model = SADNet(**SMALL, use_rsab=False)
  params = random_variables(model)['params']
  other = random_variables(model, seed=1)['params']
  session = onnx_runtime.onnx_session
  monkeypatch.setattr(onnx_runtime, 'onnx_session', lambda model, params: session(model, other))
  with pytest.raises(ValueError, match=r'16x8: the results differ by .*, more than 0\.0001; not timed'):
    onnx_runtime.measure(Denoiser(model, params), [(16, 8)], 1)
