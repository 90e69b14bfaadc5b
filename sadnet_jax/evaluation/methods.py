"""Denoisers behind one interface: SADNet, BM3D, and the noisy image itself as a baseline."""

from collections.abc import Hashable, Sequence
import contextlib
import functools
import importlib.metadata
import math
import time
from typing import Any, Protocol

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from sadnet_jax.denoise import tile_memory
from sadnet_jax.denoise.denoiser import Denoiser
from sadnet_jax.files import one_line
from sadnet_jax.nn.blocks import Inside
from sadnet_jax.nn.sadnet import STRIDE, SADNet, pad_to_multiple, round_up

# In a set with more padded sizes than this, images share programs for multiples of COARSE_PX.
MAX_SIZES = 8
COARSE_PX = 64
# No picture is brighter on average, unless it is on another scale or the weights have diverged.
_HIGHEST_MEAN = 2.0
# The package bm3d aborts the process on images of 8x8, its block size.
BM3D_MIN_PX = 9


class Method(Protocol):
  """A denoiser.

  `scoring.evaluate_set` calls `check` once, `plan` with the sizes of a whole set, and then `prepare` (not
  timed) and `denoise` (timed) for each batch of images of one `group`.

  Attributes:
    name: Labels results.
    batch: Largest number of images per call of `denoise`.
  """

  name: str
  batch: int

  def describe(self) -> dict[str, Any]:
    """Returns what the results depend on, for results.json; includes 'name'."""

  def check(self, channels: int, real: bool) -> None:
    """Raises a ValueError if it cannot denoise images of this many channels, or real noise."""

  def plan(self, sizes: Sequence[tuple[int, int]]) -> None:
    """Receives the (height, width) of all images of a set in advance."""

  def group(self, size: tuple[int, ...]) -> Hashable:
    """Returns a key; images with the same key can be denoised in one batch."""

  def prepare(self, shape: tuple[int, ...]) -> None:
    """Does what is needed once per group, such as compiling, for images of (height, width, channels)."""

  def denoise(self, noisy: Sequence[np.ndarray], sigma_255: float | None) -> list[np.ndarray]:
    """Denoises images of one group.

    Args:
      noisy: At most `batch` images, float32 [H, W, C].
      sigma_255: Standard deviation of their noise, on the scale of 8-bit images; None for real noise.

    Returns:
      float32 [H, W, C] for each image, not clipped.

    Raises:
      ValueError: The method cannot denoise these images.
    """


def denoise_batch(
  method: Method, noisy: Sequence[np.ndarray], sigma_255: float | None
) -> tuple[list[np.ndarray], float]:
  """Calls a method on a batch, and checks what it returns. It gets copies, since it may change its input.

  Args:
    method: The denoiser; it is prepared for images of this shape first.
    noisy: As `Method.denoise` takes them.
    sigma_255: Likewise.

  Returns:
    The denoised images, and the seconds that denoising took.

  Raises:
    ValueError: The method cannot denoise these images; or what it returns is of another number, shape, type
      or scale, or not finite.
  """
  method.prepare(noisy[0].shape)
  copies = [image.copy() for image in noisy]
  start = time.perf_counter()
  denoised = method.denoise(copies, sigma_255)
  seconds = time.perf_counter() - start
  if len(denoised) != len(noisy):
    raise ValueError(f'{method.name}: returned {len(denoised)} images for {len(noisy)}; return one for each')
  for before, after in zip(noisy, denoised, strict=True):
    if after.shape != before.shape or not np.issubdtype(after.dtype, np.floating):
      raise ValueError(
        f'{method.name}: returned {after.dtype} of shape {after.shape} for an image of shape {before.shape}; '
        'return floats of the same shape, 1 for white'
      )
    if not np.isfinite(after).all():
      raise ValueError(f'{method.name}: the denoised image contains NaN or infinity; check the weights')
    if after.mean() > _HIGHEST_MEAN:
      raise ValueError(
        f'{method.name}: the mean of the denoised image is {after.mean():.3g}, but white is 1; if it is on a '
        'scale of 0 to 255, divide it by 255, otherwise check the weights'
      )
  return denoised, seconds


class SingleImageMethod:
  """The rest of a `Method` that denoises one image at a time and needs no preparation.

  A subclass sets ``name`` and implements ``denoise``.
  """

  name: str
  batch = 1

  def describe(self) -> dict[str, Any]:
    """Returns the name."""
    return {'name': self.name}

  def check(self, channels: int, real: bool) -> None:
    """Accepts everything."""

  def plan(self, sizes: Sequence[tuple[int, int]]) -> None:
    """Needs no plan."""

  def group(self, size: tuple[int, ...]) -> Hashable:
    """Returns one key for all images."""
    return None

  def prepare(self, shape: tuple[int, ...]) -> None:
    """Needs no preparation."""


class Noisy(SingleImageMethod):
  """Returns the noisy image unchanged: the baseline every denoiser has to beat."""

  name = 'noisy'

  def denoise(self, noisy: Sequence[np.ndarray], sigma_255: float | None) -> list[np.ndarray]:
    """Returns the images."""
    return list(noisy)


class BM3D(SingleImageMethod):
  """BM3D, or CBM3D for colour, from its authors' package ``bm3d`` (non-commercial licence).

  Source: Dabov et al., TIP 2007; Makinen et al., TIP 2020.
  """

  name = 'bm3d'

  def __init__(self):
    """Raises a ValueError if the package is not installed or cannot be loaded."""
    try:
      import bm3d
    except ImportError as error:
      raise ValueError(
        f"--methods: bm3d needs a package that is missing ({error}); from the clone: pip install '.[bm3d]'"
      ) from error
    except OSError as error:
      raise ValueError(
        f'--methods: the library of the package bm3d cannot be loaded ({error}); it exists only for some '
        'systems (Linux: x86-64)'
      ) from error
    self._bm3d = bm3d

  def describe(self) -> dict[str, Any]:
    """Returns name and package version."""
    return {'name': self.name, 'version': importlib.metadata.version('bm3d')}

  def check(self, channels: int, real: bool) -> None:
    """Refuses real noise, whose sigma is not known."""
    if real:
      raise ValueError('bm3d needs a known sigma and cannot be evaluated on real noise')

  def denoise(self, noisy: Sequence[np.ndarray], sigma_255: float | None) -> list[np.ndarray]:
    """Denoises with the given sigma; ValueError without one, or if a side is below BM3D_MIN_PX."""
    self.check(noisy[0].shape[2], sigma_255 is None)
    assert sigma_255 is not None
    return [self._denoise_one(image, sigma_255 / 255) for image in noisy]

  def _denoise_one(self, image, sigma_01):
    if min(image.shape[:2]) < BM3D_MIN_PX:
      raise ValueError(
        f'bm3d needs sides of at least {BM3D_MIN_PX} pixels, not an image of '
        f'{image.shape[1]}x{image.shape[0]}'
      )
    if image.shape[2] == 3:
      return self._bm3d.bm3d_rgb(image, sigma_01).astype(np.float32)
    return self._bm3d.bm3d(image[:, :, 0], sigma_01).astype(np.float32)[:, :, None]


class SADNetMethod:
  """A trained SADNet; pmap spreads the images over all given devices.

  The network pads sides to multiples of 8 by reflection. If a set has more than MAX_SIZES padded sizes, the
  images are computed in larger arrays, with sides that are multiples of COARSE_PX, to avoid recompiling for
  every size. The network knows which part is image, so the results are the same, up to rounding.

  An image that `Denoiser` would cut into tiles is denoised by it, on the first device. So is one that
  exhausts the memory of a device that denoises one image at a time.
  """

  name = 'sadnet'

  def __init__(
    self,
    model: SADNet,
    params: dict[str, Any],
    labels: dict[str, Any],
    *,
    devices: Sequence[jax.Device],
    batch_size: int = 1,
    pad_to_px: int = STRIDE,
  ):
    """Copies the weights to the devices.

    Args:
      model: The network.
      params: Its weights.
      labels: What results should say about it: config, checkpoint, hash of the weights.
      devices: Some of `jax.local_devices`.
      batch_size: Images per device.
      pad_to_px: Pad sides to multiples of this, by reflection.

    Raises:
      ValueError: ``pad_to_px`` is not a positive multiple of 8, or ``batch_size`` is not positive.
    """
    if pad_to_px < STRIDE or pad_to_px % STRIDE:
      raise ValueError(f'--pad_to_px must be a positive multiple of {STRIDE}, not {pad_to_px}')
    if batch_size < 1:
      raise ValueError(f'--batch_size must be at least 1 image per device, not {batch_size}')
    self.batch = batch_size * len(devices)
    self._labels, self._devices, self._channels = labels, devices, model.channels
    self._model, self._host_params = model, params
    self._tiled: set[tuple[int, ...]] = set()
    self._sizes: set[tuple[int, ...]] = set()
    self._pad_to_px, self._shares_programs = pad_to_px, False
    replicated = NamedSharding(Mesh(np.asarray(devices), ('devices',)), PartitionSpec())
    self._params = jax.device_put(params, replicated)
    self._apply = jax.pmap(
      lambda params, noisy: model.apply({'params': params}, noisy), in_axes=(None, 0), devices=devices
    )
    self._apply_inside = jax.pmap(
      lambda params, noisy, inside: model.apply({'params': params}, noisy, inside),
      in_axes=(None, 0, 0),
      devices=devices,
    )
    self._compiled: dict[Any, Any] = {}

  def describe(self) -> dict[str, Any]:
    """Returns name, labels, the multiple that sides are padded to, and which planned sizes go in tiles."""
    # Earlier sets had other sizes; the sizes of some data are not known before.
    tiled = self._tiled & self._sizes if self._sizes else self._tiled
    shown = [f'{width}x{height}' for height, width in sorted(tiled)]
    return {
      'name': self.name,
      **self._labels,
      'pad_to_px': self._pad_to_px,
      **({'tiled': shown} if shown else {}),
    }

  def check(self, channels: int, real: bool) -> None:
    """Refuses images whose number of channels is not the network's."""
    if channels != self._channels:
      raise ValueError(
        f'sadnet: the images have {channels} channel(s) and the network {self._channels}; use a config with '
        f'model.channels = {channels}'
      )

  def plan(self, sizes: Sequence[tuple[int, int]]) -> None:
    """Chooses whether images of different sizes share programs."""
    self._sizes = set(sizes)
    self._shares_programs = len({_padded_size(size, self._pad_to_px) for size in sizes}) > MAX_SIZES

  def group(self, size: tuple[int, ...]) -> Hashable:
    """Returns the size of the arrays, or the size itself marked as one for tiles."""
    if self._needs_tiles(size):
      return ('tiles', *size)
    # The images that a device denoises at once have one size; those of several devices need not.
    one_per_device = self.batch == len(self._devices)
    return self._program_size(size) if one_per_device else _padded_size(size, self._pad_to_px)

  def prepare(self, shape: tuple[int, ...]) -> None:
    """Compiles the network for images of this shape, or for their tiles unless many sizes share programs."""
    if not self._needs_tiles(shape[:2]):
      self._with_tiles_if_exhausted(shape[:2], lambda: self._compile(shape))
    # Where many sizes share programs, the denoiser compiles those when it needs them.
    if self._needs_tiles(shape[:2]) and not self._shares_programs:
      # What fails here fails again where the denoiser tries smaller tiles.
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._denoiser.prepare(*shape[:2])

  def denoise(self, noisy: Sequence[np.ndarray], sigma_255: float | None) -> list[np.ndarray]:
    """Denoises; the network estimates the noise itself."""
    size = noisy[0].shape[:2]
    self.prepare(noisy[0].shape)
    done = None
    if not self._needs_tiles(size):
      done = self._with_tiles_if_exhausted(size, lambda: self._denoise_batch(noisy))
    if done is not None:
      return done
    try:
      return [self._denoiser.apply(image) for image in noisy]
    except ValueError as error:
      raise ValueError(f'sadnet: {error}') from error

  def _program_size(self, size):
    padded = _padded_size(size, self._pad_to_px)
    return _padded_size(padded, COARSE_PX) if self._shares_programs else padded

  def _compile(self, shape):
    key = self._program_size(shape[:2]), self._shares_programs
    if key not in self._compiled:
      devices = len(self._devices)
      batch = jax.ShapeDtypeStruct((devices, self.batch // devices, *key[0], shape[2]), np.float32)
      if self._shares_programs:
        side = jax.ShapeDtypeStruct((devices,), np.int32)
        lowered = self._apply_inside.lower(self._params, batch, Inside(side, side))
      else:
        lowered = self._apply.lower(self._params, batch)
      self._compiled[key] = lowered.compile()

  def _denoise_batch(self, noisy):
    # On the host: padding on a device would compile for every image size.
    images = [pad_to_multiple(image[None], self._pad_to_px)[0] for image in noisy]
    # The batch is always full: copies of the last image fill it.
    images += [images[-1]] * (self.batch - len(images))
    devices, size = len(self._devices), self._program_size(noisy[0].shape[:2])
    batch = np.zeros((self.batch, *size, self._channels), np.float32)
    for array, image in zip(batch, images, strict=True):
      array[: image.shape[0], : image.shape[1]] = image
    arguments = [self._params, batch.reshape(devices, -1, *batch.shape[1:])]
    if self._shares_programs:
      on_device = images[:: self.batch // devices]
      arguments.append(Inside(*np.array([image.shape[:2] for image in on_device], np.int32).T))
    program = self._compiled[size, self._shares_programs]
    output = np.asarray(program(*arguments)).reshape(batch.shape)
    return [out[: image.shape[0], : image.shape[1]] for out, image in zip(output, noisy, strict=False)]

  @functools.cached_property
  def _denoiser(self):
    return Denoiser(self._model, self._host_params, device=self._devices[0])

  def _needs_tiles(self, size):
    # No device is too small for the smallest tile.
    is_large = math.prod(size) > tile_memory.AREAS_PX[-1]
    if size not in self._tiled and is_large and self._denoiser.plan(*size).tiles > 1:
      self._tiled.add(size)
    return size in self._tiled

  def _with_tiles_if_exhausted(self, size, function):
    """Calls the function; returns None if the size is from now on denoised in tiles."""
    try:
      return function()
    except jax.errors.JaxRuntimeError as error:
      reason, advice = one_line(error, 200), 'use smaller images or a device with more memory'
      if self.batch > len(self._devices):
        advice = 'use a smaller --batch_size'
      elif tile_memory.is_out_of_memory(error):
        self._tiled.add(size)
        return None
      height, width = self._program_size(size)
      raise ValueError(
        f'sadnet: the device failed on images of {width}x{height} pixels ({reason}); {advice}'
      ) from error


def _padded_size(size, multiple):
  return tuple(round_up(side, multiple) for side in size)
