"""Reads a submission to SIDD or DND as a server would, and reports what is wrong with it.

  python -m sadnet_jax.evaluation.submissions.check results/SubmitSrgb.csv
  python -m sadnet_jax.evaluation.submissions.check results/dnd

Names, counts, shapes, types and ranges are checked, not the quality of the images.
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
from sadnet_jax.files import local_path, one_line, print_any_name

_SHOWN = 5  # Number of problems in a message; the rest are counted.


def check_sidd_submission(
  path: str | Path, *, images: int = sidd.IMAGES, blocks: int = sidd.BLOCKS, block_px: int = sidd.BLOCK_PX
) -> str:
  """Checks SubmitSrgb.mat, with a cell or a uint8 array, or SubmitSrgb.csv.

  Args:
    path: The file.
    images: Number of images.
    blocks: Number of blocks per image.
    block_px: Height and width of a block.

  Returns:
    A sentence that describes the submission.

  Raises:
    ValueError: The submission is not valid; the message has the first problems and their number.
  """
  path = Path(path)
  if path.name not in (sidd.MAT_FILE, sidd.CSV_FILE) or not path.is_file():
    raise ValueError(f'{path}: a submission to SIDD is a file {sidd.MAT_FILE} or {sidd.CSV_FILE}')
  size_bytes = path.stat().st_size
  problems: Iterator[str] = iter(())
  if size_bytes > sidd.MAX_BYTES:
    limit = f'the server of SIDD accepts at most {sidd.MAX_BYTES / 1e6:.0f} MB'
    problems = iter([f'the file has {size_bytes / 1e6:.0f} MB, and {limit}'])
  shape = (images, blocks, block_px, block_px, 3)
  if path.name == sidd.CSV_FILE:
    form, found = 'rows of base64', _csv_problems(path, shape)
  else:
    variables = read_variables(path)
    if sidd.VARIABLE not in variables:
      raise ValueError(
        f'{path}: no variable {sidd.VARIABLE}; the file has {", ".join(variables) or "none"} (cells cannot '
        'be read from version 7.3 of the format, only up to 7)'
      )
    is_cell = variables[sidd.VARIABLE].dtype == object
    form = 'a cell of singles' if is_cell else 'a uint8 array'
    found = (_cell_problems if is_cell else _uint8_problems)(variables, shape)
  _raise_problems(path, itertools.chain(problems, found))
  count = f'{images * blocks} blocks of {block_px}x{block_px}'
  return f'{path}: {count} as {form}, {size_bytes / 1e6:.1f} MB, no problem'


def check_dnd_submission(
  folder: str | Path, *, images: int = dnd.IMAGES, boxes: int = dnd.BOXES, patch_px: int = dnd.PATCH_PX
) -> str:
  """Checks the files of all patches and, if there is a folder ``bundled``, that it has the same patches.

  Args:
    folder: Contains the files of `dnd.write_patch`.
    images: Number of images.
    boxes: Number of boxes per image.
    patch_px: Height and width of a box.

  Returns:
    A sentence that describes the submission.

  Raises:
    ValueError: The submission is not valid; the message has the first problems and their number.
  """
  folder = Path(folder)
  if not any(folder.glob('*.mat')):
    raise ValueError(f'{folder}: no .mat file; a submission has 0001_01.mat to {images:04}_{boxes:02}.mat')
  bundled = folder / dnd.BUNDLE_FOLDER
  shape = (patch_px, patch_px, 3)
  names = {dnd.patch_name(i + 1, k + 1) for i in range(images) for k in range(boxes)}
  problems = _unexpected_files(folder, names)
  if bundled.is_dir():
    problems += _unexpected_files(bundled, {f'{i + 1:04}' for i in range(images)})
  for image in range(1, images + 1):
    crops, found = _read_patches(folder, image, boxes, shape)
    problems += found
    if bundled.is_dir():
      problems += _bundle_problems(bundled / f'{image:04}.mat', crops, shape)
  _raise_problems(folder, problems)
  bundles = f'{images} bundles of them' if bundled.is_dir() else 'no bundle'
  return f'{folder}: {len(names)} patches of {patch_px}x{patch_px}, {bundles}, no problem'


def _raise_problems(path, problems):
  found = list(problems)
  if found:
    more = f'; and {len(found) - _SHOWN} more' if len(found) > _SHOWN else ''
    count = '1 problem' if len(found) == 1 else f'{len(found)} problems'
    raise ValueError(f'{path}: {count}: {"; ".join(found[:_SHOWN])}{more}')


def _image_problem(image, shape):
  """Returns what is wrong with an image of singles in [0, 1], or None."""
  if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.shape != shape:
    actual = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
    return f'must be single {shape}, not {actual}'
  if not np.isfinite(image).all():
    return 'contains NaN or infinity'
  if image.min() < 0 or image.max() > 1:
    return f'values must be in [0, 1], not {image.min():g} to {image.max():g}'
  return None


# --- SIDD: SubmitSrgb.mat


def _uint8_problems(variables, shape):
  array = variables[sidd.VARIABLE]
  if array.dtype != np.uint8 or array.shape != shape:
    yield f'{sidd.VARIABLE} must be uint8 {shape}, or a cell of singles, not {array.dtype} {array.shape}'


def _cell_problems(variables, shape):
  cells = variables[sidd.VARIABLE]
  if cells.shape != shape[:2]:
    yield f'{sidd.VARIABLE} must be a cell {shape[:2]}, not {cells.shape}'
  for index, block in np.ndenumerate(cells):
    if problem := _image_problem(block, shape[2:]):
      yield f'block {sidd.block_name(*index[:2])}: {problem}'
  seconds = variables.get('TimeMPSrgb')
  if seconds is None or seconds.size != 1 or seconds.dtype.kind not in 'iuf':
    yield 'TimeMPSrgb must be a number, the seconds per megapixel'
  elif not 0 <= seconds.item() < float('inf'):
    yield f'TimeMPSrgb must be finite and at least 0, not {seconds.item()}'
  if 'OptionalData' not in variables:
    yield 'OptionalData is missing, a struct with the name of the method'
  elif 'MethodName' not in (variables['OptionalData'].dtype.names or ()):
    yield 'OptionalData has no MethodName'


# --- SIDD: SubmitSrgb.csv


def _csv_problems(path, shape):
  count, size = shape[0] * shape[1], shape[2] * shape[3] * shape[4]
  # Line by line: the module csv refuses fields as long as these.
  with open(path, encoding='ascii', errors='replace', newline='') as file:
    header = file.readline().rstrip('\r\n')
    if header != sidd.CSV_HEADER:
      yield f'row 1 must be {sidd.CSV_HEADER}, not {_shorten(header)}'
    number = -1
    for number, row in enumerate(file):
      if problem := _row_problem(row.rstrip('\r\n'), number, size):
        yield f'row {number + 2}: {problem}'
  if number + 1 != count:
    yield f'there must be {count} rows below the header, not {number + 1}'


def _row_problem(row, number, size):
  identifier, comma, text = row.partition(',')
  if identifier != str(number) or not comma:
    return f'the ID must be {number}, not {_shorten(identifier)}'
  try:
    block = base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    return f'the BLOCK is not valid base64 ({error})'
  return None if len(block) == size else f'the BLOCK must have {size} bytes, not {len(block)}'


def _shorten(text):
  return repr(text if len(text) <= 40 else f'{text[:40]}...')


# --- DND


def _unexpected_files(folder, names):
  extra = sorted(path.name for path in folder.glob('*.mat') if path.stem not in names)
  return [f'{folder.name}/{name} is not a file of DND' for name in extra]


def _read_patches(folder, image, boxes, shape):
  """Returns the patches of an image, None in place of invalid ones, and the problems."""
  crops, problems = [], []
  for box in range(1, boxes + 1):
    path = folder / f'{dnd.patch_name(image, box)}.mat'
    crop, problem = _read_or_problem(path, dnd.PATCH_VARIABLE)
    problem = problem or _image_problem(crop[dnd.PATCH_VARIABLE], shape)
    if problem:
      problems.append(f'{path.name}: {problem}')
    crops.append(None if problem else crop[dnd.PATCH_VARIABLE])
  return crops, problems


def _read_or_problem(path, *names):
  """Returns (variables, None) or (None, problem)."""
  if not path.is_file():
    return None, 'no such file'
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
    version = variables['eval_version'].tolist()
    problems.append(f'{name}: eval_version must be {dnd.EVAL_VERSION}, not {version}')
  if variables['israw'].tolist() != [[0]]:
    problems.append(f'{name}: israw must be false, not {variables["israw"].tolist()}')
  cells = variables[dnd.BUNDLE_VARIABLE]
  if cells.dtype != object or cells.shape != (1, len(crops)):
    return [*problems, f'{name}: must have a cell (1, {len(crops)}), not {cells.dtype} {cells.shape}']
  for box, (cell, crop) in enumerate(zip(cells[0], crops, strict=True), 1):
    problem = _image_problem(cell, shape)
    if not problem and crop is not None and not np.array_equal(cell, crop):
      problem = 'differs from the file of the patch; bundle again'
    if problem:
      problems.append(f'{name}, patch {box}: {problem}')
  return problems


def main() -> None:
  """Checks the submission given on the command line; exits with status 1 if it is not valid."""
  print_any_name()
  parser = argparse.ArgumentParser(
    prog='python -m sadnet_jax.evaluation.submissions.check',
    description='Checks a submission to SIDD or DND and reports what is wrong with it.',
  )
  parser.add_argument(
    'path', help=f'{sidd.MAT_FILE} or {sidd.CSV_FILE} for SIDD, a folder of patches for DND'
  )
  given = parser.parse_args().path
  try:
    path = local_path(given)
    print(check_dnd_submission(path) if path.is_dir() else check_sidd_submission(path))
  except ValueError as error:
    raise SystemExit(f'{parser.prog}: {one_line(error)}') from error


if __name__ == '__main__':
  main()
