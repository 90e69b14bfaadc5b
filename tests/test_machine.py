"""What the machine says of itself."""

import pytest

from sadnet_jax import machine


def test_free_memory_is_plausible():
  free = machine.free_host_bytes()
  assert free is None or 2**20 < free < 2**46


def test_the_memory_limit_of_a_container_counts(tmp_path):
  assert machine.free_in_container(tmp_path) is None
  (tmp_path / 'memory.max').write_text('1000\n')
  (tmp_path / 'memory.current').write_text('700\n')
  (tmp_path / 'memory.stat').write_text('anon 500\ninactive_file 150\n')
  assert machine.free_in_container(tmp_path) == 450
  (tmp_path / 'memory.max').write_text('max\n')
  assert machine.free_in_container(tmp_path) is None


@pytest.mark.parametrize(
  ('commit', 'changes', 'committed'), [('abc', False, True), ('abc', True, False), (None, None, False)]
)
def test_a_result_is_committed_if_its_commit_has_all_of_its_code(commit, changes, committed):
  assert machine.is_committed({'commit': commit, 'uncommitted_changes': changes}) is committed


def test_the_environment_names_versions_and_devices():
  found = machine.environment(['numpy', 'no-such-distribution'])
  assert found['versions']['jax']
  assert found['versions']['numpy'] == machine.version('numpy')
  assert found['versions']['no-such-distribution'] is None
  assert found['devices'] == 8
