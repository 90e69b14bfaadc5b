"""A network on one device, with few compiled programs for images of many sizes."""

from collections.abc import Mapping
import functools
import math
import threading
from typing import Any

import jax
import numpy as np

from sadnet_jax.denoise import compilation_cache, tile_memory
from sadnet_jax.files import one_line
from sadnet_jax.nn.blocks import Inside
from sadnet_jax.nn.sadnet import STRIDE, SADNet, pad_to_multiple, round_up
from sadnet_jax.ops.platform import target_platform

# Sides of the arrays that images of different sizes share. A small picture is denoised much faster than a
# program is compiled, so there are few sizes of small ones: 64, 128, 192 and 256. On accelerators compiling
# costs more, and unused pixels less.
SHARED_STEP_PX = 64
SHARED_STEP_PX_ACCELERATOR = 256
LARGEST_SQUARE_PX = 256
# On two CPU cores compiling takes 5 to 10 s, and a megapixel 7 to 10 s. The values for accelerators are
# estimates, half a minute and a megapixel in 15 ms: nothing was measured.
_COMPILATION_PX_CPU = 2**20
_COMPILATION_PX_ACCELERATOR = 2**31
# Runs that may go on at once if all of them together fit into the memory for one.
_SMALL_RUNS = 8
# Compiled programs that are kept in memory; each takes 20 to 50 MiB on a CPU.
MAX_PROGRAMS = 12


class CompiledNetwork:
  """A SADNet on one device, with few compiled programs for images of many sizes.

  Images are put into a larger array of one of few sizes (`shared_size`), whose program knows which part is
  image, so the result is that of the image alone, up to rounding. A size whose unused pixels have taken
  longer than compiling gets a program of its own. `MAX_PROGRAMS` are kept, those used last.

  Attributes:
    model: The network.
    params: Its weights, on the device.
    device: Where it runs.
    programs: The compiled programs by (batch, height, width, whether images may be smaller), last used last.
  """

  def __init__(self, model: SADNet, params: Mapping[str, Any], device: jax.Device):
    """Puts the weights on the device; ValueError if it has no memory for them."""
    self.model, self.device = model, device
    try:
      self.params = jax.block_until_ready(jax.device_put(params, device))
    except jax.errors.JaxRuntimeError as error:
      raise ValueError(
        f'{device} fails to take the weights ({one_line(error, 200)}); if other programs use it, end them, '
        'or choose another device'
      ) from error
    self.programs: dict[tuple[int, int, int, bool], jax.stages.Compiled] = {}
    # By batch, height and width: pixels computed for nothing because the size has no program of its own.
    self._unused_px: dict[tuple[int, int, int], int] = {}
    self._lock = threading.Lock()
    # One thread compiles a program, and those with programs go on meanwhile.
    self._compiling: dict[tuple[int, int, int, bool], threading.Lock] = {}
    # Tiles are planned for the memory of one large run at a time; a few small ones may go on beside it.
    self._large_run, self._small_runs = threading.Lock(), threading.Semaphore(_SMALL_RUNS)

  def __call__(self, noisy: np.ndarray, *, runs: int = 1, most_px: int | None = None) -> np.ndarray:
    """Denoises images in one piece.

    Args:
      noisy: float32 [N, H, W, the network's channels].
      runs: Number of calls with this shape that are already planned, this one included.
      most_px: Most pixels of an array that is larger than the images, so that it fits in memory.

    Returns:
      The same shape, not clipped.
    """
    n, height, width, _ = noisy.shape
    # The network pads too. Padding here lets images of similar size share one compiled program.
    padded = np.asarray(pad_to_multiple(noisy, STRIDE))
    inside = padded.shape[1:3]
    program, size = self._program((n, *inside), runs, most_px)
    if size != inside:
      larger = np.zeros((n, *size, padded.shape[3]), np.float32)
      larger[:, : inside[0], : inside[1]] = padded
      padded = larger
    is_small = most_px is not None and _SMALL_RUNS * n * math.prod(size) < most_px
    with self._small_runs if is_small else self._large_run:
      arguments = jax.device_put((padded, tuple(map(np.int32, inside))), self.device)
      return np.asarray(program(self.params, *arguments))[:, :height, :width]

  def prepare(self, n: int, height: int, width: int) -> None:
    """Compiles a program for this size alone, whose sides are multiples of 8."""
    # In a batch of any length, unused pixels take longer than compiling.
    self._program((n, height, width), compilation_px(self.device.platform) + 1, None)

  def function(self, shared: bool) -> jax.stages.Wrapped:
    """The network as a new jitted function, whose programs are freed with it.

    Args:
      shared: Whether the images may be smaller than the array that holds them.

    Returns:
      (params, noisy float32 [N, H, W, channels], (height, width) of the images) -> denoised.
    """
    function = functools.partial(_apply, self.model, self.device.platform, shared)
    return jax.jit(function, compiler_options=tile_memory.compiler_options(self.device.platform))

  def _program(self, shape, runs, most_px):
    """The program for images of a shape (N, H, W), and the height and width of its array."""
    n, *inside = shape
    sizes = [shared_size(inside[0], inside[1], step) for step in shared_steps_px(self.device.platform)]
    fitting = [size for size in sizes if most_px is None or n * math.prod(size) <= most_px]
    size = fitting[0] if fitting else sizes[0]
    unused = n * (math.prod(size) - math.prod(inside))
    with self._lock:
      total = self._unused_px.get(shape, 0)
      own = (*shape, False) in self.programs or total + runs * unused > compilation_px(self.device.platform)
      if unused and (own or not fitting):
        size = tuple(inside)
        shared = False
      else:
        self._unused_px[shape] = total + unused
        shared = True
      key = (n, *size, shared)
      compiling = self._compiling.setdefault(key, threading.Lock())
    with compiling:
      with self._lock:
        program = self.programs.get(key)
      program = program or self._compile(key)
      with self._lock:
        self.programs.pop(key, None)
        self.programs[key] = program
        while len(self.programs) > MAX_PROGRAMS:
          self._forget(next(iter(self.programs)))
    return program, size

  def _forget(self, key):
    *shape, shared = key
    del self.programs[key]
    self._compiling.pop(key, None)
    if not shared:
      # The size must earn a program again, or as many sizes in turn would compile each time.
      self._unused_px.pop(tuple(shape), None)

  def _compile(self, key):
    *batch, shared = key
    noisy = jax.ShapeDtypeStruct((*batch, self.model.channels), np.float32)
    side = jax.ShapeDtypeStruct((), np.int32)
    on_device = jax.sharding.SingleDeviceSharding(self.device)
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_device), (noisy, (side, side))
    )
    about = f'{self.model}, shared: {shared}'
    make = functools.partial(self.function, shared)
    return compilation_cache.compiled(make, (self.params, *shapes), self.device, about)


def _apply(model, platform, shared, params, noisy, inside):
  # The device need not be of JAX's default platform.
  with target_platform(platform):
    return model.apply({'params': params}, noisy, Inside(*inside) if shared else None)


def shared_size(height: int, width: int, step_px: int = SHARED_STEP_PX) -> tuple[int, int]:
  """The array that images of this size share with others.

  A square with a side of 64, 128, 192 or 256 pixels, else sides that are multiples of ``step_px``.
  """
  longest = round_up(max(height, width), SHARED_STEP_PX)
  if longest <= LARGEST_SQUARE_PX:
    return longest, longest
  return round_up(height, step_px), round_up(width, step_px)


def shared_steps_px(platform: str) -> tuple[int, ...]:
  """Steps of the sides of shared arrays; the second is for images whose array by the first is too large."""
  return (SHARED_STEP_PX,) if platform == 'cpu' else (SHARED_STEP_PX_ACCELERATOR, SHARED_STEP_PX)


def compilation_px(platform: str) -> int:
  """Pixels that are denoised in about the time that the network takes to compile."""
  return _COMPILATION_PX_CPU if platform == 'cpu' else _COMPILATION_PX_ACCELERATOR
