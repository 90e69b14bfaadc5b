"""Opens the training images of a run: all its data sets, with the reader that its config names."""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import dataclasses
import itertools

import jax
import ml_collections

from sadnet_jax.data import layouts, on_device
from sadnet_jax.data.examples import Example, check_examples, fingerprint, hold_out
from sadnet_jax.data.folders import find_data_dir, look_for_data_dir, new_data_dir
from sadnet_jax.files import one_line
from sadnet_jax.training.config import training_sets
from sadnet_jax.training.step import Batch


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """The training images of a run.

  Attributes:
    description: For the terminal, such as '432 images'.
    fingerprint: Identifies the images of all sets, independent of where they are stored.
    held_out: Pairs that are not trained on.
    device_images: The whole data set if the devices sample from it themselves, else None.
    device_pairs: The pairs of such a run beside its clean images, if it has both.
    batches: Function of (first step, devices of this process) that yields the batches of all steps from the
      first one on, placed on the devices; or None each time if the devices sample themselves.
  """

  description: str
  fingerprint: str
  held_out: Sequence[Example]
  device_images: on_device.DeviceImages | None
  batches: Callable[[int, Sequence[jax.Device]], Iterator[Batch | None]]
  device_pairs: on_device.DeviceImages | None = None


def open_training_data(config: ml_collections.ConfigDict, devices: Sequence[jax.Device]) -> TrainingData:
  """Finds and checks the images of ``config.data``; with reader 'tiles', cuts the tiles if necessary.

  Args:
    config: See ``configs/default.py``.
    devices: The devices of this process to train on; with reader 'memory', each must have room for all
      images.

  Raises:
    ValueError: A folder is missing or does not contain its data set; an image is damaged, lacks its partner
      (both tolerated with ``data.skip_bad``), or is smaller than a patch.
  """
  return _open_tiles(config) if config.data.reader == 'tiles' else _open_files(config, devices)


def _open_files(config, devices):
  found = {name: _find(config, name, folder) for name, folder in training_sets(config).items()}
  examples = list(itertools.chain.from_iterable(f.examples for f in found.values()))
  # The scene of a clean image is its name, which may be that of a scene of pairs.
  kept_pairs, held_out = hold_out([e for e in examples if e.noisy is not None], config.data.held_out)
  kept_set = set(kept_pairs)
  kept = [e for e in examples if e.noisy is None or e in kept_set]
  problems = list(itertools.chain.from_iterable(f.problems for f in found.values()))
  held_out, unreadable = _readable(config, held_out)
  problems += unreadable
  if not kept:
    raise ValueError('config.data.held_out holds out every scene of the training sets; hold out fewer')
  if config.data.pairs_share and not kept_pairs:
    raise ValueError(
      f'config.data.held_out holds out every scene of the pairs, but config.data.pairs_share is '
      f'{config.data.pairs_share}; hold out fewer, or set it to 0 and name only clean images'
    )
  if config.data.reader == 'memory':
    bad: dict[Example, str] = {}
    on_bad = (lambda example, error: bad.update({example: str(error)})) if config.data.skip_bad else None
    # Clean images, pairs, or both.
    sets = [[e for e in kept if e.noisy is None], [e for e in kept if e.noisy is not None]]
    images, *pairs = on_device.load(
      [kind for kind in sets if kind],
      config.model.channels,
      devices,
      patch_px=config.data.patch_px,
      on_bad=on_bad,
    )
    damaged = [bad[example] for example in kept if example in bad]
    kept = [example for example in kept if example not in bad]
    return TrainingData(
      _describe(len(kept), 'images', held_out, problems + damaged),
      fingerprint(kept),
      held_out,
      images,
      lambda first, devices: itertools.repeat(None),
      pairs[0] if pairs else None,
    )
  from sadnet_jax.data.pipeline import FileImages  # Imports TensorFlow.

  kept, damaged = _check(config, kept)
  description = _describe(len(kept), 'images', held_out, problems + damaged)
  source = FileImages(kept, config.model.channels)
  batches = _stream(config, source, lambda: _check(config, kept))
  return TrainingData(description, fingerprint(kept), held_out, None, batches)


def _find(config, name, folder):
  folder = find_data_dir(folder, f'config.data.train.{name}')
  return layouts.find_training_examples(name, folder, skip_bad=config.data.skip_bad)


def _check(config, examples):
  """Returns the usable examples, and what is wrong with the others (never any without ``skip_bad``)."""
  if not config.data.skip_bad:
    check_examples(examples, config.model.channels, config.data.patch_px)
    return examples, []
  good, bad = _separated(examples, config.model.channels, config.data.patch_px)
  if not good:
    raise ValueError(f'none of the training images can be used; the first problem: {bad[0]}')
  return good, bad


def _readable(config, held_out):
  """Likewise for held-out images, which may be of any size; without ``skip_bad`` validation reads them."""
  return _separated(held_out, config.model.channels, 1) if config.data.skip_bad else (held_out, [])


def _separated(examples, channels, patch_px):
  """The examples that pass `check_examples`, and what is wrong with the others."""

  def problem(example):
    try:
      check_examples([example], channels, patch_px)
    except ValueError as error:
      return str(error)
    return None

  with concurrent.futures.ThreadPoolExecutor() as pool:
    problems = list(pool.map(problem, examples))
  good = [example for example, text in zip(examples, problems, strict=True) if text is None]
  return good, [text for text in problems if text is not None]


def _describe(count, kind, held_out, problems):
  for problem in problems:
    print(f'skipped: {problem}', flush=True)
  text = f'{count} {kind}'
  if held_out:
    text += f', {len(held_out)} images held out'
  return text + (f', {len(problems)} skipped' if problems else '')


def _open_tiles(config):
  from sadnet_jax.data.pipeline import TileImages  # Imports TensorFlow.

  fields = config.data
  sets = [_open_tile_set(config, name, folder) for name, folder in training_sets(config).items()]
  scenes = set().union(*(s.scenes for s in sets))
  if unknown := sorted(set(fields.held_out) - scenes):
    raise ValueError(
      f'config.data.held_out names {", ".join(unknown)}, but the scenes are {", ".join(sorted(scenes))}'
    )
  held_out, unreadable = _readable(config, _find_held_out(config))
  small = list(itertools.chain.from_iterable(_too_small(s, fields) for s in sets))
  if small and not fields.skip_bad:
    raise ValueError(f'{small[0]}; choose smaller patches, or skip such images with data.skip_bad')
  source = TileImages(sets, config.model.channels, fields.held_out, patch_px=fields.patch_px)
  problems = [*itertools.chain.from_iterable(s.problems for s in sets), *small]
  # Those of held-out images were found when the tiles were cut.
  problems += [text for text in unreadable if text not in problems]
  description = _describe(len(source), 'tiles', held_out, problems)
  identity = '; '.join(f'{s.name}: {s.fingerprint}' for s in sets)
  return TrainingData(description, identity, held_out, None, _stream(config, source, lambda: None))


def _open_tile_set(config, name, folder):
  from sadnet_jax.data import tiles

  fields = config.data
  size = {'tile_px': fields.tile_px, 'stride_px': fields.stride_px}
  tiles_dir = new_data_dir(fields.tiles_dir)
  source = new_data_dir(folder) if name == 'div2k' else look_for_data_dir(folder)
  if source is None:
    # Tiles outlive the images they were cut from.
    try:
      opened = tiles.load(name, folder, tiles_dir, **size, skip_bad=fields.skip_bad)
    except ValueError:
      find_data_dir(folder, f'config.data.train.{name}')
      raise
    print(f'{folder}: not found; training on the tiles in {opened.path} ({opened.fingerprint})', flush=True)
  elif jax.process_count() > 1:
    # Several processes would cut the same tiles.
    opened = tiles.load(name, source, tiles_dir, **size, check=True, skip_bad=fields.skip_bad)
  else:
    opened = tiles.prepare(name, source, tiles_dir, **size, skip_bad=fields.skip_bad)
  return opened


def _too_small(tile_set, fields):
  """A sentence about each image to train on whose tiles are smaller than a patch."""
  return [
    f'{tile_set.path}: the tiles of {image["name"]} have a side of {side} pixels, but data.patch_px is '
    f'{fields.patch_px}'
    for image in tile_set.images
    if (side := tile_set.shortest_side(image)) < fields.patch_px and image['scene'] not in fields.held_out
  ]


def _find_held_out(config):
  """Returns the existing whole images of held-out scenes, to validate on."""
  held_out = []
  for name, folder in training_sets(config).items():
    source = look_for_data_dir(folder)
    if config.data.held_out and source:
      examples = layouts.find_examples(name, source, skip_bad=config.data.skip_bad).examples
      held_out += [e for e in examples if e.scene in config.data.held_out]
  return held_out


def _stream(config, source, find_damage):
  """Yields batches of a tf.data source on their way to the devices.

  If reading fails, ``find_damage`` is called first: it raises ValueError naming the damaged image, if it can.
  """
  import tensorflow as tf

  from sadnet_jax.data import pipeline

  def batches(first, devices):
    try:
      yield from pipeline.prefetch_to_devices(patches(first), devices)
    except tf.errors.OpError as error:
      find_damage()
      raise ValueError(
        'an image of config.data could be read at the start of the run, but not any more '
        f'({one_line(error, 300)}); the images must stay in place until the run ends'
      ) from error

  def patches(first):
    return pipeline.patches(
      source,
      patch_px=config.data.patch_px,
      batch_size=config.batch_size,
      crops_per_image=config.data.crops_per_image,
      seed=config.seed,
      first_step=first,
      last_step=config.steps,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  return batches
