"""Loads weights from wherever they are: a published name, a file, a training run, a URL, or the hub.

Importing this, and finding weights without reading them, needs neither JAX nor Orbax.
"""

from collections.abc import Mapping, Sequence
import difflib
import json
import os
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any

from sadnet_jax.files import user_cache_folder
from sadnet_jax.weights import hub, index
from sadnet_jax.weights.adapting import adapt
from sadnet_jax.weights.index import available, file_sha256
from sadnet_jax.weights.paths import SAFETENSORS_SUFFIX, SUFFIXES, TORCH_SUFFIXES, is_run

if TYPE_CHECKING:
  from sadnet_jax.nn.sadnet import SADNet
  from sadnet_jax.weights.download import Progress

# Names that earlier versions published -> the name that took their place.
REPLACED = {'color_50': 'color', 'color_blind': 'color', 'color_real': 'photo'}

_SUFFIXES_TEXT = ', '.join(SUFFIXES)


def load(
  source: str | Path, *, dilations: Sequence[int] | None = None, progress: 'Progress | None' = None
) -> tuple['SADNet', dict[str, Any], dict[str, str]]:
  """Loads weights and builds the network they belong to.

  Args:
    source: See `locate`. Of a run, the newest checkpoint or the one whose folder is given.
    dilations: Rates of the context block, which a ``.pth`` file does not contain; (1, 2, 3, 4) by default.
      Other sources contain them; if given, they must agree.
    progress: See `locate`.

  Returns:
    The network, its parameters (float32), and a dictionary of texts that describes them: ``path`` and
    ``model`` (JSON: the fields of the network); ``sha256`` and the metadata of a file; ``step`` of a run or
    a ``.safetensors`` file.

  Raises:
    ValueError: As `locate`; or the file or run cannot be read, or has weights that are not finite.
  """
  path = locate(source, progress=progress)
  if path.is_dir() or is_run(path):
    model, params, about = _load_run(path)
  elif path.suffix == SAFETENSORS_SUFFIX:
    from sadnet_jax.weights import safetensors

    model, params, about = safetensors.load_with_model(path)
  else:
    from sadnet_jax.weights import authors, safetensors

    model, params = authors.load_file(path, dilations=authors.DILATIONS if dilations is None else dilations)
    about = {'model': json.dumps(safetensors.fields_of(model))}
  if dilations is not None and tuple(dilations) != tuple(model.dilations):
    raise ValueError(
      f'dilations: got {tuple(dilations)}, but {source} has {tuple(model.dilations)}; omit this option'
    )
  _check_finite(path, params)
  if path.is_file():
    about = {**about, 'sha256': file_sha256(path)}
  return model, params, {**about, 'path': str(path)}


def load_params(
  source: str | Path, model: Mapping[str, Any], *, as_start: bool = False
) -> tuple[int, dict[str, Any]]:
  """Loads weights for a network that is already known.

  Args:
    source: See `load`.
    model: Fields of the network, as in a config's ``model``.
    as_start: Convert weights for colour, or with more deformable groups, as a start for training (see
      `adapting.adapt`).

  Returns:
    The training steps of the weights (0 if unknown) and their parameters.

  Raises:
    ValueError: As `load`, or the weights were trained in another network; the differing fields are named.
  """
  from sadnet_jax.weights import checkpoints

  path = locate(source)
  is_torch = path.suffix in TORCH_SUFFIXES and path.is_file()
  _, params, about = load(path, dilations=model['dilations'] if is_torch else None)
  fields = json.loads(about['model'])
  if as_start:
    params, fields = adapt(params, fields, model)
  checkpoints.check_same_network(fields, model)
  return int(about.get('step', 0)), params


def locate(source: str | Path, *, progress: 'Progress | None' = None) -> Path:
  """Finds weights, downloading them if ``source`` is a URL or on the Hugging Face Hub.

  Args:
    source: One of these:

      - a name from `available`, unless the working folder has a training run of that name;
      - the path of a ``.safetensors``, ``.pth`` or ``.pt`` file, or of a folder (a `Path` is never taken
        as a name or URL);
      - the URL of such a file (http, https or file). To have its hash checked, append it:
        ``https://host/a.safetensors#sha256=HEX``. http and https are downloaded once into the user's
        cache folder;
      - ``hf://OWNER/NAME``: the .safetensors file of a repository on the Hugging Face Hub, optionally of a
        revision, ``hf://OWNER/NAME@REVISION``; if there are several files, append ``/FILE``. Needs the extra
        `hub`. It is downloaded again only if it has changed; without a connection the cached version is used.
    progress: Called during a download with the number of bytes received and the total, None if unknown.

  Returns:
    The path of a file or of a run's folder.

  Raises:
    ValueError: No such name, file, URL or repository (similar names are suggested), a hash does not match, or
      the download fails; then nothing is kept.
  """
  if isinstance(source, str) and source.startswith(hub.SCHEME):
    from sadnet_jax.weights.download import MAX_BYTES

    return hub.fetch(source, progress=progress, max_bytes=MAX_BYTES)
  if isinstance(source, str) and '://' in source:
    return _from_url(source, progress)
  if isinstance(source, str) and source in available() and not is_run(source):
    return published(source)
  return _from_path(source)


def published(name: str) -> Path:
  """The file of published weights, also where the working folder has a training run of their name.

  Raises:
    ValueError: Its file is missing or damaged.
  """
  entry = available()[name]
  path = index.FOLDER / entry.file
  if not path.is_file():
    raise ValueError(f'{name}: its file {path} is missing; reinstall sadnet-jax')
  if (actual := file_sha256(path)) != entry.sha256:
    raise ValueError(
      f'{name}: its file {path} is damaged (SHA-256 {actual} instead of {entry.sha256}); reinstall sadnet-jax'
    )
  return path


def _from_path(source):
  path = Path(os.path.expanduser(source))
  try:
    is_folder = path.is_dir()
  except OSError as error:
    raise ValueError(f'{source}: not a usable path ({error.strerror})') from error
  # A missing checkpoint of an existing run is reported when it is opened.
  if source != '' and (is_folder or is_run(path)):
    return path
  if path.suffix in SUFFIXES:
    if not path.exists():
      raise ValueError(f'{path}: no such file')
    return path
  if path.is_file():
    raise ValueError(
      f'{path}: unknown extension {path.suffix!r}; weights are files with one of {_SUFFIXES_TEXT}'
    )
  if source in REPLACED:
    raise ValueError(f'{source}: no longer published; {REPLACED[source]} has taken its place')
  names = sorted(available())
  similar = difflib.get_close_matches(str(source), names, n=3)
  hint = f'; did you mean {" or ".join(similar)}?' if similar else ''
  raise ValueError(
    f'{source}: neither published weights ({", ".join(names)}) nor an existing file or folder{hint}'
  )


def _from_url(source, progress):
  # Imported here because downloads are rare and these modules take a while.
  from urllib.parse import unquote, urlsplit

  from sadnet_jax.weights import download

  url, _, fragment = source.partition('#')
  match = re.fullmatch('(?:sha256=([0-9a-fA-F]{64}))?', fragment)
  if match is None:
    raise ValueError(
      f'{source}: {fragment!r} after the # is not a hash; write sha256= and 64 hexadecimal digits'
    )
  sha256 = match[1] and match[1].lower()
  try:
    parts = urlsplit(url)
  except ValueError as error:
    raise ValueError(f'{source}: not a valid URL ({error})') from error
  if parts.scheme not in ('http', 'https', 'file'):
    raise ValueError(f'{source}: scheme {parts.scheme!r} is not supported; use http, https, file or hf')
  if not unquote(parts.path).endswith(SUFFIXES):
    raise ValueError(f'{source}: the path of the URL must have one of the extensions {_SUFFIXES_TEXT}')
  if parts.scheme == 'file':
    path = _from_path(download.local_path(url))
    if sha256 is not None and path.is_file() and (actual := file_sha256(path)) != sha256:
      raise ValueError(f'{source}: the SHA-256 of the file is {actual} instead of {sha256}')
    return path
  try:
    folder = user_cache_folder() / 'weights'
  except ValueError as error:
    raise ValueError(f'{source}: {error}, or download the file yourself and give its path') from error
  return download.fetch(url, folder, sha256=sha256, progress=progress)


def _load_run(path):
  try:
    from sadnet_jax.weights import checkpoints
  except ImportError as error:
    raise ValueError(
      f'{path}: reading a training run needs more packages ({error}); from the clone: '
      "pip install '.[evaluate]'"
    ) from error
  model, params, step, config = checkpoints.load_run(path)
  return model, params, {'step': str(step), 'model': json.dumps(config['model'])}


def _check_finite(path, params):
  import jax
  import numpy as np

  for names, leaf in jax.tree_util.tree_leaves_with_path(params):
    if not np.isfinite(leaf).all():
      name = jax.tree_util.keystr(names, simple=True, separator='/')
      raise ValueError(f'{path}: {name} has values that are not finite')
