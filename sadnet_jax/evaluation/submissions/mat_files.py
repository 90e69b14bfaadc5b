"""MATLAB files: reading variables in any format, and writing files completely or not at all."""

from collections.abc import Iterable, Iterator
import contextlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from sadnet_jax.files import one_line, replacing


def read_variables(path: str | Path, *names: str) -> dict[str, np.ndarray]:
  """Reads variables from a MATLAB file, v5 to v7 (SciPy) or v7.3 (HDF5).

  Args:
    path: The file.
    *names: Variables to read; none for all. Cells and structs can be read from v5 to v7 only.

  Returns:
    Arrays by name, with axes in MATLAB's order (HDF5 reverses them).

  Raises:
    ValueError: The file is missing, unreadable, or lacks a variable; the message lists those it has.
  """
  path = Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file; download the MATLAB file, or give the folder it is in')
  try:
    arrays, found = (_read_hdf5 if h5py.is_hdf5(path) else _read_v5)(path, names)
  except Exception as error:  # For a damaged file the libraries raise nearly anything.
    raise ValueError(
      f'{path}: unreadable MATLAB file ({one_line(error)}); copy or download it again'
    ) from error
  for name in names:
    if name not in arrays:
      raise ValueError(f'{path}: no variable {name}; the file has {", ".join(found) or "none"}')
  return arrays


def _read_v5(path, names):
  found = [f'{name} ({kind} {shape})' for name, shape, kind in scipy.io.whosmat(path)]
  arrays = scipy.io.loadmat(path, variable_names=names or None)
  return {name: array for name, array in arrays.items() if not name.startswith('__')}, found


def _read_hdf5(path, names):
  arrays, found = {}, []
  with h5py.File(path) as file:
    for name, item in file.items():
      if name.startswith('#'):  # MATLAB stores the content of cells and structs here.
        continue
      is_array = isinstance(item, h5py.Dataset) and item.dtype.kind in 'iufb'
      found.append(f'{name} ({item.dtype} {item.shape[::-1]})' if is_array else f'{name} (cell or struct)')
      if is_array and (not names or name in names):
        arrays[name] = item[()].T
  return arrays, found


def refuse_existing(paths: Iterable[Path], *, overwrite: bool) -> None:
  """Raises a ValueError for the first of these files that exists, unless it may be overwritten."""
  for path in paths:
    if path.exists() and not overwrite:
      raise ValueError(f'{path}: file exists; move it, or allow overwriting')


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
  """Like `files.replacing`, but creates the folder, and refuses to replace a file unless ``overwrite``.

  Args:
    path: The file to create.
    overwrite: Whether it may exist.

  Yields:
    The temporary path to write to.

  Raises:
    ValueError: The file exists and may not be overwritten.
  """
  refuse_existing([path], overwrite=overwrite)
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path, overwrite=overwrite) as temporary:
    yield temporary


def write_variables(path: Path, variables: dict[str, Any], *, overwrite: bool) -> None:
  """Writes a compressed MATLAB file (v7); see `new_file`.

  Args:
    path: The file.
    variables: Arrays by name; an array of objects becomes a cell, a dict a struct.
    overwrite: Whether the file may exist.

  Raises:
    ValueError: The file exists and may not be overwritten.
  """
  with new_file(path, overwrite=overwrite) as temporary:
    scipy.io.savemat(temporary, variables, appendmat=False, do_compression=True)
