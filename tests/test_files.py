"""Atomic writing of files, and messages in one line."""

import errno
import os
from pathlib import Path
import threading

import pytest

from sadnet_jax.files import local_path, one_line, replacing, user_cache_folder, write_text
from tests.support.command import finish, start


def _mode(path):
  return path.stat().st_mode & 0o7777


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')

  def fail():
    with replacing(path) as temporary:
      assert temporary.parent == tmp_path
      assert temporary.suffix == '.txt'
      temporary.write_text('half of the n')
      raise KeyError

  with pytest.raises(KeyError):
    fail()
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_the_replaced_file_or_of_any_new_file(tmp_path):
  path, other = tmp_path / 'a.txt', tmp_path / 'b.txt'
  other.touch()
  write_text(path, 'new')
  assert _mode(path) == _mode(other)
  path.chmod(0o640)
  write_text(path, 'ü')
  assert (_mode(path), path.read_bytes()) == (0o640, 'ü'.encode())


def test_the_umask_of_the_process_is_not_touched(tmp_path, monkeypatch):
  # Other threads would create files that everybody may write to in the meantime.
  monkeypatch.setattr(os, 'umask', lambda mask: pytest.fail('os.umask was called'))
  write_text(tmp_path / 'a.txt', 'new')


def test_a_link_stays_and_its_target_is_written(tmp_path):
  (tmp_path / 'folder').mkdir()
  link, target = tmp_path / 'link.txt', tmp_path / 'folder' / 'target.txt'
  link.symlink_to(Path('folder', 'target.txt'))
  for text in ('new', 'replaced'):
    write_text(link, text)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_text() == text


@pytest.mark.parametrize('function', ['chmod', 'fsync', 'link'])
def test_work_is_not_lost_where_the_file_system_cannot_do_everything(tmp_path, monkeypatch, function):
  def refuse(*_, **__):
    raise OSError(95, 'Operation not supported')

  path = tmp_path / 'a.txt'
  path.write_text('old')
  monkeypatch.setattr(os, function, refuse)
  write_text(path, 'new')
  assert path.read_text() == 'new'
  with replacing(tmp_path / 'b.txt', overwrite=False) as temporary:
    temporary.write_text('first')
  assert (tmp_path / 'b.txt').read_text() == 'first'
  assert sorted(tmp_path.iterdir()) == [path, tmp_path / 'b.txt']


def test_a_disk_that_is_full_only_when_flushed_keeps_the_old_file(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  path = tmp_path / 'a.txt'
  path.write_text('old')
  monkeypatch.setattr(os, 'fsync', refuse)
  with pytest.raises(OSError, match='No space left'):
    write_text(path, 'new')
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_existing_files_can_be_protected(tmp_path, monkeypatch):
  path = tmp_path / 'a.txt'
  with replacing(path, overwrite=False) as temporary:
    temporary.write_text('first')
  with pytest.raises(FileExistsError, match=r'a\.txt'), replacing(path, overwrite=False):
    pytest.fail('the block ran')
  # As well one that appears while the other is being written, with and without hard links.
  for links in (True, False):
    path.unlink()
    if not links:
      monkeypatch.setattr(
        os, 'link', lambda *_: (_ for _ in ()).throw(OSError(95, 'Operation not supported'))
      )
    with pytest.raises(FileExistsError), replacing(path, overwrite=False):
      path.write_text('theirs')
    assert path.read_text() == 'theirs'
    assert list(tmp_path.iterdir()) == [path]


def test_pipes_and_devices_are_not_replaced(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'null').symlink_to('/dev/null')
  for name in ('pipe', 'null'):
    with pytest.raises(OSError, match='Not a regular file'):
      write_text(tmp_path / name, 'text')


def test_the_longest_names_can_be_written_by_several_threads(tmp_path):
  path = tmp_path / f'{"x" * 251}.txt'
  texts = [str(number) * 10_000 for number in range(4)]
  threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert path.read_text() in texts
  assert list(tmp_path.iterdir()) == [path]


def test_messages_in_one_line():
  assert one_line(ValueError('one\n\ttwo\x1b[31m  three')) == 'one two [31m three'
  assert one_line(KeyError()) == 'KeyError'


def test_paths_of_users(monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  assert [str(local_path(path)) for path in ('~/a', 'a/~', '~', Path('~/b'), 'a:b/c')] == [
    '/home/somebody/a',
    'a/~',
    '/home/somebody',
    '/home/somebody/b',
    'a:b/c',
  ]
  for url in ('gs://bucket/run', Path('s3://bucket/run'), 'https://host/a', 'file:///a'):
    with pytest.raises(ValueError, match=r'is a URL, but only local paths are supported here; copy'):
      local_path(url)


@pytest.mark.parametrize('found', [RuntimeError('no home'), '~/.cache/sadnet-jax', '/caches/sadnet-jax'])
def test_the_cache_folder_needs_a_home(monkeypatch, found):
  def user_cache_dir(name):
    # Versions of platformdirs differ where the home is unknown.
    if isinstance(found, Exception):
      raise found
    return found

  monkeypatch.setattr('platformdirs.user_cache_dir', user_cache_dir)
  if found == '/caches/sadnet-jax':
    assert user_cache_folder() == Path(found)
  else:
    with pytest.raises(ValueError, match='the home folder is unknown; set XDG_CACHE_HOME'):
      user_cache_folder()


def test_any_name_can_be_printed():
  name = 'caf\udce9'
  code = f'from sadnet_jax.files import print_any_name; print_any_name(); print({name!r})'
  assert finish(start('-c', code)) == ('caf\\udce9\n', '')
  _, errors = finish(start('-c', f'print({name!r})', PYTHONIOENCODING='utf-8'), succeeds=False)
  assert 'UnicodeEncodeError' in errors


def test_names_that_are_not_utf8_are_escaped_in_text(tmp_path):
  write_text(tmp_path / 'a.txt', 'caf\udce9, é')
  assert (tmp_path / 'a.txt').read_text(encoding='utf-8') == 'caf\\udce9, é'
