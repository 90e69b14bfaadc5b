"""The weights of a network in one ``.safetensors`` file, with a description of the network in its metadata.

Tensor names are paths in the tree of parameters: ``dres1/conv1/kernel``. The metadata, all text, has
``sadnet_jax`` (version of this format), ``model`` (JSON: the fields of `SADNet`), ``step``, and anything else
worth knowing. Reading executes no code of the file.
"""

from collections.abc import Mapping, Sequence
import dataclasses
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
from sadnet_jax.weights.paths import SAFETENSORS_SUFFIX

# Name of the metadata entry with the `average_text` of averaged weights.
AVERAGE_OF = 'average_of'
_FORMAT = '1'
# Largest network that a file of weights may describe: a crafted file must not make us build a huge one.
_MAX_CHANNELS = 4096
_MAX_RATES = 64
_MAX_RATE = 1024


def save_weights(
  path: str | Path,
  params: Mapping[str, Any],
  *,
  model: Mapping[str, Any],
  step: int,
  about: Mapping[str, str],
  dtype: str = 'float32',
  overwrite: bool = True,
) -> None:
  """Writes weights; an existing file is replaced when the new one is complete.

  Args:
    path: Has the extension ``.safetensors``; its folder must exist.
    params: Parameters of a SADNet.
    model: Fields of that SADNet, as in a config's ``model``. If some are missing, only `load_weights` can
      read the file.
    step: Number of training steps.
    about: More metadata, such as training data and command.
    dtype: 'float32', or 'float16' for half the size.
    overwrite: Whether a file may be replaced.

  Raises:
    ValueError: Another extension or dtype, a weight that is not finite in that dtype, or ``about`` has values
      that are not text or one of the names above.
    FileExistsError: The file exists and is not to be replaced.
  """
  path = Path(path)
  if path.suffix != SAFETENSORS_SUFFIX:
    raise ValueError(f'{path}: the extension must be {SAFETENSORS_SUFFIX}, not {path.suffix!r}')
  if dtype not in ('float32', 'float16'):
    raise ValueError(f'dtype: {dtype!r} is not supported; use float32 or float16')
  if reserved := {'sadnet_jax', 'model', 'step'} & set(about):
    raise ValueError(f'about: {", ".join(sorted(reserved))} is reserved; use another name')
  if not all(isinstance(value, str) for value in about.values()):
    raise ValueError(f'about: values must be text, not {dict(about)}')
  # The file gets the buffers as they are in memory, whatever their strides.
  arrays = {name: np.asarray(leaf).astype(dtype, order='C') for name, leaf in _flatten(params).items()}
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise ValueError(f'{name} has values that are not finite in {dtype}')
  metadata = {**about, 'sadnet_jax': _FORMAT, 'model': json.dumps(model), 'step': str(step)}
  with replacing(path, overwrite=overwrite) as temporary:
    save_file(arrays, temporary, metadata)


def load_weights(path: str | Path, model: SADNet) -> tuple[dict[str, Any], dict[str, str]]:
  """Reads the weights of a known network.

  Args:
    path: A file written by `save_weights`.
    model: The network.

  Returns:
    Its parameters (float32) and the metadata.

  Raises:
    ValueError: The file is missing, damaged or of another format, or a tensor is missing, unexpected or of
      another shape; all of them are named.
  """
  metadata, arrays = _read(path)
  return _fit(path, arrays, model), metadata


def load_with_model(path: str | Path) -> tuple[SADNet, dict[str, Any], dict[str, str]]:
  """Reads weights and builds the network they belong to.

  Args:
    path: A file written by `save_weights` with all fields of the network.

  Returns:
    The network, its parameters (float32), and the metadata.

  Raises:
    ValueError: As `load_weights`, or the metadata do not describe a network.
  """
  metadata, arrays = _read(path)
  fields = model_fields(path, metadata)
  try:
    model = model_from_fields(fields)
    check_limits(model)
  except ValueError as error:
    raise ValueError(f'{path}: its metadata do not describe a network ({error})') from error
  return model, _fit(path, arrays, model), metadata


def model_fields(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
  """Returns the fields of the network in a file's metadata; raises ValueError if there are none."""
  try:
    fields = json.loads(metadata['model'])
  # RecursionError: JSON that is nested too deeply.
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path}: "model" in its metadata is not JSON ({error})') from error
  if not isinstance(fields, dict):
    raise ValueError(f'{path}: "model" in its metadata is {metadata["model"]!r}, not the fields of a network')
  return fields


def fields_of(model: SADNet) -> dict[str, Any]:
  """Returns the fields of a network that computes in float32, as in a config's ``model``."""
  names = [field.name for field in dataclasses.fields(model) if field.name not in ('parent', 'name')]
  return {**{name: getattr(model, name) for name in names}, 'dtype': 'float32'}


def check_limits(model: SADNet) -> None:
  """Raises ValueError if a network is larger than any that a file of weights may describe."""
  for name in ('channels', 'width', 'offset_width', 'deformable_groups'):
    if getattr(model, name) > _MAX_CHANNELS:
      raise ValueError(f'{name} is {getattr(model, name)}; weights may have up to {_MAX_CHANNELS}')
  if len(model.dilations) > _MAX_RATES or max(model.dilations) > _MAX_RATE:
    raise ValueError(
      f'{len(model.dilations)} dilations of up to {max(model.dilations)}; weights may have up to '
      f'{_MAX_RATES}, each at most {_MAX_RATE}'
    )


def stored_dtype(path: str | Path) -> str:
  """Returns the dtype of the tensors in a file, 'float32' or 'float16'; raises ValueError for others."""
  _, arrays = _read(path)
  dtypes = {array.dtype.name for array in arrays.values()}
  if len(dtypes) != 1 or not dtypes <= {'float32', 'float16'}:
    raise ValueError(f'{path}: all tensors must be float32 or all float16, but they are {sorted(dtypes)}')
  return dtypes.pop()


def rounded(params: Any, dtype: str) -> Any:
  """Returns parameters (float32) as they would come back from a file with this dtype."""
  return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), params)


def averaged(trees: Sequence[Any], shares: Sequence[float]) -> Any:
  """Averages the parameters of several networks.

  Args:
    trees: Parameters of equally built networks, float32.
    shares: Weight of each in the average, above 0; only their ratios matter.

  Returns:
    The averaged parameters, float32, summed in float64.
  """
  ratios = np.asarray(shares, np.float64) / np.sum(shares)
  return jax.tree.map(lambda *leaves: np.tensordot(ratios, np.stack(leaves), 1).astype(np.float32), *trees)


def average_text(shares: Sequence[float], hashes: Sequence[str]) -> str:
  """Describes an average in a file's metadata: the shares, and the `params_hash` of each network."""
  return ' + '.join(f'{share:g} * {params}' for share, params in zip(shares, hashes, strict=True))


def params_hash(params: Any) -> str:
  """Returns the SHA-256, in hexadecimal, of the names, shapes, dtypes and values of a tree of parameters."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.shape} {array.dtype.str}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def _fit(path, arrays, model):
  """Arranges the tensors of a file as the parameters of a network."""
  template = param_shapes(model)
  expected = _flatten(template)
  unexpected = sorted(set(arrays) - set(expected))
  missing = sorted(set(expected) - set(arrays))
  misshapen = [
    f'{name} is {arrays[name].shape} instead of {leaf.shape}'
    for name, leaf in expected.items()
    if name in arrays and arrays[name].shape != leaf.shape
  ]
  if unexpected or missing or misshapen:
    raise ValueError(
      f'{path}: its weights do not fit {model}: unexpected tensors {unexpected}; missing {missing}; '
      f'wrong shape {misshapen}'
    )
  return jax.tree_util.tree_map_with_path(lambda p, _: arrays[_name(p)].astype(np.float32), template)


def _read(path):
  try:
    with safe_open(path, framework='numpy') as file:
      metadata = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  # AttributeError and TypeError: a dtype that NumPy does not have.
  except (OSError, SafetensorError, AttributeError, TypeError) as error:
    raise ValueError(f'{path}: not a complete {SAFETENSORS_SUFFIX} file ({error})') from error
  complete = {'model', 'step'} <= set(metadata) and metadata['step'].isdecimal()
  if metadata.get('sadnet_jax') != _FORMAT or not complete:
    raise ValueError(
      f'{path}: not weights of sadnet_jax: its metadata {metadata} lack "sadnet_jax": "{_FORMAT}", "model" '
      'or a numeric "step"'
    )
  return metadata, arrays


def _flatten(params):
  return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _name(path):
  return '/'.join(key.key for key in path)
