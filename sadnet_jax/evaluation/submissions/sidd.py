"""SIDD (Smartphone Image Denoising Dataset): validation and benchmark blocks, and submissions.

The validation set has 40 images x 32 blocks of 256x256 with ground truth, the benchmark as many without.
Names count images and blocks from 1: '0001_01' is the first block of the first image, '0040_32' the last.

A submission has one of three forms: `write_cell_submission` (SubmitSrgb.mat with blocks in single precision,
as SIDD's own code writes), `write_uint8_submission` (SubmitSrgb.mat with one 5-D array), and
`write_csv_submission` (SubmitSrgb.csv). `check.check_sidd_submission` checks all of them.
"""

import base64
from collections.abc import Iterator
import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sadnet_jax.data.test_sets import SIDD_FILES
from sadnet_jax.evaluation.submissions.mat_files import new_file, read_variables, write_variables
from sadnet_jax.images.photograph import to_8_bits

IMAGES, BLOCKS, BLOCK_PX = 40, 32, 256
MAT_FILE, CSV_FILE = 'SubmitSrgb.mat', 'SubmitSrgb.csv'
CSV_HEADER = 'ID,BLOCK'
VARIABLE = 'DenoisedBlocksSrgb'
# SIDD's server refuses larger files.
MAX_BYTES = 900_000_000


class SiddBlock(NamedTuple):
  """One block: its name, noisy uint8 [H, W, 3], and clean where that is public."""

  name: str
  noisy: np.ndarray
  clean: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class SiddBlocks:
  """All blocks of one part of SIDD, which are copied out one at a time.

  Attributes:
    part: 'validation' or 'benchmark'.
    noisy: uint8 [images, blocks, H, W, 3], RGB.
    clean: The same shape; None for the benchmark.
  """

  part: str
  noisy: np.ndarray
  clean: np.ndarray | None

  def __len__(self) -> int:
    """Number of blocks of all images."""
    return self.noisy.shape[0] * self.noisy.shape[1]

  def __iter__(self) -> Iterator[SiddBlock]:
    """Yields the blocks of the first image, then those of the second, and so on."""
    return (self[number] for number in range(len(self)))

  def __getitem__(self, number: int) -> SiddBlock:
    """Copies out a block, given its number from 0 in that order."""
    index = np.unravel_index(number, self.noisy.shape[:2])
    # In MATLAB's axis order the pixels of a block lie far apart until they are copied.
    clean = None if self.clean is None else np.ascontiguousarray(self.clean[index])
    return SiddBlock(block_name(*map(int, index)), np.ascontiguousarray(self.noisy[index]), clean)

  @property
  def label(self) -> str:
    """'1280 blocks', or how an incomplete set differs."""
    complete = (IMAGES, BLOCKS, BLOCK_PX, BLOCK_PX, 3)
    images, blocks, height, width, _ = self.noisy.shape
    if self.noisy.shape == complete:
      return f'{len(self)} blocks'
    return (
      f'{len(self)} blocks ({images} images x {blocks} of {width}x{height}) instead of the {IMAGES * BLOCKS} '
      f'({IMAGES} x {BLOCKS} of {BLOCK_PX}x{BLOCK_PX}) of SIDD {self.part}'
    )


def block_name(image: int, block: int) -> str:
  """Returns '0001_01' for (0, 0)."""
  return f'{image + 1:04}_{block + 1:02}'


def read_sidd(folder: str | Path, part: str) -> SiddBlocks:
  """Reads the blocks of SIDD validation or of its benchmark.

  Args:
    folder: Contains the .mat files.
    part: 'validation' or 'benchmark'.

  Returns:
    The blocks; 1280 of them take 250 MB per array.

  Raises:
    ValueError: The part is unknown, a file is missing, damaged or has other content, or noisy and clean
      blocks differ in shape.
  """
  if part not in SIDD_FILES:
    raise ValueError(f'part must be one of {", ".join(SIDD_FILES)}, not {part!r}')
  path, *clean_paths = (Path(folder) / name for name in SIDD_FILES[part])
  if not clean_paths:
    return SiddBlocks(part, _read_blocks(path), None)
  clean_path = clean_paths[0]
  noisy, clean = _read_blocks(path), _read_blocks(clean_path)
  if noisy.shape != clean.shape:
    raise ValueError(
      f'{clean_path}: blocks {clean.shape} do not match {noisy.shape} in {path.name}; use files of the same '
      'download'
    )
  return SiddBlocks(part, noisy, clean)


def _read_blocks(path):
  blocks = read_variables(path, path.stem)[path.stem]
  if blocks.dtype != np.uint8 or blocks.ndim != 5 or blocks.shape[-1] != 3 or not blocks.size:
    raise ValueError(
      f'{path}: {path.stem} must be uint8 [images, blocks, height, width, 3], such as '
      f'{(IMAGES, BLOCKS, BLOCK_PX, BLOCK_PX, 3)}, not {blocks.dtype} {blocks.shape}; is it the sRGB file?'
    )
  return blocks


class _Single:
  """A block that becomes single precision in [0, 1] only when SciPy writes it: all at once take 1 GB."""

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
  """Writes SubmitSrgb.mat with a cell of blocks in single precision, without rounding floats.

  SciPy compresses the cell in memory: 1280 blocks take minutes and up to 3 GB besides the given array.
  Floats are hardly compressible: the file has 850 to 890 MB, just below the limit of SIDD's server. Blocks
  given as uint8 take a third of that.

  Args:
    folder: Folder to write to; created if missing.
    blocks: Denoised [images, blocks, H, W, 3]: float, clipped to [0, 1] here, or uint8.
    seconds_per_megapixel: Time to denoise one million pixels (TimeMPSrgb).
    method_name: OptionalData.MethodName.
    authors: OptionalData.Authors.
    paper_title: OptionalData.PaperTitle.
    venue: OptionalData.Venue.
    overwrite: Whether the file may exist.

  Returns:
    The file.

  Raises:
    ValueError: The file exists, the blocks have another type or shape or are not finite, the time is not
      valid, or the file was written but is larger than SIDD's server accepts.
  """
  _check_blocks(blocks)
  if not 0 <= seconds_per_megapixel < float('inf'):
    raise ValueError(f'seconds_per_megapixel must be finite and at least 0, not {seconds_per_megapixel}')
  cells = np.empty(blocks.shape[:2], object)
  for index in np.ndindex(cells.shape):
    cells[index] = _Single(blocks[index])
  texts = {'MethodName': method_name, 'Authors': authors, 'PaperTitle': paper_title, 'Venue': venue}
  content = {VARIABLE: cells, 'TimeMPSrgb': float(seconds_per_megapixel), 'OptionalData': texts}
  return _write_mat(Path(folder), content, overwrite)


def write_uint8_submission(folder: str | Path, blocks: np.ndarray, *, overwrite: bool = False) -> Path:
  """Writes SubmitSrgb.mat with one uint8 array [images, blocks, H, W, 3].

  Args:
    folder: Folder to write to; created if missing.
    blocks: Denoised [images, blocks, H, W, 3]: uint8, or float, which is clipped to [0, 1] and rounded to
      the nearest of 256 levels here.
    overwrite: Whether the file may exist.

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
      levels[index] = to_8_bits(blocks[index])
  return _write_mat(Path(folder), {VARIABLE: levels}, overwrite)


def write_csv_submission(folder: str | Path, blocks: np.ndarray, *, overwrite: bool = False) -> Path:
  """Writes SubmitSrgb.csv: for each block a row with its number from 0 and its bytes in base64.

  Args:
    folder: Folder to write to; created if missing.
    blocks: As for `write_uint8_submission`; the bytes are rows of RGB pixels (C order).
    overwrite: Whether the file may exist.

  Returns:
    The file; 335 MB for 1280 blocks.

  Raises:
    ValueError: The file exists, or the blocks have another type or shape or are not finite.
  """
  _check_blocks(blocks)
  path = Path(folder) / CSV_FILE
  with new_file(path, overwrite=overwrite) as temporary, open(temporary, 'w', newline='\n') as file:
    file.write(f'{CSV_HEADER}\n')
    for number, index in enumerate(np.ndindex(blocks.shape[:2])):
      block = blocks[index] if blocks.dtype == np.uint8 else to_8_bits(blocks[index])
      file.write(f'{number},{base64.b64encode(block.tobytes(order="C")).decode("ascii")}\n')
  return path


def _check_blocks(blocks):
  if blocks.ndim != 5 or blocks.shape[-1] != 3 or blocks.dtype not in (np.uint8, np.float32, np.float64):
    raise ValueError(
      f'blocks must be float32 or uint8 [images, blocks, height, width, 3], not {blocks.dtype} {blocks.shape}'
    )
  if blocks.dtype == np.uint8:
    return
  for index in np.ndindex(blocks.shape[:2]):
    if not np.isfinite(blocks[index]).all():
      raise ValueError(f'block {block_name(*index)}: contains NaN or infinity; check the weights')


def _write_mat(folder, content, overwrite):
  path = folder / MAT_FILE
  write_variables(path, content, overwrite=overwrite)
  size_bytes = path.stat().st_size
  if size_bytes > MAX_BYTES:
    raise ValueError(
      f'{path}: the file was written, but has {size_bytes / 1e6:.0f} MB, and the server of SIDD accepts at '
      f'most {MAX_BYTES / 1e6:.0f}; blocks rounded to 8 bits are smaller in any form'
    )
  return path
