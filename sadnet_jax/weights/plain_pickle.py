"""Pickles of plain data, read without running anything of theirs.

Python's own reader imports and calls what a pickle names. This one knows the opcodes that
tensors and plain containers of protocol 2 need, calls only the functions it is given, and
refuses all else. Its work and memory are at most proportional to the size of the pickle:
no value of it is hashed, compared, copied or followed, and a size that it states is
checked against what is there before memory is taken.
"""

from collections.abc import Callable
import dataclasses
import struct
from typing import Any

# Objects take up to a hundred times the bytes that name them. Checkpoints with thousands of
# tensors and an optimiser's state are below 1 MiB.
LIMIT_BYTES = 4 * 2**20
# Of a module that a pickle imports from, and of what it imports.
_LONGEST_NAME = 256

_CONSTANTS = {b'N': None, b'\x88': True, b'\x89': False}
_EMPTY: dict[bytes, Callable[[], Any]] = {b')': tuple, b']': list, b'}': lambda: Entries([])}
_NUMBERS = {b'K': '<B', b'M': '<H', b'J': '<i', b'G': '>d'}
# BINUNICODE; BINSTRING and SHORT_BINSTRING are what Python 2 wrote.
_TEXTS = {b'X': '<I', b'T': '<I', b'U': '<B'}
_TUPLES = {b'\x85': 1, b'\x86': 2, b'\x87': 3}
_PUT = {b'q': '<B', b'r': '<I'}
_GET = {b'h': '<B', b'j': '<I'}


@dataclasses.dataclass(eq=False, slots=True)
class Entries:
  """A dictionary, as its keys and values in the order written; a key may be there twice."""

  pairs: list[tuple[Any, Any]]


@dataclasses.dataclass(eq=False, slots=True)
class Global:
  """What a pickle imports: its name, and what stands for it here."""

  name: str
  value: Any


def refused(what: Any) -> Any:
  """Raises ValueError: for a pickle that may neither import nor refer to anything."""
  raise ValueError('a pickle of more than plain data, want numbers, texts and containers of them')


def load(
  data: bytes,
  start: int = 0,
  *,
  find: Callable[[str], Any] = refused,
  persistent: Callable[[Any], Any] = refused,
) -> tuple[Any, int]:
  """Reads one pickle.

  Args:
    data: The bytes; what follows the pickle is left alone.
    start: Where the pickle begins in them.
    find: Gives what stands for a name that the pickle imports, ``module.name``, or raises ValueError.
      What can be called is called where the pickle says so, with the arguments there, of any type.
    persistent: Gives the object that is kept elsewhere, from what the pickle has for it.

  Returns:
    The value, of None, bool, int, float, str, tuple, list, `Entries`, `Global` and what the functions
    gave, and where the pickle ends.

  Raises:
    ValueError: The pickle is damaged, larger than `LIMIT_BYTES`, or holds anything else; the text
      continues a sentence that begins with 'got'.
  """
  machine = _Machine(data[start : start + LIMIT_BYTES], find, persistent)
  try:
    value = machine.run()
  except (IndexError, KeyError, UnicodeDecodeError) as error:
    raise ValueError(
      f'a damaged pickle (at byte {start + machine.position}: {type(error).__name__}), want a complete one'
    ) from error
  return value, start + machine.position


class _Machine:
  """A stack of values, of which the last few are above a mark, and values kept by number."""

  def __init__(self, data: bytes, find: Callable, persistent: Callable):
    self.position = 0
    self._data, self._find, self._persistent = data, find, persistent
    self._stack: list[Any] = []
    self._below: list[list[Any]] = []
    self._memo: dict[int, Any] = {}
    self._others = {
      b'\x80': lambda: self._take(1),
      b'(': self._mark,
      b't': lambda: self._push(tuple(self._above_mark())),
      b'\x8a': lambda: self._push(int.from_bytes(self._take(self._number('<B')), 'little', signed=True)),
      b'a': lambda: self._append([self._stack.pop()]),
      b'e': lambda: self._append(self._above_mark()),
      b's': lambda: self._set_items([self._stack.pop(-2), self._stack.pop()]),
      b'u': lambda: self._set_items(self._above_mark()),
      b'c': self._import,
      b'R': self._call,
      b'b': self._build,
      b'Q': self._look_up,
    }

  def run(self):
    while (opcode := self._take(1)) != b'.':
      self._step(opcode)
    return self._stack.pop()

  def _step(self, opcode):
    if opcode in _CONSTANTS:
      self._push(_CONSTANTS[opcode])
    elif opcode in _EMPTY:
      self._push(_EMPTY[opcode]())
    elif opcode in _NUMBERS:
      self._push(self._number(_NUMBERS[opcode]))
    elif opcode in _TEXTS:
      self._push(self._take(self._number(_TEXTS[opcode])).decode())
    elif opcode in _TUPLES:
      self._push(tuple([self._stack.pop() for _ in range(_TUPLES[opcode])][::-1]))
    elif opcode in _PUT:
      self._memo[self._number(_PUT[opcode])] = self._stack[-1]
    elif opcode in _GET:
      self._push(self._memo[self._number(_GET[opcode])])
    elif opcode in self._others:
      self._others[opcode]()
    else:
      raise ValueError(
        f'a pickle with the opcode {opcode!r} at byte {self.position - 1}, want plain data in protocol 2'
      )

  def _take(self, count):
    end = self.position + count
    if end > len(self._data):
      raise ValueError(f'a pickle that ends early (or is above {LIMIT_BYTES >> 20} MiB), want a complete one')
    taken = self._data[self.position : end]
    self.position = end
    return taken

  def _number(self, form):
    return struct.unpack(form, self._take(struct.calcsize(form)))[0]

  def _push(self, value):
    self._stack.append(value)

  def _mark(self):
    self._below.append(self._stack)
    self._stack = []

  def _above_mark(self):
    above, self._stack = self._stack, self._below.pop()
    return above

  def _append(self, values):
    self._of_type(list).extend(values)

  def _set_items(self, values):
    if len(values) % 2:
      raise ValueError('a damaged pickle (a key without a value), want a complete one')
    self._of_type(Entries).pairs.extend(zip(values[::2], values[1::2], strict=True))

  def _of_type(self, kind):
    target = self._stack[-1]
    if not isinstance(target, kind):
      raise ValueError(f'a damaged pickle (it puts items into {type(target).__name__}), want a complete one')
    return target

  def _import(self):
    name = f'{self._line()}.{self._line()}'
    self._push(Global(name, self._find(name)))

  def _line(self):
    end = self._data.find(b'\n', self.position, self.position + _LONGEST_NAME)
    if end < 0:
      raise ValueError('a damaged pickle (an import without a name), want a complete one')
    line = self._take(end - self.position).decode()
    self._take(1)
    return line

  def _call(self):
    arguments, function = self._stack.pop(), self._stack.pop()
    if not isinstance(function, Global) or not callable(function.value) or not isinstance(arguments, tuple):
      raise ValueError('a pickle that calls what is no known function, want tensors and plain data')
    try:
      self._push(function.value(*arguments))
    except TypeError as error:
      raise ValueError(f'a damaged pickle (the arguments of {function.name}), want a complete one') from error

  def _build(self):
    # Attributes, such as a state dict's _metadata: nothing here has any.
    self._stack.pop()
    self._of_type(Entries)

  def _look_up(self):
    self._push(self._persistent(self._stack.pop()))
