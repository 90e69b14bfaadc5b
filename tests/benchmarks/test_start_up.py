"""The starts that are measured, in fresh processes, and the rows made of them."""

import itertools

import pytest

from benchmarks import common, start_up


def test_a_fresh_process_reports_its_parts_and_fills_the_cache(tmp_path):
  found = common.in_fresh_process('start_up.py', ['--once', 'import', '--cache', str(tmp_path)])
  assert set(found) == {'import_jax', 'import_flax', 'import_sadnet_jax', 'find_devices'}
  assert all(0 < seconds < 60 for seconds in found.values())
  # Nothing was imported before the clock ran: importing JAX takes far longer than finding a CPU.
  assert found['import_jax'] > found['find_devices']
  assert list(tmp_path.iterdir())


def test_a_failing_process_ends_the_benchmark():
  with pytest.raises(SystemExit, match=r'start_up\.py --once nothing: failed with exit status 2'):
    common.in_fresh_process('start_up.py', ['--once', 'nothing'])


def test_the_clock_splits_the_time(monkeypatch):
  times = iter([10.0, 11.0, 15.0, 15.5])
  monkeypatch.setattr(start_up.time, 'perf_counter', lambda: next(times))
  clock = start_up.Clock()
  clock.note('first')
  clock.skip()
  clock.note('second')
  assert clock.parts == {'first': 1.0, 'second': 0.5}


def test_the_start_that_fills_the_cache_does_not_count(monkeypatch):
  seconds, folders = itertools.count(), []

  def fake(script, options):
    assert script == 'start_up.py'
    folders.append(options[3] if len(options) > 2 else None)
    return {'compile': float(next(seconds))}

  monkeypatch.setattr(common, 'in_fresh_process', fake)
  assert start_up.starts('forward_480x320', 2, cached=False) == {'compile': [0.0, 1.0]}
  assert folders == [None, None]
  assert start_up.starts('forward_480x320', 2, cached=True) == {'compile': [3.0, 4.0]}
  assert len(set(folders[2:])) == 1
  assert None not in folders[2:]


def test_rows_have_a_cached_time_if_the_cache_matters(monkeypatch):
  parts = {part for _, _, part, _ in start_up.ROWS.values()}
  monkeypatch.setattr(common, 'in_fresh_process', lambda *_: dict.fromkeys(parts, 1.0))
  rows = start_up.measure(2)
  assert set(rows) == set(start_up.ROWS)
  for name, row in rows.items():
    assert row['no_cache'] == {'seconds': 1.0, 'runs_seconds': [1.0, 1.0]}
    assert ('filled_cache' in row) == (not name.startswith(('import', 'find')))
