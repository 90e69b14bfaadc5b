"""The benchmark of the command: its targets."""

import pytest

from benchmarks import command, tables
from sadnet_jax.weights.index import available


def test_targets_compare_the_qualities_of_one_size():
  start = {'first_seconds': [9.0, 9.0, 9.0], 'later_seconds': [2.0, 3.1, 2.5]}
  sizes = [
    {'width': width, 'height': 3000, 'quality': quality, 'seconds': seconds}
    for width, quality, seconds in (
      (4000, 'fast', 41.0),
      (4000, 'balanced', 100.0),
      (4000, 'best', 800.0),
      (400, 'fast', 1.0),
    )
  ]
  sizes[0]['later_seconds'], sizes[1]['later_seconds'] = 36.0, 96.0
  first, ratio, filled = command.targets(start, sizes).values()
  assert (first['value'], first['target'], first['reached']) == (2.5, 3, True)
  assert ratio['what'] == 'command, 4000x3000, empty cache: time of fast over that of balanced'
  assert (filled['value'], filled['reached']) == (pytest.approx(0.375), True)
  assert (ratio['value'], ratio['target'], ratio['reached']) == (pytest.approx(0.41), 0.4, False)
  assert command.targets({}, sizes[2:]) == {}


def test_weights_that_have_been_replaced_since_are_named():
  published = available()['photo'].sha256
  content = {'sizes': [], 'weights': {'photo': published, 'photo_fast': 'another'}}
  assert tables.command_tables(content)[-1].endswith(
    'of other weights than those published now: `photo_fast`.'
  )
  assert 'published' not in tables.command_tables({'sizes': [], 'weights': {'photo': published}})[-1]
