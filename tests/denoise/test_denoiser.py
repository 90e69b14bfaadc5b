import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from sadnet_jax.denoise.denoiser import Denoiser, self_ensemble
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights.safetensors import save_weights
from tests.support.small_networks import SMALL, apply, random_variables

COLOR = SADNet(**SMALL)
GRAY = SADNet(channels=1, **SMALL)
DTYPES = (np.uint8, np.uint16, np.float16, np.float32, np.float64, jnp.bfloat16)


def denoiser(model=COLOR, **options):
  return Denoiser(model, random_variables(model)['params'], **options)


def whole(model, noisy):
  """What the network itself gives for float32 [N, H, W, C]."""
  return np.asarray(apply(model, random_variables(model), noisy))


def picture(*shape, dtype=np.float32, seed=0):
  values = np.random.default_rng(seed).uniform(size=shape)
  if np.issubdtype(dtype, np.integer):
    values = np.round(values * np.iinfo(dtype).max)
  return values.astype(dtype)


@pytest.fixture(scope='module')
def shared():
  """One for all tests of its options, so that it compiles once a size."""
  return denoiser(tile_px=64, overlap_px=24)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(70, 90, 3), (24, 40, 3), (24, 40), (2, 24, 40, 3), (24, 40, 1)])
def test_shape_and_dtype_come_back(shared, shape, dtype):
  image = picture(*shape, dtype=dtype)
  given = image.copy()
  denoised = shared(image)
  assert isinstance(denoised, np.ndarray)
  assert (denoised.shape, denoised.dtype) == (image.shape, image.dtype)
  assert not np.array_equal(denoised, image)
  np.testing.assert_array_equal(image, given)


@pytest.mark.parametrize('size', [(1, 1), (1, 200), (200, 1), (3, 5), (8, 8), (31, 17), (65, 64)])
def test_any_size(shared, size):
  denoised = shared(picture(*size, 3))
  assert denoised.shape == (*size, 3)
  assert np.isfinite(denoised).all()


def test_an_image_within_a_tile_is_what_the_network_gives(shared):
  noisy = picture(1, 31, 17, 3)
  np.testing.assert_allclose(shared(noisy), whole(COLOR, noisy), atol=1e-5)


def test_integers_are_scaled_rounded_and_clipped(shared):
  for dtype in (np.uint8, np.uint16):
    largest = np.iinfo(dtype).max
    image = picture(24, 40, 3, dtype=dtype)
    wanted = whole(COLOR, image[None].astype(np.float32) / np.float32(largest))[0]
    assert wanted.min() < 0
    assert wanted.max() > 1
    difference = shared(image).astype(int) - np.round(np.clip(wanted, 0, 1) * np.float32(largest))
    assert np.abs(difference).max() <= 1
    assert np.abs(difference).mean() < (0.01 if dtype == np.uint8 else 1)


def test_jax_arrays_come_back_as_such(shared):
  device = jax.local_devices()[3]
  image = jax.device_put(picture(24, 40, 3), device)
  denoised = shared(image)
  assert isinstance(denoised, jax.Array)
  assert denoised.devices() == {device}
  np.testing.assert_array_equal(denoised, shared(np.asarray(image)))


def test_its_program_is_ordered_for_memory():
  instance, image = denoiser(SADNet()), jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32)
  own = instance._apply.lower(instance._params, image)
  plain = jax.jit(instance.model.apply).lower({'params': instance._params}, image)
  sizes = [lowered.compile().memory_analysis().temp_size_in_bytes for lowered in (own, plain)]
  assert sizes[0] < 0.8 * sizes[1]


def test_runs_on_the_device_asked_for():
  device = jax.local_devices()[5]
  on_device = denoiser(device=device)
  assert {d for leaf in jax.tree.leaves(on_device._params) for d in leaf.devices()} == {device}
  np.testing.assert_allclose(on_device(picture(24, 40, 3)), whole(COLOR, picture(1, 24, 40, 3))[0], atol=1e-5)


def test_blocks_of_samples_are_those_of_its_device(monkeypatch):
  instance = denoiser()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  text = instance._apply.lower(instance._params, np.zeros((1, 512, 512, 3), np.float32)).as_text()
  # 72 samples of each of 8192 pixels on a processor, of 131072 elsewhere; see test_stablehlo.
  assert 'tensor<8192x72xf32>' in text
  assert 'tensor<131072x72xf32>' not in text


def test_sizes_that_differ_by_little_share_one_program():
  instance = denoiser()
  for size in ((31, 17), (26, 20), (32, 24)):
    noisy = picture(1, *size, 3)
    np.testing.assert_allclose(instance(noisy), whole(COLOR, noisy), atol=1e-5)
  assert instance._apply._cache_size() == 1


def test_a_checkpoint_tells_its_dilations(tmp_path):
  config = default.get_config()
  config.model.update(SMALL, dilations=(1, 2, 4, 8))
  model = SADNet(**SMALL, dilations=(1, 2, 4, 8))
  params = random_variables(model)['params']
  path = tmp_path / 'a.safetensors'
  save_weights(path, params, model=config.model.to_dict(), step=1, about={'about': 'A test.'})
  instance = Denoiser.from_checkpoint(path)
  assert (tuple(instance.model.dilations), instance.about['about']) == ((1, 2, 4, 8), 'A test.')
  with pytest.raises(ValueError, match=r'dilations: got \(1, 2, 3, 4\), want \(1, 2, 4, 8\)'):
    Denoiser.from_checkpoint(path, dilations=(1, 2, 3, 4))


def test_a_batch_is_its_images(shared):
  # More small images than share a run, by some that fill it up; and large ones.
  for shape in ((13, 16, 24, 3), (2, 70, 90, 3)):
    batch = picture(*shape)
    np.testing.assert_allclose(shared(batch), np.stack([shared(image) for image in batch]), atol=1e-6)
  assert shared(picture(0, 24, 40, 3)).shape == (0, 24, 40, 3)


def test_grey_images_are_three_equal_channels_to_a_network_for_colour(shared):
  gray = picture(24, 40)
  wanted = whole(COLOR, np.repeat(gray[None, :, :, None], 3, axis=3))[0].mean(axis=-1)
  np.testing.assert_allclose(shared(gray), wanted, atol=1e-5)
  np.testing.assert_array_equal(shared(gray[:, :, None])[:, :, 0], shared(gray))


def test_a_network_for_grey():
  gray = picture(24, 40)
  np.testing.assert_allclose(denoiser(GRAY)(gray), whole(GRAY, gray[None, :, :, None])[0, :, :, 0], atol=1e-5)


def test_tiles_begin_and_are_padded_as_the_whole_image(monkeypatch, shared):
  """Each tile is of the whole image, extended to multiples of 8 by reflection."""
  noisy = picture(70, 90, 3)
  padded = np.pad(noisy, ((0, 2), (0, 6), (0, 0)), mode='reflect')
  seen = []
  monkeypatch.setattr(shared, '_network', lambda tile: seen.append(tile[0]) or tile)
  shared(noisy)
  corners = [(top, left) for top in (0, 24) for left in (0, 32)]
  np.testing.assert_array_equal(seen, [padded[top : top + 48, left : left + 64] for top, left in corners])


def test_whole_takes_no_tiles(monkeypatch):
  instance, seen = denoiser(tile_px='whole'), []
  monkeypatch.setattr(instance, '_network', lambda noisy: seen.append(noisy.shape) or noisy)
  instance(picture(2, 2000, 9, 3))
  assert seen == [(2, 2000, 9, 3)]


def test_the_ensemble_is_the_mean_of_eight():
  noisy = picture(1, 24, 40, 3)
  wanted = self_ensemble(lambda x: whole(COLOR, x), noisy)
  np.testing.assert_allclose(denoiser(ensemble=True)(noisy), wanted, atol=1e-5)
  assert np.abs(wanted - whole(COLOR, noisy)).max() > 1e-3


@pytest.mark.parametrize(
  ('shape', 'options', 'runs'),
  [
    ((24, 40, 3), {}, 1),
    ((24, 40, 3), {'ensemble': True}, 8),
    ((70, 90, 3), {'tile_px': 64, 'overlap_px': 24}, 4),
    ((2, 70, 90, 3), {'tile_px': 64, 'overlap_px': 24, 'ensemble': True}, 64),
  ],
)
def test_progress_counts_runs_of_the_network(monkeypatch, shape, options, runs):
  seen = []
  instance = denoiser(**options)
  monkeypatch.setattr(instance, '_network', lambda noisy: noisy)
  instance(picture(*shape), progress=lambda done, total: seen.append((done, total)))
  assert seen == [(done, runs) for done in range(1, runs + 1)]


def out_of_memory_above(limit_px, sizes):
  def network(noisy):
    sizes.append(noisy.shape[1:3])
    if max(noisy.shape[1:3]) > limit_px:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 byte')
    return noisy

  return network


def test_smaller_tiles_are_tried_where_memory_does_not_do(monkeypatch):
  sizes = []
  instance = denoiser()
  monkeypatch.setattr(instance, '_fitting_sides', (512, 256, 192))
  monkeypatch.setattr(instance, '_network', out_of_memory_above(350, sizes))
  noisy = picture(700, 100, 3)
  np.testing.assert_allclose(instance(noisy), noisy, atol=1e-6)
  assert [max(size) for size in sizes[:3]] == [700, 416, 320]


@pytest.mark.parametrize(
  ('options', 'error'), [({}, '104x320'), ({'tile_px': 256}, '104x240'), ({'tile_px': 'whole'}, '104x704')]
)
def test_memory_that_never_does_is_an_error(monkeypatch, options, error):
  instance = denoiser(**options)
  monkeypatch.setattr(instance, '_fitting_sides', (256, 192))
  monkeypatch.setattr(instance, '_network', out_of_memory_above(0, []))
  with pytest.raises(
    ValueError, match=f'100x700 pixels in tiles of {error}, .*RESOURCE_EXHAUSTED.*want smaller'
  ):
    instance(picture(700, 100, 3))


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (picture(8, 8, 4), r'got shape \(8, 8, 4\), want .* grey or of 3 channels'),
    (picture(8), r'got shape \(8,\)'),
    (picture(1, 1, 8, 8, 3), r'got shape \(1, 1, 8, 8, 3\)'),
    (picture(0, 8, 3), r'got shape \(0, 8, 3\), want .* at least one pixel'),
    (picture(2, 8, 0, 3), r'got shape \(2, 8, 0, 3\)'),
    (np.zeros((8, 8), np.int32), 'got int32, want an array of uint8, uint16 or floats'),
    (np.zeros((8, 8), bool), 'got bool, want an array'),
    (np.zeros((8, 8), complex), 'got complex128, want an array'),
    ([[0.5]], 'got list, want an array'),
    (types.SimpleNamespace(dtype='torch.float32', shape=(8, 8)), 'got SimpleNamespace, want an array'),
    (picture(8, 8, 3) * 255, r'got floats from .* to 25\d.*, want \[0, 1\] and noise: divide'),
    (np.full((8, 8), np.nan, np.float32), 'got values that are no numbers'),
    (np.full((8, 8), np.inf), 'got values that are no numbers'),
    (np.full((8, 8), np.nan, jnp.bfloat16), 'got values that are no numbers'),
    (np.full((8, 8), 1e300), r'got floats from 1e\+300 to 1e\+300, want'),
  ],
)
def test_what_is_no_image_is_refused(shared, image, message):
  with pytest.raises(ValueError, match=message):
    shared(image)


def test_values_are_looked_at_before_any_work(monkeypatch, shared):
  seen, noisy = [], picture(2, 300, 90, 3)
  noisy[-1, -1, -1, -1] = np.nan
  monkeypatch.setattr(shared, '_network', lambda tile: seen.append(tile.shape) or tile)
  with pytest.raises(ValueError, match='got values that are no numbers'):
    shared(noisy)
  assert seen == []


def test_colour_is_refused_by_a_network_for_grey():
  with pytest.raises(ValueError, match=r'got shape \(8, 8, 3\), want .*, grey$'):
    denoiser(GRAY)(picture(8, 8, 3))


def test_a_traced_array_is_refused(shared):
  with pytest.raises(ValueError, match=r'got a traced array, want numbers: inside jit call `model\.apply`'):
    jax.jit(shared)(picture(8, 8, 3))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tile_px': 'all'}, "tile_px: got 'all', want pixels, 'auto' or 'whole'"),
    ({'tile_px': 100}, 'tile_px: got 100, want a positive multiple of 8'),
    ({'tile_px': 64, 'overlap_px': 64}, 'overlap_px: got 64 for tiles of 64'),
    ({'overlap_px': 1496}, 'overlap_px: got 1496 for tiles of 1504'),
    ({'overlap_px': -1}, 'overlap_px: got -1'),
    ({'overlap_px': 80.5}, 'overlap_px: got 80.5, want whole pixels'),
  ],
)
def test_options_of_no_use_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    denoiser(**options)


def test_tiles_of_its_own_choice_are_flat_on_a_processor_only():
  def tile_size(**options):
    instance = denoiser(**options)
    return instance._plan(3000, 4000, 1504).tile_size

  assert tile_size() == (840, 2064)
  # Half of the ensemble's images stand on their side.
  assert tile_size(ensemble=True) == (1560, 1416)
  assert tile_size(tile_px=1504) == (1080, 1416)
  elsewhere = denoiser()
  elsewhere._device = types.SimpleNamespace(platform='gpu')
  assert elsewhere._plan(3000, 4000, 1504).tile_size == (1560, 1416)
