"""The published weights: the index of the folder ``pretrained``, with the purpose and hash of each file."""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from sadnet_jax.files import write_text

FOLDER = Path(__file__).parent / 'pretrained'
INDEX_FILE = 'index.json'
# Tasks that weights can be the default for, and the channels they may have: colour weights serve grey
# pictures too (sadnet_jax/denoise/grey.py). 'fast': colour pictures where time matters more than quality.
TASKS = {'color': (3,), 'gray': (1, 3), 'fast': (3,)}


@dataclasses.dataclass(frozen=True)
class Noise:
  """The noise that weights were trained on.

  Attributes:
    kind: 'gaussian', 'real', or 'mixed' for patches of several kinds.
    sigma_255: Lowest and highest standard deviation of the Gaussian noise on the scale of 8-bit images; None
      for real noise.
    clipped: Fraction of the images with Gaussian noise that were clipped to [0, 1] in training; None for real
      noise.
    shares: For mixed noise, the share of the patches of each kind: 'pairs' (real noise), 'camera', 'grain'
      (blurred Gaussian noise), 'gaussian' and 'none', adding up to 1. None for a single kind.
  """

  kind: str
  sigma_255: tuple[float, float] | None = None
  clipped: float | None = None
  shares: Mapping[str, float] | None = None

  def __str__(self) -> str:
    """Like 'Gaussian noise of sigma 50, not clipped'."""
    if self.sigma_255 is None:
      return f'{self.kind} noise'
    low, high = self.sigma_255
    sigma = f'{low:g}' if low == high else f'{low:g} to {high:g}'
    share = self.clipped or 0.0
    clipped = {0.0: 'not clipped', 1.0: 'clipped'}.get(share, f'{share:.0%} clipped')
    if self.shares is None:
      return f'Gaussian noise of sigma {sigma}, {clipped}'
    words = {
      'pairs': 'real pairs',
      'camera': 'camera noise',
      'gaussian': f'Gaussian noise of sigma {sigma} ({clipped})',
      'grain': 'correlated Gaussian noise',
      'none': 'no noise',
    }
    return ', '.join(f'{share:.0%} {words[kind]}' for kind, share in self.shares.items())


@dataclasses.dataclass(frozen=True)
class Entry:
  """Published weights.

  Attributes:
    name: The name to load them by.
    file: File name, in the folder of the index.
    sha256: SHA-256 of the file, hexadecimal.
    bytes: Size of the file.
    summary: One line.
    channels: Image channels, 3 or 1.
    noise: The noise they were trained on.
    measured: The first result of their card, in words.
    default_for: The tasks they are the default for, of `TASKS`.
  """

  name: str
  file: str
  sha256: str
  bytes: int
  summary: str
  channels: int
  noise: Noise
  measured: str
  default_for: tuple[str, ...] = ()

  @property
  def task(self) -> str:
    """Like 'colour, Gaussian noise of sigma 50, not clipped'."""
    colour = {1: 'grey', 3: 'colour'}.get(self.channels, f'{self.channels} channels')
    return f'{colour}, {self.noise}'

  @property
  def default(self) -> str:
    """Like 'default for colour pictures'; empty if they are no default."""
    words = {
      'color': 'colour pictures',
      'gray': 'grey pictures',
      'fast': 'colour pictures with --quality fast',
    }
    return f'default for {", ".join(words[task] for task in self.default_for)}' if self.default_for else ''

  def __str__(self) -> str:
    """One line: name, channels, noise, size, summary, result."""
    default = f'; {self.default}' if self.default else ''
    size = f'{self.bytes / 1e6:.1f} MB'
    return f'{self.name}: {self.task}; {size}{default}. {self.summary} {self.measured}.'


def available() -> dict[str, Entry]:
  """Returns the weights that ship with the package: name -> entry."""
  return read_index(FOLDER)


def read_index(folder: str | Path) -> dict[str, Entry]:
  """Reads the index of a folder; empty if there is none.

  Raises:
    ValueError: The index is damaged.
  """
  path = Path(folder) / INDEX_FILE
  if not path.exists():
    return {}
  try:
    return {name: _entry(name, fields) for name, fields in json.loads(path.read_text()).items()}
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise ValueError(f'{path}: the index is damaged ({error}); reinstall sadnet-jax') from error


def _entry(name, fields):
  noise = fields['noise']
  if 'sigma_255' in noise:
    low, high = noise['sigma_255']
    noise = {**noise, 'sigma_255': (low, high)}
  parts = {'noise': Noise(**noise), 'default_for': tuple(fields['default_for'])}
  return Entry(name=name, **{**fields, **parts})


def write_index(folder: str | Path, entries: Mapping[str, Entry]) -> None:
  """Writes the index of a folder, sorted by name."""
  content: dict[str, Any] = {}
  for name in sorted(entries):
    content[name] = dataclasses.asdict(entries[name])
    del content[name]['name']
    noise = content[name]['noise']
    content[name]['noise'] = {field: value for field, value in noise.items() if value is not None}
  write_text(Path(folder) / INDEX_FILE, json.dumps(content, indent=1) + '\n')


def file_sha256(path: str | Path) -> str:
  """Returns the SHA-256 of a file, hexadecimal."""
  with Path(path).open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
