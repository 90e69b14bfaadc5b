"""Several processes, one run: how they find each other, and what process 0 does alone."""

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

T = TypeVar('T')


def initialize(cluster: str) -> None:
  """Joins the other processes of the run; call before anything asks for a device.

  Args:
    cluster: 'auto' where `jax.distributed.initialize` finds out by itself (Slurm,
      Open MPI, Kubernetes, Cloud TPU), or 'INDEX/COUNT@HOST:PORT' with the address of
      process 0, such as '0/2@10.0.0.1:1234'.

  Raises:
    ValueError: Another form, or processes that cannot be found.
  """
  if cluster == 'auto':
    try:
      jax.distributed.initialize(shutdown_timeout_seconds=3600)
    except (RuntimeError, ValueError) as error:
      raise ValueError(
        f"--distributed: got 'auto', but no cluster was found ({error}); want INDEX/COUNT@HOST:PORT"
      ) from error
    return
  match = re.fullmatch(r'(\d+)/(\d+)@(.+:\d+)', cluster)
  if not match or not int(match[1]) < int(match[2]):
    raise ValueError(
      f"--distributed: got {cluster!r}, want 'auto' or INDEX/COUNT@HOST:PORT, such as 0/2@10.0.0.1:1234"
    )
  try:
    # The others wait at the end while process 0 validates and saves.
    jax.distributed.initialize(match[3], int(match[2]), int(match[1]), shutdown_timeout_seconds=3600)
  except RuntimeError as error:
    raise ValueError(
      f'--distributed: got {cluster!r}, but the processes did not find each other ({error}); want the same '
      'COUNT@HOST:PORT in each of them, an INDEX of its own from 0, and a port that is free on HOST'
    ) from error


@contextlib.contextmanager
def ending_all(name: str) -> Iterator[None]:
  """Where anything is raised within, ends this process, and by its death, soon, all others.

  They would wait for it otherwise, and it for them in Python's own exit.

  Args:
    name: Of the command, before the message.
  """
  try:
    yield
  except BaseException as error:
    message = f'{name}: {error}' if isinstance(error, ValueError) else traceback.format_exc()
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
  """Those devices that are this process's, in their order."""
  return [d for d in devices if d.process_index == jax.process_index()]


def is_first() -> bool:
  """Whether this is process 0, the one that writes."""
  return jax.process_index() == 0


def on_first_process(function: Callable[[], T]) -> T | None:
  """Runs a function on process 0 only; where it fails, all processes do.

  Returns:
    What it returned, on process 0; None on the others.

  Raises:
    Exception: The function's own on process 0.
    ValueError: On the others, that there was one.
  """
  result: T | None = None
  failure: Exception | None = None
  if is_first():
    try:
      result = function()
    except Exception as error:
      failure = error
  if jax.process_count() > 1:
    failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failure is not None)))
    if failed and failure is None:
      raise ValueError('process 0 has stopped: see its message')
  if failure is not None:
    raise failure
  return result


def check_same(name: str, text: str) -> None:
  """Raises ValueError on all processes unless all have the same text."""
  if jax.process_count() == 1:
    return
  number = np.frombuffer(hashlib.sha256(text.encode()).digest()[:4], np.int32)
  if len(set(multihost_utils.process_allgather(number).flatten().tolist())) > 1:
    raise ValueError(f'{name}: got {text} on process {jax.process_index()}, want the same on all processes')


def from_first_process(tree: Any) -> Any:
  """Process 0's values of a tree of arrays, on every process."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))


class StopSignal:
  """Notes SIGTERM and SIGINT (Ctrl-C), so that a run can save before it ends.

  With several processes, SIGTERM to any of them stops all at the same step, by JAX's
  own preemption service.
  """

  def __init__(self) -> None:
    """Nothing has been received yet."""
    self._received: signal.Signals | None = None
    self._previous: dict[signal.Signals, Any] = {}

  @property
  def noted(self) -> bool:
    """Whether a signal has come; of several processes, none can tell by itself."""
    return self._received is not None

  def received(self, step: int) -> bool:
    """Whether to stop after this step; to be asked after every step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.noted

  def __enter__(self) -> Self:
    """Takes the signals over."""
    # Python lets only the main thread take signals.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._note)
    return self

  def _note(self, number: int, frame: FrameType | None) -> None:
    self._received = signal.Signals(number)
    # The second one ends the process as ever.
    signal.signal(number, self._previous[self._received])

  def __exit__(self, *exception: object) -> None:
    """Gives the signals back."""
    for number, handler in self._previous.items():
      signal.signal(number, handler)
