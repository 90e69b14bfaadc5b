"""DND (Darmstadt Noise Dataset): its patches, and submissions.

DND has 50 photographs with 20 boxes of 512x512 each. The ground truth is not public, so the result is a
submission: one file per patch (`write_patch`), bundled per image (`bundle`) for upload, and checked by
`check.check_dnd_submission`. Names count images and boxes from 1: '0001_01' to '0050_20'.
"""

from collections.abc import Iterator
import dataclasses
from pathlib import Path

import h5py
import numpy as np

from sadnet_jax.evaluation.submissions.mat_files import read_variables, refuse_existing, write_variables
from sadnet_jax.files import one_line

IMAGES, BOXES, PATCH_PX = 50, 20, 512
IMAGES_FOLDER, BUNDLE_FOLDER = 'images_srgb', 'bundled'
NOISY_VARIABLE, PATCH_VARIABLE, BUNDLE_VARIABLE = 'InoisySRGB', 'Idenoised_crop', 'Idenoised'
EVAL_VERSION = '1.0'


@dataclasses.dataclass(frozen=True, eq=False)
class DndPatch:
  """A box of a photograph, with context around it.

  Attributes:
    image: Number of the photograph, from 1.
    box: Number of the box in it, from 1.
    noisy: float32 [H, W, 3] in [0, 1]: the box and its context.
    row: Row of the top left pixel of the box in ``noisy``.
    column: Its column.
    height: Height of the box.
    width: Width of the box.
  """

  image: int
  box: int
  noisy: np.ndarray
  row: int
  column: int
  height: int
  width: int

  @property
  def name(self) -> str:
    """For example '0001_01', the first box of the first photograph."""
    return patch_name(self.image, self.box)

  def cut(self, denoised: np.ndarray) -> np.ndarray:
    """Cuts the box out of the denoised image.

    Args:
      denoised: [H, W, 3], the same shape as ``noisy``.

    Returns:
      [height, width, 3], a view.

    Raises:
      ValueError: The shapes differ.
    """
    if denoised.shape != self.noisy.shape:
      raise ValueError(
        f'{self.name}: the denoised image must have the shape {self.noisy.shape} of the noisy one, not '
        f'{denoised.shape}'
      )
    return denoised[self.row : self.row + self.height, self.column : self.column + self.width]


@dataclasses.dataclass(frozen=True, eq=False)
class Dnd:
  """The photographs and their boxes.

  Attributes:
    folder: Contains images_srgb.
    boxes: int [images, boxes, 4]: first row, first column, end row, end column; from 0, ends exclusive.
  """

  folder: Path
  boxes: np.ndarray

  def __len__(self) -> int:
    """Number of patches of all photographs."""
    return self.boxes.shape[0] * self.boxes.shape[1]

  @property
  def label(self) -> str:
    """'1000 patches', or how an incomplete set differs."""
    images, boxes = self.boxes.shape[:2]
    if (images, boxes) == (IMAGES, BOXES):
      return f'{len(self)} patches'
    return (
      f'{len(self)} patches ({images} images x {boxes}) instead of the {IMAGES * BOXES} ({IMAGES} x {BOXES}) '
      'of DND'
    )

  def patches(self, margin_px: int = 0) -> Iterator[DndPatch]:
    """Reads one photograph after the other and yields its boxes with their context.

    All have the same size, that of the largest box plus the margin on all sides, so that a network is
    compiled once. Near a border the window is moved inwards, so that the box is not in its middle.
    Only smaller photographs give smaller windows.

    Args:
      margin_px: Pixels of context around a box.

    Yields:
      Patches in the order of their names.

    Raises:
      ValueError: The margin is negative, or a photograph is damaged, has other content, or is smaller than
        its boxes need.
    """
    if margin_px < 0:
      raise ValueError(f'margin_px must be at least 0, not {margin_px}')
    window_px = (self.boxes[..., 2:] - self.boxes[..., :2]).max(axis=(0, 1)) + 2 * margin_px
    for i, boxes in enumerate(self.boxes):
      path = image_path(self.folder, i + 1)
      image = _read_image(path)
      outside = boxes[(boxes[:, 2:] > image.shape[:2]).any(axis=1)]
      if len(outside):
        rows, columns = (f'{outside[0, axis] + 1} to {outside[0, axis + 2]}' for axis in (0, 1))
        raise ValueError(
          f'{path}: the image has {image.shape[1]}x{image.shape[0]} pixels, but info.mat has a box at rows '
          f'{rows}, columns {columns}; use files of the same download'
        )
      for k, box in enumerate(boxes):
        yield _cut_window(image, box, window_px, i + 1, k + 1)


def patch_name(image: int, box: int) -> str:
  """Returns '0001_01' for (1, 1)."""
  return f'{image:04}_{box:02}'


def image_path(folder: Path, image: int) -> Path:
  """Returns the file of a photograph, counted from 1."""
  return folder / IMAGES_FOLDER / f'{image:04}.mat'


def _cut_window(image, box, window_px, image_number, box_number):
  first, last = box[:2], box[2:]
  image_px = np.array(image.shape[:2])
  size = np.minimum(window_px, image_px)
  start = np.clip(first - (window_px - (last - first)) // 2, 0, image_px - size)
  stop = start + size
  noisy = np.ascontiguousarray(image[start[0] : stop[0], start[1] : stop[1]])
  row, column = map(int, first - start)
  height, width = map(int, last - first)
  return DndPatch(image_number, box_number, noisy, row, column, height, width)


def _read_image(path):
  image = read_variables(path, NOISY_VARIABLE)[NOISY_VARIABLE]
  if image.ndim != 3 or image.shape[2] != 3 or image.dtype.kind != 'f' or not image.size:
    raise ValueError(
      f'{path}: {NOISY_VARIABLE} must be single [height, width, 3], not {image.dtype} {image.shape}'
    )
  lowest, highest = image.min(), image.max()
  # Slightly outside of [0, 1] is rounding; another scale, or NaN, means another file.
  if not (lowest >= -1e-3 and highest <= 1 + 1e-3):
    raise ValueError(
      f'{path}: values must be in [0, 1], not {lowest:g} to {highest:g}; is it the sRGB image?'
    )
  return image.astype(np.float32, copy=False)


def read_dnd(folder: str | Path) -> Dnd:
  """Reads the boxes of DND and checks that its photographs exist.

  Args:
    folder: Contains info.mat and images_srgb.

  Returns:
    The set; photographs are read together with their patches.

  Raises:
    ValueError: info.mat is missing, damaged or has other content, or photographs are missing.
  """
  path = Path(folder) / 'info.mat'
  boxes = _read_boxes(path)
  missing = [p for i in range(len(boxes)) if not (p := image_path(path.parent, i + 1)).is_file()]
  if missing:
    more = f' and {len(missing) - 5} more' if len(missing) > 5 else ''
    raise ValueError(
      f'{missing[0].parent}: {", ".join(p.name for p in missing[:5])}{more} missing of 0001.mat to '
      f'{len(boxes):04}.mat, the {len(boxes)} images of info.mat; unpack or download them'
    )
  return Dnd(path.parent, boxes)


def _read_boxes(path):
  """Reads info.mat, a struct array with a reference to a table of boxes for each image."""
  if not path.is_file():
    raise ValueError(f'{path}: no such file; give the folder dnd_2017 of DND')
  try:
    with h5py.File(path) as file:
      references = file['info']['boundingboxes'][()].ravel()
      tables = [np.asarray(file[reference][()]).T for reference in references]
  except Exception as error:  # For a damaged or different file h5py raises nearly anything.
    raise ValueError(
      f'{path}: cannot read info.boundingboxes ({one_line(error)}); use the info.mat of DND, MATLAB v7.3'
    ) from error
  shapes = {table.shape for table in tables}
  if len(shapes) != 1 or not all(len(shape) == 2 and shape[0] and shape[1] == 4 for shape in shapes):
    raise ValueError(
      f'{path}: boundingboxes must be tables [boxes, 4] of first row, first column, last row, last column, '
      f'all with equally many boxes, not shapes {sorted(shapes)}'
    )
  corners = np.stack(tables)
  whole = (corners == np.round(corners)).all()  # False for NaN, too.
  if not whole or (corners < 1).any() or (corners[..., :2] > corners[..., 2:]).any():
    raise ValueError(f'{path}: boundingboxes must be whole numbers from 1, with first <= last')
  # MATLAB counts from 1 and includes the last.
  return corners.astype(np.int64) - np.array([1, 1, 0, 0])


def write_patch(folder: str | Path, name: str, denoised: np.ndarray, *, overwrite: bool = False) -> Path:
  """Writes one denoised box as ``<name>.mat`` with ``Idenoised_crop``, single in [0, 1].

  Args:
    folder: Folder to write to; created if missing.
    name: As `DndPatch.name`.
    denoised: float [H, W, 3], the box alone (`DndPatch.cut`); clipped to [0, 1] here.
    overwrite: Whether the file may exist.

  Returns:
    The file.

  Raises:
    ValueError: The file exists, or the patch has another shape or is not finite.
  """
  if denoised.ndim != 3 or denoised.shape[2] != 3 or denoised.dtype.kind != 'f':
    raise ValueError(f'{name}: must be float [height, width, 3], not {denoised.dtype} {denoised.shape}')
  if not np.isfinite(denoised).all():
    raise ValueError(f'{name}: the denoised image contains NaN or infinity; check the weights')
  path = Path(folder) / f'{name}.mat'
  crop = np.clip(denoised, 0, 1).astype(np.float32)
  write_variables(path, {PATCH_VARIABLE: crop}, overwrite=overwrite)
  return path


def bundle(
  folder: str | Path, *, images: int = IMAGES, boxes: int = BOXES, overwrite: bool = False
) -> list[Path]:
  """Bundles the patches of each image in the folder ``bundled``, for upload to the server of DND.

  Args:
    folder: Contains the files of `write_patch`.
    images: Number of images.
    boxes: Number of boxes per image.
    overwrite: Whether bundles may exist.

  Returns:
    The files, one per image, with ``Idenoised`` (a cell of patches), ``israw`` (false) and
    ``eval_version``.

  Raises:
    ValueError: Patches are missing or a bundle exists (nothing is written then), or a patch is damaged.
  """
  folder = Path(folder)
  names = [[patch_name(i + 1, k + 1) for k in range(boxes)] for i in range(images)]
  missing = [name for row in names for name in row if not (folder / f'{name}.mat').is_file()]
  if missing:
    raise ValueError(
      f'{folder}: {missing[0]}.mat is missing, {len(missing)} of {images} x {boxes} patches in all; denoise '
      'them first'
    )
  paths = [folder / BUNDLE_FOLDER / f'{i + 1:04}.mat' for i in range(images)]
  refuse_existing(paths, overwrite=overwrite)
  for path, row in zip(paths, names, strict=True):
    cells = np.empty(boxes, object)
    for k, name in enumerate(row):
      cells[k] = read_variables(folder / f'{name}.mat', PATCH_VARIABLE)[PATCH_VARIABLE]
    content = {BUNDLE_VARIABLE: cells, 'israw': False, 'eval_version': EVAL_VERSION}
    write_variables(path, content, overwrite=overwrite)
  return paths
