"""How contenders are checked and timed. Skipped without torch, which is not in the extra `test`."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('torchvision')

from benchmarks.pytorch import agreement, run, turns  # noqa: E402
from benchmarks.pytorch import contenders as contenders_module  # noqa: E402
from benchmarks.pytorch.agreement import random_network  # noqa: E402
from benchmarks.pytorch.contenders import (  # noqa: E402
  Contender,
  Prepared,
  Started,
  contenders,
  torch_bytes,
)
from benchmarks.pytorch.rows import Row  # noqa: E402
from benchmarks.pytorch.turns import Comparison  # noqa: E402

CPU = torch.device('cpu')
ROW = Row('forward', (1, 8, 8, 3))
VALUES = np.ones(3, np.float32)


def _contender(variant, call, *, framework='pytorch', compiled=False, needs=0, values=VALUES):
  def start():
    return Started(call, lambda _: {'y': values})

  return Contender(framework, variant, 'float32', compiled, lambda: Prepared(needs, start))


def _raises(error):
  def call():
    raise error

  return call


def _raises_later(error):
  """A call that succeeds once."""
  calls = []

  def call():
    calls.append(None)
    if len(calls) > 1:
      raise error

  return call


def test_contenders_take_turns_and_the_first_runs_do_not_count():
  calls = []
  pair = [
    _contender('eager', lambda: calls.append('a')),
    _contender('float32', lambda: calls.append('b'), framework='jax'),
  ]
  comparison = Comparison(ROW, CPU)
  comparison.run(pair, 3)
  assert turns.WARM_UP_ROUNDS == 1
  # The first calls, which are checked; then backwards in every other turn.
  assert ' '.join(map(''.join, zip(*[iter(calls)] * 2, strict=True))) == 'ab ab ba ab ba'
  found = comparison.variants['jax']['float32']
  assert len(found['runs_ms']) == 3
  assert sorted(found['runs_ms'])[1] == found['ms'] > 0
  assert (found['relative_difference'], comparison.problems) == (0, [])


@pytest.mark.parametrize('value', [1.001, np.nan])
def test_disagreeing_contenders_are_not_timed(value):
  comparison = Comparison(ROW, CPU)
  wrong = _contender('float32', lambda: None, framework='jax', values=np.float32([1, 1, value]))
  comparison.run([_contender('eager', lambda: None), wrong], 1)
  found = comparison.variants['jax']['float32']
  assert 'ms' not in found
  assert found['not_run'].endswith('exceeds the tolerance 1e-04')
  (problem,) = comparison.problems
  assert problem.startswith('forward_1x8x8, jax float32: relative difference')
  assert 'ms' in comparison.variants['pytorch']['eager']


def test_failures_and_too_large_contenders_are_reported(monkeypatch):
  monkeypatch.setattr(turns, 'free_host_bytes', lambda: 2**30)
  comparison = Comparison(ROW, CPU)
  comparison.run(
    [
      _contender('eager', lambda: None),
      _contender('channels_last', lambda: None, needs=3 * 2**30),
      _contender('compile', _raises(OSError('no compiler\nbut a long text')), compiled=True),
      _contender('tf32', _raises(torch.OutOfMemoryError('CUDA out of memory.'))),
      _contender('bfloat16', _raises(RuntimeError('not implemented'))),
      _contender('float32', _raises_later(Exception('Failed to allocate memory')), framework='onnx_runtime'),
      _contender('float32', lambda: None, framework='jax'),
    ],
    1,
  )
  onnx = comparison.variants['onnx_runtime']['float32']
  assert onnx == {'not_run': 'out of memory, 1.0 GiB free: Exception: Failed to allocate memory'}
  variants = comparison.variants['pytorch']
  found = {name: result['not_run'] for name, result in variants.items() if name != 'eager'}
  assert found == {
    'channels_last': 'needs about 3.0 GiB; 1.0 GiB are free',
    'compile': 'OSError: no compiler but a long text',
    'tf32': 'out of memory, 1.0 GiB free: OutOfMemoryError: CUDA out of memory.',
    'bfloat16': 'RuntimeError: not implemented',
  }
  assert comparison.problems == ['forward_1x8x8, pytorch bfloat16: RuntimeError: not implemented']
  assert 'ms' in comparison.variants['jax']['float32']


def test_without_eager_pytorch_nothing_is_timed(monkeypatch):
  monkeypatch.setattr(turns, 'free_host_bytes', lambda: 2**30)
  comparison = Comparison(ROW, CPU)
  contenders = [
    _contender('eager', lambda: None, needs=3 * 2**30),
    _contender('compile', lambda: None, compiled=True),
    _contender('float32', lambda: None, framework='jax'),
  ]
  # As if both frameworks did not fit into memory together.
  comparison.run(contenders[:2], 1)
  comparison.run(contenders[2:], 1)
  without = {'not_run': 'no eager PyTorch result to agree with'}
  assert comparison.variants == {
    'pytorch': {'eager': {'not_run': 'needs about 3.0 GiB; 1.0 GiB are free'}, 'compile': without},
    'onnx_runtime': {},
    'jax': {'float32': without},
  }
  assert comparison.problems == []


@pytest.mark.parametrize('kind', ['deform_forward', 'deform_backward'])
def test_in_bfloat16_the_operator_agrees_with_float32_of_rounded_inputs(kind, monkeypatch):
  monkeypatch.setattr(contenders_module, 'jax_precisions', lambda _: ('bfloat16',))
  row = Row(kind, (2, 9, 11, 16))
  eager, ours = contenders(row, random_network(0, CPU), CPU)
  comparison = Comparison(row, CPU)
  comparison.run([eager, ours], 1)
  assert comparison.problems == []
  # The tolerance is not too loose.
  rounding = comparison.variants['jax']['bfloat16']['relative_difference']
  assert turns.TOLERANCES[kind]['bfloat16'] / 10 < rounding
  if kind == 'deform_backward':
    comparison.run([ours._replace(variant='unrounded', reference=None)], 1)
    assert 'not_run' in comparison.variants['jax']['unrounded']


def test_programming_errors_are_raised():
  with pytest.raises(TypeError):
    Comparison(ROW, CPU).run([_contender('eager', _raises(TypeError('a mistake')))], 1)


def test_frameworks_are_timed_in_turn_unless_the_gpu_is_too_small(monkeypatch):
  pair = [_contender('eager', None), _contender('float32', None, framework='jax')]
  assert turns.groups_that_fit(pair, 2**60, CPU) == [pair]
  monkeypatch.setattr(turns, 'free_bytes', lambda *_: 2**30)
  gpu = torch.device('cuda')
  assert turns.groups_that_fit(pair, 2**29, gpu) == [pair]
  assert turns.groups_that_fit(pair, 2**29 + 1, gpu) == [[pair[0]], [pair[1]]]


@pytest.mark.parametrize(
  'row',
  [
    Row('deform_forward', (1, 5, 7, 8)),
    Row('deform_backward', (2, 5, 7, 8)),
    Row('forward', (1, 24, 32, 3)),
    Row('training', (2, 16, 24, 3)),
  ],
  ids=lambda row: row.key,
)
def test_pytorch_and_jax_compute_the_same(row):
  comparison = Comparison(row, CPU)
  both = [c for c in contenders(row, random_network(0, CPU), CPU) if not c.compiled_by_torch]
  comparison.run(both, 1)
  assert comparison.problems == []
  assert comparison.variants['jax']['float32']['relative_difference'] < 1e-3
  variants = comparison.variants['pytorch'].values(), comparison.variants['onnx_runtime'].values()
  assert all({'ms', 'runs_ms'} <= set(result) for results in variants for result in results)
  assert set(comparison.variants['onnx_runtime']) == ({'float32'} if row.kind == 'forward' else set())
  if not row.is_operator:
    assert {'channels_last', 'bfloat16', 'channels_last_bfloat16'} < set(comparison.variants['pytorch'])


def test_jax_needs_less_memory_than_pytorch_is_estimated_to():
  row = Row('forward', (1, 160, 240, 3))
  *_, ours = contenders(row, random_network(0, CPU), CPU)
  assert 2**20 < ours.prepare().bytes_needed < torch_bytes(row)


def test_networks_that_disagree_are_refused():
  found = {'forward_max_abs_difference': 1e-5, 'gradient_relative_difference': 4e-3}
  agreement.check(found, 'gpu')
  for wrong in (found, found | {'gradient_relative_difference': float('nan')}):
    with pytest.raises(ValueError, match='PyTorch and JAX disagree by 1e-05 in the output'):
      agreement.check(wrong, 'cpu')


def test_another_file_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(run, 'choose_device', lambda _: CPU)
  path = tmp_path / 'old.json'
  path.write_text('{"device": "cpu", "rows": {"network_forward": {"pytorch_ms": 1.0, "jax_ms": 1.0}}}')
  assert run.main(['--json', str(path)]) == 1
  said = capsys.readouterr()
  assert said.out == ''
  assert said.err == (f'{path}: not results of this script; move the file or give another name\n')
