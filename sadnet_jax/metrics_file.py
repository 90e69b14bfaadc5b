"""The metrics file of a run: one JSON object a line, of a step and its metrics."""

from collections.abc import Iterator
import json
from pathlib import Path
from typing import Any

from sadnet_jax.files import write_text

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
