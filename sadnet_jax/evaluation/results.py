"""The results of an evaluation: per image, per set, and as JSON, CSV and a table.

PSNR is in dB, over all pixels and channels of an image. SSIM has two conventions, `metrics.ssim_wang` and
`metrics.ssim_matlab`. The result of a set is the mean over its images.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import json
import math
from pathlib import Path
import re
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from sadnet_jax.data.folders import data_root
from sadnet_jax.data.test_sets import count_of
from sadnet_jax.evaluation.image_sets import ImageSet
from sadnet_jax.evaluation.literature import PAPER, Published, published
from sadnet_jax.evaluation.protocols import Protocol
from sadnet_jax.files import write_text

RESULTS_FILE, IMAGES_FILE, PAGE_FILE = 'results.json', 'images.csv', 'index.html'


@dataclasses.dataclass(frozen=True)
class ImageResult:
  """Metrics of one image, before and after denoising.

  Attributes:
    name: Unique in its set.
    height: Number of measured rows.
    width: Number of measured columns.
    psnr_noisy: PSNR of the noisy image in dB; infinite if it equals the clean one.
    psnr: The same for the denoised image.
    ssim_wang_noisy: SSIM (Wang) of the noisy image; None if the image is smaller than the window.
    ssim_wang: The same for the denoised image.
    ssim_matlab_noisy: SSIM (MATLAB) of the noisy image.
    ssim_matlab: The same for the denoised image.
    seconds: Time the method took, without reading, adding noise, and compiling (except for images in tiles
      where more than `methods.MAX_SIZES` sizes share programs: the first of each program includes that).
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
  """An image, set or submission that could not be evaluated, and why."""

  name: str
  error: str


@dataclasses.dataclass(frozen=True)
class SetResult:
  """One method on one set.

  Attributes:
    image_set: The images.
    channels: 3 or 1.
    sigma_255: Standard deviation of the added noise; None for real noise.
    protocol: What was done before and after the method.
    method: What the method says about itself: at least its 'name'.
    images: One result per evaluated image.
    failures: Images without a result.
  """

  image_set: ImageSet
  channels: int
  sigma_255: float | None
  protocol: Protocol
  method: dict[str, Any]
  images: tuple[ImageResult, ...]
  failures: tuple[Failure, ...]

  def mean(self) -> dict[str, float | None]:
    """Returns the mean of each of MEASURES over the images that have it; None if none has."""
    columns = {name: [getattr(i, name) for i in self.images] for name in MEASURES}
    known = {name: [v for v in values if v is not None] for name, values in columns.items()}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}

  def published(self) -> list[Published]:
    """Returns the published results for the set, the paper's first."""
    return published(self.image_set.name, self.channels, self.sigma_255)

  def compared_with(self) -> Published | None:
    """Returns the published result of the same method, if any: of several the most comparable."""
    names = {'sadnet': (PAPER,), 'bm3d': ('BM3D', 'CBM3D')}.get(self.method['name'], ())
    rows = [p for p in self.published() if p.method in names]
    return min(rows, key=lambda p: len(self.differences(p)), default=None)

  def differences(self, other: Published) -> list[str]:
    """Returns what a published result was measured on instead; empty if it is comparable."""
    differences = []
    if self.protocol.name not in other.protocols:
      differences.append(f'protocol {" or ".join(other.protocols)}')
    if not self.image_set.version.startswith(other.version):
      differences.append(other.version)
    if len(self.images) != (count := count_of(self.image_set.name)):
      differences.append(f'all {count} images')
    return differences

  def to_json(self) -> dict[str, Any]:
    """Returns the content for results.json, where infinity becomes null."""
    images = [{k: _finite_or_none(v) for k, v in dataclasses.asdict(i).items()} for i in self.images]
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
      'mean': {name: _finite_or_none(value) for name, value in self.mean().items()},
      'published': [dataclasses.asdict(p) | {'differs': self.differences(p)} for p in self.published()],
      'compared_with': compared.method if (compared := self.compared_with()) else None,
      'images': images,
      'failures': [dataclasses.asdict(f) for f in self.failures],
    }


def _finite_or_none(value):
  return None if isinstance(value, float) and not math.isfinite(value) else value


def measured_by(content: Mapping[str, Any]) -> str:
  """Returns command, hardware and commit of a results.json as text."""
  environment = content['environment']
  machine = f'{environment["cores"]} cores, {environment["cpu"]}, {environment["device"]}'
  return f'`{content["command"]}`; {machine}; commit {environment["commit"][:7]}'


# Matches where an absolute path can begin, but not inside a relative one.
_BEFORE_PATH = r'(?<![\w/.~-])'
# A URL, or an absolute path: the names of its folders may contain spaces.
_LOCATION = re.compile(
  rf"""[A-Za-z][\w+.-]*://[^\s'"<>]+ | {_BEFORE_PATH}/(?:[^/\n'",;:()=]+/)*[^\s/'",;:()]+/?""", re.VERBOSE
)


def shareable(value: Any, root: str | Path | None = None) -> Any:
  """Returns JSON content that says nothing about where files lie on this machine, and holds no secrets.

  Results are published. In all strings, absolute paths become relative to the working folder, the clone or
  the root of the data sets if they are below one of them, and otherwise the name of the file. URLs lose
  user, password and query, where signed URLs have their signature.

  Args:
    value: Strings, numbers and None, in dicts and lists.
    root: Folder of the data sets; None for the environment variable SADNET_DATA.
  """
  if isinstance(value, Mapping):
    return {key: shareable(item, root) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [shareable(item, root) for item in value]
  if not isinstance(value, str):
    return value
  clone = Path(__file__).parents[2]
  for folder in (root or data_root() or '', Path.cwd(), clone):
    if len(Path(folder).parts) > 1 and Path(folder).is_absolute():
      value = re.sub(rf'{_BEFORE_PATH}{re.escape(str(Path(folder)))}/', '', value)
  return _LOCATION.sub(_shareable_location, value)


def shareable_result(result: SetResult, root: str | Path | None = None) -> dict[str, Any]:
  """`SetResult.to_json` made `shareable`, except for names of images, which are relative to their set."""
  content = shareable(result.to_json(), root)
  for item, image in zip(content['images'], result.images, strict=True):
    item['name'] = image.name
  names = {image.name for image in result.image_set.images}
  for item, failure in zip(content['failures'], result.failures, strict=True):
    # Others are the paths of files that are no image of the set.
    if failure.name in names:
      item['name'] = failure.name
  return content


def _shareable_location(match: re.Match[str]) -> str:
  location = match[0]
  if '://' not in location:
    return Path(location).name
  parts = urlsplit(location)
  if parts.scheme == 'hf':
    # Upper and lower case of the owner count, and the part before an @ is no user.
    return f'hf://{parts.netloc}{parts.path}'
  return Path(parts.path).name if parts.scheme == 'file' else f'{parts.scheme}://{parts.hostname}{parts.path}'


def write_json(path: str | Path, content: dict[str, Any]) -> None:
  """Writes a JSON file, completely or not at all."""
  write_text(path, json.dumps(content, indent=1, allow_nan=False) + '\n')


def write_csv(path: str | Path, results: Sequence[SetResult]) -> None:
  """Writes a row per image: set, version, sigma, protocol, method, name, size, and MEASURES."""
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


_HEADER = (
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
  'by',
)
_LEGEND = (
  'PSNR in dB; SSIM W: Wang et al., per channel, valid region; SSIM M: MATLAB, the colours as a volume.'
)


def format_table(results: Sequence[SetResult]) -> str:
  """Returns a text table, with the published result of the same method beside each row.

  A star marks a published result of another protocol or other images; a line below the table says which.
  """
  rows, versions, differing = [_HEADER], {}, {}
  for r in results:
    mean, other = r.mean(), r.compared_with()
    differences = r.differences(other) if other else []
    star = '*' if differences else ''
    if other and differences:
      differing[f'{r.image_set.title}, {other.method}: {", ".join(differences)}'] = 0
    versions[f'{r.image_set.title}: {r.image_set.version}'] = 0
    rows.append(
      (
        r.image_set.title,
        'real' if r.sigma_255 is None else f'{r.sigma_255:g}',
        r.protocol.name,
        r.method['name'],
        _format(mean['psnr_noisy'], '.3f'),
        _format(mean['psnr'], '.3f'),
        _format(mean['ssim_wang'], '.4f'),
        _format(mean['ssim_matlab'], '.4f'),
        _format(mean['seconds'], '.3g'),
        f'{other.psnr:.2f}{star}' if other else '-',
        f'{mean["psnr"] - other.psnr:+.2f}{star}' if other and mean['psnr'] is not None else '-',
        other.method if other else '-',
      )
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
  lines = ['  '.join(_align(row[i], widths[i], i) for i in range(len(_HEADER))).rstrip() for row in rows]
  lines += [_LEGEND, *versions]
  if differing:
    lines.append(f'* the published result is for: {"; ".join(differing)}')
  return '\n'.join(lines)


def _format(value, form):
  return '-' if value is None else format(value, form)


def _align(text, width, column):
  return text.ljust(width) if column < 4 or column == len(_HEADER) - 1 else text.rjust(width)
