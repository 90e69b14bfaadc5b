"""DND (Darmstadt Noise Dataset): its patches, and submissions.

50 photographs with 20 boxes of 512x512 each; the ground truth is not public, so the result is
a submission: a file a patch (`write_patch`), bundled by image (`bundle`) to be uploaded. Check it with
`submission_check`. Images and boxes are counted from 1 in names: '0001_01' to '0050_20'.
"""

from collections.abc import Iterator
import dataclasses
from pathlib import Path

import h5py
import numpy as np

from sadnet_jax.evaluation.submissions.mat_files import read_variables, refuse_existing, write_variables

IMAGES, BOXES, PATCH_PX = 50, 20, 512
IMAGES_FOLDER, BUNDLE_FOLDER = 'images_srgb', 'bundled'
NOISY_VARIABLE, PATCH_VARIABLE, BUNDLE_VARIABLE = 'InoisySRGB', 'Idenoised_crop', 'Idenoised'
EVAL_VERSION = '1.0'


@dataclasses.dataclass(frozen=True, eq=False)
class DndPatch:
  """A box of a photograph, with pixels around it.

  Attributes:
    image: Number of the photograph, from 1.
    box: Number of the box in it, from 1.
    noisy: float32 [H, W, 3] in [0, 1]: the box and its surroundings.
    row: Of the box's upper left pixel in ``noisy``.
    column: Likewise.
    height: Of the box.
    width: Likewise.
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
    """'0001_01' for the first box of the first photograph."""
    return patch_name(self.image, self.box)

  def cut(self, denoised: np.ndarray) -> np.ndarray:
    """Cuts the box out of the denoised surroundings.

    Args:
      denoised: [H, W, 3], of the shape of ``noisy``.

    Returns:
      [height, width, 3], a view.

    Raises:
      ValueError: Another shape.
    """
    if denoised.shape != self.noisy.shape:
      raise ValueError(f'{self.name}: got a denoised image {denoised.shape}, want {self.noisy.shape}')
    return denoised[self.row : self.row + self.height, self.column : self.column + self.width]


@dataclasses.dataclass(frozen=True, eq=False)
class Dnd:
  """The photographs and their boxes.

  Attributes:
    folder: With images_srgb in it.
    boxes: int [images, boxes, 4]: first row, first column, row and column after the last, from 0.
  """

  folder: Path
  boxes: np.ndarray

  def __len__(self) -> int:
    """Number of patches of all photographs."""
    return self.boxes.shape[0] * self.boxes.shape[1]

  @property
  def label(self) -> str:
    """'1000 patches', or how many there are instead."""
    images, boxes = self.boxes.shape[:2]
    if (images, boxes) == (IMAGES, BOXES):
      return f'{len(self)} patches'
    return (
      f'{len(self)} patches ({images} images x {boxes}), not the {IMAGES * BOXES} ({IMAGES} x {BOXES}) of DND'
    )

  def patches(self, margin_px: int = 0) -> Iterator[DndPatch]:
    """Reads one photograph after the other and yields its boxes.

    With their surroundings all have one size, that of the largest box and the margin on all
    sides, so that a network is compiled once: at an image's border there is less before the box and
    more behind it, or the other way round. Only a smaller photograph gives less.

    Args:
      margin_px: Pixels around a box.

    Yields:
      Patches in the order of their names.

    Raises:
      ValueError: Negative margin; a photograph that is damaged, has other content, or
        ends before a box does.
    """
    if margin_px < 0:
      raise ValueError(f'margin_px: got {margin_px}, want 0 or more')
    window_px = (self.boxes[..., 2:] - self.boxes[..., :2]).max(axis=(0, 1)) + 2 * margin_px
    for i, boxes in enumerate(self.boxes):
      path = image_path(self.folder, i + 1)
      image = _read_image(path)
      outside = boxes[(boxes[:, 2:] > image.shape[:2]).any(axis=1)]
      if len(outside):
        rows, columns = (f'{outside[0, axis] + 1} to {outside[0, axis + 2]}' for axis in (0, 1))
        raise ValueError(
          f'{path}: got an image of {image.shape[1]}x{image.shape[0]}, want one with the box of info.mat in '
          f'it: rows {rows}, columns {columns} (both files must be of one download)'
        )
      for k, box in enumerate(boxes):
        yield _cut_window(image, box, window_px, i + 1, k + 1)


def patch_name(image: int, box: int) -> str:
  """(1, 1) -> '0001_01'."""
  return f'{image:04}_{box:02}'


def image_path(folder: Path, image: int) -> Path:
  """File of a photograph, counted from 1."""
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
      f'{path}: got {NOISY_VARIABLE} of {image.dtype} {image.shape}, want single [height, width, 3]'
    )
  lowest, highest = image.min(), image.max()
  # A hair outside is rounding; another scale, or NaN, is another file.
  if not (lowest >= -1e-3 and highest <= 1 + 1e-3):
    raise ValueError(
      f'{path}: got values from {lowest:g} to {highest:g}, want [0, 1] (is it the sRGB image?)'
    )
  return image.astype(np.float32, copy=False)


def read_dnd(folder: str | Path) -> Dnd:
  """Reads the boxes of DND and looks for its photographs.

  Args:
    folder: With info.mat and images_srgb in it.

  Returns:
    The set; photographs are read when their patches are.

  Raises:
    ValueError: No info.mat, one that is damaged or has other content, or photographs
      missing; they are named.
  """
  path = Path(folder) / 'info.mat'
  boxes = _read_boxes(path)
  missing = [p for i in range(len(boxes)) if not (p := image_path(path.parent, i + 1)).is_file()]
  if missing:
    more = f' and {len(missing) - 5} more' if len(missing) > 5 else ''
    raise ValueError(
      f'{missing[0].parent}: got no {", ".join(p.name for p in missing[:5])}{more}, want 0001.mat to '
      f'{len(boxes):04}.mat as info.mat has {len(boxes)} images (unpack or download the missing ones)'
    )
  return Dnd(path.parent, boxes)


def _read_boxes(path):
  """info.mat holds a struct array: for each image a reference to a table of boxes."""
  if not path.is_file():
    raise ValueError(f'{path}: got no such file, want that of DND (give the folder dnd_2017)')
  try:
    with h5py.File(path) as file:
      references = file['info']['boundingboxes'][()].ravel()
      tables = [np.asarray(file[reference][()]).T for reference in references]
  except Exception as error:  # A damaged file, or one of another layout: h5py raises nearly anything.
    reason = ' '.join(str(error).split())
    raise ValueError(
      f'{path}: got no boxes ({reason}), want the info.mat of DND, MATLAB v7.3, with info.boundingboxes'
    ) from error
  shapes = {table.shape for table in tables}
  if len(shapes) != 1 or not all(len(shape) == 2 and shape[0] and shape[1] == 4 for shape in shapes):
    raise ValueError(
      f'{path}: got boundingboxes of shapes {sorted(shapes)}, want equally many of '
      'first row, first column, last row, last column for each image'
    )
  corners = np.stack(tables)
  whole = (corners == np.round(corners)).all()  # Not a number either where one is NaN.
  if not whole or (corners < 1).any() or (corners[..., :2] > corners[..., 2:]).any():
    raise ValueError(f'{path}: got boundingboxes that are none, want whole numbers from 1, first to last')
  # From MATLAB's counting from 1, the last included.
  return corners.astype(np.int64) - np.array([1, 1, 0, 0])


def write_patch(folder: str | Path, name: str, denoised: np.ndarray, *, overwrite: bool = False) -> Path:
  """Writes one denoised box as ``<name>.mat`` with ``Idenoised_crop``, single in [0, 1].

  Args:
    folder: Where to write; made if need be.
    name: As `DndPatch.name`.
    denoised: float [H, W, 3], the box alone (`DndPatch.cut`); clipped to [0, 1] here.
    overwrite: Whether the file may be there already.

  Returns:
    The file.

  Raises:
    ValueError: The file exists, or the patch has another shape or is not finite.
  """
  if denoised.ndim != 3 or denoised.shape[2] != 3 or denoised.dtype.kind != 'f':
    raise ValueError(f'{name}: got {denoised.dtype} {denoised.shape}, want float [height, width, 3]')
  if not np.isfinite(denoised).all():
    raise ValueError(f'{name}: got NaN or infinity, want numbers (is the model sound?)')
  path = Path(folder) / f'{name}.mat'
  crop = np.clip(denoised, 0, 1).astype(np.float32)
  write_variables(path, {PATCH_VARIABLE: crop}, overwrite=overwrite)
  return path


def bundle(
  folder: str | Path, *, images: int = IMAGES, boxes: int = BOXES, overwrite: bool = False
) -> list[Path]:
  """Bundles the patches of each image as the server of DND wants them, in ``bundled``.

  Args:
    folder: With the files of `write_patch`.
    images: Number of images.
    boxes: Number of boxes of each.
    overwrite: Whether bundles may be there already.

  Returns:
    The files, one an image, with ``Idenoised`` (a cell of patches), ``israw`` (false)
    and ``eval_version``.

  Raises:
    ValueError: Patches missing or damaged, or a bundle exists; in either case before
      anything is written, but for damage.
  """
  folder = Path(folder)
  names = [[patch_name(i + 1, k + 1) for k in range(boxes)] for i in range(images)]
  missing = [name for row in names for name in row if not (folder / f'{name}.mat').is_file()]
  if missing:
    raise ValueError(
      f'{folder}: got no {missing[0]}.mat, want {images} x {boxes} patches; {len(missing)} are missing '
      '(denoise them first)'
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
