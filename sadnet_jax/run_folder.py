"""The folder of a training run: made, writable, and of one run at a time."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
from pathlib import Path

LOCK_FILE = 'run.lock'


@contextlib.contextmanager
def open_run_folder(workdir: str | Path) -> Iterator[Path]:
  """Makes the folder and holds its lock; the system drops the lock however the process ends.

  Raises:
    ValueError: The folder cannot be made or written to, or another process trains in it.
  """
  workdir = Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / LOCK_FILE).open('a+')
  except OSError as error:
    raise _not_writable(workdir, error) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      lock.seek(0)
      raise ValueError(
        f'{workdir}: got a folder that process {lock.read().strip()} is training in, want a folder for each '
        'run: give another --workdir, or stop that process'
      ) from error
    try:
      lock.truncate(0)
      lock.write(str(os.getpid()))
      lock.flush()
    except OSError as error:
      raise _not_writable(workdir, error) from error
    yield workdir


def _not_writable(workdir, error):
  return ValueError(
    f'{workdir}: got a folder that cannot be written to ({error.strerror}), want one for the run, with room '
    'on its disk: make room, or give another --workdir'
  )
