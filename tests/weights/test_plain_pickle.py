"""Pickles of plain data."""

import pickle
import time

import pytest

from sadnet_jax.weights import plain_pickle
from sadnet_jax.weights.torch_files import Entries, Global
from tests.support.torch_pickles import DICT, number, text

PLAIN = [
  None,
  True,
  1.5,
  -7,
  255,
  256,
  65536,
  2**31,
  2**70,
  -(2**70),
  'ü',
  '',
  (),
  (1,),
  (1, 2),
  (1, (2,), 3, 4),
  [],
  [1],
]


@pytest.mark.parametrize('value', [*PLAIN, PLAIN, [[]] * 3], ids=repr)
def test_plain_values_are_those_of_pythons_reader(value):
  data = pickle.dumps(value, 2)
  assert plain_pickle.load(data) == (value, len(data))


def test_dictionaries_are_pairs_in_order():
  value, _ = plain_pickle.load(pickle.dumps({'b': 1, (2, 'a'): {}, 'c': [3]}, 2))
  assert [key for key, _ in value.pairs] == ['b', (2, 'a'), 'c']
  assert isinstance(value.pairs[1][1], Entries)
  assert plain_pickle.load(pickle.dumps({'a': 1}, 2))[0].pairs == [('a', 1)]


def test_texts_of_python_2_are_read():
  assert plain_pickle.load(b'U\x02ab.')[0] == 'ab'
  assert plain_pickle.load(b'T\x02\0\0\0ab.')[0] == 'ab'


def test_pickles_follow_each_other():
  data = pickle.dumps(1, 2) + pickle.dumps('a', 2) + b'rest'
  value, end = plain_pickle.load(data)
  assert value == 1
  assert plain_pickle.load(data, end) == ('a', len(data) - 4)


def test_values_are_shared_and_may_hold_themselves():
  value, _ = plain_pickle.load(b']q\x00h\x00a.')
  assert value[0] is value


def test_imports_and_references_are_what_is_given():
  data = b'cm\nf\n(K\x01K\x02tRcm\nx\nK\x07Q\x87.'
  (called, named, kept), _ = plain_pickle.load(
    data, find={'m.f': lambda a, b: a + b, 'm.x': 'X'}.__getitem__, persistent=lambda name: -name
  )
  assert called == 3
  assert isinstance(named, Global)
  assert (named.name, named.value) == ('m.x', 'X')
  assert kept == -7


@pytest.mark.parametrize(
  ('data', 'match'),
  [
    (b'', r'a pickle that ends early \(or is above 4 MiB\), want a complete one'),
    (b'K', 'a pickle that ends early'),
    (b'X\xff\xff\xff\xffab.', 'a pickle that ends early'),
    (b'\x8a\xff.', 'a pickle that ends early'),
    (b'.', r'a damaged pickle \(at byte 1: IndexError\), want a complete one'),
    (b't.', 'a damaged pickle .*IndexError'),
    (b'q\x00.', 'a damaged pickle .*IndexError'),
    (b'NR.', 'a damaged pickle .*IndexError'),
    (b'K\x01\x86.', 'a damaged pickle .*IndexError'),
    (b'h\x00.', 'a damaged pickle .*KeyError'),
    (b'X\x01\0\0\0\xff.', 'a damaged pickle .*UnicodeDecodeError'),
    (b'cm\xff\nf\n.', 'a damaged pickle .*UnicodeDecodeError'),
    (b'NK\x01a.', r'a damaged pickle \(it puts items into NoneType\), want a complete one'),
    (b'NK\x01K\x02s.', 'it puts items into NoneType'),
    (b'](K\x01K\x02u.', 'it puts items into list'),
    (b'NNb.', 'it puts items into NoneType'),
    (b'}(K\x01u.', r'a damaged pickle \(a key without a value\), want a complete one'),
    (b'cmodule', r'a damaged pickle \(an import without a name\), want a complete one'),
    (b'c' + 300 * b'm' + b'\nf\n.', 'an import without a name'),
    (b'N)R.', 'a pickle that calls what is no known function, want tensors and plain data'),
    (b'cm\nx\n)R.', 'calls what is no known function'),
    (b'cm\nf\n]R.', 'calls what is no known function'),
    (b'cm\nf\n)R.', r'a damaged pickle \(the arguments of m\.f\), want a complete one'),
    (b'cos\nsystem\n' + text('true') + b'\x85R.', r"nothing for 'os\.system'"),
    # Opcodes of later protocols, and those that import or make objects otherwise.
    (
      b'\x80\x04\x95\0\0\0\0\0\0\0\0N.',
      r"a pickle with the opcode b'\\x95' at byte 2, want plain data in prot",
    ),
    (b'(ios\nsystem\n.', r"the opcode b'i' at byte 1"),
    (b'\x82\x01.', r"the opcode b'\\x82'"),
    (b'N)\x81.', r"the opcode b'\\x81'"),
  ],
)
def test_all_else_is_refused(data, match):
  def find(name):
    known = {'m.f': lambda a: a, 'm.x': 'X'}
    if name not in known:
      raise ValueError(f'nothing for {name!r}')
    return known[name]

  with pytest.raises(ValueError, match=match):
    plain_pickle.load(data, find=find)


@pytest.mark.parametrize('data', [b'cos\nsystem\n.', b'K\x01Q.'])
def test_nothing_is_imported_unless_it_is_given(data):
  with pytest.raises(
    ValueError, match='a pickle of more than plain data, want numbers, texts and containers'
  ):
    plain_pickle.load(data)


def hostile():
  """Pickles below the limit whose making takes ever more time or memory in a reader that trusts them."""
  room = plain_pickle.LIMIT_BYTES // 4
  deep = room // 2 - 1
  # Each tuple holds the one before twice: as a key, hashing it would take 2**1000 steps.
  doubled = b')q\x00' + 1000 * b'h\x00h\x00\x86q\x00'
  # Multiples of 2**61 - 1 all have the hash 0.
  colliding = b'}(' + b''.join(number(i * (2**61 - 1)) + b'N' for i in range(100_000)) + b'u'
  return {
    'deep lists': b']' * deep + b'a' * (deep - 1),
    'deep tuples': b')' + b'\x85' * (room - 2),
    'marks': b'(' * (room - 1),
    'doubled tuples': b'}' + doubled + b'Ns',
    'colliding keys': colliding,
    'memo': b''.join(b'Nr' + (i << 12).to_bytes(4, 'little') for i in range(500_000)),
    'highest memo': b'Nr\xff\xff\xff\xff',
    'one dictionary often': b'}q\x00(' + b'Nh\x00' * (room // 6) + b'u' + b'h\x00b' * (room // 8),
    'many calls': b'cm\nf\nq\x00' + b'h\x00)R' * 400_000,
  }


@pytest.mark.parametrize('name', hostile())
def test_time_is_in_proportion_to_the_size(name):
  begin = time.monotonic()
  try:
    value, _ = plain_pickle.load(hostile()[name] + b'.', find=lambda _: lambda: Entries([]))
    # Taking a deep value apart is part of it.
    del value
  except ValueError:
    pass
  # It takes seconds; what this guards against takes hours, or the stack.
  assert time.monotonic() - begin < 60


def test_more_than_the_limit_is_refused():
  long = b'X' + plain_pickle.LIMIT_BYTES.to_bytes(4, 'little') + b'a' * plain_pickle.LIMIT_BYTES + b'.'
  with pytest.raises(ValueError, match=r'ends early \(or is above 4 MiB\)'):
    plain_pickle.load(long)


def test_attributes_of_a_dictionary_are_left_out():
  value, _ = plain_pickle.load(DICT + b'}' + text('pairs') + b'Nsb.', find=lambda _: lambda: Entries([]))
  assert value.pairs == []
