"""PSNR and SSIM: parity with scikit-image and SciPy in float64, stored results, and the checks of arguments.

Sides are compiled for in multiples of 32 pixels: images here are small, so that few programs are compiled.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sadnet_jax.evaluation.metrics import psnr, ssim_matlab, ssim_wang
from sadnet_jax.images.arrays import read_image

SSIMS = pytest.mark.parametrize('ssim', [ssim_wang, ssim_matlab])
# A float32 below 1 is rounded by up to 3e-8, and SSIM is computed from several of them.
SSIM_TOLERANCE = 4e-7
STORED = pytest.mark.parametrize(('name', 'channels'), [('101085', 3), ('kodim03', 3), ('test001', 1)])


def _pair(shape, seed=0):
  random = np.random.default_rng(seed)
  reference = random.random(shape)
  return np.clip(reference + random.normal(0, 0.1, shape), 0, 1), reference


def _stored(golden, name, channels):
  noisy, clean = (
    read_image(golden / f'metrics_{name}_{kind}.png', channels) / 255 for kind in ('noisy', 'clean')
  )
  return noisy, clean, json.loads((golden / 'metrics.json').read_text())[name]


def _ssim_of_volume(image, reference, axes=(0, 1, 2)):
  """The textbook formula in float64, with SciPy's Gaussian and repeated edges."""
  x, y = image.astype(np.float64), reference.astype(np.float64)

  def blur(values):
    return gaussian_filter(values, sigma=1.5, mode='nearest', radius=5, axes=axes)

  mean_x, mean_y = blur(x), blur(y)
  variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
  covariance = blur(x * y) - mean_x * mean_y
  over = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
  return np.mean(over / ((mean_x**2 + mean_y**2 + 0.01**2) * (variance_x + variance_y + 0.03**2)))


def _ssim_of_windows(image, reference):
  """The SSIM of scikit-image over the windows inside the image."""
  options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'data_range': 1}
  image, reference = image.astype(np.float64), reference.astype(np.float64)
  _, values = structural_similarity(image, reference, channel_axis=-1, full=True, **options)
  return values[5:-5, 5:-5].mean()


INDEPENDENT = {ssim_wang: _ssim_of_windows, ssim_matlab: _ssim_of_volume}


def test_psnr_equals_scikit_image_on_an_odd_size():
  image, reference = _pair((31, 37, 3))
  assert psnr(image, reference) == pytest.approx(
    peak_signal_noise_ratio(reference, image, data_range=1), abs=1e-10
  )


def test_psnr_of_a_batch_is_that_of_its_images():
  image, reference = _pair((3, 9, 7, 1))
  np.testing.assert_allclose(
    psnr(image, reference), [psnr(i, r) for i, r in zip(image, reference, strict=True)]
  )


def test_psnr_of_a_known_error():
  # An error of 0.1 everywhere: 10 * log10(1 / 0.01).
  assert psnr(np.full((4, 4, 1), 0.6), np.full((4, 4, 1), 0.5)) == pytest.approx(20)


def test_psnr_of_equal_images_is_infinite():
  assert psnr(np.ones((2, 2, 1)), np.ones((2, 2, 1))) == np.inf


def test_psnr_is_computed_in_float64():
  # In float32 the square of an error this small would be lost beside 1.
  reference = np.zeros((1, 2, 1), np.float32)
  image = np.array([1, 1e-4], np.float32).reshape(1, 2, 1)
  expected = -10 * np.log10((1 + 1e-8) / 2)
  assert psnr(image, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('metric', [psnr, ssim_wang, ssim_matlab])
def test_images_on_the_scale_of_8_bits_are_refused(metric):
  image, reference = (np.round(255 * x) for x in _pair((16, 16, 3)))
  with pytest.raises(
    ValueError, match=r'reference must be in \[0, 1\], but has values up to 25\d; divide both'
  ):
    metric(image.astype(np.float32), reference.astype(np.float32))
  with pytest.raises(ValueError, match=r'floating point in \[0, 1\], not uint8 and uint8 \(divide'):
    metric(image.astype(np.uint8), reference.astype(np.uint8))
  # Noise may exceed the range by far.
  assert np.isfinite(metric(image / 20, reference / 255))


def test_psnr_refuses_shapes_that_differ():
  with pytest.raises(
    ValueError, match=r'the same shape \[\.\.\., H, W, C\], not \(4, 4, 3\) and \(4, 4, 1\)'
  ):
    psnr(np.zeros((4, 4, 3)), np.zeros((4, 4, 1)))


@STORED
def test_psnr_equals_the_stored_results(golden, name, channels):
  noisy, clean, stored = _stored(golden, name, channels)
  assert psnr(noisy, clean) == pytest.approx(stored['psnr_uint8'], abs=1e-12)
  # This value was computed from float32 images.
  assert psnr(noisy, clean) == pytest.approx(stored['psnr_float'], abs=2e-7)


@STORED
def test_ssim_equals_the_stored_results(golden, name, channels):
  noisy, clean, stored = _stored(golden, name, channels)
  # Both sides are rounded to float32.
  assert ssim_wang(noisy, clean) == pytest.approx(stored['ssim_per_channel_mean'], abs=SSIM_TOLERANCE)
  assert ssim_matlab(noisy, clean) == pytest.approx(stored['ssim_matlab_volume_scipy'], abs=SSIM_TOLERANCE)
  # This value was computed by a float32 convolution and carries its rounding.
  assert ssim_matlab(noisy, clean) == pytest.approx(stored['ssim_matlab_volume'], abs=6e-5)


@SSIMS
@pytest.mark.parametrize('shape', [(21, 17, 3), (21, 11, 1), (12, 19, 4)])
def test_ssim_equals_independent_implementations(ssim, shape):
  image, reference = _pair(shape)
  assert ssim(image, reference) == pytest.approx(INDEPENDENT[ssim](image, reference), abs=SSIM_TOLERANCE)


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 1, 3), (3, 5, 3), (4, 20, 1), (10, 10, 3)])
def test_ssim_matlab_takes_images_smaller_than_its_window(shape):
  image, reference = _pair(shape)
  assert ssim_matlab(image, reference) == pytest.approx(_ssim_of_volume(image, reference), abs=SSIM_TOLERANCE)


def test_ssim_matlab_of_one_channel_is_that_of_the_plane():
  image, reference = _pair((21, 17, 1))
  plane = _ssim_of_volume(image, reference, axes=(0, 1))
  assert ssim_matlab(image, reference) == pytest.approx(plane, abs=SSIM_TOLERANCE)


def test_ssim_wang_of_a_single_window_by_hand():
  image, reference = _pair((11, 11, 1))
  rows, columns = np.mgrid[-5:6, -5:6]
  weights = np.exp(-(rows**2 + columns**2) / (2 * 1.5**2)).ravel()
  x, y = image.ravel(), reference.ravel()
  mean_x, mean_y = np.average(x, weights=weights), np.average(y, weights=weights)
  (variance_x, covariance), (_, variance_y) = np.cov(x, y, aweights=weights, ddof=0)
  luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
  structure = (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4)
  assert ssim_wang(image, reference) == pytest.approx(luminance * structure, abs=SSIM_TOLERANCE)


@SSIMS
def test_ssim_of_flat_images_is_the_luminance_term(ssim):
  image, reference = np.full((13, 12, 3), 0.75), np.full((13, 12, 3), 0.25)
  expected = (2 * 0.75 * 0.25 + 1e-4) / (0.75**2 + 0.25**2 + 1e-4)
  assert ssim(image, reference) == pytest.approx(expected, abs=SSIM_TOLERANCE)


@SSIMS
@pytest.mark.parametrize('sigma_255', [0.5, 2, 8, 50])
@pytest.mark.parametrize('kind', ['texture', 'flat', 'black', 'white', 'dark', 'bright', 'edge'])
def test_ssim_keeps_its_digits_in_float32(ssim, kind, sigma_255):
  # Computed as E[x^2] - E[x]^2 in float32, a dozen of these fail.
  random = np.random.default_rng(0)
  shape = (37, 41, 3)
  reference = {
    'texture': random.random(shape),
    'flat': np.full(shape, 0.73),
    'black': np.zeros(shape),
    'white': np.ones(shape),
    'dark': 0.02 * random.random(shape),
    'bright': 1 - 0.02 * random.random(shape),
    'edge': np.broadcast_to((np.arange(41) > 20)[:, None], shape),
  }[kind].astype(np.float32)
  image = (reference + random.normal(0, sigma_255 / 255, shape)).astype(np.float32)
  assert ssim(image, reference) == pytest.approx(INDEPENDENT[ssim](image, reference), abs=SSIM_TOLERANCE)


@SSIMS
def test_ssim_of_equal_images_is_exactly_1(ssim):
  image = _pair((15, 16, 3))[0]
  for same in (image, np.zeros((15, 16, 3)), np.ones((15, 16, 3))):
    assert ssim(same, same) == 1


@SSIMS
def test_ssim_of_a_negative_is_negative(ssim):
  reference = _pair((23, 21, 3))[1]
  value = ssim(1 - reference, reference)
  assert value == pytest.approx(INDEPENDENT[ssim](1 - reference, reference), abs=SSIM_TOLERANCE)
  assert value < -0.8


@SSIMS
def test_ssim_is_symmetric(ssim):
  image, reference = _pair((15, 16, 3))
  assert ssim(image, reference) == pytest.approx(float(ssim(reference, image)), abs=1e-7)
  assert ssim(image, reference) < 0.99


@SSIMS
def test_ssim_of_a_batch_is_that_of_its_images(ssim):
  images, references = _pair((2, 2, 13, 14, 3))
  values = ssim(images, references)
  assert values.shape == (2, 2)
  for index in np.ndindex(2, 2):
    single = float(ssim(images[index], references[index]))
    assert values[index] == pytest.approx(single, abs=SSIM_TOLERANCE)
  assert len(np.unique(values)) == values.size


@SSIMS
@pytest.mark.parametrize(('dtype', 'x64'), [(np.float32, False), (np.float64, True)])
def test_ssim_is_a_float32_of_the_device(ssim, dtype, x64):
  image, reference = (x.astype(dtype) for x in _pair((12, 13, 1)))
  with jax.enable_x64(x64):
    value = ssim(image, reference)
  assert isinstance(value, jax.Array)
  assert value.dtype == np.float32
  assert value.shape == ()


@SSIMS
def test_ssim_is_the_same_inside_a_compiled_function(ssim):
  image, reference = (jnp.asarray(x, jnp.float32) for x in _pair((12, 13, 3)))
  expected = pytest.approx(float(ssim(image, reference)), abs=SSIM_TOLERANCE)
  assert jax.jit(ssim)(image, reference) == expected
  # With a reference that is no argument, too.
  assert jax.jit(lambda image: ssim(image, reference))(image) == expected


@pytest.mark.parametrize('metric', [psnr, ssim_wang, ssim_matlab])
def test_a_large_image_is_measured_in_strips(metric, monkeypatch):
  image, reference = _pair((2, 29, 13, 3))
  expected = metric(image, reference)
  # Four strips of windows, the last with fewer rows.
  monkeypatch.setattr('sadnet_jax.evaluation.metrics.STRIP_PX', 2 * 13 * 8)
  np.testing.assert_allclose(metric(image, reference), expected, atol=SSIM_TOLERANCE)


@SSIMS
def test_ssim_compiles_once_for_sizes_up_to_a_multiple_of_32(ssim):
  compiled = []

  def count(event, seconds, **_):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(seconds)

  pairs = [_pair((17, 21, 2)), _pair((18, 20, 2))]
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    ssim(*pairs[0])
    first = len(compiled)
    ssim(*pairs[1])
  finally:
    jax.monitoring.unregister_event_duration_listener(count)
  assert first > 0
  assert len(compiled) == first


@SSIMS
def test_ssim_propagates_nan(ssim):
  image, reference = _pair((2, 12, 13, 3))
  image[0, 6, 6, 1] = np.nan
  np.testing.assert_array_equal(np.isnan(ssim(image, reference)), [True, False])


@SSIMS
def test_ssim_refuses_shapes_that_differ_or_lack_an_axis(ssim):
  with pytest.raises(
    ValueError, match=r'same shape \[\.\.\., H, W, C\], not \(12, 12, 3\) and \(12, 12, 1\)'
  ):
    ssim(np.zeros((12, 12, 3)), np.zeros((12, 12, 1)))
  with pytest.raises(ValueError, match=r'same shape \[\.\.\., H, W, C\], not \(12, 12\)'):
    ssim(np.zeros((12, 12)), np.zeros((12, 12)))


@SSIMS
def test_ssim_refuses_8_bit_images(ssim):
  image = np.zeros((12, 12, 3))
  with pytest.raises(ValueError, match=r'floating point in \[0, 1\], not float64 and uint8 \(divide'):
    ssim(image, image.astype(np.uint8))


@pytest.mark.parametrize('shape', [(10, 40, 3), (40, 10, 3)])
def test_ssim_wang_refuses_images_smaller_than_its_window(shape):
  with pytest.raises(ValueError, match=rf'at least 11x11 .* not {shape[1]}x{shape[0]} .*ssim_matlab accepts'):
    ssim_wang(np.zeros(shape), np.zeros(shape))
