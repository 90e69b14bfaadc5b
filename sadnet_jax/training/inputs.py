"""The images of a run: those of all its data sets, by the reader that its config names."""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import dataclasses
import itertools
import os

import jax
import ml_collections

from sadnet_jax.data import layouts, on_device, pipeline
from sadnet_jax.data.folders import find_data_dir, look_for_data_dir
from sadnet_jax.training.config import training_sets
from sadnet_jax.training.step import Batch


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """What a run trains on.

  Attributes:
    description: For the terminal, such as '432 images'.
    fingerprint: Of the images of every set, wherever they are.
    held_out: Pairs that are not trained on.
    device_images: The whole set, for sampling on the devices, or None.
    batches: (first step, devices of this process) -> the batches of that step and all
      later ones, on the devices; None each, where the devices sample.
  """

  description: str
  fingerprint: str
  held_out: Sequence[layouts.Example]
  device_images: on_device.DeviceImages | None
  batches: Callable[[int, Sequence[jax.Device]], Iterator[Batch | None]]


def open_training_data(config: ml_collections.ConfigDict, device: jax.Device) -> TrainingData:
  """Finds and checks the images of ``config.data``; cuts tiles where they are wanted and not there.

  Args:
    config: See ``configs/default.py``.
    device: One of those to train on, whose memory has to hold all images with the
      reader 'memory'.

  Raises:
    ValueError: A folder is missing or has nothing of its kind in it; an image is
      damaged, unpaired (but see ``data.skip_bad``), or smaller than a patch.
  """
  if config.data.reader == 'tiles':
    return _open_tiles(config)
  found = {name: _find(config, name, folder) for name, folder in training_sets(config).items()}
  kept, held_out = layouts.hold_out(
    itertools.chain.from_iterable(f.examples for f in found.values()), config.data.held_out
  )
  problems = list(itertools.chain.from_iterable(f.problems for f in found.values()))
  kept, damaged = _check(config, kept)
  description = _describe(len(kept), 'images', held_out, problems + damaged)
  fingerprint = layouts.fingerprint(kept)
  if config.data.reader == 'memory':
    images = on_device.load(kept, config.model.channels, device)
    return TrainingData(
      description, fingerprint, held_out, images, lambda first, devices: itertools.repeat(None)
    )
  from sadnet_jax.data.pipeline import FileImages  # Imports TensorFlow.

  source = FileImages(kept, config.model.channels)
  return TrainingData(
    description, fingerprint, held_out, None, _stream(config, source, lambda: _check(config, kept))
  )


def _find(config, name, folder):
  folder = find_data_dir(folder, f'config.data.train.{name}')
  return layouts.find_examples(name, folder, skip_bad=config.data.skip_bad)


def _check(config, examples):
  """The examples that can be trained on, and what is wrong with the others."""
  check = (config.model.channels, config.data.patch_px)
  if not config.data.skip_bad:
    examples.check_examples(examples, *check)
    return examples, []

  def problem(example):
    try:
      examples.check_examples([example], *check)
    except ValueError as error:
      return str(error)
    return None

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    problems = list(pool.map(problem, examples))
  good = [example for example, text in zip(examples, problems, strict=True) if text is None]
  bad = [text for text in problems if text is not None]
  if not good:
    raise ValueError(f'training images: got none that can be used, the first problem: {bad[0]}')
  return good, bad


def _describe(count, kind, held_out, problems):
  for problem in problems:
    print(f'left out: {problem}', flush=True)
  text = f'{count} {kind}'
  if held_out:
    text += f', {len(held_out)} images held out'
  return text + (f', {len(problems)} left out' if problems else '')


def _open_tiles(config):
  from sadnet_jax.data import tiles  # These import TensorFlow.
  from sadnet_jax.data.pipeline import TileImages

  fields = config.data
  sets, held_out = [], []
  for name, folder in training_sets(config).items():
    opened = _tile_set(tiles, config, name, folder)
    if opened.smallest_px < fields.patch_px:
      raise ValueError(
        f'{opened.path}: got a tile of {opened.smallest_px} pixels, want at least data.patch_px = '
        f'{fields.patch_px}'
      )
    sets.append(opened)
    place = look_for_data_dir(folder)
    if fields.held_out and place:
      examples = layouts.find_examples(name, place, skip_bad=fields.skip_bad).examples
      held_out += [e for e in examples if e.scene in fields.held_out]
  scenes = set().union(*(s.scenes for s in sets))
  if unknown := sorted(set(fields.held_out) - scenes):
    raise ValueError(
      f'config.data.held_out: got {", ".join(unknown)}, want some of {", ".join(sorted(scenes))}'
    )
  source = TileImages(sets, config.model.channels, fields.held_out)
  problems = list(itertools.chain.from_iterable(s.problems for s in sets))
  description = _describe(len(source), 'tiles', held_out, problems)
  fingerprint = '; '.join(f'{s.name}: {s.fingerprint}' for s in sets)
  return TrainingData(description, fingerprint, held_out, None, _stream(config, source, lambda: None))


def _tile_set(tiles, config, name, folder):
  fields = config.data
  size = {'tile_px': fields.tile_px, 'stride_px': fields.stride_px}
  tiles_dir = tiles.tiles_folder(fields.tiles_dir)
  place = tiles.tiles_folder(folder) if name == 'div2k' else look_for_data_dir(folder)
  # Several processes would cut the same tiles; and what they were cut from may be gone.
  if jax.process_count() > 1 or place is None:
    try:
      return tiles.load(name, folder, tiles_dir, **size)
    except ValueError as error:
      if place is None:
        find_data_dir(folder, f'config.data.train.{name}')
      raise error
  return tiles.prepare(name, place, tiles_dir, **size, skip_bad=fields.skip_bad)


def _stream(config, source, check):
  """Batches of a tf.data source, on their way to the devices; ``check`` names an image gone bad."""
  import tensorflow as tf

  def batches(first, devices):
    try:
      yield from stream(first, devices)
    except tf.errors.OpError as error:
      check()
      raise ValueError(
        f'config.data: got an image that cannot be read ({" ".join(error.message.split())[:300]}), though it '
        'could at the start of the run; want all of them in place until it ends'
      ) from error

  def stream(first, devices):
    return pipeline.prefetch_to_devices(
      pipeline.patches(
        source,
        patch_px=config.data.patch_px,
        batch_size=config.batch_size,
        crops_per_image=config.data.crops_per_image,
        seed=config.seed,
        first_step=first,
        last_step=config.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      ),
      devices,
    )

  return batches
