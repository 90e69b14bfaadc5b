"""How much memory there is, and how large a tile fits into it."""

from collections.abc import Sequence
import functools

import jax

from sadnet_jax.machine import free_host_bytes
from sadnet_jax.nn.sadnet import SADNet

# Share of the free memory that a tile may take.
_SHARE = 0.5
# A tile has as many pixels as a square of such a side; largest first. With the largest, 12 megapixels take
# less than 2 GiB on a CPU, and tiles have at most 1.25 times the pixels of an image of up to 100 megapixels;
# with 640 they have 1.3 to 1.55 times as many from 2 megapixels on.
SIDES_PX = (1504, 1280, 1024, 640, 512, 384, 256, 192, 128)
# Where the system does not tell how much memory there is.
_LARGEST_UNTOLD_PX = 640


def tile_sides(model: SADNet, device: jax.Device, least_px: int = 0) -> Sequence[int]:
  """Sides of squares whose pixels fit into the device's free memory as a tile, largest first, in pixels.

  The smallest of at least ``least_px`` is there in any case.
  """
  free = _free_bytes(device)
  usable = [side for side in SIDES_PX if side >= least_px]
  if free is None:
    return [side for side in usable if side <= _LARGEST_UNTOLD_PX] or usable[-1:]
  needed = bytes_per_pixel(model, device.platform)
  return [side for side in usable if side**2 * needed <= _SHARE * free] or usable[-1:]


def bytes_per_pixel(model: SADNet, platform: str) -> int:
  """Temporary memory of the network for each pixel of an image, in float32; a little more than is measured.

  On a CPU, of a program compiled with `compiler_options`, these are some feature maps of scale 1; the
  blocks of samples, some MiB that do not grow with the image, count as of 512x512. Elsewhere most of it
  are the offsets and masks of scale 1, 27 values for each deformable group (`adaptive_conv`), which are
  there twice; that is what XLA on a CPU makes of the accelerators' program, and not measured on one.
  """
  if not model.use_rsab:
    return round(4 * 4.5 * model.width)
  if platform == 'cpu' and compiler_options(platform):
    return round(4 * (3.5 * model.width + 1.6 * model.offset_width + 8))
  if platform == 'cpu':
    return round(4 * (4.2 * model.width + 3 * model.offset_width))
  return 4 * (54 * model.deformable_groups + 5 * model.width)


@functools.cache
def compiler_options(platform: str) -> dict[str, str] | None:
  """For `jax.jit` of the network: what makes its program take least memory; None where nothing does.

  On a CPU, XLA orders a program so that much of it could run at once. Ordered for memory, the network takes
  544 instead of 770 bytes a pixel of 512x512, and as long. An XLA that does not know the option gets none.
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


def _free_bytes(device: jax.Device) -> int | None:
  """What is free of a device's memory, None where it does not tell."""
  if device.platform == 'cpu':
    return free_host_bytes()
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
