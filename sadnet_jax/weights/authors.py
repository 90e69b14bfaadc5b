"""Weights of the authors' PyTorch SADNet as parameters of ours, and back.

The authors' checkpoints are flat dictionaries of tensors in NCHW / OIHW layout, named ``res1.conv0.weight``
and so on. Ours are trees in NHWC / HWIO layout. The names agree except for the deformable convolution, which
the authors call ``dcnpack``.
"""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.nn.sadnet import SCALES, SADNet, param_shapes
from sadnet_jax.weights.safetensors import check_limits
from sadnet_jax.weights.torch_files import read_state_dict

# The authors' rates of dilation, except for one of their ablations.
DILATIONS = (1, 2, 3, 4)
# Our module -> the authors'.
_RENAMED = {'deform_conv': 'dcnpack', 'conv_offset_mask': 'dcnpack.conv_offset_mask'}
# Added by PyTorch's DataParallel.
_PREFIX = 'module.'
# Two offsets and a mask value for each of 9 taps.
_OUTPUTS_PER_GROUP = 27


def load_file(path: str | Path, *, dilations: Sequence[int] = DILATIONS) -> tuple[SADNet, dict[str, Any]]:
  """Loads a ``.pth`` file of the authors' network.

  Args:
    path: See `torch_files.read_state_dict`.
    dilations: Rates of the context block, which the file does not contain.

  Returns:
    The network and its parameters.

  Raises:
    ValueError: The file cannot be read, or it does not hold the weights of a SADNet.
  """
  state_dict = read_state_dict(path)
  try:
    model = model_from_state_dict(state_dict, dilations=dilations)
    check_limits(model)
    return model, params_from_state_dict(state_dict, param_shapes(model))
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def params_from_state_dict(state_dict: Mapping[str, np.ndarray], template: dict) -> dict:
  """Converts the authors' state dict to parameters of `SADNet`.

  Args:
    state_dict: Tensor name -> array of any floating-point dtype. Either all names or none have the prefix
      ``module.``, which PyTorch's DataParallel adds.
    template: Parameters of the SADNet to fill, or their shapes (`param_shapes`).

  Returns:
    A tree with the structure, shapes and dtypes of ``template``.

  Raises:
    ValueError: A tensor is missing, unexpected, of another shape or not floating-point (all of them are
      named), or only some names have the prefix.
  """
  tensors = _without_prefix(state_dict)
  leaves = _leaves(template)
  expected = {_authors_name(path): path for path in leaves}
  unexpected = [name for name in state_dict if name.removeprefix(_PREFIX) not in expected]
  missing = [name for name in expected if name not in tensors]
  converted, unfit = {}, []
  for name, path in expected.items():
    if name not in tensors:
      continue
    array, leaf = _to_ours(path, np.asarray(tensors[name])), leaves[path]
    if array.shape != leaf.shape:
      unfit.append(f'{name} is {array.shape} in our layout instead of {leaf.shape}')
    elif not jnp.issubdtype(array.dtype, jnp.floating):
      unfit.append(f'{name} is {array.dtype} instead of floating-point')
    else:
      # Values too large for the dtype become infinite; callers refuse these.
      with np.errstate(over='ignore'):
        converted[path] = array.astype(leaf.dtype)
  if unexpected or missing or unfit:
    raise ValueError(
      'the state dict does not fit this SADNet (check channels, width, offset width and options): '
      f'unexpected tensors {unexpected}; missing {missing}; wrong shape or dtype {unfit}'
    )
  return jax.tree_util.tree_map_with_path(lambda path, _: converted[_names(path)], template)


def state_dict_from_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Converts parameters of `SADNet` to the authors' state dict; the inverse of `params_from_state_dict`.

  Args:
    params: Parameters of a SADNet, also of one that the authors' code cannot compute
      (`check_in_authors_code`).

  Returns:
    Tensor name -> array in PyTorch's layout and the parameter's dtype, in the order of the authors' network.

  Raises:
    ValueError: A module does not belong to a SADNet.
  """
  leaves = _leaves(params)
  if unknown := sorted({path[0] for path in leaves} - set(_modules())):
    raise ValueError(f'params: {unknown} are not modules of a SADNet')
  paths = sorted(leaves, key=_order)
  return {_authors_name(path): _to_authors(path, np.asarray(leaves[path])) for path in paths}


def model_from_state_dict(
  state_dict: Mapping[str, np.ndarray], *, dilations: Sequence[int] = DILATIONS
) -> SADNet:
  """Infers the network of a state dict from the names and shapes of its tensors.

  Rates of dilation cannot be inferred. The order of convolutions in the RSAB is assumed to be that of the
  authors' code, 'deform_first'. `params_from_state_dict` checks everything else.

  Args:
    state_dict: See `params_from_state_dict`.
    dilations: Rates of the context block; (1, 2, 4, 8) for the authors' ``square``.

  Raises:
    ValueError: A tensor that is needed is missing or has an unexpected shape, or the number of rates differs
      from that of the convolutions.
  """
  tensors = _without_prefix(state_dict)
  branches = sum(re.fullmatch(r'context\.conv[1-9]\d*\.weight', name) is not None for name in tensors)
  use_context = any(name.startswith('context.') for name in tensors)
  if use_context and branches != len(dilations):
    raise ValueError(
      f'dilations: {len(dilations)} rates {tuple(dilations)} given, but the context block in the state dict '
      f'has {branches} convolutions; give a rate for each'
    )
  width, channels, *_ = _kernel_shape(tensors, 'res1.conv0.weight')
  fields = {'width': width, 'channels': channels, 'last_kernel': _kernel_shape(tensors, 'out.weight')[2]}
  use_rsab = any('.dcnpack.' in name for name in tensors)
  if use_rsab:
    outputs = _kernel_shape(tensors, 'dres1.dcnpack.conv_offset_mask.weight')[0]
    if outputs % _OUTPUTS_PER_GROUP:
      raise ValueError(
        f'dres1.dcnpack.conv_offset_mask.weight: {outputs} outputs are not a multiple of '
        f'{_OUTPUTS_PER_GROUP}, the number for each deformable group'
      )
    fields['deformable_groups'] = outputs // _OUTPUTS_PER_GROUP
    fields['offset_width'] = _kernel_shape(tensors, 'offset1.offset_conv1.weight')[0]
  return SADNet(
    **fields,
    dilations=tuple(dilations),
    use_rsab=use_rsab,
    use_offset_transfer=not use_rsab or any('.offset_conv2.' in name for name in tensors),
    use_context=use_context,
  )


def check_in_authors_code(model: SADNet) -> None:
  """Raises ValueError, naming the reasons, if the authors' code cannot compute a network."""
  supported = {
    'use_rsab': (True,),
    'use_offset_transfer': (True,),
    'use_context': (True,),
    'rsab_order': ('deform_first',),
    'last_kernel': (3,),
    'deformable_groups': (8,),
    'dilations': ((1, 2, 3, 4), (1, 2, 4, 8)),
  }
  values = {name: getattr(model, name) for name in supported} | {'dilations': tuple(model.dilations)}
  unsupported = [
    f'{name} is {values[name]}, only {" or ".join(map(str, accepted))} is supported'
    for name, accepted in supported.items()
    if values[name] not in accepted
  ]
  # Their residual blocks have the first convolution only where it changes the number of channels.
  if model.width == model.channels:
    unsupported.append(f'width is {model.width}, which must differ from the number of channels')
  if unsupported:
    raise ValueError(f"the authors' code has no such network: {'; '.join(unsupported)}")


def _without_prefix(state_dict):
  with_prefix = [name for name in state_dict if name.startswith(_PREFIX)]
  if with_prefix and len(with_prefix) != len(state_dict):
    without = next(name for name in state_dict if not name.startswith(_PREFIX))
    raise ValueError(
      f'{len(with_prefix)} of {len(state_dict)} names in the state dict have the prefix {_PREFIX}: '
      f'{with_prefix[0]} does, {without} does not; rename the tensors'
    )
  return {name.removeprefix(_PREFIX): tensor for name, tensor in state_dict.items()}


def _kernel_shape(tensors, name):
  if name not in tensors:
    raise ValueError(
      f"the state dict is not one of the authors' SADNet: {name} is missing among its {len(tensors)} tensors "
      f'({", ".join(list(tensors)[:3])}, ...)'
    )
  shape = np.shape(tensors[name])
  if len(shape) != 4:
    raise ValueError(f'{name}: shape {shape} is not that of a convolution kernel, which has 4 axes')
  return shape


def _leaves(params):
  return {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _names(path):
  return tuple(key.key for key in path)


def _authors_name(path):
  *modules, kind = path
  return '.'.join([*(_RENAMED.get(name, name) for name in modules), 'weight' if kind == 'kernel' else kind])


def _to_ours(path, tensor):
  if path[-1] != 'kernel' or tensor.ndim != 4:
    return tensor
  # In PyTorch, transposed convolutions are [I, O, Kh, Kw] and all others [O, I, Kh, Kw].
  return tensor.transpose((2, 3, 0, 1) if path[0].startswith('up') else (2, 3, 1, 0))


def _to_authors(path, array):
  if path[-1] != 'kernel':
    return array
  return array.transpose((2, 3, 0, 1) if path[0].startswith('up') else (3, 2, 0, 1))


def _modules():
  """The network's modules in the authors' order."""
  names = ['res1']
  for scale in range(2, SCALES + 1):
    names += [f'down{scale - 1}', f'res{scale}']
  names += ['context', f'offset{SCALES}', f'dres{SCALES}']
  for scale in range(SCALES - 1, 0, -1):
    names += [f'up{scale}', f'dconv{scale}_1', f'offset{scale}', f'dres{scale}']
  return [*names, 'out']


def _order(path):
  """Sort key for the order of the authors' network: module, deformable convolution first, number."""
  module, *inner, kind = path
  name = inner[0] if inner else ''
  first = list(_RENAMED).index(name) if name in _RENAMED else len(_RENAMED)
  number = re.search(r'\d+$', name)
  # 'fusion', without a number, comes after the convolutions that it joins.
  return _modules().index(module), first, int(number[0]) if number else math.inf, kind == 'bias'
