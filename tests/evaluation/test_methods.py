"""Denoisers behind one interface: known ones, and SADNet on several devices and with padding."""

import importlib.metadata
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.data.noise import add_benchmark_noise
from sadnet_jax.evaluation.methods import BM3D, COARSE_PX, MAX_SIZES, Noisy, SADNetMethod
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.nn.sadnet import SADNet
from tests.support import small_networks

MODEL = SADNet(**small_networks.SMALL)


def _images(*sizes, channels=3):
  return [small_networks.image(i, size=size, channels=channels)[0] for i, size in enumerate(sizes)]


class _Shifts:
  """A network that adds to each pixel its weight, and the pixel below and right of it.

  That takes no time to compile, and shows where an image went and how it was extended.
  """

  channels = 3

  def __init__(self):
    self.compiled_for = []

  def apply(self, variables, noisy):
    self.compiled_for.append(noisy.shape[1:3])
    return noisy + variables['params']['shift'] + jnp.roll(noisy, (-1, -1), axis=(1, 2))


def _shifts(**options):
  """The method with `_Shifts` as its network, and that network."""
  network = _Shifts()
  options = {'devices': jax.local_devices()[:1], **options}
  return SADNetMethod(network, {'shift': np.float32(0.25)}, {'step': 7}, **options), network


def _shifted(image, size):
  """What `_Shifts` makes of an image that is extended to a size by reflection."""
  rows, columns = size[0] - image.shape[0], size[1] - image.shape[1]
  extended = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode='reflect')
  output = extended + np.float32(0.25) + np.roll(extended, (-1, -1), axis=(0, 1))
  return output[: image.shape[0], : image.shape[1]]


@pytest.fixture(scope='module')
def variables():
  return small_networks.random_variables(MODEL)


def test_noisy_leaves_images_as_they_are():
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
  # Two flat halves, not the same in each channel.
  clean = np.stack([np.where(rows + columns < 32, 0.3 + 0.1 * c, 0.7) for c in range(channels)], axis=-1)
  noisy = add_benchmark_noise(clean, 25)
  (denoised,) = BM3D().denoise([noisy], 25.0)
  assert denoised.shape == noisy.shape
  assert denoised.dtype == np.float32
  assert psnr(denoised, clean) > psnr(noisy, clean) + 8
  assert BM3D().describe() == {'name': 'bm3d', 'version': importlib.metadata.version('bm3d')}


def test_bm3d_is_told_the_sigma():
  pytest.importorskip('bm3d')
  (noisy,) = _images((16, 16), channels=1)
  weak, strong = (BM3D().denoise([noisy], sigma_255)[0] for sigma_255 in (1.0, 100.0))
  # What it takes for less noise than there is stays.
  assert np.abs(weak - noisy).max() < 0.05
  assert strong.std() < 0.5 * noisy.std()


def test_bm3d_refuses_what_it_cannot_denoise():
  pytest.importorskip('bm3d')
  with pytest.raises(
    ValueError, match=r'bm3d: got real noise, want noise of a known sigma, which BM3D is told'
  ):
    BM3D().denoise(_images((16, 16)), None)
  # The package ends the process where both sides are 8.
  for size in ((8, 8), (7, 20), (20, 8)):
    with pytest.raises(
      ValueError, match=rf'bm3d: got an image of {size[1]}x{size[0]} pixels, want sides of at'
    ):
      BM3D().denoise(_images(size), 25.0)


def test_bm3d_that_is_not_installed_is_asked_for(monkeypatch):
  monkeypatch.setitem(sys.modules, 'bm3d', None)
  with pytest.raises(ValueError, match=r"--methods: got bm3d without its package .*sadnet-jax\[bm3d\]'"):
    BM3D()


def test_bm3d_whose_library_does_not_load_is_told(monkeypatch, tmp_path):
  (tmp_path / 'bm3d.py').write_text("raise OSError('libbm4d.so: wrong ELF class')")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'bm3d', raising=False)
  with pytest.raises(
    ValueError, match=r'got bm3d, whose library does not load \(libbm4d.so: wrong .* want a'
  ):
    BM3D()


def test_bm3d_is_imported_when_it_is_used():
  code = 'import sys; from sadnet_jax.evaluation import methods; print("bm3d" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == 'False\n'


@pytest.mark.parametrize('size', [(16, 24), (13, 21), (3, 1)])
def test_sadnet_is_the_network(variables, size):
  image = _images(size)[0]
  method = SADNetMethod(MODEL, variables['params'], {}, devices=jax.local_devices()[:1])
  (denoised,) = method.denoise([image], None)
  expected = small_networks.apply(MODEL, variables, image[None])[0]
  assert denoised.shape == image.shape
  np.testing.assert_allclose(denoised, expected, atol=2e-5)
  # It estimates the noise itself.
  np.testing.assert_array_equal(method.denoise([image], 50.0)[0], denoised)


def test_sadnet_denoises_grey_images():
  model = SADNet(channels=1, **small_networks.SMALL)
  variables = small_networks.random_variables(model)
  (image,) = _images((13, 21), channels=1)
  method = SADNetMethod(model, variables['params'], {}, devices=jax.local_devices()[:1])
  expected = small_networks.apply(model, variables, image[None])[0]
  np.testing.assert_allclose(method.denoise([image], None)[0], expected, atol=2e-5)


def test_sadnet_on_several_devices_is_sadnet_on_one(variables):
  # Of one group, and not all of one size; the last batch is not full.
  images = _images(*[(13, 21), (16, 24), (9, 17)] * 3, (16, 20))
  one = SADNetMethod(MODEL, variables['params'], {}, devices=jax.local_devices()[:1])
  many = SADNetMethod(MODEL, variables['params'], {}, devices=jax.local_devices()[1:4], batch_size=2)
  assert (one.batch, many.batch) == (1, 6)
  expected = [one.denoise([image], None)[0] for image in images]
  denoised = [*many.denoise(images[:6], None), *many.denoise(images[6:], None)]
  for out, want, image in zip(denoised, expected, images, strict=True):
    assert out.shape == image.shape
    np.testing.assert_allclose(out, want, atol=2e-5)


@pytest.mark.parametrize(('devices', 'batch_size'), [(8, 1), (8, 3), (1, 4), (3, 2)])
def test_every_image_of_a_batch_comes_back_in_its_place(devices, batch_size):
  method, network = _shifts(devices=jax.local_devices()[:devices], batch_size=batch_size)
  assert method.batch == devices * batch_size
  for count in (1, method.batch - 1, method.batch):
    images = _images(*[(9 + i % 4, 17 + i % 3) for i in range(count)])
    denoised = method.denoise(images, None)
    assert len(denoised) == count
    for image, out in zip(images, denoised, strict=True):
      np.testing.assert_array_equal(out, _shifted(image, (16, 24)))
  # Once for all of them.
  assert network.compiled_for == [(16, 24)]


def test_few_sizes_are_extended_to_multiples_of_8_and_many_to_coarser_ones():
  method, network = _shifts()
  # As many as are compiled for; those of equal extension are one.
  few = [(8 * i, 16) for i in range(1, MAX_SIZES + 1)] + [(8 * i - 3, 11) for i in range(1, MAX_SIZES + 1)]
  method.plan(few)
  assert method.describe()['pad_to_px'] == 8
  assert {method.group(size) for size in few} == {(8 * i, 16) for i in range(1, MAX_SIZES + 1)}
  many = [*few, (70, 11)]
  method.plan(many)
  assert method.describe()['pad_to_px'] == COARSE_PX == 64
  groups = {method.group(size) for size in many}
  assert groups == {(64, 64), (128, 64)}
  for size, image in zip(many, _images(*many), strict=True):
    method.prepare(image.shape)
    np.testing.assert_array_equal(method.denoise([image], None)[0], _shifted(image, method.group(size)))
  assert sorted(network.compiled_for) == sorted(groups)
  # The next set starts afresh.
  method.plan([(70, 11)])
  assert method.group((70, 11)) == (72, 16)


@pytest.fixture
def programs():
  """What has been compiled since the test began."""
  compiled = []

  def listen(event, duration, **kwargs):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield compiled
  jax.monitoring.unregister_event_duration_listener(listen)


def test_what_is_compiled_before_the_clock_runs_is_not_compiled_again(programs):
  method, network = _shifts(devices=jax.local_devices()[:2])
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


@pytest.mark.parametrize('pad_to_px', [8, 16, 40])
def test_how_far_to_extend_can_be_chosen(pad_to_px):
  method, _ = _shifts(pad_to_px=pad_to_px)
  sizes = [(5 + 9 * i, 7 + 9 * i) for i in range(2 * MAX_SIZES)]
  method.plan(sizes)
  assert method.describe() == {'name': 'sadnet', 'step': 7, 'pad_to_px': pad_to_px}
  for size, image in zip(sizes[:3], _images(*sizes[:3]), strict=True):
    extended = tuple(math.ceil(side / pad_to_px) * pad_to_px for side in size)
    assert method.group(size) == extended
    np.testing.assert_array_equal(method.denoise([image], None)[0], _shifted(image, extended))


def test_a_coarser_extension_changes_the_result_only_near_the_border_it_is_at(variables):
  # The image's height is not extended, and its width by 56 pixels instead of none.
  (image,) = _images((64, 328))
  fine, coarse = (
    SADNetMethod(MODEL, variables['params'], {}, devices=jax.local_devices()[:1], pad_to_px=pad_to_px)
    for pad_to_px in (8, 64)
  )
  difference = np.abs(fine.denoise([image], None)[0] - coarse.denoise([image], None)[0])
  assert difference[:, :200].max() < 2e-5
  assert difference[:, -8:].max() > 1e-3


@pytest.mark.parametrize('pad_to_px', [0, 4, 12, -8])
def test_an_extension_that_the_network_cannot_take_is_refused(pad_to_px):
  with pytest.raises(ValueError, match=rf'--pad_to_px: got {pad_to_px}, want a multiple of 8'):
    _shifts(pad_to_px=pad_to_px)


def test_a_batch_of_no_image_is_refused():
  with pytest.raises(ValueError, match=r'--batch_size: got 0, want at least 1 image a device'):
    _shifts(batch_size=0)


def test_sadnet_refuses_images_of_other_channels(variables):
  method = SADNetMethod(MODEL, variables['params'], {}, devices=jax.local_devices()[:1])
  method.check(3, real=True)
  with pytest.raises(ValueError, match=r'sadnet: got images of 1 channel\(s\) for a network of 3, want'):
    method.check(1, real=False)
  with pytest.raises(ValueError, match=r'noisy: got shape .* want \[N, H, W, 3\]'):
    method.denoise(_images((16, 24), channels=1), None)


def test_what_the_device_has_no_memory_for_is_an_error_of_the_image():
  def fail(variables, noisy):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of\nmemory')

  method, network = _shifts()
  network.apply = fail
  with pytest.raises(
    ValueError, match=r'sadnet: got images of 24x16 pixels that the device fails at \(RESOURCE.*out of memory'
  ):
    method.denoise(_images((16, 24)), None)
