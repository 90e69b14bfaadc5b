"""Modulated deformable convolution by definition: Python loops in float64.

Written independently of the fast implementation, without padding or vectorisation.
Locations are never clipped; neighbours outside the image are skipped.
"""

import math

import numpy as np


def bilinear(image: np.ndarray, y: float, x: float) -> float:
  """Value of a [H, W] image between its pixels; pixels outside it are zero."""
  height, width = image.shape
  y0, x0 = math.floor(y), math.floor(x)
  value = 0.0
  for row in (y0, y0 + 1):
    for column in (x0, x0 + 1):
      if 0 <= row < height and 0 <= column < width:
        value += (1 - abs(y - row)) * (1 - abs(x - column)) * float(image[row, column])
  return value


def deform_conv2d_loops(
  x, offset, mask, kernel, bias, *, stride, padding, dilation, groups, deformable_groups
):
  """Shapes as in `sadnet_jax.deform_conv2d`; stride, padding and dilation are pairs."""
  n, height, width, channels = x.shape
  kernel_h, kernel_w, channels_per_group, features = kernel.shape
  taps = kernel_h * kernel_w
  out_h = (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
  out_w = (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
  y = np.zeros((n, out_h, out_w, features))
  for b, i, j, o in np.ndindex(y.shape):
    group = o // (features // groups)
    total = 0.0 if bias is None else float(bias[o])
    for c in range(channels_per_group):
      channel = group * channels_per_group + c
      moving = channel // (channels // deformable_groups)
      for u, v in np.ndindex(kernel_h, kernel_w):
        tap = moving * taps + u * kernel_w + v
        row = i * stride[0] - padding[0] + u * dilation[0] + offset[b, i, j, 2 * tap]
        column = j * stride[1] - padding[1] + v * dilation[1] + offset[b, i, j, 2 * tap + 1]
        modulation = 1.0 if mask is None else mask[b, i, j, tap]
        total += kernel[u, v, c, o] * modulation * bilinear(x[b, :, :, channel], row, column)
    y[b, i, j, o] = total
  return y
