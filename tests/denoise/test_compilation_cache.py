"""The persistent cache of compiled programs."""

import hashlib
import os
import pickle
import time
import warnings

import jax
import numpy as np
import pytest

from sadnet_jax.denoise import compilation_cache
from sadnet_jax.denoise.compiled_network import CompiledNetwork
from sadnet_jax.nn.sadnet import SADNet
from tests.support.command import ROOT, finish, start
from tests.support.denoise_command import picture, write_weights
from tests.support.small_networks import SMALL, image, random_variables

pytestmark = pytest.mark.usefixtures('quick_to_compile')


@pytest.fixture
def no_cache():
  """Turns off the tests' own cache."""
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.usefixtures('no_cache')
def test_programs_are_cached_by_processor_in_the_users_folder(tmp_path, monkeypatch):
  monkeypatch.setattr('platformdirs.user_cache_dir', lambda name: str(tmp_path / name))
  folder = compilation_cache.enable()
  assert folder.parent == tmp_path / 'sadnet-jax/jax'
  assert folder.is_dir()
  assert jax.config.jax_compilation_cache_dir == str(folder)
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setattr('platform.machine', lambda: 'another')
  assert compilation_cache.enable() not in (None, folder)


def test_the_users_own_cache_is_left_alone(tmp_path):
  own = jax.config.jax_compilation_cache_dir
  assert compilation_cache.enable(tmp_path) is None
  assert jax.config.jax_compilation_cache_dir == own
  assert not list(tmp_path.iterdir())


def _network(device=0, **fields):
  model = SADNet(**SMALL, **fields)
  return CompiledNetwork(model, random_variables(model)['params'], jax.local_devices()[device])


def _fail(*_):
  raise AssertionError('the network is traced')


@pytest.mark.usefixtures('no_cache')
def test_a_compiled_network_is_kept_for_later_runs(tmp_path, monkeypatch):
  noisy = image(size=(40, 56))
  wanted = _network()(noisy)

  def traces_nothing():
    with monkeypatch.context() as patched:
      patched.setattr(SADNet, 'apply', _fail)
      np.testing.assert_array_equal(_network()(noisy), wanted)

  with compilation_cache.keeping_programs(tmp_path) as folder:
    np.testing.assert_array_equal(_network()(noisy), wanted)
    (kept,) = folder.iterdir()
    traces_nothing()
    # A damaged file, and one of another kind, is not used, but replaced.
    content = kept.read_bytes()
    other = pickle.dumps('not a program')
    for bad in (content[:-1] + bytes([content[-1] ^ 1]), hashlib.sha256(other).digest() + other):
      kept.write_bytes(bad)
      with pytest.raises(AssertionError, match='the network is traced'):
        traces_nothing()
      np.testing.assert_array_equal(_network()(noisy), wanted)
      traces_nothing()
  with pytest.raises(AssertionError, match='the network is traced'):
    traces_nothing()


@pytest.mark.usefixtures('no_cache')
def test_another_network_size_device_or_setting_is_compiled_anew(tmp_path, monkeypatch):
  with compilation_cache.keeping_programs(tmp_path) as folder:
    for i, (fields, size) in enumerate([({}, (8, 8)), ({'last_kernel': 1}, (8, 8)), ({}, (8, 72))]):
      _network(**fields)(image(size=size))
      assert len(list(folder.iterdir())) == i + 1
    monkeypatch.setenv('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
    _network()(image())
    assert len(list(folder.iterdir())) == 4
    monkeypatch.setenv('XLA_FLAGS', f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_enable_fast_math=false')
    _network()(image())
    assert len(list(folder.iterdir())) == 5
    monkeypatch.setattr('os.sched_getaffinity', lambda process: {0}, raising=False)
    _network()(image())
    assert len(list(folder.iterdir())) == 6
    # A program that was read runs on its own device.
    wanted = _network(device=1)(image())
    assert len(list(folder.iterdir())) == 7
    again = _network(device=1)
    np.testing.assert_array_equal(again(image()), wanted)
    assert len(list(folder.iterdir())) == 7
    (program,) = again.programs.values()
    assert jax.tree.leaves(program.input_shardings)[0].device_set == {jax.local_devices()[1]}


def test_nothing_is_kept_beside_the_users_own_cache(tmp_path, request):
  own = jax.config.jax_compilation_cache_dir
  with compilation_cache.keeping_programs(tmp_path) as folder:
    assert folder is None
    _network()(image())
  request.getfixturevalue('no_cache')
  with compilation_cache.keeping_programs(tmp_path) as folder:
    # Set up meanwhile.
    jax.config.update('jax_compilation_cache_dir', own)
    _network()(image())
    assert not list(folder.iterdir())


@pytest.mark.usefixtures('no_cache')
def test_jaxs_cache_does_not_answer_after_it_was_turned_off(tmp_path, monkeypatch):
  """A program from there cannot be loaded once it is stored again."""
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'jax'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  wanted = _network()(image())
  jax.config.update('jax_compilation_cache_dir', None)
  for name in ('first', 'second'):
    with compilation_cache.keeping_programs(tmp_path / name):
      np.testing.assert_array_equal(_network()(image()), wanted)
      with monkeypatch.context() as patched:
        patched.setattr(SADNet, 'apply', _fail)
        np.testing.assert_array_equal(_network()(image()), wanted)


@pytest.mark.usefixtures('no_cache')
def test_nothing_is_kept_if_caches_are_off(tmp_path):
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    with compilation_cache.keeping_programs(tmp_path) as folder:
      assert folder is None
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
  assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures('no_cache')
def test_programs_are_not_kept_where_others_may_write(tmp_path):
  with compilation_cache.keeping_programs(tmp_path) as folder:
    assert folder.stat().st_mode & 0o777 == 0o700
  for mode, private in ((0o755, True), (0o775, False), (0o777, False)):
    folder.chmod(mode)
    wanted = folder if private else None
    with compilation_cache.keeping_programs(tmp_path) as found:
      assert found == wanted
    assert compilation_cache.enable(tmp_path) == wanted
    assert jax.config.jax_compilation_cache_dir == (wanted and str(wanted))
    jax.config.update('jax_compilation_cache_dir', None)


@pytest.mark.usefixtures('no_cache', 'no_home')
def test_without_a_home_nothing_is_kept(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert compilation_cache.enable() is None
  with compilation_cache.keeping_programs() as folder:
    assert folder is None
  assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures('no_cache')
def test_an_unwritable_folder_means_no_cache(tmp_path):
  (tmp_path / 'file').write_text('')
  assert compilation_cache.enable(tmp_path / 'file/cache') is None
  assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures('no_cache')
def test_the_least_recently_used_programs_are_removed(tmp_path, monkeypatch):
  monkeypatch.setattr(compilation_cache, 'MAX_BYTES', 2500)
  folder = compilation_cache.enable(tmp_path)
  for age, name in enumerate(['new', 'old', 'oldest']):
    (folder / f'{name}-cache').write_bytes(bytes(1000))
    os.utime(folder / f'{name}-cache', (10_000 - age, 10_000 - age))
  (folder / 'other').write_bytes(bytes(5000))
  # Of a process that was killed, and of one that is writing.
  for name, age in (('.0123456789ab', 7200), ('.ba9876543210', 0)):
    (folder / name).write_bytes(b'')
    os.utime(folder / name, 2 * (time.time() - age,))
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.enable(tmp_path)
  kept = ['.ba9876543210', 'new-cache', 'old-cache', 'other']
  assert sorted(path.name for path in folder.iterdir()) == kept


def test_the_second_run_reads_the_programs_and_damaged_ones_are_replaced(tmp_path):
  weights = write_weights(tmp_path / 'tiny.safetensors')
  picture(tmp_path / 'a.png')
  names = [tmp_path / 'a.png', '--model', weights, '-o', tmp_path / 'b.png']
  command = ['-m', 'sadnet_jax', *names, '--overwrite']

  def denoise():
    variables = {'XDG_CACHE_HOME': str(tmp_path / 'cache'), 'JAX_COMPILATION_CACHE_DIR': ''}
    output, errors = finish(start(*command, **variables))
    assert output == ''
    assert len(errors.splitlines()) == 1, errors
    return {path: path.stat().st_ino for path in tmp_path.glob('cache/sadnet-jax/programs/*/*-cache')}

  kept = denoise()
  assert kept
  wanted = (tmp_path / 'b.png').read_bytes()
  assert denoise() == kept
  for path in kept:
    path.write_bytes(path.read_bytes()[:1000])
  assert set(denoise()) == set(kept)
  assert all(path.stat().st_size > 1000 for path in kept)
  assert (tmp_path / 'b.png').read_bytes() == wanted


@pytest.mark.usefixtures('no_cache')
def test_a_damaged_cache_is_cleared_and_other_warnings_are_shown(tmp_path, monkeypatch):
  monkeypatch.setattr('platformdirs.user_cache_dir', lambda name: str(tmp_path / name))
  for text, kept in (('something else', True), ('Error reading persistent compilation cache entry', False)):
    shown = []
    with warnings.catch_warnings():
      warnings.showwarning = lambda message, *_: shown.append(str(message))  # noqa: B023
      # Warnings may be hidden; that of damage has to be seen nevertheless.
      warnings.simplefilter('always' if kept else 'ignore')
      jax.config.update('jax_compilation_cache_dir', None)
      with compilation_cache.enabled():
        entry = next((tmp_path / 'sadnet-jax/jax').iterdir()) / 'a-cache'
        entry.touch()
        warnings.warn(text, stacklevel=1)
    assert entry.exists() == kept
    assert shown == [text] * kept


@pytest.mark.parametrize('script', ['train.py', 'evaluate.py'])
def test_training_and_evaluation_use_the_cache(script, tmp_path):
  # Even where they refuse their arguments right after.
  options = [
    '--config=configs/color.py:50',
    f'--config.data.train.clean={tmp_path}',
    f'--workdir={tmp_path}/run',
  ]
  if script == 'evaluate.py':
    options = ['--methods=noisy', f'--datasets={tmp_path}', '--sigmas=50', f'--output={tmp_path}/out']
  variables = {'XDG_CACHE_HOME': str(tmp_path / 'cache'), 'JAX_COMPILATION_CACHE_DIR': ''}
  finish(start(ROOT / script, *options, **variables), succeeds=False)
  assert list((tmp_path / 'cache/sadnet-jax/jax').iterdir())
