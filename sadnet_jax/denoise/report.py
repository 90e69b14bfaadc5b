"""What the command tells while it works: a bar on a terminal, lines elsewhere."""

from collections.abc import Sequence
from pathlib import Path
import sys
from typing import Any

from sadnet_jax.denoise.targets import Target
from sadnet_jax.images.reading import shown_path

COMMAND = 'sadnet-denoise'
_LONGEST = 600


def tell(text: str) -> None:
  """Prints an error."""
  print(f'{COMMAND}: {one_line(text)}', file=sys.stderr, flush=True)


def one_line(text: str) -> str:
  """A text without line ends and control characters, cut off where it is very long."""
  line = ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())
  return line if len(line) <= _LONGEST else f'{line[:_LONGEST]}...'


_MEGA = 1e6


class Report:
  """Tells what is done, what failed, and, on a terminal, how long the rest takes.

  Attributes:
    failed: Pictures that are not.
  """

  def __init__(self, targets: Sequence[Target], *, quiet: bool):
    """Shows the bar, unless quiet or not on a terminal."""
    self.failed = 0
    self._quiet = quiet
    self._finished = 0.0
    self._pixels: dict[Path, float] = {}
    self._bar: Any = None
    # None where the caller closed it.
    if not quiet and sys.stderr is not None and sys.stderr.isatty():
      self._show_bar(targets)

  def __enter__(self):
    """The report itself."""
    return self

  def __exit__(self, *_):
    """Leaves the bar as it is."""
    if self._bar is not None:
      self._bar.close()

  def starts(self, target: Target) -> None:
    """A picture's turn."""
    if self._bar is not None:
      self._bar.set_description_str(one_line(target.source.name)[-30:])

  def has_size(self, target: Target, width: int, height: int) -> None:
    """A picture is read; files' headers do not always tell, or not the truth."""
    if self._bar is not None:
      self._bar.total += width * height / _MEGA - self._pixels[target.source]
      self._pixels[target.source] = width * height / _MEGA

  def goes_on(self, target: Target, done: int, total: int) -> None:
    """So many of all runs of the network for a picture are done."""
    if self._bar is not None:
      self._bar.update(self._finished + self._pixels[target.source] * done / total - self._bar.n)

  def ends(self, target: Target, *, width: int, height: int, seconds: float) -> None:
    """A picture is written."""
    took = f'{seconds:.0f}' if seconds >= 10 else f'{seconds:.1f}'
    self._line(f'{shown_path(target.source)} -> {shown_path(target.output)}  {width}x{height}, {took} s')
    self._advance(target)

  def notes(self, path: Path, notes: Sequence[str]) -> None:
    """What a picture's user should know of it."""
    for note in notes:
      self._line(f'{shown_path(path)}: {one_line(note)}')

  def fails(self, target: Target, text: str) -> None:
    """A picture is not written: tells why, even if quiet."""
    self.failed += 1
    self._write(f'{COMMAND}: {text}')
    self._advance(target)

  def _line(self, text):
    if not self._quiet:
      self._write(text)

  def _write(self, text):
    if self._bar is None:
      print(text, file=sys.stderr, flush=True)
    else:
      self._bar.write(text, file=sys.stderr)

  def _advance(self, target):
    if self._bar is not None:
      self._finished += self._pixels[target.source]
      self._bar.update(self._finished - self._bar.n)

  def _show_bar(self, targets):
    from tqdm import tqdm

    sizes = {target.source: _megapixels(target.source) for target in targets}
    known = [size for size in sizes.values() if size is not None]
    typical = sum(known) / len(known) if known else 1.0
    self._pixels = {source: typical if size is None else size for source, size in sizes.items()}
    self._bar = tqdm(
      total=sum(self._pixels[target.source] for target in targets),
      bar_format='{desc} {percentage:3.0f}%|{bar}| {n:.1f} of {total:.1f} megapixels, {remaining} left',
      file=sys.stderr,
      dynamic_ncols=True,
    )


def _megapixels(path):
  """By the file's header, None if it does not tell."""
  from PIL import Image

  try:
    # Opening a pipe would wait for its other end.
    if path.is_file():
      with Image.open(path) as image:
        return image.width * image.height / _MEGA
  # Whatever is wrong with it is told when it is read.
  except Exception:
    return None
  return None
