"""What the script makes of the starts that it measures."""

import itertools

from benchmarks import common, start_up


def test_the_cache_is_filled_by_a_start_that_does_not_count(monkeypatch):
  taken, folders = itertools.count(), []

  def fake(script, options):
    assert script == 'start_up_once.py'
    folders.append(options[1] if len(options) > 1 else None)
    return {'compile': float(next(taken))}

  monkeypatch.setattr(common, 'in_fresh_process', fake)
  assert start_up.starts('forward_480x320', 2, cached=False) == {'compile': [0.0, 1.0]}
  assert folders == [None, None]
  assert start_up.starts('forward_480x320', 2, cached=True) == {'compile': [3.0, 4.0]}
  assert len(set(folders[2:])) == 1
  assert None not in folders[2:]


def test_all_rows_of_the_start_are_measured_with_a_cache_where_it_can_matter(monkeypatch):
  parts = {part for _, _, part, _ in start_up.ROWS.values()}
  monkeypatch.setattr(common, 'in_fresh_process', lambda *_: dict.fromkeys(parts, 1.0))
  rows = start_up.measure(2)
  assert set(rows) == set(start_up.ROWS)
  for name, row in rows.items():
    assert row['no_cache'] == {'seconds': 1.0, 'runs_seconds': [1.0, 1.0]}
    assert ('filled_cache' in row) == (not name.startswith(('import', 'find')))
