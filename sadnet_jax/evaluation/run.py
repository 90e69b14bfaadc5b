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
from sadnet_jax.evaluation.protocols import AUTHORS, PROTOCOLS, UNCLIPPED, Protocol
from sadnet_jax.images.arrays import side_by_side, write_png
from sadnet_jax.images.photograph import to_8_bits
from sadnet_jax.machine import environment

# Packages whose versions are recorded with the results, besides JAX.
PACKAGES = ('sadnet-jax', 'flax', 'numpy', 'pillow')


@dataclasses.dataclass(frozen=True)
class Options:
  """What to evaluate and what to write; see the flags of evaluate.py.

  Attributes:
    datasets: Names of sets, or folders.
    output: Folder to write to.
    data: Folder of the sets known by name; None for SADNET_DATA.
    channels: 3 or 1; None for the channels of each set.
    sigmas_255: Standard deviations of the noise to add, on the scale of 8-bit images.
    protocols: Names of the protocols for clean images; 'authors' also measures real pairs a second time.
    overwrite: Whether the folder may contain files already.
    keep_going: Whether to record failures and continue.
    pictures: Whether to write the images.
    page_images: Images of each result on the page.
    sidd_forms: Forms of the submission to SIDD.
    dnd_margin_px: Context around the boxes of DND.
  """

  datasets: Sequence[str]
  output: Path
  data: str | None = None
  channels: int | None = None
  sigmas_255: Sequence[float] = ()
  protocols: Sequence[str] = (UNCLIPPED.name,)
  overwrite: bool = False
  keep_going: bool = False
  pictures: bool = True
  page_images: int = 8
  sidd_forms: Sequence[str] = ('csv',)
  dnd_margin_px: int = 64


def folder_name(
  methods: Sequence[str], datasets: Sequence[str], sigmas_255: Sequence[float], protocols: Sequence[str]
) -> str:
  """Returns a name such as 'cbsd68+kodak24-sigma30+50-unclipped', led by methods other than SADNet.

  Without sigmas there are no clean images, and of the protocols only the authors' makes a difference.
  """
  names = [re.sub(r'[^\w.-]+', '_', Path(d.rpartition(':')[2]).name) or 'images' for d in datasets]
  sigmas = '+'.join(f'{s:g}' for s in sigmas_255)
  start = [] if list(methods) == ['sadnet'] else ['+'.join(methods)]
  used = protocols if sigmas else [name for name in protocols if name == AUTHORS.name]
  noise = [f'sigma{sigmas}'] if sigmas else []
  return '-'.join([*start, '+'.join(names), *noise, *(['+'.join(used)] if used else [])])


def evaluate(methods: Sequence[Method], options: Options) -> None:
  """Evaluates, prints a table, and writes results.json, images.csv, index.html, pictures, submissions.

  results.json and images.csv are rewritten after every result, so that an interruption loses little.

  Args:
    methods: Each is evaluated on everything.
    options: What to evaluate and what to write.

  Raises:
    ValueError: An option, a set or an image is wrong; with ``keep_going`` at the end, if anything failed.
  """
  _check_options([m.name for m in methods], options)
  failures: list[results.Failure] = []

  def attempt(name, function, *arguments):
    """Calls the function; with ``keep_going``, a ValueError is recorded under the name and gives None."""
    try:
      return function(*arguments)
    except ValueError as error:
      if not options.keep_going:
        raise
      failures.append(results.Failure(name, str(error)))
      return None

  # All sets are opened before anything is evaluated, so that a missing one is reported at once.
  runs, submissions = _open_sets(methods, options, attempt)
  output = _OutputFolder(options, failures)
  try:
    for method, run in runs:
      folder = output.pictures_folder(run, method)
      output.add_result(*_evaluate_one(method, run, options, folder))
    for method, dataset, data in submissions:
      if done := attempt(f'{dataset}, {method.name}', _submit, method, dataset, data, options):
        output.add_submission(*done)
    output.is_complete = True
  finally:
    output.finish()
  if failures:
    text = '\n'.join(f'  {f.name}: {f.error}' for f in failures)
    raise ValueError(f'{len(failures)} failure(s); everything else has been evaluated\n{text}')


@dataclasses.dataclass(frozen=True)
class _Run:
  """What a method is evaluated on for one row of the table."""

  image_set: image_sets.ImageSet
  channels: int
  sigma_255: float | None
  protocol: Protocol


def _check_options(methods, options):
  choices = {
    'methods': (methods, None),
    'datasets': (options.datasets, None),
    'protocols': (options.protocols, PROTOCOLS),
    'sidd_forms': (options.sidd_forms, SIDD_FORMS),
  }
  for flag, (given, known) in choices.items():
    if not given:
      raise ValueError(f'--{flag} is empty; give at least one')
    if len(set(given)) < len(given):
      raise ValueError(f'--{flag}={",".join(given)} repeats a name; give each once')
    for name in given:
      if known and name not in known:
        raise ValueError(f'--{flag}: unknown name {name!r}; choose from {", ".join(known)}')
  for sigma_255 in options.sigmas_255:
    if not 0 <= sigma_255 <= 255:
      raise ValueError(f'--sigmas must be from 0 to 255, not {sigma_255:g}')
  output = options.output
  if output.exists() and not output.is_dir():
    raise ValueError(f'--output: {output} is a file; give a folder')
  if output.exists() and any(output.iterdir()) and not options.overwrite:
    raise ValueError(f'{output}: output folder is not empty; choose another one or pass --overwrite')


def _open_sets(methods, options, attempt):
  """Returns (method, run) for all sets with ground truth, and (method, name, data) for the others."""
  runs, submissions = [], []
  for name in options.datasets:
    opened = attempt(name, _open_set, name, options)
    if opened is None:
      continue
    data, channels, real = opened
    fitting = [m for m in methods if attempt(f'{name}, {m.name}', _accepts, m, channels, real)]
    if isinstance(data, image_sets.ImageSet):
      runs += [(method, run) for run in _runs(data, channels, options) for method in fitting]
    else:
      submissions += [(method, name, data) for method in fitting]
  return runs, submissions


def _open_set(name, options):
  """Returns the set, the channels to evaluate it with, and whether its noise is real."""
  if name in UNSCORED:
    # Imported here because SciPy and h5py are needed for these sets only.
    from sadnet_jax.evaluation.submissions import submission

    return submission.open_data(name, find_folder(name, options.data)), 3, True
  image_set = image_sets.open_set(name, options.data)
  if not options.keep_going:
    scoring.refuse_problems(image_set)
  # The blocks of SIDD are never converted to grey.
  channels = 3 if name == 'sidd_val' else options.channels or image_set.channels
  if channels == 3 and image_set.channels == 1:
    raise ValueError(f'{name}: the images are grey and the network is for colour; use one with 1 channel')
  if not image_set.real and not options.sigmas_255:
    raise ValueError(f'{name}: clean images need noise to be added; pass --sigmas, such as --sigmas=50')
  for note in image_set.notes:
    print(f'note: {note}', flush=True)
  return image_set, channels, image_set.real


def _accepts(method, channels, real):
  method.check(channels, real)
  return True


def _runs(image_set, channels, options) -> Iterator[_Run]:
  if image_set.protocol is not None:
    yield _Run(image_set, channels, None, image_set.protocol)
    if AUTHORS.name in options.protocols:
      yield _Run(image_set, channels, None, AUTHORS)
  else:
    for sigma_255 in options.sigmas_255:
      for protocol in options.protocols:
        yield _Run(image_set, channels, sigma_255, PROTOCOLS[protocol])


def _evaluate_one(method, run, options, folder):
  """Returns the result, and the images to show on the page; writes the pictures to the folder."""
  showcase = Showcase(worst=(options.page_images + 1) // 2, best=options.page_images // 2)
  text = f'{run.image_set.title} {"" if run.sigma_255 is None else f"{run.sigma_255:g} "}{method.name}'
  with tqdm.tqdm(total=len(run.image_set.images), desc=text, unit='image', disable=None) as bar:

    def on_image(scored: scoring.Scored) -> None:
      name = scored.result.name
      noisy, denoised, clean = (to_8_bits(i) for i in (scored.noisy, scored.denoised, scored.clean))
      showcase.add(name, scored.result.psnr, noisy, denoised, clean)
      if options.pictures:
        # Not with_suffix: a name may contain a dot, and has no extension.
        write_png(folder / 'denoised' / f'{name}.png', denoised)
        write_png(folder / 'comparison' / f'{name}.png', side_by_side(noisy, denoised, clean))
      bar.set_postfix_str(f'{scored.result.psnr:.2f} dB', refresh=False)
      bar.update()

    result = scoring.evaluate_set(
      method,
      run.image_set,
      channels=run.channels,
      sigma_255=run.sigma_255,
      protocol=run.protocol,
      keep_going=options.keep_going,
      on_image=on_image,
    )
  return result, showcase


def _submit(method, dataset, data, options):
  """Returns the submission, and the images to show on the page."""
  from sadnet_jax.evaluation.submissions import submission

  showcase = Showcase(worst=options.page_images, best=0)
  with tqdm.tqdm(total=len(data), desc=f'{dataset} {method.name}', unit='image', disable=None) as bar:

    def on_image(name: str, noisy: np.ndarray, denoised: np.ndarray) -> None:
      showcase.add(name, None, to_8_bits(noisy), to_8_bits(denoised), None)
      bar.update()

    written = submission.submit(
      data,
      method,
      options.output / f'{dataset}-{method.name}',
      forms=options.sidd_forms,
      margin_px=options.dnd_margin_px,
      on_image=on_image,
    )
  return written, showcase


class _OutputFolder:
  """The output except pictures and submissions: results.json, images.csv, and at the end index.html.

  Attributes:
    is_complete: Whether everything has been evaluated, as results.json says.
  """

  def __init__(self, options: Options, failures: list[results.Failure]):
    """Creates the folder. Failures that are added to the list later are written, too."""
    self.is_complete = False
    self._folder, self._root, self._failures = options.output, options.data, failures
    self._results: list[results.SetResult] = []
    self._showcases: list[Showcase] = []
    self._submissions: list[Any] = []
    self._submission_showcases: list[Showcase] = []
    self._pictures_folders: set[Path] = set()
    arguments = results.shareable(sys.argv[1:], self._root)
    command = shlex.join(['python', Path(sys.argv[0]).name, *arguments])
    self._about: dict[str, Any] = {'command': command, 'environment': environment(PACKAGES)}
    self._folder.mkdir(parents=True, exist_ok=True)
    # Of pictures, and of the forms of a submission, as an earlier evaluation may have left them.
    self._earlier = {path for pattern in ('*', '*/*') for path in self._folder.glob(pattern) if path.is_dir()}

  def pictures_folder(self, run: _Run, method: Method) -> Path:
    """Returns where the pictures of a result go; two sets with the same title get two folders."""
    sigma = '' if run.sigma_255 is None else f'-sigma{run.sigma_255:g}'
    title = re.sub(r'[^\w.-]+', '_', run.image_set.title)
    path = self._folder / f'{title}{sigma}-{run.protocol.name}-{method.name}'
    while path in self._pictures_folders:
      path = path.with_name(f'{path.name}-again')
    self._pictures_folders.add(path)
    return path

  def add_result(self, result: results.SetResult, showcase: Showcase) -> None:
    """Adds a result and rewrites the files."""
    self._results.append(result)
    self._showcases.append(showcase)
    # A damaged file fails at every sigma; it is listed once.
    known = set(self._failures)
    self._failures.extend(f for f in result.failures if f not in known)
    self._write()

  def add_submission(self, submission: Any, showcase: Showcase) -> None:
    """Adds a submission, prints what its check found, and rewrites the files."""
    self._submissions.append(submission)
    self._submission_showcases.append(showcase)
    print('\n'.join(submission.checks), flush=True)
    self._write()

  def finish(self) -> None:
    """Writes the page and prints the table; without any result leaves what is there."""
    if not (self._results or self._submissions or self._failures):
      return
    content = self._write()
    showcases = [*self._showcases, *self._submission_showcases]
    size = write_page(self._folder / results.PAGE_FILE, content, showcases)
    if self._results:
      print(results.format_table(self._results))
    files = f'{results.RESULTS_FILE}, {results.IMAGES_FILE}, {results.PAGE_FILE} ({size / 1e6:.1f} MB)'
    print(f'{self._folder}: wrote {files}')
    if stale := self._stale_folders():
      print(f'note: {self._folder}: folders of an earlier evaluation were kept: {", ".join(stale)}')

  def _stale_folders(self):
    """Folders that were there before and that nothing was written to."""
    files = [self._folder / file for submission in self._submissions for file in submission.files]
    written = {*self._pictures_folders, *files}
    written |= {parent for path in written for parent in path.parents}
    stale = [path for path in self._earlier - written if path.parent not in self._pictures_folders]
    return sorted(str(path.relative_to(self._folder)) for path in stale if path.parent not in stale)

  def _write(self):
    """Writes results.json and images.csv; returns the content of results.json."""
    others = {
      'submissions': [dataclasses.asdict(s) for s in self._submissions],
      'failures': [dataclasses.asdict(f) for f in self._failures],
    }
    content = {
      **results.shareable(self._about, self._root),
      'results': [results.shareable_result(r, self._root) for r in self._results],
      **results.shareable(others, self._root),
      'complete': self.is_complete,
    }
    results.write_json(self._folder / results.RESULTS_FILE, content)
    results.write_csv(self._folder / results.IMAGES_FILE, self._results)
    return content
