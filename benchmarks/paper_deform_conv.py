"""The operator with the numbers that the paper's network calls it with."""

import jax

from benchmarks.limits import DEFORMABLE_GROUPS
from sadnet_jax.ops.deform_conv import deform_conv2d


def paper_deform_conv(
  x: jax.Array,
  offset: jax.Array,
  mask: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  block_pixels: int | None = None,
) -> jax.Array:
  """`deform_conv2d` with a kernel of 3x3, stride 1 and eight deformable groups."""
  return deform_conv2d(
    x,
    offset,
    mask,
    kernel,
    bias,
    padding=1,
    deformable_groups=DEFORMABLE_GROUPS,
    block_pixels=block_pixels,
  )
