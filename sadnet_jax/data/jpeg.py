"""What JPEG compression loses, as a function that runs inside a jitted training step.

Everything that changes pixel values is here: conversion to luma and chroma, subsampling of
the chroma, the 8x8 discrete cosine transform, quantisation, and the way back. Entropy coding
loses nothing and is not modelled. Rounding follows libjpeg (the "islow" transform, triangle-shaped
chroma upsampling), so that results agree with files written by Pillow to a fraction of a level.

Source: ITU-T T.81 (JPEG) with its example quantisation tables, Annex K; JFIF 1.02 for the colours.
"""

import jax
import jax.numpy as jnp
import numpy as np

# ITU-T T.81, tables K.1 (luma) and K.2 (chroma).
_LUMA_TABLE = np.array(
  [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
  ],
  np.int32,
)
_CHROMA_TABLE = np.full((8, 8), 99, np.int32)
_CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# JFIF: RGB -> Y, Cb, Cr in 16-bit fixed point, as libjpeg has it, with the offsets it rounds by.
_TO_YCC = np.array([[19595, 38470, 7471], [-11059, -21709, 32768], [32768, -27439, -5329]], np.int32)
_YCC_OFFSETS = np.array([32768, 32767, 32767], np.int32)

# The 8-point DCT-II, sqrt(8) times the orthonormal one.
_n = np.arange(8)
_DCT8 = np.cos((2 * _n[None, :] + 1) * _n[:, None] * np.pi / 16) * np.where(_n == 0, 1, np.sqrt(2))[:, None]
_DCT8 = _DCT8.astype(np.float32)


def quantisation_tables(quality: jax.Array | float) -> tuple[jax.Array, jax.Array]:
  """Tables of luma and chroma, [8, 8] each, for a quality of 1 to 100 as libjpeg and Pillow scale them."""
  quality = jnp.asarray(quality, jnp.int32)
  scale = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
  luma, chroma = (jnp.clip((t * scale + 50) // 100, 1, 255) for t in (_LUMA_TABLE, _CHROMA_TABLE))
  return luma, chroma


def jpeg_loss(image: jax.Array, quality: jax.Array | float, subsampled: jax.Array | bool) -> jax.Array:
  """An image as it comes back from a baseline JPEG file.

  Agrees with Pillow's files within 0.15 levels of 255 on average: nearly all values are equal, but
  where a coefficient lies halfway between two multiples of its table entry, libjpeg's 13-bit
  constants may round it to the other one, which changes that 8x8 block by a few levels.

  Args:
    image: [H, W, 3] in [0, 1]; rounded to 8 bits first. H and W are multiples of 16.
    quality: 1 to 100, a whole number; may be traced.
    subsampled: Whether chroma is stored at half resolution (4:2:0) or in full (4:4:4); may be traced.

  Returns:
    [H, W, 3] in [0, 1], on 8-bit levels.

  Raises:
    ValueError: The sides are not multiples of 16.
  """
  height, width, channels = image.shape
  if height % 16 or width % 16 or channels != 3:
    raise ValueError(
      f'image has shape {image.shape}; JPEG works on [H, W, 3] with sides that are multiples of 16'
    )
  levels = jnp.round(jnp.clip(image, 0, 1) * 255).astype(jnp.int32)
  luma_table, chroma_table = quantisation_tables(quality)
  ycc = ((levels @ _TO_YCC.T + _YCC_OFFSETS) >> 16).astype(jnp.float32)
  luma = _through_dct(ycc[..., 0] - 128, luma_table) + 128
  full = [_through_dct(ycc[..., i], chroma_table) for i in (1, 2)]
  half = [_double(_through_dct(_halve(ycc[..., i]), chroma_table)) for i in (1, 2)]
  cb, cr = (jnp.where(subsampled, h, f).astype(jnp.int32) for h, f in zip(half, full, strict=True))
  red = (91881 * cr + 32768) >> 16
  green = (-22554 * cb - 46802 * cr + 32768) >> 16
  blue = (116130 * cb + 32768) >> 16
  rgb = luma.astype(jnp.int32)[..., None] + jnp.stack([red, green, blue], axis=-1)
  return jnp.clip(rgb, 0, 255).astype(jnp.float32) / 255


def _through_dct(plane, table):
  """A plane [H, W] of levels around 0 after quantisation of its 8x8 blocks, rounded and clipped to 8 bits."""
  height, width = plane.shape
  blocks = plane.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2)
  # libjpeg rounds after the rows, to quarters, and after the columns; coefficients are eightfold.
  rows = _rounded(4 * (blocks @ _DCT8.T))
  coefficients = _rounded(_DCT8 @ rows / 4)
  quantised = jnp.sign(coefficients) * jnp.floor((jnp.abs(coefficients) + 4 * table) / (8 * table)) * table
  columns = _rounded(4 * (_DCT8.T @ quantised))
  restored = jnp.clip(_rounded(columns @ _DCT8 / 32), -128, 127)
  return restored.swapaxes(1, 2).reshape(height, width)


def _rounded(x):
  """To the nearest integer, halves up."""
  return jnp.floor(x + 0.5)


def _halve(plane):
  """Means of 2x2 pixels; libjpeg rounds halves down in even columns and up in odd ones."""
  height, width = plane.shape
  total = plane.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3))
  bias = 1 + jnp.arange(width // 2) % 2
  return jnp.floor((total + bias) / 4)


def _double(plane):
  """Twice the size by libjpeg's triangle filter: 3/4 of the nearer pixel, 1/4 of the farther one."""
  rows = jnp.pad(plane, ((1, 1), (0, 0)), mode='edge')
  upper, lower = 3 * plane + rows[:-2], 3 * plane + rows[2:]
  tall = jnp.stack([upper, lower], axis=1).reshape(-1, plane.shape[1])
  columns = jnp.pad(tall, ((0, 0), (1, 1)), mode='edge')
  left, right = 3 * tall + columns[:, :-2], 3 * tall + columns[:, 2:]
  wide = jnp.stack([jnp.floor((left + 8) / 16), jnp.floor((right + 7) / 16)], axis=2)
  return wide.reshape(tall.shape[0], -1)
