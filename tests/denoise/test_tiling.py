import itertools
import math
import time

import numpy as np
import pytest

from sadnet_jax.denoise.tiling import LONGEST_SIDE_PX, RAMP_PX, blend_tiles, plan_tiles, plan_tiles_by_area

LENGTHS = (1, 7, 8, 31, 63, 64, 65, 72, 97, 128, 129, 200, 255, 601, 3001)
TILES_AND_OVERLAPS = ((640, 80), (96, 80), (128, 64), (104, 40), (64, 8), (64, 3), (64, 0), (32, 16))


def axis(length_px, tile_px, overlap_px):
  return plan_tiles(length_px, length_px, tile_px, overlap_px).rows


@pytest.mark.parametrize(('tile_px', 'overlap_px'), TILES_AND_OVERLAPS)
@pytest.mark.parametrize('length_px', LENGTHS)
def test_tiles_cover_an_axis_with_weights_that_add_up_to_one(length_px, tile_px, overlap_px):
  plan = axis(length_px, tile_px, overlap_px)
  total = np.zeros(plan.length_px)
  for i, start in enumerate(plan.starts):
    total[start : start + plan.tile_px] += plan.weights(i)
  np.testing.assert_allclose(total, 1, atol=1e-6)
  assert 0 <= plan.length_px - length_px < 8
  assert plan.starts[-1] + plan.tile_px == plan.length_px
  assert plan.tile_px <= tile_px
  assert all(start % 8 == 0 for start in plan.starts)


@pytest.mark.parametrize(('tile_px', 'overlap_px'), TILES_AND_OVERLAPS)
@pytest.mark.parametrize('length_px', LENGTHS)
def test_neighbours_overlap_enough_with_the_fewest_tiles(length_px, tile_px, overlap_px):
  plan = axis(length_px, tile_px, overlap_px)
  overlaps = [a + plan.tile_px - b for a, b in zip(plan.starts, plan.starts[1:], strict=False)]
  assert min(overlaps, default=overlap_px) >= overlap_px
  step = tile_px - (overlap_px + -overlap_px % 8)
  assert len(plan.starts) == max(1, 1 + -(-(plan.length_px - tile_px) // step))


def test_margins_have_no_weight():
  plan = axis(1160, 640, 80)
  assert plan.starts == (0, 536)
  margin = (plan.tile_px - 536 - RAMP_PX) // 2
  assert margin == 36
  weights = plan.weights(1)
  assert (weights[:margin] == 0).all()
  assert (weights[margin + RAMP_PX :] == 1).all()
  ramp = weights[margin : margin + RAMP_PX]
  np.testing.assert_allclose(ramp, (np.arange(RAMP_PX) + 0.5) / RAMP_PX)


def test_tiles_shrink_if_that_takes_no_more_of_them():
  assert axis(700, 640, 80).tile_px == 392
  assert plan_tiles(700, 300, 640, 80).tile_size == (392, 304)


def test_the_overlap_is_rounded_up_to_a_multiple_of_8():
  assert axis(3001, 640, 73) == axis(3001, 640, 80)


@pytest.mark.parametrize(
  ('size', 'tile_px', 'overlap_px'), [((97, 210), 64, 24), ((40, 333), 64, 16), ((20, 20), 64, 16)]
)
def test_blending_unchanged_tiles_gives_the_image_back(size, tile_px, overlap_px):
  plan = plan_tiles(*size, tile_px, overlap_px)
  padded = (plan.rows.length_px, plan.columns.length_px)
  image = np.random.default_rng(0).uniform(size=(*padded, 2)).astype(np.float32)
  sizes = set()

  def unchanged(rows, columns):
    sizes.add(image[rows, columns].shape[:2])
    return image[rows, columns]

  rows = 0
  for top, finished in blend_tiles(plan, unchanged):
    assert top == rows
    np.testing.assert_allclose(finished, image[top : top + len(finished)], atol=1e-6)
    rows += len(finished)
  assert rows == plan.rows.length_px
  assert sizes == {plan.tile_size}


def test_a_tile_fades_into_the_next_without_a_step():
  plan = plan_tiles(8, 1160, 640, 80)
  width = plan.columns.tile_px
  tiles = iter([np.zeros((8, width, 1), np.float32), np.ones((8, width, 1), np.float32)])
  ((_, row),) = blend_tiles(plan, lambda rows, columns: next(tiles))
  steps = np.diff(row[0, :, 0])
  assert steps.max() == pytest.approx(1 / RAMP_PX)
  assert steps.min() >= 0
  assert row[0, [0, -1], 0].tolist() == [0, 1]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((0, 5, 64, 8), 'the image must have at least 1x1 pixels, not 5x0'),
    ((5, 500, 60, 8), 'tile_px must be a multiple of 8, at least 16, not 60'),
    ((5, 500, 8, 0), 'tile_px must be a multiple of 8, at least 16, not 8'),
    ((5, 500, 64, 56), 'overlap_px must be a whole number from 0 to 48 for tiles of 64 pixels, not 56'),
    ((5, 500, 64, 49), 'from 0 to 48 for tiles of 64 pixels, not 49'),
    ((5, 500, 64, -8), 'from 0 to 48 for tiles of 64 pixels, not -8'),
  ],
)
def test_tiles_that_cover_nothing_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    plan_tiles(*arguments)


@pytest.mark.parametrize(
  ('size', 'side_px', 'tile_size', 'tiles'),
  [
    # Height and width of the image, and of a tile.
    ((1280, 1280), 1280, (1280, 1280), 1),
    ((500, 3000), 1280, (504, 3000), 1),
    ((1, 1), 128, (8, 8), 1),
    ((1080, 1920), 1280, (1080, 1000), 2),
    ((2000, 3000), 1280, (1040, 1544), 4),
    ((3000, 4000), 1280, (1056, 1392), 9),
    ((4000, 3000), 1280, (1392, 1056), 9),
  ],
)
def test_tiles_of_an_area_are_as_high_and_wide_as_is_least_work(size, side_px, tile_size, tiles):
  plan = plan_tiles_by_area(*size, side_px**2, 80)
  assert plan.tile_size == tile_size
  assert plan.tiles == tiles


@pytest.mark.parametrize(
  ('size', 'tile_size'),
  [
    ((1080, 1920), (584, 1920)),
    ((2000, 3000), (464, 3000)),
    ((3000, 4000), (664, 2040)),
    # One tile stays one.
    ((2000, 800), (2000, 800)),
  ],
)
def test_tiles_are_flat_where_height_costs(size, tile_size):
  assert plan_tiles_by_area(*size, 1280**2, 80, 1 / 5000).tile_size == tile_size


@pytest.mark.parametrize('height_cost', [0, 1 / 5000, 1 / 100])
def test_tiles_of_an_area_are_those_of_least_work_of_all(height_cost):
  """Of all sides that fit, by trying each."""
  rng = np.random.default_rng(0)
  for _ in range(40):
    height, width, side, overlap = *rng.integers(1, 400, 2), 8 * rng.integers(12, 20), 8 * rng.integers(0, 9)
    found = plan_tiles_by_area(height, width, side**2, overlap, height_cost)
    if found.tiles == 1:
      assert found.pixels <= side**2
      continue
    shortest = overlap + RAMP_PX
    work = {}
    for h in range(8, height + 8, 8):
      for w in range(8, width + 8, 8):
        if h * w <= side**2 and (h >= height or h >= shortest) and (w >= width or w >= shortest):
          axes = zip((-(-height // 8) * 8, -(-width // 8) * 8), (h, w), strict=True)
          counts = [-(-(n - overlap) // (s - overlap)) if s < n else 1 for n, s in axes]
          work[h, w] = math.prod(counts) * h * w * (1 + height_cost * h)
    assert found.pixels * (1 + height_cost * found.rows.tile_px) == pytest.approx(min(work.values()))


def test_tiles_of_an_area_cover_any_image():
  rng = np.random.default_rng(0)
  for _ in range(300):
    height, width = (int(10 ** rng.uniform(0, 4)) for _ in range(2))
    side, overlap = (128, 640, 1280)[rng.integers(3)], int(rng.integers(0, 112))
    plan = plan_tiles_by_area(height, width, side**2, overlap, 1 / 5000)
    assert plan.tile_size[0] * plan.tile_size[1] <= side**2
    assert max(plan.tile_size) <= LONGEST_SIDE_PX
    for axis_, length in ((plan.rows, height), (plan.columns, width)):
      assert axis_.starts[0] == 0
      assert length <= axis_.starts[-1] + axis_.tile_px <= length + 7
      assert all(a + axis_.tile_px - b >= overlap for a, b in itertools.pairwise(axis_.starts))
      weights = np.zeros(axis_.length_px)
      for i, start in enumerate(axis_.starts):
        weights[start : start + axis_.tile_px] += axis_.weights(i)
      np.testing.assert_allclose(weights, 1, atol=1e-6)


def test_very_long_images_are_planned_quickly():
  start = time.perf_counter()
  for size in ((4_000_000, 1), (1, 4_000_000), (100_000, 200), (65_500, 800), (20_000, 25_000)):
    assert plan_tiles_by_area(*size, 1280**2, 80, 1 / 5000).tiles > 1
  assert time.perf_counter() - start < 10


def test_areas_too_small_for_the_overlap_are_refused():
  with pytest.raises(ValueError, match='from 0 to 48 for tiles of 64 pixels, not 56'):
    plan_tiles_by_area(5, 5000, 64**2, 56)
