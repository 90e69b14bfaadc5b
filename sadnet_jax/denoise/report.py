"""What the command shows while it works: a progress bar on a terminal, lines of text elsewhere.

Imports nothing heavy: `sadnet-denoise --help` needs this module too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
import sys
import time
from typing import TYPE_CHECKING, Any

from sadnet_jax.files import one_line

if TYPE_CHECKING:
  from sadnet_jax.denoise.targets import Target

COMMAND = 'sadnet-denoise'
_MEGA = 1e6


def print_error(text: str) -> None:
  """Prints an error as one line."""
  print(f'{COMMAND}: {one_line(text)}', file=sys.stderr, flush=True)


class Report:
  """Shows finished and failed pictures, the time left for all of them, and at the end a summary.

  Attributes:
    failed: Number of pictures that could not be denoised.
  """

  def __init__(
    self,
    targets: Sequence['Target'],
    sizes: Mapping[Path, tuple[int, int] | None],
    *,
    quiet: bool,
    skipped: int = 0,
  ):
    """Shows the progress bar, unless quiet or not on a terminal.

    Args:
      targets: All pictures.
      sizes: (height, width) of each picture's source; None where it is not known.
      quiet: Show errors only.
      skipped: Number of pictures that are already denoised and not among the targets.
    """
    self.failed = 0
    self._quiet = quiet
    self._pictures, self._done, self._skipped = len(targets), 0, skipped
    self._start = time.monotonic()
    known = {source: size[0] * size[1] / _MEGA for source, size in sizes.items() if size is not None}
    mean = sum(known.values()) / len(known) if known else 1.0
    self._megapixels = {target.source: known.get(target.source, mean) for target in targets}
    self._finished, self._total = 0.0, sum(self._megapixels[target.source] for target in targets)
    self._bar: Any = None
    # stderr is None where the caller closed it.
    if not quiet and sys.stderr is not None and sys.stderr.isatty():
      self._show_bar()

  def __enter__(self):
    """Returns the report itself."""
    return self

  def __exit__(self, *_):
    """Leaves the bar on the screen."""
    if self._bar is not None:
      self._bar.close()

  def start(self, target: 'Target') -> None:
    """Shows which picture is next."""
    if self._bar is not None:
      self._bar.set_description_str(one_line(target.source.name)[-30:])

  def set_size(self, target: 'Target', width: int, height: int) -> None:
    """Corrects the total once a picture is read: its header may be missing or wrong."""
    self._total += width * height / _MEGA - self._megapixels[target.source]
    self._megapixels[target.source] = width * height / _MEGA
    if self._bar is not None:
      self._bar.total = self._total

  def advance(self, target: 'Target', done: int, total: int) -> None:
    """Shows that `done` of `total` network runs for a picture are finished."""
    if self._bar is not None:
      self._bar.update(self._finished + self._megapixels[target.source] * done / total - self._bar.n)

  def finish(self, target: 'Target', *, width: int, height: int, seconds: float) -> None:
    """Shows that a picture is written and, unless the bar does, how long the others will take."""
    self._count(target)
    left = '' if self._bar is not None or self._pictures == 1 else f'  ({self._progress()})'
    self._print_unless_quiet(
      f'{_shown(target.source)} -> {_shown(target.output)}  {width}x{height}, {duration(seconds)}{left}'
    )

  def summarize(self) -> None:
    """Shows one line about all pictures; if quiet, only if some failed. A single picture has its own line."""
    given = self._pictures + self._skipped
    if given < 2 or (self._quiet and not self.failed):
      return
    denoised = f'{self._done - self.failed} of {given} pictures denoised'
    parts = [f'{denoised} in {duration(time.monotonic() - self._start)}']
    parts += [f'{self.failed} failed'] * bool(self.failed)
    parts += [f'{self._skipped} skipped because their output exists'] * bool(self._skipped)
    self._print(f'{COMMAND}: {", ".join(parts)}')

  def note(self, path: Path, notes: Sequence[str]) -> None:
    """Shows what the user should know about a file."""
    for note in notes:
      self._print_unless_quiet(f'{_shown(path)}: {one_line(note)}')

  def skip(self, target: 'Target') -> None:
    """Counts a picture whose output has appeared since the start."""
    self._pictures -= 1
    self._skipped += 1
    self._total -= self._megapixels[target.source]
    if self._bar is not None:
      self._bar.total = self._total

  def fail(self, target: 'Target', text: str) -> None:
    """Shows why a picture could not be denoised, even if quiet."""
    self.failed += 1
    self._print(f'{COMMAND}: {text}')
    self._count(target)

  def _print_unless_quiet(self, text):
    if not self._quiet:
      self._print(text)

  def _print(self, text):
    if self._bar is None:
      print(text, file=sys.stderr, flush=True)
    else:
      self._bar.write(text, file=sys.stderr)

  def _count(self, target):
    self._done += 1
    self._finished += self._megapixels[target.source]
    if self._bar is not None:
      self._bar.update(self._finished - self._bar.n)

  def _progress(self):
    """For example '3 of 1000, 12 min left', from the mean speed so far in pixels."""
    count = f'{self._done} of {self._pictures}'
    if self._done == self._pictures or not self._finished:
      return count
    elapsed = time.monotonic() - self._start
    return f'{count}, {duration(elapsed * (self._total / self._finished - 1))} left'

  def _show_bar(self):
    from tqdm import tqdm

    self._bar = tqdm(
      total=self._total,
      bar_format='{desc} {percentage:3.0f}%|{bar}| {n:.1f} of {total:.1f} megapixels, {remaining} left',
      # The mean speed since the start: that of single runs swings between compiling and denoising.
      smoothing=0,
      file=sys.stderr,
      dynamic_ncols=True,
    )


def duration(seconds):
  """Seconds in words, for example '1.2 s', '34 s', '12 min' or '3 h 05 min'."""
  if seconds < 10:
    return f'{seconds:.1f} s'
  if seconds < 100:
    return f'{seconds:.0f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes:02} min' if hours else f'{minutes} min'


def _shown(path):
  from sadnet_jax.images.reading import shown_path

  return shown_path(path)
