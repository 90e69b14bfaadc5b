"""What the machine says of itself."""

import ctypes
import importlib.util
import sys

import pytest

from sadnet_jax import machine
from tests.support.command import finish, start


def test_free_memory_is_plausible():
  free = machine.free_host_bytes()
  assert free is None or 2**20 < free < 2**46


def test_the_memory_limit_of_a_container_counts(tmp_path):
  # Without a list of the process's groups, the mounted folder is the group.
  groups = tmp_path / 'none'
  assert machine.free_in_container(tmp_path, groups) is None
  (tmp_path / 'memory.max').write_text('1000\n')
  (tmp_path / 'memory.current').write_text('700\n')
  (tmp_path / 'memory.stat').write_text('anon 500\ninactive_file 150\n')
  assert machine.free_in_container(tmp_path, groups) == 450
  (tmp_path / 'memory.max').write_text('max\n')
  assert machine.free_in_container(tmp_path, groups) is None


def _limit(folder, limits, used, cached):
  folder.mkdir(parents=True, exist_ok=True)
  for name, value in {**limits, **used}.items():
    (folder / name).write_text(f'{value}\n')
  (folder / 'memory.stat').write_text(f'{cached} 20\n')


def test_the_least_limit_from_the_group_of_the_process_upwards_counts(tmp_path):
  groups = tmp_path / 'groups'
  groups.write_text('0::/system.slice/job.scope/step\n')
  _limit(
    tmp_path / 'system.slice' / 'job.scope', {'memory.max': 1000}, {'memory.current': 100}, 'inactive_file'
  )
  _limit(tmp_path / 'system.slice', {'memory.max': 'max'}, {'memory.current': 300}, 'inactive_file')
  _limit(tmp_path / 'others.slice', {'memory.max': 50}, {'memory.current': 0}, 'inactive_file')
  assert machine.free_in_container(tmp_path, groups) == 920
  # From this on, the system slows the group down.
  (tmp_path / 'system.slice' / 'memory.high').write_text('500\n')
  assert machine.free_in_container(tmp_path, groups) == 220


def test_limits_of_cgroup_version_1_count(tmp_path):
  groups = tmp_path / 'groups'
  groups.write_text('5:cpu,cpuacct:/job\n3:memory:/job\n')
  memory = tmp_path / 'memory'
  used = {'memory.usage_in_bytes': 300}
  _limit(memory, {'memory.limit_in_bytes': 2**63 - 4096}, used, 'total_inactive_file')
  _limit(memory / 'job', {'memory.limit_in_bytes': 1000}, used, 'total_inactive_file')
  assert machine.free_in_container(tmp_path, groups) == 720
  # In a container, the path is that outside, and the mounted folder is the group.
  groups.write_text('3:memory:/docker/abc\n')
  _limit(memory, {'memory.limit_in_bytes': 700}, used, 'total_inactive_file')
  assert machine.free_in_container(tmp_path, groups) == 420


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


@pytest.mark.skipif(
  sys.platform != 'linux' or not hasattr(ctypes.CDLL(None), 'mallinfo2'), reason='needs the GNU C library'
)
def test_freed_memory_is_kept_and_counts_as_free():
  """In a process of its own, since it holds for the whole process."""
  script = """if True:
    import resource, sys
    import numpy as np
    from sadnet_jax import machine

    if 'keep' in sys.argv:
      assert machine.keep_freed_memory()
    bytes_each = 2**28

    def faults():
      before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
      np.ones(bytes_each, np.uint8)
      return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident():
      with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()

    faults()
    again = faults()
    machine._free_in_system, machine.free_in_container = (lambda: 1000), (lambda: None)
    print(again, machine.free_host_bytes() - 1000, resident())
  """
  (faults, kept, resident), (kept_faults, kept_bytes, kept_resident) = (
    map(int, finish(start('-c', script, *options))[0].split()) for options in ([], ['keep'])
  )
  assert kept_faults < faults / 10
  assert kept_resident - resident > 2**27
  assert kept == 0
  assert kept_bytes > 2**28


def test_nothing_is_changed_where_there_may_be_an_accelerator(monkeypatch):
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.setattr(ctypes, 'CDLL', lambda _: pytest.fail('the C library is changed'))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if name == 'jax_plugins' else None)
  for platforms in ('', 'cuda,cpu'):
    monkeypatch.setenv('JAX_PLATFORMS', platforms)
    assert not machine.keep_freed_memory()
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  with pytest.raises(pytest.fail.Exception, match='the C library is changed'):
    machine.keep_freed_memory()
  monkeypatch.setattr(sys, 'platform', 'darwin')
  assert not machine.keep_freed_memory()
