"""What the machine says of itself."""

import ctypes
import importlib.util
import os
import subprocess
import sys
import types

import jax
import pytest

from sadnet_jax import machine
from tests.support.command import finish, start


def test_only_cores_that_the_process_may_use_count(monkeypatch):
  assert 1 <= machine.usable_cores() <= os.cpu_count()
  monkeypatch.setattr('os.sched_getaffinity', lambda process: {3, 5}, raising=False)
  assert machine.usable_cores() == 2
  monkeypatch.delattr('os.sched_getaffinity')
  assert machine.usable_cores() == os.cpu_count()


def test_free_memory_is_plausible():
  free = machine.free_host_bytes()
  assert free is None or 2**20 < free < 2**46


def test_the_memory_of_the_machine_is_more_than_what_is_free():
  assert machine.host_bytes() > machine.free_host_bytes()


@pytest.mark.parametrize(
  ('device', 'jaxlib', 'flags', 'is_slow'),
  [
    ({'platform': 'gpu', 'compute_capability': '8.0'}, '0.10.2', '', True),
    ({'platform': 'gpu', 'compute_capability': '9.0'}, '0.10.2', '', False),
    ({'platform': 'gpu', 'compute_capability': '8.9'}, '0.11.0', '-nvptx-allow-ftz-atomics', False),
    ({'platform': 'gpu', 'compute_capability': '8.0'}, '0.10.1', '', False),
    ({'platform': 'gpu', 'compute_capability': 'gfx90a'}, '0.10.2', '', False),
    ({'platform': 'gpu'}, '0.10.2', '', False),
    ({'platform': 'cpu'}, '0.10.2', '', False),
  ],
)
def test_versions_that_are_slow_on_gpus_are_named(monkeypatch, device, jaxlib, flags, is_slow):
  monkeypatch.setattr(jax, 'local_devices', lambda: [types.SimpleNamespace(**device)])
  monkeypatch.setattr(machine, 'version', lambda _: jaxlib)
  monkeypatch.setenv('XLA_FLAGS', f'--xla_backend_extra_options={flags}')
  note = machine.slow_gradients_note()
  assert (note is not None and f'jaxlib {jaxlib} is slow' in note) == is_slow


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


def test_code_that_was_changed_or_added_is_not_committed(tmp_path, monkeypatch):
  def git(*arguments):
    who = ('-c', 'user.name=A', '-c', 'user.email=a@b')
    subprocess.run(['git', *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

  for name in ('sadnet_jax/machine.py', 'configs/a.py', 'README.md'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  git('init')
  git('add', '.')
  git('commit', '-m', 'all')
  monkeypatch.setattr(machine, '__file__', str(tmp_path / 'sadnet_jax/machine.py'))
  (tmp_path / 'notes.py').touch()
  assert machine.is_committed(machine.environment([]))
  # A name that is no text in UTF-8, as git prints it with this setting.
  git('config', 'core.quotePath', 'false')
  for name in ('configs/mine.py', os.fsdecode(b'configs/\xe9.py'), 'README.md'):
    (tmp_path / name).write_text('changed')
    assert not machine.is_committed(machine.environment([]))
    git('stash', '--include-untracked')
    assert machine.is_committed(machine.environment([]))


@pytest.mark.skipif(
  sys.platform != 'linux' or not hasattr(ctypes.CDLL(None), 'gnu_get_libc_version'),
  reason='needs the GNU C library',
)
def test_freed_memory_is_kept():
  """In a process of its own, since it holds for the whole process; for threads too."""
  script = """if True:
    import resource, sys, threading
    import numpy as np
    from sadnet_jax import machine

    if 'keep' in sys.argv:
      assert machine.keep_freed_memory()

    def allocate():
      np.ones(2**28, np.uint8)

    def faults(run):
      before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
      run()
      return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def in_thread():
      thread = threading.Thread(target=allocate)
      thread.start()
      thread.join()

    def resident():
      with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()

    allocate()
    print(faults(allocate), faults(in_thread), resident())
  """
  # Without huge pages, whose faults are few.
  found = [
    list(map(int, finish(start('-c', script, *options, NUMPY_MADVISE_HUGEPAGE='0'))[0].split()))
    for options in ([], ['keep'])
  ]
  for faults, kept_faults in list(zip(*found, strict=True))[:2]:
    assert kept_faults < faults / 10
  assert found[1][-1] - found[0][-1] > 2**27


def test_the_allocator_is_left_alone_where_others_may_need_it(monkeypatch):
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.setattr(ctypes, 'CDLL', lambda _: pytest.fail('the C library is changed'))
  for plugin in ('jax_plugins', 'libtpu'):
    monkeypatch.setattr(importlib.util, 'find_spec', {plugin: object()}.get)
    for platforms in ('', 'cuda,cpu'):
      monkeypatch.setenv('JAX_PLATFORMS', platforms)
      assert not machine.keep_freed_memory()
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  with pytest.raises(pytest.fail.Exception, match='the C library is changed'):
    machine.keep_freed_memory()
  for name in ('MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES', 'LD_PRELOAD'):
    with monkeypatch.context() as patched:
      patched.setenv(name, '')
      assert not machine.keep_freed_memory()
  monkeypatch.setattr(sys, 'platform', 'darwin')
  assert not machine.keep_freed_memory()


def test_without_the_gnu_c_library_nothing_is_kept(monkeypatch):
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setattr(ctypes, 'CDLL', lambda _: object())
  assert not machine.keep_freed_memory()


def test_training_keeps_freed_memory():
  script = """if True:
    import runpy, sys
    from sadnet_jax import machine

    machine.keep_freed_memory = lambda: print('kept')
    sys.argv = ['train.py', '--config=nowhere.py']
    runpy.run_path('train.py', run_name='__main__')
  """
  output, _ = finish(start('-c', script), succeeds=False)
  assert output == 'kept\n'
