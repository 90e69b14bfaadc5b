"""Converts weights of the authors' PyTorch SADNet to ``.safetensors``, and back.

  python -m sadnet_jax.weights.convert model_0200_dict.pth color_50.safetensors
  python -m sadnet_jax.weights.convert color_50.safetensors model.pth

The extensions select the direction. PyTorch is not needed, and no code in a ``.pth`` file is executed. Such
files do not contain the rates of dilation: pass ``--dilations=1,2,4,8`` if they are not 1,2,3,4.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

import jax
import numpy as np

from sadnet_jax.files import local_path, one_line, refuse_existing
from sadnet_jax.weights import safetensors
from sadnet_jax.weights.authors import DILATIONS, check_in_authors_code, load_file, state_dict_from_params
from sadnet_jax.weights.index import file_sha256
from sadnet_jax.weights.paths import SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from sadnet_jax.weights.torch_files import write_state_dict


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command; an error is one line on stderr and exit status 1."""
  parser = _parser()
  options = parser.parse_args(arguments)
  try:
    print(_decodable(convert(**vars(options))))
  except (ValueError, OSError) as error:
    print(f'{parser.prog}: {one_line(error)}', file=sys.stderr)
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
  """Converts one file; the extensions select the direction.

  Args:
    source: ``.pth``, ``.pt`` or ``.safetensors``.
    target: ``.safetensors`` for the first two, ``.pth`` or ``.pt`` for the third.
    dilations: Rates of the network in a ``.pth`` file, separated by commas; None for 1,2,3,4.
    dtype: Dtype of the weights in the target, 'float32' or 'float16'.
    step: Training steps to record in a ``.safetensors`` file; None for 0.
    about: Description to record there.
    overwrite: Replace an existing target.

  Returns:
    A line that describes what was written.

  Raises:
    ValueError: The file cannot be converted; nothing is written.
  """
  source, target = local_path(source), local_path(target)
  to_ours = source.suffix in TORCH_SUFFIXES and target.suffix == SAFETENSORS_SUFFIX
  if not to_ours and not (source.suffix == SAFETENSORS_SUFFIX and target.suffix in TORCH_SUFFIXES):
    raise ValueError(
      f'cannot convert {source.name} to {target.name}; one must be a {" or ".join(TORCH_SUFFIXES)} file and '
      f'the other a {SAFETENSORS_SUFFIX} file'
    )
  if not target.parent.is_dir():
    raise ValueError(f'{target}: the folder does not exist')
  refuse_existing(target, overwrite=overwrite)
  if step is not None and step < 0:
    raise ValueError(f'--step: {step} is negative')
  if to_ours:
    model = _to_ours(source, target, _rates(dilations), dtype, step or 0, about or '', overwrite)
  elif given := [n for n, v in (('dilations', dilations), ('step', step), ('about', about)) if v is not None]:
    raise ValueError(f'{target.name} cannot record --{", --".join(given)}; omit it')
  else:
    model = _to_torch(source, target, dtype, overwrite)
  rates = ', '.join(map(str, model.dilations))
  return (
    f'{target}: {target.stat().st_size / 1e6:.1f} MB, {dtype}; channels {model.channels}, '
    f'width {model.width}, offset width {model.offset_width}, dilations {rates}'
  )


def _to_ours(source, target, dilations, dtype, step, about, overwrite):
  model, params = load_file(source, dilations=dilations)
  metadata = {'source': _decodable(source.name), 'source_sha256': file_sha256(source), 'about': about}
  fields = safetensors.fields_of(model)
  with np.errstate(over='ignore'):
    safetensors.save_weights(
      target, params, model=fields, step=step, about=metadata, dtype=dtype, overwrite=overwrite
    )
  return model


def _to_torch(source, target, dtype, overwrite):
  model, params, _ = safetensors.load_with_model(source)
  try:
    check_in_authors_code(model)
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from error
  with np.errstate(over='ignore'):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  state_dict = state_dict_from_params(params)
  for name, array in state_dict.items():
    if not np.isfinite(array).all():
      raise ValueError(f'{name} has values that are not finite in {dtype}')
  write_state_dict(target, state_dict, overwrite=overwrite)
  return model


def _decodable(name):
  """Replaces the bytes in a file name that are not text."""
  return name.encode(errors='replace').decode()


def _rates(text):
  if text is None:
    return DILATIONS
  try:
    return tuple(int(rate) for rate in text.split(','))
  except ValueError:
    raise ValueError(f'--dilations: {text} is not a list of whole numbers such as 1,2,4,8') from None


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m sadnet_jax.weights.convert',
    description="Converts weights of the authors' PyTorch SADNet to .safetensors, and back.",
  )
  parser.add_argument('source', metavar='INPUT', type=Path, help='*.pth, *.pt or *.safetensors')
  parser.add_argument('target', metavar='OUTPUT', type=Path, help='*.safetensors, or *.pth, *.pt')
  parser.add_argument('--dilations', help='dilations of the network in a .pth file (default: 1,2,3,4)')
  parser.add_argument(
    '--dtype',
    choices=('float32', 'float16'),
    default='float32',
    help='dtype of the weights in OUTPUT (default: float32)',
  )
  parser.add_argument('--step', type=int, help='training steps to record in a .safetensors file (default: 0)')
  parser.add_argument('--about', help='description to record in a .safetensors file')
  parser.add_argument('--overwrite', action='store_true', help='replace an existing OUTPUT')
  return parser


if __name__ == '__main__':
  main()
