"""The simulated loss of JPEG against files that Pillow writes."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from sadnet_jax.data.jpeg import jpeg_loss, quantisation_tables


def _picture(seed=0, height=48, width=64):
  """Smooth colours, an edge, and noise."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width] / 64
  smooth = np.stack([np.sin(3 * x + y), np.cos(2 * y - x), np.sin(x * y * 4)], axis=-1) * 90 + 128
  smooth[:, width // 2 :, 1] += 60
  return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).round().astype(np.uint8)


def _file(levels, quality, subsampled):
  buffer = io.BytesIO()
  Image.fromarray(levels).save(buffer, 'JPEG', quality=quality, subsampling=2 if subsampled else 0)
  return Image.open(buffer)


@pytest.mark.parametrize('subsampled', [True, False])
@pytest.mark.parametrize('quality', [10, 50, 75, 95, 100])
def test_it_loses_what_a_file_of_pillow_loses(quality, subsampled):
  levels = _picture(quality)
  want = np.asarray(_file(levels, quality, subsampled), np.float32)
  got = np.asarray(jax.jit(jpeg_loss)(jnp.asarray(levels / 255, jnp.float32), quality, subsampled)) * 255
  difference = np.abs(got - want)
  lost = np.abs(want - levels).mean()
  assert difference.mean() <= 0.15
  assert (difference > 0.5).mean() <= 0.1
  # Far less than what is lost.
  assert difference.mean() < 0.05 * lost


@pytest.mark.parametrize('quality', [1, 24, 50, 75, 95, 100])
def test_tables_are_those_in_the_file(quality):
  tables = _file(_picture(), quality, True).quantization
  for ours, index in zip(jax.jit(quantisation_tables)(quality), (0, 1), strict=True):
    np.testing.assert_array_equal(np.asarray(ours).ravel(), np.ravel(tables[index]))


def test_sides_must_be_multiples_of_16():
  with pytest.raises(ValueError, match=r'shape \(16, 24, 3\); JPEG works on .* multiples of 16'):
    jpeg_loss(jnp.zeros((16, 24, 3)), 50, True)
