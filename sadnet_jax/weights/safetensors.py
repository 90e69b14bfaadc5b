"""Weights of a network in one file: safetensors, with what they are in its metadata.

Names are paths in the tree of parameters, joined by '/': ``dres1/conv1/kernel``. The
metadata holds ``sadnet_jax`` (the version of this form), ``model`` (JSON: the fields of
`SADNet`), ``step``, and anything else that is worth telling, all as text. Reading needs
neither Orbax nor TensorFlow, and runs no code of the file.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sadnet_jax.files import replacing
from sadnet_jax.nn.sadnet import SADNet, model_from_fields, param_shapes

SUFFIX = '.safetensors'
# By this name, the metadata of averaged weights have `average_text`.
AVERAGE_OF = 'average_of'
_FORM = '1'


def save_weights(
  path: str | Path,
  params: Mapping[str, Any],
  *,
  model: Mapping[str, Any],
  step: int,
  about: Mapping[str, str],
  dtype: str = 'float32',
) -> None:
  """Writes weights, whole or not at all, over a file of that name.

  Args:
    path: Ends in '.safetensors'; its folder exists.
    params: Parameters of a SADNet.
    model: The fields of that SADNet, as a config's ``model`` has them: all of them where the file is
      to be read by `checkpoints.restore_params`, which compares them with the config's.
    step: Training steps done.
    about: What else to tell: data, command.
    dtype: 'float32', or 'float16' for half the size.

  Raises:
    ValueError: Another ending or dtype, a weight that is not finite in that dtype, or ``about`` has
      something other than text, or one of the names above.
  """
  path = Path(path)
  if path.suffix != SUFFIX:
    raise ValueError(f'{path}: got the ending {path.suffix!r}, want {SUFFIX}')
  if dtype not in ('float32', 'float16'):
    raise ValueError(f'dtype: got {dtype!r}, want float32 or float16')
  if reserved := {'sadnet_jax', 'model', 'step'} & set(about):
    raise ValueError(f'about: got {", ".join(sorted(reserved))}, want other names: these are taken')
  if not all(isinstance(value, str) for value in about.values()):
    raise ValueError(f'about: got {dict(about)}, want texts only')
  # The file holds the buffers as they are in memory, whatever the strides.
  arrays = {name: np.asarray(leaf).astype(dtype, order='C') for name, leaf in _flatten(params).items()}
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise ValueError(f'{name}: got weights that are not finite in {dtype}, want numbers')
  metadata = {**about, 'sadnet_jax': _FORM, 'model': json.dumps(model), 'step': str(step)}
  with replacing(path) as temporary:
    save_file(arrays, temporary, metadata)


def load_weights(path: str | Path, model: SADNet) -> tuple[dict[str, Any], dict[str, str]]:
  """Reads weights.

  Args:
    path: A file of `save_weights`.
    model: The network they are for.

  Returns:
    Parameters, float32, and the metadata.

  Raises:
    ValueError: No such file, or it is damaged or of another form; or a tensor is missing,
      left over, or of another shape: all are named.
  """
  metadata, arrays = _read(path)
  return _fitted(path, metadata, arrays, model), metadata


def load_with_model(path: str | Path) -> tuple[SADNet, dict[str, Any], dict[str, str]]:
  """Reads weights and builds the network they are for.

  Args:
    path: A file of `save_weights` whose ``model`` has all fields.

  Returns:
    The network, its parameters, float32, and the metadata.

  Raises:
    ValueError: As `load_weights`; or the fields are not those of a network.
  """
  metadata, arrays = _read(path)
  fields = model_fields(path, metadata)
  try:
    model = model_from_fields(fields)
  except ValueError as error:
    raise ValueError(f'{path}: got metadata of no network ({error}), want the fields of one') from error
  return model, _fitted(path, metadata, arrays, model), metadata


def model_fields(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
  """The fields of the network that a file's metadata tell; ValueError naming the file if it tells none."""
  try:
    fields = json.loads(metadata['model'])
  # What JSON makes of values nested too deeply.
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'{path}: got metadata whose model is no JSON ({error}), want a file as written'
    ) from error
  if not isinstance(fields, dict):
    raise ValueError(f'{path}: got metadata whose model is {metadata["model"]!r}, want the fields of one')
  return fields


def stored_dtype(path: str | Path) -> str:
  """'float32' or 'float16': that of the tensors in a file of `save_weights`; else ValueError."""
  _, arrays = _read(path)
  dtypes = {array.dtype.name for array in arrays.values()}
  if len(dtypes) != 1 or not dtypes <= {'float32', 'float16'}:
    raise ValueError(f'{path}: got tensors of {sorted(dtypes)}, want float32 or float16')
  return dtypes.pop()


def rounded(params: Any, dtype: str) -> Any:
  """Parameters, float32, as a file of that dtype gives them back."""
  return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), params)


def averaged(trees: Sequence[Any], shares: Sequence[float]) -> Any:
  """The mean of several networks' parameters.

  Args:
    trees: Parameters of networks of one form, float32.
    shares: How much each counts, above 0; only their ratios matter.

  Returns:
    Such parameters, summed in float64.
  """
  ratios = np.asarray(shares, np.float64) / np.sum(shares)
  return jax.tree.map(lambda *leaves: np.tensordot(ratios, np.stack(leaves), 1).astype(np.float32), *trees)


def average_text(shares: Sequence[float], hashes: Sequence[str]) -> str:
  """What weights are the average of: shares, and the `params_hash` of each."""
  return ' + '.join(f'{share:g} * {params}' for share, params in zip(shares, hashes, strict=True))


def _fitted(path, metadata, arrays, model):
  """The tree of a network's parameters from the tensors of a file."""
  template = param_shapes(model)
  wanted = _flatten(template)
  unexpected = sorted(set(arrays) - set(wanted))
  missing = sorted(set(wanted) - set(arrays))
  misshapen = [
    f'{name} is {arrays[name].shape}, want {leaf.shape}'
    for name, leaf in wanted.items()
    if name in arrays and arrays[name].shape != leaf.shape
  ]
  if unexpected or missing or misshapen:
    raise ValueError(
      f'{path}: got weights of another network ({metadata["model"]}): unexpected tensors {unexpected}; '
      f'missing {missing}; of another shape {misshapen}; want those of {model}'
    )
  return jax.tree_util.tree_map_with_path(lambda p, _: arrays[_name(p)].astype(np.float32), template)


def _read(path):
  try:
    with safe_open(path, framework='numpy') as file:
      metadata = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  # NumPy has no type for some of what such a file may hold.
  except (OSError, SafetensorError, AttributeError, TypeError) as error:
    raise ValueError(f'{path}: got no readable weights ({error}), want a complete {SUFFIX} file') from error
  whole = {'model', 'step'} <= set(metadata) and metadata['step'].isdecimal()
  if metadata.get('sadnet_jax') != _FORM or not whole:
    raise ValueError(f'{path}: got metadata {metadata}, want that of weights of sadnet_jax, form {_FORM}')
  return metadata, arrays


def _flatten(params):
  return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _name(path):
  return '/'.join(key.key for key in path)


def params_hash(params: Any) -> str:
  """SHA-256 of the names, shapes, dtypes and values of a tree of weights."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.shape} {array.dtype.str}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
