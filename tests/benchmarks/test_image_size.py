"""Time by image size: which calls are timed, and the target."""

import numpy as np
import pytest

from benchmarks import image_size
from sadnet_jax import Denoiser, SADNet
from tests.support.small_networks import SMALL, random_variables


@pytest.fixture(scope='module')
def denoiser():
  # Without RSABs, which take the longest to compile.
  model = SADNet(**SMALL, use_rsab=False)
  return Denoiser(model, random_variables(model)['params'], tile_px=160, overlap_px=16)


def test_nothing_is_compiled_while_sizes_are_timed(denoiser):
  # One image is a single tile, the other three.
  for width, tiles in ((24, 1), (400, 3)):
    row, calls = image_size.prepare(denoiser, width, 16)
    programs = dict(denoiser.network.programs)
    assert (1, 16, row['tile_size'][1], False) in programs
    assert row['tiles'] == tiles
    calls['tiled']()
    assert denoiser.network.programs == programs


def test_the_whole_image_runs_if_memory_allows(denoiser, monkeypatch):
  image = image_size.noisy_image(24, 16)
  denoised = image_size.whole_network(denoiser, image)()
  np.testing.assert_allclose(np.asarray(denoised)[0], denoiser(image / np.float32(255)), rtol=1e-5, atol=1e-5)
  monkeypatch.setattr(image_size, 'free_bytes', lambda _: 1000)
  row, calls = image_size.prepare(denoiser, 24, 16)
  assert list(calls) == ['tiled']
  assert row['whole']['not_run'].endswith(' GB; 0.0 GB are free')


def test_sizes_are_timed_in_turn_and_small_images_several_times(monkeypatch):
  calls = []

  def prepare(_, width, height):
    row = {'what': f'{width}x{height}', 'pixels': width * height}
    return row, {name: lambda name=name: calls.append((row['what'], name)) for name in ('tiled', 'whole')}

  monkeypatch.setattr(image_size, 'prepare', prepare)
  rows = image_size.measure(None, [(1000, 700), (2000, 1000)], 2)
  # Three calls count and one does not; the whole image has one turn.
  small, large = ([(what, name) for name in ('tiled', 'whole')] for what in ('1000x700', '2000x1000'))
  assert calls == [*4 * small[:1], *4 * small[1:], *large, *4 * small[:1], large[0]]
  for row in rows:
    assert [len(row[name]['runs_seconds']) for name in ('tiled', 'whole')] == [2, 1]
    assert row['tiled']['us_per_pixel'] == pytest.approx(1e6 * row['tiled']['seconds'] / row['pixels'])


def test_the_spread_is_the_largest_time_per_pixel_over_the_smallest():
  rows = [
    {'what': what, 'tiled': {'us_per_pixel': us}, 'limit_share': share}
    for what, us, share in (('a', 5.5, 0.71), ('b', 5.0, 0.75), ('c', 6.6, 0.69))
  ]
  found = image_size.targets(rows, 'cpu')
  assert found['spread']['value'] == pytest.approx(0.32)
  assert found['limit']['value'] == 0.69
  assert not any(target['reached'] for target in found.values())
  assert all(target['reached'] for target in image_size.targets(rows[:2], 'cpu').values())
  assert set(image_size.targets(rows[:1], 'cpu')) == {'limit'}
  assert image_size.targets(rows, 'gpu') == {}


def test_megapixels_choose_sizes(capsys):
  assert image_size.parse_arguments([]).sizes == list(image_size.SIZES)
  assert image_size.parse_arguments(['--megapixels', '0.5', '2.1']).sizes == [(960, 640), (1920, 1080)]
  with pytest.raises(SystemExit):
    image_size.parse_arguments(['--megapixels', '3', '4'])
  assert '--megapixels: none of the sizes is between 3 and 4' in capsys.readouterr().err
