"""How large tiles may be: the estimate against compiled networks, and what follows from free memory."""

import math
import types

import jax
import numpy as np
import pytest

from sadnet_jax.denoise import denoiser, tile_memory
from sadnet_jax.denoise.compiled_network import CompiledNetwork
from sadnet_jax.denoise.tiling import LONGEST_SIDE_PX, plan_tiles_by_area
from sadnet_jax.nn.sadnet import SADNet, param_shapes

MODEL = SADNet()
# They make compiling three times faster and leave the program's memory as it is.
QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
# Of 12 megapixels on a CPU.
PHOTOGRAPH_TILE = plan_tiles_by_area(3000, 4000, tile_memory.AREAS_PX[0], denoiser.OVERLAP_PX, 1 / 5000)


def compiled_bytes(model, size=(512, 512), platform='cpu'):
  """Temporary memory of the denoiser's program for a platform, as a CPU compiles it: the best available."""
  device = types.SimpleNamespace(platform=platform)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'device_put', lambda params, device: params)
    network = CompiledNetwork(model, {}, device)
  image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
  inside = np.int32(size[0] - 8), np.int32(size[1] - 8)
  # The program for images of several sizes takes no less than one for a single size.
  lowered = network.function(shared=True).lower(param_shapes(model), image, inside)
  compiled = lowered.compile(compiler_options=QUICK)
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
  ('fields', 'platform'),
  [
    ({}, 'cpu'),
    ({}, 'cuda'),
    ({'use_rsab': False}, 'cpu'),
    ({'width': 16, 'deformable_groups': 4}, 'cpu'),
    ({'width': 16, 'deformable_groups': 4}, 'cuda'),
  ],
)
def test_the_estimate_is_a_little_more_than_the_compiled_network_takes(fields, platform):
  model = SADNet(**fields)
  measured = compiled_bytes(model, platform=platform) / 512**2
  assert measured < tile_memory.bytes_per_pixel(model, platform) < 1.3 * measured


@pytest.mark.parametrize('size', [PHOTOGRAPH_TILE.tile_size, (8, LONGEST_SIDE_PX), (LONGEST_SIDE_PX, 24)])
def test_the_estimate_holds_for_flat_and_for_high_tiles(size):
  # Blocks of samples, 4 MiB on a CPU, are as large for few pixels as for many.
  measured = compiled_bytes(MODEL, size) - 4 * 2**20
  assert measured / math.prod(size) < 1.2 * tile_memory.bytes_per_pixel(MODEL, 'cpu')


def test_tiles_fit_with_an_xla_without_the_option(monkeypatch):
  monkeypatch.setattr(tile_memory, 'compiler_options', lambda platform: None)
  # Tiles may take half of the memory by the estimate.
  assert compiled_bytes(MODEL) / 512**2 < 1.5 * tile_memory.bytes_per_pixel(MODEL, 'cpu')


def test_an_option_unknown_to_xla_is_not_used(monkeypatch):
  jit, uncached = jax.jit, tile_memory.compiler_options.__wrapped__
  assert uncached('cpu')
  monkeypatch.setattr(jax, 'jit', lambda f, compiler_options: jit(f, compiler_options={'xla_no_such': '1'}))
  assert uncached('cpu') is None


def device(**stats):
  return types.SimpleNamespace(platform='gpu', memory_stats=lambda: stats)


def test_tiles_take_at_most_half_of_the_free_memory():
  for free in (2**28, 2**30, 2**32, 80 * 2**30):
    areas = tile_memory.tile_areas(MODEL, device(bytes_limit=free + 1000, bytes_in_use=1000))
    assert areas[0] * tile_memory.bytes_per_pixel(MODEL, 'gpu') <= free / 2
    assert list(areas) == sorted(areas, reverse=True)
    assert areas[-1] == 128**2
  assert areas[0] == 1504**2


@pytest.mark.parametrize(
  ('stats', 'least_px', 'areas'),
  [
    # The smallest useful tile is tried in any case.
    ({'bytes_limit': 1000, 'bytes_in_use': 999}, 0, (128**2,)),
    ({'bytes_limit': 1000, 'bytes_in_use': 999}, 200**2, (256**2,)),
    # A device that does not report its memory gets moderate tiles.
    ({}, 500**2, (640**2, 512**2)),
    ({}, 700**2, (1024**2,)),
  ],
)
def test_tiles_are_no_smaller_than_useful(stats, least_px, areas):
  assert tile_memory.tile_areas(MODEL, device(**stats), least_px) == areas


def test_a_cpu_has_the_memory_of_the_machine(monkeypatch):
  cpu = jax.local_devices()[0]
  monkeypatch.setattr(tile_memory, 'free_host_bytes', lambda: 100 * 2**30)
  assert tile_memory.tile_areas(MODEL, cpu)[0] == 1504**2
  monkeypatch.setattr(tile_memory, 'free_host_bytes', lambda: 2**29)
  assert tile_memory.tile_areas(MODEL, cpu)[0] < 640**2
  # Where the system does not say what is free.
  monkeypatch.setattr(tile_memory, 'free_host_bytes', lambda: None)
  monkeypatch.setattr(tile_memory, 'host_bytes', lambda: 16 * 2**30)
  assert tile_memory.free_bytes(cpu) == 8 * 2**30
  monkeypatch.setattr(tile_memory, 'host_bytes', lambda: None)
  assert tile_memory.free_bytes(cpu) is None
