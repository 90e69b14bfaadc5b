"""Files of torch.save, whole or broken, put together byte by byte."""

import math
import pickle
import struct
import zipfile

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
DICT = b'ccollections\nOrderedDict\n)R'


def text(value):
  return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def number(value):
  return b'\x8a\x0c' + value.to_bytes(12, 'little', signed=True)


def numbers(*values):
  return b'(' + b''.join(map(number, values)) + b't'


def storage(size, *, key='0', kind='Float', last=b''):
  """A reference to a storage; ``last`` is a sixth item, b'N' before torch 1.6."""
  return (
    b'('
    + text('storage')
    + f'ctorch\n{kind}Storage\n'.encode()
    + text(key)
    + text('cpu')
    + number(size)
    + (last + b'tQ')
  )


def tensor(shape, strides=None, *, offset=0, place=None, more=b''):
  """A tensor; by default row by row in a storage of its own size."""
  if strides is None:
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
  place = storage(math.prod(shape)) if place is None else place
  where = number(offset) + numbers(*shape) + numbers(*strides)
  return b'ctorch._utils\n_rebuild_tensor_v2\n(' + place + where + b'\x89' + DICT + more + b'tR'


def mapping(**values):
  """A dictionary of pickled values."""
  return DICT + b'(' + b''.join(text(name) + value for name, value in values.items()) + b'u'


def pickled(value):
  return b'\x80\x02' + value + b'.'


def write_zip(path, content, storages=(), *, extra=(), compression=zipfile.ZIP_STORED):
  """The form of torch 1.6 and later; storages are bytes."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('a/data.pkl', content)
    for i, data in enumerate(storages):
      archive.writestr(f'a/data/{i}', data)
    for name, data in extra:
      archive.writestr(name, data)
  return path


def write_rows(path, content, storages=(), *, keys=None, magic=MAGIC, version=1001):
  """The form before; storages are arrays."""
  keys = [str(i) for i in range(len(storages))] if keys is None else keys
  first = [magic, version, {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'int': 4}}]
  data = b''.join(pickle.dumps(value, 2) for value in first) + content + pickle.dumps(keys, 2)
  data += b''.join(struct.pack('<q', array.size) + array.tobytes() for array in storages)
  path.write_bytes(data)
  return path


def floats(*values):
  return np.array(values, '<f4').tobytes()
