"""What the command shows while it works: a progress bar on a terminal, lines of text elsewhere.

Imports nothing heavy: `sadnet-denoise --help` needs this module too.
"""

from collections.abc import Sequence
from pathlib import Path
import sys
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
  """Shows finished and failed pictures and, on a terminal, the time left.

  Attributes:
    failed: Number of pictures that could not be denoised.
  """

  def __init__(self, targets: Sequence['Target'], *, quiet: bool):
    """Shows the progress bar, unless quiet or not on a terminal.

    Args:
      targets: All pictures.
      quiet: Show errors only.
    """
    self.failed = 0
    self._quiet = quiet
    self._finished = 0.0
    self._megapixels: dict[Path, float] = {}
    self._bar: Any = None
    # stderr is None where the caller closed it.
    if not quiet and sys.stderr is not None and sys.stderr.isatty():
      self._show_bar(targets)

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
    if self._bar is not None:
      self._bar.total += width * height / _MEGA - self._megapixels[target.source]
      self._megapixels[target.source] = width * height / _MEGA

  def advance(self, target: 'Target', done: int, total: int) -> None:
    """Shows that `done` of `total` network runs for a picture are finished."""
    if self._bar is not None:
      self._bar.update(self._finished + self._megapixels[target.source] * done / total - self._bar.n)

  def finish(self, target: 'Target', *, width: int, height: int, seconds: float) -> None:
    """Shows that a picture is written."""
    shown = f'{seconds:.0f}' if seconds >= 10 else f'{seconds:.1f}'
    self._print_unless_quiet(
      f'{_shown(target.source)} -> {_shown(target.output)}  {width}x{height}, {shown} s'
    )
    self._count(target)

  def note(self, path: Path, notes: Sequence[str]) -> None:
    """Shows what the user should know about a file."""
    for note in notes:
      self._print_unless_quiet(f'{_shown(path)}: {one_line(note)}')

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
    if self._bar is not None:
      self._finished += self._megapixels[target.source]
      self._bar.update(self._finished - self._bar.n)

  def _show_bar(self, targets):
    from tqdm import tqdm

    sizes = {target.source: _megapixels_by_header(target.source) for target in targets}
    known = [size for size in sizes.values() if size is not None]
    mean = sum(known) / len(known) if known else 1.0
    self._megapixels = {source: mean if size is None else size for source, size in sizes.items()}
    self._bar = tqdm(
      total=sum(self._megapixels[target.source] for target in targets),
      bar_format='{desc} {percentage:3.0f}%|{bar}| {n:.1f} of {total:.1f} megapixels, {remaining} left',
      file=sys.stderr,
      dynamic_ncols=True,
    )


def _shown(path):
  from sadnet_jax.images.reading import shown_path

  return shown_path(path)


def _megapixels_by_header(path):
  """None if the file's header does not say."""
  from PIL import Image

  try:
    # Opening a pipe would block until its other end is opened.
    if path.is_file():
      with Image.open(path) as image:
        return image.width * image.height / _MEGA
  # Whatever is wrong with the file is reported when it is read.
  except Exception:
    return None
  return None
