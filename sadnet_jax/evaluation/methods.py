"""Denoisers behind one small interface, so that a harness can be checked with known ones."""

from collections.abc import Hashable, Sequence
import contextlib
import importlib.metadata
from typing import Any, Protocol

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from sadnet_jax.nn.sadnet import STRIDE, SADNet

# Sides are padded to multiples of this where a set has too many sizes to compile for each.
COARSE_PX = 64
# The package bm3d ends the process on images of 8x8, its block.
BM3D_LEAST_PX = 9
# Sizes that are compiled for as they are.
MAX_SIZES = 8


class Method(Protocol):
  """A denoiser.

  Attributes:
    name: Labels results.
    batch: Most images it takes at once.
  """

  name: str
  batch: int

  def describe(self) -> dict[str, Any]:
    """What its figures depend on, for results.json; has its name."""

  def check(self, channels: int, real: bool) -> None:
    """Raises a ValueError if it cannot denoise images of this many channels, or real noise."""

  def plan(self, sizes: Sequence[tuple[int, int]]) -> None:
    """Is told the (height, width) of all images of a set beforehand."""

  def group(self, size: tuple[int, ...]) -> Hashable:
    """Images of one group can be denoised at once."""

  def prepare(self, shape: tuple[int, ...]) -> None:
    """Is told (height, width, channels) before the clock runs, to do what is done once a group."""

  def denoise(self, noisy: Sequence[np.ndarray], sigma_255: float | None) -> list[np.ndarray]:
    """Denoises images of one group.

    Args:
      noisy: At most `batch`, float32 [H, W, C].
      sigma_255: Their noise's standard deviation on the scale of 8-bit images, None if real.

    Returns:
      float32 [H, W, C] each, not clipped.

    Raises:
      ValueError: The method cannot denoise them.
    """


class _ImageByImage:
  """What methods have in common that know no batches."""

  name: str
  batch = 1

  def describe(self) -> dict[str, Any]:
    return {'name': self.name}

  def check(self, channels, real):
    pass

  def plan(self, sizes):
    pass

  def group(self, size):
    return None

  def prepare(self, shape):
    pass


class Noisy(_ImageByImage):
  """Leaves the image as it is: its figures are those of the noisy images."""

  name = 'noisy'

  def denoise(self, noisy: Sequence[np.ndarray], sigma_255: float | None) -> list[np.ndarray]:
    """Returns the images."""
    return list(noisy)


class BM3D(_ImageByImage):
  """BM3D, or CBM3D for colour, of the package ``bm3d`` by its authors (non-commercial licence).

  Source: Dabov et al., TIP 2007; Makinen et al., TIP 2020.
  """

  name = 'bm3d'

  def __init__(self):
    """Raises a ValueError where the package is not installed or does not load."""
    try:
      import bm3d
    except ImportError as error:
      raise ValueError(
        f"--methods: got bm3d without its package ({error}), want it: pip install 'sadnet-jax[bm3d]'"
      ) from error
    except OSError as error:
      raise ValueError(
        f'--methods: got bm3d, whose library does not load ({error}), want a system that the package has one '
        'for (Linux: x86-64)'
      ) from error
    self._bm3d = bm3d

  def describe(self) -> dict[str, Any]:
    """Name and version of the package."""
    return {'name': self.name, 'version': importlib.metadata.version('bm3d')}

  def check(self, channels: int, real: bool) -> None:
    """Refuses real noise."""
    if real:
      raise ValueError('bm3d: got real noise, want noise of a known sigma, which BM3D is told')

  def denoise(self, noisy: Sequence[np.ndarray], sigma_255: float | None) -> list[np.ndarray]:
    """Denoises with the sigma given; ValueError without one, or if a side is below BM3D_LEAST_PX."""
    self.check(noisy[0].shape[2], sigma_255 is None)
    assert sigma_255 is not None
    return [self._one(image, sigma_255 / 255) for image in noisy]

  def _one(self, image, sigma_01):
    if min(image.shape[:2]) < BM3D_LEAST_PX:
      raise ValueError(
        f'bm3d: got an image of {image.shape[1]}x{image.shape[0]} pixels, want sides of at least '
        f'{BM3D_LEAST_PX}'
      )
    if image.shape[2] == 3:
      return self._bm3d.bm3d_rgb(image, sigma_01).astype(np.float32)
    return self._bm3d.bm3d(image[:, :, 0], sigma_01).astype(np.float32)[:, :, None]


class SADNetMethod:
  """A trained SADNet on all devices given: images are spread over them by pmap.

  The network itself extends sides to multiples of 8 by reflection. A set of more than
  MAX_SIZES sizes is extended to multiples of COARSE_PX instead, likewise, so that it does
  not compile once a size; within some hundred pixels of the bottom and right borders that
  can change the result a little. `describe` says which was done.
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
    pad_to_px: int | None = None,
  ):
    """Puts the weights on the devices.

    Args:
      model: The network.
      params: Its weights.
      labels: What else to tell of it in results: config, checkpoint, hash.
      devices: Some of `jax.local_devices`.
      batch_size: Images a device.
      pad_to_px: Extend sides to multiples of this; None to choose as above.

    Raises:
      ValueError: ``pad_to_px`` is no multiple of 8, or ``batch_size`` is not positive.
    """
    if pad_to_px is not None and (pad_to_px < STRIDE or pad_to_px % STRIDE):
      raise ValueError(f'--pad_to_px: got {pad_to_px}, want a multiple of {STRIDE}')
    if batch_size < 1:
      raise ValueError(f'--batch_size: got {batch_size}, want at least 1 image a device')
    self.batch = batch_size * len(devices)
    self._labels, self._devices, self._channels = labels, devices, model.channels
    self._chosen_px, self._pad_to_px = pad_to_px, pad_to_px or STRIDE
    everywhere = NamedSharding(Mesh(np.asarray(devices), ('devices',)), PartitionSpec())
    self._params = jax.device_put(params, everywhere)
    self._apply = jax.pmap(
      lambda params, noisy: model.apply({'params': params}, noisy), in_axes=(None, 0), devices=devices
    )
    self._compiled: dict[Any, Any] = {}

  def describe(self) -> dict[str, Any]:
    """Name, labels, and what sides are extended to multiples of."""
    return {'name': self.name, **self._labels, 'pad_to_px': self._pad_to_px}

  def check(self, channels: int, real: bool) -> None:
    """Refuses images of other channels than the network's."""
    if channels != self._channels:
      raise ValueError(
        f'sadnet: got images of {channels} channel(s) for a network of {self._channels}, want a config with '
        f'model.channels = {channels}'
      )

  def plan(self, sizes: Sequence[tuple[int, int]]) -> None:
    """Chooses how far to pad."""
    if self._chosen_px is None:
      exact = {_extended(size, STRIDE) for size in sizes}
      self._pad_to_px = STRIDE if len(exact) <= MAX_SIZES else COARSE_PX

  def group(self, size: tuple[int, ...]) -> tuple[int, ...]:
    """The size that an image is extended to."""
    return _extended(size, self._pad_to_px)

  def prepare(self, shape: tuple[int, ...]) -> None:
    """Compiles for the size that images of this shape are extended to."""
    group = self.group(shape[:2])
    if group not in self._compiled:
      devices = len(self._devices)
      batch = jax.ShapeDtypeStruct((devices, self.batch // devices, *group, shape[2]), np.float32)
      with _memory_errors(group):
        self._compiled[group] = self._apply.lower(self._params, batch).compile()

  def denoise(self, noisy: Sequence[np.ndarray], sigma_255: float | None) -> list[np.ndarray]:
    """Denoises; the network estimates the noise itself."""
    group = self.group(noisy[0].shape[:2])
    self.prepare(noisy[0].shape)
    images = [_extend(image, group) for image in noisy]
    # The batch is always full: its last image fills what is left.
    images += [images[-1]] * (self.batch - len(images))
    batch = np.stack(images).reshape(len(self._devices), -1, *images[0].shape)
    with _memory_errors(group):
      output = np.asarray(self._compiled[group](self._params, batch)).reshape(self.batch, *images[0].shape)
    return [out[: image.shape[0], : image.shape[1]] for out, image in zip(output, noisy, strict=False)]


@contextlib.contextmanager
def _memory_errors(size):
  """What JAX raises where an image does not fit, as a ValueError."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'sadnet: got images of {size[1]}x{size[0]} pixels that the device fails at ({reason}), want smaller '
      'ones, a smaller --batch_size, or a device with more memory'
    ) from error


def _extended(size, multiple):
  return tuple(side + -side % multiple for side in size)


def _extend(image, size):
  """Reflects an image at the bottom and right up to a size, as `model.pad_to_multiple` does."""
  rows, columns = size[0] - image.shape[0], size[1] - image.shape[1]
  return np.pad(image, ((0, rows), (0, columns), (0, 0)), mode='reflect')
