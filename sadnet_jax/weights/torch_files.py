"""Files of PyTorch's ``torch.save`` with a state dict, read and written without PyTorch.

Both forms are read: the zip archive of torch 1.6 and later, and the row of pickles before
that. No code of a file is run (`plain_pickle`), and a file takes memory in proportion to its
size, whatever it claims. What is written is a zip archive.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from pathlib import Path
import struct
import sys
from typing import Any, BinaryIO
import zipfile

import jax.numpy as jnp
import numpy as np

from sadnet_jax.files import replacing
from sadnet_jax.weights import plain_pickle
from sadnet_jax.weights.plain_pickle import Entries, Global

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


_DTYPES = {
  'Double': np.float64,
  'Float': np.float32,
  'Half': np.float16,
  'BFloat16': jnp.bfloat16,
  'Long': np.int64,
  'Int': np.int32,
  'Short': np.int16,
  'Char': np.int8,
  'Byte': np.uint8,
  'Bool': np.bool_,
}
# Types of storages as a pickle imports them -> dtype of their numbers.
STORAGES = {f'torch.{name}Storage': np.dtype(dtype) for name, dtype in _DTYPES.items()}
_DIMENSIONS = 32
_LONGEST_NAME = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
  """Numbers in a row, somewhere in the file; ``size`` counts them."""

  key: str
  dtype: np.dtype
  size: int

  @property
  def size_bytes(self) -> int:
    """The bytes it takes."""
    return self.size * self.dtype.itemsize


@dataclasses.dataclass(eq=False, slots=True)
class Tensor:
  """A tensor in its storage; offset and strides count numbers, not bytes."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def load(data: bytes, start: int, *, id_length: int) -> tuple[Any, dict[str, Storage], int]:
  """Reads a pickle with tensors.

  Args:
    data: Bytes that have the pickle in them.
    start: Where it begins.
    id_length: How many items the pickle has for a storage: 5, or 6 before torch 1.6.

  Returns:
    The content, with `Tensor` for tensors; the storages by name; where the pickle ends.

  Raises:
    ValueError: As `plain_pickle.load`; or a tensor is not within its storage.
  """
  storages: dict[str, Storage] = {}

  def storage(name):
    if not isinstance(name, tuple) or len(name) != id_length or name[0] != 'storage':
      raise ValueError('a damaged reference to a storage, want that of a tensor')
    kind, key, size, views = name[1], name[2], name[4], name[5:]
    dtype = kind.value if isinstance(kind, Global) else None
    if not isinstance(dtype, np.dtype) or not isinstance(key, str) or not _is_size(size):
      raise ValueError('a damaged reference to a storage, want its type, name and size')
    if views not in ((), (None,)):
      raise ValueError('a view of a storage, as torch wrote before 0.4, want a file of a later version')
    if storages.setdefault(key, Storage(key, dtype, size)) != Storage(key, dtype, size):
      raise ValueError(f'storage {key[:60]!r} with two types or sizes, want one')
    return storages[key]

  content, end = plain_pickle.load(data, start, find=_find, persistent=storage)
  return content, storages, end


def _find(name):
  if name in STORAGES:
    return STORAGES[name]
  known = {
    'collections.OrderedDict': lambda: Entries([]),
    'torch.Size': lambda sizes: sizes,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_parameter': _rebuild_parameter,
  }
  if name not in known:
    raise ValueError(
      f'a pickle with {name!r}, which would have to be run, want tensors and plain data only '
      '(of a whole network, save its state_dict() with torch.save, and nothing else)'
    )
  return known[name]


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, state=None):
  if not isinstance(storage, Storage) or not _is_size(offset):
    raise ValueError('a damaged tensor, want its storage and where it begins there')
  if not _are_sizes(shape) or not _are_sizes(strides) or len(shape) != len(strides):
    raise ValueError(f'a damaged tensor, want as many strides as sizes, none negative, at most {_DIMENSIONS}')
  if state is not None:
    raise ValueError('a tensor that is negated or conjugated when it is read, want plain ones')
  count = math.prod(shape)
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
  # More than the storage has is an expanded view, by which a few bytes may pass for any number.
  if count and (last >= storage.size or count > storage.size):
    raise ValueError(
      f'a tensor of {count} numbers, the last at {last}, in a storage of {storage.size}, '
      'want tensors within theirs'
    )
  if not count and not _is_size(math.prod(size or 1 for size in shape)):
    raise ValueError('an empty tensor with sides that no memory has, want smaller ones')
  return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, requires_grad, hooks):
  if not isinstance(tensor, Tensor):
    raise ValueError('a damaged parameter, want a tensor in it')
  return tensor


def _are_sizes(values):
  return isinstance(values, tuple) and len(values) <= _DIMENSIONS and all(map(_is_size, values))


def _is_size(value):
  return type(value) is int and 0 <= value < 2**48


def find_state_dict(content: Any) -> dict[str, Tensor]:
  """The one mapping of names to tensors, at the top or one level down.

  Raises:
    ValueError: There is none, or there are several; or a name is no text, or there twice.
  """
  if not isinstance(content, Entries):
    raise ValueError(f'a pickle of {type(content).__name__}, want one of a state dict')
  if _has_tensors_only(content):
    return _by_name(content)
  # By identity: what is there under many keys is looked at once.
  inner = {id(value): (key, value) for key, value in content.pairs if isinstance(value, Entries)}
  found = [(key, value) for key, value in inner.values() if _has_tensors_only(value)]
  if len(found) != 1:
    raise ValueError(
      f'{len(found)} mappings of names to tensors ({_shown([key for key, _ in found])}) among the keys '
      f'({_shown([key for key, _ in content.pairs])}), want one'
    )
  return _by_name(found[0][1])


def _has_tensors_only(entries):
  return bool(entries.pairs) and all(isinstance(value, Tensor) for _, value in entries.pairs)


def _by_name(entries):
  tensors: dict[str, Tensor] = {}
  for name, tensor in entries.pairs:
    if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST_NAME:
      raise ValueError(f'a tensor with the name {_shown([name])}, want up to {_LONGEST_NAME} letters')
    if name in tensors:
      raise ValueError(f'two tensors with the name {name}, want one')
    tensors[name] = tensor
  return tensors


def _shown(keys):
  """Keys for an error's text, whatever they are."""
  shown = [repr(key[:60]) if isinstance(key, str) else type(key).__name__ for key in keys[:10]]
  return ', '.join(shown) + (', ...' if len(keys) > 10 else '')


def to_arrays(tensors: Mapping[str, Tensor], fetch: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
  """Arrays of the tensors, that cannot be written to; those of one storage share its memory.

  Args:
    tensors: Tensors by name.
    fetch: Gives the bytes of a storage, in this machine's byte order; called once for each.
  """
  buffers: dict[Storage, bytes] = {}
  arrays = {}
  for name, tensor in tensors.items():
    storage = tensor.storage
    if storage not in buffers:
      buffers[storage] = fetch(storage)
    item = storage.dtype.itemsize
    # Along an axis of one the stride may be anything, in an empty tensor all of them.
    strides = [
      step * item if size > 1 and 0 not in tensor.shape else item
      for size, step in zip(tensor.shape, tensor.strides, strict=True)
    ]
    if 0 in tensor.shape:
      arrays[name] = np.empty(tensor.shape, storage.dtype)
    else:
      # NumPy checks the bounds once more.
      offset = tensor.offset * item
      arrays[name] = np.ndarray(tensor.shape, storage.dtype, buffers[storage], offset, strides)
  return arrays
