"""The statistics of synthesised camera noise."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sadnet_jax.data import camera_noise
from sadnet_jax.data.camera_noise import PRESETS, CameraNoise, add_camera_noise
from tests.support.fast_jit import fast_jit

# One level of noise, no colours of a camera, no mosaic: what is left is shot and read noise.
PLAIN = CameraNoise(shot=(1e-3, 1e-3), read_line=(0.0, math.log(1e-5), 0.0), gains=False, mosaic=0.0)


def _noisy(noise, clean, seed=0):
  return np.asarray(fast_jit(lambda k, c: add_camera_noise(k, c, noise))(jax.random.key(seed), clean))


def _flat(level, size=96):
  return jnp.full((size, size, 3), round(level * 255) / 255, jnp.float32)


def _correlation(residual, axis=1):
  """Of neighbours, a channel at a time."""
  centred = residual - residual.mean(axis=(0, 1))
  a, b = np.split(centred, [1], axis=axis)[1], np.split(centred, [centred.shape[axis] - 1], axis=axis)[0]
  return (a * b).mean(axis=(0, 1)) / centred.var(axis=(0, 1))


@pytest.mark.parametrize('name', PRESETS)
def test_zero_noise_gives_the_picture_back(name):
  none = dataclasses.replace(
    PRESETS[name], shot=(0.0, 0.0), relative=(0.0, 0.0), constant=(0.0, 0.0), jpeg=0.0
  )
  clean = jnp.round(jax.random.uniform(jax.random.key(1), (24, 17, 3)) * 255) / 255
  np.testing.assert_allclose(_noisy(none, clean), clean, atol=1e-6)


def test_raw_values_are_those_of_the_curves_and_gains():
  camera = dataclasses.replace(
    camera_noise.draw_camera(jax.random.key(0), has_gains=True), gains=jnp.array([2.0, 1.25, 2.5])
  )
  # The tone curve 3 x^2 - 2 x^3 makes 0.15625 of 0.25 and 0.84375 of 0.75; 0.25^2.2 and 0.75^2.2 by hand.
  # White stays white, though the gains are above 1.
  grey = jnp.array([0.15625, 0.84375, 1.0])[:, None] * jnp.ones(3)
  expected = [[0.04737 / gain for gain in (2.0, 1.25, 2.5)], [0.53104 / gain for gain in (2.0, 1.25, 2.5)]]
  np.testing.assert_allclose(
    camera_noise.unprocess(grey, camera), [*expected, [1, 1, 1]], rtol=2e-4, atol=1e-6
  )


@pytest.mark.parametrize('has_gains', [True, False])
def test_developing_is_the_inverse_of_unprocessing(has_gains):
  # Without colours that no camera sees, and without highlights.
  colours = jax.random.uniform(jax.random.key(1), (500, 3), minval=0.3, maxval=0.6)
  for seed in range(5):
    camera = camera_noise.draw_camera(jax.random.key(seed), has_gains)
    found = camera_noise.process(camera_noise.unprocess(colours, camera), camera)
    np.testing.assert_allclose(found, colours, atol=1e-5)


@pytest.mark.parametrize(('height', 'width'), [(6, 8), (7, 5)])
@pytest.mark.parametrize(('row', 'column'), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_what_a_mosaic_does_not_measure_is_the_mean_of_its_neighbours(height, width, row, column):
  raw = np.random.default_rng(0).uniform(size=(height, width, 3))

  def mirrored(index, size):
    return size - 1 - abs(size - 1 - abs(index))

  def measured_at(y, x):
    return {(True, True): 0, (False, False): 2}.get((y % 2 == row, x % 2 == column), 1)

  expected = np.empty_like(raw)
  for y, x, channel in np.ndindex(raw.shape):
    around = [(mirrored(y + i, height), mirrored(x + j, width)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    places = [(y, x)] if measured_at(y, x) == channel else [p for p in around if measured_at(*p) == channel]
    expected[y, x, channel] = np.mean([raw[place][channel] for place in places])
  found = camera_noise.demosaic(jnp.asarray(raw[None], jnp.float32), row, column)
  np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize('level', [0.3, 0.5, 0.7])
@pytest.mark.parametrize(
  ('fields', 'variance'),
  [
    ({}, lambda raw: 1e-3 * raw + 1e-5),
    (
      {'shot': (0.0, 0.0), 'relative': (0.08, 0.08), 'constant': (0.01, 0.01)},
      lambda raw: (0.08 * raw) ** 2 + 0.01**2,
    ),
  ],
)
def test_variance_follows_the_signal(level, fields, variance):
  clean = _flat(level)
  camera = camera_noise.draw_camera(jax.random.key(0), has_gains=False)
  raw = camera_noise.unprocess(clean[:1, :1], camera)
  slope = jax.grad(lambda x: camera_noise.process(x, camera)[0, 0, 0])(raw)[0, 0, 0]
  expected = float(slope) * math.sqrt(variance(float(raw[0, 0, 0])))
  residual = _noisy(dataclasses.replace(PLAIN, **fields), clean) - np.asarray(clean)
  # 27,648 samples have a standard error of 0.4%; the curve bends by some percent within the noise.
  assert residual.std() == pytest.approx(expected, rel=0.06)
  assert abs(residual.mean()) < 0.1 * expected


# The residuals of 24 pictures of middle grey, each [64, 64, 3], by each preset.
_KEYS = jax.random.split(jax.random.key(0), 24)
_MIDDLE = 128 / 255


def _residuals(noise):
  add = fast_jit(jax.vmap(lambda key: add_camera_noise(key, _flat(_MIDDLE, 64), noise)))
  return np.asarray(add(_KEYS)) - np.float32(_MIDDLE)


@pytest.mark.parametrize('name', PRESETS)
def test_the_variance_of_each_preset_is_that_of_its_levels_through_the_pipeline(name):
  noise = dataclasses.replace(PRESETS[name], mosaic=0.0, grain=0.0, jpeg=0.0)

  def expected(key):
    """To first order: the variances of the raw channels, which are independent, through the derivative."""
    camera_key, levels_key, *_ = jax.random.split(key, 6)
    camera = camera_noise.draw_camera(camera_key, noise.gains)
    raw = camera_noise.unprocess(jnp.full(3, _MIDDLE), camera)
    slopes = jax.jacobian(lambda x: camera_noise.process(x, camera))(raw)
    return jnp.sqrt(slopes**2 @ camera_noise.draw_levels(levels_key, noise).variance(raw))

  wanted = np.asarray(fast_jit(jax.vmap(expected))(_KEYS))
  # Rounding to 8 bits hides weaker noise; the curves bend within stronger noise.
  usable = (wanted > 1 / 255) & (wanted < 12 / 255)
  assert usable.sum() >= 6
  found = _residuals(noise).std(axis=(1, 2))
  # The standard error of 4,096 samples is 1.1%.
  np.testing.assert_allclose(found[usable], wanted[usable], rtol=0.06)


@pytest.mark.parametrize(
  ('name', 'red', 'green', 'red_to_green', 'blue_to_green'),
  [
    # Correlations at one pixel's distance, least and greatest; ratios of deviations, on average.
    ('brooks', (0.55, 0.70), (0.35, 0.50), 1.5, 1.2),
    ('cycleisp_sidd', (0.55, 0.70), (0.35, 0.50), 1.5, 1.2),
    # A fifth of the pictures without a mosaic; each channel with noise of its own.
    ('cbdnet', (-0.05, 0.72), (-0.05, 0.50), 1.0, 1.0),
    # Some with grain, up to that of PolyU.
    ('photo', (0.50, 0.95), (0.35, 0.95), 1.5, 1.15),
  ],
)
def test_correlations_and_channels_of_each_preset(name, red, green, red_to_green, blue_to_green):
  residuals = _residuals(dataclasses.replace(PRESETS[name], jpeg=0.0))
  deviations = residuals.std(axis=(1, 2))
  visible = deviations.min(axis=1) > 1 / 255
  assert visible.sum() >= 18
  found = np.array([_correlation(residual) for residual in residuals[visible]])
  for channel, (least, greatest) in ((0, red), (1, green), (2, red)):
    assert least < found[:, channel].min()
    assert found[:, channel].max() < greatest
  if name in ('cbdnet', 'photo'):
    # The whole of the range is drawn.
    assert np.ptp(found[:, 1]) > 0.35
  ratios = np.log(deviations[visible][:, ::2] / deviations[visible][:, 1:2])
  # `cbdnet` draws its channels apart, by factors of two and more: the mean of 24 is less certain.
  spread = 0.5 if name == 'cbdnet' else 0.15
  np.testing.assert_allclose(ratios.mean(axis=0), np.log([red_to_green, blue_to_green]), atol=spread)


def test_noise_without_a_mosaic_is_white_and_a_mosaic_correlates_it():
  clean = _flat(0.5)
  white = _correlation(_noisy(PLAIN, clean) - np.asarray(clean))
  assert np.abs(white).max() < 0.03
  mosaic = dataclasses.replace(PLAIN, mosaic=1.0)
  for axis in (0, 1):
    red, green, blue = _correlation(_noisy(mosaic, clean) - np.asarray(clean), axis)
    # Bilinear filling-in: pairs of red neighbours share one or two of the measured pixels.
    assert 0.5 < red < 0.75
    assert 0.5 < blue < 0.75
    assert 0.2 < green < 0.5


def test_grain_correlates_noise_and_keeps_its_energy():
  clean = _flat(0.5)
  plain = _noisy(PLAIN, clean) - np.asarray(clean)
  grain = dataclasses.replace(PLAIN, grain=1.0, grain_px=(1.5, 1.5))
  grainy = _noisy(grain, clean) - np.asarray(clean)
  # A Gaussian blur of sigma s leaves a correlation of exp(-1 / (4 s^2)) at one pixel: 0.895.
  assert _correlation(grainy) == pytest.approx([0.895] * 3, abs=0.03)
  assert grainy.std() == pytest.approx(plain.std(), rel=0.03)


def test_grain_keeps_the_brightness():
  """Clipping and the tone curve move the mean of strong noise by levels, which a blur must not multiply.

  The picture has two halves, so that a shift near their border would show too.
  """
  clean = jnp.concatenate([_flat(60 / 255, 96)[:, :48], _flat(200 / 255, 96)[:, :48]], axis=1)
  strong = dataclasses.replace(PRESETS['brooks'], shot=(5e-3, 5e-3))
  grainy = dataclasses.replace(strong, grain=1.0, grain_px=(1.2, 1.2))
  plain, with_grain = (
    np.mean([_noisy(noise, clean, seed) - np.asarray(clean) for seed in range(12)], axis=(0, 1)) * 255
    for noise in (strong, grainy)
  )
  # By strips of 16 columns: the borders of the picture, the parts beside the middle, and what lies between.
  strips = [np.mean(np.split(shift, 6), axis=1) for shift in (plain, with_grain)]
  assert np.abs(strips[0]).max() > 2
  np.testing.assert_allclose(*strips, atol=1.0)


def test_noise_of_cbdnet_differs_between_the_channels():
  levels = jax.vmap(lambda k: camera_noise.draw_levels(k, PRESETS['cbdnet']))(
    jax.random.split(jax.random.key(0), 2000)
  )
  for found, highest in ((levels.relative, 0.16), (levels.constant, 0.06)):
    assert found.max() == pytest.approx(highest, rel=0.01)
    np.testing.assert_allclose(np.corrcoef(np.asarray(found).T), np.eye(3), atol=0.1)


def test_chroma_of_grain_is_weighted_against_luma():
  clean = _flat(0.5)
  one = dataclasses.replace(PLAIN, grain=1.0, grain_px=(0.5, 0.5))
  luma = np.array([0.299, 0.587, 0.114])

  def chroma_to_luma(noise):
    residual = _noisy(noise, clean) - np.asarray(clean)
    return (residual[..., 0] - residual[..., 1]).std() / (residual @ luma).std()

  half = dataclasses.replace(one, grain_chroma=(0.5, 0.5))
  assert chroma_to_luma(half) == pytest.approx(0.5 * chroma_to_luma(one), rel=0.03)
  # Less chroma: the channels go together.
  residual = _noisy(half, clean) - np.asarray(clean)
  assert np.corrcoef(residual[..., 0].ravel(), residual[..., 1].ravel())[0, 1] > 0.3


def test_chroma_of_grain_can_be_smoother_than_luma():
  clean = _flat(0.5)
  noise = dataclasses.replace(PLAIN, grain=1.0, grain_px=(0.5, 0.5), grain_chroma_px=(3.0, 3.0))
  residual = _noisy(noise, clean) - np.asarray(clean)
  luma = (residual @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
  assert _correlation(residual[..., :1] - luma)[0] > _correlation(luma)[0] + 0.3


@pytest.mark.parametrize('name', ['brooks', 'cycleisp_sidd', 'photo'])
def test_white_stays_white(name):
  """As in a camera, whose saturated pixels have no noise."""
  noise = dataclasses.replace(PRESETS[name], jpeg=0.0)
  add = fast_jit(jax.vmap(lambda key: add_camera_noise(key, jnp.ones((16, 16, 3)), noise)))
  noisy = 255 * np.asarray(add(jax.random.split(jax.random.key(0), 64)))
  np.testing.assert_allclose(noisy.mean(axis=(0, 1, 2)), 255, atol=0.2)
  # The strongest noise reaches below white where the gain of green is hardly above 1.
  assert noisy.std(axis=(0, 1, 2)).max() < 2


def test_white_balance_makes_red_and_blue_noisier_than_green():
  noise = dataclasses.replace(PRESETS['brooks'], shot=(1e-3, 1e-3), read_line=(0.0, math.log(1e-6), 0.0))
  clean = _flat(0.5)
  deviations = np.mean([(_noisy(noise, clean, s) - np.asarray(clean)).std(axis=(0, 1)) for s in range(6)], 0)
  assert 1.2 < deviations[0] / deviations[1] < 2.5
  assert 1.1 < deviations[2] / deviations[1] < 2.5


@pytest.mark.parametrize('name', ['brooks', 'cycleisp_sidd', 'photo'])
def test_shot_noise_is_log_uniform_and_read_noise_follows_its_line(name):
  noise, count = PRESETS[name], 4000
  levels = jax.vmap(lambda k: camera_noise.draw_levels(k, noise))(jax.random.split(jax.random.key(0), count))
  log_shot = np.sort(np.log(np.asarray(levels.shot, np.float64)))
  low, high = np.log(noise.shot)
  quantiles = (log_shot - low) / (high - low)
  # Kolmogorov and Smirnov: uniform draws are further off in one of 1,000 cases.
  assert np.abs(quantiles - (np.arange(count) + 0.5) / count).max() < 1.95 / np.sqrt(count)
  slope, intercept, deviation = noise.read_line
  off = np.log(np.asarray(levels.read, np.float64)) - slope * np.log(np.asarray(levels.shot)) - intercept
  assert off.std() == pytest.approx(deviation, rel=0.05)
  assert abs(off.mean()) < 0.1 * deviation


def test_published_constants_give_published_noise():
  # Brooks et al., figure of shot against read noise: at a shot noise of 0.01, read noise is 1.45e-4.
  slope, intercept, _ = PRESETS['brooks'].read_line
  assert math.exp(slope * math.log(0.01) + intercept) == pytest.approx(1.449e-4, rel=1e-3)
  # CycleISP: log10(read) = 1.85 log10(shot) + 0.30, so 3.98e-4 at 0.01.
  slope, intercept, _ = PRESETS['cycleisp_sidd'].read_line
  assert math.exp(slope * math.log(0.01) + intercept) == pytest.approx(10 ** (1.85 * -2 + 0.30), rel=1e-6)


def test_output_is_on_8_bit_levels_with_and_without_jpeg():
  shape = (40, 33, 3)
  clean = jnp.round(jax.random.uniform(jax.random.key(2), shape) * 255) / 255
  for jpeg in (0.0, 1.0):
    noisy = _noisy(dataclasses.replace(PRESETS['photo'], jpeg=jpeg), clean)
    assert noisy.shape == shape
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    np.testing.assert_allclose(noisy * 255, np.round(noisy * 255), atol=1e-4)


def test_the_grid_of_jpeg_begins_anywhere():
  """On a smooth ramp at low quality, steps between pixels are largest at the borders of blocks."""
  ramp = np.linspace(0.2, 0.8, 64, dtype=np.float32)
  clean = jnp.asarray(np.broadcast_to(ramp[None, :, None], (64, 64, 3)))
  noise = CameraNoise(shot=(0.0, 0.0), jpeg=1.0, jpeg_quality=(12, 12))
  phases = set()
  for seed in range(8):
    steps = np.abs(np.diff(_noisy(noise, clean, seed).mean(axis=(0, 2))))
    phases.add(int(np.argmax([steps[phase::8].mean() for phase in range(8)])))
  assert len(phases) >= 3


def test_a_picture_depends_on_its_key_alone():
  clean = jax.random.uniform(jax.random.key(3), (3, 16, 24, 3))
  keys = jax.random.split(jax.random.key(4), 3)
  mapped = fast_jit(jax.vmap(lambda k, c: add_camera_noise(k, c, PRESETS['photo'])))
  together = np.asarray(mapped(keys, clean))
  alone = np.asarray(mapped(keys[1:2], clean[1:2]))
  np.testing.assert_allclose(together[1:2], alone, atol=1.01 / 255)
  assert not np.array_equal(together, np.asarray(mapped(keys[::-1], clean)))
