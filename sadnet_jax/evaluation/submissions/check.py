"""Reads a submission to SIDD or DND as a server would, and says what is wrong with it.

  python -m sadnet_jax.evaluation.submissions.check results/SubmitSrgb.csv
  python -m sadnet_jax.evaluation.submissions.check results/dnd

Names, counts, shapes, types and values are checked; how good the images are is not.
"""

import argparse
import base64
import binascii
from collections.abc import Iterator
import itertools
from pathlib import Path

import numpy as np

from sadnet_jax.evaluation.submissions import dnd, sidd
from sadnet_jax.evaluation.submissions.mat_files import read_variables

_SHOWN = 5  # Problems named; the rest are counted.


def check_sidd_submission(
  path: str | Path, *, images: int = sidd.IMAGES, blocks: int = sidd.BLOCKS, block_px: int = sidd.BLOCK_PX
) -> str:
  """Checks SubmitSrgb.mat, with a cell or a uint8 array, or SubmitSrgb.csv.

  Args:
    path: The file.
    images: Number of images.
    blocks: Number of blocks of each.
    block_px: Height and width of a block.

  Returns:
    A sentence that says what was found.

  Raises:
    ValueError: The submission is wrong; the first problems are named and all counted.
  """
  path = Path(path)
  if path.name not in (sidd.MAT_FILE, sidd.CSV_FILE) or not path.is_file():
    raise ValueError(f'{path}: got no submission to SIDD, want a file {sidd.MAT_FILE} or {sidd.CSV_FILE}')
  size_bytes = path.stat().st_size
  problems: Iterator[str] = iter(())
  if size_bytes > sidd.LARGEST_BYTES:
    megabytes = f'{size_bytes / 1e6:.0f} MB, want at most {sidd.LARGEST_BYTES / 1e6:.0f}'
    problems = iter([f'file: got {megabytes} as the server of SIDD refused larger ones'])
  shape = (images, blocks, block_px, block_px, 3)
  if path.name == sidd.CSV_FILE:
    form, found = 'rows of base64', _csv_problems(path, shape)
  else:
    variables = read_variables(path)
    if sidd.VARIABLE not in variables:
      raise ValueError(
        f'{path}: got {", ".join(variables) or "no array"}, want {sidd.VARIABLE} '
        '(a cell of blocks is read from files of MATLAB up to version 7, not 7.3)'
      )
    is_cell = variables[sidd.VARIABLE].dtype == object
    form = 'a cell of singles' if is_cell else 'a uint8 array'
    found = (_cell_problems if is_cell else _uint8_problems)(variables, shape)
  _raise_problems(path, itertools.chain(problems, found))
  count = f'{images * blocks} blocks of {block_px}x{block_px}'
  return f'{path}: {count} as {form}, {size_bytes / 1e6:.1f} MB, no problem'


def _raise_problems(path, problems):
  found = list(problems)
  if found:
    more = f'; and {len(found) - _SHOWN} more' if len(found) > _SHOWN else ''
    count = '1 problem' if len(found) == 1 else f'{len(found)} problems'
    raise ValueError(f'{path}: got {count}, want none: {"; ".join(found[:_SHOWN])}{more}')


def _uint8_problems(variables, shape):
  array = variables[sidd.VARIABLE]
  if array.dtype != np.uint8 or array.shape != shape:
    yield f'{sidd.VARIABLE}: got {array.dtype} {array.shape}, want uint8 {shape}, or a cell of singles'


def _cell_problems(variables, shape):
  cells = variables[sidd.VARIABLE]
  if cells.shape != shape[:2]:
    yield f'{sidd.VARIABLE}: got a cell {cells.shape}, want {shape[:2]}'
  for index, block in np.ndenumerate(cells):
    if problem := _single_problem(block, shape[2:]):
      yield f'block {sidd.block_name(*index[:2])}: {problem}'
  yield from _time_problems(variables)
  if 'OptionalData' not in variables:
    yield 'OptionalData: got none, want a struct that names the method'
  elif 'MethodName' not in (variables['OptionalData'].dtype.names or ()):
    yield 'OptionalData: got no MethodName in it, want the name of the method'


def _time_problems(variables):
  seconds = variables.get('TimeMPSrgb')
  if seconds is None or seconds.size != 1 or seconds.dtype.kind not in 'iuf':
    yield 'TimeMPSrgb: got none, want the seconds a megapixel takes'
  elif not 0 <= seconds.item() < float('inf'):
    yield f'TimeMPSrgb: got {seconds.item()}, want 0 or more seconds a megapixel'


def _single_problem(image, shape):
  """What is wrong with an image of singles in [0, 1], or None."""
  if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.shape != shape:
    got = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
    return f'got {got}, want single {shape}'
  if not np.isfinite(image).all():
    return 'got NaN or infinity, want [0, 1]'
  if image.min() < 0 or image.max() > 1:
    return f'got values from {image.min():g} to {image.max():g}, want [0, 1]'
  return None


def _csv_problems(path, shape):
  count, size = shape[0] * shape[1], shape[2] * shape[3] * shape[4]
  # One row at a time: csv's reader refuses fields as long as these.
  with open(path, encoding='ascii', errors='replace', newline='') as file:
    header = file.readline().rstrip('\r\n')
    if header != sidd.CSV_HEADER:
      yield f'row 1: got {_shorten(header)}, want the header {sidd.CSV_HEADER}'
    number = -1
    for number, row in enumerate(file):
      if problem := _row_problem(row.rstrip('\r\n'), number, size):
        yield f'row {number + 2}: {problem}'
  if number + 1 != count:
    yield f'file: got {number + 1} rows, want {count} below the header'


def _row_problem(row, number, size):
  identifier, comma, text = row.partition(',')
  if identifier != str(number) or not comma:
    return f'got ID {_shorten(identifier)}, want {number}'
  try:
    block = base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    return f'got a BLOCK that is no base64 ({error}), want {size} bytes in base64'
  return None if len(block) == size else f'got a BLOCK of {len(block)} bytes, want {size}'


def _shorten(text):
  return repr(text if len(text) <= 40 else f'{text[:40]}...')


def check_dnd_submission(
  folder: str | Path, *, images: int = dnd.IMAGES, boxes: int = dnd.BOXES, patch_px: int = dnd.PATCH_PX
) -> str:
  """Checks a file a patch and, where there is a folder ``bundled``, that it holds the same.

  Args:
    folder: With the files of `dnd.write_patch`.
    images: Number of images.
    boxes: Number of boxes of each.
    patch_px: Height and width of a box.

  Returns:
    A sentence that says what was found.

  Raises:
    ValueError: The submission is wrong; the first problems are named and all counted.
  """
  folder = Path(folder)
  if not any(folder.glob('*.mat')):
    raise ValueError(f'{folder}: got no .mat file in it, want 0001_01.mat to {images:04}_{boxes:02}.mat')
  bundled = folder / dnd.BUNDLE_FOLDER
  shape = (patch_px, patch_px, 3)
  wanted = {dnd.patch_name(i + 1, k + 1) for i in range(images) for k in range(boxes)}
  problems = _unexpected(folder, wanted)
  if bundled.is_dir():
    problems += _unexpected(bundled, {f'{i + 1:04}' for i in range(images)})
  for image in range(1, images + 1):
    crops, found = _read_patches(folder, image, boxes, shape)
    problems += found
    if bundled.is_dir():
      problems += _bundle_problems(bundled / f'{image:04}.mat', crops, shape)
  _raise_problems(folder, problems)
  of_them = f'{images} bundles of the same' if bundled.is_dir() else 'no bundle'
  return f'{folder}: {len(wanted)} patches of {patch_px}x{patch_px}, {of_them}, no problem'


def _unexpected(folder, wanted):
  extra = sorted(path.name for path in folder.glob('*.mat') if path.stem not in wanted)
  return [f'{folder.name}/{name}: got a file of this name, want none besides those of DND' for name in extra]


def _read_patches(folder, image, boxes, shape):
  """Patches of an image, None where there is no good one, and what is wrong with them."""
  crops, problems = [], []
  for box in range(1, boxes + 1):
    path = folder / f'{dnd.patch_name(image, box)}.mat'
    crop, problem = _read_or_problem(path, dnd.PATCH_VARIABLE)
    problem = problem or _single_problem(crop[dnd.PATCH_VARIABLE], shape)
    if problem:
      problems.append(f'{path.name}: {problem}')
    crops.append(None if problem else crop[dnd.PATCH_VARIABLE])
  return crops, problems


def _read_or_problem(path, *names):
  """(variables, None), or (None, what is wrong)."""
  if not path.is_file():
    return None, 'got no such file, want it'
  try:
    return read_variables(path, *names), None
  except ValueError as error:
    return None, str(error).removeprefix(f'{path}: ')


def _bundle_problems(path, crops, shape):
  name = f'{path.parent.name}/{path.name}'
  variables, problem = _read_or_problem(path, dnd.BUNDLE_VARIABLE, 'israw', 'eval_version')
  if problem:
    return [f'{name}: {problem}']
  problems = []
  if variables['eval_version'].tolist() != [dnd.EVAL_VERSION]:
    problems.append(f'{name}: got eval_version {variables["eval_version"].tolist()}, want {dnd.EVAL_VERSION}')
  if variables['israw'].tolist() != [[0]]:
    problems.append(f'{name}: got israw {variables["israw"].tolist()}, want false')
  cells = variables[dnd.BUNDLE_VARIABLE]
  if cells.dtype != object or cells.shape != (1, len(crops)):
    return [*problems, f'{name}: got {cells.dtype} {cells.shape}, want a cell (1, {len(crops)})']
  for box, (cell, crop) in enumerate(zip(cells[0], crops, strict=True), 1):
    problem = _single_problem(cell, shape)
    if not problem and crop is not None and not np.array_equal(cell, crop):
      problem = 'got another image than in its own file, want the same (bundle again)'
    if problem:
      problems.append(f'{name}, patch {box}: {problem}')
  return problems


def main() -> None:
  """Checks the submission of the command line; ends with 1 where it is wrong."""
  parser = argparse.ArgumentParser(
    prog='sadnet_jax.evaluation.submissions.check',
    description='Says what is wrong with a submission to SIDD or DND.',
  )
  parser.add_argument(
    'path', type=Path, help=f'{sidd.MAT_FILE} or {sidd.CSV_FILE} for SIDD, a folder of patches for DND'
  )
  path = parser.parse_args().path
  try:
    print(check_dnd_submission(path) if path.is_dir() else check_sidd_submission(path))
  except ValueError as error:
    raise SystemExit(f'{parser.prog}: {error}') from error


if __name__ == '__main__':
  main()
