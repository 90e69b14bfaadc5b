"""Denoising pictures with a trained network: any size, any usual dtype."""

from collections.abc import Callable, Mapping, Sequence
import functools
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.denoise import tile_memory
from sadnet_jax.denoise.tiling import RAMP_PX, TilePlan, blend_tiles, plan_tiles, plan_tiles_of_area
from sadnet_jax.nn.sadnet import STRIDE, SADNet
from sadnet_jax.ops.platform import blocks_for
from sadnet_jax.weights import loading

# Where tiles and the whole image differ by less than 1/255 with the published weights, as
# tests/test_denoiser_with_weights.py has it; benchmarks/denoiser.py measures it.
OVERLAP_PX = 120
# On a CPU, XLA's convolutions take longer for a pixel of a high image: 9% for 1392x1056 beside 2040x664.
_HEIGHT_COST = 1 / 5000
Image = TypeVar('Image', np.ndarray, jax.Array)
Tile = int | Literal['auto', 'whole']
Progress = Callable[[int, int], None]


class Denoiser:
  """A trained SADNet, for images of any size and usual dtype.

  An image that is larger than a tile is denoised by overlapping tiles, all of one size; a
  smaller one as it is, which gives exactly what the network gives. Integers are rounded and clipped;
  floats are left as they come out of the network, a little outside [0, 1] perhaps.

  Attributes:
    model: The network.
    about: What its weights' file tells of them.
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
    device: jax.Device | None = None,
  ):
    """Puts the weights on the device.

    Args:
      model: The network.
      params: Its weights.
      about: To be kept as `about`.
      tile_px: Longest side of a tile, a multiple of 8; 'auto' for tiles of any sides, of as many pixels as
        fit into half of the device's free memory, up to 1504 x 1504; 'whole' for never any tiles.
      overlap_px: Least overlap of tiles.
      ensemble: Give the mean over the eight flips and rotations: eight times the work.
      device: Where to run; None for JAX's first.

    Raises:
      ValueError: ``tile_px`` or ``overlap_px`` is of no use.
    """
    if tile_px != 'whole':
      largest = tile_memory.SIDES_PX[0] if tile_px == 'auto' else tile_px
      if not isinstance(largest, int):
        raise ValueError(f"tile_px: got {tile_px!r}, want pixels, 'auto' or 'whole'")
      if not isinstance(overlap_px, int):
        raise ValueError(f'overlap_px: got {overlap_px!r}, want whole pixels')
      plan_tiles(largest + 1, largest + 1, largest, overlap_px)
    self.model, self.about = model, dict(about or {})
    self._tile_px, self._overlap_px, self._ensemble = tile_px, overlap_px, ensemble
    self._device = device or jax.local_devices()[0]
    self._params = jax.device_put(params, self._device)
    # Chosen once: pictures of one size are to have tiles of one size.
    least = min(overlap_px + 2 * RAMP_PX, tile_memory.SIDES_PX[0])
    self._fitting_sides = tile_memory.tile_sides(model, self._device, least)
    platform = self._device.platform
    options = tile_memory.compiler_options(platform)
    self._apply = jax.jit(functools.partial(_apply, model, platform), compiler_options=options)

  @classmethod
  def from_pretrained(cls, name: str, **options: Any) -> 'Denoiser':
    """Loads published weights.

    Args:
      name: One of `sadnet_jax.pretrained.available`, or a file's path or URL, as `pretrained.load` takes.
      **options: Of the constructor.

    Raises:
      ValueError: There are no such weights, or they are damaged.
    """
    model, params, about = loading.load(name)
    return cls(model, params, about=about, **options)

  @classmethod
  def from_checkpoint(
    cls, path: Any, *, dilations: Sequence[int] | None = None, **options: Any
  ) -> 'Denoiser':
    """Loads weights of one's own.

    Args:
      path: A run's folder or one of its checkpoints, a ``.safetensors`` file, or a ``.pth`` file of
        the authors' network.
      dilations: Rates of the context block of a ``.pth`` file, which does not tell: (1, 2, 3, 4) by
        default. Other files tell; where given, they have to agree.
      **options: Of the constructor.

    Raises:
      ValueError: There are no readable weights of a SADNet.
    """
    model, params, about = loading.load(Path(path), dilations=dilations)
    return cls(model, params, about=about, **options)

  def __call__(self, image: Image, *, progress: Progress | None = None) -> Image:
    """Denoises an image, or a batch of one size.

    Args:
      image: [H, W, C], [H, W] or [N, H, W, C]; uint8, uint16, or floats in [0, 1] that noise may have
        moved out of it. A network for colour takes grey images too (as three equal channels).
      progress: Is called with (done, all) runs of the network, after each; begins again with more of
        them where memory did not do for the first tiles.

    Returns:
      The same shape, dtype and kind of array.

    Raises:
      ValueError: Another shape or dtype, values that are no numbers or far outside [0, 1], or the
        device's memory does not do.
    """
    if isinstance(image, jax.core.Tracer):
      raise ValueError('image: got a traced array, want numbers: inside jit call `model.apply`')
    if isinstance(image, jax.Array):
      denoised = self._denoise(np.asarray(image), progress)
      return jax.device_put(denoised, image.sharding)
    return self._denoise(image, progress)

  def _denoise(self, image, progress):
    check_dtype(image)
    batch = self._as_batch(image)
    check_values(image)
    denoised = np.empty(batch.shape, image.dtype)
    if denoised.size:
      self._denoise_batch(batch, denoised, progress or _silent)
    return denoised.reshape(image.shape)

  def _as_batch(self, image):
    """[N, H, W, C]; C is 1, or the network's channels."""
    shape = (*image.shape, 1) if image.ndim == 2 else image.shape
    if len(shape) == 3:
      shape = (1, *shape)
    channels = self.model.channels
    if len(shape) != 4 or shape[3] not in (1, channels) or (shape[0] and min(shape[1:3]) < 1):
      wanted = 'grey' if channels == 1 else f'grey or of {channels} channels'
      raise ValueError(
        f'image: got shape {image.shape}, want [H, W, C], [H, W] or [N, H, W, C] with at least one pixel, '
        f'{wanted}'
      )
    return image.reshape(shape)

  def _denoise_batch(self, batch, denoised, progress):
    """Tries smaller tiles where the device's memory does not do and the choice is ours."""
    if self._tile_px == 'auto':
      sides = self._fitting_sides
    elif self._tile_px == 'whole':
      longest = max(batch.shape[1:3])
      sides = (longest + -longest % STRIDE,)
    else:
      sides = (self._tile_px,)
    for i, side in enumerate(sides):
      plan = self._plan(batch.shape[1], batch.shape[2], side)
      try:
        self._by_tiles(batch, denoised, plan, side**2, progress)
        return
      except jax.errors.JaxRuntimeError as error:
        reason = ' '.join(str(error).split())[:200]
        if 'RESOURCE_EXHAUSTED' in reason and i + 1 < len(sides):
          self._fitting_sides = self._fitting_sides[1:]
          continue
        height, width = plan.tile_size
        raise ValueError(
          f'image: got {batch.shape[2]}x{batch.shape[1]} pixels in tiles of {width}x{height}, which the '
          f'device fails at ({reason}), want smaller tiles or a device with more memory'
        ) from error

  def _plan(self, height, width, side):
    """Tiles no longer than the side asked for, or, of our own choice, as large as its square."""
    if self._tile_px == 'auto':
      # Half of the ensemble's images are turned on their side.
      height_cost = _HEIGHT_COST if self._device.platform == 'cpu' and not self._ensemble else 0
      return plan_tiles_of_area(height, width, side**2, self._overlap_px, height_cost)
    return plan_tiles(height, width, side, self._overlap_px)

  def _by_tiles(self, batch, denoised, plan, area_px, progress):
    n = len(batch)
    if plan.tiles == 1:
      # Small images share a run of the network.
      together = min(n, max(1, area_px // plan.pixels))
      run = _Runs(self, progress, -(-n // together))
      for start in range(0, n, together):
        part = to_float(batch[start : start + together])
        # Always as many, for one compiled program; the last image fills what is left.
        full = np.concatenate([part, np.repeat(part[-1:], together - len(part), axis=0)])
        store(denoised[start : start + together], run(full)[: len(part)])
    else:
      run = _Runs(self, progress, n * plan.tiles)
      for image, out in zip(batch, denoised, strict=True):
        _denoise_large(image, out, plan, run)

  def _network(self, noisy):
    """float32 [N, H, W, 1 or the network's channels] -> the same, on the host."""
    _, height, width, channels = noisy.shape
    grey = channels < self.model.channels
    given = np.repeat(noisy, self.model.channels, axis=3) if grey else noisy
    # It would do this itself. Done here, sizes that differ by little share one compiled program.
    given = np.pad(given, ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode='reflect')
    denoised = np.asarray(self._apply(self._params, jax.device_put(given, self._device)))[:, :height, :width]
    return denoised.mean(axis=3, keepdims=True) if grey else denoised


class _Runs:
  """Runs the network, with the ensemble if wanted, and counts."""

  def __init__(self, denoiser: Denoiser, progress: Progress, total: int):
    self._denoiser, self._progress = denoiser, progress
    self._times = TRANSFORMS if denoiser._ensemble else 1
    self._done, self._total = 0, total * self._times

  def __call__(self, noisy: np.ndarray) -> np.ndarray:
    return self_ensemble(self._once, noisy) if self._times > 1 else self._once(noisy)

  def _once(self, noisy):
    denoised = self._denoiser._network(noisy)
    self._done += 1
    self._progress(self._done, self._total)
    return denoised


def _apply(model, platform, params, noisy):
  # Of the device that it runs on, which need not be of JAX's default kind.
  with blocks_for(platform):
    return model.apply({'params': params}, noisy)


def _denoise_large(image, out, plan: TilePlan, run):
  """[H, W, C] by tiles into an array of its shape."""
  height, width, _ = image.shape
  # The network's own extension to multiples of 8.
  rows = np.pad(np.arange(height), (0, plan.rows.length_px - height), mode='reflect')
  columns = np.pad(np.arange(width), (0, plan.columns.length_px - width), mode='reflect')

  def denoise(tile_rows, tile_columns):
    tile = image[rows[tile_rows, None], columns[tile_columns]]
    return run(to_float(tile)[None])[0]

  for top, finished in blend_tiles(plan, denoise):
    store(out[top : top + len(finished)], finished[: height - top, :width])


def _silent(done, total):
  pass


# Floats beyond are no images in [0, 1], however noisy.
_FARTHEST = 4.0


def to_float(image: np.ndarray) -> np.ndarray:
  """float32; integers scaled to [0, 1]."""
  if np.issubdtype(image.dtype, np.integer):
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
  return image.astype(np.float32)


def store(out: np.ndarray, denoised: np.ndarray) -> None:
  """Into an array of any accepted dtype: integers scaled, clipped and rounded."""
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
      f'image: got {dtype or type(image).__name__}, want an array of uint8, uint16 or floats in [0, 1]'
    )


def check_values(image: np.ndarray) -> None:
  """Raises ValueError for floats that are no image, before any work is done on it; takes no memory."""
  if not image.size or np.issubdtype(image.dtype, np.integer):
    return
  # NaN wins both, of which some dtypes warn.
  with np.errstate(invalid='ignore'):
    lowest, highest = float(image.min()), float(image.max())
  if not np.isfinite([lowest, highest]).all():
    raise ValueError('image: got values that are no numbers (NaN or infinite), want floats in [0, 1]')
  if lowest < -_FARTHEST or highest > 1 + _FARTHEST:
    raise ValueError(
      f'image: got floats from {lowest:.6g} to {highest:.6g}, want [0, 1] and noise: divide 8-bit values by '
      '255, or pass them as uint8'
    )


TRANSFORMS = 8


def self_ensemble(denoise: Callable[[np.ndarray], np.ndarray], noisy: np.ndarray) -> np.ndarray:
  """Denoises every flip and rotation, undoes it, and takes the mean.

  Args:
    denoise: [N, H, W, C] -> the same shape; is given [N, W, H, C] as well.
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
