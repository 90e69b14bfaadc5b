"""The rows of the comparison with PyTorch: what is computed, on which shapes, and how often."""

from collections.abc import Sequence
import dataclasses
from typing import Literal

from benchmarks import common

Kind = Literal['deform_forward', 'deform_backward', 'forward', 'training']
HEAVY_RUNS_ON_CPU = 3


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison.

  Attributes:
    kind: The operator alone, forward or backward; the network's forward pass; or a training step.
    shape: [N, H, W, C] of the operator's input, or of the images.
    heavy: Takes minutes on two CPU cores. On a CPU, timed only on request, and fewer times.
  """

  kind: Kind
  shape: tuple[int, int, int, int]
  heavy: bool = False

  @property
  def key(self) -> str:
    """Name on the command line and in JSON, such as 'forward_1x320x480' (images are without C)."""
    axes = self.shape if self.is_operator else self.shape[:3]
    return f'{self.kind}_{"x".join(map(str, axes))}'

  @property
  def what(self) -> str:
    """Text in a table. The size of an image is width x height."""
    n, h, w, c = self.shape
    if self.is_operator:
      return f'deform_conv2d {n}x{h}x{w}x{c}, {self.kind.removeprefix("deform_")}'
    if self.kind == 'training':
      return f'SADNet training step, {n} patches {w}x{h}'
    return f'SADNet forward, {n} image{"s" if n > 1 else ""} {w}x{h}'

  @property
  def is_operator(self) -> bool:
    """Whether the row is of `deform_conv2d` alone, not of the network."""
    return self.kind.startswith('deform')

  def cost(self) -> common.Cost:
    """Operations and bytes in float32."""
    if self.is_operator:
      return common.deform_conv_cost(self.shape, backward=self.kind == 'deform_backward')
    return common.network_cost(self.shape, training=self.kind == 'training')

  def runs(self, runs: int, device: str) -> int:
    """Number of timed runs if ``runs`` are requested."""
    return min(runs, HEAVY_RUNS_ON_CPU) if self.heavy and device == 'cpu' else runs


# The four scales of a 480x320 image, and the finest of a training step.
_OPERATOR_SHAPES = (
  (1, 320, 480, 32),
  (1, 160, 240, 64),
  (1, 80, 120, 128),
  (1, 40, 60, 256),
  (4, 128, 128, 32),
)
# The largest last: not all memory that it takes on a GPU is released.
_ROWS = (
  *(Row(kind, shape) for shape in _OPERATOR_SHAPES for kind in ('deform_forward', 'deform_backward')),
  Row('forward', (1, 320, 480, 3)),
  Row('training', (4, 128, 128, 3)),
  Row('training', (16, 128, 128, 3), heavy=True),
  Row('forward', (16, 320, 480, 3), heavy=True),
  Row('forward', (1, 1080, 1920, 3), heavy=True),
  Row('forward', (16, 1080, 1920, 3), heavy=True),
)
ROWS = {row.key: row for row in _ROWS}


def chosen_rows(only: Sequence[str] | None, device: str) -> list[Row]:
  """The requested rows in the order of `ROWS`; by default all, or on a CPU those that are not heavy."""
  if only:
    return [row for key, row in ROWS.items() if key in only]
  return [row for row in ROWS.values() if device != 'cpu' or not row.heavy]
