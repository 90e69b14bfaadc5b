"""SIDD (Smartphone Image Denoising Dataset): blocks of its validation and benchmark, and submissions.

Validation is 40 images x 32 blocks of 256x256 with ground truth, the benchmark as many
without. Images and blocks are counted from 1 in names: '0001_01' is the first block of the first
image, '0040_32' the last of all.

A submission has one of three forms: `write_cell_submission` (SubmitSrgb.mat with blocks of
singles, as SIDD's own code writes), `write_uint8_submission` (SubmitSrgb.mat with one 5-D array), and
`write_csv_submission` (SubmitSrgb.csv). Check each with `submission_check`.
"""

import base64
from collections.abc import Iterator
import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sadnet_jax.data.test_sets import SIDD_FILES
from sadnet_jax.evaluation.submissions.mat_files import new_file, read_variables, write_variables
from sadnet_jax.images.arrays import to_uint8

IMAGES, BLOCKS, BLOCK_PX = 40, 32, 256
MAT_FILE, CSV_FILE = 'SubmitSrgb.mat', 'SubmitSrgb.csv'
CSV_HEADER = 'ID,BLOCK'
VARIABLE = 'DenoisedBlocksSrgb'
# SIDD's server refused larger files.
LARGEST_BYTES = 900_000_000


class SiddBlock(NamedTuple):
  """One block: its name, uint8 [H, W, 3], and the same without noise where that is public."""

  name: str
  noisy: np.ndarray
  clean: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class SiddBlocks:
  """All blocks of a part of SIDD; each is copied out when it is its turn, image by image.

  Attributes:
    part: 'validation' or 'benchmark'.
    noisy: uint8 [images, blocks, H, W, 3], RGB.
    clean: The same without noise; None for the benchmark.
  """

  part: str
  noisy: np.ndarray
  clean: np.ndarray | None

  def __len__(self) -> int:
    """Number of blocks of all images."""
    return self.noisy.shape[0] * self.noisy.shape[1]

  def __iter__(self) -> Iterator[SiddBlock]:
    """Yields image by image, and block by block in each."""
    return (self[number] for number in range(len(self)))

  def __getitem__(self, number: int) -> SiddBlock:
    """A block by its number from 0 in that order, copied out."""
    index = np.unravel_index(number, self.noisy.shape[:2])
    # The files are in MATLAB's order: a block's pixels lie far apart until they are copied.
    clean = None if self.clean is None else np.ascontiguousarray(self.clean[index])
    return SiddBlock(block_name(*map(int, index)), np.ascontiguousarray(self.noisy[index]), clean)

  @property
  def label(self) -> str:
    """'1280 blocks', or how many there are instead."""
    complete = (IMAGES, BLOCKS, BLOCK_PX, BLOCK_PX, 3)
    images, blocks, height, width, _ = self.noisy.shape
    if self.noisy.shape == complete:
      return f'{len(self)} blocks'
    return (
      f'{len(self)} blocks ({images} images x {blocks} of {width}x{height}), not the {IMAGES * BLOCKS} '
      f'({IMAGES} x {BLOCKS} of {BLOCK_PX}x{BLOCK_PX}) of SIDD {self.part}'
    )


def block_name(image: int, block: int) -> str:
  """(0, 0) -> '0001_01'."""
  return f'{image + 1:04}_{block + 1:02}'


def read_sidd(folder: str | Path, part: str) -> SiddBlocks:
  """Reads the blocks of SIDD validation or of its benchmark.

  Args:
    folder: With the .mat files in it.
    part: 'validation' or 'benchmark'.

  Returns:
    The blocks; 250 MB an array of 1280.

  Raises:
    ValueError: Unknown part; a file that is missing, damaged, or has other content;
      noisy and clean blocks of different shapes.
  """
  if part not in SIDD_FILES:
    raise ValueError(f'part: got {part!r}, want one of {", ".join(SIDD_FILES)}')
  path, *clean_paths = (Path(folder) / name for name in SIDD_FILES[part])
  if not clean_paths:
    return SiddBlocks(part, _read_blocks(path), None)
  clean_path = clean_paths[0]
  noisy, clean = _read_blocks(path), _read_blocks(clean_path)
  if noisy.shape != clean.shape:
    raise ValueError(
      f'{clean_path}: got blocks {clean.shape}, want {noisy.shape} as in {path.name} '
      '(both files must be of one download)'
    )
  return SiddBlocks(part, noisy, clean)


def _read_blocks(path):
  blocks = read_variables(path, path.stem)[path.stem]
  if blocks.dtype != np.uint8 or blocks.ndim != 5 or blocks.shape[-1] != 3 or not blocks.size:
    raise ValueError(
      f'{path}: got {path.stem} of {blocks.dtype} {blocks.shape}, want uint8 [images, blocks, height, '
      f'width, 3] such as {(IMAGES, BLOCKS, BLOCK_PX, BLOCK_PX, 3)} (is it the sRGB file of SIDD?)'
    )
  return blocks


class _Single:
  """A block that becomes single precision in [0, 1] when SciPy writes it: all at once are 1 GB."""

  def __init__(self, block: np.ndarray):
    self._block = block

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    if self._block.dtype == np.uint8:
      return self._block.astype(np.float32) / np.float32(255)
    return np.clip(self._block, 0, 1).astype(np.float32)


def write_cell_submission(
  folder: str | Path,
  blocks: np.ndarray,
  *,
  seconds_per_megapixel: float,
  method_name: str,
  authors: str = '',
  paper_title: str = '',
  venue: str = '',
  overwrite: bool = False,
) -> Path:
  """Writes SubmitSrgb.mat with a cell of blocks of singles, those of floats not rounded.

  SciPy compresses the cell in memory: of 1280 blocks that takes up to 3 GB besides the array
  given, and minutes. Floats barely shrink, to 850 to 890 MB, just below what SIDD's server
  took; the same from uint8 to a third of that.

  Args:
    folder: Where to write; made if need be.
    blocks: Denoised [images, blocks, H, W, 3]: float, clipped to [0, 1] here, or uint8.
    seconds_per_megapixel: Time to denoise a million pixels (TimeMPSrgb).
    method_name: OptionalData.MethodName.
    authors: OptionalData.Authors.
    paper_title: OptionalData.PaperTitle.
    venue: OptionalData.Venue.
    overwrite: Whether the file may be there already.

  Returns:
    The file.

  Raises:
    ValueError: The file exists; the blocks are of another kind or not finite; the time
      is none; or the file is written and larger than SIDD's server took.
  """
  _check_blocks(blocks)
  if not 0 <= seconds_per_megapixel < float('inf'):
    raise ValueError(f'seconds_per_megapixel: got {seconds_per_megapixel}, want a time of 0 or more')
  cells = np.empty(blocks.shape[:2], object)
  for index in np.ndindex(cells.shape):
    cells[index] = _Single(blocks[index])
  texts = {'MethodName': method_name, 'Authors': authors, 'PaperTitle': paper_title, 'Venue': venue}
  content = {VARIABLE: cells, 'TimeMPSrgb': float(seconds_per_megapixel), 'OptionalData': texts}
  return _write_mat(Path(folder), content, overwrite)


def write_uint8_submission(folder: str | Path, blocks: np.ndarray, *, overwrite: bool = False) -> Path:
  """Writes SubmitSrgb.mat with one uint8 array [images, blocks, H, W, 3].

  Args:
    folder: Where to write; made if need be.
    blocks: Denoised [images, blocks, H, W, 3]: uint8, or float, clipped to [0, 1] and
      rounded to the nearest of 256 levels here.
    overwrite: Whether the file may be there already.

  Returns:
    The file.

  Raises:
    ValueError: As `write_cell_submission`.
  """
  _check_blocks(blocks)
  levels = blocks
  if blocks.dtype != np.uint8:
    levels = np.empty(blocks.shape, np.uint8)
    for index in np.ndindex(blocks.shape[:2]):
      levels[index] = to_uint8(blocks[index])
  return _write_mat(Path(folder), {VARIABLE: levels}, overwrite)


def write_csv_submission(folder: str | Path, blocks: np.ndarray, *, overwrite: bool = False) -> Path:
  """Writes SubmitSrgb.csv: a row a block, its number from 0, image by image, and its bytes in base64.

  Args:
    folder: Where to write; made if need be.
    blocks: As for `write_uint8_submission`; bytes are in C order, rows of RGB pixels.
    overwrite: Whether the file may be there already.

  Returns:
    The file; 335 MB for 1280 blocks.

  Raises:
    ValueError: The file exists; the blocks are of another kind or not finite.
  """
  _check_blocks(blocks)
  path = Path(folder) / CSV_FILE
  with new_file(path, overwrite=overwrite) as temporary, open(temporary, 'w', newline='\n') as file:
    file.write(f'{CSV_HEADER}\n')
    for number, index in enumerate(np.ndindex(blocks.shape[:2])):
      block = blocks[index] if blocks.dtype == np.uint8 else to_uint8(blocks[index])
      file.write(f'{number},{base64.b64encode(block.tobytes(order="C")).decode("ascii")}\n')
  return path


def _check_blocks(blocks):
  if blocks.ndim != 5 or blocks.shape[-1] != 3 or blocks.dtype not in (np.uint8, np.float32, np.float64):
    raise ValueError(
      f'blocks: got {blocks.dtype} {blocks.shape}, want float32 or uint8 [images, blocks, height, width, 3]'
    )
  if blocks.dtype == np.uint8:
    return
  for index in np.ndindex(blocks.shape[:2]):
    if not np.isfinite(blocks[index]).all():
      raise ValueError(f'block {block_name(*index)}: got NaN or infinity, want numbers (is the model sound?)')


def _write_mat(folder, content, overwrite):
  path = folder / MAT_FILE
  write_variables(path, content, overwrite=overwrite)
  size_bytes = path.stat().st_size
  if size_bytes > LARGEST_BYTES:
    raise ValueError(
      f'{path}: got {size_bytes / 1e6:.0f} MB, want at most {LARGEST_BYTES / 1e6:.0f}: the server of SIDD '
      'refused larger files (it is written; blocks rounded to 8 bits are smaller, in any form)'
    )
  return path
