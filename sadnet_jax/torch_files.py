"""Files of PyTorch's ``torch.save`` with a state dict, read and written without PyTorch.

Both forms are read: the zip archive of torch 1.6 and later, and the row of pickles before
that. No code of a file is run (`plain_pickle`), and a file takes memory in proportion to its
size, whatever it claims. What is written is a zip archive.
"""

from collections.abc import Mapping
import math
from pathlib import Path
import struct
import sys
from typing import Any, BinaryIO
import zipfile

import numpy as np

from sadnet_jax import plain_pickle
from sadnet_jax.files import replacing
from sadnet_jax.torch_tensors import STORAGES, find_state_dict, load, to_arrays

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION_OF_ROWS = 1001
_ALIGNMENT = 64
# What zipfile raises for it.
_DAMAGE = (
  OSError,
  zipfile.BadZipFile,
  NotImplementedError,
  RuntimeError,
  EOFError,
  UnicodeError,
  struct.error,
)
_EMPTY_DICT = b'ccollections\nOrderedDict\n)R'


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a state dict, alone in the file or one level down in a checkpoint.

  Args:
    path: A file of ``torch.save``, of torch 0.4 or later.

  Returns:
    Tensor name -> array, in the file's order, in PyTorch's layout, of the tensor's dtype. The arrays
    cannot be written to; tensors that share a storage share memory.

  Raises:
    ValueError: No such file; it is damaged; it holds anything but tensors and plain data (a whole
      network, for one); or there is no mapping of names to tensors in it, or there are several.
  """
  path = Path(path)
  try:
    if not path.is_file():
      raise ValueError('no file there, want one of torch.save')
    with path.open('rb') as file:
      is_zip = file.read(4) == b'PK\3\4'
      return _read_zip(file) if is_zip else _read_rows(file)
  except _DAMAGE as error:
    what = str(error) or type(error).__name__
    raise ValueError(f'{path}: got a damaged file ({what}), want a complete one of torch.save') from error
  except ValueError as error:
    raise ValueError(f'{path}: got {error}') from error


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
  size = file.seek(0, 2)
  with zipfile.ZipFile(file) as archive:
    entries = _entries(archive, size)
    folders = [name.removesuffix('/data.pkl') for name in entries if name.endswith('/data.pkl')]
    if len(folders) != 1 or '/' in folders[0]:
      raise ValueError(f'a zip archive with {len(folders)} of <name>/data.pkl, want one of torch.save')
    folder = folders[0]
    # Not there before torch 2.1.
    order = archive.read(f'{folder}/byteorder') if f'{folder}/byteorder' in entries else b'little'
    if order not in (b'little', b'big'):
      raise ValueError(f'the byte order {order[:20]!r}, want little or big')

    def fetch(storage):
      entry = entries.get(f'{folder}/data/{storage.key}')
      found = -1 if entry is None else entry.file_size
      if found != storage.size_bytes:
        there = 'no entry' if found < 0 else f'{found} bytes'
        raise ValueError(f'{there} for storage {storage.key[:60]!r}, want {storage.size_bytes} bytes')
      return _native(archive.read(entry), storage.dtype, order.decode())

    content, _, _ = load(archive.read(f'{folder}/data.pkl'), 0, id_length=5)
    return to_arrays(find_state_dict(content), fetch)


def _entries(archive, size):
  """Entries by name; all together no larger than the file, so that none is more than it was made of."""
  listed = archive.infolist()
  entries = {entry.filename: entry for entry in listed}
  if len(entries) != len(listed):
    raise ValueError('a zip archive with two entries of one name, want each once')
  for entry in listed:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
      raise ValueError(f'the compressed entry {entry.filename[:60]!r}, want all stored, as by torch.save')
  if sum(entry.file_size for entry in listed) > size:
    raise ValueError('a zip archive whose entries are larger than itself, want one of torch.save')
  return entries


def _read_rows(file: BinaryIO) -> dict[str, np.ndarray]:
  """The form before torch 1.6: five pickles, then the storages, each after its size."""
  size = file.seek(0, 2)
  file.seek(0)
  # The three first are small.
  head = file.read(3 * plain_pickle.LIMIT_BYTES)
  if head[:1] != b'\x80':
    raise ValueError(f'a file that begins with {head[:8]!r}, want one of torch.save')
  magic, position = plain_pickle.load(head)
  if magic != _MAGIC:
    raise ValueError('a pickle that is not of torch.save, want one of it')
  version, position = plain_pickle.load(head, position)
  if version != _VERSION_OF_ROWS:
    raise ValueError(f'another version of the form before torch 1.6, want {_VERSION_OF_ROWS}')
  # Sizes of C's types where it was written; the storages do not depend on them.
  _, position = plain_pickle.load(head, position)
  content, storages, position = load(head, position, id_length=6)
  keys, position = plain_pickle.load(head, position)
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise ValueError('a damaged list of storages, want their names')
  if sorted(keys) != sorted(storages):
    raise ValueError('a list of storages other than those of the tensors, want the same')

  begins = {}
  for key in keys:
    storage = storages[key]
    begins[key] = position + 8
    position = begins[key] + storage.size_bytes
    if position > size:
      raise ValueError(f'a file that ends before storage {key[:60]!r} does, want a complete one')
    file.seek(begins[key] - 8)
    if file.read(8) != struct.pack('<q', storage.size):
      raise ValueError(f'storage {key[:60]!r} of another size than its tensors say, want the same')

  def fetch(storage):
    file.seek(begins[storage.key])
    # Written little-endian on any machine.
    return _native(file.read(storage.size_bytes), storage.dtype, 'little')

  return to_arrays(find_state_dict(content), fetch)


def _native(data, dtype, order):
  if order == sys.byteorder:
    return data
  return np.frombuffer(data, f'u{dtype.itemsize}').byteswap().tobytes()


def write_state_dict(path: str | Path, state_dict: Mapping[str, Any]) -> None:
  """Writes a state dict as ``torch.save`` does, whole or not at all, over a file of that name.

  The same arrays make the same bytes. ``torch.load`` reads it, with ``weights_only`` and ``mmap``.

  Args:
    path: The file, in a folder that exists.
    state_dict: Tensor name -> array, in PyTorch's layout, in any memory order.

  Raises:
    ValueError: An array is of a dtype that is not written.
  """
  types = {dtype: name for name, dtype in STORAGES.items()}
  arrays = {name: np.asarray(array) for name, array in state_dict.items()}
  for name, array in arrays.items():
    if array.dtype not in types:
      raise ValueError(f'{name}: got dtype {array.dtype}, want one of {", ".join(d.name for d in types)}')
  entries = {'data.pkl': _pickled(arrays, types), 'byteorder': sys.byteorder.encode()}
  entries |= {f'data/{i}': array.tobytes() for i, array in enumerate(arrays.values())}
  entries['version'] = b'3\n'
  with replacing(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
    for name, data in entries.items():
      entry = zipfile.ZipInfo(f'archive/{name}')
      # Of the machine, otherwise.
      entry.create_system = 3
      # Data begin at a multiple of the alignment: after 30 bytes of header, the name, and this field.
      padding = -(archive.start_dir + 30 + len(entry.filename) + 4) % _ALIGNMENT
      entry.extra = struct.pack('<2sH', b'FB', padding) + b'Z' * padding
      archive.writestr(entry, data)


def _pickled(arrays, types):
  parts = [b'\x80\x02', _EMPTY_DICT, b'(']
  for i, (name, array) in enumerate(arrays.items()):
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    module, _, kind = types[array.dtype].partition('.')
    parts += [_text(name), b'ctorch._utils\n_rebuild_tensor_v2\n((', _text('storage')]
    parts += [f'c{module}\n{kind}\n'.encode(), _text(str(i)), _text('cpu'), _integer(array.size), b'tQ']
    parts += [_integer(0), _integers(array.shape), _integers(strides), b'\x89', _EMPTY_DICT, b'tR']
  return b''.join([*parts, b'u.'])


def _text(text):
  return b'X' + struct.pack('<I', len(text.encode())) + text.encode()


def _integer(value):
  return b'\x8a\x08' + struct.pack('<q', value)


def _integers(values):
  return b'(' + b''.join(map(_integer, values)) + b't'
