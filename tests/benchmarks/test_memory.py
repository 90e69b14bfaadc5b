"""The memory that is measured, and the row made of it."""

from benchmarks import common, memory
from benchmarks.programs import deform_conv_forward


def test_the_memory_of_imports_is_subtracted(monkeypatch):
  taken = {
    'temporary': 300_000_000,
    'argument': 2,
    'output': 3,
    'alias': 0,
    'resident_compiled': 500,
    'resident': 900,
    'device': None,
  }
  monkeypatch.setattr(common, 'in_fresh_process', lambda *_: taken)
  row = memory.measure('forward_480x320', 2, imported=200)
  assert row['bytes'] == taken | {'resident_compiled': 300, 'resident': 700}
  # x, 8 groups of 9 taps of 3 values, y, at every pixel; kernel and bias.
  assert row['limit_bytes'] == 4 * (320 * 480 * (32 + 216 + 32) + 9 * 32 * 32 + 32)
  (target,) = memory.targets({'forward_480x320': row}, 'cpu').values()
  assert (target['value'], target['reached']) == (300.0, False)
  assert memory.targets({}, 'cpu') == {}
  assert memory.targets({'forward_480x320': row}, 'gpu') == {}
  row = memory.measure('training_step_4x128', 1, imported=None)
  assert row['bytes']['resident'] is None
  assert 'limit_bytes' not in row


def test_the_median_of_missing_values_is_none():
  assert memory.median([3, 1, 2]) == 2
  assert memory.median([None, None]) is None


def test_a_program_takes_at_least_its_arguments_and_results(monkeypatch):
  monkeypatch.setitem(memory.PROGRAMS, 'small', ('', lambda: deform_conv_forward(1, 16, 24, 16)))
  found = memory.run_once('small')
  assert found['argument'] >= 4 * 16 * 24 * (16 + 216)
  assert found['output'] == 4 * 16 * 24 * 16
  assert found['device'] is None
  resident = found['resident']
  assert resident is None or 2**26 < resident < 2**40
  assert resident is None or found['resident_compiled'] <= resident
