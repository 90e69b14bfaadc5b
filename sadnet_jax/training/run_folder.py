"""The folder of a training run: made, writable, and of one run at a time."""

from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import json
import math
import os
from pathlib import Path
import time
from typing import Any, Self

from absl import logging
from tensorboardX import SummaryWriter

from sadnet_jax.files import write_text
from sadnet_jax.training.validation import ValidationResult

LOCK_FILE = 'run.lock'


@contextlib.contextmanager
def open_run_folder(workdir: str | Path) -> Iterator[Path]:
  """Makes the folder and holds its lock; the system drops the lock however the process ends.

  Raises:
    ValueError: The folder cannot be made or written to, or another process trains in it.
  """
  workdir = Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / LOCK_FILE).open('a+')
  except OSError as error:
    raise _not_writable(workdir, error) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      lock.seek(0)
      raise ValueError(
        f'{workdir}: got a folder that process {lock.read().strip()} is training in, want a folder for each '
        'run: give another --workdir, or stop that process'
      ) from error
    try:
      lock.truncate(0)
      lock.write(str(os.getpid()))
      lock.flush()
    except OSError as error:
      raise _not_writable(workdir, error) from error
    yield workdir


def _not_writable(workdir, error):
  return ValueError(
    f'{workdir}: got a folder that cannot be written to ({error.strerror}), want one for the run, with room '
    'on its disk: make room, or give another --workdir'
  )


class RunLog:
  """Writes the metrics of a run, and continues where a restored run stands.

  ``metrics.jsonl`` has one JSON object a line: the step, and every metric. Lines
  beyond the restored step belong to work that was lost; they are dropped when the
  log is opened, since that work is about to be done again.
  """

  def __init__(self, workdir: str | Path, step: int, total_steps: int, images_per_step: int):
    """Opens the log of the run in ``workdir``, which stands at ``step``."""
    workdir = Path(workdir)
    self._path = workdir / METRICS_FILE
    drop_lines_after(workdir, step)
    # Not continued in the restored run's file: TensorBoard merges files, and
    # purge_step hides what the lost work had written.
    self._tensorboard = SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)
    self._total_steps = total_steps
    self._images_per_step = images_per_step
    self.start_clock(step)

  def start_clock(self, step: int) -> None:
    """Starts the time that the next line's rates are over, after compilation or validation."""
    self._step, self._time, self._waited = step, time.monotonic(), 0.0

  def wait(self, seconds: float) -> None:
    """Counts time that training has waited for its next batch."""
    self._waited += seconds

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds one line everywhere; its rates are over the steps since the last line or `start_clock`."""
    line = (
      f'step {step}/{self._total_steps}  loss {metrics.get("loss", math.nan):.6f}  '
      f'learning rate {metrics["learning_rate"]:.2e}'
    )
    passed = time.monotonic() - self._time
    # None have passed at the very first step, which only compiled.
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
    """Adds what validation measured: a line for each set, its pictures to TensorBoard."""
    scores = {f'psnr/{name}': result.denoised_psnr for name, result in results.items()}
    # JSON has no infinity, which equal images would give.
    self._add_scalars(step, {name: score for name, score in scores.items() if math.isfinite(score)})
    for name, result in results.items():
      print(
        f'step {step}/{self._total_steps}  {name}: {result.noisy_psnr:.3f} -> {result.denoised_psnr:.3f} dB',
        flush=True,
      )
      for picture, pixels in result.pictures.items():
        self._tensorboard.add_image(f'{name}/{picture}', pixels, step, dataformats='HWC')

  def _add_scalars(self, step: int, metrics: Mapping[str, float]) -> None:
    try:
      with self._path.open('a') as file:
        file.write(json.dumps({'step': step, **metrics}, allow_nan=False) + '\n')
    except OSError as error:
      # The weights are worth more than a line of the log.
      logging.warning('%s: the line of step %d could not be written (%s)', self._path, step, error.strerror)
    for name, value in metrics.items():
      self._tensorboard.add_scalar(name, value, step)

  def __enter__(self) -> Self:
    """The log itself."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Writes out what TensorBoard's writer still holds."""
    try:
      self._tensorboard.close()
    except OSError as error:
      logging.warning('%s: what is left for TensorBoard could not be written (%s)', self._path.parent, error)


def _hours_minutes_seconds(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'


METRICS_FILE = 'metrics.jsonl'


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
  """The lines of a run's metrics file, in their order, each with its ``step``.

  A line that a killed run or a power cut left unfinished is left out.

  Raises:
    ValueError: The folder has no such file, or it cannot be read.
  """
  path = Path(run) / METRICS_FILE
  try:
    return [metrics for _, metrics in _whole_lines(path)]
  except OSError as error:
    raise ValueError(
      f'{path}: got no file that can be read ({error.strerror}), want that of a training run'
    ) from error


def drop_lines_after(run: str | Path, step: int) -> None:
  """Drops the lines of later steps than ``step`` from a run's metrics file, and unfinished ones.

  Raises:
    ValueError: The file cannot be read or written.
  """
  path = Path(run) / METRICS_FILE
  if not path.exists():
    return
  try:
    write_text(path, ''.join(line for line, metrics in _whole_lines(path) if metrics['step'] <= step))
  except OSError as error:
    raise ValueError(
      f'{path}: got a file that cannot be written again ({error.strerror}), want room on its disk'
    ) from error


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Every line that is whole, with what it says."""
  for line in path.read_text(errors='replace').splitlines(keepends=True):
    try:
      metrics = json.loads(line) if line.endswith('\n') else None
    except ValueError:
      continue
    if isinstance(metrics, dict) and isinstance(metrics.get('step'), int):
      yield line, metrics
