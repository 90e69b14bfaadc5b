"""Converts weights of the authors' PyTorch SADNet to a file of ours, and back.

  python -m sadnet_jax.weights.convert model_0200_dict.pth color_50.safetensors
  python -m sadnet_jax.weights.convert color_50.safetensors model.pth

The endings say which way. PyTorch is not needed, and no code of a .pth file is run. Such a
file does not tell the rates of dilation: give ``--dilations=1,2,4,8`` if they are not 1,2,3,4.
"""

import argparse
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import sys
from typing import Any

import jax
import numpy as np

from sadnet_jax.nn.sadnet import SADNet, param_shapes
from sadnet_jax.weights import safetensors
from sadnet_jax.weights.authors import (
  check_in_authors_code,
  model_from_state_dict,
  params_from_state_dict,
  state_dict_from_params,
)
from sadnet_jax.weights.index import file_sha256
from sadnet_jax.weights.torch_files import read_state_dict, write_state_dict

_NAME = 'convert_weights'
_TORCH = ('.pth', '.pt')
_DILATIONS = (1, 2, 3, 4)


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command; an error ends it with one line and exit status 1."""
  options = _parser().parse_args(arguments)
  try:
    print(_text(convert(**vars(options))))
  except (ValueError, OSError) as error:
    print(f'{_NAME}: {" ".join(str(error).split())}', file=sys.stderr)
    raise SystemExit(1) from None


def convert(
  source: Path,
  target: Path,
  *,
  dilations: str | None = None,
  dtype: str = 'float32',
  step: int | None = None,
  about: str | None = None,
  overwrite: bool = False,
) -> str:
  """Converts one file; the endings of the two say which way.

  Args:
    source: *.pth, *.pt or *.safetensors.
    target: *.safetensors for the first two, *.pth or *.pt for the third.
    dilations: Rates of a .pth file's network, with commas; None for 1,2,3,4.
    dtype: Of the weights in the target, 'float32' or 'float16'.
    step: Training steps to state in a .safetensors file; None for 0.
    about: What to tell of the weights there.
    overwrite: Write over a target that is there.

  Returns:
    A line that says what was written.

  Raises:
    ValueError: What cannot be converted, and why; then nothing is written.
  """
  to_ours = source.suffix in _TORCH and target.suffix == safetensors.SUFFIX
  if not to_ours and not (source.suffix == safetensors.SUFFIX and target.suffix in _TORCH):
    raise ValueError(
      f'the endings: got {source.name} and {target.name}, want .pth (or .pt) and {safetensors.SUFFIX}, '
      'in either order'
    )
  if not target.parent.is_dir():
    raise ValueError(f'{target}: got a folder that is not there, want one that is')
  if target.exists() and not overwrite:
    raise ValueError(f'{target}: got a file that is there, want another name, or pass --overwrite')
  if step is not None and step < 0:
    raise ValueError(f'--step: got {step}, want at least 0')
  if to_ours:
    model = _to_ours(source, target, _rates(dilations), dtype, step or 0, about or '')
  elif given := [n for n, v in (('dilations', dilations), ('step', step), ('about', about)) if v is not None]:
    raise ValueError(f'got --{", --".join(given)} for {target.name}, which has no place for that, want none')
  else:
    model = _to_torch(source, target, dtype)
  rates = ', '.join(map(str, model.dilations))
  return (
    f'{target}: {target.stat().st_size / 1e6:.1f} MB, {dtype}; channels {model.channels}, '
    f'width {model.width}, offset width {model.offset_width}, dilations {rates}'
  )


def _to_ours(source, target, dilations, dtype, step, about):
  state_dict = read_state_dict(source)
  try:
    model = model_from_state_dict(state_dict, dilations=dilations)
    params = params_from_state_dict(state_dict, param_shapes(model))
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from error
  metadata = {'source': _text(source.name), 'source_sha256': file_sha256(source), 'about': about}
  with np.errstate(over='ignore'):
    safetensors.save_weights(target, params, model=_fields(model), step=step, about=metadata, dtype=dtype)
  return model


def _to_torch(source, target, dtype):
  model, params, _ = safetensors.load_with_model(source)
  try:
    check_in_authors_code(model)
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from error
  with np.errstate(over='ignore'):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  state_dict = state_dict_from_params(params)
  if unfit := [name for name, array in state_dict.items() if not np.isfinite(array).all()]:
    raise ValueError(f'{unfit[0]}: got weights that are not finite in {dtype}, want numbers')
  write_state_dict(target, state_dict)
  return model


def _fields(model: SADNet) -> dict[str, Any]:
  """The fields of a config's ``model``."""
  names = [field.name for field in dataclasses.fields(model) if field.name not in ('parent', 'name')]
  return {**{name: getattr(model, name) for name in names}, 'dtype': 'float32'}


def _text(name):
  """A file's name, which may have bytes that are no text."""
  return name.encode(errors='replace').decode()


def _rates(text):
  if text is None:
    return _DILATIONS
  try:
    return tuple(int(rate) for rate in text.split(','))
  except ValueError:
    raise ValueError(f'--dilations: got {text}, want whole numbers, such as 1,2,4,8') from None


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog=_NAME, description="Converts weights of the authors' PyTorch SADNet to a file of ours, and back."
  )
  parser.add_argument('source', metavar='INPUT', type=Path, help='*.pth, *.pt or *.safetensors')
  parser.add_argument('target', metavar='OUTPUT', type=Path, help='*.safetensors, or *.pth, *.pt')
  parser.add_argument('--dilations', help='rates of the network in a .pth file (1,2,3,4)')
  parser.add_argument(
    '--dtype', choices=('float32', 'float16'), default='float32', help='of the weights in OUTPUT (float32)'
  )
  parser.add_argument('--step', type=int, help='training steps to state in a .safetensors file (0)')
  parser.add_argument('--about', help='what to tell of the weights in a .safetensors file')
  parser.add_argument('--overwrite', action='store_true', help='write over a file that is there')
  return parser


if __name__ == '__main__':
  main()
