"""The folder of a training run: its lock, its metrics file and its log.

RUN/run.lock       locked while a process trains in the folder
RUN/run.mark.*     instead, on file systems without locks: an empty file named after host and process
RUN/metrics.jsonl  one JSON object per line: the step, and every metric
RUN/tensorboard/   the same metrics, and validation pictures
RUN/checkpoints/   see `sadnet_jax.weights.checkpoints`
"""

from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import itertools
import json
import math
import os
from pathlib import Path
import socket
import time
from typing import Any, Self

from absl import logging
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from sadnet_jax.files import write_text
from sadnet_jax.training.validation import ValidationResult

LOCK_FILE = 'run.lock'
# Takes its place on file systems without locks: run.mark.PROCESS.HOST.
MARK_FILE = 'run.mark'
METRICS_FILE = 'metrics.jsonl'
# The marks of this process.
_marks: set[Path] = set()


@contextlib.contextmanager
def open_run_folder(workdir: str | Path) -> Iterator[Path]:
  """Creates the folder and locks it; the system releases the lock however the process ends.

  On a file system without locks, a file marks the folder instead, and a warning says so.

  Raises:
    ValueError: The folder cannot be created or written to, or another process trains in it.
  """
  workdir = Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / LOCK_FILE).open('a+')
  except OSError as error:
    raise _not_writable(workdir, error) from error
  with lock, contextlib.ExitStack() as stack:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      lock.seek(0)
      raise ValueError(
        f'{workdir}: process {lock.read().strip()} is training in this folder; give another --workdir, or '
        'stop that process'
      ) from error
    except OSError as error:
      logging.warning(
        '%s: this file system has no locks (%s); a file %s.* marks the folder as in use instead',
        workdir,
        error.strerror,
        MARK_FILE,
      )
      stack.enter_context(_mark(workdir))
    try:
      lock.truncate(0)
      lock.write(str(os.getpid()))
      lock.flush()
    except OSError as error:
      raise _not_writable(workdir, error) from error
    yield workdir


@contextlib.contextmanager
def _mark(workdir):
  """Marks the folder by a file whose name has process and host; marks left by dead processes are removed.

  Every process makes its own mark before it looks for those of others. So of two that start at once, at
  least one sees the other; both may, and then neither trains.
  """
  host = socket.gethostname()
  mine = workdir.resolve() / f'{MARK_FILE}.{os.getpid()}.{host}'
  if mine in _marks:
    raise _in_use(mine)
  _marks.add(mine)
  try:
    _make_mark(mine, host)
    yield
  finally:
    _marks.discard(mine)
    with contextlib.suppress(OSError):
      mine.unlink(missing_ok=True)


def _make_mark(mine, host):
  try:
    # If it exists, it was left by a process of the same number.
    mine.touch()
    others = [mark for mark in sorted(mine.parent.glob(f'{MARK_FILE}*')) if mark != mine]
  except OSError as error:
    raise _not_writable(mine.parent, error) from error
  for mark in others:
    process, of_host = _owner(mark)
    if of_host != host or _is_alive(process):
      raise _in_use(mark)
    with contextlib.suppress(OSError):
      mark.unlink(missing_ok=True)


def _owner(mark):
  """Process and host in the name of a mark."""
  process, _, host = mark.name.removeprefix(f'{MARK_FILE}.').partition('.')
  return (process, host) if host and process.isdecimal() else ('of unknown number', 'an unknown host')


def _in_use(mark):
  process, host = _owner(mark)
  return ValueError(
    f'{mark.parent}: process {process} on {host} is training in this folder, or has just tried to start; '
    f'give another --workdir, stop that process, or delete {mark} if it has ended'
  )


def _is_alive(process):
  try:
    os.kill(int(process), 0)
  except (ProcessLookupError, ValueError):
    return False
  except PermissionError:
    return True
  return True


def _not_writable(workdir, error):
  return ValueError(
    f'{workdir}: cannot write to this folder ({error.strerror}); free some space, or give another --workdir'
  )


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
  """Reads the metrics file of a run: one dict per line, each with its ``step``.

  A line that is cut off, because the run was killed while writing it, is skipped.

  Raises:
    ValueError: The folder has no metrics file, or it cannot be read.
  """
  path = Path(run) / METRICS_FILE
  try:
    return [metrics for _, metrics in _complete_lines(path)]
  except OSError as error:
    raise ValueError(
      f'{path}: cannot be read ({error.strerror}); give the folder of a training run'
    ) from error


def drop_lines_after(run: str | Path, step: int, *, lacks_validation: bool = False) -> None:
  """Removes lines of steps after ``step``, and lines that are cut off, from a run's metrics file.

  Args:
    run: Folder of the run.
    step: The last step to keep.
    lacks_validation: Remove the validation of that step as well, which is about to be repeated.

  Raises:
    ValueError: The file cannot be read or rewritten.
  """
  path = Path(run) / METRICS_FILE
  if not path.exists():
    return

  def keeps(metrics):
    # Lines of training, also of skipped steps, have a learning rate.
    is_training = 'learning_rate' in metrics
    return metrics['step'] < step or (metrics['step'] == step and (is_training or not lacks_validation))

  try:
    write_text(path, ''.join(line for line, metrics in _complete_lines(path) if keeps(metrics)))
  except OSError as error:
    raise ValueError(
      f'{path}: cannot be rewritten ({error.strerror}); free some space on its disk'
    ) from error


def _complete_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields every complete line and its content."""
  for line in path.read_text(errors='replace').splitlines(keepends=True):
    try:
      metrics = json.loads(line) if line.endswith('\n') else None
    except ValueError:
      continue
    if isinstance(metrics, dict) and isinstance(metrics.get('step'), int):
      yield line, metrics


class RunLog:
  """Writes the metrics of a run to the terminal, to ``metrics.jsonl`` and to TensorBoard.

  Lines of steps after the restored one describe work that was lost and is about to be repeated; opening the
  log drops them.
  """

  def __init__(
    self,
    workdir: str | Path,
    step: int,
    total_steps: int,
    images_per_step: int,
    *,
    lacks_validation: bool = False,
  ):
    """Opens the log of the run in ``workdir``, restored at ``step`` (perhaps without its validation)."""
    workdir = Path(workdir)
    self._path = workdir / METRICS_FILE
    drop_lines_after(workdir, step, lacks_validation=lacks_validation)
    self._tensorboard = _TensorBoard(workdir / 'tensorboard', step)
    self._total_steps = total_steps
    self._images_per_step = images_per_step
    self.start_clock(step)

  def start_clock(self, step: int) -> None:
    """Restarts the clock for the next line's rates, to exclude compilation and validation."""
    self._step, self._time, self._waited = step, time.monotonic(), 0.0

  def add_waiting(self, seconds: float) -> None:
    """Adds time that training has waited for its next batch."""
    self._waited += seconds

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one line; its rates are over the steps since the last line or `start_clock`."""
    line = (
      f'step {step}/{self._total_steps}  loss {metrics.get("loss", math.nan):.6f}  '
      f'learning rate {metrics["learning_rate"]:.2e}'
    )
    passed = time.monotonic() - self._time
    # The first step of a process only compiles and has no rate.
    if step > self._step:
      rate = self._images_per_step * (step - self._step) / passed
      waiting = self._waited / passed
      metrics = {**metrics, 'images_per_second': rate, 'waiting_for_data': waiting}
      left = _hours_minutes_seconds((self._total_steps - step) * self._images_per_step / rate)
      line += f'  {rate:.1f} images/s, {waiting:.0%} waiting for data  {left} left'
    self.start_clock(step)
    self._add_scalars(step, metrics)
    print(line, flush=True)

  def write_validation(self, step: int, results: Mapping[str, ValidationResult]) -> None:
    """Writes the PSNR of each validation set, and its pictures to TensorBoard."""
    scores = {f'psnr/{name}': result.denoised_psnr for name, result in results.items()}
    # Equal images have infinite PSNR, which JSON cannot express.
    self._add_scalars(step, {name: score for name, score in scores.items() if math.isfinite(score)})
    for name, result in results.items():
      failed = f', without {len(result.failed)} failed' if result.failed else ''
      gain = f'{result.noisy_psnr:.3f} -> {result.denoised_psnr:.3f} dB'
      print(f'step {step}/{self._total_steps}  {name}: {gain}{failed}', flush=True)
      for picture, pixels in result.pictures.items():
        # A file's name need not be UTF-8, but a tag must.
        tag = f'{name}/{picture}'.encode(errors='backslashreplace').decode()
        self._tensorboard.write(step, summary.image(tag, pixels, dataformats='HWC'))

  def _add_scalars(self, step: int, metrics: Mapping[str, float]) -> None:
    try:
      _append_line(self._path, json.dumps({'step': step, **metrics}, allow_nan=False))
    except OSError as error:
      # A lost line is no reason to end the run.
      logging.warning('%s: could not write the line of step %d (%s)', self._path, step, error.strerror)
    self._tensorboard.write(step, *(summary.scalar(name, value) for name, value in metrics.items()))

  def __enter__(self) -> Self:
    """Returns the log itself."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Closes TensorBoard's file."""
    self._tensorboard.close()


def _append_line(path: Path, line: str) -> None:
  with path.open('a+b') as file:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    # What a full disk has cut off must not spoil this line too.
    start = b'\n' if end and file.read(1) != b'\n' else b''
    file.write(start + line.encode() + b'\n')


class _TensorBoard:
  """Writes event files without a thread, so that a full disk neither ends a run nor makes it wait.

  TensorBoard merges all files of the folder.
  """

  def __init__(self, folder: Path, step: int):
    self._folder, self._step = folder, step
    self._writer: RecordWriter | None = None

  def write(self, step: int, *summaries: Any) -> None:
    """Writes summaries of a step to the disk; logs a warning if that fails, and tries again with the next."""
    try:
      if self._writer is None:
        self._writer = self._open()
      _write_events(self._writer, *(event_pb2.Event(step=step, summary=content) for content in summaries))
      self._step = step
    except OSError as error:
      logging.warning(
        '%s: could not write the data of step %d for TensorBoard (%s)', self._folder, step, error.strerror
      )
      # TensorBoard reads a file up to the first damage.
      self.close()

  def close(self) -> None:
    """Closes the file; the next summary begins a new one."""
    if self._writer is not None:
      with contextlib.suppress(OSError):
        self._writer.close()
      self._writer = None

  def _open(self):
    self._folder.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}'
    paths = (self._folder / f'{name}.{number:04}' for number in itertools.count())
    path = next(path for path in paths if not path.exists())
    writer = RecordWriter(str(path))
    # Hides what older files hold of later steps, which were lost.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    try:
      _write_events(
        writer,
        event_pb2.Event(file_version='brain.Event:2'),
        event_pb2.Event(step=self._step + 1, session_log=start),
      )
    except OSError:
      path.unlink(missing_ok=True)
      raise
    return writer


def _write_events(writer, *events):
  for event in events:
    event.wall_time = time.time()
    writer.write(event.SerializeToString())
  writer.flush()


def _hours_minutes_seconds(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
