"""Where data sets are: a path as given, or below the folder that SADNET_DATA names."""

import os
from pathlib import Path


def find_data_dir(path: str | Path, source: str) -> Path:
  """A folder of data: as given, or below the folder that SADNET_DATA names.

  Args:
    path: What the user gave.
    source: The flag or field it was given by, for the message.

  Returns:
    A folder that exists.

  Raises:
    ValueError: Neither exists; both are named.
  """
  folder = look_for_data_dir(path)
  if folder is None:
    raise ValueError(
      f'{source}: got no folder at {" or ".join(str(p) for p in _places(path))}, want a folder of images '
      '(give its path, or set SADNET_DATA to the folder it is relative to)'
    )
  return folder


def look_for_data_dir(path: str | Path, root: str | Path | None = None) -> Path | None:
  """As `find_data_dir`, but None where neither exists; a root takes SADNET_DATA's place."""
  return next((folder for folder in _places(path, root) if folder.is_dir()), None)


def _places(path, root=None):
  root = root or os.environ.get('SADNET_DATA')
  return [Path(path)] + ([Path(root) / path] if root else [])
