"""The formats that sadnet-denoise reads and writes, and its comparisons."""

import numpy as np
import OpenImageIO
from PIL import Image, features
import pillow_heif
import pytest

from sadnet_jax.denoise import job
from sadnet_jax.images import Metadata, Photograph, read_photograph, write_photograph
from sadnet_jax.images.photograph import srgb_from_linear, to_float
from tests.support.denoise_command import all_files, picture, pixels_of, run
from tests.support.photograph_files import write_dng

pytestmark = pytest.mark.usefixtures('stand_in_network')


@pytest.mark.parametrize(
  ('name', 'form', 'options'),
  [
    ('a.exr', 'tif', ()),
    ('a.exr', 'exr', ('--no-linear',)),
    ('a.tif', 'png', ('--white-level', '15520')),
    ('grey.png', 'webp', ()),
  ],
)
def test_a_comparison_made_later_is_that_made_at_once(folder, weights, capsys, name, form, options):
  (folder / 'in').mkdir()
  values = np.random.default_rng(0).random((16, 24, 1 if 'grey' in name else 3), np.float32)
  pixels = {'.exr': values, '.tif': np.uint16(values * 15520), '.png': np.uint8(values * 255)}[name[-4:]]
  write_photograph(folder / 'in' / name, Photograph(pixels, linear=name == 'a.exr'))
  arguments = ['in', '-o', 'out', '--format', form, '--compare', '--model', weights, *options]
  assert run(*arguments, capsys=capsys)[0] == 0
  (comparison,) = (folder / 'out').glob('*.compare.png')
  at_once = pixels_of(comparison)
  comparison.unlink()
  assert run(*arguments, '--skip-existing', capsys=capsys)[0] == 0
  assert np.abs(pixels_of(comparison).astype(int) - at_once).max() <= 1


def test_a_comparison_of_linear_light_has_no_profile_of_it():
  profile = Metadata(icc_profile=b'profile')
  for linear, wanted in ((True, None), (False, b'profile')):
    photograph = Photograph(np.full((4, 4, 3), 0.5, np.float32), metadata=profile, linear=linear)
    assert job.comparison(photograph, photograph)[0].metadata.icc_profile == wanted


def test_a_comparison_shows_both_upright(folder, weights, denoiser, capsys):
  pixels = np.random.default_rng(0).integers(0, 2**16, (13, 22, 1), dtype=np.uint16)
  exif = Image.Exif()
  exif[274] = 6  # A quarter turn to the right.
  Image.fromarray(pixels[:, :, 0]).save(folder / 'a.png', exif=exif)
  status, _ = run('a.png', '-o', 'b.tif', '--compare', '--model', weights, capsys=capsys)
  assert status == 0
  noisy, denoised = (np.round(np.rot90(x, -1) / 257) for x in (pixels, denoiser(pixels)))
  np.testing.assert_array_equal(pixels_of('b.compare.png'), np.concatenate([noisy, denoised], axis=1))


def test_a_comparison_of_a_large_picture_shows_its_middle(monkeypatch):
  monkeypatch.setattr(job, 'COMPARISON_PX', 8)
  noisy = Photograph(np.arange(20 * 7 * 3, dtype=np.uint16).astype(np.uint8).reshape(20, 7, 3))
  noisy = Photograph(noisy.pixels, metadata=Metadata(icc_profile=b'profile'))
  compared, notes = job.comparison(noisy, noisy)
  assert notes == ('shows the middle 7x8 pixels only',)
  np.testing.assert_array_equal(compared.pixels, np.concatenate([noisy.pixels[6:14]] * 2, axis=1))
  assert compared.metadata.icc_profile == b'profile'


def test_what_is_brighter_than_white_passes_by_the_network(
  folder, weights, denoiser, stand_in_network, capsys
):
  stand_in_network.undo()
  pixels = np.random.default_rng(0).uniform(0, 1, (13, 22, 3)).astype(np.float32)
  pixels[5, 6] = 20
  write_photograph('a.tif', Photograph(pixels))
  write_photograph('a.exr', Photograph(pixels))
  known = np.minimum(pixels, 1)
  wanted = denoiser(known) + (pixels - known)
  for name in ('a.tif', 'a.exr'):
    status, lines = run(name, '-o', f'b{name}', '--model', weights, capsys=capsys)
    assert (status, len(lines)) == (0, 1)
    np.testing.assert_allclose(read_photograph(f'b{name}').pixels, wanted, rtol=1e-4, atol=1e-4)
  # With --linear, TIFF is read as linear light and written as linear light.
  run('a.tif', '-o', 'c.tif', '--model', weights, '--linear', capsys=capsys)
  displayed = srgb_from_linear(pixels)
  known = np.minimum(displayed, 1)
  wanted = denoiser(known) + (displayed - known)
  np.testing.assert_allclose(read_photograph('c.tif', linear=True).pixels, wanted, rtol=1e-4, atol=1e-4)


def test_formats_that_are_only_read_become_png_and_tiff(folder, weights, capsys):
  write_dng(folder / 'in' / 'a.DNG')
  pillow_heif.from_pillow(Image.new('RGB', (32, 24), (90, 120, 150))).save(folder / 'in' / 'b.heic')
  status, lines = run('in', '-o', 'out', '--model', weights, capsys=capsys)
  assert status == 0, lines
  assert all_files(folder / 'out') == ['a.tif', 'b.png']
  assert read_photograph('out/a.tif').pixels.dtype == np.uint16


@pytest.mark.parametrize('form', ['png', 'jpg', 'tif', 'webp', 'exr', 'jxl'])
def test_a_folder_is_written_in_the_format_that_is_asked_for(folder, weights, denoiser, form, capsys):
  random = np.random.default_rng(0)
  smooth = np.add.outer(np.arange(24), np.arange(40))[:, :, None] * np.array([1, 2, 3]) + 20
  exif = Image.Exif()
  exif[271] = 'Maker'
  floats = random.uniform(0, 1, (24, 40, 3)).astype(np.float32)
  pixels = {'eight': smooth.astype(np.uint8), 'deep': (smooth * 257 + 3).astype(np.uint16), 'float': floats}
  metadata = Metadata(exif=exif.tobytes().removeprefix(b'Exif\0\0'))
  for name, extension in (('eight', '.png'), ('deep', '.png'), ('float', '.tif')):
    (folder / 'in').mkdir(exist_ok=True)
    write_photograph(f'in/{name}{extension}', Photograph(pixels[name], metadata=metadata))
  status, lines = run('in', '-o', 'out', '--format', form, '--model', weights, capsys=capsys)
  assert status == 0, lines
  assert all_files(folder / 'out') == sorted(f'{name}.{form}' for name in pixels)
  depths = {'jpg': np.uint8, 'webp': np.uint8, 'exr': np.float32}
  for name, noisy in pixels.items():
    written = read_photograph(f'out/{name}.{form}')
    deepest = np.float32 if form == 'tif' else np.uint16
    assert written.pixels.dtype == depths.get(form, noisy.dtype if name != 'float' else deepest), name
    tolerance = 0.1 if form == 'jpg' and name == 'float' else 0.02
    found, wanted = (to_float(x) for x in (written.pixels, denoiser(noisy)))
    np.testing.assert_allclose(found, np.clip(wanted, 0, 1), atol=tolerance)
    assert (b'Maker' in (written.metadata.exif or b'')) == (form != 'exr')
  rounded = [line for line in lines if f'out/deep.{form}: its 16 bits are rounded to 8 bits' in line]
  assert len(rounded) == (form in ('jpg', 'webp'))
  # The same command goes on where it stopped.
  (folder / f'out/deep.{form}').unlink()
  before = (folder / f'out/eight.{form}').read_bytes()
  options = ['--format', form, '--model', weights, '--skip-existing']
  status, lines = run('in', '-o', 'out', *options, capsys=capsys)
  assert (status, lines[-1].partition(' in ')[0]) == (0, 'sadnet-denoise: 1 of 3 pictures denoised')
  assert (folder / f'out/eight.{form}').read_bytes() == before


def test_the_quality_of_jpeg_files_is_that_of_a_library_that_is_asked_for_it(folder, weights, capsys):
  picture(folder / 'a.png', size=(64, 64))

  def tables(*options):
    run('a.png', '-o', 'out', '--overwrite', '--format', 'jpg', '--model', weights, *options, capsys=capsys)
    with Image.open('out/a.jpg') as image:
      return image.quantization

  for quality, options in ((95, ()), (30, ('--jpeg-quality', '30')), (100, ('--jpeg-quality', '100'))):
    Image.new('RGB', (8, 8)).save(folder / 'b.jpg', quality=quality)
    with Image.open('b.jpg') as image:
      assert tables(*options) == image.quantization
  with pytest.raises(ValueError, match='jpeg_quality is 101, but must be from 1 to 100'):
    write_photograph('c.jpg', Photograph(np.zeros((8, 8, 3), np.uint8)), jpeg_quality=101)


def test_a_picture_that_the_format_cannot_store_is_named_and_the_others_are_written(folder, weights, capsys):
  picture(folder / 'in/a.png', channels=4)
  picture(folder / 'in/b.png')
  status, lines = run('in', '-o', 'out', '--format', 'jpg', '--model', weights, capsys=capsys)
  assert status == 1
  assert 'in/a.png: out/a.jpg: the photograph has transparency, which JPEG cannot store' in lines[0]
  assert all_files(folder / 'out') == ['b.jpg']


@pytest.mark.parametrize(
  ('form', 'output'),
  [('jxl', ['out', '--format', 'jxl']), ('webp', ['out', '--format', 'webp']), ('jxl', ['b.jxl'])],
)
def test_a_format_that_the_libraries_lack_is_refused_before_any_work(
  folder, weights, form, output, monkeypatch, capsys
):
  picture(folder / 'a.png')
  monkeypatch.setattr(OpenImageIO, 'is_imageio_format_name', lambda name: name != 'jpegxl')
  monkeypatch.setattr(features, 'check', lambda name: name != 'webp')
  status, (line,) = run('a.png', '-o', *output, '--model', weights, capsys=capsys)
  assert status == 2
  name, library = {'jxl': ('JPEG XL', 'OpenImageIO'), 'webp': ('WebP', 'Pillow')}[form]
  assert f'{name} cannot be written, because the installed {library} was built without it; choose' in line
  assert all_files(folder) == ['a.png']


def test_white_of_16_bits_can_be_given(folder, weights, capsys):
  pixels = np.array([[0, 800], [400, 900]], np.uint16)
  Image.fromarray(pixels).save(folder / 'a.png')
  arguments = ('a.png', '-o', 'b.png', '--model', weights, '--strength', '0')
  assert run(*arguments, '--white-level', '800', capsys=capsys)[0] == 0
  np.testing.assert_array_equal(pixels_of(folder / 'b.png')[:, :, 0], [[0, 800], [400, 800]])
  status, errors = run(*arguments, '--white-level', '70000', capsys=capsys)
  assert (status, "must be a whole number from 1 to 65535, not '70000'; " in errors[-1]) == (2, True)
