"""MATLAB's files: their variables, whatever the format, and new files that are whole or not there."""

from collections.abc import Iterable, Iterator
import contextlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from sadnet_jax.files import replacing


def read_variables(path: str | Path, *names: str) -> dict[str, np.ndarray]:
  """Reads variables of a MATLAB file, v5 to v7 (SciPy) or v7.3 (HDF5).

  Args:
    path: The file.
    *names: Those wanted; none for all. Cells and structs are read from v5 to v7 only.

  Returns:
    Arrays by name, with MATLAB's order of axes: those of HDF5 are turned round.

  Raises:
    ValueError: The file is not there, cannot be read, or lacks one of them; names what it has.
  """
  path = Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: got no such file, want a MATLAB file (download it, or give its folder)')
  try:
    arrays, found = (_read_hdf5 if h5py.is_hdf5(path) else _read_v5)(path, names)
  except Exception as error:  # Of a damaged file the libraries raise nearly anything.
    reason = ' '.join(str(error).split())
    raise ValueError(
      f'{path}: got no readable MATLAB file ({reason}), want a complete one (copy or download it again)'
    ) from error
  for name in names:
    if name not in arrays:
      raise ValueError(f'{path}: got {", ".join(found) or "no variable"}, want the variable {name}')
  return arrays


def _read_v5(path, names):
  found = [f'{name} ({kind} {shape})' for name, shape, kind in scipy.io.whosmat(path)]
  arrays = scipy.io.loadmat(path, variable_names=names or None)
  return {name: array for name, array in arrays.items() if not name.startswith('__')}, found


def _read_hdf5(path, names):
  arrays, found = {}, []
  with h5py.File(path) as file:
    for name, item in file.items():
      if name.startswith('#'):  # Where MATLAB keeps what cells and structs refer to.
        continue
      is_array = isinstance(item, h5py.Dataset) and item.dtype.kind in 'iufb'
      found.append(f'{name} ({item.dtype} {item.shape[::-1]})' if is_array else f'{name} (cell or struct)')
      if is_array and (not names or name in names):
        arrays[name] = item[()].T
  return arrays, found


def refuse_existing(paths: Iterable[Path], *, overwrite: bool) -> None:
  """Raises a ValueError for the first of these files that is there, unless it may be overwritten."""
  for path in paths:
    if path.exists() and not overwrite:
      raise ValueError(f'{path}: got an existing file, want none (move it, or allow overwriting)')


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
  """As `files.replacing`, but makes folders, and refuses to replace a file unless it may.

  Args:
    path: The file to be.
    overwrite: Whether it may be there already.

  Yields:
    Where to write.

  Raises:
    ValueError: The file exists and may not be overwritten.
  """
  refuse_existing([path], overwrite=overwrite)
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as temporary:
    yield temporary


def write_variables(path: Path, variables: dict[str, Any], *, overwrite: bool) -> None:
  """Writes a compressed MATLAB file (v7); see `new_file`.

  Args:
    path: The file.
    variables: Arrays by name; an array of objects becomes a cell, a dict a struct.
    overwrite: Whether the file may be there already.

  Raises:
    ValueError: The file exists and may not be overwritten.
  """
  with new_file(path, overwrite=overwrite) as temporary:
    scipy.io.savemat(temporary, variables, appendmat=False, do_compression=True)
