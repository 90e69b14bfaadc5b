"""Several processes, one run: how they connect, and what process 0 does for all of them."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import hashlib
import os
import re
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any, Self, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from sadnet_jax.files import one_line

T = TypeVar('T')
# At the end the other processes wait while process 0 validates and saves.
_SHUTDOWN_TIMEOUT_SECONDS = 3600


def initialize(cluster: str) -> None:
  """Connects to the other processes of the run. Call it before anything uses a device.

  Args:
    cluster: 'auto' where `jax.distributed.initialize` detects the cluster (Slurm, Open MPI, Kubernetes, Cloud
      TPU), or 'INDEX/COUNT@HOST:PORT' with the address of process 0, such as '0/2@10.0.0.1:1234'.

  Raises:
    ValueError: The argument has another form, or the processes do not find each other.
  """
  if cluster == 'auto':
    try:
      jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_SECONDS)
    except (RuntimeError, ValueError) as error:
      raise ValueError(
        f'--distributed=auto detected no cluster ({error}); pass INDEX/COUNT@HOST:PORT instead'
      ) from error
    return
  match = re.fullmatch(r'(\d+)/(\d+)@(.+:\d+)', cluster)
  if not match or not int(match[1]) < int(match[2]):
    raise ValueError(
      f"--distributed={cluster} is not valid; pass 'auto', or INDEX/COUNT@HOST:PORT with INDEX from 0 to "
      'COUNT - 1, such as 0/2@10.0.0.1:1234'
    )
  try:
    jax.distributed.initialize(
      match[3], int(match[2]), int(match[1]), shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_SECONDS
    )
  except RuntimeError as error:
    raise ValueError(
      f'--distributed={cluster}: the processes did not find each other ({error}); give all of them the same '
      'COUNT@HOST:PORT with a free port on HOST, and each its own INDEX from 0'
    ) from error


@contextlib.contextmanager
def exit_all_on_error(command: str) -> Iterator[None]:
  """Prints any exception and exits this process at once, upon which JAX soon ends the others.

  Otherwise the other processes would wait for this one, and this one for them at Python's normal exit.

  Args:
    command: Name of the command, printed before the message.
  """
  try:
    yield
  except BaseException as error:
    message = f'{command}: {one_line(error)}' if isinstance(error, ValueError) else traceback.format_exc()
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
  """Returns the devices that belong to this process, in order."""
  return [d for d in devices if d.process_index == jax.process_index()]


def on_first_process(function: Callable[[], T]) -> T | None:
  """Calls a function on process 0 only; if it raises, all processes raise.

  Returns:
    The function's result on process 0, None on the others.

  Raises:
    Exception: On process 0, the function's own exception.
    ValueError: On the others, if process 0 raised.
  """
  result: T | None = None
  failure: Exception | None = None
  if jax.process_index() == 0:
    try:
      result = function()
    except Exception as error:
      failure = error
  if jax.process_count() > 1:
    failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failure is not None)))
    if failed and failure is None:
      raise ValueError('process 0 has failed; see its message')
  if failure is not None:
    raise failure
  return result


def broadcast_from_first(tree: Any) -> Any:
  """Returns process 0's values of a tree of arrays on every process."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))


def check_same_everywhere(name: str, text: str) -> None:
  """Raises ValueError on all processes unless all have the same text."""
  if jax.process_count() == 1:
    return
  number = np.frombuffer(hashlib.sha256(os.fsencode(text)).digest()[:4], np.int32)
  if len(set(multihost_utils.process_allgather(number).flatten().tolist())) > 1:
    raise ValueError(
      f'{name} differs between processes: process {jax.process_index()} has {text}; give all the same'
    )


class StopSignal:
  """Notes SIGTERM and SIGINT (Ctrl-C), so that a run can save before it ends.

  A second signal ends the process at once. With several processes, SIGTERM to any of them stops all at the
  same step, through JAX's preemption service.
  """

  def __init__(self) -> None:
    """Has received nothing yet; takes over the signals when entered as a context."""
    self._received: signal.Signals | None = None
    self._previous: dict[signal.Signals, Any] = {}

  @property
  def received(self) -> bool:
    """Whether this process got a signal; always False with several processes."""
    return self._received is not None

  def stops_after(self, step: int) -> bool:
    """Whether to stop after this step; all processes must ask after every step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.received

  def __enter__(self) -> Self:
    """Takes over the signals."""
    # Python lets only the main thread handle signals.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        # Ignored signals stay ignored, as for commands that a script starts in the background.
        if signal.getsignal(number) != signal.SIG_IGN:
          self._previous[number] = signal.signal(number, self._note)
    return self

  def _note(self, number: int, frame: FrameType | None) -> None:
    self._received = signal.Signals(number)
    self._restore()

  def __exit__(self, *exception: object) -> None:
    """Restores the previous signal handlers."""
    self._restore()

  def _restore(self):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
