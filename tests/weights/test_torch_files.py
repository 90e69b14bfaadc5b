"""Files of torch.save, read and written without torch."""

import random
import shutil
import struct
import subprocess
import sys
import time
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.weights.torch_files import MAX_PICKLE_BYTES, read_state_dict, write_state_dict
from tests.support.torch_pickles import (
  DICT,
  floats,
  mapping,
  number,
  pickled,
  storage,
  tensor,
  text,
  write_rows,
  write_zip,
)

FORMS = ['torch_rows', 'torch_zip']


def assert_same(got, want):
  assert list(got) == list(want)
  for name, array in want.items():
    assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
    np.testing.assert_array_equal(got[name], array, name)


def saved_by_torch():
  """The content of torch_rows.pth and torch_zip.pth, see README.md beside them."""
  whole = np.arange(12, dtype=np.float32).reshape(3, 4)
  return {
    'parameter': np.array([[1], [2]], np.float32),
    'whole': whole,
    'transposed': whole.T,
    'part': whole[1:, ::2],
    'scalar': np.array(2.5, np.float32),
    'half_precision': np.array([1.5, -2.25], np.float16),
    'brain': np.array([0.5, -3], jnp.bfloat16),
    'double_precision': np.array([0.1], np.float32).astype(np.float64),
    'long': np.array([-1, 2**40]),
    'empty': np.empty((0, 4), np.float32),
  }


# --- Valid files.


@pytest.mark.parametrize('name', FORMS)
def test_a_checkpoint_of_torch_is_read(golden, name):
  got = read_state_dict(golden / f'{name}.pth')
  assert_same(got, saved_by_torch())
  assert np.shares_memory(got['whole'], got['transposed'])
  with pytest.raises(ValueError, match='read-only'):
    got['whole'][0] = 1


def test_written_tensors_are_read_back(tmp_path):
  arrays = saved_by_torch() | {'ints': np.array([[-(2**31)]], np.int32), 'small': np.array([-3], np.int16)}
  arrays |= {
    'signed': np.array([-3], np.int8),
    'bytes': np.array([200], np.uint8),
    'bools': np.array([True, False]),
  }
  write_state_dict(tmp_path / 'a.pth', arrays)
  assert_same(read_state_dict(tmp_path / 'a.pth'), arrays)
  write_state_dict(tmp_path / 'b.pth', {name: jnp.asarray(arrays[name]) for name in ('whole', 'brain')})
  assert_same(read_state_dict(tmp_path / 'b.pth'), {name: arrays[name] for name in ('whole', 'brain')})


def test_what_is_written_is_the_same_each_time_and_aligned(tmp_path):
  for name in 'ab':
    write_state_dict(tmp_path / f'{name}.pth', saved_by_torch())
  data = (tmp_path / 'a.pth').read_bytes()
  assert data == (tmp_path / 'b.pth').read_bytes()
  with zipfile.ZipFile(tmp_path / 'a.pth') as archive:
    assert archive.testzip() is None
    names = archive.namelist()
    assert archive.read('archive/byteorder').decode() == sys.byteorder
    assert archive.read('archive/version') == b'3\n'
    for entry in archive.infolist():
      name_length, extra_length = struct.unpack_from('<HH', data, entry.header_offset + 26)
      assert (entry.header_offset + 30 + name_length + extra_length) % 64 == 0, entry.filename
  assert names[0] == 'archive/data.pkl'
  assert len(names) == 3 + len(saved_by_torch())


def test_unsupported_dtypes_are_not_written_and_an_existing_file_stays(tmp_path):
  path = tmp_path / 'a.pth'
  path.write_text('kept')
  with pytest.raises(ValueError, match=r'b: dtype complex64 cannot be written; use one of float64, .* uint8'):
    write_state_dict(path, {'a': np.zeros(1, np.float32), 'b': np.zeros(1, np.complex64)})
  assert path.read_text() == 'kept'
  assert list(tmp_path.iterdir()) == [path]


def test_a_big_endian_file_is_read(tmp_path):
  values = {'a': np.array([1.5, -2], '>f4'), 'b': np.array([3, 2**40], '>i8'), 'c': np.array([0.5], '<f4')}
  brain = values['c'].view('<u2')[1:].astype('>u2').tobytes()
  content = mapping(
    a=tensor([2]),
    b=tensor([2], place=storage(2, key='1', kind='Long')),
    c=tensor([1], place=storage(1, key='2', kind='BFloat16')),
  )
  data = [values['a'].tobytes(), values['b'].tobytes(), brain]
  write_zip(tmp_path / 'a.pth', pickled(content), data, extra=[('a/byteorder', b'big')])
  got = read_state_dict(tmp_path / 'a.pth')
  assert_same(
    got, {'a': values['a'].astype('f4'), 'b': values['b'].astype('i8'), 'c': np.array([0.5], jnp.bfloat16)}
  )


def test_the_default_byte_order_is_little(tmp_path):
  write_zip(tmp_path / 'a.pth', pickled(mapping(a=tensor([2]))), [floats(1, 2)])
  assert_same(read_state_dict(tmp_path / 'a.pth'), {'a': np.array([1, 2], np.float32)})


@pytest.mark.parametrize('key', ['state_dict', 'anything'])
def test_the_state_dict_in_a_checkpoint_is_found(tmp_path, key):
  optimizer = mapping(state=mapping(first=mapping(step=tensor([2]))), param_groups=b']')
  content = mapping(
    epoch=number(3), **{key: mapping(a=tensor([2]))}, optimizer=optimizer, none=b'N', name=text('x')
  )
  write_zip(tmp_path / 'a.pth', pickled(content), [floats(1, 2)])
  assert list(read_state_dict(tmp_path / 'a.pth')) == ['a']


def test_the_stride_of_an_axis_of_one_does_not_matter(tmp_path):
  write_zip(tmp_path / 'a.pth', pickled(mapping(a=tensor([1, 2, 1], [2**47, 1, 2**47]))), [floats(1, 2)])
  assert_same(read_state_dict(tmp_path / 'a.pth'), {'a': np.array([[[1], [2]]], np.float32)})


def test_attributes_of_a_state_dict_and_texts_of_python_2_are_read(tmp_path):
  metadata = b'}' + text('_metadata') + mapping(version=number(1)) + b'sb'
  content = DICT + b'U\x01a' + tensor([2]) + b'sT\x01\0\0\0b' + tensor([2]) + b's' + metadata
  write_zip(tmp_path / 'a.pth', pickled(content), [floats(1, 2)])
  assert list(read_state_dict(tmp_path / 'a.pth')) == ['a', 'b']


# --- Files that are refused.

DAMAGED = 'damaged, or more than tensors and plain data'
INVALID_TENSOR = 'damaged file: a tensor without valid storage, offset, shape and strides'


def refusals():
  """Content of a pickle, and what is said about it. There is one storage, of two floats."""
  two = storage(2)
  return {
    'a network': (b'cmodel.sadnet\nSADNET\n)\x81', f'{DAMAGED}: NEWOBJ'),
    'a network, referred to': (
      b'cmodel.sadnet\nSADNET\n)R',
      r"it needs 'model\.sadnet\.SADNET' to be executed, .*save its state_dict\(\) with torch\.save instead",
    ),
    'code': (b'cos\nsystem\n' + text('true') + b'\x85R', r"it needs 'os\.system' to be executed"),
    'builtins': (b'cbuiltins\neval\n' + text('1') + b'\x85R', r"it needs 'builtins\.eval'"),
    'another part of torch': (b'ctorch\nload\n' + text('x') + b'\x85R', r"it needs 'torch\.load'"),
    'code by another opcode': (b'(ios\nsystem\n', f'{DAMAGED}: INST'),
    'code by an extension': (b'\x82\x01', f'{DAMAGED}: EXT1'),
    'a later protocol': (b'\x95' + 8 * b'\0' + b'N', f'{DAMAGED}: FRAME'),
    'a type without numbers': (
      mapping(a=tensor([2], place=storage(2, kind='QInt8'))),
      r"'torch\.QInt8Storage'",
    ),
    'a call of a type': (b'ctorch\nFloatStorage\n)R', 'damaged pickle .*not callable'),
    'a call of nothing': (b'N)R', 'damaged pickle .*not callable'),
    'a list': (b']', 'its content is not a dictionary; save a state dict'),
    'a tensor': (tensor([2]), 'its content is not a dictionary'),
    'nothing': (b'}', r'0 state dicts among its entries \(\); save exactly one'),
    'no tensors': (
      mapping(epoch=number(3), lists=b']'),
      r"0 state dicts among its entries \('epoch', 'lists'\)",
    ),
    'some tensors': (mapping(a=tensor([2]), b=b'N'), r"0 state dicts among its entries \('a', 'b'\)"),
    'two state dicts': (
      mapping(params=mapping(a=tensor([2])), ema=mapping(a=tensor([2]))),
      r"2 state dicts among its entries \('params', 'ema'\); save exactly one",
    ),
    'a number for a name': (b'}' + number(1) + tensor([2]) + b's', 'a name that is not printable text'),
    'a name of control codes': (mapping(**{'\x1b[2J': tensor([2])}), 'a name that is not printable text'),
    'a long name': (mapping(**{'a' * 257: tensor([2])}), 'not printable text of at most 256 characters'),
    'a name twice': (b'}(' + 2 * (text('a') + tensor([2])) + b'u', 'two tensors have the same name'),
    'beyond the end': (
      mapping(a=tensor([2], offset=1)),
      'a tensor of 2 elements, the last at 2, in a storage of 2',
    ),
    'strides beyond the end': (
      mapping(a=tensor([2], [2])),
      'a tensor of 2 elements, the last at 2, in a storage',
    ),
    'an expanded view': (
      mapping(a=tensor([2**40], [0], place=two)),
      r'a tensor of 1099511627776 elements, the last at 0, in',
    ),
    'a negative stride': (mapping(a=tensor([2], [-1], offset=1)), INVALID_TENSOR),
    'a negative size': (mapping(a=tensor([-1], place=two)), INVALID_TENSOR),
    'a negative offset': (mapping(a=tensor([2], offset=-1)), INVALID_TENSOR),
    'sizes without strides': (mapping(a=tensor([2], [])), INVALID_TENSOR),
    'too many axes': (mapping(a=tensor([1] * 33, place=two)), INVALID_TENSOR),
    'a huge size': (mapping(a=tensor([2**48], [0], place=two)), INVALID_TENSOR),
    'a huge empty tensor': (mapping(a=tensor([0, 2**47, 2**47], [1, 1, 1], place=two)), '[Mm]aximum|too big'),
    'a negated tensor': (mapping(a=tensor([2], more=mapping(neg=b'\x88'))), 'a negated or conjugated view'),
    'no storage': (mapping(a=tensor([2], place=b'N')), INVALID_TENSOR),
    'a parameter of nothing': (mapping(a=b'ctorch._utils\n_rebuild_parameter\nN\x88N\x87R'), '0 state dicts'),
    'too few arguments': (b'ctorch._utils\n_rebuild_tensor_v2\n)R', 'damaged pickle .*missing 6 required'),
    'a dictionary with content': (
      b'ccollections\nOrderedDict\n]\x85R',
      'damaged pickle .*takes 1 positional',
    ),
    'another reference': (text('module') + b'\x85Q', 'a reference to something other than a storage'),
    'a reference that is a number': (b'K\x01Q', 'a reference to something other than a storage'),
    'a negative storage': (
      mapping(a=tensor([2], place=storage(-2))),
      'a storage without type, name and size',
    ),
    'two types': (
      mapping(a=tensor([2]), b=tensor([2], place=storage(2, kind='Int'))),
      "storage '0' has two types or sizes",
    ),
    'two sizes': (
      mapping(a=tensor([2]), b=tensor([2], place=storage(3))),
      "storage '0' has two types or sizes",
    ),
    'a storage of another size': (mapping(a=tensor([2], place=storage(3))), "8 bytes for storage '0' of 12"),
    'a missing storage': (
      mapping(a=tensor([2], place=storage(2, key='../0'))),
      "0 bytes for storage '../0' of 8",
    ),
    'a huge storage': (
      mapping(a=tensor([2], place=storage(2**47))),
      "8 bytes for storage '0' of 562949953421312",
    ),
    # The unpickler sets attributes only from a dict, and nothing here makes one.
    'attributes of a function': (
      b'ctorch._utils\n_rebuild_tensor_v2\n}' + text('__kwdefaults__') + b'Nsb',
      'damaged pickle .*state is not a dictionary',
    ),
    'the state of a type': (
      b'ctorch\nFloatStorage\n(K\x03' + text('>') + b'NNNK\x08K\x08K\0tb',
      'damaged pickle .*state is not a dictionary',
    ),
    'attributes of a class': (b'ccollections\nOrderedDict\n}b', 'damaged pickle .*__setstate__'),
    'items of a list': (b'](K\x01K\x02u', 'damaged pickle .*index out of range'),
    'items of nothing': (b'NK\x01a', 'damaged pickle .*append'),
    'a key without a value': (b'}(K\x01u', 'damaged pickle .*odd number'),
    'an empty stack': (b'K\x01\x86', 'damaged pickle .*stack underflow'),
    'an unknown memo': (b'h\x00', 'damaged pickle .*Memo value not found'),
    'a text that is not one': (b'X\x01\0\0\0\xff', 'codec can'),
    'a huge text': (b'X\xff\xff\xff\xffab', 'only 3 remain'),
    'a huge memo': (b'Nr\xff\xff\xff\xff', f'{DAMAGED}: LONG_BINPUT'),
  }


@pytest.mark.parametrize('name', refusals())
def test_anything_but_one_state_dict_is_refused(tmp_path, name):
  content, match = refusals()[name]
  path = write_zip(tmp_path / 'a.pth', pickled(content), [floats(1, 2)])
  with pytest.raises(ValueError, match=rf'a\.pth: .*({match})'):
    read_state_dict(path)


def test_code_in_a_file_is_not_executed(tmp_path):
  flag = tmp_path / 'flag'
  content = b'cpathlib\nPath.touch\ncpathlib\nPath\n' + text(str(flag)) + b'\x85R\x85R'
  (tmp_path / 'd.pth').write_bytes(pickled(content))
  for path in (
    write_zip(tmp_path / 'a.pth', pickled(content)),
    write_rows(tmp_path / 'b.pth', pickled(content)),
    write_rows(tmp_path / 'c.pth', pickled(content), magic=1),
    tmp_path / 'd.pth',
  ):
    with pytest.raises(ValueError, match=r"it needs 'pathlib\.Path.*' to be executed|but another pickle"):
      read_state_dict(path)
  assert not flag.exists()


GOOD = pickled(mapping(a=tensor([2])))


def damaged_archives(path):
  data = floats(1, 2)
  yield (
    write_zip(path, GOOD, [data], compression=zipfile.ZIP_DEFLATED),
    'the zip archive is compressed, which torch',
  )
  yield write_zip(path, GOOD, [data], extra=[('a/byteorder', b'middle')]), "unknown byte order 'middle'"
  yield (
    write_zip(path, GOOD, [data], extra=[('b/data.pkl', GOOD)]),
    r'not a file of torch\.save: the zip archive has 2 entries NAME/data',
  )
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('data.pkl', GOOD)
  yield path, r'not a file of torch\.save: the zip archive has 0 entries NAME/data'

  good = write_zip(path, GOOD, [data]).read_bytes()
  path.write_bytes(good[:-1])
  yield path, r'cannot be read \('
  path.write_bytes(good.replace(data, floats(1, 3)))
  yield path, r'cannot be read \(Bad CRC-32'
  # An entry that claims to have 1 GiB.
  path.write_bytes(good.replace(struct.pack('<II', 8, 8), struct.pack('<II', 8, 2**30)))
  yield path, 'damaged zip archive: its entries are larger than the file'


def test_damaged_archives_are_refused(tmp_path):
  for path, match in damaged_archives(tmp_path / 'a.pth'):
    with pytest.raises(ValueError, match=rf'a\.pth: {match}'):
      read_state_dict(path)


ROWS = mapping(a=tensor([2], place=storage(2, last=b'N')))
TWO = np.array([1, 2], '<f4')


@pytest.mark.parametrize(
  ('content', 'options', 'match'),
  [
    (ROWS, {'magic': 7}, r'not a file of torch\.save, but another pickle'),
    (ROWS, {'version': 1000}, r'unknown version of the format before torch 1\.6; only 1001 can be read'),
    (ROWS, {'keys': 'no list'}, 'the listed storages are not those of the tensors'),
    (ROWS, {'keys': [0]}, 'the listed storages are not those of the tensors'),
    (ROWS, {'keys': ['0', 0]}, 'the listed storages are not those of the tensors'),
    (ROWS, {'keys': []}, 'the listed storages are not those of the tensors'),
    (ROWS, {'keys': ['0', '0']}, 'the listed storages are not those of the tensors'),
    (ROWS, {'storages': []}, "storage '0' does not have the size that its tensors need"),
    (ROWS, {'storages': [np.zeros(3, '<f4')]}, "storage '0' does not have the size that its tensors need"),
    (mapping(a=tensor([2])), {}, 'a reference to something other than a storage'),
    (mapping(a=tensor([2], place=storage(2, last=b'K\x01'))), {}, r'views of storages, .* before torch 0\.4'),
  ],
)
def test_damaged_sequences_are_refused(tmp_path, content, options, match):
  arguments = {'storages': [TWO], 'keys': ['0'], **options}
  path = write_rows(tmp_path / 'a.pth', pickled(content), **arguments)
  with pytest.raises(ValueError, match=rf'a\.pth: .*{match}'):
    read_state_dict(path)


def test_a_sequence_that_ends_early_is_refused(tmp_path):
  path = write_rows(tmp_path / 'a.pth', pickled(ROWS), [TWO])
  assert_same(read_state_dict(path), {'a': TWO})
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match='it ends before the end of its storages'):
    read_state_dict(path)


@pytest.mark.parametrize('content', [b'', b'text', b'\x89PNG\r\n', b'P', b'\x1f\x8b'])
def test_other_files_are_refused(tmp_path, content):
  (tmp_path / 'a.pth').write_bytes(content)
  with pytest.raises(ValueError, match=r'a\.pth: not a file of torch\.save: it begins with b'):
    read_state_dict(tmp_path / 'a.pth')


def test_missing_files_are_refused(tmp_path):
  for path in (tmp_path, tmp_path / 'a.pth'):
    with pytest.raises(ValueError, match=rf'^{path}: cannot be read'):
      read_state_dict(path)


@pytest.mark.parametrize('name', FORMS)
def test_a_file_cut_anywhere_is_refused(golden, tmp_path, name):
  whole = (golden / f'{name}.pth').read_bytes()
  path = tmp_path / 'a.pth'
  for length in range(0, len(whole), 23):
    path.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=rf'^{path}: '):
      read_state_dict(path)


@pytest.mark.parametrize('name', FORMS)
def test_a_file_changed_anywhere_is_read_or_refused(golden, tmp_path, name):
  whole = (golden / f'{name}.pth').read_bytes()
  rng = random.Random(0)
  path = tmp_path / 'a.pth'
  read = refused = 0
  for _ in range(400):
    changed = bytearray(whole)
    for _ in range(rng.choice([1, 2, 8])):
      changed[rng.randrange(len(changed))] = rng.choice([0, 255, 0x7F, *b'.(cRQbu]}XK', rng.randrange(256)])
    path.write_bytes(changed)
    try:
      for array in read_state_dict(path).values():
        array.tobytes()
    except ValueError as error:
      refused += str(error).startswith(f'{path}: ')
    else:
      read += 1
  assert read + refused == 400
  assert min(read, refused) > 20


def hostile():
  """Pickles within the size limit that take forever, or all memory, in a reader that trusts them."""
  room = MAX_PICKLE_BYTES - 10
  # Each tuple holds the one before twice: hashing it takes 2**1000 steps.
  doubled = b')q\x00' + 1000 * b'h\x00h\x00\x86q\x00'
  # Multiples of 2**61 - 1 all have the hash 0.
  colliding = b''.join(number(i * (2**61 - 1)) + b'N' for i in range(60_000))
  return {
    'deep lists': b']' * (room // 2) + b'a' * (room // 2 - 1),
    'deep tuples': b')' + b'\x85' * (room - 1),
    'marks': b'(' * room,
    'doubled tuples': b'}(' + doubled + b'tNs',
    'colliding keys': b'}(' + colliding + b'u',
    'memo': b''.join(b'Nr' + (i << 1).to_bytes(4, 'little') for i in range(room // 6)),
    'one dictionary often': b'}q\x00(' + b'Nh\x00' * (room // 4) + b'u',
    'calls': b'ccollections\nOrderedDict\nq\x00' + b'h\x00)R' * (room // 5),
  }


@pytest.mark.parametrize('name', hostile())
def test_hostile_pickles_take_limited_time(tmp_path, name):
  write_zip(tmp_path / 'a.pth', pickled(hostile()[name]))
  begin = time.monotonic()
  with pytest.raises(ValueError, match=r'its content is not|damaged pickle|state dicts among'):
    read_state_dict(tmp_path / 'a.pth')
  # Seconds, where the alternative is hours or a crash.
  assert time.monotonic() - begin < 60


def test_pickles_have_a_size_limit(tmp_path):
  write_zip(tmp_path / 'a.pth', pickled(text('a' * MAX_PICKLE_BYTES)))
  with pytest.raises(ValueError, match=r'a\.pth: .* only \d+ remain'):
    read_state_dict(tmp_path / 'a.pth')


def test_shared_objects_are_read_once(tmp_path):
  """One mapping under many keys, and many tensors in one storage."""
  many = b'}(' + b''.join(text(f'n{i}') + b'h\x02' for i in range(20_000)) + b'uq\x00'
  content = tensor([2**20], place=storage(2**20)) + b'q\x02' + many
  content += b'}(' + b''.join(text(f'm{i}') + b'h\x00' for i in range(20_000)) + b'u'
  write_zip(tmp_path / 'a.pth', pickled(content), [np.zeros(2**20, '<f4').tobytes()])
  # 80 GB if each tensor had its own memory.
  assert len(read_state_dict(tmp_path / 'a.pth')) == 20_000


# --- With PyTorch, if it is installed.


@pytest.mark.filterwarnings('default')
def test_torch_reads_what_is_written_and_what_it_writes_is_read(tmp_path):
  torch = pytest.importorskip('torch')
  base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
  tensors = {'base': base, 'turned': base.t(), 'part': base[1:4:2, 2:], 'scalar': torch.tensor(2.5)}
  kinds = ('float16', 'float64', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')
  tensors |= {kind: torch.tensor([[3, 0, 1]]).to(getattr(torch, kind)) for kind in kinds}
  tensors['parameter'] = torch.nn.Parameter(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
  want = {name: value.detach().numpy() for name, value in tensors.items()}
  brain = torch.tensor([0.5, -3], dtype=torch.bfloat16)
  for zipped in (True, False):
    path = tmp_path / f'{zipped}.pth'
    torch.save({**tensors, 'brain': brain}, path, _use_new_zipfile_serialization=zipped)
    got = read_state_dict(path)
    assert_same(got, {**want, 'brain': np.array([0.5, -3], jnp.bfloat16)})
    write_state_dict(tmp_path / 'back.pth', got)
    for mmap in (True, False):
      back = torch.load(tmp_path / 'back.pth', weights_only=True, mmap=mmap)
      assert list(back) == list(got)
      assert torch.equal(back.pop('brain'), brain)
      for name, loaded in back.items():
        assert loaded.dtype == tensors[name].dtype
        assert torch.equal(loaded, tensors[name].detach()), name


def test_nothing_heavy_is_imported(golden, tmp_path):
  shutil.copy(golden / 'torch_rows.pth', tmp_path)
  code = (
    'import sys; from sadnet_jax.weights.torch_files import read_state_dict; '
    f'assert read_state_dict({str(tmp_path / "torch_rows.pth")!r}); '
    "assert not {'torch', 'tensorflow', 'ml_collections', 'orbax'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, '-c', code], check=True)
