"""The files that an evaluation leaves: results.json, images.csv, index.html."""

import dataclasses
from pathlib import Path
import re
import shlex
import sys
from typing import Any

from sadnet_jax.environment import environment
from sadnet_jax.evaluation import results
from sadnet_jax.evaluation.methods import Method
from sadnet_jax.evaluation.page import Showcase, write_page
from sadnet_jax.evaluation.protocols import Protocol
from sadnet_jax.evaluation.table import table

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
