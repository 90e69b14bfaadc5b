"""Counts the work of a function, without a clock."""

from collections.abc import Callable
import sys


def instructions_run(function: Callable[[], object]) -> int:
  """Number of Python's instructions that the function runs, including what it calls."""
  count = 0

  def trace(frame, event, argument):
    nonlocal count
    frame.f_trace_opcodes = True
    count += event == 'opcode'
    return trace

  before = sys.gettrace()
  sys.settrace(trace)
  try:
    function()
  finally:
    sys.settrace(before)
  return count


def growth(make: Callable[[int], Callable[[], object]], small: int = 100) -> float:
  """By what factor the work grows when the input doubles: 2 if it is linear, 4 if it is quadratic.

  Args:
    make: (size of the input) -> a function that works on it.
    small: Size of the smaller input.
  """
  return instructions_run(make(2 * small)) / instructions_run(make(small))
