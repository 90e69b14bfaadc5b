"""Denoisers behind one interface: the baselines, and SADNet with padding, in batches, on several devices."""

import importlib.metadata
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.data.noise import add_benchmark_noise
from sadnet_jax.denoise import tile_memory
from sadnet_jax.evaluation.methods import BM3D, MAX_SIZES, Noisy, SADNetMethod, denoise_batch
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.nn.sadnet import SADNet
from tests.support import small_networks

MODEL = SADNet(**small_networks.SMALL)


def _images(*sizes, channels=3):
  return [small_networks.image(i, size=size, channels=channels)[0] for i, size in enumerate(sizes)]


class _ShiftNetwork:
  """A network that adds to each pixel its weight and the pixel below and to the right.

  It compiles at once, and shows where an image went and how it was padded.
  """

  # From these follows how large a tile may be.
  use_rsab, width = False, 8

  def __init__(self, channels):
    self.channels = channels
    self.compiled_for = []

  def apply(self, variables, noisy, inside=None):
    self.compiled_for.append(noisy.shape[1:3])
    rows, columns = inside or noisy.shape[1:3]
    # The pixel below and to the right; after the last one comes the first.
    below = noisy[:, (jnp.arange(noisy.shape[1]) + 1) % rows]
    return noisy + variables['params']['shift'] + below[:, :, (jnp.arange(noisy.shape[2]) + 1) % columns]


def _shift_method(channels=3, **options):
  """The method with `_ShiftNetwork` as its network, and that network."""
  network = _ShiftNetwork(channels)
  options = {'devices': jax.local_devices()[:1], **options}
  return SADNetMethod(network, {'shift': np.float32(0.25)}, {'step': 7}, **options), network


def _shifted(image, size):
  """The output of `_ShiftNetwork` for an image that is padded to a size by reflection."""
  rows, columns = size[0] - image.shape[0], size[1] - image.shape[1]
  padded = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode='reflect')
  output = padded + np.float32(0.25) + np.roll(padded, (-1, -1), axis=(0, 1))
  return output[: image.shape[0], : image.shape[1]]


class _Returns(Noisy):
  name = 'mine'

  def __init__(self, function):
    self.function = function

  def denoise(self, noisy, sigma_255):
    return self.function(noisy)


def test_a_method_may_change_what_it_receives():
  images = _images((9, 13), (9, 13))
  before = [image.copy() for image in images]
  method = _Returns(lambda noisy: [np.clip(x, 0.4, 0.6, out=x) for x in noisy])
  denoised, seconds = denoise_batch(method, images, 5.0)
  np.testing.assert_array_equal(denoised, np.clip(before, 0.4, 0.6))
  np.testing.assert_array_equal(images, before)
  assert seconds > 0


@pytest.mark.parametrize(
  ('function', 'reason'),
  [
    (lambda noisy: noisy[:1], 'returned 1 images for 2; return one for each'),
    (lambda noisy: [x[1:] for x in noisy], r'of shape \(8, 13, 3\) for an image of shape \(9, 13, 3\)'),
    (lambda noisy: [np.uint8(255 * x.clip(0, 1)) for x in noisy], r'returned uint8 .*; return floats'),
    (lambda noisy: [255 * x + 60 for x in noisy], r'is [\d.e+]+, but white is 1; .* divide it by 255'),
    (lambda noisy: [x / 0 for x in noisy], 'contains NaN or infinity; check the weights'),
  ],
)
@pytest.mark.filterwarnings('ignore:divide by zero', 'ignore:invalid value')
def test_what_a_method_may_not_return(function, reason):
  with pytest.raises(ValueError, match=f'mine: .*{reason}'):
    denoise_batch(_Returns(function), _images((9, 13), (9, 13)), None)


@pytest.fixture(scope='module')
def variables():
  return small_networks.random_variables(MODEL)


def test_noisy_returns_the_images_unchanged():
  images = _images((9, 13), (9, 13))
  method = Noisy()
  method.plan([(9, 13)])
  method.prepare((9, 13, 3))
  for sigma_255 in (None, 50.0):
    np.testing.assert_array_equal(method.denoise(images, sigma_255), images)
  assert (method.batch, method.describe()) == (1, {'name': 'noisy'})
  assert method.group((9, 13)) == method.group((20, 40))


@pytest.mark.parametrize('channels', [1, 3])
def test_bm3d_denoises_by_many_decibels(channels):
  pytest.importorskip('bm3d')
  rows, columns = np.mgrid[:32, :32]
  # Two flat halves, different in each channel.
  clean = np.stack([np.where(rows + columns < 32, 0.3 + 0.1 * c, 0.7) for c in range(channels)], axis=-1)
  noisy = add_benchmark_noise(clean, 25)
  (denoised,) = BM3D().denoise([noisy], 25.0)
  assert denoised.shape == noisy.shape
  assert denoised.dtype == np.float32
  assert psnr(denoised, clean) > psnr(noisy, clean) + 8
  assert BM3D().describe() == {'name': 'bm3d', 'version': importlib.metadata.version('bm3d')}


def test_bm3d_receives_the_sigma():
  pytest.importorskip('bm3d')
  (noisy,) = _images((16, 16), channels=1)
  weak, strong = (BM3D().denoise([noisy], sigma_255)[0] for sigma_255 in (1.0, 100.0))
  # With too small a sigma most of the noise remains.
  assert np.abs(weak - noisy).max() < 0.05
  assert strong.std() < 0.5 * noisy.std()


def test_bm3d_refuses_what_it_cannot_denoise():
  pytest.importorskip('bm3d')
  with pytest.raises(ValueError, match='bm3d needs a known sigma and cannot be evaluated on real noise'):
    BM3D().denoise(_images((16, 16)), None)
  # The package aborts the process where both sides are 8.
  for size in ((8, 8), (7, 20), (20, 8)):
    with pytest.raises(ValueError, match=rf'bm3d needs sides of at least 9 .* {size[1]}x{size[0]}'):
      BM3D().denoise(_images(size), 25.0)


def test_a_missing_or_broken_bm3d_package_is_reported(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'bm3d', None)
  with pytest.raises(
    ValueError,
    match=r"--methods: bm3d needs a package that is missing.*from the clone: pip install '\.\[bm3d\]'",
  ):
    BM3D()
  (tmp_path / 'bm3d.py').write_text("raise OSError('libbm4d.so: wrong ELF class')")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'bm3d')
  with pytest.raises(ValueError, match=r'bm3d cannot be loaded \(libbm4d.so: wrong ELF class\)'):
    BM3D()


def test_sadnet_is_the_network_on_several_devices_and_padded_sizes(variables):
  # All three are padded to 16x24; the batch of 2 devices with 2 images each is not full.
  images = _images((13, 21), (16, 24), (13, 21))
  method = SADNetMethod(MODEL, variables['params'], {}, devices=jax.local_devices()[1:3], batch_size=2)
  assert method.batch == 4
  denoised = method.denoise(images, None)
  for image, out in zip(images, denoised, strict=True):
    assert out.shape == image.shape
    np.testing.assert_allclose(out, small_networks.apply(MODEL, variables, image[None])[0], atol=2e-5)
  # It estimates the noise itself.
  np.testing.assert_array_equal(method.denoise(images, 50.0)[0], denoised[0])


@pytest.mark.parametrize(('devices', 'batch_size', 'channels'), [(8, 1, 3), (8, 3, 3), (1, 4, 1), (3, 2, 3)])
def test_every_image_of_a_batch_comes_back_in_its_place(devices, batch_size, channels):
  method, network = _shift_method(channels, devices=jax.local_devices()[:devices], batch_size=batch_size)
  assert method.batch == devices * batch_size
  for count in (1, method.batch - 1, method.batch):
    images = _images(*[(9 + i % 4, 17 + i % 3) for i in range(count)], channels=channels)
    denoised = method.denoise(images, None)
    assert len(denoised) == count
    for image, out in zip(images, denoised, strict=True):
      np.testing.assert_array_equal(out, _shifted(image, (16, 24)))
  # Compiled once for all of them.
  assert network.compiled_for == [(16, 24)]


# As many padded sizes as are compiled for; the second half of the list repeats them.
FEW = [(8 * i, 16) for i in range(1, MAX_SIZES + 1)] + [(8 * i - 3, 11) for i in range(1, MAX_SIZES + 1)]
MANY = [*FEW, (70, 11)]


def test_images_of_many_sizes_share_programs_and_are_padded_to_multiples_of_8():
  method, network = _shift_method()
  method.plan(FEW)
  assert {method.group(size) for size in FEW} == {(8 * i, 16) for i in range(1, MAX_SIZES + 1)}
  method.plan(MANY)
  assert {method.group(size) for size in MANY} == {(64, 64), (128, 64)}
  for size, image in zip(MANY, _images(*MANY), strict=True):
    method.prepare(image.shape)
    wanted = _shifted(image, (math.ceil(size[0] / 8) * 8, 16))
    np.testing.assert_array_equal(method.denoise([image], None)[0], wanted)
  assert sorted(network.compiled_for) == [(64, 64), (128, 64)]
  assert method.describe()['pad_to_px'] == 8
  # The next set is planned anew.
  method.plan([(70, 11)])
  assert method.group((70, 11)) == (72, 16)


@pytest.mark.parametrize(('devices', 'batch_size'), [(1, 1), (8, 1), (3, 2)])
def test_sizes_that_share_a_program_share_a_batch_on_devices_that_take_one_image(devices, batch_size):
  method, network = _shift_method(devices=jax.local_devices()[:devices], batch_size=batch_size)
  method.plan(MANY)
  groups = {}
  for image in _images(*MANY):
    groups.setdefault(method.group(image.shape[:2]), []).append(image)
  assert len(groups) == (2 if batch_size == 1 else MAX_SIZES + 1)
  for images in groups.values():
    for first in range(0, len(images), method.batch):
      batch = images[first : first + method.batch]
      for image, out in zip(batch, method.denoise(batch, None), strict=True):
        np.testing.assert_array_equal(out, _shifted(image, (math.ceil(image.shape[0] / 8) * 8, 16)))
  assert sorted(network.compiled_for) == [(64, 64), (128, 64)]


def test_a_result_does_not_depend_on_how_many_sizes_its_set_has(variables):
  method = SADNetMethod(MODEL, variables['params'], {}, devices=jax.local_devices()[:1])
  (image,) = _images((13, 21))
  method.plan([(13, 21)])
  (alone,) = method.denoise([image], None)
  method.plan([(13, 21), *MANY])
  (among_many,) = method.denoise([image], None)
  np.testing.assert_allclose(among_many, alone, atol=2e-5)


@pytest.fixture
def programs():
  """A list that grows with every compiled program."""
  compiled = []

  def listen(event, duration, **kwargs):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield compiled
  jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_is_compiled_while_time_is_measured(programs):
  method, network = _shift_method(devices=jax.local_devices()[:2])
  programs.clear()
  method.prepare((13, 21, 3))
  assert network.compiled_for == [(16, 24)]
  assert len(programs) == 1
  method.prepare((16, 18, 3))
  for images in (_images((13, 21), (9, 17)), _images((14, 20))):
    method.denoise(images, None)
  assert network.compiled_for == [(16, 24)]
  assert len(programs) == 1
  method.prepare((17, 21, 3))
  assert len(programs) == 2


@pytest.mark.parametrize('pad_to_px', [16, 40])
def test_the_padding_can_be_chosen(pad_to_px):
  method, _ = _shift_method(pad_to_px=pad_to_px)
  sizes = [(5 + 9 * i, 7 + 9 * i) for i in range(2 * MAX_SIZES)]
  method.plan(sizes)
  assert method.describe() == {'name': 'sadnet', 'step': 7, 'pad_to_px': pad_to_px}
  for size, image in zip(sizes[:3], _images(*sizes[:3]), strict=True):
    padded = tuple(math.ceil(side / pad_to_px) * pad_to_px for side in size)
    np.testing.assert_array_equal(method.denoise([image], None)[0], _shifted(image, padded))


def test_arguments_are_checked():
  for pad_to_px in (0, 4, 12, -8):
    with pytest.raises(ValueError, match=rf'--pad_to_px must be a positive multiple of 8, not {pad_to_px}'):
      _shift_method(pad_to_px=pad_to_px)
  with pytest.raises(ValueError, match='--batch_size must be at least 1 image per device, not 0'):
    _shift_method(batch_size=0)
  method, _ = _shift_method()
  method.check(3, real=True)
  with pytest.raises(
    ValueError, match=r'sadnet: the images have 1 channel\(s\) and the network 3; use a config'
  ):
    method.check(1, real=False)


def _out_of_memory_above(network, limit_px):
  """Makes the network fail on larger arrays, as a device does that runs out of memory."""
  apply = network.apply

  def fail(variables, noisy, inside=None):
    if noisy.shape[-3] * noisy.shape[-2] > limit_px:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of\nmemory')
    return apply(variables, noisy, inside)

  network.apply = fail


def test_running_out_of_memory_is_reported_with_the_size():
  for batch_size, advice in ((1, 'use a device with more memory'), (2, 'use a smaller --batch_size')):
    method, network = _shift_method(batch_size=batch_size)
    _out_of_memory_above(network, 0)
    with pytest.raises(ValueError, match=r'24x16 pixels.*\(RESOURCE_EXHAUSTED: out of memory\)') as caught:
      method.denoise(_images((16, 24)), None)
    assert str(caught.value).startswith('sadnet: ')
    assert str(caught.value).endswith(f'; {advice}')


@pytest.mark.parametrize('by', ['plan', 'memory'])
def test_large_images_go_by_tiles(monkeypatch, by):
  monkeypatch.setattr(tile_memory, 'AREAS_PX', (400**2, 160**2) if by == 'memory' else (160**2,))
  method, network = _shift_method()
  _out_of_memory_above(network, 160**2)
  small, large = _images((16, 24), (170, 200))
  method.plan([(16, 24), (170, 200)])
  for image in (small, large):
    method.prepare(image.shape)
    (denoised,) = method.denoise([image], None)
    # The last row and column wrap around to the first ones of the padded image or tile.
    wanted = _shifted(image, (16, 24) if image is small else (176, 200))
    np.testing.assert_allclose(denoised[:-1, :-1], wanted[:-1, :-1], atol=1e-6)
  assert method.group((16, 24)) != method.group((170, 200))
  assert method.describe()['tiled'] == ['200x170']
  assert 'tiled' not in _shift_method()[0].describe()
  method.plan([(16, 24)])
  assert 'tiled' not in method.describe()
