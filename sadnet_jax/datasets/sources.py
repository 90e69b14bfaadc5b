"""The images that tiles are cut from, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import functools
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from sadnet_jax.datasets import layouts

_DIV2K = 'div2k/bicubic_x8'  # All of its configs have the same clean images; this is the smallest.
_DOWNLOAD_ERRORS = (
  OSError,  # Those of requests too.
  tfds.download.DownloadError,
  tfds.download.download_manager.NonMatchingChecksumError,
  tfds.download.extractor.ExtractError,
)


@dataclasses.dataclass(frozen=True)
class SourceImage:
  """An image that is read when it is wanted.

  Attributes:
    name: Unique within the set.
    scene: What has to be held out together.
    read: Returns noisy (None for clean images) and clean, uint8 [H, W, C]; a ValueError
      says what is wrong with the files.
  """

  name: str
  scene: str
  read: Callable[[], tuple[np.ndarray | None, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set to cut tiles from.

  Attributes:
    fingerprint: Tells whether the files are the same.
    has_noisy: Whether it has pairs.
    channels: 3, or 1 if no image has colour.
    count: Number of images.
    images: Yields them in an order that does not change.
    problems: One sentence for each image that was left out.
  """

  fingerprint: str
  has_noisy: bool
  channels: int
  count: int
  images: Callable[[], Iterator[SourceImage]]
  problems: list[str]


def files_source(name: str, found: layouts.Found, *, skip_bad: bool) -> Source:
  """The image files of a layout.

  The heads of all files are read here, so that files that do not fit together are
  found before anything is cut.

  Args:
    name: Of the layout, for the message.
    found: What `layouts.find_examples` returned.
    skip_bad: Leave out what cannot be read instead of refusing it.

  Raises:
    ValueError: An image file without a readable head, or of another size than its partner.
  """
  usable, problems, channels = [], list(found.problems), 1
  for example in found.examples:
    try:
      channels = max(channels, layouts.example_shape(example)[2])
      usable.append(example)
    except ValueError as error:
      if not skip_bad:
        raise
      problems.append(str(error))
  if not usable:
    raise ValueError(f'{name}: got no usable image, want at least one; the first problem: {problems[0]}')

  def images():
    for example in usable:
      read = functools.partial(layouts.read_example, example, channels)
      yield SourceImage(example.name, example.scene, read)

  has_noisy = found.examples[0].noisy is not None
  return Source(layouts.fingerprint(found.examples), has_noisy, channels, len(usable), images, problems)


def div2k_is_prepared(data_dir: str | Path) -> bool:
  """Whether TFDS has DIV2K there already."""
  return tfds.builder(_DIV2K, data_dir=data_dir).is_prepared()


def div2k_source(data_dir: str | Path) -> Source:
  """The 800 training images of DIV2K; TFDS downloads and prepares them unless they are there.

  Args:
    data_dir: Where TFDS downloads to and keeps its data.

  Raises:
    ValueError: The download failed.
  """
  builder = tfds.builder(_DIV2K, data_dir=data_dir)
  try:
    builder.download_and_prepare()
  except _DOWNLOAD_ERRORS as error:
    raise ValueError(
      f'{data_dir}: got no DIV2K ({type(error).__name__}: {error}), want its download by TensorFlow '
      "Datasets to succeed (try again; or download DIV2K_train_HR yourself and give it as 'clean')"
    ) from error
  split = builder.info.splits['train']

  def images():
    # In an order that does not change, as TFDS has it unless it is told to shuffle.
    dataset = builder.as_dataset(split='train', decoders=tfds.decode.PartialDecoding({'hr': True}))
    for i, example in enumerate(tfds.as_numpy(dataset)):
      name = f'train/{i:04d}'  # TFDS keeps no file names.
      yield SourceImage(name, name, functools.partial(_clean, example['hr']))

  fingerprint = f'{split.num_examples} images, {builder.info.version} of {split.num_bytes} bytes'
  return Source(fingerprint, False, 3, split.num_examples, images, [])


def _clean(image: np.ndarray) -> tuple[None, np.ndarray]:
  return None, image
