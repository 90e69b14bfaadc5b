"""Files of torch.save, without torch."""

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

from sadnet_jax.weights.torch_files import read_state_dict, write_state_dict
from tests.support.torch_pickles import (
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
  """What README.md of the golden files says of torch_rows.pth and torch_zip.pth."""
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


# --- Files as they should be.


@pytest.mark.parametrize('name', FORMS)
def test_a_checkpoint_of_torch_is_read(golden, name):
  got = read_state_dict(golden / f'{name}.pth')
  assert_same(got, saved_by_torch())
  assert np.shares_memory(got['whole'], got['transposed'])
  with pytest.raises(ValueError, match='read-only'):
    got['whole'][0] = 1


def test_what_is_written_comes_back(tmp_path):
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


def test_writing_refuses_what_torch_has_no_storage_for_and_leaves_what_is_there(tmp_path):
  path = tmp_path / 'a.pth'
  path.write_text('kept')
  with pytest.raises(ValueError, match=r'b: got dtype complex64, want one of float64, float32, .* bool'):
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


def test_without_a_byte_order_it_is_little(tmp_path):
  write_zip(tmp_path / 'a.pth', pickled(mapping(a=tensor([2]))), [floats(1, 2)])
  assert_same(read_state_dict(tmp_path / 'a.pth'), {'a': np.array([1, 2], np.float32)})


@pytest.mark.parametrize('key', ['state_dict', 'params', 'model', 'net', 'anything'])
def test_the_one_mapping_of_tensors_of_a_checkpoint_is_found(tmp_path, key):
  optimizer = mapping(state=mapping(first=mapping(step=tensor([2]))), param_groups=b']')
  content = mapping(
    epoch=number(3), **{key: mapping(a=tensor([2]))}, optimizer=optimizer, none=b'N', name=text('x')
  )
  write_zip(tmp_path / 'a.pth', pickled(content), [floats(1, 2)])
  assert list(read_state_dict(tmp_path / 'a.pth')) == ['a']


def test_steps_along_an_axis_of_one_do_not_matter(tmp_path):
  write_zip(tmp_path / 'a.pth', pickled(mapping(a=tensor([1, 2, 1], [2**47, 1, 2**47]))), [floats(1, 2)])
  assert_same(read_state_dict(tmp_path / 'a.pth'), {'a': np.array([[[1], [2]]], np.float32)})


# --- Files that are not.


def refusals():
  """Content of a pickle, and what is said of it. There is one storage, of two floats."""
  two = storage(2)
  return {
    'a network': (
      b'cmodel.sadnet\nSADNET\n)\x81',
      r"'model\.sadnet\.SADNET', which would have to be run, want tensors and plain data only "
      r'\(of a whole network, save its state_dict\(\) with torch\.save, and nothing else\)',
    ),
    'code': (
      b'cos\nsystem\n' + text('true') + b'\x85R',
      r"a pickle with 'os\.system', which would have to be run",
    ),
    'builtins': (b'cbuiltins\neval\n' + text('1') + b'\x85R', r"a pickle with 'builtins\.eval'"),
    'another part of torch': (b'ctorch\nload\n' + text('x') + b'\x85R', r"a pickle with 'torch\.load'"),
    'a type without numbers': (
      mapping(a=tensor([2], place=storage(2, kind='QInt8'))),
      r"'torch\.QInt8Storage'",
    ),
    'a call of a type': (b'ctorch\nFloatStorage\n)R', 'calls what is no known function'),
    'a list': (b']', 'a pickle of list, want one of a state dict'),
    'a tensor': (tensor([2]), 'a pickle of Tensor, want one of a state dict'),
    'nothing': (b'}', r'0 mappings of names to tensors \(\) among the keys \(\), want one'),
    'no tensors': (
      mapping(epoch=number(3), lists=b']'),
      r"0 mappings .* among the keys \('epoch', 'lists'\), want one",
    ),
    'some tensors': (mapping(a=tensor([2]), b=b'N'), r"0 mappings .* the keys \('a', 'b'\), want one"),
    'two mappings': (
      mapping(params=mapping(a=tensor([2])), ema=mapping(a=tensor([2]))),
      r"2 mappings of names to tensors \('params', 'ema'\) among the keys \('params', 'ema'\), want one",
    ),
    'many keys': (
      b'}(' + b''.join(number(i) + b'N' for i in range(99)) + b'u',
      r'the keys \((int, ){10}\.\.\.\), want',
    ),
    'a number for a name': (
      b'}' + number(1) + tensor([2]) + b's',
      'a tensor with the name int, want up to 256 letters',
    ),
    'a name of control codes': (
      mapping(**{'\x1b[2J': tensor([2])}),
      r"the name '\\x1b\[2J', want up to 256 letters",
    ),
    'a long name': (mapping(**{'a' * 257: tensor([2])}), "the name '(a{60})', want up to 256 letters"),
    'a name twice': (b'}(' + 2 * (text('a') + tensor([2])) + b'u', 'two tensors with the name a, want one'),
    'beyond the end': (
      mapping(a=tensor([2], offset=1)),
      'a tensor of 2 numbers, the last at 2, in a storage of 2, want',
    ),
    'steps beyond the end': (
      mapping(a=tensor([2], [2])),
      'a tensor of 2 numbers, the last at 2, in a storage of 2',
    ),
    'an expanded view': (
      mapping(a=tensor([2**40], [0], place=two)),
      r'a tensor of 1099511627776 numbers, the last at 0, in',
    ),
    'steps back': (
      mapping(a=tensor([2], [-1], offset=1)),
      'a damaged tensor, want as many strides as sizes, none negat',
    ),
    'a negative size': (mapping(a=tensor([-1], place=two)), 'a damaged tensor, want as many strides'),
    'a negative offset': (
      mapping(a=tensor([2], offset=-1)),
      'a damaged tensor, want its storage and where it begins',
    ),
    'sizes without strides': (mapping(a=tensor([2], [])), 'a damaged tensor, want as many strides'),
    'too many axes': (mapping(a=tensor([1] * 33, place=two)), 'none negative, at most 32'),
    'a huge size': (mapping(a=tensor([2**48], [0], place=two)), 'a damaged tensor, want as many strides'),
    'a huge empty tensor': (
      mapping(a=tensor([0, 2**47, 2], [1, 1, 1], place=two)),
      'an empty tensor with sides that no memory has',
    ),
    'a negated tensor': (
      mapping(a=tensor([2], more=mapping(neg=b'\x88'))),
      'a tensor that is negated or conjugated when',
    ),
    'no storage': (mapping(a=tensor([2], place=b'N')), 'a damaged tensor, want its storage'),
    'no tensor': (
      mapping(a=b'ctorch._utils\n_rebuild_parameter\nN\x88N\x87R'),
      'a damaged parameter, want a tensor in it',
    ),
    'too few arguments': (
      b'ctorch._utils\n_rebuild_tensor_v2\n)R',
      r'the arguments of torch\._utils\._rebuild_tensor_v2',
    ),
    'a dictionary with content': (
      b'ccollections\nOrderedDict\n]\x85R',
      r'the arguments of collections\.OrderedDict',
    ),
    'another reference': (
      text('module') + b'\x85Q',
      'a damaged reference to a storage, want that of a tensor',
    ),
    'a reference that is a number': (b'K\x01Q', 'a damaged reference to a storage, want that of a tensor'),
    'a negative storage': (
      mapping(a=tensor([2], place=storage(-2))),
      'a damaged reference to a storage, want its type, na',
    ),
    'two types': (
      mapping(a=tensor([2]), b=tensor([2], place=storage(2, kind='Int'))),
      "storage '0' with two types or sizes",
    ),
    'two sizes': (
      mapping(a=tensor([2]), b=tensor([2], place=storage(3))),
      "storage '0' with two types or sizes, want one",
    ),
    'a storage of another size': (
      mapping(a=tensor([2], place=storage(3))),
      "8 bytes for storage '0', want 12 bytes",
    ),
    'a storage that is not there': (
      mapping(a=tensor([2], place=storage(2, key='../0'))),
      "no entry for storage '../0', want 8",
    ),
    'a huge storage': (
      mapping(a=tensor([2], place=storage(2**47))),
      "8 bytes for storage '0', want 562949953421312 bytes",
    ),
  }


@pytest.mark.parametrize('name', refusals())
def test_what_is_not_a_state_dict_is_refused(tmp_path, name):
  content, match = refusals()[name]
  path = write_zip(tmp_path / 'a.pth', pickled(content), [floats(1, 2)])
  with pytest.raises(ValueError, match=rf'a\.pth: got .*{match}'):
    read_state_dict(path)


def test_no_code_of_a_file_is_run(tmp_path):
  flag = tmp_path / 'flag'
  content = b'cpathlib\nPath.touch\ncpathlib\nPath\n' + text(str(flag)) + b'\x85R\x85R'
  for path in (
    write_zip(tmp_path / 'a.pth', pickled(content)),
    write_rows(tmp_path / 'b.pth', pickled(content)),
    write_rows(tmp_path / 'c.pth', pickled(content), magic=1),
  ):
    with pytest.raises(ValueError, match=r'a pickle (with|that is not)'):
      read_state_dict(path)
  (tmp_path / 'd.pth').write_bytes(pickled(content))
  with pytest.raises(ValueError, match='a pickle of more than plain data'):
    read_state_dict(tmp_path / 'd.pth')
  assert not flag.exists()


GOOD = pickled(mapping(a=tensor([2])))


def damaged_archives(path):
  data = floats(1, 2)
  with pytest.warns(UserWarning, match='Duplicate name'):
    yield (
      write_zip(path, GOOD, [data], extra=[('a/data/0', data)]),
      'a zip archive with two entries of one name, want ea',
    )
  yield (
    write_zip(path, GOOD, [data], compression=zipfile.ZIP_DEFLATED),
    r"the compressed entry 'a/data\.pkl', want all st",
  )
  yield (
    write_zip(path, GOOD, [data], extra=[('a/byteorder', b'middle')]),
    "the byte order b'middle', want little or big",
  )
  yield (
    write_zip(path, GOOD, [data], extra=[('b/data.pkl', GOOD)]),
    r'a zip archive with 2 of <name>/data\.pkl, want one',
  )
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('data.pkl', GOOD)
  yield path, r'a zip archive with 0 of <name>/data\.pkl, want one of torch\.save'

  good = write_zip(path, GOOD, [data]).read_bytes()
  path.write_bytes(good[:-1])
  yield path, r'a damaged file \(.*\), want a complete one of torch\.save'
  path.write_bytes(good.replace(data, floats(1, 3)))
  yield path, 'a damaged file .*Bad CRC-32'
  # Entries that say they are of 1 GiB, stored.
  sizes, huge = struct.pack('<II', 8, 8), struct.pack('<II', 2**30, 2**30)
  path.write_bytes(good.replace(sizes, huge))
  yield path, 'a zip archive whose entries are larger than itself, want one of torch'
  path.write_bytes(good.replace(struct.pack('<II', 8, 8), struct.pack('<II', 8, 2**30)))
  yield path, "the compressed entry 'a/data/0'"


def test_damaged_archives_are_refused(tmp_path):
  for path, match in damaged_archives(tmp_path / 'a.pth'):
    with pytest.raises(ValueError, match=rf'a\.pth: got {match}'):
      read_state_dict(path)


ROWS = mapping(a=tensor([2], place=storage(2, last=b'N')))
TWO = np.array([1, 2], '<f4')


@pytest.mark.parametrize(
  ('content', 'options', 'match'),
  [
    (ROWS, {'magic': 7}, r'a pickle that is not of torch\.save, want one of it'),
    (ROWS, {'version': 1000}, r'another version of the form before torch 1\.6, want 1001'),
    (ROWS, {'keys': 'no list'}, 'a damaged list of storages, want their names'),
    (ROWS, {'keys': [0]}, 'a damaged list of storages, want their names'),
    (ROWS, {'keys': []}, 'a list of storages other than those of the tensors, want the same'),
    (ROWS, {'keys': ['0', '0']}, 'a list of storages other than those of the tensors'),
    (ROWS, {'storages': []}, "a file that ends before storage '0' does, want a complete one"),
    (
      ROWS,
      {'storages': [np.zeros(3, '<f4')]},
      "storage '0' of another size than its tensors say, want the same",
    ),
    (mapping(a=tensor([2])), {}, 'a damaged reference to a storage, want that of a tensor'),
    (
      mapping(a=tensor([2], place=storage(2, last=b'K\x01'))),
      {},
      r'a view of a storage, as torch wrote before 0\.4, want a file of a later version',
    ),
    (mapping(a=tensor([2], place=storage(2**47, last=b'N'))), {}, "a file that ends before storage '0' does"),
    (b'cmodel.sadnet\nSADNET\n', {}, r"a pickle with 'model\.sadnet\.SADNET', which would have to be run"),
  ],
)
def test_damaged_rows_are_refused(tmp_path, content, options, match):
  arguments = {'storages': [TWO], 'keys': ['0'], **options}
  path = write_rows(tmp_path / 'a.pth', pickled(content), **arguments)
  with pytest.raises(ValueError, match=rf'a\.pth: got {match}'):
    read_state_dict(path)


def test_rows_are_little_endian_whatever_they_say(tmp_path):
  write_rows(tmp_path / 'a.pth', pickled(ROWS), [TWO])
  assert_same(read_state_dict(tmp_path / 'a.pth'), {'a': TWO})


@pytest.mark.parametrize('content', [b'', b'text', b'\x89PNG\r\n', b'P', b'\x1f\x8b'])
def test_other_files_are_refused(tmp_path, content):
  (tmp_path / 'a.pth').write_bytes(content)
  with pytest.raises(ValueError, match=r'a\.pth: got a file that begins with b.*, want one of torch\.save'):
    read_state_dict(tmp_path / 'a.pth')


def test_what_is_no_file_is_refused(tmp_path):
  for path in (tmp_path, tmp_path / 'a.pth'):
    with pytest.raises(ValueError, match=r'got no file there, want one of torch\.save'):
      read_state_dict(path)


@pytest.mark.parametrize('name', FORMS)
def test_a_file_cut_anywhere_is_refused(golden, tmp_path, name):
  whole = (golden / f'{name}.pth').read_bytes()
  path = tmp_path / 'a.pth'
  for length in range(0, len(whole), 7):
    path.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r'a\.pth: got '):
      read_state_dict(path)


@pytest.mark.parametrize('name', FORMS)
def test_a_file_changed_anywhere_is_read_or_refused(golden, tmp_path, name):
  whole = (golden / f'{name}.pth').read_bytes()
  rng = random.Random(0)
  path = tmp_path / 'a.pth'
  read = refused = 0
  for _ in range(1000):
    changed = bytearray(whole)
    for _ in range(rng.choice([1, 2, 8])):
      changed[rng.randrange(len(changed))] = rng.choice([0, 255, 0x7F, *b'.(cRQbu]}XK', rng.randrange(256)])
    path.write_bytes(changed)
    try:
      for array in read_state_dict(path).values():
        array.tobytes()
    except ValueError as error:
      refused += str(error).startswith(f'{path}: got ')
    else:
      read += 1
  assert read + refused == 1000
  assert min(read, refused) > 20


def test_a_small_file_takes_little_memory_and_time(tmp_path):
  """One mapping under a hundred thousand keys, and one storage under as many names."""
  many = b'}q\x00(' + b''.join(text(f'n{i}') + b'h\x02' for i in range(50_000)) + b'u'
  content = (
    tensor([2]) + b'q\x02' + many + b'}(' + b''.join(text(f'm{i}') + b'h\x00' for i in range(50_000)) + b'u'
  )
  write_zip(tmp_path / 'a.pth', pickled(content), [floats(1, 2)])
  begin = time.monotonic()
  assert len(read_state_dict(tmp_path / 'a.pth')) == 50_000
  large = np.zeros(2**20, '<f4').tobytes()
  place = storage(2**20)
  content = tensor([2**20], place=place) + b'q\x02' + many
  write_zip(tmp_path / 'b.pth', pickled(content), [large])
  # 200 GB if each had its own.
  assert len(read_state_dict(tmp_path / 'b.pth')) == 50_000
  assert time.monotonic() - begin < 60


# --- With PyTorch, where it is.


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
