"""Where data is: paths as given, or relative to the folder that the variable SADNET_DATA names."""

import os
from pathlib import Path

from sadnet_jax.files import local_path


def find_data_dir(path: str | Path, source: str) -> Path:
  """Returns an existing folder: the path as given, or below SADNET_DATA.

  Args:
    path: What the user gave.
    source: The flag or field it was given in, for the message.

  Raises:
    ValueError: Neither folder exists (both are named), or the path is a URL.
  """
  folder = look_for_data_dir(path)
  if folder is None:
    raise ValueError(
      f'{source}: no folder at {" or ".join(str(p) for p in _candidates(path))}; give the path of a folder '
      'of images, or set SADNET_DATA to the folder it is relative to'
    )
  return folder


def look_for_data_dir(path: str | Path, root: str | Path | None = None) -> Path | None:
  """Returns the folder as `find_data_dir` does, or None; a root replaces SADNET_DATA."""
  return next((folder for folder in _candidates(path, root) if folder.is_dir()), None)


def new_data_dir(path: str | Path) -> Path:
  """Returns where to create data: a relative path is below SADNET_DATA if that is set."""
  return Path(data_root() or '', local_path(path))


def data_root() -> Path | None:
  """Returns the folder that SADNET_DATA names, None if it is not set."""
  root = os.environ.get('SADNET_DATA')
  return local_path(root) if root else None


def _candidates(path, root=None):
  path, root = local_path(path), local_path(root or data_root() or '')
  return [path] + ([root / path] if root.parts else [])
