"""Where the deformable kernels sample, and the picture of it."""

import sys

import jax
import jax.numpy as jnp
from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
from PIL import Image
import pytest

from sadnet_jax.nn import blocks
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.ops import deform_conv2d, deform_conv2d_packed
from tests.support.command import finish, start
from tests.support.fast_jit import fast_jit
from tests.support.logged_runs import save_checkpoint, small_config
from tests.support.small_networks import SMALL, image, random_variables
from tools.plot_sampling import Sampling, parse_pixel, plot_sampling, sampling_positions

GROUPS = 8
SIZE = (69, 83)  # The network pads it to 72 x 88.
PIXELS = [(35, 43), (0, 0), (68, 82), (13, 70)]


def _network(offset_bias=None, **options):
  """A small network and its weights; the layers of offsets and masks have only the given bias."""
  model = SADNet(**SMALL, **options)
  params = random_variables(model)['params']
  for scale in range(1, 5):
    layer = params[f'dres{scale}']['conv_offset_mask']
    layer['kernel'][:] = 0
    layer['bias'][:] = 0 if offset_bias is None else offset_bias
  return model, params


def _regular(pixel, scale):
  """The 3x3 neighbourhood of the pixel's cell, computed from the pixels of each cell."""
  stride = 2 ** (scale - 1)
  expected = []
  for dy in (-1, 0, 1):
    for dx in (-1, 0, 1):
      cell = []
      for start_of, d in zip(pixel, (dy, dx), strict=True):
        first = next(f for f in range(0, 1000, stride) if f <= start_of < f + stride) + d * stride
        cell.append(np.mean(range(first, first + stride)))
      expected.append(cell)
  return np.array(expected)


@pytest.mark.parametrize('dtype', [None, jnp.bfloat16])
def test_offsets_are_in_cells_of_the_scale(dtype):
  # Eighths up to 16 are exact in bfloat16.
  offset = np.random.default_rng(0).integers(-128, 128, (GROUPS, 9, 2)) / 8
  logits = np.random.default_rng(1).normal(size=(GROUPS, 9)).astype(np.float32)
  bias = np.concatenate([offset.ravel(), logits.ravel()])
  model, params = _network(bias, dtype=dtype, channels=1)
  noisy = image(size=SIZE, channels=1)
  denoised, samplings = sampling_positions(model, params, noisy[0], PIXELS)
  assert denoised.shape == noisy.shape[1:]
  assert sorted(samplings) == [1, 2, 3, 4]
  for scale, (positions, masks) in samplings.items():
    for i, pixel in enumerate(PIXELS):
      moved = _regular(pixel, scale) + offset * 2 ** (scale - 1)
      np.testing.assert_allclose(positions[i], moved, atol=1e-4)
      np.testing.assert_allclose(masks[i], 1 / (1 + np.exp(-logits)), atol=1e-6 if dtype is None else 1e-2)


def test_the_samples_are_those_that_the_operator_takes(monkeypatch):
  """The gradient of an output with respect to the input shows where the network sampled.

  Through one tap, the output of a cell depends on the four neighbours of a sample in every group. Their
  gradients sum to the mask, and their centre of mass is the sample.
  """
  model = SADNet(**SMALL)
  variables = random_variables(model)
  pixel, noisy = (35, 43), image(size=SIZE)

  @fast_jit
  def arguments_of_the_operator(variables, noisy):
    calls = []

    def record(*arguments, **options):
      calls.append(arguments)
      return deform_conv2d_packed(*arguments, **options)

    with monkeypatch.context() as patch:
      patch.setattr(blocks, 'deform_conv2d_packed', record)
      model.apply(variables, noisy, mutable=['intermediates'])
    # From the coarsest scale to the finest.
    return {4 - number: arguments[:2] for number, arguments in enumerate(calls)}

  calls = arguments_of_the_operator(variables, noisy)
  _, samplings = sampling_positions(model, variables['params'], noisy[0], [pixel])
  for scale in range(1, 5):
    stride = 2 ** (scale - 1)
    x, prediction = calls[scale]
    offset, mask = prediction[..., : 18 * GROUPS], jax.nn.sigmoid(prediction[..., 18 * GROUPS :])
    row, column = pixel[0] // stride, pixel[1] // stride
    assert np.ptp(offset[0, row, column]) > 1, 'offsets are too regular for this test'

    @fast_jit
    def gradient(kernel, x=x, offset=offset, mask=mask, cell=(row, column)):
      def output(x):
        y = deform_conv2d(x, offset, mask, kernel, padding=1, deformable_groups=GROUPS)
        return y[0, cell[0], cell[1], 0]

      return jax.grad(output)(x)

    for tap in range(9):
      kernel = np.zeros((3, 3, x.shape[-1], 1), np.float32)
      kernel[tap // 3, tap % 3] = 1
      by_group = np.asarray(gradient(kernel))[0].reshape(*x.shape[1:3], GROUPS, -1)[..., 0]
      total = by_group.sum(axis=(0, 1))
      rows, columns = np.indices(x.shape[1:3]) * stride + (stride - 1) / 2
      centre = np.stack([np.einsum('hw,hwg->g', axis, by_group) / total for axis in (rows, columns)], -1)
      np.testing.assert_allclose(total, samplings[scale].masks[0, :, tap], rtol=1e-4)
      np.testing.assert_allclose(centre, samplings[scale].positions[0, :, tap], atol=1e-3 * stride)


def test_invalid_pixels_images_and_networks_are_refused():
  model, params = _network()
  noisy = image(size=(9, 12))[0]
  for pixel in [(9, 0), (0, 12), (-1, 3)]:
    text = f'pixel {pixel[0]},{pixel[1]} is outside the image: rows are 0 to 8, columns 0 to 11'
    with pytest.raises(ValueError, match=text):
      sampling_positions(model, params, noisy, [(8, 11), pixel])
  with pytest.raises(ValueError, match='pixels: at least one'):
    sampling_positions(model, params, noisy, [])
  with pytest.raises(ValueError, match=r'noisy must be one image \[H, W, 3\], not of shape \(1, 9, 12, 3\)'):
    sampling_positions(model, params, noisy[None], [(0, 0)])
  with pytest.raises(ValueError, match=r'noisy must be \[N, H, W, 3\] .* shape \(1, 9, 12, 1\)'):
    sampling_positions(model, params, noisy[..., :1], [(0, 0)])
  with pytest.raises(ValueError, match=r'model\.use_rsab must be True'):
    sampling_positions(SADNet(**SMALL, use_rsab=False), params, noisy, [(0, 0)])


def _samplings(pixels, seed=0):
  rng = np.random.default_rng(seed)
  near = np.array(pixels)[:, None, None]
  shape = (len(pixels), GROUPS, 9)
  return {
    s: Sampling(near + 2**s * rng.normal(size=(*shape, 2)), rng.uniform(size=shape)) for s in (1, 2, 3, 4)
  }


def _pixels_of(figure):
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('pixels', [[(3, 5)], [(0, 0), (20, 32), (7, 30)]])
def test_a_plot_has_the_size_it_needs(channels, pixels):
  drawn = _pixels_of(plot_sampling(image(size=(21, 33), channels=channels)[0], pixels, _samplings(pixels)))
  height, width, _ = drawn.shape
  assert width == 1000
  assert 175 * len(pixels) < height < 175 * len(pixels) + 200
  assert drawn[..., :3].std() > 10
  # Nothing is cut off at the edges.
  for edge in (drawn[:2], drawn[-2:], drawn[:, :2], drawn[:, -2:]):
    assert (edge == 255).all()


def test_rows_are_pixels_and_columns_are_scales():
  pixels = [(3, 5), (20, 32)]
  samplings = _samplings(pixels)
  figure = plot_sampling(image(size=(21, 33))[0], pixels, samplings)
  panels = [axes for axes in figure.axes if axes.collections and axes.images]
  assert len(panels) == 8
  in_order = sorted(panels, key=lambda axes: (-axes.get_position().y0.round(3), axes.get_position().x0))
  for i, axes in enumerate(in_order):
    (row, column), scale = pixels[i // 4], 4 - i % 4
    positions, masks = (part[i // 4] for part in samplings[scale])
    (dots,) = axes.collections
    np.testing.assert_allclose(dots.get_offsets()[:, ::-1], positions.reshape(-1, 2))
    np.testing.assert_array_equal(dots.get_array(), masks.ravel())
    # All panels have the same colour scale.
    assert dots.get_clim() == panels[0].collections[0].get_clim()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert (left + right, bottom + top) == (2 * column, 2 * row)
    assert left < positions[..., 1].min() <= positions[..., 1].max() < right
    assert top < positions[..., 0].min() <= positions[..., 0].max() < bottom
    assert axes.images[0].get_extent() == [-0.5, 32.5, 20.5, -0.5]
    lines = [line.get_xydata() for line in axes.lines]
    assert any(np.array_equal(line, [(column, row)]) for line in lines)
    assert any(np.array_equal(line[:, ::-1], _regular(pixels[i // 4], scale)) for line in lines)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(ValueError, match=r"Matplotlib is missing; .* '\.\[plot\]'"):
    plot_sampling(image()[0], [(1, 1)], _samplings([(1, 1)]))


@pytest.mark.parametrize('text', ['3', '3,', '3,4,5', '-1,2', '1.5,2'])
def test_a_pixel_is_two_whole_numbers(text):
  with pytest.raises(ValueError, match=f"--pixel: must be ROW,COLUMN, such as 120,200, not '{text}'"):
    parse_pixel(text)


def test_the_command_writes_the_plot_of_a_run(tmp_path):
  model = SADNet(**SMALL)
  params = random_variables(model)['params']
  save_checkpoint(tmp_path, params, small_config(), step=7)
  picture = np.random.default_rng(0).integers(0, 256, (19, 33, 3), np.uint8)
  Image.fromarray(picture).save(tmp_path / 'color.png')
  command = [
    '-m',
    'tools.plot_sampling',
    '--config=configs/color.py:25',
    '--config.model.width=8',
    '--config.model.offset_width=8',
    f'--checkpoint={tmp_path}',
  ]
  image_flag, output = f'--image={tmp_path}/color.png', f'--output={tmp_path}/out.png'
  pixels = ['--pixel=3,5', '--pixel=18,32']
  success = start(*command, image_flag, *pixels, output, '--sigma_255=0')
  failure = start(*command, image_flag, *pixels, '--output=out.jpg')
  assert f'out.png: {tmp_path}/color.png, sigma_255 0, checkpoint of step 7' in finish(success)[0]
  denoised, samplings = sampling_positions(
    model, params, picture.astype(np.float32) / 255, [(3, 5), (18, 32)]
  )
  expected = _pixels_of(plot_sampling(denoised, [(3, 5), (18, 32)], samplings))[..., :3]
  np.testing.assert_allclose(np.asarray(Image.open(tmp_path / 'out.png')).astype(int), expected, atol=1)
  _, errors = finish(failure, succeeds=False)
  assert 'python -m tools.plot_sampling: --output: out.jpg must have the extension .png' in errors
  assert 'Traceback' not in errors
