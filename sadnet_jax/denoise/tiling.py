"""Cutting an image of any size into overlapping tiles of one size, and blending them where they overlap.

Near a tile's border the network sees less context than in the whole image, so the outer part of an
overlap is dropped and only its middle is blended:

  tile i    ====================|////|....
  tile i+1                  ....|////|====================
                            margin ramp margin

Along each axis the weights of all tiles add up to 1 at every pixel. Tiles start at multiples of 8 pixels,
aligned with the network's three halvings of the whole image.
"""

from collections.abc import Callable, Iterator
import dataclasses
import math
import numbers

import numpy as np

from sadnet_jax.nn.sadnet import STRIDE, round_up

# Width of the middle of an overlap, where one tile fades into the next.
RAMP_PX = 16
# Longest side of tiles planned by area: up to here, the network's memory per pixel does not grow.
LONGEST_SIDE_PX = 4096


@dataclasses.dataclass(frozen=True)
class Axis:
  """The tiles along one axis.

  Attributes:
    length_px: Length of the padded image, a multiple of 8.
    tile_px: Length of every tile.
    starts: First pixel of each tile.
    ramp_px: `RAMP_PX`, or less where tiles overlap by less.
  """

  length_px: int
  tile_px: int
  starts: tuple[int, ...]
  ramp_px: int

  def weights(self, index: int) -> np.ndarray:
    """The blending weights of a tile's pixels, float32 [tile_px]."""
    positions = self.starts[index] + np.arange(self.tile_px) + 0.5
    weights = np.ones(self.tile_px, np.float32)
    if index > 0:
      weights *= self._share_of_later(index, positions)
    if index < len(self.starts) - 1:
      weights *= 1 - self._share_of_later(index + 1, positions)
    return weights

  def _share_of_later(self, index, positions):
    """The weight of tile `index` against tile `index - 1` at each position: 0, then a ramp, then 1."""
    middle = (self.starts[index] + self.starts[index - 1] + self.tile_px) / 2
    if not self.ramp_px:
      return (positions > middle).astype(np.float32)
    return np.clip((positions - middle) / self.ramp_px + 0.5, 0, 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class TilePlan:
  """The tiles of an image: a grid of rows and columns."""

  rows: Axis
  columns: Axis

  @property
  def tile_size(self) -> tuple[int, int]:
    """Height and width of a tile in pixels."""
    return self.rows.tile_px, self.columns.tile_px

  @property
  def tiles(self) -> int:
    """Number of tiles."""
    return len(self.rows.starts) * len(self.columns.starts)

  @property
  def pixels(self) -> int:
    """Pixels of all tiles together."""
    return self.tiles * self.rows.tile_px * self.columns.tile_px


def check_tiles(tile_px: int, overlap_px: int) -> None:
  """Checks that tiles can cover an image of any size.

  Args:
    tile_px: Longest side of a tile.
    overlap_px: Least overlap of neighbours.

  Raises:
    ValueError: The tile is not a multiple of 8, or not `RAMP_PX` longer than the overlap.
  """
  if not isinstance(tile_px, numbers.Integral) or tile_px < RAMP_PX or tile_px % STRIDE:
    raise ValueError(f'tile_px must be a multiple of {STRIDE}, at least {RAMP_PX}, not {tile_px!r}')
  if (
    not isinstance(overlap_px, numbers.Integral)
    or overlap_px < 0
    or tile_px < round_up(overlap_px, STRIDE) + RAMP_PX
  ):
    raise ValueError(
      f'overlap_px must be a whole number from 0 to {tile_px - RAMP_PX} for tiles of {tile_px} pixels, '
      f'not {overlap_px!r}'
    )


def plan_tiles(height_px: int, width_px: int, tile_px: int, overlap_px: int) -> TilePlan:
  """Covers an image with as few tiles as possible, none longer than given.

  Args:
    height_px: Height of the image; it is extended to a multiple of 8.
    width_px: Width, likewise.
    tile_px: Longest side of a tile. Tiles are shorter if their number stays the same.
    overlap_px: Least overlap of neighbours, rounded up to a multiple of 8.

  Raises:
    ValueError: A length is not positive, or the image needs several tiles and `check_tiles` fails.
  """
  height, width = _padded_size(height_px, width_px)
  if tile_px < max(height, width):
    check_tiles(tile_px, overlap_px)
  overlap = round_up(overlap_px, STRIDE)
  return TilePlan(_plan_axis(height, tile_px, overlap), _plan_axis(width, tile_px, overlap))


def plan_tiles_by_area(
  height_px: int, width_px: int, area_px: int, overlap_px: int, height_cost: float = 0
) -> TilePlan:
  """Covers an image with tiles of a limited area; their height and width minimise the work.

  Tile sides follow the image's size to 8 pixels, so images of different sizes have different tiles.

  Args:
    height_px: Height of the image; it is extended to a multiple of 8.
    width_px: Width, likewise.
    area_px: Most pixels of a tile. An extended image of no more pixels, with sides up to
      `LONGEST_SIDE_PX`, is one tile.
    overlap_px: Least overlap of neighbours, rounded up to a multiple of 8.
    height_cost: Relative increase of the work per pixel with each pixel of a tile's height.

  Raises:
    ValueError: A length is not positive, or a square tile of this area fails `check_tiles`.
  """
  height, width = _padded_size(height_px, width_px)
  if height * width <= area_px and max(height, width) <= LONGEST_SIDE_PX:
    return plan_tiles(height, width, max(height, width), overlap_px)
  # Square tiles always work; the search below improves on them.
  best = plan_tiles(height, width, math.isqrt(area_px) // STRIDE * STRIDE, overlap_px)

  def work(plan):
    return plan.pixels * (1 + height_cost * plan.rows.tile_px), plan.tiles

  overlap = round_up(overlap_px, STRIDE)
  narrowest = min(width, overlap + RAMP_PX)
  for tile_height in _useful_heights(height, overlap):
    widest = min(area_px // tile_height, LONGEST_SIDE_PX) // STRIDE * STRIDE
    if widest >= narrowest:
      plan = TilePlan(_plan_axis(height, tile_height, overlap), _plan_axis(width, widest, overlap))
      best = min(best, plan, key=work)
  return best


def _padded_size(height_px, width_px):
  if min(height_px, width_px) < 1:
    raise ValueError(f'the image must have at least 1x1 pixels, not {width_px}x{height_px}')
  return round_up(height_px, STRIDE), round_up(width_px, STRIDE)


def _useful_heights(length, overlap_px):
  """The least tile length for every possible number of tiles along an axis, each once."""
  shortest = min(length, overlap_px + RAMP_PX)
  counts = np.arange(1, length // STRIDE + 1)
  lengths = np.unique(_least_length(counts, length, overlap_px))
  return [int(tile) for tile in lengths if shortest <= tile <= LONGEST_SIDE_PX]


def _least_length(count, length, overlap_px):
  """The least tile length, a multiple of 8, with which `count` tiles cover an axis."""
  return round_up(-(-(length + (count - 1) * overlap_px) // count), STRIDE)


def _plan_axis(length, tile_px, overlap_px):
  if length <= tile_px:
    return Axis(length, length, (0,), 0)
  count = -(-(length - overlap_px) // (tile_px - overlap_px))
  tile = min(tile_px, _least_length(count, length, overlap_px))
  # Steps as even as multiples of 8 can be.
  room = (length - tile) // STRIDE
  starts = tuple(room * i // (count - 1) * STRIDE for i in range(count))
  steps = np.diff(starts)
  # A ramp stays within its overlap and does not reach into the next ramp.
  return Axis(length, tile, starts, int(min(RAMP_PX, tile - steps.max(), steps.min())))


def blend_tiles(
  plan: TilePlan, denoise: Callable[[slice, slice], np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
  """Denoises tile by tile and blends; holds one row of tiles in memory.

  Args:
    plan: From `plan_tiles` or `plan_tiles_by_area`.
    denoise: (rows, columns) of the padded image -> that tile, denoised, float32 [h, w, C].

  Yields:
    (top, rows): the index of the first row, and finished rows, float32 [n, padded width, C]; from top to
    bottom, every row once.
  """
  tile_px = plan.rows.tile_px
  band: np.ndarray | None = None
  weighted: np.ndarray | None = None
  for i, top in enumerate(plan.rows.starts):
    down = plan.rows.weights(i)
    for j, left in enumerate(plan.columns.starts):
      columns = slice(left, left + plan.columns.tile_px)
      tile = denoise(slice(top, top + tile_px), columns)
      channels = tile.shape[-1]
      if band is None:
        band = np.zeros((tile_px, plan.columns.length_px, channels), np.float32)
      # NumPy multiplies whole rows many times faster than the three values of a pixel.
      across = np.repeat(plan.columns.weights(j), channels)
      weighted = np.multiply(tile.reshape(tile_px, -1), across, out=weighted)
      weighted *= down[:, None]
      band[:, columns] += weighted.reshape(tile.shape)
    assert band is not None
    last = i + 1 == len(plan.rows.starts)
    finished = tile_px if last else plan.rows.starts[i + 1] - top
    yield top, band[:finished].copy()
    band[: tile_px - finished] = band[finished:]
    band[tile_px - finished :] = 0
