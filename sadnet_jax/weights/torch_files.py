"""State dicts in files of ``torch.save``, read and written without PyTorch.

Both formats are read: the zip archive of torch 1.6 and later, and the sequence of pickles before that. A zip
archive is written. Nothing in a file is executed: the unpickler builds tensors and plain data only. Memory
and time are bounded by the size of the file, whatever sizes it claims.
"""

from collections.abc import Callable, Mapping
import io
import math
from pathlib import Path
import pickle
import pickletools
import struct
import sys
from typing import Any, BinaryIO, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from sadnet_jax.files import one_line, replacing

_DTYPES: dict[str, Any] = {'Double': 'f8', 'Float': 'f4', 'Half': 'f2', 'BFloat16': jnp.bfloat16, 'Bool': '?'}
_DTYPES |= {'Long': 'i8', 'Int': 'i4', 'Short': 'i2', 'Char': 'i1', 'Byte': 'u1'}
# The type of a storage as a pickle names it -> dtype.
_STORAGES = {f'torch.{name}Storage': np.dtype(dtype) for name, dtype in _DTYPES.items()}
# What tensors and plain data need of protocol 2 (torch.save uses it): PROTO STOP; NONE NEWTRUE NEWFALSE;
# BININT BININT1 BININT2 LONG1 BINFLOAT; BINUNICODE BINSTRING SHORT_BINSTRING; tuples; lists; dictionaries;
# the memo; GLOBAL REDUCE BUILD BINPERSID.
_OPCODES = frozenset('\x80.N\x88\x89JKM\x8aGXTU()t\x85\x86\x87]ae}suqrhjcRbQ')
_EMPTY_DICT = b'ccollections\nOrderedDict\n)R'
# Enough for 4,000 tensors; the authors' network has 96. Objects can take 200 times the bytes of their pickle.
MAX_PICKLE_BYTES = 2**20
_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage(NamedTuple):
  """A flat array in the file."""

  key: str
  dtype: np.dtype
  size: int


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides count elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Pairs:
  """A dictionary whose keys are never hashed: for crafted keys that takes forever."""

  def __init__(self):
    self.pairs: list[tuple[Any, Any]] = []

  def __setitem__(self, key, value):
    self.pairs.append((key, value))

  def __setstate__(self, state):
    """Ignores attributes, such as the ``_metadata`` of a state dict."""


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a state dict, which may be the only content of a file or one entry of a checkpoint.

  Args:
    path: A file written by ``torch.save`` of torch 0.4 or later.

  Returns:
    Tensor name -> array, in the file's order, in PyTorch's layout and the tensor's dtype. The arrays are
    read-only; tensors that share a storage share memory.

  Raises:
    ValueError: The file is missing or damaged; it contains something other than tensors and plain data, such
      as a whole network; or it does not have exactly one mapping of names to tensors.
  """
  try:
    with Path(path).open('rb') as file:
      is_zip = file.read(4) == b'PK\3\4'
      tensors, fetch = _read_zip(file) if is_zip else _read_sequence(file)
      return _arrays(tensors, fetch)
  except (OSError, EOFError, RuntimeError, struct.error, UnicodeError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path}: cannot be read ({one_line(error)})') from error
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _read_zip(file: BinaryIO):
  size, archive = file.seek(0, 2), zipfile.ZipFile(file)
  entries = {entry.filename: entry for entry in archive.infolist()}
  # So that reading takes no more memory than the file.
  if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
    raise ValueError('the zip archive is compressed, which torch.save never does')
  if sum(entry.file_size for entry in entries.values()) > size:
    raise ValueError('damaged zip archive: its entries are larger than the file')
  folders = [name.removesuffix('data.pkl') for name in entries if name.endswith('/data.pkl')]
  if len(folders) != 1:
    raise ValueError(f'not a file of torch.save: the zip archive has {len(folders)} entries NAME/data.pkl')
  # Missing before torch 2.1.
  order_entry = entries.get(f'{folders[0]}byteorder')
  order = archive.read(order_entry).decode() if order_entry else 'little'
  if order not in ('little', 'big'):
    raise ValueError(f'unknown byte order {order[:20]!r}; expected little or big')

  def fetch(storage):
    name = f'{folders[0]}data/{storage.key}'
    found = entries[name].file_size if name in entries else 0
    if found != _bytes(storage):
      raise ValueError(f'damaged file: {found} bytes for storage {storage.key[:60]!r} of {_bytes(storage)}')
    return _native(archive.read(name), storage.dtype, order) if found else b''

  content, _, _ = _unpickle(archive.read(f'{folders[0]}data.pkl'), 0, storage_fields=5)
  return _find_state_dict(content), fetch


def _read_sequence(file: BinaryIO):
  """The format before torch 1.6: five pickles, then the storages, each preceded by its size."""
  size, _ = file.seek(0, 2), file.seek(0)
  # All pickles but the fourth are small.
  head = file.read(3 * MAX_PICKLE_BYTES)
  if head[:1] != b'\x80':
    raise ValueError(f'not a file of torch.save: it begins with {head[:8]!r}')
  magic, _, position = _unpickle(head, 0)
  if magic != _MAGIC:
    raise ValueError('not a file of torch.save, but another pickle')
  version, _, position = _unpickle(head, position)
  if version != 1001:
    raise ValueError('unknown version of the format before torch 1.6; only 1001 can be read')
  # The sizes of C types where the file was written; storages do not depend on them.
  _, _, position = _unpickle(head, position)
  content, storages, position = _unpickle(head, position, storage_fields=6)
  keys, _, position = _unpickle(head, position)
  names = [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []
  if names != keys or sorted(names) != sorted(storages):
    raise ValueError('damaged file: the listed storages are not those of the tensors')
  begins = {}
  for key in names:
    file.seek(position)
    if file.read(8) != struct.pack('<q', storages[key].size):
      raise ValueError(f'damaged file: storage {key[:60]!r} does not have the size that its tensors need')
    begins[key], position = position + 8, position + 8 + _bytes(storages[key])
  if position > size:
    raise ValueError('damaged file: it ends before the end of its storages')

  def fetch(storage):
    file.seek(begins[storage.key])
    # Little-endian, whatever machine wrote the file.
    return _native(file.read(_bytes(storage)), storage.dtype, 'little')

  return _find_state_dict(content), fetch


def _bytes(storage):
  return storage.size * storage.dtype.itemsize


def _native(data, dtype, order):
  if order == sys.byteorder:
    return data
  return np.frombuffer(data, f'u{dtype.itemsize}').byteswap().tobytes()


def _arrays(tensors: Mapping[str, _Tensor], fetch: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
  buffers: dict[str, bytes] = {}
  arrays = {}
  for name, (storage, offset, shape, strides) in tensors.items():
    if storage.key not in buffers:
      buffers[storage.key] = fetch(storage)
    item = storage.dtype.itemsize
    # The stride of an axis of length 1 may be anything.
    steps = [step * item if size > 1 else item for size, step in zip(shape, strides, strict=True)]
    if 0 in shape:
      arrays[name] = np.empty(shape, storage.dtype)
    else:
      arrays[name] = np.ndarray(shape, storage.dtype, buffers[storage.key], offset * item, steps)
  return arrays


def _unpickle(data: bytes, start: int, *, storage_fields: int = 0) -> tuple[Any, dict[str, _Storage], int]:
  """Reads one pickle: its content, the storages it refers to by key, and where it ends in ``data``.

  Args:
    data: Bytes that contain the pickle.
    start: Where it begins.
    storage_fields: Length of the tuples that identify storages; 0 if there must be none.
  """
  data = data[start : start + MAX_PICKLE_BYTES]
  file, pieces, copied = io.BytesIO(data), [], 0
  try:
    # All opcodes are checked before the unpickler runs the first.
    opcodes: Any = pickletools.genops(file)
    for opcode, argument, position in opcodes:
      # The unpickler allocates memory up to the highest index of its memo.
      if opcode.code not in _OPCODES or (opcode.name == 'LONG_BINPUT' and argument > len(data)):
        raise ValueError(f'damaged, or more than tensors and plain data: {opcode.name} at byte {position}')
      # Makes a plain dictionary an OrderedDict, and so `_Pairs`.
      if opcode.name == 'EMPTY_DICT':
        pieces += [data[copied:position], _EMPTY_DICT]
        copied = position + 1
    pieces.append(data[copied : file.tell()])
    unpickler = _Unpickler(io.BytesIO(b''.join(pieces)), storage_fields)
    return unpickler.load(), unpickler.storages, start + file.tell()
  except ValueError:
    raise
  # Damaged pickles make the unpickler raise almost anything.
  except Exception as error:
    raise ValueError(f'damaged pickle ({one_line(error, 200)})') from error


class _Unpickler(pickle.Unpickler):
  """Builds tensors, lists, tuples, `_Pairs`, text and numbers only.

  A pickle can call whatever `find_class` returns with any arguments, and ``__setstate__`` of any object. So
  `find_class` returns functions of this module and text, and no object here has a ``__setstate__`` that does
  something (a NumPy dtype would).
  """

  def __init__(self, file: io.BytesIO, storage_fields: int):
    # Python 2 wrote names as bytes.
    super().__init__(file, encoding='utf-8')
    self.storages: dict[str, _Storage] = {}
    self._storage_fields = storage_fields

  def find_class(self, module: str, name: str) -> Any:
    full = f'{module}.{name}'
    if full in _STORAGES:
      return full
    if full in _CALLED:
      return _CALLED[full]
    raise ValueError(
      f'it needs {full[:200]!r} to be executed, but only tensors and plain data are read; if it holds a '
      'whole network, save its state_dict() with torch.save instead'
    )

  def persistent_load(self, pid: Any) -> _Storage:
    if not isinstance(pid, tuple) or len(pid) != self._storage_fields or pid[0] != 'storage':
      raise ValueError('damaged file: a reference to something other than a storage')
    # Then comes the device and, before torch 1.6, a view or None.
    kind, key, _, size = pid[1:5]
    if not isinstance(kind, str) or kind not in _STORAGES or not isinstance(key, str) or not _is_size(size):
      raise ValueError('damaged file: a storage without type, name and size')
    if pid[5:] not in ((), (None,)):
      raise ValueError('it has views of storages, as written before torch 0.4; save it with a newer torch')
    storage = _Storage(key, _STORAGES[kind], size)
    if self.storages.setdefault(key, storage) != storage:
      raise ValueError(f'damaged file: storage {key[:60]!r} has two types or sizes')
    return storage


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, state=None):
  if not isinstance(storage, _Storage) or not _is_size(offset) or not _are_sizes(shape, strides):
    raise ValueError('damaged file: a tensor without valid storage, offset, shape and strides')
  if state is not None:
    raise ValueError('it has a negated or conjugated view; save a copy of that tensor instead')
  count = math.prod(shape)
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
  # An expanded view has more elements than its storage, so a small file could claim any amount of memory.
  if count and (last >= storage.size or count > storage.size):
    raise ValueError(f'a tensor of {count} elements, the last at {last}, in a storage of {storage.size}')
  return _Tensor(storage, offset, shape, strides)


def _are_sizes(shape, strides):
  both = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 32
  return both and all(map(_is_size, shape + strides))


def _is_size(value):
  return type(value) is int and 0 <= value < 2**48


_CALLED: dict[str, Callable] = {
  'collections.OrderedDict': _Pairs,
  'torch.Size': lambda sizes: sizes,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': lambda tensor, requires_grad, hooks: tensor,
}


def _find_state_dict(content: Any) -> dict[str, _Tensor]:
  """The one mapping of names to tensors, at the top level or one level below."""
  if not isinstance(content, _Pairs):
    raise ValueError('its content is not a dictionary; save a state dict')
  values = [content, *(value for _, value in content.pairs)]
  # By identity, so that one dictionary under many keys is checked once.
  inner = {id(value): value.pairs for value in values if isinstance(value, _Pairs)}
  found = [pairs for pairs in inner.values() if pairs and all(isinstance(item, _Tensor) for _, item in pairs)]
  if len(found) != 1:
    keys = ', '.join(repr(key[:60]) for key, _ in content.pairs[:10] if isinstance(key, str))
    raise ValueError(f'{len(found)} state dicts among its entries ({keys}); save exactly one')
  if not all(isinstance(name, str) and name.isprintable() and len(name) <= 256 for name, _ in found[0]):
    raise ValueError('a tensor has a name that is not printable text of at most 256 characters')
  tensors = dict(found[0])
  if len(tensors) != len(found[0]):
    raise ValueError('two tensors have the same name')
  return tensors


def write_state_dict(path: str | Path, state_dict: Mapping[str, Any], *, overwrite: bool = True) -> None:
  """Writes a state dict like ``torch.save``; an existing file is replaced when the new one is complete.

  ``torch.load`` reads it, also with ``weights_only`` and ``mmap``. Equal arrays give equal bytes.

  Args:
    path: The file; its folder must exist.
    state_dict: Tensor name -> array, in PyTorch's layout.
    overwrite: Whether a file may be replaced.

  Raises:
    ValueError: An array has a dtype that cannot be written.
    FileExistsError: The file exists and is not to be replaced.
  """
  types = {dtype: name for name, dtype in _STORAGES.items()}
  arrays = {name: np.asarray(array) for name, array in state_dict.items()}
  for name, array in arrays.items():
    if array.dtype not in types:
      supported = ', '.join(dtype.name for dtype in types)
      raise ValueError(f'{name}: dtype {array.dtype} cannot be written; use one of {supported}')
  entries = {'data.pkl': _pickled(arrays, types), 'byteorder': sys.byteorder.encode()}
  entries |= {f'data/{i}': array.tobytes() for i, array in enumerate(arrays.values())}
  entries['version'] = b'3\n'
  with replacing(path, overwrite=overwrite) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
    for name, data in entries.items():
      entry = zipfile.ZipInfo(f'archive/{name}')
      # Otherwise depends on the machine.
      entry.create_system = 3
      # As in torch.save, data are aligned to 64 bytes; before them are a header, the name, and this field.
      padding = -(archive.start_dir + 30 + len(entry.filename) + 4) % 64
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
