"""Where weights come from: a name of the index, a file, a training run, or a URL."""

from collections.abc import Sequence
import difflib
import json
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from sadnet_jax.nn.sadnet import SADNet, param_shapes
from sadnet_jax.weights import index
from sadnet_jax.weights.index import available, file_sha256

if TYPE_CHECKING:
  from sadnet_jax.nn.sadnet import SADNet
  from sadnet_jax.weights.download import Progress
# `weights.SUFFIX`, whose module needs JAX, which takes a second to import.
SAFETENSORS = '.safetensors'
SUFFIXES = (SAFETENSORS, '.pth', '.pt')
# `checkpoints.FOLDER`, whose module needs Orbax.
CHECKPOINTS = 'checkpoints'


def is_name_or_url(source: str | Path) -> bool:
  """Whether a text is a name of the index, or a URL, rather than a path: a run of that name wins."""
  if not isinstance(source, str):
    return False
  return '://' in source or (source in available() and not (Path(source) / CHECKPOINTS).is_dir())


def locate(source: str | Path, *, progress: 'Progress | None' = None) -> Path:
  """The file, or the folder of a run, that a source of weights is.

  Args:
    source: A name of `available`; or a file ending in .safetensors, .pth or .pt, or a folder, of which a
      run's comes before a name; or a URL of such a file (http, https, file), with its hash if it
      is to be checked: ``https://host/a.safetensors#sha256=HEX``. http and https are downloaded
      once, into the user's cache folder, and afterwards need no network. A `Path` is always a path.
    progress: Is told the bytes that are downloaded, and those there will be or None.

  Raises:
    ValueError: No such name, file or URL (like names are told), a hash is not as it should be, or a
      download fails, of which nothing is kept.
  """
  if not is_name_or_url(source):
    return _from_path(source)
  text = str(source)
  return _from_url(text, progress) if '://' in text else _shipped(text)


def load(
  source: str | Path, *, dilations: Sequence[int] | None = None, progress: 'Progress | None' = None
) -> tuple['SADNet', dict[str, Any], dict[str, str]]:
  """Reads weights and builds the network they are for.

  Args:
    source: As of `locate`. A run's newest checkpoint is taken, or the one whose folder is given.
    dilations: Rates of the context block, which a .pth does not tell: (1, 2, 3, 4) by default.
      Other sources tell; where given, they have to agree.
    progress: As of `locate`.

  Returns:
    The network, its parameters, float32, and what is known of them: ``path``, of files ``sha256``
    and the metadata in them, of runs ``step``.

  Raises:
    ValueError: As `locate`; or the file or the run cannot be read, or has weights that are not finite.
  """
  path = locate(source, progress=progress)
  if path.is_dir():
    model, params, about = _load_run(path)
  elif path.suffix == SAFETENSORS:
    from sadnet_jax.weights import safetensors

    model, params, about = safetensors.load_with_model(path)
    about = {**about, 'sha256': file_sha256(path)}
  else:
    model, params, about = _load_pth(path, dilations or (1, 2, 3, 4))
  if dilations is not None and tuple(dilations) != tuple(model.dilations):
    raise ValueError(
      f'dilations: got {tuple(dilations)}, want {tuple(model.dilations)}, those of {source}: leave them out'
    )
  _check_finite(path, params)
  return model, params, {**about, 'path': str(path)}


def _load_pth(path, dilations):
  from sadnet_jax.weights import authors, torch_files

  state_dict = torch_files.read_state_dict(path)
  try:
    model = authors.model_from_state_dict(state_dict, dilations=tuple(dilations))
    params = authors.params_from_state_dict(state_dict, param_shapes(model))
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  return model, params, {'sha256': file_sha256(path)}


def _load_run(path):
  try:
    from sadnet_jax.weights import checkpoints
  except ImportError as error:
    raise ValueError(
      f'{path}: got a training run without what reads it ({error}), want it: '
      "pip install 'sadnet-jax[evaluate]'"
    ) from error
  model, params, step, config = checkpoints.load_run(path)
  return model, params, {'step': str(step), 'model': json.dumps(config['model'])}


def _check_finite(path, params):

  for names, leaf in jax.tree_util.tree_leaves_with_path(params):
    if not np.isfinite(leaf).all():
      name = jax.tree_util.keystr(names, simple=True, separator='/')
      raise ValueError(f'{path}: got weights that are not finite ({name}), want numbers')


def _from_path(source):
  path = Path(source)
  try:
    is_folder = path.is_dir()
  except OSError as error:
    raise ValueError(f'{source}: got no usable path ({error.strerror}), want one of weights') from error
  if is_folder and source != '':
    return path
  if path.suffix not in SUFFIXES:
    if path.is_file():
      raise ValueError(f'{path}: got the ending {path.suffix!r}, want {" or ".join(SUFFIXES)}')
    names = sorted(available())
    like = difflib.get_close_matches(str(source), names, n=3)
    hint = f' (did you mean {" or ".join(like)}?)' if like else ''
    raise ValueError(
      f'{source}: got neither a name nor a file or folder that is there, want one of {", ".join(names)}, or '
      f'a path, or a URL{hint}'
    )
  if not path.exists():
    raise ValueError(f'{path}: got no such file, want weights')
  return path


def _shipped(name):
  entry = available()[name]
  path = index.FOLDER / entry.file
  if not path.is_file():
    raise ValueError(f'{name}: got no file {path}, want it as published: install the package again')
  if (actual := file_sha256(path)) != entry.sha256:
    raise ValueError(
      f'{name}: got a damaged file {path} (SHA-256 {actual}), want {entry.sha256}: install the package again'
    )
  return path


def _from_url(source, progress):
  # Not before: downloads are rare, and these take a while to import.
  from urllib.parse import unquote, urlsplit

  from sadnet_jax.weights import download

  url, _, fragment = source.partition('#')
  match = re.fullmatch('(?:sha256=([0-9a-fA-F]{64}))?', fragment)
  if match is None:
    raise ValueError(f'{source}: got {fragment!r} after the #, want sha256= and 64 hexadecimal digits')
  sha256 = match[1] and match[1].lower()
  try:
    parts = urlsplit(url)
  except ValueError as error:
    raise ValueError(f'{source}: got no URL ({error}), want one of a file') from error
  if parts.scheme not in ('http', 'https', 'file'):
    raise ValueError(f'{source}: got the scheme {parts.scheme!r}, want http, https or file')
  if not unquote(parts.path).endswith(SUFFIXES):
    raise ValueError(f'{source}: got a URL of another ending, want {" or ".join(SUFFIXES)}')
  if parts.scheme == 'file':
    path = _from_path(download.local_path(url))
    if sha256 is not None and path.is_file() and (actual := file_sha256(path)) != sha256:
      raise ValueError(f'{source}: got a file of SHA-256 {actual}, want {sha256}')
    return path
  from platformdirs import user_cache_dir

  return download.fetch(url, Path(user_cache_dir('sadnet-jax')) / 'weights', sha256=sha256, progress=progress)
