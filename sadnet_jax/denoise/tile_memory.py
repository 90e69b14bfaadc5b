"""How many pixels a tile may have, so that denoising it fits into the device's free memory."""

import functools
import threading

import jax

from sadnet_jax.machine import free_host_bytes, host_bytes
from sadnet_jax.nn.sadnet import SADNet

# Pixels a tile may have, largest first. With the largest, 12 megapixels take less than 2 GiB on a CPU, and
# tiles have at most 1.25 times the pixels of an image of up to 100 megapixels; with 640**2 they have 1.3 to
# 1.55 times as many from 2 megapixels on.
AREAS_PX = tuple(side**2 for side in (1504, 1280, 1024, 640, 512, 384, 256, 192, 128))
# Largest where the device does not report its memory.
_LARGEST_UNREPORTED_PX = 640**2
# In messages of XLA, CUDA and cuDNN.
_OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'CUDA_ERROR_OUT_OF_MEMORY', 'CUDNN_STATUS_ALLOC_FAILED')
# Share of the free memory that a tile may take.
_SHARE = 0.5


class TileAreas:
  """The pixels that tiles may have, shared by all denoisers of one network, from any thread.

  Attributes:
    px: Largest first; never empty.
  """

  def __init__(self, px: tuple[int, ...]):
    """Takes `tile_areas`."""
    self.px = px
    self._lock = threading.Lock()

  def drop_largest_of(self, tried_px: tuple[int, ...]) -> None:
    """Notes that the largest of these did not fit in memory; another thread may have noted more already."""
    with self._lock:
      self.px = min(self.px, tried_px[1:], key=len)


def tile_areas(model: SADNet, device: jax.Device, least_px: int = 0) -> tuple[int, ...]:
  """The `AREAS_PX` whose tiles fit into half of the device's free memory.

  Args:
    model: The network.
    device: Where it runs.
    least_px: Fewest pixels of a useful tile.

  Returns:
    Pixels a tile may have, largest first, all at least `least_px`. The smallest useful area is returned
    even if it does not fit.
  """
  useful = tuple(area for area in AREAS_PX if area >= least_px)
  free = free_bytes(device)
  if free is None:
    largest = _LARGEST_UNREPORTED_PX
  else:
    largest = int(_SHARE * free / bytes_per_pixel(model, device.platform))
  return tuple(area for area in useful if area <= largest) or useful[-1:]


def bytes_per_pixel(model: SADNet, platform: str) -> int:
  """Temporary memory of the network per pixel of a float32 image; a little more than measured.

  On a CPU, with `compiler_options`, it is a few feature maps of scale 1; the sampling blocks of a few MiB,
  which do not grow with the image, are counted as for 512x512. (An XLA without these options needs 1.3 times
  as much, 1.8 times for wide networks, for which tiles leave room: asking XLA takes as long as loading a
  kept program.) Elsewhere most of it is the offsets and masks of scale 1, 27 values for each deformable
  group (`ops.adaptive_conv`), held twice. That estimate is the accelerator's program compiled for a CPU;
  compiled for an H100, the program for 32 channels takes 1,376 bytes per pixel of 1504x1504 instead of its
  2,368, and 2,018 of 480x320.
  """
  if not model.use_rsab:
    return round(4 * 4.5 * model.width)
  if platform == 'cpu':
    return round(4 * (2.5 * model.width + 1.6 * model.offset_width + 46))
  return 4 * (54 * model.deformable_groups + 5 * model.width)


@functools.cache
def compiler_options(platform: str) -> dict[str, str] | None:
  """Options for `jax.jit` that make the network's program take the least memory.

  By default, XLA orders a CPU program for parallel execution. Ordered for memory, the network takes 544
  instead of 770 bytes per pixel of 512x512, and no more time.

  Returns:
    None if there is nothing to set, or if this XLA version lacks the option.
  """
  if platform != 'cpu':
    return None
  options = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}
  try:
    zero = jax.device_put(0.0, jax.local_devices(backend=platform)[0])
    jax.jit(lambda x: x, compiler_options=options).lower(zero).compile()
  except jax.errors.JaxRuntimeError:
    return None
  return options


def is_out_of_memory(error: Exception) -> bool:
  """Whether a program failed for lack of memory, also while XLA tried out its kernels."""
  return any(sign in str(error) for sign in _OUT_OF_MEMORY)


def free_bytes(device: jax.Device) -> int | None:
  """Free memory of a device, None if it does not report it.

  On a CPU whose system does not report it, such as macOS, half of the machine's memory is taken for free.
  """
  if device.platform == 'cpu':
    free, total = free_host_bytes(), host_bytes()
    return total // 2 if free is None and total is not None else free
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
