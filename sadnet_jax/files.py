"""Paths that users give, folders with links, and files that are written completely or not at all."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import io
import mmap
import os
from pathlib import Path
import re
import secrets
import stat
import sys

_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')


def local_path(path: str | Path) -> Path:
  """Returns a path that a user gave, with a leading ``~`` replaced by the home folder.

  Shells leave the ``~`` of ``--output=~/x`` to the program.

  Raises:
    ValueError: It is a URL, such as that of a bucket, which would become a local folder named ``gs:``.
  """
  text = os.fspath(path)
  if _URL.match(text):
    raise ValueError(
      f'{one_line(text)} is a URL, but only local paths are supported here; copy it to a local folder, or '
      'mount the bucket and give the path of the mount'
    )
  return Path(os.path.expanduser(text))


def user_cache_folder() -> Path:
  """Returns this package's folder in the user's cache folder; it need not exist.

  Raises:
    ValueError: The system does not know the user's home folder, as in some containers and services.
  """
  from platformdirs import user_cache_dir

  try:
    folder = Path(user_cache_dir('sadnet-jax'))
  except RuntimeError:
    folder = None
  # Older versions of platformdirs return a path that begins with ~.
  if folder is None or not folder.is_absolute():
    raise ValueError('the home folder is unknown; set XDG_CACHE_HOME to the path of a folder for caches')
  return folder


def print_any_name() -> None:
  """Lets stdout and stderr escape what they cannot encode, since names of files need not be UTF-8."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


def walk(
  folder: str | Path, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
  """Walks a folder like `os.walk`, and then the folders that symbolic links in it lead to.

  Each folder is visited once, by its own path rather than by a link if it has both. Links to a folder that
  contains them are not followed.

  Args:
    folder: Where to start.
    onerror: Called with the error of a folder that cannot be listed; by default it is skipped.

  Yields:
    Path of a folder, the names of its folders (sorted; those that the caller removes are not visited), and
    the names of its other files (sorted).
  """
  seen: set[tuple[int, int]] = set()
  starts = [Path(folder)]
  while starts:
    for path, folders, names in os.walk(starts.pop(0), onerror=onerror):
      status = os.stat(path)
      if (status.st_dev, status.st_ino) in seen:
        folders.clear()
        continue
      seen.add((status.st_dev, status.st_ino))
      folders.sort()
      yield Path(path), folders, sorted(names)
      starts += [link for link in (Path(path, name) for name in folders) if _leads_elsewhere(link)]


def _leads_elsewhere(link):
  """Whether a path is a link to a folder that does not contain it."""
  return link.is_symlink() and not Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
  """The bytes of a file, memory-mapped: only the parts that are read take memory."""
  with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    yield data


@contextlib.contextmanager
def replacing(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
  """Yields a temporary file to write to, and renames it to `path` when the block ends.

  The temporary file is in the folder of `path`, hidden, and has the same extension. After an exception it
  is deleted and `path` is unchanged. A replaced file keeps its permissions, a new one gets the system's
  default ones. If `path` is a symbolic link, the file it points to is replaced and the link stays.

  Args:
    path: The file to write, in an existing folder.
    overwrite: Whether `path` may exist.

  Raises:
    FileExistsError: `path` exists, possibly since the call began, and `overwrite` is false.
    OSError: The file cannot be written, or `path` is a device, a pipe or a folder.
  """
  path = Path(path)
  if not overwrite and os.path.lexists(path):
    raise _file_exists(path)
  target = Path(os.path.realpath(path)) if path.is_symlink() else path
  mode = _mode_of_file(target)
  temporary = _create_beside(target)
  try:
    yield temporary
    _flush_to_disk(temporary)
    if mode is not None:
      # Some file systems have no permissions; the content is written all the same.
      with contextlib.suppress(OSError):
        temporary.chmod(mode)
    if overwrite:
      temporary.replace(target)
    else:
      _rename_to_new(temporary, target)
    # The file is complete; only its new name could be lost.
    with contextlib.suppress(OSError):
      _flush_to_disk(target.parent)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
  """Writes a UTF-8 text file with `replacing`; what UTF-8 cannot express, as in file names, is escaped."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding='utf-8', errors='backslashreplace')


def one_line(message: BaseException | str, longest: int = 600) -> str:
  """Returns a message as one printable line, an exception without one as the name of its type.

  Args:
    message: An exception or a text.
    longest: Characters after which the line is cut off.
  """
  text = ''.join(c if c.isprintable() else ' ' for c in str(message))
  line = ' '.join(text.split()) or type(message).__name__
  return line if len(line) <= longest else f'{line[:longest]}...'


def refuse_existing(path: str | Path, *, overwrite: bool) -> None:
  """Raises ValueError if the output of a command exists and must not be replaced."""
  if not overwrite and os.path.lexists(path):
    raise ValueError(f'{path} exists; choose another name or pass --overwrite')


def check_output(path: str | Path, suffix: str, *, overwrite: bool) -> None:
  """Checks the value of a command's flag --output before the work begins.

  Raises:
    ValueError: The path has another extension than `suffix`, or exists and must not be replaced.
  """
  if Path(path).suffix.lower() != suffix:
    raise ValueError(f'--output: {path} must have the extension {suffix}')
  refuse_existing(path, overwrite=overwrite)


def _mode_of_file(path: Path) -> int | None:
  """The permissions of a file; None if there is none."""
  try:
    mode = path.stat().st_mode
  except FileNotFoundError:
    return None
  if not stat.S_ISREG(mode):
    raise OSError(errno.EINVAL, 'Not a regular file', str(path))
  return stat.S_IMODE(mode)


def _create_beside(path: Path) -> Path:
  """Creates an empty file; unlike `tempfile`'s, it has the permissions that the umask gives new files."""
  while True:
    # A short name, because that of `path` may be as long as the file system allows.
    temporary = path.with_name(f'.{secrets.token_hex(6)}{path.suffix}')
    try:
      os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
      continue
    return temporary


def _flush_to_disk(path: Path) -> None:
  """Makes a file or a folder's list of names survive a power failure, where the system can.

  Raises:
    OSError: The content was not stored, as a full disk may report only now.
  """
  try:
    handle = os.open(path, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
      raise


def _rename_to_new(temporary: Path, path: Path) -> None:
  try:
    # Unlike renaming, this fails if the file exists, even if it appeared just now.
    os.link(temporary, path)
  except FileExistsError:
    raise
  except OSError as error:
    # This file system has no hard links.
    if os.path.lexists(path):
      raise _file_exists(path) from error
    temporary.rename(path)


def _file_exists(path: Path) -> FileExistsError:
  return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
