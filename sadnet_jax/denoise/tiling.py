"""Images of any size by overlapping tiles of one size, blended where they meet.

Near a tile's border the network sees less than it would in the whole image, so the
outer part of an overlap is dropped and only the middle is blended:

  tile i    ====================|////|....
  tile i+1                  ....|////|====================
                            margin ramp margin

Along each axis the weights of all tiles add up to 1 at every pixel. Tiles begin at
multiples of 8 pixels, where the whole image's halvings fall as well.
"""

from collections.abc import Callable, Iterator
import dataclasses
import math

import numpy as np

from sadnet_jax.nn.sadnet import STRIDE

# Over how many pixels of an overlap one tile passes into the next.
RAMP_PX = 16
# Of tiles whose sides are chosen here: the network's memory for a pixel is no more up to it.
LONGEST_SIDE_PX = 4096


@dataclasses.dataclass(frozen=True)
class Axis:
  """Tiles along one axis.

  Attributes:
    length_px: The padded image's length, a multiple of 8.
    tile_px: Every tile's.
    starts: Where the tiles begin.
    ramp_px: See RAMP_PX; less where tiles overlap by less.
  """

  length_px: int
  tile_px: int
  starts: tuple[int, ...]
  ramp_px: int

  def weights(self, index: int) -> np.ndarray:
    """Weights of a tile's pixels, float32 [tile_px]."""
    positions = self.starts[index] + np.arange(self.tile_px) + 0.5
    weights = np.ones(self.tile_px, np.float32)
    if index > 0:
      weights *= self._share_of_later(index, positions)
    if index < len(self.starts) - 1:
      weights *= 1 - self._share_of_later(index + 1, positions)
    return weights

  def _share_of_later(self, index, positions):
    """How much of each position is the tile's and not the one's before: 0, a ramp, 1."""
    middle = (self.starts[index] + self.starts[index - 1] + self.tile_px) / 2
    if not self.ramp_px:
      return (positions > middle).astype(np.float32)
    return np.clip((positions - middle) / self.ramp_px + 0.5, 0, 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class TilePlan:
  """Tiles of an image: every row's with every column's."""

  rows: Axis
  columns: Axis

  @property
  def tile_size(self) -> tuple[int, int]:
    """Height and width of a tile, pixels."""
    return self.rows.tile_px, self.columns.tile_px

  @property
  def tiles(self) -> int:
    """How many there are."""
    return len(self.rows.starts) * len(self.columns.starts)

  @property
  def pixels(self) -> int:
    """Of all tiles together."""
    return self.tiles * self.rows.tile_px * self.columns.tile_px


def plan_tiles(height_px: int, width_px: int, tile_px: int, overlap_px: int) -> TilePlan:
  """Lays tiles over an image.

  Args:
    height_px: The image's; it is extended to a multiple of 8.
    width_px: Likewise.
    tile_px: Longest side of a tile; a shorter one is taken where as many tiles of it do.
    overlap_px: Least overlap of neighbours, rounded up to a multiple of 8.

  Raises:
    ValueError: A length is not positive, a tile is no multiple of 8 or not RAMP_PX longer than
      the overlap.
  """
  if min(height_px, width_px) < 1:
    raise ValueError(f'image: got {width_px}x{height_px} pixels, want at least 1x1')
  if tile_px < STRIDE or tile_px % STRIDE:
    raise ValueError(f'tile_px: got {tile_px}, want a positive multiple of {STRIDE}')
  overlap = _up(overlap_px, STRIDE)
  if overlap_px < 0 or (tile_px < overlap + RAMP_PX and tile_px < max(height_px, width_px)):
    raise ValueError(
      f'overlap_px: got {overlap_px} for tiles of {tile_px}, want from 0 to {max(0, tile_px - RAMP_PX)}: '
      f'a tile is at least {RAMP_PX} pixels longer than the overlap'
    )
  return TilePlan(_plan_axis(height_px, tile_px, overlap), _plan_axis(width_px, tile_px, overlap))


def plan_tiles_of_area(
  height_px: int, width_px: int, area_px: int, overlap_px: int, height_cost: float = 0
) -> TilePlan:
  """Lays tiles of at most so many pixels, as high and as wide as is least work.

  Sides are exact to 8 pixels: images of other sizes have other tiles.

  Args:
    height_px: The image's; it is extended to a multiple of 8.
    width_px: Likewise.
    area_px: Most pixels of a tile; with the extension, an image of as many, of sides up to
      LONGEST_SIDE_PX, is one tile.
    overlap_px: Least overlap of neighbours, rounded up to a multiple of 8.
    height_cost: By what share of a pixel's work that of all pixels grows with each pixel of a tile's height.

  Raises:
    ValueError: A length is not positive, or a square of the area is too small for the overlap.
  """
  # Where nothing else does, these do.
  best = plan_tiles(height_px, width_px, math.isqrt(area_px) // STRIDE * STRIDE, overlap_px)
  height, width, overlap = _up(height_px, STRIDE), _up(width_px, STRIDE), _up(overlap_px, STRIDE)
  if height * width <= area_px and max(height, width) <= LONGEST_SIDE_PX:
    return plan_tiles(height, width, max(height, width), overlap)

  def work(plan):
    return plan.pixels * (1 + height_cost * plan.rows.tile_px), plan.tiles

  narrowest = min(width, overlap + RAMP_PX)
  for side in _sides(height, overlap):
    widest = min(area_px // side, LONGEST_SIDE_PX) // STRIDE * STRIDE
    if widest >= narrowest:
      plan = TilePlan(_plan_axis(height, side, overlap), _plan_axis(width, widest, overlap))
      best = min(best, plan, key=work)
  return best


def _sides(length, overlap_px):
  """All sides that so many tiles need to cover a length, of any number of tiles, each side once."""
  shortest = min(length, overlap_px + RAMP_PX)
  counts = np.arange(1, length // STRIDE + 1)
  sides = np.unique(_side_of(counts, length, overlap_px))
  return [int(side) for side in sides if shortest <= side <= LONGEST_SIDE_PX]


def _side_of(count, length, overlap_px):
  """Of so many tiles that cover a length, a multiple of 8."""
  return _up(-(-(length + (count - 1) * overlap_px) // count), STRIDE)


def _plan_axis(length_px, tile_px, overlap_px):
  length = _up(length_px, STRIDE)
  if length <= tile_px:
    return Axis(length, length, (0,), 0)
  count = -(-(length - overlap_px) // (tile_px - overlap_px))
  side = min(tile_px, _side_of(count, length, overlap_px))
  # Steps as even as multiples of 8 can be.
  room = (length - side) // STRIDE
  starts = tuple(room * i // (count - 1) * STRIDE for i in range(count))
  steps = np.diff(starts)
  # A ramp lies in its overlap, and does not reach into the next ramp.
  return Axis(length, side, starts, int(min(RAMP_PX, side - steps.max(), steps.min())))


def blend_tiles(
  plan: TilePlan, denoise: Callable[[slice, slice], np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
  """Denoises tile by tile and blends.

  Only one row of tiles is in memory at a time.

  Args:
    plan: From `plan_tiles` or `plan_tiles_of_area`.
    denoise: (rows, columns) of the padded image -> that tile, denoised, float32 [h, w, C].

  Yields:
    First row, and finished rows, float32 [n, padded width, C]: from top to bottom, every row once.
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
      # Whole rows of numbers are multiplied many times as fast as the three of a pixel.
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


def _up(length, multiple):
  return length + -length % multiple
