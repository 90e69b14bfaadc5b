import math
import types

import jax
import numpy as np
import pytest

from sadnet_jax import machine
from sadnet_jax.denoise import denoiser, tile_memory
from sadnet_jax.denoise.tiling import LONGEST_SIDE_PX, plan_tiles_of_area
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.ops import platform
from sadnet_jax.ops.platform import blocks_for
from tests.support.small_networks import SMALL, param_shapes

# Of 12 megapixels on a CPU.
PHOTOGRAPH_TILE = plan_tiles_of_area(
  3000, 4000, tile_memory.SIDES_PX[0] ** 2, denoiser.OVERLAP_PX, denoiser._HEIGHT_COST
).tile_size


def device(platform='gpu', **stats):
  return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)


def compile_for(platform, model, image):
  jitted = jax.jit(model.apply, compiler_options=tile_memory.compiler_options(platform))
  return jitted.lower({'params': param_shapes(model)}, image).compile()


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
@pytest.mark.parametrize('fields', [{}, SMALL, {'use_rsab': False}, {'width': 16, 'deformable_groups': 4}])
def test_the_estimate_is_a_little_more_than_the_compiled_network_takes(fields, platform):
  model = SADNet(**fields)
  image = jax.ShapeDtypeStruct((1, 512, 512, 3), np.float32)
  # What a CPU makes of the accelerator's program: no more can be had here.
  with blocks_for(platform):
    compiled = compile_for(platform, model, image)
  measured = compiled.memory_analysis().temp_size_in_bytes / 512**2
  assert measured < tile_memory.bytes_per_pixel(model, platform) < 1.3 * measured


@pytest.mark.parametrize('size', [PHOTOGRAPH_TILE, (8, LONGEST_SIDE_PX), (LONGEST_SIDE_PX, 24)])
def test_the_estimate_holds_for_flat_and_for_high_tiles(size):
  model = SADNet()
  image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
  compiled = compile_for('cpu', model, image)
  # Blocks of samples are as large for few pixels as for many.
  measured = compiled.memory_analysis().temp_size_in_bytes - platform._BLOCK_BYTES_CPU
  assert measured / math.prod(size) < 1.2 * tile_memory.bytes_per_pixel(model, 'cpu')


def test_on_a_processor_a_480x320_image_takes_less_than_220_megabytes():
  model = SADNet()
  image = jax.ShapeDtypeStruct((1, 320, 480, 3), np.float32)
  compiled = jax.jit(model.apply).lower({'params': param_shapes(model)}, image).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 220e6


def test_an_option_that_this_xla_does_not_know_is_left_out(monkeypatch):
  jit = jax.jit
  monkeypatch.setattr(jax, 'jit', lambda f, compiler_options: jit(f, compiler_options={'xla_no_such': '1'}))
  assert tile_memory.compiler_options.__wrapped__('cpu') is None
  monkeypatch.undo()
  assert tile_memory.compiler_options.__wrapped__('cpu')


def test_without_the_option_the_estimate_holds_too(monkeypatch):
  monkeypatch.setattr(tile_memory, 'compiler_options', lambda platform: None)
  model = SADNet()
  image = jax.ShapeDtypeStruct((1, 512, 512, 3), np.float32)
  measured = compile_for('cpu', model, image).memory_analysis().temp_size_in_bytes / 512**2
  assert measured < tile_memory.bytes_per_pixel(model, 'cpu') < 1.3 * measured


def test_tiles_take_at_most_half_of_what_is_free():
  model = SADNet()
  gigabyte = 2**30
  for free in (gigabyte // 4, gigabyte, 4 * gigabyte, 80 * gigabyte):
    sides = tile_memory.tile_sides(model, device(bytes_limit=free + 1000, bytes_in_use=1000))
    largest = sides[0]
    assert largest**2 * tile_memory.bytes_per_pixel(model, 'gpu') <= free / 2
    assert list(sides) == sorted(sides, reverse=True)
    assert sides[-1] == 128
  assert largest == 1504


def test_tiles_are_no_smaller_than_they_have_to_be():
  small = device(bytes_limit=1000, bytes_in_use=999)
  assert list(tile_memory.tile_sides(SADNet(), small, 200)) == [256]


def test_the_smallest_tile_is_tried_in_any_case():
  assert list(tile_memory.tile_sides(SADNet(), device(bytes_limit=1000, bytes_in_use=999))) == [128]


def test_a_device_that_does_not_tell_gets_moderate_tiles():
  assert tile_memory.tile_sides(SADNet(), device())[0] == 640
  assert list(tile_memory.tile_sides(SADNet(), device(), 700)) == [1024]


def test_the_processor_has_the_memory_of_the_machine(monkeypatch):
  cpu = jax.local_devices()[0]
  free = machine.free_host_bytes()
  assert free is None or 2**20 < free < 2**46
  monkeypatch.setattr(tile_memory, 'free_host_bytes', lambda: 100 * 2**30)
  assert tile_memory.tile_sides(SADNet(), cpu)[0] == 1504
  monkeypatch.setattr(tile_memory, 'free_host_bytes', lambda: 2**29)
  assert tile_memory.tile_sides(SADNet(), cpu)[0] < 640


def test_the_limit_of_a_container_counts(tmp_path):
  assert tile_memory._free_of_group(tmp_path) is None
  (tmp_path / 'memory.max').write_text('1000\n')
  (tmp_path / 'memory.current').write_text('700\n')
  (tmp_path / 'memory.stat').write_text('anon 500\ninactive_file 150\n')
  assert tile_memory._free_of_group(tmp_path) == 450
  (tmp_path / 'memory.max').write_text('max\n')
  assert tile_memory._free_of_group(tmp_path) is None
