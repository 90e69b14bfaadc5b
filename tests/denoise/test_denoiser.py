"""Denoiser: shapes, dtypes, tiles, memory, strength. A stand-in for the network saves compiling it."""

import concurrent.futures
import pickle
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from sadnet_jax.denoise import compiled_network, tile_memory
from sadnet_jax.denoise.compiled_network import (
  MAX_PROGRAMS,
  CompiledNetwork,
  compilation_px,
  shared_size,
  shared_steps_px,
)
from sadnet_jax.denoise.denoiser import Denoiser, self_ensemble
from sadnet_jax.denoise.grey import as_colour, noise_deviation
from sadnet_jax.images import Metadata, Photograph
from sadnet_jax.images.photograph import BT601_LUMA
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights.safetensors import save_weights
from tests.support.small_networks import SMALL, apply, random_variables

COLOR = SADNet(**SMALL)
GRAY = SADNet(channels=1, **SMALL)
DTYPES = (np.uint8, np.uint16, np.float16, np.float32, np.float64, jnp.bfloat16)


class StandIn:
  """In place of a CompiledNetwork: a function of the pixels, whose calls are recorded."""

  def __init__(self, function=lambda noisy: 1.5 * noisy - 0.25, platform='cpu'):
    self.function = function
    self.device = types.SimpleNamespace(platform=platform)
    self.tiles = []

  def __call__(self, noisy, **_):
    assert noisy.dtype == np.float32
    self.tiles.append(noisy)
    return self.function(noisy)

  @property
  def sizes(self):
    return [tile.shape[1:3] for tile in self.tiles]


def denoiser(*network, model=COLOR, **options):
  """One that compiles nothing."""
  instance = Denoiser(model, {}, **options)
  instance.network = StandIn(*network)
  return instance


def picture(*shape, dtype=np.float32, seed=0):
  values = np.random.default_rng(seed).uniform(size=shape)
  if np.issubdtype(dtype, np.integer):
    values = np.round(values * np.iinfo(dtype).max)
  return values.astype(dtype)


@pytest.fixture(scope='module')
def real():
  """With a network, in tiles of at most 32 pixels, on a device that is not the first."""
  params = random_variables(COLOR)['params']
  return Denoiser(COLOR, params, tile_px=32, overlap_px=8, device=jax.local_devices()[5])


def whole(noisy):
  """What the network itself gives for float32 [N, H, W, C]."""
  return np.asarray(apply(COLOR, random_variables(COLOR), noisy))


def test_an_image_within_a_tile_is_what_the_network_gives(real):
  noisy = picture(1, 31, 17, 3)
  np.testing.assert_allclose(real(noisy), whole(noisy), atol=1e-5)
  assert {d for leaf in jax.tree.leaves(real.params) for d in leaf.devices()} == {real.network.device}
  gray = picture(31, 17)
  colour = as_colour(gray[:, :, None], noise_deviation(gray), np.arange(31), np.arange(17), 3)
  np.testing.assert_allclose(real(gray), whole(colour[None])[0].mean(axis=-1), atol=1e-5)
  # Images of similar size and tiles share a program.
  for size in ((26, 20), (32, 24), (56, 40)):
    assert np.isfinite(real(picture(*size, 3))).all()
  assert len(real.network.programs) == 1


def test_images_of_many_sizes_share_programs_and_are_what_the_network_gives():
  params = random_variables(COLOR)['params']
  instance = Denoiser(COLOR, params)
  for size in ((64, 64), (9, 57)):
    noisy = picture(1, *size, 3)
    np.testing.assert_allclose(instance(noisy), whole(noisy), atol=1e-5)
  for size in ((8, 8), (33, 64), (63, 1), (41, 23)):
    assert np.isfinite(instance(picture(*size))).all()
  assert len(instance.network.programs) == 1


@pytest.fixture
def uncompiled(monkeypatch):
  """A CompiledNetwork whose programs return their input."""
  network = CompiledNetwork(COLOR, {}, jax.local_devices()[0])

  class Function:
    def lower(self, *_):
      return self

    def compile(self):
      return lambda params, noisy, inside: noisy

  monkeypatch.setattr(network, 'function', lambda shared: Function())
  return network


def test_weights_that_do_not_fit_on_the_device_are_a_message(monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  monkeypatch.setattr(jax, 'device_put', refuse)
  with pytest.raises(ValueError, match=r'fails to take the weights \(RESOURCE_EXHAUSTED.*another device'):
    CompiledNetwork(COLOR, {}, jax.local_devices()[0])


def test_few_programs_are_kept_however_many_sizes_there_are(uncompiled):
  for height in range(96, 193, 4):
    for width in range(96, 193, 12):
      assert uncompiled(picture(1, height, width, 3)).shape == (1, height, width, 3)
  assert {key[1:3] for key in uncompiled.programs} == {(128, 128), (192, 192)}
  for height in range(64, 2000, 64):
    uncompiled(picture(1, height, 300, 3))
  assert len(uncompiled.programs) == MAX_PROGRAMS
  # The programs that were used last stay.
  assert {key[1] for key in uncompiled.programs} == set(range(1984, 1984 - 64 * MAX_PROGRAMS, -64))


def test_a_size_that_repeats_gets_its_own_program(uncompiled):
  noisy = picture(1, 136, 136, 3)
  unused = 192**2 - 136**2
  for _ in range(compilation_px('cpu') // unused):
    uncompiled(noisy)
  assert set(uncompiled.programs) == {(1, 192, 192, True)}
  uncompiled(noisy)
  assert set(uncompiled.programs) == {(1, 192, 192, True), (1, 136, 136, False)}
  # Many tiles of one size have it from the first.
  uncompiled(picture(1, 840, 1000, 3), runs=20)
  assert (1, 840, 1000, False) in uncompiled.programs
  # So has an image whose shared array would not fit in memory.
  uncompiled(picture(1, 72, 72, 3), most_px=80**2)
  assert (1, 72, 72, False) in uncompiled.programs


def test_a_size_whose_program_was_dropped_must_earn_it_again(uncompiled):
  noisy = picture(1, 136, 136, 3)
  uncompiled(noisy, runs=compilation_px('cpu'))
  assert (1, 136, 136, False) in uncompiled.programs
  for height in range(64, 64 * (MAX_PROGRAMS + 1), 64):
    uncompiled(picture(1, height, 300, 3))
  uncompiled(noisy)
  assert (1, 192, 192, True) in uncompiled.programs
  assert (1, 136, 136, False) not in uncompiled.programs


def test_threads_compile_and_run_beside_each_other_but_for_large_runs(uncompiled, monkeypatch):
  both = threading.Barrier(2, timeout=20)
  running, most = [], []

  class Function:
    def lower(self, params, noisy, inside):
      # Both threads must be compiling at once.
      both.wait()
      self.is_small = noisy.shape[1] == 64
      return self

    def compile(self):
      def program(params, noisy, inside):
        running.append(1)
        most.append(len(running))
        if self.is_small:
          both.wait()
        else:
          time.sleep(0.05)
        running.pop()
        return noisy

      return program

  monkeypatch.setattr(uncompiled, 'function', lambda shared: Function())
  with concurrent.futures.ThreadPoolExecutor(2) as pool:

    def run_at_once(sizes, most_px):
      most.clear()
      list(pool.map(lambda size: uncompiled(picture(1, *size, 3), most_px=most_px), sizes))
      return max(most)

    assert run_at_once([(200, 200), (300, 300)], None) == 1
    assert run_at_once([(200, 200), (300, 300)], 400**2) == 1
    assert run_at_once([(60, 64), (64, 400)], 800**2) == 2


def test_threads_that_need_the_same_program_compile_it_once(uncompiled, monkeypatch):
  compiled = []

  class Function:
    def lower(self, *_):
      compiled.append(1)
      # The other thread asks meanwhile.
      time.sleep(0.3)
      return self

    def compile(self):
      return lambda params, noisy, inside: noisy

  monkeypatch.setattr(uncompiled, 'function', lambda shared: Function())
  both, noisy = threading.Barrier(2, timeout=20), picture(1, 200, 200, 3)

  def run(_):
    both.wait()
    return uncompiled(noisy)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    list(pool.map(run, range(2)))
  assert len(compiled) == 1


def test_large_images_share_programs_on_accelerators_too(uncompiled, monkeypatch):
  assert [shared_size(1080, 1920, step) for step in shared_steps_px('gpu')] == [(1280, 2048), (1088, 1920)]
  assert [shared_size(100, 60, step) for step in shared_steps_px('gpu')] == [(128, 128)] * 2
  assert shared_steps_px('cpu') == (64,)
  monkeypatch.setattr(compiled_network, 'shared_steps_px', lambda _: shared_steps_px('gpu'))
  # The larger array would not fit in memory.
  uncompiled(picture(1, 1080, 1920, 3), most_px=1504**2)
  uncompiled(picture(1, 480, 320, 3), most_px=1504**2)
  assert set(uncompiled.programs) == {(1, 1088, 1920, True), (1, 512, 512, True)}


def test_a_prepared_size_has_its_own_program_at_once(uncompiled):
  uncompiled.prepare(1, 136, 136)
  assert set(uncompiled.programs) == {(1, 136, 136, False)}
  uncompiled(picture(1, 136, 136, 3))
  assert set(uncompiled.programs) == {(1, 136, 136, False)}


def test_blocks_of_samples_are_those_of_its_device(real, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  arguments = real.params, np.zeros((1, 512, 512, 3), np.float32), (512, 512)
  text = real.network.function(shared=True).lower(*arguments).as_text()
  # 72 samples of each of 8192 pixels on a CPU, of 131072 elsewhere; see test_export.
  assert 'tensor<8192x72xf32>' in text
  assert 'tensor<131072x72xf32>' not in text


@pytest.mark.parametrize('dtype', DTYPES)
def test_shape_and_dtype_are_kept(dtype):
  shared = denoiser(tile_px=64, overlap_px=24)
  for shape in (
    (70, 90, 3),
    (24, 40, 3),
    (24, 40),
    (2, 24, 40, 3),
    (24, 40, 1),
    (0, 24, 40, 3),
    (1, 1),
    (5, 200),
  ):
    image = picture(*shape, dtype=dtype)
    given = image.copy()
    denoised = shared(image)
    assert isinstance(denoised, np.ndarray)
    assert (denoised.shape, denoised.dtype) == (image.shape, image.dtype)
    assert not image.size or not np.array_equal(denoised, image)
    np.testing.assert_array_equal(image, given)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_integers_are_scaled_clipped_and_rounded(dtype):
  image = picture(24, 40, 3, dtype=dtype)
  largest = np.iinfo(dtype).max
  wanted = 1.5 * (image.astype(np.float32) / np.float32(largest)) - 0.25
  assert wanted.min() < 0
  assert wanted.max() > 1
  expected = np.round(np.clip(wanted, 0, 1) * np.float32(largest))
  np.testing.assert_array_equal(denoiser()(image), expected)


def test_jax_arrays_come_back_on_their_device():
  device = jax.local_devices()[3]
  image = jax.device_put(picture(24, 40, 3), device)
  denoised = denoiser()(image)
  assert isinstance(denoised, jax.Array)
  assert denoised.devices() == {device}
  np.testing.assert_array_equal(denoised, denoiser()(np.asarray(image)))


def test_a_checkpoint_records_its_dilations(tmp_path):
  config = default.get_config()
  config.model.update(SMALL, dilations=(1, 2, 4, 8))
  model = SADNet(**SMALL, dilations=(1, 2, 4, 8))
  params = random_variables(model)['params']
  path = tmp_path / 'a.safetensors'
  save_weights(path, params, model=config.model.to_dict(), step=1, about={'about': 'A test.'})
  instance = Denoiser.from_checkpoint(path)
  assert (tuple(instance.model.dilations), instance.about['about']) == ((1, 2, 4, 8), 'A test.')
  with pytest.raises(ValueError, match=r'dilations.*\(1, 2, 3, 4\).*\(1, 2, 4, 8\)'):
    Denoiser.from_checkpoint(path, dilations=(1, 2, 3, 4))


def test_a_batch_is_its_images():
  shared = denoiser(tile_px=64, overlap_px=24)
  # More small images than share a run, so that the last run is filled up; and large ones, in tiles.
  for shape in ((13, 16, 24, 3), (2, 70, 90, 3)):
    batch = picture(*shape)
    np.testing.assert_allclose(shared(batch), np.stack([shared(image) for image in batch]), atol=1e-6)
  # Ten would fit: two runs of ten, or three of five.
  assert [len(tile) for tile in shared.network.tiles[:3]] == [5, 5, 5]


def test_a_photograph_keeps_what_is_beside_its_pixels_and_brighter_than_white():
  instance = denoiser()
  pixels, alpha = picture(9, 7, 3), picture(9, 7)
  pixels[2, 3] = 30
  photograph = Photograph(pixels, alpha, Metadata(exif=b'exif'), linear=True)
  denoised = instance.denoise_photograph(photograph)
  np.testing.assert_allclose(denoised.pixels[2, 3], 30 + 0.25, rtol=1e-6)
  others = pixels < 2
  np.testing.assert_allclose(denoised.pixels[others], 1.5 * pixels[others] - 0.25, atol=1e-6)
  assert (denoised.alpha is alpha, denoised.metadata, denoised.linear) == (True, photograph.metadata, True)
  integers = Photograph(picture(9, 7, 3, dtype=np.uint16))
  np.testing.assert_array_equal(instance.denoise_photograph(integers).pixels, instance(integers.pixels))


def test_tiles_are_of_the_image_extended_by_reflection():
  shared, noisy = denoiser(tile_px=64, overlap_px=24), picture(70, 90, 3)
  np.testing.assert_allclose(shared(noisy), 1.5 * noisy - 0.25, atol=1e-6)
  padded = np.pad(noisy, ((0, 2), (0, 6), (0, 0)), mode='reflect')
  corners = [(top, left) for top in (0, 24) for left in (0, 32)]
  wanted = [padded[None, top : top + 48, left : left + 64] for top, left in corners]
  np.testing.assert_array_equal(shared.network.tiles, wanted)


def test_whole_takes_no_tiles():
  instance = denoiser(tile_px='whole')
  instance(picture(2, 2000, 9, 3))
  assert [tile.shape for tile in instance.network.tiles] == [(2, 2000, 9, 3)]


def test_automatic_tiles_are_flat_on_a_cpu_only(monkeypatch):
  monkeypatch.setattr(tile_memory, 'free_host_bytes', lambda: 2**40)
  assert denoiser().plan(3000, 4000).tile_size == (840, 2064)
  # Half of the ensemble's images stand on their side.
  assert denoiser(ensemble=True).plan(3000, 4000).tile_size == (1560, 1416)
  assert denoiser(tile_px=1504).plan(3000, 4000).tile_size == (1080, 1416)
  elsewhere = denoiser(lambda noisy: noisy, 'gpu')
  assert elsewhere.plan(3000, 4000).tile_size == (1560, 1416)


@pytest.mark.parametrize(
  ('shape', 'options', 'runs'),
  [
    ((24, 40, 3), {}, 1),
    ((24, 40, 3), {'ensemble': True}, 8),
    ((70, 90, 3), {'tile_px': 64, 'overlap_px': 24}, 4),
    ((2, 70, 90, 3), {'tile_px': 64, 'overlap_px': 24, 'ensemble': True}, 64),
  ],
)
def test_progress_counts_runs_of_the_network(shape, options, runs):
  seen = []
  denoiser(**options)(picture(*shape), progress=lambda done, total: seen.append((done, total)))
  assert seen == [(done, runs) for done in range(1, runs + 1)]


def test_a_pickled_denoiser_keeps_weights_options_and_device():
  options = {
    'tile_px': 256,
    'overlap_px': 64,
    'about': {'a': 'b'},
    'strength': 0.0,
    'device': jax.devices()[3],
  }
  first = Denoiser(COLOR, random_variables(COLOR)['params'], **options)
  again = pickle.loads(pickle.dumps(first))
  assert (again.model, again.about, again.network.device) == (COLOR, {'a': 'b'}, jax.devices()[3])
  jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
  assert again.plan(700, 500) == first.plan(700, 500) != Denoiser(COLOR, {}).plan(700, 500)
  noisy = picture(8, 8, 3)
  np.testing.assert_array_equal(again(noisy), noisy)


def test_the_network_alone_takes_any_values_and_treats_grey_images_like_others():
  noisy = np.repeat(20 * picture(70, 90, 1) - 8, 3, axis=-1)
  for options in ({}, {'tile_px': 64, 'overlap_px': 24}):
    instance = denoiser(lambda noisy: noisy * np.float32([1, 2, 3]), **options)
    np.testing.assert_allclose(instance.apply(noisy), noisy * [1, 2, 3], atol=1e-5)
    with pytest.raises(ValueError, match=r'must be in \[0, 1\] apart from noise'):
      instance(noisy)


def test_new_weights_are_those_of_every_denoiser_that_shares_the_network():
  first = Denoiser(COLOR, random_variables(COLOR)['params'])
  others = [first.with_strength(0.5), first.with_ensemble()]
  first.replace_params(jax.tree.map(lambda x: x + 1, first.params))
  for other in (*others, pickle.loads(pickle.dumps(others[0]))):
    jax.tree.map(np.testing.assert_array_equal, other.params, first.params)


def test_threads_that_run_out_of_memory_at_once_choose_smaller_tiles_once(monkeypatch):
  monkeypatch.setattr(tile_memory, 'tile_areas', lambda *_: (512**2, 256**2))
  both, limit = threading.Barrier(2), out_of_memory_above(450)

  def network(noisy):
    if max(noisy.shape[1:3]) > 450:
      # Both threads have chosen their tiles.
      both.wait(timeout=60)
    return limit(noisy)

  instance, noisy = denoiser(network), picture(700, 100, 3)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for denoised in pool.map(instance, [noisy, noisy]):
      np.testing.assert_allclose(denoised, noisy, atol=1e-6)


def out_of_memory_above(limit_px):
  def network(noisy):
    if max(noisy.shape[1:3]) > limit_px:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 byte')
    return noisy

  return network


def test_smaller_tiles_are_tried_if_memory_runs_out(monkeypatch):
  monkeypatch.setattr(tile_memory, 'tile_areas', lambda *_: (512**2, 256**2, 192**2))
  instance, noisy = denoiser(out_of_memory_above(350)), picture(700, 100, 3)
  np.testing.assert_allclose(instance(noisy), noisy, atol=1e-6)
  assert [max(size) for size in instance.network.sizes[:3]] == [700, 416, 320]
  # The next image does not try large tiles again.
  instance.network.tiles.clear()
  instance(noisy)
  assert {max(size) for size in instance.network.sizes} == {320}
  # Nor do denoisers of the same network.
  assert max(instance.with_ensemble().plan(700, 100).tile_size) == 320


def test_what_an_ensemble_learns_about_memory_is_known_to_the_next(monkeypatch):
  monkeypatch.setattr(tile_memory, 'tile_areas', lambda *_: (512**2, 256**2, 192**2))
  instance, noisy = denoiser(out_of_memory_above(350)), picture(700, 100, 3)
  instance.with_ensemble()(noisy)
  instance.network.tiles.clear()
  instance.with_ensemble()(noisy)
  assert max(max(size) for size in instance.network.sizes) <= 350


@pytest.mark.parametrize(
  ('options', 'tile', 'advice'),
  [
    ({}, '104x320', 'a device'),
    ({'tile_px': 256}, '104x240', 'smaller tiles or a device'),
    ({'tile_px': 'whole'}, '104x704', 'smaller tiles or a device'),
  ],
)
def test_an_image_that_never_fits_is_an_error(monkeypatch, options, tile, advice):
  monkeypatch.setattr(tile_memory, 'tile_areas', lambda *_: (256**2, 192**2))
  message = f'100x700 pixels: the device fails on tiles of {tile} .*RESOURCE_EXHAUSTED.*use {advice}'
  with pytest.raises(ValueError, match=message):
    denoiser(out_of_memory_above(0), **options)(picture(700, 100, 3))


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (picture(8, 8, 4), r'image must be .* one or 3 channels, not of shape \(8, 8, 4\)'),
    (picture(8), r'not of shape \(8,\)'),
    (picture(1, 1, 8, 8, 3), r'not of shape \(1, 1, 8, 8, 3\)'),
    (picture(0, 8, 3), r'at least one pixel.* not of shape \(0, 8, 3\)'),
    (picture(2, 8, 0, 3), r'not of shape \(2, 8, 0, 3\)'),
    (np.zeros((8, 8), np.int32), 'must be an array of uint8, uint16 or floats in .*, not int32'),
    (np.zeros((8, 8), bool), 'not bool'),
    (np.zeros((8, 8), complex), 'not complex128'),
    ([[0.5]], 'must be an array .*, not list'),
    (types.SimpleNamespace(dtype='torch.float32', shape=(8, 8)), 'not SimpleNamespace'),
    (picture(8, 8, 3) * 255, r'floats from .* to 25\d.* must be in \[0, 1\] apart from noise; divide'),
    (np.full((8, 8), np.nan, np.float32), 'values that are NaN or infinite'),
    (np.full((8, 8), np.inf), 'values that are NaN or infinite'),
    (np.full((8, 8), np.nan, jnp.bfloat16), 'values that are NaN or infinite'),
    (np.full((8, 8), 1e300), r'floats from 1e\+300 to 1e\+300'),
  ],
)
def test_unsupported_images_are_refused(image, message):
  with pytest.raises(ValueError, match=message):
    denoiser()(image)


def test_values_are_checked_before_any_work():
  instance, noisy = denoiser(tile_px=64, overlap_px=24), picture(2, 300, 90, 3)
  noisy[-1, -1, -1, -1] = np.nan
  with pytest.raises(ValueError, match='NaN or infinite'):
    instance(noisy)
  assert instance.network.tiles == []


def test_a_network_for_grey_refuses_colour():
  instance = denoiser(model=GRAY)
  assert instance(picture(8, 8)).shape == (8, 8)
  with pytest.raises(ValueError, match=r'with at least one pixel and one channel, not of shape \(8, 8, 3\)'):
    instance(picture(8, 8, 3))


def test_a_traced_array_is_refused():
  with pytest.raises(ValueError, match=r'traced array; inside jit, call `model\.apply`'):
    jax.jit(denoiser())(picture(8, 8, 3))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tile_px': 'all'}, "tile_px must be a number of pixels, 'auto' or 'whole', not 'all'"),
    ({'tile_px': 100}, 'tile_px must be a multiple of 8, at least 16, not 100'),
    ({'tile_px': 64, 'overlap_px': 64}, 'from 0 to 48 for tiles of 64 pixels, not 64'),
    ({'overlap_px': 1496}, 'from 0 to 1488 for tiles of 1504 pixels, not 1496'),
    ({'overlap_px': -1}, 'overlap_px must be .*, not -1'),
    ({'overlap_px': 80.5}, r'overlap_px must be a whole number .*, not 80\.5'),
    ({'strength': 1.5}, r'strength must be from 0 \(noisy\) to 1 \(denoised\), not 1\.5'),
    ({'chroma_strength': -0.1}, r'chroma_strength must be .*, not -0\.1'),
    ({'strength': float('nan')}, 'strength must be .*, not nan'),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    denoiser(**options)


STRENGTHS = (0, 0.2, 0.5, 0.8, 1)
SHAPES = ((24, 40, 3), (24, 40), (2, 24, 40, 1), (70, 90, 3), (70, 90))


def with_strength(strength, chroma_strength=None):
  return denoiser(tile_px=64, overlap_px=24, strength=strength, chroma_strength=chroma_strength)


@pytest.mark.parametrize('dtype', DTYPES)
def test_strength_leads_from_the_input_to_the_denoised_image(dtype):
  for shape in SHAPES:
    image = picture(*shape, dtype=dtype)
    results = [with_strength(strength)(image) for strength in STRENGTHS]
    assert results[0].tobytes() == image.tobytes()
    assert results[0] is not image
    assert results[-1].tobytes() == denoiser(tile_px=64, overlap_px=24)(image).tobytes()
    # Every pixel moves one way, towards the denoised one.
    levels = np.stack([np.asarray(result, np.float64) for result in results])
    towards = np.sign(levels[-1] - levels[0])
    assert (np.diff(levels, axis=0) * towards >= 0).all()
    assert len({result.tobytes() for result in results}) == len(STRENGTHS)


@pytest.mark.parametrize('shape', [(24, 40, 3), (70, 90, 3)])
def test_luma_and_chroma_have_strengths_of_their_own(shape):
  image = 0.3 + 0.4 * picture(*shape)

  def luma_and_chroma(pixels):
    luma = pixels @ BT601_LUMA
    return luma, pixels - luma[..., None]

  noisy, denoised = luma_and_chroma(image), luma_and_chroma(with_strength(1)(image))
  for strengths in ((0, 1), (1, 0), (0.25, 0.75), (1, 0.5), (0, 0.5)):
    found = luma_and_chroma(with_strength(*strengths)(image))
    for part, before, after, strength in zip(found, noisy, denoised, strengths, strict=True):
      np.testing.assert_allclose(part, before + strength * (after - before), atol=1e-6)
  for strength in STRENGTHS:
    np.testing.assert_array_equal(with_strength(strength, strength)(image), with_strength(strength)(image))


def test_denoisers_of_other_strengths_share_the_network():
  image, first = picture(24, 40, 3), with_strength(1)
  other = first.with_strength(0.25, 0.75)
  assert other.network is first.network
  np.testing.assert_array_equal(other(image), with_strength(0.25, 0.75)(image))
  np.testing.assert_array_equal(first(image), with_strength(1)(image))
  with pytest.raises(ValueError, match='chroma_strength'):
    first.with_strength(1, 2)


def test_the_ensemble_of_an_existing_denoiser_shares_the_network():
  image, first = picture(24, 40, 3), denoiser()
  other = first.with_ensemble()
  assert other.network is first.network
  other(image)
  assert len(first.network.tiles) == 8
  first(image)
  assert len(first.network.tiles) == 9


def test_blending_is_rounded_once_and_grey_images_have_no_chroma():
  image = picture(24, 40, 3, dtype=np.uint8)
  noisy = image / np.float32(255)
  # Not clipped before blending, nor rounded.
  wanted = np.round(255 * np.clip(noisy + 0.5 * (0.5 * noisy - 0.25), 0, 1))
  assert np.abs(with_strength(0.5)(image) - wanted).max() <= 1
  assert np.mean(with_strength(0.5)(image) != wanted) < 0.01
  grey = picture(24, 40, dtype=np.uint16)
  np.testing.assert_array_equal(with_strength(0, 1)(grey), grey)
  np.testing.assert_array_equal(with_strength(1, 0)(grey), with_strength(1)(grey))


def test_strength_0_runs_no_network_but_checks_the_image():
  instance = with_strength(0)
  instance(picture(8, 8, 3))
  assert instance.network.tiles == []
  with pytest.raises(ValueError, match='NaN or infinite'):
    instance(np.full((8, 8), np.nan, np.float32))


def test_the_ensemble_of_an_image_that_comes_back_unchanged_is_the_image():
  noisy = picture(2, 5, 7, 3)
  np.testing.assert_allclose(denoiser(lambda x: x, ensemble=True)(noisy), noisy, rtol=1e-6)


def test_the_ensemble_denoises_all_flips_and_rotations_once():
  seen, noisy = [], picture(2, 4, 4, 3)
  self_ensemble(lambda turned: seen.append(turned) or turned, noisy)
  wanted = [
    turned[:, ::rows, ::columns]
    for turned in (noisy, noisy.transpose(0, 2, 1, 3))
    for rows in (1, -1)
    for columns in (1, -1)
  ]
  assert len(seen) == 8
  assert all(sum(np.array_equal(s, w) for s in seen) == 1 for w in wanted)


def test_the_ensemble_turns_results_back_before_averaging():
  # A denoiser that marks the top left corner of whatever it is given.
  def mark(x):
    marked = np.zeros_like(x)
    marked[:, 0, 0] = 8
    return marked

  result = self_ensemble(mark, picture(2, 5, 7, 3))
  wanted = np.zeros_like(result)
  wanted[:, [0, 0, -1, -1], [0, -1, 0, -1]] = 2
  np.testing.assert_array_equal(result, wanted)
