"""The rows of the comparison with PyTorch: what is computed on which shapes, and how often."""

from collections.abc import Sequence
import dataclasses
from typing import Literal

from benchmarks import limits

Kind = Literal['deform_forward', 'deform_backward', 'forward', 'training']
HEAVY_RUNS_ON_CPU = 3


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison.

  Attributes:
    kind: The operator alone, forward or backward; the network's forward pass; or a step of its training.
    shape: [N, H, W, C] of the operator's input, or of the images.
    heavy: Takes minutes on a CPU with two cores; timed there only where asked for, and fewer times.
  """

  kind: Kind
  shape: tuple[int, int, int, int]
  heavy: bool = False

  @property
  def key(self) -> str:
    """The row's name on the command line and in JSON: 'forward_1x320x480' (of images without C)."""
    axes = self.shape if self.is_operator else self.shape[:3]
    return f'{self.kind}_{"x".join(map(str, axes))}'

  @property
  def what(self) -> str:
    """The row's text in a table; sizes of the network's images are width times height."""
    n, h, w, c = self.shape
    if self.is_operator:
      return f'deform_conv2d {n}x{h}x{w}x{c}, {self.kind.removeprefix("deform_")}'
    if self.kind == 'training':
      return f'SADNet training step, {n} patches {w}x{h}'
    return f'SADNet forward, {n} image{"s" if n > 1 else ""} {w}x{h}'

  @property
  def is_operator(self) -> bool:
    """Whether it is `deform_conv2d` alone, not the network."""
    return self.kind.startswith('deform')

  def cost(self) -> limits.Cost:
    """Operations and bytes in float32."""
    if self.is_operator:
      return limits.deform_conv_cost(self.shape, backward=self.kind == 'deform_backward')
    return limits.network_cost(self.shape, training=self.kind == 'training')

  def runs(self, runs: int, device: str) -> int:
    """How often it is timed where ``runs`` are asked for."""
    return min(runs, HEAVY_RUNS_ON_CPU) if self.heavy and device == 'cpu' else runs


# The four scales of a 480x320 image, and the finest of a training step.
_OPERATOR_SHAPES = (
  (1, 320, 480, 32),
  (1, 160, 240, 64),
  (1, 80, 120, 128),
  (1, 40, 60, 256),
  (4, 128, 128, 32),
)
# The largest last: what it takes of a GPU's memory is not always given back.
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
  """The rows asked for, in the order of `ROWS`; by default all, on a CPU those that are not heavy."""
  if only:
    return [row for key, row in ROWS.items() if key in only]
  return [row for row in ROWS.values() if device != 'cpu' or not row.heavy]
