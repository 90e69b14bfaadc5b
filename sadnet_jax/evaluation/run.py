"""A whole evaluation: every method on every set at every sigma under every protocol, and its files."""

from collections.abc import Iterator, Sequence
import dataclasses
from pathlib import Path
import re
import shlex
import sys
from typing import Any

import numpy as np
import tqdm

from sadnet_jax.data.test_sets import SIDD_FORMS, UNSCORED, find_folder
from sadnet_jax.evaluation import image_sets, results, scoring
from sadnet_jax.evaluation.methods import Method
from sadnet_jax.evaluation.page import Showcase, write_page
from sadnet_jax.evaluation.protocols import AUTHORS, PROTOCOLS, Protocol
from sadnet_jax.evaluation.results import table
from sadnet_jax.images.arrays import side_by_side, to_uint8, write_png
from sadnet_jax.machine import environment


@dataclasses.dataclass(frozen=True)
class Options:
  """What an evaluation is asked for; see the flags of evaluate.py.

  Attributes:
    datasets: Names of sets, or folders.
    data: Where sets with names are; None for SADNET_DATA.
    channels: 3 or 1; None for what the images of each set have.
    sigmas_255: Of noise to add, on the scale of 8-bit images.
    protocols: Names of those for clean images.
    output: Folder to write to.
    overwrite: Whether it may have something in it.
    keep_going: Whether to go on where something is bad.
    pictures: Whether to write the images.
    page_images: Images of each result on the page.
    sidd_forms: Of SIDD's submission.
    dnd_margin_px: Around the boxes of DND.
  """

  datasets: Sequence[str]
  data: str | None
  channels: int | None
  sigmas_255: Sequence[float]
  protocols: Sequence[str]
  output: Path
  overwrite: bool
  keep_going: bool
  pictures: bool
  page_images: int
  sidd_forms: Sequence[str]
  dnd_margin_px: int


@dataclasses.dataclass(frozen=True)
class _Line:
  """One line of the table to be, for each method."""

  image_set: image_sets.ImageSet
  channels: int
  sigma_255: float | None
  protocol: Protocol


def folder_name(
  methods: Sequence[str], datasets: Sequence[str], sigmas_255: Sequence[float], protocols: Sequence[str]
) -> str:
  """'cbsd68+kodak24-sigma30+50-unclipped', after the methods unless it is SADNet alone."""
  names = [re.sub(r'[^\w.-]+', '_', Path(d.rpartition(':')[2]).name) or 'images' for d in datasets]
  sigmas = '+'.join(f'{s:g}' for s in sigmas_255)
  # Without sigmas there is nothing that a protocol is for.
  start = '' if list(methods) == ['sadnet'] else f'{"+".join(methods)}-'
  return start + '+'.join(names) + (f'-sigma{sigmas}-{"+".join(protocols)}' if sigmas else '')


def evaluate(methods: Sequence[Method], options: Options) -> None:
  """Evaluates, prints, and writes results.json, images.csv, index.html, pictures, submissions.

  Every result is written as soon as it is there.

  Args:
    methods: Each is tried on everything.
    options: Everything else.

  Raises:
    ValueError: An option, a set or an image is not as it should be; with ``keep_going``
      at the end, if anything failed.
  """
  _check([m.name for m in methods], options)
  failures: list[results.Failure] = []

  def attempt(name, function, *arguments):
    """Calls a function; where it raises, None and a failure of that name, or the error."""
    try:
      return function(*arguments)
    except ValueError as error:
      if not options.keep_going:
        raise
      failures.append(results.Failure(name, str(error)))
      return None

  # All of it before anything is evaluated, so that what is missing is told at once.
  lines, submissions = _open(methods, options, attempt)
  writer = Output(options.output, failures)
  try:
    for method, line in lines:
      folder = writer.folder(line.image_set.title, line.sigma_255, line.protocol, method)
      writer.add(*_evaluate_line(method, line, options, folder))
    for method, dataset, data in submissions:
      if done := attempt(f'{dataset}, {method.name}', _submit, method, dataset, data, options):
        writer.add_submission(*done)
  finally:
    writer.finish()
  if failures:
    text = '\n'.join(f'  {f.name}: {f.error}' for f in failures)
    raise ValueError(f'got {len(failures)} failure(s), want none; the rest is evaluated\n{text}')


def _check(methods, options):
  choices = {
    'methods': (methods, None),
    'datasets': (options.datasets, None),
    'protocols': (options.protocols, PROTOCOLS),
    'sidd_forms': (options.sidd_forms, SIDD_FORMS),
  }
  for flag, (given, known) in choices.items():
    text = ','.join(given)
    if not given:
      raise ValueError(f'--{flag}: got nothing, want one or more')
    if len(set(given)) < len(given):
      raise ValueError(f'--{flag}: got {text}, want each once')
    for name in given:
      if known and name not in known:
        raise ValueError(f'--{flag}: got {name!r}, want some of {", ".join(known)}')
  for sigma_255 in options.sigmas_255:
    if not 0 <= sigma_255 <= 255:
      raise ValueError(f'--sigmas: got {sigma_255:g}, want numbers from 0 to 255')
  output = options.output
  if output.exists() and not output.is_dir():
    raise ValueError(f'--output: got {output}, which is a file, want a folder')
  if output.exists() and any(output.iterdir()) and not options.overwrite:
    raise ValueError(f'{output}: got a folder with something in it, want an empty one, or pass --overwrite')


def _open(methods, options, attempt):
  """Opens all sets: (method, line) of those with ground truth, (method, name, data) of the others."""
  lines, submissions = [], []
  for name in options.datasets:
    opened = attempt(name, _open_set, name, options)
    if opened is None:
      continue
    data, channels, real = opened
    fitting = [m for m in methods if attempt(f'{name}, {m.name}', _fits, m, channels, real)]
    if isinstance(data, image_sets.ImageSet):
      lines += [(method, line) for line in _lines(data, channels, options) for method in fitting]
    else:
      submissions += [(method, name, data) for method in fitting]
  return lines, submissions


def _open_set(name, options):
  """The set, the channels to evaluate it with, and whether its noise is real."""
  if name in UNSCORED:
    # SciPy and h5py are needed for these sets only.
    from sadnet_jax.evaluation import submissions

    return submissions.open_data(name, find_folder(name, options.data)), 3, True
  image_set = image_sets.open_set(name, options.data)
  if not options.keep_going:
    scoring.refuse_problems(image_set)
  # Blocks are not converted to grey.
  channels = 3 if name == 'sidd_val' else options.channels or image_set.channels
  if channels == 3 and image_set.channels == 1:
    raise ValueError(f'{name}: got grey images, want colour; for grey ones use a network with 1 channel')
  if not image_set.real and not options.sigmas_255:
    raise ValueError(f'{name}: got no sigma for the noise to add, want --sigmas, such as --sigmas=50')
  for note in image_set.notes:
    print(f'note: {note}', flush=True)
  return image_set, channels, image_set.real


def _fits(method, channels, real):
  method.check(channels, real)
  return True


def _lines(image_set, channels, options) -> Iterator[_Line]:
  if image_set.protocol is not None:
    yield _Line(image_set, channels, None, image_set.protocol)
    if AUTHORS.name in options.protocols:
      yield _Line(image_set, channels, None, AUTHORS)
  else:
    for sigma_255 in options.sigmas_255:
      for protocol in options.protocols:
        yield _Line(image_set, channels, sigma_255, PROTOCOLS[protocol])


def _evaluate_line(method, line, options, folder):
  """The result, and the images to show of it."""
  showcase = Showcase(worst=(options.page_images + 1) // 2, best=options.page_images // 2)
  text = f'{line.image_set.title} {"" if line.sigma_255 is None else f"{line.sigma_255:g} "}{method.name}'
  with tqdm.tqdm(total=len(line.image_set.images), desc=text, unit='image', disable=None) as bar:

    def on_image(scored: scoring.Scored) -> None:
      name = scored.result.name
      noisy, denoised, clean = (to_uint8(i) for i in (scored.noisy, scored.denoised, scored.clean))
      showcase.add(name, scored.result.psnr, noisy, denoised, clean)
      if options.pictures:
        # A name may have a dot in it, and none of the file's ending.
        write_png(folder / 'denoised' / f'{name}.png', denoised)
        write_png(folder / 'comparison' / f'{name}.png', side_by_side(noisy, denoised, clean))
      bar.set_postfix_str(f'{scored.result.psnr:.2f} dB', refresh=False)
      bar.update()

    result = scoring.evaluate_set(
      method,
      line.image_set,
      channels=line.channels,
      sigma_255=line.sigma_255,
      protocol=line.protocol,
      keep_going=options.keep_going,
      on_image=on_image,
    )
  return result, showcase


def _submit(method, dataset, data, options):
  """The submission, and images to show of it."""
  from sadnet_jax.evaluation import submissions

  showcase = Showcase(worst=options.page_images, best=0)
  with tqdm.tqdm(total=len(data), desc=f'{dataset} {method.name}', unit='image', disable=None) as bar:

    def on_image(name: str, noisy: np.ndarray, denoised: np.ndarray) -> None:
      showcase.add(name, None, to_uint8(noisy), to_uint8(denoised), None)
      bar.update()

    submission = submissions.submit(
      data,
      method,
      options.output / f'{dataset}-{method.name}',
      forms=options.sidd_forms,
      margin_px=options.dnd_margin_px,
      on_image=on_image,
    )
  return submission, showcase


PACKAGES = ('sadnet-jax', 'flax', 'numpy', 'pillow')


class Output:
  """The files but for pictures and submissions: all are written anew with each result."""

  def __init__(self, folder: Path, failures: list[results.Failure]):
    """Makes the folder; what is added to ``failures`` later is written, too."""
    self._output, self._failures = folder, failures
    self._results: list[results.SetResult] = []
    self._showcases: list[Showcase] = []
    self._submissions: list[Any] = []
    self._submission_showcases: list[Showcase] = []
    self._folders: set[Path] = set()
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    self._about: dict[str, Any] = {'command': f'python {command}', 'environment': environment(PACKAGES)}
    folder.mkdir(parents=True, exist_ok=True)

  def folder(self, title: str, sigma_255: float | None, protocol: Protocol, method: Method) -> Path:
    """Where the pictures of a result go; two sets of one title have two."""
    sigma = '' if sigma_255 is None else f'-sigma{sigma_255:g}'
    name = re.sub(r'[^\w.-]+', '_', title)
    path = self._output / f'{name}{sigma}-{protocol.name}-{method.name}'
    while path in self._folders:
      path = path.with_name(f'{path.name}-again')
    self._folders.add(path)
    return path

  def add(self, result: results.SetResult, showcase: Showcase) -> None:
    """Takes a result, says it, and writes all."""
    self._results.append(result)
    self._showcases.append(showcase)
    # A file that is bad is so at every sigma.
    self._failures.extend(f for f in result.failures if f not in self._failures)
    self._write()

  def add_submission(self, submission: Any, showcase: Showcase) -> None:
    """Takes a submission, says it, and writes all."""
    self._submissions.append(submission)
    self._submission_showcases.append(showcase)
    print('\n'.join(submission.checks), flush=True)
    self._write()

  def _content(self):
    return {
      **self._about,
      'results': [r.to_json() for r in self._results],
      'submissions': [dataclasses.asdict(s) for s in self._submissions],
      'failures': [dataclasses.asdict(f) for f in self._failures],
    }

  def _write(self):
    """Returns what it wrote to results.json."""
    output, content = self._output, self._content()
    results.write_json(output / results.RESULTS_FILE, content)
    results.write_csv(output / results.IMAGES_FILE, self._results)
    return content

  def finish(self) -> None:
    """Prints the table and writes the page."""
    output, content = self._output, self._write()
    showcases = [*self._showcases, *self._submission_showcases]
    size = write_page(output / results.PAGE_FILE, content, showcases)
    if self._results:
      print(table(self._results))
    page = f'{results.PAGE_FILE} to look at ({size / 1e6:.1f} MB)'
    print(f'{output}: {results.RESULTS_FILE}, {results.IMAGES_FILE}, {page}')
