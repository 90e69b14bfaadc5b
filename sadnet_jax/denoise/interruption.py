"""Ctrl-C and the like, acted on where nothing is half done.

An exception in the middle of an import or of a callback from compiled code may crash it or be lost.
"""

from collections.abc import Iterator
import contextlib
import signal
import threading

_received: list[int] = []


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Only takes note of the first signal that asks the process to end; the second acts at once."""
  names = [name for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]
  defaults = (signal.SIG_DFL, signal.default_int_handler)
  # Some are ignored, as by nohup, which is to stay.
  before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
  before = {number: handler for number, handler in before.items() if handler in defaults}
  if threading.current_thread() is not threading.main_thread():
    before = {}

  def restore():
    for number, handler in before.items():
      signal.signal(number, handler)

  def take_note(number, frame):
    _received.append(number)
    restore()

  try:
    for number in before:
      signal.signal(number, take_note)
    yield
  finally:
    restore()
    _received.clear()


def check() -> None:
  """Ends what runs if a signal came: KeyboardInterrupt after Ctrl-C, else SystemExit."""
  if _received:
    if _received[0] == signal.SIGINT:
      raise KeyboardInterrupt
    raise SystemExit(128 + _received[0])
