"""Weights of the authors' PyTorch SADNet as Flax parameters, and back.

The authors' checkpoints are a flat dictionary of tensors in NCHW / OIHW layout,
``res1.conv0.weight`` and so on; ours is a tree in NHWC / HWIO layout. Names agree
except for the deformable convolution, which the authors keep under ``dcnpack``.
"""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.nn.sadnet import SCALES, SADNet

# Our module -> the authors'.
_RENAMED = {'deform_conv': 'dcnpack', 'conv_offset_mask': 'dcnpack.conv_offset_mask'}
_PREFIX = 'module.'
# Offsets of 2 and a mask of 1 for each of the 9 taps.
_OUTPUTS_PER_GROUP = 27


def params_from_state_dict(state_dict: Mapping[str, np.ndarray], template: dict) -> dict:
  """Converts the authors' state dict to the parameters of `SADNet`.

  Args:
    state_dict: Tensor name -> array of any floating dtype, all with or all without the prefix
      ``module.`` that PyTorch's DataParallel adds.
    template: Parameters (or their shapes, as from ``jax.eval_shape``) of the
      SADNet to fill; nested dict with leaves that have ``shape`` and ``dtype``.

  Returns:
    Parameters like ``template``.

  Raises:
    ValueError: A tensor is missing, left over, or of another shape, or not floating point; all are
      named. Or the prefix is on some names only.
  """
  tensors = _without_prefix(state_dict)
  leaves = _leaves(template)
  wanted = {_authors_name(path): path for path in leaves}
  unexpected = [name for name in state_dict if name.removeprefix(_PREFIX) not in wanted]
  missing = [name for name in wanted if name not in tensors]
  converted, misshapen = {}, []
  for name, path in wanted.items():
    if name not in tensors:
      continue
    array, leaf = _to_ours(path, np.asarray(tensors[name])), leaves[path]
    if array.shape != leaf.shape:
      misshapen.append(f'{name} is {array.shape} in our layout, want {leaf.shape}')
    elif not jnp.issubdtype(array.dtype, jnp.floating):
      misshapen.append(f'{name} is {array.dtype}, want floating point')
    else:
      # What is too large becomes infinite; that is for the caller to refuse.
      with np.errstate(over='ignore'):
        converted[path] = array.astype(leaf.dtype)
  if unexpected or missing or misshapen:
    raise ValueError(
      'the state dict does not fit this SADNet (check channels, width, offset width, options): '
      f'unexpected tensors {unexpected}; missing {missing}; of another shape {misshapen}'
    )
  return jax.tree_util.tree_map_with_path(lambda path, _: converted[_names(path)], template)


def state_dict_from_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Converts parameters of `SADNet` to the authors' state dict, the inverse of `params_from_state_dict`.

  Args:
    params: Parameters of a SADNet.

  Returns:
    Tensor name -> array in PyTorch's layout and the parameter's dtype, in the order of the authors'
    network. Of a network that the authors' code has none of, names that it would have
    (`check_in_authors_code`).

  Raises:
    ValueError: A module is none of a SADNet's.
  """
  leaves = _leaves(params)
  if unknown := sorted({path[0] for path in leaves} - set(_modules())):
    raise ValueError(f'params: got modules {unknown}, want those of a SADNet')
  paths = sorted(leaves, key=_place)
  return {_authors_name(path): _to_authors(path, np.asarray(leaves[path])) for path in paths}


def model_from_state_dict(
  state_dict: Mapping[str, np.ndarray], *, dilations: Sequence[int] = (1, 2, 3, 4)
) -> SADNet:
  """The network that a state dict of the authors is for, as far as names and shapes tell.

  They do not tell the rates of dilation. The order of convolutions in the RSAB is taken to be that
  of the authors' code, 'deform_first'. `params_from_state_dict` checks all else.

  Args:
    state_dict: As for `params_from_state_dict`.
    dilations: Rates of the context block: (1, 2, 3, 4), or (1, 2, 4, 8) for the authors' ``square``.

  Raises:
    ValueError: A tensor that tells is missing or of another form; the number of rates is not that of
      the convolutions; or no SADNet is like that.
  """
  tensors = _without_prefix(state_dict)
  branches = sum(re.fullmatch(r'context\.conv[1-9]\d*\.weight', name) is not None for name in tensors)
  use_context = any(name.startswith('context.') for name in tensors)
  if use_context and branches != len(dilations):
    raise ValueError(
      f'dilations: got {len(dilations)} rates {tuple(dilations)}, want one for each of the {branches} '
      'convolutions of the context block in the state dict'
    )
  width, channels, *_ = _kernel_shape(tensors, 'res1.conv0.weight')
  fields = {'width': width, 'channels': channels, 'last_kernel': _kernel_shape(tensors, 'out.weight')[2]}
  use_rsab = any('.dcnpack.' in name for name in tensors)
  if use_rsab:
    outputs = _kernel_shape(tensors, 'dres1.dcnpack.conv_offset_mask.weight')[0]
    if outputs % _OUTPUTS_PER_GROUP:
      raise ValueError(
        f'dres1.dcnpack.conv_offset_mask.weight: got {outputs} outputs, want a multiple of '
        f'{_OUTPUTS_PER_GROUP}, as many for each deformable group'
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
  """Raises ValueError for a network that the authors' code cannot be made to compute, and says why."""
  fields = {
    'use_rsab': (model.use_rsab, 'True'),
    'use_offset_transfer': (model.use_offset_transfer, 'True'),
    'use_context': (model.use_context, 'True'),
    'rsab_order': (model.rsab_order == 'deform_first', 'deform_first'),
    'last_kernel': (model.last_kernel == 3, '3'),
    'deformable_groups': (model.deformable_groups == 8, '8'),
    'dilations': (tuple(model.dilations) in ((1, 2, 3, 4), (1, 2, 4, 8)), '(1, 2, 3, 4) or (1, 2, 4, 8)'),
    # There the first convolution is only where it changes the number of channels.
    'width': (model.width != model.channels, f'another number than the {model.channels} channels'),
  }
  others = [
    f'{name} {getattr(model, name)}, want {want}' for name, (holds, want) in fields.items() if not holds
  ]
  if others:
    raise ValueError(f"a network that the authors' code does not have: got {'; '.join(others)}")


def _without_prefix(state_dict):
  with_prefix = [name for name in state_dict if name.startswith(_PREFIX)]
  if with_prefix and len(with_prefix) != len(state_dict):
    without = [name for name in state_dict if not name.startswith(_PREFIX)]
    both = [name for name in without if _PREFIX + name in state_dict]
    raise ValueError(
      f'the state dict: got {len(with_prefix)} names with the prefix {_PREFIX} ({with_prefix[0]}) and '
      f'{len(without)} without ({without[0]}), the same with and without: {both}, want all or none'
    )
  return {name.removeprefix(_PREFIX): tensor for name, tensor in state_dict.items()}


def _kernel_shape(tensors, name):
  if name not in tensors:
    raise ValueError(
      f'the state dict: got no {name} among {len(tensors)} tensors ({", ".join(list(tensors)[:3])}, ...), '
      "want one of the authors' SADNet"
    )
  shape = np.shape(tensors[name])
  if len(shape) != 4:
    raise ValueError(f"{name}: got shape {shape}, want that of a convolution's kernel, 4 sides")
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
  # In PyTorch a transposed convolution is [I, O, Kh, Kw], any other [O, I, Kh, Kw].
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


def _place(path):
  """Sorts paths as the authors' network has them: by module, the deformable convolution first, by number."""
  module, *inner, kind = path
  name = inner[0] if inner else ''
  first = list(_RENAMED).index(name) if name in _RENAMED else len(_RENAMED)
  number = re.search(r'\d+$', name)
  # 'fusion' comes after the convolutions it joins.
  return _modules().index(module), first, int(number[0]) if number else math.inf, kind == 'bias'
