"""Denoising images of any size and the usual dtypes with a trained network.

`Denoiser` converts dtypes, chooses tiles, averages the self-ensemble and blends by strength; a
`CompiledNetwork` runs the network on one device.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import numbers
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.denoise import tile_memory
from sadnet_jax.denoise.compiled_network import CompiledNetwork
from sadnet_jax.denoise.grey import as_colour, has_equal_channels, noise_deviation
from sadnet_jax.denoise.tiling import (
  RAMP_PX,
  TilePlan,
  blend_tiles,
  check_tiles,
  plan_tiles,
  plan_tiles_by_area,
)
from sadnet_jax.files import one_line
from sadnet_jax.images.photograph import BT601_LUMA, Photograph, to_float
from sadnet_jax.nn.sadnet import STRIDE, SADNet, reflected_indices, round_up
from sadnet_jax.weights import loading

# With this overlap, tiles and the whole image differ by less than 1/255 with weights for one sigma. `photo`
# and `color` look at more distant pixels: some levels at single pixels, but less than 0.15/255 on average.
# tests/denoise/test_denoiser_with_weights.py checks it, benchmarks/command.py measures it.
OVERLAP_PX = 120
# On a CPU, XLA's convolutions take longer per pixel of a high image: 9% for 1392x1056 beside 2040x664.
_CPU_HEIGHT_COST = 1 / 5000
# Floats further outside [0, 1] are not images in that range, however noisy.
_LARGEST_EXCESS = 4.0
# Flips and rotations of the self-ensemble.
TRANSFORMS = 8

Image = TypeVar('Image', np.ndarray, jax.Array)
Tile = int | Literal['auto', 'whole']
Progress = Callable[[int, int], None]


class Denoiser:
  """A trained SADNet, for images of any size and the usual dtypes.

  An image larger than a tile is denoised in overlapping tiles of one size; a smaller one in one piece,
  which gives what the network gives. Images of many sizes share a few compiled programs, which changes
  results by rounding errors at most; see `CompiledNetwork`. Integer results are rounded and clipped; float
  results are returned as the network computes them and may leave [0, 1] a little.

  Threads may share a denoiser. For other processes it can be pickled, with its weights and options; start
  them with ``multiprocessing.get_context('spawn')``. JAX has threads of its own, which a forked process
  lacks: it may hang if JAX was used before the fork.

  Attributes:
    model: The network.
    params: Its weights, on the device.
    about: Metadata of the weights' file.
    network: Runs the network on float32 images.
  """

  def __init__(
    self,
    model: SADNet,
    params: Mapping[str, Any],
    *,
    about: Mapping[str, str] | None = None,
    tile_px: Tile = 'auto',
    overlap_px: int = OVERLAP_PX,
    ensemble: bool = False,
    strength: float = 1.0,
    chroma_strength: float | None = None,
    device: jax.Device | None = None,
  ):
    """Puts the weights on the device.

    Args:
      model: The network.
      params: Its weights.
      about: Stored as `about`.
      tile_px: Longest side of a tile, a multiple of 8; 'auto' for tiles of any shape with as many pixels
        as fit into half of the device's free memory, up to 1504 x 1504; 'whole' for no tiles.
      overlap_px: Least overlap of neighbouring tiles.
      ensemble: Return the mean over the eight flips and rotations: eight times the work.
      strength: From 0, which keeps the noisy image, to 1, the fully denoised one. Values between blend
        the two; see `blend`.
      chroma_strength: The same for the colour of RGB images alone; `strength` is then that of their
        luma. None for `strength`.
      device: Where to run; None for JAX's first device.

    Raises:
      ValueError: An option is out of range.
    """
    if tile_px == 'auto':
      check_tiles(math.isqrt(tile_memory.AREAS_PX[0]), overlap_px)
    elif tile_px != 'whole':
      if not isinstance(tile_px, numbers.Integral):
        raise ValueError(f"tile_px must be a number of pixels, 'auto' or 'whole', not {tile_px!r}")
      check_tiles(tile_px, overlap_px)
    self._set_strength(strength, chroma_strength)
    self.model, self.about = model, dict(about or {})
    self.network = CompiledNetwork(model, params, device or jax.local_devices()[0])
    self._tile_px, self._overlap_px, self._ensemble = tile_px, overlap_px, ensemble
    if tile_px == 'auto':
      # Chosen once, so that images of one size always get the same tiles.
      least_px = min((overlap_px + 2 * RAMP_PX) ** 2, tile_memory.AREAS_PX[0])
      self._areas = tile_memory.TileAreas(tile_memory.tile_areas(model, self.network.device, least_px))

  @property
  def params(self) -> Any:
    """The weights, which denoisers that share a network have in common."""
    return self.network.params

  def __reduce__(self):
    """For pickle: weights and options; the device becomes that of the same platform and number, if any."""
    options = {
      'about': self.about,
      'tile_px': self._tile_px,
      'overlap_px': self._overlap_px,
      'ensemble': self._ensemble,
      'strength': self._strength,
      'chroma_strength': self._chroma_strength,
    }
    device = self.network.device
    place = (device.platform, jax.local_devices(backend=device.platform).index(device))
    return _unpickled, (self.model, jax.tree.map(np.asarray, self.params), options, place)

  @classmethod
  def from_pretrained(cls, name: str, **options: Any) -> 'Denoiser':
    """Loads published weights.

    Args:
      name: One of `sadnet_jax.pretrained.available`, or whatever else `pretrained.load` accepts: the path
        of a file or run, a URL, or ``hf://OWNER/NAME``.
      **options: Options of the constructor.

    Raises:
      ValueError: The weights do not exist or are damaged.
    """
    model, params, about = loading.load(name)
    return cls(model, params, about=about, **options)

  @classmethod
  def from_checkpoint(
    cls, path: Any, *, dilations: Sequence[int] | None = None, **options: Any
  ) -> 'Denoiser':
    """Loads your own weights.

    Args:
      path: The folder of a run or of one checkpoint, a ``.safetensors`` file, or a ``.pth`` file of the
        authors' network.
      dilations: Dilation rates of the context block of a ``.pth`` file, which does not record them;
        (1, 2, 3, 4) by default. Other files record them, and must agree if both are given.
      **options: Options of the constructor.

    Raises:
      ValueError: The path holds no readable weights of a SADNet.
    """
    model, params, about = loading.load(Path(path), dilations=dilations)
    return cls(model, params, about=about, **options)

  def __call__(self, image: Image, *, progress: Progress | None = None) -> Image:
    """Denoises an image, or a batch of images of one size.

    Args:
      image: [H, W, C], [H, W] or [N, H, W, C], of red, green and blue in this order, display-referred (as
        in sRGB files, not linear light); uint8, uint16, or floats in [0, 1] that noise may have moved out of
        that range. For pictures with brighter values see `denoise_photograph`. A colour network also takes
        grey images, and denoises those of a batch whose channels are equal as grey ones (see
        `sadnet_jax.denoise.grey`); a grey network also takes colour images whose channels are equal.
      progress: Called as ``progress(done, total)`` after each run of the network. Starts over with a larger
        total if the first tiles did not fit in memory.

    Returns:
      The same shape, dtype and kind of array.

    Raises:
      ValueError: The shape or dtype is not supported, values are not finite or far outside [0, 1], or the
        image does not fit in device memory.
    """
    if isinstance(image, jax.core.Tracer):
      raise ValueError('image is a traced array; inside jit, call `model.apply` instead of a Denoiser')
    if isinstance(image, jax.Array):
      denoised = self._denoise(np.asarray(image), progress)
      return jax.device_put(denoised, image.sharding)
    return self._denoise(image, progress)

  def denoise_photograph(self, photograph: Photograph, *, progress: Progress | None = None) -> Photograph:
    """Denoises what `read_photograph` reads, as the command does; transparency and metadata stay.

    Of floating-point values the network sees those up to white, on which it was trained; the excess of
    brighter ones is added to the result.

    Args:
      photograph: The photograph; a grey network also takes one in colour whose channels are equal.
      progress: As for a call.

    Raises:
      ValueError: As for a call.
    """
    pixels = photograph.pixels
    if pixels.dtype == np.float32:
      known = np.clip(pixels, -1, 1)
      denoised = self(known, progress=progress) + (pixels - known)
    else:
      denoised = self(pixels, progress=progress)
    return dataclasses.replace(photograph, pixels=denoised)

  def apply(self, noisy: np.ndarray) -> np.ndarray:
    """What the network itself makes of an image, for measurements: in tiles if it is large.

    Unlike a call, this takes any values, and gives grey images no treatment of their own.

    Args:
      noisy: float32 [H, W, C] with the network's channels.

    Returns:
      The same shape, not clipped.

    Raises:
      ValueError: The device fails.
    """
    denoised = np.empty((1, *noisy.shape), np.float32)
    self._denoise_batch(noisy[None], denoised, [None], _ignore_progress)
    return denoised[0]

  def replace_params(self, params: Mapping[str, Any]) -> None:
    """Takes other weights of the same network, and keeps the compiled programs."""
    self.network.params = jax.device_put(params, self.network.device)

  def with_strength(self, strength: float, chroma_strength: float | None = None) -> 'Denoiser':
    """The same denoiser with other strengths; both share weights and compiled programs.

    Args:
      strength: As the constructor takes it.
      chroma_strength: As the constructor takes it.

    Raises:
      ValueError: A strength is not between 0 and 1.
    """
    other = self._sharing()
    other._set_strength(strength, chroma_strength)
    return other

  def with_ensemble(self) -> 'Denoiser':
    """The same denoiser with the self-ensemble; both share weights and compiled programs."""
    other = self._sharing()
    other._ensemble = True
    return other

  def plan(self, height_px: int, width_px: int) -> TilePlan:
    """The tiles in which an image of this size is denoised.

    They are smaller after tiles of the automatic size have exhausted the device's memory.

    Args:
      height_px: Height of the image.
      width_px: Width of the image.
    """
    return self._plan(height_px, width_px)[0]

  def prepare(self, height_px: int, width_px: int) -> None:
    """Compiles ahead for single images of this size, which then do not share a program with larger ones.

    Such calls compile nothing after it, until other sizes have taken the place of this one (`MAX_PROGRAMS`).

    Args:
      height_px: Height of an image.
      width_px: Width of an image.

    Raises:
      jax.errors.JaxRuntimeError: The device lacks the memory; a call would try smaller tiles.
    """
    plan = self.plan(height_px, width_px)
    sizes = {plan.tile_size, plan.tile_size[::-1]} if self._ensemble else {plan.tile_size}
    for size in sizes:
      self.network.prepare(1, *size)

  def _sharing(self):
    # Not copy.copy, which copies as pickle does: with a network of its own.
    other = object.__new__(type(self))
    other.__dict__.update(self.__dict__)
    return other

  def _denoise(self, image, progress):
    check_dtype(image)
    if self.model.channels == 1 and image.size and image.ndim > 2 and _is_grey(image):
      grey = self._denoise(image[..., :1], progress)
      return np.repeat(grey, image.shape[-1], axis=-1)
    batch = self._as_batch(image)
    check_values(image)
    if self._keeps_everything(channels=batch.shape[3]):
      return image.copy()
    denoised = np.empty(batch.shape, image.dtype)
    if denoised.size:
      deviations = [self._grey_deviation(image) for image in batch]
      self._denoise_batch(batch, denoised, deviations, progress or _ignore_progress)
    return denoised.reshape(image.shape)

  def _as_batch(self, image):
    """[N, H, W, C]; C is 1, or the network's channels."""
    shape = (*image.shape, 1) if image.ndim == 2 else image.shape
    if len(shape) == 3:
      shape = (1, *shape)
    channels = self.model.channels
    if len(shape) != 4 or shape[3] not in (1, channels) or (shape[0] and min(shape[1:3]) < 1):
      accepted = 'one channel' if channels == 1 else f'one or {channels} channels'
      raise ValueError(
        f'image must be [H, W, C], [H, W] or [N, H, W, C] with at least one pixel and {accepted}, '
        f'not of shape {image.shape}'
      )
    return image.reshape(shape)

  def _set_strength(self, strength, chroma_strength):
    self._strength = _checked_strength('strength', strength)
    self._chroma_strength = (
      self._strength if chroma_strength is None else _checked_strength('chroma_strength', chroma_strength)
    )

  def _keeps_everything(self, channels):
    has_chroma = channels == len(BT601_LUMA)
    return self._strength == 0 and (self._chroma_strength == 0 or not has_chroma)

  def _grey_deviation(self, image):
    """The noise of a grey image if a network for colour denoises it, else None."""
    if self.model.channels == 1 or not (image.shape[-1] == 1 or _is_grey(image)):
      return None
    return noise_deviation(image[..., 0])

  def _denoise_batch(self, batch, denoised, deviations, progress):
    """Denoises into an array; tries smaller tiles if memory runs out and their size is ours to choose."""
    while True:
      areas_px = self._areas.px if self._tile_px == 'auto' else ()
      plan, run_px = self._plan(*batch.shape[1:3])
      try:
        if plan.tiles == 1:
          self._denoise_whole(batch, denoised, deviations, plan.pixels, run_px, progress)
        else:
          self._denoise_tiles(batch, denoised, deviations, plan, run_px, progress)
        return
      except jax.errors.JaxRuntimeError as error:
        reason = one_line(error, 200)
        if tile_memory.is_out_of_memory(error) and len(areas_px) > 1:
          self._areas.drop_largest_of(areas_px)
          continue
        (height, width), (tile_height, tile_width) = batch.shape[1:3], plan.tile_size
        # The automatic size has tried smaller ones.
        smaller = '' if self._tile_px == 'auto' else 'smaller tiles or '
        raise ValueError(
          f'image of {width}x{height} pixels: the device fails on tiles of {tile_width}x{tile_height} '
          f'({reason}); use {smaller}a device with more memory'
        ) from error

  def _plan(self, height, width):
    """The tiles, and how many pixels one run of the network may have: small images share a run."""
    if self._tile_px == 'auto':
      area_px = self._areas.px[0]
      # The ensemble turns half of its images on their side, so flat tiles gain nothing.
      flat_is_faster = self.network.device.platform == 'cpu' and not self._ensemble
      height_cost = _CPU_HEIGHT_COST if flat_is_faster else 0
      return plan_tiles_by_area(height, width, area_px, self._overlap_px, height_cost), area_px
    longest_px = round_up(max(height, width), STRIDE) if self._tile_px == 'whole' else self._tile_px
    return plan_tiles(height, width, longest_px, self._overlap_px), longest_px**2

  def _denoise_whole(self, batch, denoised, deviations, image_px, run_px, progress):
    """Without tiles, several small images at once."""
    n = len(batch)
    everywhere = [np.arange(side) for side in batch.shape[1:3]]
    size = _run_length(n, max(1, run_px // image_px))
    run = self._counted_runs(progress, -(-n // size), run_px)
    for start in range(0, n, size):
      numbers = range(start, min(start + size, n))
      part = [self._network_input(batch[i], deviations[i], *everywhere) for i in numbers]
      # Every run has the same size, for one compiled program; the last image fills up the last run.
      results = run(np.stack(part + part[-1:] * (size - len(part))))
      for i, result in zip(numbers, results, strict=False):
        self._store(denoised[i], to_float(batch[i]), _network_output(result, deviations[i]))

  def _denoise_tiles(self, batch, denoised, deviations, plan, run_px, progress):
    run = self._counted_runs(progress, len(batch) * plan.tiles, run_px)
    _, height, width, _ = batch.shape
    # Indices that extend the image to multiples of 8 by reflection, as the network does.
    rows, columns = (
      reflected_indices(length, axis.length_px)
      for length, axis in ((height, plan.rows), (width, plan.columns))
    )
    for image, out, deviation in zip(batch, denoised, deviations, strict=True):

      def denoise_tile(tile_rows, tile_columns, image=image, deviation=deviation):
        at = rows[tile_rows], columns[tile_columns]
        tile = self._network_input(image[at[0][:, None], at[1]], deviation, *at)
        return _network_output(run(tile[None])[0], deviation)

      for top, finished in blend_tiles(plan, denoise_tile):
        here = slice(top, min(top + len(finished), height))
        self._store(out[here], to_float(image[here]), finished[: height - top, :width])

  def _counted_runs(self, progress, runs, run_px):
    """The network as a function, with the ensemble if wanted, that reports progress."""
    done, total = 0, runs * (TRANSFORMS if self._ensemble else 1)

    def run(noisy):
      nonlocal done
      denoised = self.network(noisy, runs=total - done, most_px=run_px)
      done += 1
      progress(done, total)
      return denoised

    return functools.partial(self_ensemble, run) if self._ensemble else run

  def _network_input(self, part, deviation, rows, columns):
    """A part of an image, at these rows and columns, as floats with the network's channels."""
    part = to_float(part)
    if deviation is None:
      return part
    return as_colour(part[..., :1], deviation, rows, columns, self.model.channels)

  def _store(self, out, noisy, denoised):
    # Grey images have one denoised channel for three.
    noisy = noisy[..., : denoised.shape[-1]]
    store(out, blend(noisy, denoised, self._strength, self._chroma_strength))


def _run_length(n, most):
  """Images in each run of a batch of n. Of more than fit into a run, all or half of those: two programs."""
  if n <= most:
    return n
  half = -(-most // 2)
  return min((most, half), key=lambda size: -(-n // size) * size)


def _is_grey(image):
  """Whether a colour image is grey."""
  return image.shape[-1] == len(BT601_LUMA) and has_equal_channels(image)


def _network_output(denoised, deviation):
  """Undoes `_network_input`."""
  return denoised if deviation is None else denoised.mean(axis=-1, keepdims=True)


def _unpickled(model, params, options, place):
  platform, number = place
  try:
    devices = jax.local_devices(backend=platform)
  except RuntimeError:
    # This machine has no such device.
    devices = []
  return Denoiser(model, params, **options, device=devices[number] if number < len(devices) else None)


def self_ensemble(denoise: Callable[[np.ndarray], np.ndarray], noisy: np.ndarray) -> np.ndarray:
  """Denoises every flip and rotation, turns the results back, and averages them.

  Args:
    denoise: [N, H, W, C] -> the same shape; also called with [N, W, H, C].
    noisy: float32 [N, H, W, C].

  Returns:
    float32 [N, H, W, C].
  """
  total = np.zeros_like(noisy)
  for turns in range(4):
    for flipped in (False, True):
      turned = np.rot90(noisy[:, :, ::-1] if flipped else noisy, turns, axes=(1, 2))
      back = np.rot90(denoise(np.ascontiguousarray(turned)), -turns, axes=(1, 2))
      total += back[:, :, ::-1] if flipped else back
  return total / np.float32(TRANSFORMS)


def blend(noisy: np.ndarray, denoised: np.ndarray, strength: float, chroma_strength: float) -> np.ndarray:
  """Moves from the noisy to the denoised image, separately in luma and chroma.

  With d = denoised - noisy and its luma y = 0.299 d_R + 0.587 d_G + 0.114 d_B (ITU-R BT.601, on the stored,
  gamma-encoded values), the result is noisy + strength * y + chroma_strength * (d - y): in YCbCr, Y moves by
  `strength`, Cb and Cr by `chroma_strength`. Images of other than three channels have no chroma.

  Args:
    noisy: float32 [..., C] in [0, 1].
    denoised: float32, the same shape.
    strength: From 0 (noisy) to 1 (denoised), for luma.
    chroma_strength: From 0 (noisy) to 1 (denoised), for chroma.

  Returns:
    float32 [..., C], not clipped; `denoised` itself where both strengths are 1.
  """
  has_chroma = noisy.shape[-1] == len(BT601_LUMA)
  if strength == 1 and (chroma_strength == 1 or not has_chroma):
    return denoised
  change = denoised - noisy
  if strength == chroma_strength or not has_chroma:
    return noisy + np.float32(strength) * change
  luma = (change @ BT601_LUMA)[..., None]
  return noisy + np.float32(strength) * luma + np.float32(chroma_strength) * (change - luma)


def _checked_strength(name, value):
  if not 0 <= value <= 1:
    raise ValueError(f'{name} must be from 0 (noisy) to 1 (denoised), not {value!r}')
  return float(value)


def store(out: np.ndarray, denoised: np.ndarray) -> None:
  """Writes a float image into an array of any accepted dtype: scaled, clipped and rounded for integers."""
  if np.issubdtype(out.dtype, np.integer):
    largest = np.iinfo(out.dtype).max
    out[...] = np.round(np.clip(denoised, 0, 1) * np.float32(largest))
  else:
    out[...] = denoised


def check_dtype(image: object) -> None:
  """Raises ValueError for anything but an array of uint8, uint16 or floats."""
  dtype = image.dtype if isinstance(image, np.ndarray) else None
  if dtype is None or (not jnp.issubdtype(dtype, jnp.floating) and dtype not in (np.uint8, np.uint16)):
    raise ValueError(
      f'image must be an array of uint8, uint16 or floats in [0, 1], not {dtype or type(image).__name__}'
    )


def check_values(image: np.ndarray) -> None:
  """Raises ValueError for floats that are not finite or far outside [0, 1]; allocates nothing."""
  if not image.size or np.issubdtype(image.dtype, np.integer):
    return
  # A NaN makes both of them NaN; some dtypes warn about it.
  with np.errstate(invalid='ignore'):
    lowest, highest = float(image.min()), float(image.max())
  if not np.isfinite([lowest, highest]).all():
    raise ValueError('image has values that are NaN or infinite; floats must be in [0, 1]')
  if lowest < -_LARGEST_EXCESS or highest > 1 + _LARGEST_EXCESS:
    raise ValueError(
      f'image has floats from {lowest:.6g} to {highest:.6g}, but they must be in [0, 1] apart from noise; '
      'divide 8-bit values by 255 or pass them as uint8'
    )


def _ignore_progress(done, total):
  pass
