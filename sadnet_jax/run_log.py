"""What a training run reports: a metrics file, TensorBoard, and lines on the terminal."""

from collections.abc import Mapping
import json
import math
from pathlib import Path
import time
from typing import Self

from absl import logging
from tensorboardX import SummaryWriter

from sadnet_jax.metrics_file import METRICS_FILE, drop_lines_after
from sadnet_jax.validation import ValidationResult


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
