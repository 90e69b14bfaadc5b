"""Denoising picture files one after another; an error in one does not stop the others."""

from collections.abc import Mapping, Sequence
import copy
import os
from pathlib import Path
import time
from typing import Any

import numpy as np

from sadnet_jax.denoise import claims, interruption
from sadnet_jax.denoise.denoiser import Denoiser
from sadnet_jax.denoise.grey import has_equal_channels
from sadnet_jax.denoise.quality import BALANCED, QUALITIES, default_weights
from sadnet_jax.denoise.report import Report
from sadnet_jax.denoise.targets import Target, file_identity
from sadnet_jax.files import one_line
from sadnet_jax.images import Metadata, Photograph, check_output, read_photograph, upright, write_photograph
from sadnet_jax.images.arrays import side_by_side
from sadnet_jax.images.photograph import FULL_WHITE, to_8_bits
from sadnet_jax.images.reading import shown_path
from sadnet_jax.images.writing import JPEG_QUALITY
from sadnet_jax.weights import loading

# Longest side of either half of a comparison. Larger pictures are cropped to their middle, because a smaller
# copy would hide the noise.
COMPARISON_PX = 4096
_SECONDS_BETWEEN_CLAIMS = 0.2


class Networks:
  """Denoisers, each loaded when a picture first needs it."""

  def __init__(
    self,
    model: str | Path | None,
    *,
    quality: str | None = None,
    dilations: Sequence[int] | None,
    options: Mapping[str, Any],
  ):
    """Loads the denoiser for colour pictures, so that errors in the options show at once.

    Args:
      model: Weights as `pretrained.load` takes them; None for those of the quality for each kind of picture.
      quality: A name of `QUALITIES`; None for 'balanced', or with `model`.
      dilations: As `pretrained.load` takes them; only for `model`.
      options: Options of `Denoiser`.

    Raises:
      ValueError: The weights do not exist, `model` and `quality` are both given, `dilations` is given without
        `model`, or an option is out of range.
    """
    if dilations is not None and model is None:
      raise ValueError('--dilations is for weights of your own; name them with --model, or remove it')
    self._dilations, self._options = {model: dilations}, options
    self._loaded: dict[str | Path, Denoiser] = {}
    # Files whose hash is checked, which takes a while, once and not for each picture.
    self._published: dict[str, Path] = {}
    self._strength: tuple[float, float | None] | None = None
    self._choose(model, quality)

  def choosing(self, model: str | Path | None, quality: str | None = None) -> 'Networks':
    """The same with other weights; what both use is loaded once.

    Args:
      model: As the constructor takes it.
      quality: As the constructor takes it.

    Raises:
      ValueError: As the constructor.
    """
    other = copy.copy(self)
    other._choose(model, quality)
    return other

  def with_strength(self, strength: float, chroma_strength: float | None = None) -> 'Networks':
    """The same networks, which are loaded once for both, with other strengths.

    Args:
      strength: As `Denoiser` takes it.
      chroma_strength: As `Denoiser` takes it.
    """
    other = copy.copy(self)
    other._strength = strength, chroma_strength
    return other

  def for_channels(self, channels: int) -> Denoiser:
    """The denoiser for pictures with 1 or 3 channels.

    Raises:
      ValueError: The picture is in colour and the weights are for grey ones.
    """
    denoiser = self._load(self._name(channels))
    if QUALITIES[self._quality].ensemble:
      denoiser = denoiser.with_ensemble()
    if self._strength is not None:
      denoiser = denoiser.with_strength(*self._strength)
    if channels > denoiser.model.channels:
      raise ValueError('this is a colour picture, but these weights are for grey ones; choose other weights')
    return denoiser

  def _choose(self, model, quality):
    if model is not None and quality is not None:
      raise ValueError(
        f'got model {model!r} and quality {quality!r}, but a quality chooses its own model; leave one out'
      )
    self._model, self._quality = model, quality or BALANCED
    self._load(self._name(3))

  def _name(self, channels):
    if self._model is not None:
      return self._model
    name = default_weights(channels, self._quality)
    if name not in self._published:
      # Not a training run of that name in the working folder.
      self._published[name] = loading.published(name)
    return self._published[name]

  def _load(self, name):
    if name not in self._loaded:
      model, params, about = loading.load(
        name, dilations=self._dilations.get(name), progress=lambda done, total: interruption.check()
      )
      self._loaded[name] = Denoiser(model, params, about=about, **self._options)
    return self._loaded[name]


def denoise_all(
  targets: Sequence[Target],
  networks: Networks,
  report: Report,
  *,
  overwrite: bool,
  skip_existing: bool = False,
  linear: bool | None = None,
  white_level: int | None = None,
  jpeg_quality: int = JPEG_QUALITY,
) -> None:
  """Denoises pictures; reports an error in one and continues with the others.

  Args:
    targets: The pictures.
    networks: Their denoisers.
    report: Shows progress and errors.
    overwrite: Replace existing files, except those written by this call: on some file systems, names that
      differ only by case are one file.
    skip_existing: Share the pictures with other processes on the same folder: skip those whose files have
      appeared meanwhile, and leave those that another one works on until the others are done; of an existing
      picture without its comparison write that alone.
    linear: Whether floating-point files hold linear light, as `read_photograph` takes it.
    white_level: White in 16-bit files, as `read_photograph` takes it.
    jpeg_quality: Quality of JPEG files, from 1 to 100.
  """
  outputs = Outputs(overwrite=overwrite, jpeg_quality=jpeg_quality)
  reading = {'linear': linear, 'white_level': white_level}
  if not skip_existing:
    for target in targets:
      interruption.check()
      _denoise_or_report(target, networks, report, outputs, reading)
    return
  in_work_elsewhere = [t for t in targets if not _share(t, networks, report, outputs, reading)]
  for target in in_work_elsewhere:
    # If the other process fails or is killed, the picture is ours.
    while not _share(target, networks, report, outputs, reading):
      time.sleep(_SECONDS_BETWEEN_CLAIMS)


def _share(target, networks, report, outputs, reading):
  """Denoises a picture unless that is done; False if another process is doing it."""
  interruption.check()
  with claims.claimed(target.output) as is_ours:
    if is_ours:
      _denoise_or_skip(target, networks, report, outputs, reading)
  return is_ours


def _denoise_or_skip(target, networks, report, outputs, reading):
  # Only with the claim is it certain that no other process is about to write them.
  if all(map(outputs.exists_already, target.files)):
    report.skip(target)
    return
  is_denoised = outputs.exists_already(target.output)
  report.start(target)
  try:
    if is_denoised:
      _compare_existing(target, report, outputs, reading)
      report.skip(target)
    else:
      _denoise(target, networks, report, outputs, reading)
  except Exception as error:
    theirs = [path for path in target.files if outputs.exists_already(path)]
    is_complete = all(map(os.path.lexists, target.files))
    if theirs and (is_complete or (not is_denoised and target.output in theirs)):
      # Another process had the same picture at the same time, where there are no claims.
      report.skip(target)
    else:
      report.fail(target, error_line(target.source, error))


def _denoise_or_report(target, networks, report, outputs, reading):
  report.start(target)
  try:
    _denoise(target, networks, report, outputs, reading)
  except Exception as error:
    report.fail(target, error_line(target.source, error))


def _compare_existing(target, report, outputs, reading):
  """Writes the comparison of a picture that is denoised already, as after an interruption."""
  noisy = read_photograph(target.source, **reading)
  denoised = read_photograph(target.output, **reading_of_output(noisy))
  (height, width), (other_height, other_width) = (upright(p).pixels.shape[:2] for p in (noisy, denoised))
  if (height, width) != (other_height, other_width):
    raise ValueError(
      f'{shown_path(target.output)} has {other_width}x{other_height} pixels, but the picture '
      f'{width}x{height}, so there is no comparison of them; pass --overwrite to denoise it again'
    )
  _write_comparison(target, noisy, denoised, report, outputs)


def reading_of_output(photograph: Photograph) -> dict[str, Any]:
  """The options of `read_photograph` for a file that was written from this photograph."""
  return {'linear': photograph.linear or None, 'white_level': photograph.white_level or FULL_WHITE}


def _write_comparison(target, noisy, denoised, report, outputs):
  compared, notes = comparison(noisy, denoised)
  report.note(target.comparison, (*notes, *outputs.write(target.comparison, compared)))


def _denoise(target, networks, report, outputs, reading):
  def progress(done, total):
    report.advance(target, done, total)
    interruption.check()

  start = time.perf_counter()
  photograph = read_photograph(target.source, **reading)
  height, width, channels = photograph.pixels.shape
  report.set_size(target, width, height)
  report.note(target.source, photograph.notes)
  denoiser = networks.for_channels(1 if has_equal_channels(photograph.pixels) else channels)
  for path in target.files:
    path.parent.mkdir(parents=True, exist_ok=True)
    outputs.check(path)
  check_output(target.output, photograph)
  # Large pictures take much memory: drop the noisy one unless a comparison needs it.
  noisy = photograph if target.comparison is not None else None
  photograph = denoiser.denoise_photograph(photograph, progress=progress)
  report.note(target.output, outputs.write(target.output, photograph))
  if noisy is not None:
    _write_comparison(target, noisy, photograph, report, outputs)
  report.finish(target, width=width, height=height, seconds=time.perf_counter() - start)


def middle(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The middle of an image [H, W, C], of at most this height and width in pixels."""
  starts = (max(0, side - longest) // 2 for side, longest in zip(pixels.shape[:2], size, strict=True))
  rows, columns = (slice(start, start + longest) for start, longest in zip(starts, size, strict=True))
  return pixels[rows, columns]


def comparison(noisy: Photograph, denoised: Photograph) -> tuple[Photograph, tuple[str, ...]]:
  """Puts noisy and denoised side by side, upright, in 8 bits; large pictures are cropped to their middle.

  Returns:
    The comparison, and notes for the user.
  """
  halves = []
  for photograph in (noisy, denoised):
    halves.append(to_8_bits(middle(upright(photograph).pixels, (COMPARISON_PX, COMPARISON_PX))))
  notes: tuple[str, ...] = ()
  if max(noisy.pixels.shape[:2]) > COMPARISON_PX:
    notes = (f'shows the middle {halves[0].shape[1]}x{halves[0].shape[0]} pixels only',)
  # Some formats have three channels for grey pictures.
  channels = max(half.shape[2] for half in halves)
  halves = [np.repeat(half, channels // half.shape[2], axis=2) for half in halves]
  return Photograph(side_by_side(*halves), metadata=Metadata(icc_profile=shown_profile(noisy))), notes


def shown_profile(photograph: Photograph) -> bytes | None:
  """The colour profile of what is shown of a photograph, whose pixels are never linear light."""
  return None if photograph.linear else photograph.metadata.icc_profile


class Outputs:
  """Writes pictures completely or not at all, and never over files that must be kept."""

  def __init__(self, *, overwrite: bool, jpeg_quality: int = JPEG_QUALITY):
    """Replaces existing files if `overwrite`, except those it has written itself."""
    self._overwrite, self._jpeg_quality = overwrite, jpeg_quality
    self._written: set[tuple[int, int] | None] = set()

  def exists_already(self, path: Path) -> bool:
    """Whether the path exists and was not written by this object."""
    return os.path.lexists(path) and file_identity(path) not in self._written

  def check(self, path: Path) -> None:
    """Raises ValueError if the path is already taken."""
    if not os.path.lexists(path):
      return
    if file_identity(path) in self._written:
      raise ValueError(
        f'{shown_path(path)} is the output of another picture on this file system; rename one of them'
      )
    if not self._overwrite:
      raise ValueError(f'{shown_path(path)} already exists; choose another name or pass --overwrite')

  def write(self, path: Path, photograph: Photograph) -> tuple[str, ...]:
    """Writes a picture in the format of the path's extension.

    Returns:
      Notes for the user.

    Raises:
      ValueError: The path is taken, perhaps only since `check`, or the file cannot be written.
    """
    self.check(path)
    notes = write_photograph(path, photograph, overwrite=self._overwrite, jpeg_quality=self._jpeg_quality)
    self._written.add(file_identity(path))
    return notes


def error_line(path: Path, error: Exception) -> str:
  """One line that names the picture and says what is wrong with it."""
  name = shown_path(path)
  if isinstance(error, ValueError):
    text = one_line(error)
    return text if text.startswith(f'{name}: ') else f'{name}: {text}'
  if isinstance(error, OSError):
    about = shown_path(error.filename) if error.filename else name
    return f'{about}: {one_line(error.strerror or error)}'
  if isinstance(error, MemoryError):
    return f'{name}: not enough memory for this picture; try smaller tiles (--tile) or a smaller picture'
  return f'{name}: unexpected error, please report it: {type(error).__name__}: {one_line(error)}'
