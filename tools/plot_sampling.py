"""Plots where the deformable kernels sample: Figure 4 of the paper, for any image and checkpoint.

  python -m tools.plot_sampling --config=configs/color_fast.py:50 --checkpoint=RUN \\
    --image=FILE --pixel=120,200 --pixel=60,310 --output=sampling.png

Each ``--pixel`` is a row and a column of the image, counted from 0 at the top left. First, the noise of the
config is added to the image (as floats, not clipped); ``--sigma_255`` sets another level, 0 for an image that
is already noisy. The network runs on the whole image at once. Needs ``pip install
'.[evaluate,plot]'``.

Coordinates are (row, column) in pixels of the image; integers are the centres of pixels. A cell of scale s is
a square with sides of 2**(s - 1) pixels: cell i has its centre at (i + 0.5) * 2**(s - 1) - 0.5, and pixel r
is in cell r // 2**(s - 1).
"""

from collections.abc import Sequence
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from sadnet_jax.data.noise import add_benchmark_noise
from sadnet_jax.extras import required
from sadnet_jax.files import check_output
from sadnet_jax.images.arrays import read_image, write_png
from sadnet_jax.nn.sadnet import SCALES, SADNet

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_TAPS = 9
# Row and column of each tap relative to the centre, in the operator's order: row by row.
_GRID = np.indices((3, 3)).reshape(2, _TAPS).T - 1

# Inches: width of the figure, of its left column, height of the legend there, side of a panel, titles, gaps.
_WIDTH, _LEFT, _LEGEND, _PANEL, _TITLE, _GAP = 10.0, 2.72, 1.3, 1.68, 0.42, 0.07
_FONT = 9
_CROSS = {'marker': 'x', 'color': 'red', 'markersize': 7, 'markeredgewidth': 1.6, 'linestyle': 'none'}
_DOTS = {'cmap': 'plasma', 'edgecolors': 'white', 'linewidths': 0.5}
# White on black is visible on any image.
_UNDER = {'marker': '+', 'color': 'black', 'markersize': 7, 'markeredgewidth': 2, 'linestyle': 'none'}
_OVER = {**_UNDER, 'color': 'white', 'markeredgewidth': 1}
_LABEL = {'fontsize': 8, 'bbox': {'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8, 'pad': 1.5}}


class Sampling(NamedTuple):
  """Where the deformable convolution of one scale samples for P pixels, with G deformable groups.

  Attributes:
    positions: (row, column) in pixels of the image, float32 [P, G, 9, 2]. Samples outside the image, padded
      to multiples of 8, are zero in the convolution.
    masks: Modulation of every sample, 0 to 1, float32 [P, G, 9].
  """

  positions: np.ndarray
  masks: np.ndarray


def regular_positions(pixels: Sequence[tuple[int, int]], scale: int) -> np.ndarray:
  """Where a regular 3x3 convolution of a scale samples; offsets are relative to these positions.

  Args:
    pixels: P pixels of the image, (row, column).
    scale: 1 (finest) to 4.

  Returns:
    (row, column) in pixels of the image, [P, 9, 2], taps row by row.
  """
  stride = 2 ** (scale - 1)
  cells = np.asarray(pixels)[:, None] // stride + _GRID
  return (cells + 0.5) * stride - 0.5


def sampling_positions(
  model: SADNet, params: dict[str, Any], noisy: np.ndarray, pixels: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, dict[int, Sampling]]:
  """Denoises an image and reads where the RSABs sample for some of its pixels.

  Args:
    model: The network, with RSABs.
    params: Its weights.
    noisy: float [H, W, model.channels] in [0, 1].
    pixels: P pixels, at least one: row in 0..H - 1 and column in 0..W - 1.

  Returns:
    The denoised image [H, W, model.channels], not clipped, and scale -> `Sampling` for the scales 1 to 4, of
    the kernels at the cells that contain the pixels.

  Raises:
    ValueError: The network has no RSABs, ``noisy`` has the wrong shape, or a pixel is outside the image.
  """
  if not model.use_rsab:
    raise ValueError('model.use_rsab must be True: without RSABs, no kernel is deformable')
  if noisy.ndim != 3:
    raise ValueError(f'noisy must be one image [H, W, {model.channels}], not of shape {noisy.shape}')
  if not len(pixels):
    raise ValueError('pixels: at least one (row, column) is needed')
  rows, columns = noisy.shape[0] - 1, noisy.shape[1] - 1
  for row, column in pixels:
    if not (0 <= row <= rows and 0 <= column <= columns):
      raise ValueError(
        f'pixel {row},{column} is outside the image: rows are 0 to {rows}, columns 0 to {columns}'
      )

  @jax.jit
  def predict(params, noisy):
    denoised, state = model.apply(
      {'params': params},
      noisy,
      capture_intermediates=lambda module, _: module.name == 'conv_offset_mask',
      mutable=['intermediates'],
    )
    predicted = {}
    for scale in range(1, SCALES + 1):
      (prediction,) = state['intermediates'][f'dres{scale}']['conv_offset_mask']['__call__']
      cell_rows, cell_columns = np.asarray(pixels).T // 2 ** (scale - 1)
      predicted[scale] = prediction[0, cell_rows, cell_columns]
    return denoised[0], predicted

  groups = model.deformable_groups
  denoised, predicted = predict(params, noisy[None])
  return np.asarray(denoised), {s: _sampling(p, pixels, s, groups) for s, p in predicted.items()}


def _sampling(predicted, pixels, scale, groups):
  """The samples from the prediction of offsets and masks at the pixels, [P, 27 * G]."""
  samples = groups * _TAPS
  offset = np.asarray(predicted[:, : 2 * samples], np.float32).reshape(-1, groups, _TAPS, 2)
  masks = np.asarray(jax.nn.sigmoid(predicted[:, 2 * samples :]), np.float32)
  positions = regular_positions(pixels, scale)[:, None] + offset * 2 ** (scale - 1)
  return Sampling(positions.astype(np.float32), masks.reshape(-1, groups, _TAPS))


def plot_sampling(
  image: np.ndarray, pixels: Sequence[tuple[int, int]], samplings: dict[int, Sampling]
) -> 'Figure':
  """Draws the samples over an image: one row of panels per pixel, one column per scale.

  The panels of a scale show as much of the image as its farthest sample needs.

  Args:
    image: Background, [H, W, 1 or 3], clipped to [0, 1].
    pixels: P pixels, (row, column).
    samplings: Result of `sampling_positions` for these pixels.

  Returns:
    A figure that is 1000 pixels wide at its own resolution.

  Raises:
    ValueError: Matplotlib is missing.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ValueError("Matplotlib is missing; from the clone: pip install '.[plot]'") from error
  body = max(len(pixels) * (_PANEL + _GAP), _PANEL + _LEGEND)
  figure = Figure(figsize=(_WIDTH, _TITLE + body + _GAP), dpi=100)
  distances = {s: sampling.positions - np.asarray(pixels)[:, None, None] for s, sampling in samplings.items()}
  # Half a pixel more, for the size of the dots.
  reach = {scale: int(np.ceil(np.abs(d).max() + 0.5)) for scale, d in distances.items()}
  # The image's aspect ratio, if there is room.
  tall = min(_LEFT * image.shape[0] / image.shape[1], body - _LEGEND)
  _draw_overview(_add_axes(figure, _GAP, _TITLE, _LEFT, tall), image, pixels)
  _draw_legend(figure, _TITLE + tall, _draw_panels(figure, image, pixels, samplings, reach))
  return figure


def _add_axes(figure, left, top, width, height):
  """Axes without ticks; all lengths in inches, from the left and the top of the figure."""
  total_width, total_height = figure.get_size_inches()
  box = (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
  return figure.add_axes(box, xticks=[], yticks=[], facecolor='0.5')


def _draw_overview(axes, image, pixels):
  """The whole image with the chosen pixels."""
  _draw_image(axes, image)
  for row, column in pixels:
    axes.plot(column, row, **_CROSS)
    # On the side of the cross that has more room.
    shift, align = (6, 'left') if column < image.shape[1] / 2 else (-6, 'right')
    place = {'textcoords': 'offset points', 'ha': align, 'va': 'center'}
    axes.annotate(f'{row},{column}', (column, row), (shift, 0), **place, **_LABEL)


def _draw_panels(figure, image, pixels, samplings, reach):
  """Draws all panels and returns the entries of the legend: text -> artist."""
  masks = np.concatenate([sampling.masks.ravel() for sampling in samplings.values()])
  handles = {}
  for column, (scale, sampling) in enumerate(sorted(samplings.items(), reverse=True)):
    left = _LEFT + 4 * _GAP + column * (_PANEL + _GAP)
    for row, (y, x) in enumerate(pixels):
      axes = _add_axes(figure, left, _TITLE + row * (_PANEL + _GAP), _PANEL, _PANEL)
      _draw_image(axes, image)
      kernel = Sampling(sampling.positions[row], sampling.masks[row])
      handles = _draw_kernel(axes, kernel, (y, x), scale, (masks.min(), masks.max()))
      half = reach[scale] + 0.5
      axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
      if row == 0:
        side, stride = 2 * reach[scale] + 1, 2 ** (scale - 1)
        sizes = f'cells of {stride} px\n{side} x {side} px shown'
        axes.set_title(f'scale {scale}: {sizes}', fontsize=_FONT, pad=4)
      if column == 0:
        axes.set_ylabel(f'{y},{x}', fontsize=_FONT, labelpad=3)
  return handles


def _draw_image(axes, image):
  axes.imshow(np.clip(image, 0, 1), cmap='gray', vmin=0, vmax=1, interpolation='nearest')


def _draw_kernel(axes, kernel, pixel, scale, mask_limits):
  """Draws the samples of one pixel and returns the entries of the legend."""
  regular = regular_positions([pixel], scale)[0]
  under, over = (axes.plot(regular[:, 1], regular[:, 0], **style)[0] for style in (_UNDER, _OVER))
  rows, columns = kernel.positions.reshape(-1, 2).T
  masks = kernel.masks.ravel()
  # The larger the mask, the larger the dot.
  color = {'s': 8 + 22 * masks, 'c': masks, 'vmin': mask_limits[0], 'vmax': mask_limits[1]}
  # Above the lines, whose zorder is 2.
  dots = axes.scatter(columns, rows, zorder=3, **color, **_DOTS)
  (cross,) = axes.plot(pixel[1], pixel[0], zorder=4, **_CROSS)
  return {
    'chosen pixel (row,column)': cross,
    'regular 3 x 3 convolution': (under, over),
    f'samples: {len(kernel.positions)} groups of {_TAPS}': dots,
  }


def _draw_legend(figure, top, handles):
  """Legend and colour bar, at ``top`` inches below the top of the figure."""
  place = {'loc': 'upper left', 'bbox_to_anchor': (0, 1 - top / figure.get_figheight()), 'frameon': False}
  figure.legend(list(handles.values()), list(handles), fontsize=_FONT, **place)
  bar = _add_axes(figure, _GAP + 0.1, top + _LEGEND - 0.37, _LEFT - 0.2, 0.12)
  *_, dots = handles.values()
  figure.colorbar(dots, cax=bar, orientation='horizontal')
  bar.set_title('modulation mask of the sample', fontsize=_FONT, pad=4)
  bar.tick_params(labelsize=_FONT)


def _write(figure, path):
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  (canvas := FigureCanvasAgg(figure)).draw()
  # Without the alpha channel, which is 1 everywhere.
  write_png(path, np.asarray(canvas.buffer_rgba())[..., :3])


def parse_pixel(text: str) -> tuple[int, int]:
  """Converts 'ROW,COLUMN' to two integers; ValueError if it is something else."""
  match = re.fullmatch(r'(\d+),(\d+)', text)
  if not match:
    raise ValueError(f'--pixel: must be ROW,COLUMN, such as 120,200, not {text!r}')
  return int(match[1]), int(match[2])


def main() -> None:
  """The command. Only this needs the packages of the extra `evaluate`."""
  with required('evaluate,plot'):
    from absl import flags
    from ml_collections import config_flags

    from sadnet_jax import command_line
    from sadnet_jax.training.state import model_from_config
    from sadnet_jax.weights.loading import load_params

  config_file = config_flags.DEFINE_config_file(
    'config', None, 'The experiment, such as configs/color.py:50.'
  )
  checkpoint = flags.DEFINE_string(
    'checkpoint',
    None,
    'A run, one of its checkpoints, a file of weights, or a published name.',
    required=True,
  )
  image = flags.DEFINE_string('image', None, 'The image file.', required=True)
  pixel = flags.DEFINE_multi_string('pixel', None, 'ROW,COLUMN of a pixel; can be repeated.', required=True)
  sigma_255 = flags.DEFINE_float(
    'sigma_255',
    None,
    "Standard deviation of the noise to add, on the scale of 8-bit images; by default the config's.",
    lower_bound=0,
  )
  output = flags.DEFINE_string('output', None, 'File to write, .png.', required=True)
  overwrite = flags.DEFINE_bool('overwrite', False, 'Replace an existing file.')
  flags.mark_flag_as_required('config')

  def command():
    path, config = Path(output.value), config_file.value
    check_output(path, '.png', overwrite=overwrite.value)
    pixels = [parse_pixel(text) for text in pixel.value]
    sigma = config.noise.sigma_255 if sigma_255.value is None else sigma_255.value
    model = model_from_config(config.model)
    step, params = load_params(checkpoint.value, config.model.to_dict())
    noisy = add_benchmark_noise(read_image(image.value, model.channels).astype(np.float32) / 255, sigma)
    denoised, samplings = sampling_positions(model, params, noisy, pixels)
    _write(plot_sampling(denoised, pixels, samplings), path)
    print(f'{path}: {image.value}, sigma_255 {sigma:g}, checkpoint of step {step}')

  command_line.run(command)


if __name__ == '__main__':
  main()
