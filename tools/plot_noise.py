"""Draws how the noise of real pairs and of synthesised camera noise is correlated, and writes the numbers.

  python -m tools.plot_noise --pairs=polyu:FOLDER,pairs:FOLDER --presets=brooks,photo --output=noise.png

Measured is noisy minus clean on the flattest blocks of each picture, so that detail plays no part: the
correlation at a distance of 1 to 4 pixels, that between the channels, and the standard deviation. The presets
of sadnet_jax/data/camera_noise.py are applied to the clean pictures of the same pairs. Lines are means over
the pictures, bands hold 80% of them; ``noise.json`` beside the picture has their numbers.
Needs ``pip install '.[evaluate,plot]'``.
"""

from collections.abc import Iterable, Mapping, Sequence
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.extras import required

with required('evaluate,plot'):
  from sadnet_jax import command_line
  from sadnet_jax.data.camera_noise import PRESETS, add_camera_noise
  from sadnet_jax.data.examples import read_example
  from sadnet_jax.data.layouts import find_examples
  from sadnet_jax.files import check_output, refuse_existing, replacing, write_text

LARGEST_DISTANCE_PX = 4
_BLOCK_PX, _BLOCKS = 32, 16
# Noise near black and white is clipped; blocks whose mean is outside this range are not measured.
_MEAN_RANGE = (20 / 255, 235 / 255)
# Pictures are cropped to this side for the presets, so that all share one program.
_CROP_PX = 512
_CHANNELS = ('red', 'green', 'blue')
# Pairs of channels whose correlation is measured.
_CHANNEL_PAIRS = ((0, 1), (1, 2), (0, 2))


def flat_blocks(clean: np.ndarray, count: int = _BLOCKS) -> list[tuple[slice, slice]]:
  """Finds the blocks of 32x32 pixels with the least detail that are neither dark nor bright.

  Args:
    clean: [H, W, 3] in [0, 1].
    count: The most blocks to return.

  Returns:
    Their rows and columns, flattest first.
  """
  rows, columns = (side // _BLOCK_PX for side in clean.shape[:2])
  blocks = clean[: rows * _BLOCK_PX, : columns * _BLOCK_PX]
  blocks = blocks.reshape(rows, _BLOCK_PX, columns, _BLOCK_PX, 3).swapaxes(1, 2)
  means = blocks.mean(axis=(2, 3))
  detail = blocks.std(axis=(2, 3)).max(axis=-1)
  usable = (means > _MEAN_RANGE[0]).all(axis=-1) & (means < _MEAN_RANGE[1]).all(axis=-1)
  order = np.argsort(np.where(usable, detail, np.inf), axis=None, kind='stable')[: min(count, usable.sum())]
  return [
    (slice(r * _BLOCK_PX, (r + 1) * _BLOCK_PX), slice(c * _BLOCK_PX, (c + 1) * _BLOCK_PX))
    for r, c in zip(*np.unravel_index(order, detail.shape), strict=True)
  ]


def noise_statistics(noisy: np.ndarray, clean: np.ndarray) -> dict[str, list[float]] | None:
  """Measures the noise of a picture on its flattest blocks.

  Args:
    noisy: [H, W, 3] in [0, 1].
    clean: The same shape.

  Returns:
    'deviation': standard deviation of each channel on the scale of 8-bit images; 'distance': correlation at
    0 to 4 pixels, mean of both directions and all channels; 'channels': correlation of red with green, green
    with blue and red with blue. None if no block is usable, or if there is no noise.
  """
  residual = [(noisy[block] - clean[block]).astype(np.float64) for block in flat_blocks(clean)]
  if not residual:
    return None
  noise = np.stack(residual)
  noise -= noise.mean(axis=(1, 2), keepdims=True)
  covariance = np.einsum('nhwc,nhwd->cd', noise, noise) / noise[..., 0].size
  deviation = np.sqrt(np.diag(covariance))
  if not (deviation > 0).all():
    return None
  distance = []
  for shift in range(LARGEST_DISTANCE_PX + 1):
    far = _BLOCK_PX - shift
    products = [
      (noise[:, :far] * noise[:, shift:]).mean(axis=(0, 1, 2)),
      (noise[:, :, :far] * noise[:, :, shift:]).mean(axis=(0, 1, 2)),
    ]
    distance.append(float(np.mean(products / deviation**2)))
  return {
    'deviation': [float(d * 255) for d in deviation],
    'distance': distance,
    'channels': [float(covariance[a, b] / (deviation[a] * deviation[b])) for a, b in _CHANNEL_PAIRS],
  }


def statistics_of_pairs(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, list[float]]]:
  """The statistics of each (noisy, clean) picture that has usable blocks."""
  found = (noise_statistics(noisy, clean) for noisy, clean in pairs)
  return [statistics for statistics in found if statistics]


def synthesised(preset: str, clean: Iterable[np.ndarray]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
  """Adds a preset's noise to clean pictures [H, W, 3] in [0, 1]; the key of each is its number."""
  add = jax.jit(lambda key, image: add_camera_noise(key, image, PRESETS[preset]))
  for number, image in enumerate(clean):
    yield np.asarray(add(jax.random.key(number), jnp.asarray(image))), image


def figure_bytes(sources: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> bytes:
  """Draws the statistics of several sources as a PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3), layout='constrained')
  FigureCanvasAgg(figure)
  distance, channels, deviation = figure.subplots(1, 3)
  for number, (name, pictures) in enumerate(sources.items()):
    colour = f'C{number}'
    for axes, key, x in (
      (distance, 'distance', np.arange(LARGEST_DISTANCE_PX + 1)),
      (channels, 'channels', np.arange(len(_CHANNEL_PAIRS))),
      (deviation, 'deviation', np.arange(len(_CHANNELS))),
    ):
      values = np.array([picture[key] for picture in pictures])
      axes.fill_between(x, *np.percentile(values, (10, 90), axis=0), color=colour, alpha=0.15, linewidth=0)
      axes.plot(x, values.mean(axis=0), 'o-', color=colour, markersize=3, label=name)
  distance.set(xlabel='distance in pixels', ylabel='correlation', xticks=range(LARGEST_DISTANCE_PX + 1))
  channels.set(ylabel='correlation of channels')
  channels.set_xticks(
    range(len(_CHANNEL_PAIRS)), [f'{_CHANNELS[a]},\n{_CHANNELS[b]}' for a, b in _CHANNEL_PAIRS]
  )
  deviation.set(ylabel='standard deviation, of 255', yscale='log')
  deviation.set_xticks(range(len(_CHANNELS)), _CHANNELS)
  for axes in (distance, channels):
    axes.axhline(0, color='0.7', linewidth=0.8, zorder=0)
  distance.legend(frameon=False, fontsize=8)
  file = io.BytesIO()
  figure.savefig(file, format='png', dpi=120)
  return file.getvalue()


def _read_pairs(text):
  """The pictures of 'LAYOUT:FOLDER', cropped to at most 512 pixels."""
  layout, _, folder = text.partition(':')
  if not folder:
    raise ValueError(f'--pairs: {text!r} must be LAYOUT:FOLDER, such as polyu:PolyU/CroppedImages')
  for example in find_examples(layout, folder).examples:
    noisy, clean = read_example(example, 3)
    if noisy is None:
      raise ValueError(f'--pairs: the layout {layout} has clean images only; use pairs, polyu or sidd')
    yield tuple((image[:_CROP_PX, :_CROP_PX] / 255).astype(np.float32) for image in (noisy, clean))


def main() -> None:
  """Defines the flags and runs."""
  from absl import flags
  from ml_collections import config_flags

  config_flags.DEFINE_config_file('config', None, 'A config whose file adds presets of its own.')
  pairs = flags.DEFINE_list('pairs', None, 'Real pairs: LAYOUT:FOLDER, several with commas.', required=True)
  presets = flags.DEFINE_list('presets', ['photo'], f'Camera noise to compare: {", ".join(PRESETS)}.')
  output = flags.DEFINE_string('output', None, 'The picture to write, *.png.', required=True)
  overwrite = flags.DEFINE_bool('overwrite', False, 'Replace existing files.')

  def command() -> None:
    picture = Path(output.value)
    numbers = picture.with_suffix('.json')
    check_output(picture, '.png', overwrite=overwrite.value)
    refuse_existing(numbers, overwrite=overwrite.value)
    if unknown := sorted(set(presets.value) - set(PRESETS)):
      raise ValueError(f'--presets: unknown {", ".join(unknown)}; choose from {", ".join(PRESETS)}')
    sources: dict[str, list[dict[str, list[float]]]] = {}
    clean: list[np.ndarray] = []
    of_pairs = [Path(text.rstrip('/')).name for text in pairs.value]
    names = [*of_pairs, *presets.value]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
      raise ValueError(f'--pairs, --presets: {", ".join(repeated)} would name two sources; rename a folder')
    for name, text in zip(of_pairs, pairs.value, strict=True):
      images = list(_read_pairs(text))
      sources[name] = statistics_of_pairs(images)
      clean.extend(image for _, image in images)
    for preset in presets.value:
      sources[preset] = statistics_of_pairs(synthesised(preset, clean))
    if empty := [name for name, pictures in sources.items() if not pictures]:
      raise ValueError(f'{", ".join(empty)}: no picture has flat blocks with noise; use other pairs')
    with replacing(picture) as temporary:
      temporary.write_bytes(figure_bytes(sources))
    write_text(numbers, json.dumps(_summary(sources), indent=1) + '\n')
    print(f'{picture}, {numbers}: {", ".join(f"{len(p)} of {name}" for name, p in sources.items())}')

  command_line.run(command)


def _summary(sources):
  content: dict[str, dict[str, Any]] = {}
  for name, pictures in sources.items():
    content[name] = {'pictures': len(pictures)}
    for key in pictures[0]:
      values = np.array([picture[key] for picture in pictures])
      low, high = np.percentile(values, (10, 90), axis=0)
      statistics = {'mean': values.mean(axis=0), 'percentile_10': low, 'percentile_90': high}
      content[name][key] = {label: v.round(3).tolist() for label, v in statistics.items()}
  return content


if __name__ == '__main__':
  main()
