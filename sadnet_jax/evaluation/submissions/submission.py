"""Denoises a set whose ground truth is not public (SIDD benchmark, DND) and writes its submission."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sadnet_jax.evaluation.methods import Method, denoise_batch
from sadnet_jax.evaluation.submissions import check, dnd, sidd

OnImage = Callable[[str, np.ndarray, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Submission:
  """A submission that was written and checked.

  Attributes:
    dataset: 'sidd_benchmark' or 'dnd'.
    title: Name to display.
    version: Number of blocks or patches.
    method: What the method says about itself: at least its 'name'.
    files: Paths relative to the output of the evaluation; for DND its folders only.
    checks: What the checks of the files found.
    seconds: Total time of the method, without reading and compiling.
    margin_px: Context around each box of DND that the method received.
  """

  dataset: str
  title: str
  version: str
  method: dict[str, Any]
  files: list[str]
  checks: list[str]
  seconds: float
  margin_px: int | None = None


def open_data(dataset: str, folder: Path) -> sidd.SiddBlocks | dnd.Dnd:
  """Opens 'sidd_benchmark' or 'dnd'; its length is the number of images. ValueError if it is damaged."""
  return dnd.read_dnd(folder) if dataset == 'dnd' else sidd.read_sidd(folder, 'benchmark')


def submit(
  data: sidd.SiddBlocks | dnd.Dnd,
  method: Method,
  output: Path,
  *,
  forms: Sequence[str],
  margin_px: int,
  on_image: OnImage = lambda name, noisy, denoised: None,
) -> Submission:
  """Denoises a set without ground truth, writes its submission, and checks the written files.

  Args:
    data: The set.
    method: The denoiser.
    output: Folder to write to; files of an earlier submission are overwritten.
    forms: Forms of the submission to SIDD, from `data.test_sets.SIDD_FORMS`.
    margin_px: Pixels of context around each box of DND that the method receives.
    on_image: Called with the name, the noisy and the denoised image of every block or patch.

  Raises:
    ValueError: The set is damaged, or the written files are not valid.
  """
  if isinstance(data, dnd.Dnd):
    return _submit_dnd(data, method, output, margin_px, on_image)
  return _submit_sidd(data, method, output, forms, on_image)


def _submit_sidd(blocks, method, output, forms, on_image):
  images, per_image, height, width, _ = blocks.noisy.shape
  method.plan([(height, width)])
  denoiser = _BatchDenoiser(method, on_image)
  denoised = np.empty(blocks.noisy.shape, np.float32)
  outputs = denoiser((block, block.noisy.astype(np.float32) / 255) for block in blocks)
  for index, (_, out) in zip(np.ndindex(images, per_image), outputs, strict=True):
    denoised[index] = out
  per_megapixel = denoiser.seconds / (len(blocks) * height * width / 1e6)
  files, checks = [], []
  # The cell comes last: it may be larger than the server accepts, which is an error.
  for form in sorted(forms, key=lambda form: form == 'cell'):
    folder = output / form
    if form == 'csv':
      path = sidd.write_csv_submission(folder, denoised, overwrite=True)
    elif form == 'uint8':
      path = sidd.write_uint8_submission(folder, denoised, overwrite=True)
    else:
      path = sidd.write_cell_submission(
        folder, denoised, seconds_per_megapixel=per_megapixel, method_name=method.name, overwrite=True
      )
    checks.append(check.check_sidd_submission(path, images=images, blocks=per_image, block_px=height))
    files.append(str(path.relative_to(output.parent)))
  return Submission(
    'sidd_benchmark', 'SIDD benchmark', blocks.label, method.describe(), files, checks, denoiser.seconds
  )


def _submit_dnd(data, method, output, margin_px, on_image):
  method.plan([])
  denoiser = _BatchDenoiser(method, on_image)
  for patch, out in denoiser((p, p.noisy) for p in data.patches(margin_px)):
    dnd.write_patch(output, patch.name, np.ascontiguousarray(patch.cut(out)), overwrite=True)
  images, boxes = data.boxes.shape[:2]
  dnd.bundle(output, images=images, boxes=boxes, overwrite=True)
  patch_px = int(data.boxes[0, 0, 2] - data.boxes[0, 0, 0])
  checked = check.check_dnd_submission(output, images=images, boxes=boxes, patch_px=patch_px)
  files = [output.name, f'{output.name}/{dnd.BUNDLE_FOLDER}']
  return Submission(
    'dnd', 'DND', data.label, method.describe(), files, [checked], denoiser.seconds, margin_px
  )


_Item = TypeVar('_Item', sidd.SiddBlock, dnd.DndPatch)


class _BatchDenoiser:
  """Denoises a stream of images in batches, and adds up the time."""

  def __init__(self, method: Method, on_image: OnImage):
    self._method, self._on_image = method, on_image
    self.seconds = 0.0

  def __call__(self, images: Iterable[tuple[_Item, np.ndarray]]) -> Iterator[tuple[_Item, np.ndarray]]:
    """Yields (item, denoised) for every (item, noisy), in the same order."""
    batch: list[tuple[_Item, np.ndarray]] = []
    for item, noisy in images:
      full = len(batch) == self._method.batch
      if batch and (full or noisy.shape != batch[0][1].shape):
        yield from self._denoise(batch)
        batch = []
      batch.append((item, noisy))
    if batch:
      yield from self._denoise(batch)

  def _denoise(self, batch):
    denoised, seconds = denoise_batch(self._method, [noisy for _, noisy in batch], None)
    self.seconds += seconds
    for (item, noisy), image in zip(batch, denoised, strict=True):
      self._on_image(item.name, noisy, image)
      yield item, image
