"""Evaluation protocols: the noise that is added, what is cropped, and what is measured."""

import math

import numpy as np
import pytest

from sadnet_jax.evaluation.image_sets import open_set
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.evaluation.protocols import (
  AUTHORS,
  CLIPPED8,
  FLOAT,
  PROTOCOLS,
  ROUNDED,
  UNCLIPPED,
  protocol_for_training,
)
from tests.support.real_data import DATA, needs

# Known PSNR of the noisy images in dB, by sigma on the scale of 8-bit images: (not clipped, clipped), with
# numpy.random.seed(0) before every image.
NOISY_PSNR = {
  'cbsd68': {
    15: (24.619, 24.845),
    25: (20.182, 20.543),
    30: (18.598, 19.041),
    50: (14.161, 15.004),
    70: (11.239, 12.579),
  },
  'kodak24': {
    15: (24.613, 24.758),
    25: (20.176, 20.438),
    30: (18.592, 18.927),
    50: (14.155, 14.866),
    70: (11.232, 12.452),
  },
  'bsd68': {
    15: (24.631, 24.815),
    25: (20.194, 20.499),
    30: (18.610, 18.988),
    50: (14.173, 14.929),
    70: (11.251, 12.510),
  },
}
SIZES = {
  'cbsd68': [(321, 481, 3), (481, 321, 3)],
  'kodak24': [(500, 500, 3)],
  'bsd68': [(321, 481, 1), (481, 321, 1)],
}


def _image(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _noisy_psnr(protocol, clean, sigma_255):
  return float(psnr(*protocol.prepare(None, clean, sigma_255)))


@pytest.mark.parametrize('name', NOISY_PSNR)
@pytest.mark.parametrize('sigma_255', [15, 25, 30, 50, 70])
def test_unclipped_noise_has_the_known_psnr_on_any_image_of_the_sizes_of_a_set(name, sigma_255):
  # Unclipped noise depends on the seed and the number of values only, not on the content of the image.
  # One image stands for a whole set.
  for shape in SIZES[name]:
    noisy_psnr = _noisy_psnr(UNCLIPPED, _image(*shape), sigma_255)
    assert noisy_psnr == pytest.approx(NOISY_PSNR[name][sigma_255][0], abs=0.0006)


@needs('test/CBSD68', 'test/Kodak24', 'test/BSD68')
@pytest.mark.parametrize(('name', 'sigma_255'), [('cbsd68', 50), ('kodak24', 70), ('bsd68', 30)])
def test_the_noisy_images_of_the_real_sets_have_the_known_psnr(name, sigma_255):
  image_set = open_set(name, DATA)
  clean = [image.read(image_set.channels)[1] for image in image_set.images]
  unclipped, clipped = (
    np.mean([_noisy_psnr(protocol, image, sigma_255) for image in clean])
    for protocol in (UNCLIPPED, CLIPPED8)
  )
  assert unclipped == pytest.approx(NOISY_PSNR[name][sigma_255][0], abs=0.0006)
  # The table has noise that is clipped but not rounded, which changes at most 0.002 dB.
  assert clipped == pytest.approx(NOISY_PSNR[name][sigma_255][1], abs=0.003)


def _moments_of_the_error(level, sigma_255):
  """Mean of the squared error and of its square, when noise is added to a level, clipped and rounded."""
  below = [0.5 * math.erfc((level - j - 0.5) / (sigma_255 * math.sqrt(2))) for j in range(255)]
  probability = np.diff([0, *below, 1])
  error = (np.arange(256) - level) / 255
  return probability @ error**2, probability @ error**4


@pytest.mark.parametrize('protocol', [CLIPPED8, AUTHORS])
@pytest.mark.parametrize('level', [0, 3, 128, 254, 255])
# With the smallest sigma, rounding is 8% of the mean square, and flooring would add a quarter.
@pytest.mark.parametrize('sigma_255', [1, 15, 50, 70])
def test_clipped_and_rounded_noise_has_the_expected_mean_square(protocol, level, sigma_255):
  square, fourth = _moments_of_the_error(level, sigma_255)
  noisy, clean = protocol.prepare(None, np.full((320, 480, 3), level, np.uint8), sigma_255)
  standard_error = math.sqrt((fourth - square**2) / noisy.size)
  assert np.mean((noisy.astype(np.float64) - clean) ** 2) == pytest.approx(square, abs=4 * standard_error)


@pytest.mark.parametrize('protocol', [CLIPPED8, AUTHORS])
def test_clipped_noise_is_the_unclipped_noise_in_256_levels(protocol):
  clean = _image(16, 24, 3)
  levels = protocol.prepare(None, clean, 50)[0] * 255
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
  assert (levels.min(), levels.max()) == (0, 255)
  free = UNCLIPPED.prepare(None, clean, 50)[0] * 255
  assert np.abs(levels - np.clip(free, 0, 255)).max() < 0.5 + 1e-4


@pytest.mark.parametrize('protocol', [UNCLIPPED, CLIPPED8, ROUNDED, FLOAT])
def test_other_protocols_keep_the_whole_image(protocol):
  clean = _image(21, 35, 3)
  for real_noise in (None, _image(21, 35, 3, seed=1)):
    noisy, reference = protocol.prepare(real_noise, clean, 50)
    assert noisy.shape == reference.shape == (21, 35, 3)
    assert noisy.dtype == reference.dtype == np.float32
    np.testing.assert_array_equal(reference, clean / np.float32(255))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(('size', 'cropped'), [((21, 35), (16, 32)), ((8, 15), (8, 8)), ((16, 24), (16, 24))])
def test_the_authors_protocol_adds_noise_to_the_whole_image_and_keeps_the_top_left(channels, size, cropped):
  clean = _image(*size, channels)
  np.random.seed(0)
  noise = np.random.normal(0, 30, clean.shape)
  expected = np.round(np.clip(clean + noise, 0, 255))[: cropped[0], : cropped[1]]
  noisy, reference = AUTHORS.prepare(None, clean, 30)
  np.testing.assert_allclose(noisy * 255, expected, atol=1e-4)
  np.testing.assert_allclose(reference * 255, clean[: cropped[0], : cropped[1]], atol=1e-4)
  assert noisy.dtype == reference.dtype == np.float32


@pytest.mark.parametrize('size', [(7, 20), (20, 7), (1, 1)])
def test_an_image_smaller_than_the_crop_is_refused(size):
  message = rf'protocol authors crops .* at least 8 pixels, not an image of {size[1]}x{size[0]}'
  with pytest.raises(ValueError, match=message):
    AUTHORS.prepare(None, _image(*size, 3), 50)
  assert UNCLIPPED.prepare(None, _image(*size, 3), 50)[0].shape == (*size, 3)


def test_real_noise_is_left_unchanged():
  noisy, clean = _image(9, 17, 3), _image(9, 17, 3, seed=1)
  for protocol in (ROUNDED, FLOAT):
    for sigma_255 in (None, 50.0):
      prepared = protocol.prepare(noisy, clean, sigma_255)
      np.testing.assert_array_equal(np.stack(prepared), np.stack([noisy, clean]) / np.float32(255))
  cropped = AUTHORS.prepare(noisy, clean, None)
  np.testing.assert_array_equal(np.stack(cropped), np.stack([noisy, clean])[:, :8, :16] / np.float32(255))


def test_without_a_noisy_image_sigma_is_required():
  with pytest.raises(ValueError, match='neither a noisy image nor a sigma_255'):
    UNCLIPPED.prepare(None, _image(9, 17, 3), None)


@pytest.mark.parametrize('protocol', [UNCLIPPED, CLIPPED8, ROUNDED])
def test_output_is_clipped_and_rounded_to_the_nearest_level(protocol):
  levels = np.array([-30, -0.2, 0.4, 0.6, 99.51, 100.49, 254.4, 254.6, 300], np.float32).reshape(3, 3, 1)
  measured = protocol.finish(levels / 255).ravel() * 255
  np.testing.assert_allclose(measured, [0, 0, 0, 1, 100, 100, 254, 255, 255], atol=1e-4)


@pytest.mark.parametrize('protocol', [AUTHORS, FLOAT])
def test_output_is_clipped_and_not_rounded(protocol):
  output = np.array([-0.3, 0.0, 0.1234567, 0.9999, 1.2], np.float32).reshape(1, 5, 1)
  np.testing.assert_array_equal(
    protocol.finish(output).ravel(), np.array([0, 0, 0.1234567, 0.9999, 1], np.float32)
  )


@pytest.mark.parametrize(('clip', 'name'), [(0.0, 'unclipped'), (0.5, 'unclipped'), (1.0, 'clipped8')])
def test_the_protocol_like_a_training(clip, name):
  assert PROTOCOLS[name] is protocol_for_training(clip)
