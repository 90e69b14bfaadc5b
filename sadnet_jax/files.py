"""Files that are whole or not there."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import tempfile


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
  """Gives a path to write to; the file takes its name, and the place of one there, at the end.

  The path is in the same folder and has the same ending. After an error it is gone, and
  what was there before is as it was.

  Args:
    path: The file, in a folder that exists.
  """
  path = Path(path)
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.stem}-', suffix=path.suffix)
  os.close(handle)
  temporary = Path(name)
  try:
    yield temporary
    # Temporary files are for their owner alone; this one is as any other.
    temporary.chmod(0o666 & ~_umask())
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
  """Writes a text file, whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_text(text)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
