"""Weights of the authors' PyTorch SADNet as Flax parameters.

The authors' checkpoints are a flat dictionary of tensors in NCHW / OIHW layout,
``res1.conv0.weight`` and so on; ours is a tree in NHWC / HWIO layout. Names agree
except for the deformable convolution, which the authors keep under ``dcnpack``.
"""

from collections.abc import Mapping
import re

import jax
import numpy as np

# Authors' module path -> ours, first match wins.
_RENAMED = (
  (r'^(dres\d)\.dcnpack\.conv_offset_mask$', r'\1.conv_offset_mask'),
  (r'^(dres\d)\.dcnpack$', r'\1.deform_conv'),
)
_TRANSPOSED_CONVOLUTION = re.compile(r'^up\d$')


def params_from_state_dict(state_dict: Mapping[str, np.ndarray], template: dict) -> dict:
  """Converts the authors' state dict to the parameters of `SADNet`.

  Args:
    state_dict: Tensor name -> array, with or without the prefix ``module.`` that
      PyTorch's DataParallel adds.
    template: Parameters (or their shapes, as from ``jax.eval_shape``) of the
      SADNet to fill; nested dict with leaves that have ``shape`` and ``dtype``.

  Returns:
    Parameters like ``template``.

  Raises:
    ValueError: A tensor is missing, left over, or of another shape; all are named.
  """
  wanted = {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(template)}
  converted = {}
  unexpected, misshapen = [], []
  for name, tensor in state_dict.items():
    path, array = _convert(name.removeprefix('module.'), np.asarray(tensor))
    if path not in wanted:
      unexpected.append(name)
    elif array.shape != wanted[path].shape:
      misshapen.append(f'{name} is {array.shape} in our layout, want {wanted[path].shape}')
    else:
      converted[path] = array.astype(wanted[path].dtype)
  missing = ['.'.join(path) for path in wanted if path not in converted]
  if unexpected or missing or misshapen:
    raise ValueError(
      'the state dict does not fit this SADNet (check channels, width, offset width, options): '
      f'unexpected tensors {unexpected}; missing {missing}; of another shape {misshapen}'
    )
  return jax.tree_util.tree_map_with_path(lambda path, _: converted[tuple(k.key for k in path)], template)


def _convert(name: str, tensor: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
  module, _, kind = name.rpartition('.')
  # In PyTorch a transposed convolution is [I, O, Kh, Kw], any other [O, I, Kh, Kw].
  axes = (2, 3, 0, 1) if _TRANSPOSED_CONVOLUTION.match(module) else (2, 3, 1, 0)
  for pattern, replacement in _RENAMED:
    module, changed = re.subn(pattern, replacement, module)
    if changed:
      break
  if kind == 'weight' and tensor.ndim == 4:
    return (*module.split('.'), 'kernel'), tensor.transpose(axes)
  return (*module.split('.'), kind), tensor
