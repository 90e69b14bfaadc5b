"""Weights on the Hugging Face Hub, named like ``hf://owner/name``. Needs the extra `hub`."""

import errno
import logging
from pathlib import Path
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from sadnet_jax.files import one_line
from sadnet_jax.weights.paths import SAFETENSORS_SUFFIX, SUFFIXES

if TYPE_CHECKING:
  from sadnet_jax.weights.download import Progress

_LOGGER = logging.getLogger(__name__)
SCHEME = 'hf://'
_FORM = 'hf://OWNER/NAME, hf://OWNER/NAME@REVISION or either followed by /FILE'
_TIMEOUT_SECONDS = 30.0
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def fetch(source: str, *, progress: 'Progress | None' = None, max_bytes: int) -> Path:
  """Downloads a file of weights, unless the cache of huggingface_hub has the newest version.

  Without a connection, the version that was downloaded last is used, with a warning that names it
  unless `source` names a commit.

  Args:
    source: ``hf://OWNER/NAME``, optionally with ``@REVISION`` (a branch, tag or commit; a slash in it is
      written %2F) and ``/FILE``. Without a file, the repository must have one .safetensors file.
    progress: Called during the download with the bytes received and the total, None if unknown.
    max_bytes: Size limit.

  Returns:
    The path of the cached file.

  Raises:
    ValueError: ``source`` has another form; huggingface_hub is missing; there is no such repository, revision
      or file, or no single .safetensors file; the Hub refuses to answer; the file is too large; or the
      download fails.
  """
  match = re.fullmatch(r'hf://([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/([^@]+))?', source)
  if match is None:
    raise ValueError(f'{source}: not a name on the Hugging Face Hub; write {_FORM}')
  repository, revision, file = match[1], match[2] and unquote(match[2]), match[3]
  if file is not None and not file.endswith(SUFFIXES):
    raise ValueError(f'{source}: the file must have one of the extensions {", ".join(SUFFIXES)}')
  try:
    import huggingface_hub
  except ImportError as error:
    raise ValueError(
      f'{source}: weights on the Hugging Face Hub need the package huggingface_hub ({error}); '
      "from the clone: pip install '.[hub]'"
    ) from error
  from huggingface_hub import errors

  try:
    info = huggingface_hub.HfApi().model_info(
      repository, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
    )
  except errors.HFValidationError as error:
    raise ValueError(f'{source}: not a name on the Hugging Face Hub ({one_line(error, 300)})') from error
  except errors.RevisionNotFoundError as error:
    raise ValueError(f'{source}: {repository} has no revision {revision}') from error
  except errors.RepositoryNotFoundError as error:
    raise ValueError(
      f'{source}: there is no model {repository} on the Hugging Face Hub, or it is private; check the name, '
      'or log in with: hf auth login'
    ) from error
  # Errors of the network come from a package that depends on the version of huggingface_hub.
  except Exception as error:
    status = getattr(getattr(error, 'response', None), 'status_code', 0)
    # The Hub's own failures (5xx) are like a missing connection.
    if 400 <= status < 500:
      raise ValueError(
        f'{source}: the Hugging Face Hub refuses to answer ({one_line(error, 300)}); after status 401 or 403 '
        'log in again with: hf auth login; after 429 wait a while'
      ) from error
    return _from_cache(source, repository, revision, file, error)
  sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
  file = _choose(source, sizes, file)
  if (size := sizes[file] or 0) > max_bytes:
    raise ValueError(f'{source}: {file} has {size} bytes; weights may have at most {max_bytes}')
  try:
    path = huggingface_hub.hf_hub_download(
      repository, file, revision=revision, library_name='sadnet-jax', tqdm_class=_bar(progress)
    )
  except errors.GatedRepoError as error:
    raise ValueError(
      f'{source}: its owner asks for consent; accept the conditions on the page of {repository}, and log in '
      'with: hf auth login'
    ) from error
  except Exception as error:
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
      raise ValueError(
        f'{source}: {error.filename or "the cache of the Hub"} cannot be written; set HF_HOME to a folder '
        'that can, or give the path of a file'
      ) from error
    raise ValueError(
      f'{source}: the download of {file} failed ({one_line(error, 300)}); check the network and the free '
      'disk space, and try again'
    ) from error
  return Path(path)


def _from_cache(source, repository, revision, file, error):
  """The path of a file that was downloaded before."""
  import huggingface_hub
  from huggingface_hub.errors import LocalEntryNotFoundError

  try:
    if file is not None:
      path = Path(huggingface_hub.hf_hub_download(repository, file, revision=revision, local_files_only=True))
    else:
      folder = Path(
        huggingface_hub.snapshot_download(
          repository, revision=revision, local_files_only=True, allow_patterns=f'*{SAFETENSORS_SUFFIX}'
        )
      )
      cached = [path.relative_to(folder).as_posix() for path in folder.rglob(f'*{SAFETENSORS_SUFFIX}')]
      path = folder / _choose(source, cached, None)
  except LocalEntryNotFoundError:
    raise ValueError(
      f'{source}: the Hugging Face Hub cannot be reached ({one_line(error, 300)}), and this was not '
      'downloaded before; check the network, or give the path of a file'
    ) from error
  # What a commit has does not change.
  if re.fullmatch(r'[0-9a-f]{40}', revision or '') is None:
    _LOGGER.warning(
      '%s: the Hugging Face Hub cannot be reached (%s); taking %s, which was downloaded before',
      source,
      one_line(error, 300),
      path.name,
    )
  return path


def _choose(source, files, file):
  """The wanted file of a repository, or its only .safetensors file."""
  weights = sorted(name for name in files if name.endswith(SAFETENSORS_SUFFIX))
  if file is not None and file not in files:
    raise ValueError(f'{source}: no such file; the .safetensors files are {", ".join(weights) or "none"}')
  if file is None and len(weights) != 1:
    raise ValueError(
      f'{source}: the repository has {len(weights)} .safetensors files'
      + (
        f'; append one of them: /{", /".join(weights)}' if weights else '; it does not hold weights of SADNet'
      )
    )
  return weights[0] if file is None else file


def _bar(progress):
  """A class of progress bars that shows nothing and calls ``progress``."""
  from tqdm import tqdm

  class Bar(tqdm):
    def __init__(self, *arguments, **options):
      super().__init__(*arguments, **{**options, 'disable': True})

    def update(self, n=1):
      # A disabled bar does not count.
      self.n += n or 0
      if progress is not None:
        progress(int(self.n), None if self.total is None else int(self.total))

  return Bar
