"""Claims on outputs, so that several processes on one folder share the pictures among them."""

from collections.abc import Iterator
import contextlib
from pathlib import Path

try:
  import fcntl
except ImportError:
  # Windows: every process goes through all pictures, and skips those that are written.
  fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[bool]:
  """Claims an output while the block runs; yields False if another process has claimed it.

  The claim is a lock on a hidden file beside the output, which the system releases however a process ends.
  Where there can be none, as on some network file systems, every process has its claim.

  Args:
    output: The file to write; its folder is created.
  """
  path = output.with_name(f'.{output.name}.lock')
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    file = path.open('ab')
  except OSError:
    # Whatever is wrong with the folder is reported when the output is written.
    yield True
    return
  with file:
    try:
      if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
      return
    except OSError:
      # No locks here.
      pass
    try:
      yield True
    finally:
      # Who has opened the file meanwhile gets the lock, and finds the output written.
      with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
