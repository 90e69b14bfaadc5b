"""Results as JSON and CSV.

PSNR is over all pixels and channels of an image, in dB; SSIM has two conventions, `metrics.ssim_wang`
and `metrics.ssim_matlab`. A set's figures are the means over its images.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sadnet_jax.data.test_sets import count_of
from sadnet_jax.evaluation.image_sets import ImageSet
from sadnet_jax.evaluation.literature import PAPER, Published, published
from sadnet_jax.evaluation.protocols import Protocol
from sadnet_jax.files import write_text

RESULTS_FILE, IMAGES_FILE, PAGE_FILE = 'results.json', 'images.csv', 'index.html'


@dataclasses.dataclass(frozen=True)
class ImageResult:
  """Figures of one image, those of the noisy one beside those of the denoised.

  Attributes:
    name: Unique in its set.
    height: Rows that were measured.
    width: Columns that were measured.
    psnr_noisy: dB; infinite where the images are equal.
    psnr: dB.
    ssim_wang_noisy: None where the image is smaller than the window.
    ssim_wang: The same.
    ssim_matlab_noisy: In the other convention.
    ssim_matlab: The same.
    seconds: That the method took, without reading, noise and compilation.
  """

  name: str
  height: int
  width: int
  psnr_noisy: float
  psnr: float
  ssim_wang_noisy: float | None
  ssim_wang: float | None
  ssim_matlab_noisy: float
  ssim_matlab: float
  seconds: float


MEASURES = tuple(f.name for f in dataclasses.fields(ImageResult) if f.name not in ('name', 'height', 'width'))


@dataclasses.dataclass(frozen=True)
class Failure:
  """What could not be evaluated, and why."""

  name: str
  error: str


@dataclasses.dataclass(frozen=True)
class SetResult:
  """One method on one set.

  Attributes:
    image_set: What was evaluated.
    channels: 3 or 1.
    sigma_255: Of the noise added; None for real noise.
    protocol: Before and after the method.
    method: Its name and what else it tells.
    images: One result an image.
    failures: What is missing among them.
  """

  image_set: ImageSet
  channels: int
  sigma_255: float | None
  protocol: Protocol
  method: dict[str, Any]
  images: tuple[ImageResult, ...]
  failures: tuple[Failure, ...]

  def mean(self) -> dict[str, float | None]:
    """Each of MEASURES, averaged over the images that have it; None where none has."""
    columns = {name: [getattr(i, name) for i in self.images] for name in MEASURES}
    there = {name: [v for v in values if v is not None] for name, values in columns.items()}
    return {name: float(np.mean(values)) if values else None for name, values in there.items()}

  def published(self) -> list[Published]:
    """Published figures for the set, the paper's first."""
    return published(self.image_set.name, self.channels, self.sigma_255)

  def compared_with(self) -> Published | None:
    """The published figure of the same method, if there is one; of several the one that differs least."""
    names = {'sadnet': (PAPER,), 'bm3d': ('BM3D', 'CBM3D')}.get(self.method['name'], ())
    rows = [p for p in self.published() if p.method in names]
    return min(rows, key=lambda p: len(self.differs(p)), default=None)

  def differs(self, figure: Published) -> list[str]:
    """What of a published figure is not as here: its protocol, its images; empty if it can be compared."""
    differences = []
    if self.protocol.name not in figure.protocols:
      differences.append(f'protocol {" or ".join(figure.protocols)}')
    if not self.image_set.version.startswith(figure.version):
      differences.append(figure.version)
    if len(self.images) != (count := count_of(self.image_set.name)):
      differences.append(f'all {count} images')
    return differences

  def to_json(self) -> dict[str, Any]:
    """What is written to results.json; infinities are null there."""
    images = [{k: _finite(v) for k, v in dataclasses.asdict(i).items()} for i in self.images]
    return {
      'dataset': self.image_set.name,
      'title': self.image_set.title,
      'version': self.image_set.version,
      'notes': list(self.image_set.notes),
      'channels': self.channels,
      'sigma_255': self.sigma_255,
      'protocol': self.protocol.name,
      'protocol_text': self.protocol.text,
      'method': self.method,
      'mean': {name: _finite(value) for name, value in self.mean().items()},
      'published': [dataclasses.asdict(p) | {'differs': self.differs(p)} for p in self.published()],
      'compared_with': compared.method if (compared := self.compared_with()) else None,
      'images': images,
      'failures': [dataclasses.asdict(f) for f in self.failures],
    }


def _finite(value):
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, content: dict[str, Any]) -> None:
  """Writes JSON at once, so that no half of it is ever there."""
  write_text(path, json.dumps(content, indent=1, allow_nan=False) + '\n')


def measured_by(content: Mapping[str, Any]) -> str:
  """Command, hardware and commit of a results.json, in words."""
  environment = content['environment']
  machine = f'{environment["cores"]} cores, {environment["cpu"]}, {environment["device"]}'
  return f'`{content["command"]}`; {machine}; commit {environment["commit"][:7]}'


def write_csv(path: str | Path, results: Sequence[SetResult]) -> None:
  """Writes one line an image: set, version, sigma, protocol, method, name, size, and MEASURES."""
  buffer = io.StringIO()
  fields = [f.name for f in dataclasses.fields(ImageResult)]
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(['dataset', 'version', 'sigma_255', 'protocol', 'method', *fields])
  for r in results:
    sigma_255 = '' if r.sigma_255 is None else f'{r.sigma_255:g}'
    for image in r.images:
      start = [r.image_set.name, r.image_set.version, sigma_255, r.protocol.name, r.method['name']]
      writer.writerow([*start, *(getattr(image, f) for f in fields)])
  write_text(path, buffer.getvalue())


_HEAD = (
  'data set',
  'sigma',
  'protocol',
  'method',
  'noisy',
  'PSNR',
  'SSIM W',
  'SSIM M',
  's/image',
  'published',
  'diff',
  'of',
)
_NOTES = (
  'PSNR in dB; SSIM W: Wang et al., per channel, valid region; SSIM M: MATLAB, the colours as a volume.'
)


def table(results: Sequence[SetResult]) -> str:
  """Lines of text, with a line below for what the stars mean."""
  rows, versions, stars = [_HEAD], {}, {}
  for r in results:
    mean, figure = r.mean(), r.compared_with()
    differs = r.differs(figure) if figure else []
    star = '*' if differs else ''
    if figure and differs:
      stars[f'{r.image_set.title}, {figure.method}: {", ".join(differs)}'] = 0
    versions[f'{r.image_set.title}: {r.image_set.version}'] = 0
    rows.append(
      (
        r.image_set.title,
        'real' if r.sigma_255 is None else f'{r.sigma_255:g}',
        r.protocol.name,
        r.method['name'],
        _figure(mean['psnr_noisy'], '.3f'),
        _figure(mean['psnr'], '.3f'),
        _figure(mean['ssim_wang'], '.4f'),
        _figure(mean['ssim_matlab'], '.4f'),
        _figure(mean['seconds'], '.3g'),
        f'{figure.psnr:.2f}{star}' if figure else '-',
        f'{mean["psnr"] - figure.psnr:+.2f}{star}' if figure and mean['psnr'] is not None else '-',
        figure.method if figure else '-',
      )
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
  lines = ['  '.join(_cell(row[i], widths[i], i) for i in range(len(_HEAD))).rstrip() for row in rows]
  lines += [_NOTES, *versions]
  if stars:
    lines.append(f'* the published figure is of: {"; ".join(stars)}')
  return '\n'.join(lines)


def _figure(value, form):
  return '-' if value is None else format(value, form)


def _cell(text, width, column):
  return text.ljust(width) if column < 4 or column == len(_HEAD) - 1 else text.rjust(width)
