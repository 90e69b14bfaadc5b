"""Small SIDD and DND data sets in MATLAB files with the layout and the other variables of the real ones."""

from pathlib import Path

import h5py
import numpy as np
import scipy.io

# MATLAB writes this before the HDF5 content of a file of version 7.3.
_HEADER = b'MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jul  3 10:00:00 2017 HDF5 schema 1.00 .'
_USER_BLOCK = _HEADER.ljust(124) + b'\x00\x02IM'
_CLASSES = {'f4': 'single', 'f8': 'double', 'u1': 'uint8', 'u2': 'char'}


class Matlab73:
  """Writes a MATLAB file of version 7.3: HDF5 with reversed axes, and references to '#refs#'."""

  def __init__(self, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    self._path = path
    self._file = h5py.File(path, 'w', userblock_size=512)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()
    with open(self._path, 'r+b') as file:
      file.write(_USER_BLOCK)

  def array(self, name, array, group=None):
    """Writes an array and returns its reference."""
    array = np.atleast_2d(array)
    data = (group or self._file).create_dataset(name, data=array.T, chunks=True, compression='gzip')
    data.attrs['MATLAB_class'] = np.bytes_(_CLASSES[array.dtype.str[1:]])
    return data.ref

  def struct_array(self, name, fields):
    """Writes a struct array [N, 1] from {field: N values}; a value is an array or a dict (a struct)."""
    refs = self._file.require_group('#refs#')
    struct = self._file.create_group(name)
    struct.attrs['MATLAB_class'] = np.bytes_('struct')
    for field, values in fields.items():
      data = struct.create_dataset(field, (1, len(values)), h5py.ref_dtype)
      for i, value in enumerate(values):
        data[0, i] = self._value(refs, f'{field}{i}', value)

  def _value(self, group, name, value):
    if not isinstance(value, dict):
      return self.array(name, value, group)
    struct = group.create_group(name)
    struct.attrs['MATLAB_class'] = np.bytes_('struct')
    for field, array in value.items():
      self.array(field, array, struct)
    return struct.ref


def sidd(folder, names, shape, seed=0, *, hdf5=False):
  """Writes SIDD's files of blocks, uint8 [images, blocks, H, W, 3].

  Returns:
    {name: blocks}.
  """
  Path(folder).mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  content = {name: rng.integers(0, 256, shape, np.uint8) for name in names}
  for name, blocks in content.items():
    path = Path(folder) / f'{name}.mat'
    if hdf5:
      with Matlab73(path) as file:
        file.array(name, blocks)
    else:
      scipy.io.savemat(path, {name: blocks}, do_compression=True)
  return content


def dnd(folder, sizes, boxes, seed=0, *, dtype=np.float32):
  """Writes dnd_2017.

  Args:
    folder: The folder to write, instead of dnd_2017.
    sizes: (height, width) of each image.
    boxes: For each image a list of (first row, first column, last row, last column), from 1.
    seed: Seed of the pixels.
    dtype: Type of the pixels.

  Returns:
    Noisy images [H, W, 3].
  """
  count = len(sizes)
  rng = np.random.default_rng(seed)
  images = [rng.random((*size, 3), np.float32).astype(dtype) for size in sizes]
  for i, image in enumerate(images):
    with Matlab73(Path(folder) / 'images_srgb' / f'{i + 1:04}.mat') as file:
      file.array('InoisySRGB', image)
  with Matlab73(Path(folder) / 'info.mat') as file:
    file.struct_array(
      'info',
      {
        'boundingboxes': [np.array(table, np.float64) for table in boxes],
        'camera': [np.frombuffer(b'A\0B\0', np.uint16)] * count,
        'nlf': [{'a': np.float64(1e-3), 'b': np.float64(1e-5)}] * count,
        'sigma_srgb': [np.full((len(table), 1), 0.1) for table in boxes],
      },
    )
  return images
