"""Denoising one picture after another, from file to file."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import tempfile
import time
from typing import Any

import numpy as np

from sadnet_jax.denoise import interruption
from sadnet_jax.denoise.denoiser import Denoiser
from sadnet_jax.denoise.report import Report, one_line
from sadnet_jax.denoise.targets import Target
from sadnet_jax.images import Metadata, Photograph, check_output, read_photograph, upright, write_photograph
from sadnet_jax.images.arrays import side_by_side
from sadnet_jax.images.reading import shown_path
from sadnet_jax.images.writing import to_8_bits
from sadnet_jax.weights import index, loading

# Of each half of a comparison: what is larger shows its middle, for smaller copies would hide the noise.
COMPARED_PX = 4096
# By a picture's channels, what the index may have a network for: the best first.
_DEFAULTS = {3: ('real', 'color'), 1: ('gray', 'real', 'color')}


class Networks:
  """Denoisers, each loaded when the first picture needs it."""

  def __init__(self, model: str | None, *, dilations: Sequence[int] | None, options: Mapping[str, Any]):
    """Loads the one that is named.

    Args:
      model: As `pretrained.load` takes; None for the published default for each kind of picture.
      dilations: Likewise.
      options: Of `Denoiser`.

    Raises:
      ValueError: There are no such weights, or the options are of no use.
    """
    self._model, self._dilations, self._options = model, dilations, options
    self._loaded: dict[str, Denoiser] = {}
    self._load(self._name(3))

  def for_channels(self, channels: int) -> Denoiser:
    """The one for pictures of so many channels; ValueError if they are not for the network."""
    denoiser = self._load(self._name(channels))
    if channels > denoiser.model.channels:
      raise ValueError('got a colour picture, want a grey one: the network of --model is for those')
    return denoiser

  def _name(self, channels):
    if self._model is not None:
      return self._model
    entries = index.available()
    for kind in _DEFAULTS[channels]:
      for name, entry in entries.items():
        if kind in entry.default_for:
          return name
    raise ValueError('--model: got none, want one: no weights are published as the default')

  def _load(self, name):
    if name not in self._loaded:
      model, params, about = loading.load(
        name, dilations=self._dilations, progress=lambda done, total: interruption.check()
      )
      self._loaded[name] = Denoiser(model, params, about=about, **self._options)
    return self._loaded[name]


def denoise_all(targets: Sequence[Target], networks: Networks, report: Report, *, overwrite: bool) -> None:
  """Denoises pictures; what is wrong with one is told, and the others go on.

  Args:
    targets: The pictures.
    networks: What denoises them.
    report: Is told what happens.
    overwrite: Replace files that are there; not those of the same call, which differ by case only,
      where the system takes that for one name.
  """
  outputs = Outputs(overwrite=overwrite)
  for target in targets:
    interruption.check()
    report.starts(target)
    try:
      _denoise(target, networks, report, outputs)
    except Exception as error:
      report.fails(target, error_line(target.source, error))


def _denoise(target, networks, report, outputs):
  def progress(done, total):
    report.goes_on(target, done, total)
    interruption.check()

  start = time.perf_counter()
  photograph = read_photograph(target.source)
  height, width, channels = photograph.pixels.shape
  report.has_size(target, width, height)
  report.notes(target.source, photograph.notes)
  denoiser = networks.for_channels(channels)
  for path in target.files:
    path.parent.mkdir(parents=True, exist_ok=True)
    outputs.check(path)
  check_output(target.output, photograph)
  # Large pictures take much memory: what is not needed any more goes.
  noisy = photograph if target.comparison is not None else None
  photograph = dataclasses.replace(photograph, pixels=denoiser(photograph.pixels, progress=progress))
  report.notes(target.output, outputs.write(target.output, photograph))
  if noisy is not None:
    compared, notes = comparison(noisy, photograph)
    report.notes(target.comparison, (*notes, *outputs.write(target.comparison, compared)))
  report.ends(target, width=width, height=height, seconds=time.perf_counter() - start)


def comparison(noisy: Photograph, denoised: Photograph) -> tuple[Photograph, tuple[str, ...]]:
  """Noisy and denoised beside each other, upright, of 8 bits; of large ones the middle."""
  halves = []
  for photograph in (noisy, denoised):
    pixels = upright(photograph).pixels
    middle = tuple(
      slice(max(0, side - COMPARED_PX) // 2, max(0, side - COMPARED_PX) // 2 + COMPARED_PX)
      for side in pixels.shape[:2]
    )
    pixels = pixels[middle]
    if pixels.dtype == np.uint16:
      pixels = to_8_bits(pixels)
    halves.append(pixels)
  notes: tuple[str, ...] = ()
  if max(noisy.pixels.shape[:2]) > COMPARED_PX:
    notes = (f'shows the middle, {halves[0].shape[1]}x{halves[0].shape[0]} pixels',)
  metadata = Metadata(icc_profile=noisy.metadata.icc_profile)
  return Photograph(side_by_side(*halves), metadata=metadata), notes


class Outputs:
  """Writes pictures, whole or not at all, over nothing that is to be kept."""

  def __init__(self, *, overwrite: bool):
    """Replaces files that are there if told so, but for its own."""
    self._overwrite = overwrite
    self._written: set[tuple[int, int]] = set()

  def check(self, path: Path) -> None:
    """Raises ValueError where `write` would, as far as can be known before."""
    try:
      status = path.lstat()
    except FileNotFoundError:
      return
    if (status.st_dev, status.st_ino) in self._written:
      raise ValueError(
        f'{shown_path(path)}: got the output of another picture, want names that differ by more'
      )
    if not self._overwrite:
      raise ValueError(f'{shown_path(path)}: got an output that is there, want another name, or --overwrite')

  def write(self, path: Path, photograph: Photograph) -> tuple[str, ...]:
    """Writes a picture in the format of the path's ending; gives notes.

    Raises:
      ValueError: The path is taken, also since `check`, or the file cannot be written.
    """
    # In a folder of its own it has a short name, whatever the length of the path's, and other programs
    # that look for pictures do not see it.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.sadnet-') as folder:
      temporary = Path(folder, f'picture{path.suffix}')
      try:
        notes = write_photograph(temporary, photograph)
      except ValueError as error:
        raise ValueError(str(error).replace(shown_path(temporary), shown_path(path))) from error
      self.check(path)
      if self._overwrite:
        temporary.replace(path)
      else:
        _move_to_new(temporary, path)
    status = path.lstat()
    self._written.add((status.st_dev, status.st_ino))
    return notes


def _move_to_new(temporary, path):
  try:
    # Unlike renaming, this fails where there is a file, at whatever moment it came.
    os.link(temporary, path)
  except FileExistsError as error:
    raise ValueError(
      f'{shown_path(path)}: got an output that is there, want another name, or --overwrite'
    ) from error
  except OSError:
    # No links on this file system; that nothing is there was seen just now.
    temporary.rename(path)


def error_line(path: Path, error: Exception) -> str:
  """What is told of a picture: the path, what was got and what is wanted."""
  name = shown_path(path)
  if isinstance(error, ValueError):
    text = one_line(str(error)).removeprefix('image: ')
    return text if text.startswith(f'{name}: ') else f'{name}: {text}'
  if isinstance(error, OSError):
    about = shown_path(error.filename) if error.filename else name
    return f'{about}: got {one_line(error.strerror or str(error))}, want files that can be read and written'
  if isinstance(error, MemoryError):
    return f'{name}: got a picture too large for the memory, want a smaller one, or smaller tiles (--tile)'
  text = one_line(f'{type(error).__name__}: {error}')
  return f'{name}: got an error that no picture should make ({text}), want one that can be denoised'
