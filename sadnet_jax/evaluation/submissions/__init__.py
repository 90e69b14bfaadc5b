"""Submissions to SIDD's benchmark and to DND, whose ground truth is not public."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
from pathlib import Path
import time
from typing import Any, TypeVar

import numpy as np

from sadnet_jax.evaluation.methods import Method
from sadnet_jax.evaluation.submissions import check, dnd, sidd

Item = TypeVar('Item', sidd.SiddBlock, dnd.DndPatch)
OnImage = Callable[[str, np.ndarray, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Submission:
  """What was written.

  Attributes:
    dataset: 'sidd_benchmark' or 'dnd'.
    title: For people.
    version: How many blocks or patches.
    method: Its name and what else it tells.
    files: Relative to the folder of the evaluation; of DND the folders alone.
    checks: What was checked after it was written.
    seconds: That the method took in all, without reading and compilation.
    margin_px: Around each box of DND that the method saw as well.
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
  """'sidd_benchmark' or 'dnd'; its length is the number of images to denoise. ValueError if it is damaged."""
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
  """Denoises a set without ground truth, writes its submission, and reads it again to check it.

  Args:
    data: The set.
    method: What denoises.
    output: Folder to write to, over what is there of an earlier submission.
    forms: Of SIDD's submission, some of `known_sets.SIDD_FORMS`.
    margin_px: Pixels around each box of DND that the method sees as well.
    on_image: Is given the name of every block or patch, the noisy image and the denoised one.

  Raises:
    ValueError: The set, or what was written, is not as it should be.
  """
  if isinstance(data, dnd.Dnd):
    return _submit_dnd(data, method, output, margin_px, on_image)
  return _submit_sidd(data, method, output, forms, on_image)


class _Timed:
  """Denoises image after image in batches, and adds up the time."""

  def __init__(self, method: Method, on_image: OnImage):
    self._method, self._on_image = method, on_image
    self.seconds = 0.0

  def __call__(self, images: Iterable[tuple[Item, np.ndarray]]) -> Iterator[tuple[Item, np.ndarray]]:
    """(item, noisy) -> (item, denoised), in the same order."""
    batch: list[tuple[Item, np.ndarray]] = []
    for item, noisy in images:
      full = len(batch) == self._method.batch
      if batch and (full or noisy.shape != batch[0][1].shape):
        yield from self._denoise(batch)
        batch = []
      batch.append((item, noisy))
    if batch:
      yield from self._denoise(batch)

  def _denoise(self, batch):
    shape = batch[0][1].shape
    self._method.prepare(shape)
    start = time.perf_counter()
    denoised = self._method.denoise([noisy for _, noisy in batch], None)
    self.seconds += time.perf_counter() - start
    for (item, noisy), image in zip(batch, denoised, strict=True):
      self._on_image(item.name, noisy, image)
      yield item, image


def _submit_sidd(blocks, method, output, forms, on_image):
  images, per_image, height, width, _ = blocks.noisy.shape
  method.plan([(height, width)])
  timed = _Timed(method, on_image)
  denoised = np.empty(blocks.noisy.shape, np.float32)
  outputs = timed((block, block.noisy.astype(np.float32) / 255) for block in blocks)
  for index, (_, out) in zip(np.ndindex(images, per_image), outputs, strict=True):
    denoised[index] = out
  per_megapixel = timed.seconds / (len(blocks) * height * width / 1e6)
  files, checks = [], []
  # A cell may turn out larger than the server takes, which is an error: it goes last.
  for form in sorted(forms, key=lambda form: form == 'cell'):
    to = output / form
    if form == 'csv':
      path = sidd.write_csv_submission(to, denoised, overwrite=True)
    elif form == 'uint8':
      path = sidd.write_uint8_submission(to, denoised, overwrite=True)
    else:
      path = sidd.write_cell_submission(
        to, denoised, seconds_per_megapixel=per_megapixel, method_name=method.name, overwrite=True
      )
    checks.append(check.check_sidd_submission(path, images=images, blocks=per_image, block_px=height))
    files.append(str(path.relative_to(output.parent)))
  return Submission(
    'sidd_benchmark', 'SIDD benchmark', blocks.label, method.describe(), files, checks, timed.seconds
  )


def _submit_dnd(data, method, output, margin_px, on_image):
  method.plan([])
  timed = _Timed(method, on_image)
  for patch, out in timed((p, p.noisy) for p in data.patches(margin_px)):
    dnd.write_patch(output, patch.name, np.ascontiguousarray(patch.cut(out)), overwrite=True)
  images, boxes = data.boxes.shape[:2]
  dnd.bundle(output, images=images, boxes=boxes, overwrite=True)
  patch_px = int(data.boxes[0, 0, 2] - data.boxes[0, 0, 0])
  checked = check.check_dnd_submission(output, images=images, boxes=boxes, patch_px=patch_px)
  files = [output.name, f'{output.name}/{dnd.BUNDLE_FOLDER}']
  return Submission('dnd', 'DND', data.label, method.describe(), files, [checked], timed.seconds, margin_px)
