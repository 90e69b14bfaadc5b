"""Ctrl-C and termination signals, acted on only between pictures and between runs of the network.

An exception raised in the middle of an import or of a callback from compiled code may crash the import, or
be lost.
"""

from collections.abc import Iterator
import contextlib
import signal
import threading

_received: list[int] = []


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Records the first signal that asks the process to end, for `check`; a second one acts at once."""
  names = [name for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]
  defaults = (signal.SIG_DFL, signal.default_int_handler)
  # Ignored signals stay ignored, as nohup wants.
  before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
  before = {number: handler for number, handler in before.items() if handler in defaults}
  if threading.current_thread() is not threading.main_thread():
    before = {}

  def restore():
    for number, handler in before.items():
      signal.signal(number, handler)

  def record(number, frame):
    _received.append(number)
    restore()

  try:
    for number in before:
      signal.signal(number, record)
    yield
  finally:
    restore()
    _received.clear()


def check() -> None:
  """Raises KeyboardInterrupt if Ctrl-C was recorded, SystemExit if another signal was."""
  if _received:
    if _received[0] == signal.SIGINT:
      raise KeyboardInterrupt
    raise SystemExit(128 + _received[0])
