"""PyTorch's tensors as its pickles describe them: where in which storage their numbers are.

A pickle of ``torch.save`` has no numbers. It calls functions of PyTorch with a storage's name
and where a tensor is in it; here these calls give descriptions, which are checked when they
are made, and become arrays once it is known which of them are wanted.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from sadnet_jax import plain_pickle
from sadnet_jax.plain_pickle import Entries, Global

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
