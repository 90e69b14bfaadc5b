"""Time by the size of the image: what is timed, and what the script makes of it."""

import jax
import numpy as np
import pytest

from benchmarks import image_size
from sadnet_jax import Denoiser
from sadnet_jax.denoise import tile_memory
from sadnet_jax.nn.sadnet import SADNet
from tests.support.small_networks import SMALL, random_variables


@pytest.fixture(scope='module')
def denoiser():
  """Its tiles are the smallest, as on a machine with no memory left."""
  model = SADNet(**SMALL)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tile_memory, 'free_host_bytes', lambda: 0)
    return Denoiser(model, random_variables(model)['params'])


def test_compiling_for_an_image_denoises_one_tile_of_it(denoiser, monkeypatch):
  runs = []
  apply = denoiser.network.apply
  counted = lambda params, noisy: runs.append(noisy.shape) or apply(params, noisy)  # noqa: E731
  monkeypatch.setattr(denoiser.network, 'apply', counted)
  # The smallest tile that is useful with the default overlap has 192**2 pixels.
  wide = (8, 192**2 // 8 + 40, 3)
  plan = image_size.tiles_of(denoiser, np.zeros(wide, np.uint8))
  assert plan.tiles == 2
  assert runs == [(1, *plan.tile_size, 3)]


def test_the_whole_image_runs_where_the_memory_does(denoiser, monkeypatch):
  image = image_size.noisy_image(24, 16)
  denoised = image_size.whole_network(denoiser, image)()
  np.testing.assert_allclose(np.asarray(denoised)[0], denoiser(image / np.float32(255)), rtol=1e-5, atol=1e-5)
  monkeypatch.setattr(image_size, 'free_bytes', lambda: 1000)
  with pytest.raises(image_size._NotRunError, match=r'needs 0\.0 GB, got 0\.0 GB free'):
    image_size.whole_network(denoiser, image)
  row, calls = image_size.prepare(denoiser, 24, 16)
  assert list(calls) == ['tiled']
  assert 'not_run' in row['whole']


def test_sizes_take_turns_and_small_images_are_repeated(monkeypatch):
  calls = []

  def prepare(_, width, height):
    row = {'what': f'{width}x{height}', 'pixels': width * height}
    return row, {name: lambda name=name: calls.append((row['what'], name)) for name in ('tiled', 'whole')}

  monkeypatch.setattr(image_size, 'prepare', prepare)
  rows = image_size.measure(None, [(1000, 700), (2000, 1000)], 2)
  # Three times are counted, one is not; the whole image has one turn.
  small, large = ([(what, name) for name in ('tiled', 'whole')] for what in ('1000x700', '2000x1000'))
  assert calls == [*4 * small[:1], *4 * small[1:], *large, *4 * small[:1], large[0]]
  for row in rows:
    assert [len(row[name]['runs_seconds']) for name in ('tiled', 'whole')] == [2, 1]
    assert row['tiled']['us_per_pixel'] == pytest.approx(1e6 * row['tiled']['seconds'] / row['pixels'])


def test_the_spread_is_the_largest_time_a_pixel_over_the_smallest():
  rows = [{'what': what, 'tiled': {'us_per_pixel': us}} for what, us in (('a', 6.0), ('b', 5.0), ('c', 6.6))]
  (mark,) = image_size.marks(rows, 'cpu').values()
  assert mark['value'] == pytest.approx(0.32)
  assert not mark['reached']
  assert mark['what'].startswith('a to c ')
  assert image_size.marks(rows[:2], 'cpu')['spread']['reached']
  assert image_size.marks(rows[:1], 'cpu') == {}
  assert image_size.marks(rows, 'gpu') == {}


def test_megapixels_choose_sizes(capsys):
  assert image_size.parse_arguments([]).sizes == list(image_size.SIZES)
  assert image_size.parse_arguments(['--megapixels', '0.5', '2.1']).sizes == [(960, 640), (1920, 1080)]
  with pytest.raises(SystemExit):
    image_size.parse_arguments(['--megapixels', '3', '4'])
  assert '--megapixels: got 3 4, want a range with one of the sizes in it' in capsys.readouterr().err


def test_images_are_noisy_and_the_same_every_time():
  image = image_size.noisy_image(48, 32)
  assert (image.shape, image.dtype) == ((32, 48, 3), np.uint8)
  np.testing.assert_array_equal(image, image_size.noisy_image(48, 32))
  assert 10 < np.diff(image.astype(float), axis=0).std() / 2**0.5 < 60


def test_free_memory_is_the_devices_where_it_tells(monkeypatch):
  class Device:
    def memory_stats(self):
      return {'bytes_limit': 1000, 'bytes_in_use': 300}

  monkeypatch.setattr(jax, 'local_devices', lambda: [Device()])
  assert image_size.free_bytes() == 700
