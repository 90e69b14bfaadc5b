"""The command sadnet-denoise: what it writes, what it refuses, what it leaves as it was."""

import resource

import jax
import numpy as np
import OpenImageIO
from PIL import Image, features
import pillow_heif
import pytest

import sadnet_jax
from sadnet_jax import machine
from sadnet_jax.denoise import command, compilation_cache, job
from sadnet_jax.denoise.command import choose_device, main
from sadnet_jax.denoise.compiled_network import CompiledNetwork
from sadnet_jax.denoise.denoiser import OVERLAP_PX, Denoiser
from sadnet_jax.images import Metadata, Photograph, read_photograph, write_photograph
from sadnet_jax.images.photograph import srgb_from_linear, to_float
from sadnet_jax.images.writing import JPEG_QUALITY
from sadnet_jax.weights import index, loading
from sadnet_jax.weights.index import Entry, Noise, available
from tests.support.command import finish, start
from tests.support.denoise_command import all_files, picture, pixels_of, run, write_weights
from tests.support.photograph_files import write_dng

pytestmark = pytest.mark.usefixtures('stand_in_network')


@pytest.fixture
def denoiser(weights):
  return Denoiser.from_checkpoint(weights)


def test_a_picture_is_what_the_network_makes_of_it(folder, weights, denoiser, stand_in_network, capsys):
  stand_in_network.undo()
  pixels = picture(folder / 'a.png', channels=4)
  status, lines = run('a.png', '-o', 'b.tif', '--model', weights, capsys=capsys)
  assert status == 0
  assert lines[-1].startswith('a.png -> b.tif  22x13, ')
  assert lines[-1].endswith(' s')
  np.testing.assert_array_equal(pixels_of('b.tif')[:, :, :3], denoiser(pixels[:, :, :3]))
  np.testing.assert_array_equal(pixels_of('b.tif')[:, :, 3], pixels[:, :, 3])


def test_options_reach_the_denoiser(folder, weights, monkeypatch, capsys):
  seen = []
  monkeypatch.setattr(
    job, 'Denoiser', lambda *_, about, **options: seen.append(options) or (lambda x, **_: x)
  )
  arguments = ['a.png', '-o', 'b.png', '--model', weights, '--quiet']
  assert run(*arguments, capsys=capsys)[0] == 2
  picture(folder / 'a.png')
  run(*arguments, capsys=capsys)
  options = '--tile 16 --overlap 0 --self-ensemble --device cpu:7 --strength 0.5 --chroma-strength 0.9'
  run(*arguments, *options.split(), '--dilations', '1,2,3,4', capsys=capsys)
  defaults = {'tile_px': 'auto', 'ensemble': False, 'strength': 1, 'chroma_strength': None}
  assert seen[0] == {**defaults, 'device': jax.local_devices()[0]}
  assert seen[1] == {
    'tile_px': 16,
    'overlap_px': 0,
    'ensemble': True,
    'strength': 0.5,
    'chroma_strength': 0.9,
    'device': jax.local_devices()[7],
  }
  status, (line,) = run(*arguments, '--dilations', '1,2,4,8', capsys=capsys)
  assert status == 2
  assert '(1, 2, 4, 8)' in line


def test_strength_0_returns_the_picture(folder, weights, capsys):
  pixels = picture(folder / 'a.png')
  assert run('a.png', '-o', 'b.png', '--model', weights, '--strength', '0', capsys=capsys)[0] == 0
  np.testing.assert_array_equal(pixels_of('b.png'), pixels)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['nothing.png', '-o', 'x'], 'nothing.png: no such file or folder'),
    (['', '-o', 'x'], 'no such file or folder'),
    (['no*.png', '-o', 'x'], r'no picture \(.png, .jpg.*\) matches no\*.png'),
    (['a**.png', '-o', 'x'], r'a\*\*.png'),
    (['empty', '-o', 'x'], 'the folder empty has no pictures .*; pass --recursive to search its subfolders'),
    (
      ['a.png', 'b.png', '-o', 'x.png'],
      'x.png is one file for 2 pictures; to write into a folder, pass x.png/',
    ),
    (['a.png', '-o', ''], '--output is empty; name a file or a folder'),
    (['a.png', '-o', 'x.gif'], 'x.gif: .*.gif'),
    (['a.png', '-o', 'missing/x.png'], 'missing'),
    (['a.png', '-o', 'text'], 'text is a file, not a folder; choose an existing folder or a new name'),
    (['a.png', '-o', 'b.png/'], 'b.png/ is a file, not a folder'),
    (['a.png', '-o', 'text/x'], 'text is a file, not a folder'),
    (['a.png', 'sub/a.png', '-o', 'x'], 'a.png and sub/a.png have the same output, x/a.png; denoise them'),
    (['a.png', '-o', 'a.png', '--overwrite'], 'the output a.png is the input a.png; choose another name'),
    (['.', '-o', '.', '--overwrite'], 'the output a.png is the input a.png'),
    (['a.png', 'sub/c.png', '-o', 'sub', '--overwrite'], 'the output sub/c.png is the input sub/c.png'),
    (['b.png', '-o', 'linked', '--overwrite'], 'the output linked/b.png is the input b.png'),
    (
      ['a.png', 'b.png', '-o', 'full'],
      'full/a.png, full/b.png already exist; choose another output, or pass --overwrite or --skip-existing',
    ),
    (
      ['many', '-o', 'many_done'],
      'many_done/0.png, many_done/1.png, many_done/2.png and 2 more already exist',
    ),
    (['a.png', '-o', 'new.png', '--compare'], 'new.compare.png already exists'),
    (
      ['a.png', '-o', 'x.png', '--format', 'jpg'],
      'x.png is not the name of a jpg file, but --format is jpg; leave --format out, or end the name in .jpg',
    ),
    (
      ['a.png', '-o', 'x', '--jpeg-quality', '90'],
      '--jpeg-quality is given, but no output is a JPEG file; .*',
    ),
    (['a.png', '-o', 'x.webp', '--jpeg-quality', '90'], '--jpeg-quality is given, but no output is a JPEG'),
    (['.', '-o', 'x', '--format', 'tif', '--jpeg-quality', '90'], '--jpeg-quality is given, but no output'),
    (['a.png', '-o', 'x', '--model', 'colour_50'], 'colour_50'),
    (['a.png', '-o', 'x', '--tile', '12'], 'tile_px must be a multiple of 8, at least 16, not 12'),
    (['a.png', '-o', 'x', '--overlap', '-8'], 'overlap_px must be .*, not -8'),
    (
      ['a.png', '-o', 'x', '--device', 'cpu:8'],
      '--device: there is no cpu:8; choose from cpu:0, .*cpu:7$',
    ),
    (['a.png', '-o', 'x', '--device', 'tpu'], '--device: there is no tpu; choose from cpu:0'),
  ],
)
def test_impossible_requests_are_refused_before_any_work(folder, weights, arguments, message, capsys):
  for name in ('a.png', 'b.png', 'sub/a.png', 'sub/c.png', 'empty/sub/a.png', 'full/a.png', 'full/b.png'):
    picture(folder / name, size=(8, 8))
  for i in range(5):
    picture(folder / f'many/{i}.png', size=(8, 8))
    picture(folder / f'many_done/{i}.png', size=(8, 8))
  picture(folder / 'new.compare.png', size=(8, 8))
  (folder / 'text').write_text('text')
  (folder / 'linked').mkdir()
  (folder / 'linked/b.png').symlink_to('../b.png')
  before = all_files(folder)
  model = [] if '--model' in arguments else ['--model', weights]
  status, lines = run(*arguments, *model, capsys=capsys)
  assert status == 2
  (line,) = lines
  assert line.startswith('sadnet-denoise: ')
  with pytest.raises(ValueError, match=message):
    raise ValueError(line)
  assert all_files(folder) == before


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['a.png'], 'the following arguments are required: -o/--output'),
    (['-o', 'x'], 'the following arguments are required: INPUT'),
    (
      ['a.png', '-o', 'x', '--tile', 'small'],
      "--tile: must be auto, whole or a number of pixels, not 'small'",
    ),
    (['a.png', '-o', 'x', '--dilations', '1;2'], "--dilations: must be numbers such as 1,2,3,4, not '1;2'"),
    (['a.png', '-o', 'x', '--device', 'cuda'], '--device: must be cpu, gpu or tpu, optionally with a number'),
    (['a.png', '-o', 'x', '--device', 'gpu:'], '--device: must be cpu, gpu or tpu'),
    (['a.png', '-o', 'x', '--strength', 'half'], "--strength: must be a number from 0 to 1, not 'half'"),
    (
      ['a.png', '-o', 'x', '--chroma-strength', '1.1'],
      "--chroma-strength: must be a number from 0 to 1, not '1.1'",
    ),
    (['a.png', '-o', 'x', '--format', 'gif'], "--format: invalid choice: 'gif' (choose from"),
    (
      ['a.png', '-o', 'x', '--jpeg-quality', '0'],
      "--jpeg-quality: must be a whole number from 1 to 100, not '0'",
    ),
    (
      ['a.png', '-o', 'x', '--quality', 'good'],
      "--quality: invalid choice: 'good' (choose from",
    ),
    (
      ['a.png', '-o', 'x', '--quality', 'best', '--model', 'photo'],
      'argument --model: not allowed with argument --quality',
    ),
    (['a.png', '-o', 'x', '--over'], 'unrecognized arguments: --over'),
  ],
)
def test_wrong_options_are_refused(arguments, message, capsys):
  status, lines = run(*arguments, capsys=capsys)
  assert (status, len(lines)) == (2, 1)
  assert message in lines[0]
  assert lines[0].endswith('; sadnet-denoise --help shows all options and examples')


def test_options_may_stand_anywhere(folder, weights, capsys):
  for name in 'ab':
    picture(folder / f'{name}.png')
  status, _ = run('a.png', '-o', 'out', 'b.png', '--model', weights, capsys=capsys)
  assert status == 0
  assert all_files(folder / 'out') == ['a.png', 'b.png']


def test_names_after_two_dashes_may_start_with_one(folder, weights, capsys):
  picture(folder / 'in.png')
  for name in ('-a.png', '--quiet', 'b.png'):
    (folder / name).write_bytes((folder / 'in.png').read_bytes())
  options = ['-o', 'out', '--model', weights]
  status, lines = run('in.png', *options, '--', '-a.png', 'b.png', '--quiet', capsys=capsys)
  # The last is taken as a name too, one without an extension.
  assert status == 1
  assert any('--quiet: out/--quiet: ' in line for line in lines)
  assert all_files(folder / 'out') == ['-a.png', 'b.png', 'in.png']


def test_files_are_replaced_only_with_overwrite(folder, weights, denoiser, capsys):
  pixels = picture(folder / 'a.png')
  picture(folder / 'out/a.png', size=(3, 3))
  before = (folder / 'out/a.png').read_bytes()
  arguments = ['a.png', '-o', 'out', '--model', weights]
  assert run(*arguments, capsys=capsys)[0] == 2
  assert (folder / 'out/a.png').read_bytes() == before
  assert run(*arguments, '--overwrite', capsys=capsys)[0] == 0
  np.testing.assert_array_equal(pixels_of('out/a.png'), denoiser(pixels))
  assert all_files(folder) == ['a.png', 'out', 'out/a.png']


def test_existing_outputs_can_be_skipped(folder, weights, denoiser, capsys):
  pixels = {name: picture(folder / f'in/{name}.png', seed=ord(name)) for name in 'abc'}
  picture(folder / 'out/b.png', seed=1)
  before = (folder / 'out/b.png').read_bytes()
  arguments = ['in', '-o', 'out', '--model', weights, '--skip-existing']
  status, lines = run(*arguments, '--compare', capsys=capsys)
  assert status == 0
  assert lines[-1].startswith('sadnet-denoise: 2 of 3 pictures denoised in ')
  assert lines[-1].endswith(', 1 skipped because their output exists')
  assert (folder / 'out/b.png').read_bytes() == before
  files = [f'{name}{suffix}' for name in 'abc' for suffix in ('.compare.png', '.png')]
  assert all_files(folder / 'out') == files
  # As after an interruption between the two, the comparison is that of the existing picture.
  expected = np.concatenate([pixels['b'], pixels_of('out/b.png')], axis=1)
  np.testing.assert_array_equal(pixels_of('out/b.compare.png'), expected)
  np.testing.assert_array_equal(pixels_of('out/a.png'), denoiser(pixels['a']))
  status, (line,) = run(*arguments, capsys=capsys)
  assert (status, line.partition(' in ')[0]) == (0, 'sadnet-denoise: 0 of 3 pictures denoised')
  # A comparison without its picture is neither replaced nor skipped.
  (folder / 'out/a.png').unlink()
  status, (line,) = run(*arguments, '--compare', capsys=capsys)
  assert (status, line.partition('; ')[2]) == (2, 'choose another output, or pass --overwrite')
  assert run(*arguments, '--overwrite', capsys=capsys)[0] == 2
  # Nor one of a picture of another size.
  (folder / 'out/a.compare.png').unlink()
  picture(folder / 'out/a.png', size=(3, 3))
  status, lines = run(*arguments, '--compare', capsys=capsys)
  assert status == 1
  assert 'out/a.png has 3x3 pixels, but the picture' in lines[0]


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


def test_options_without_effect_are_refused(folder, weights, capsys):
  picture(folder / 'a.png')
  for options, message in (
    (('--dilations', '1,2,3,4'), '--dilations is for weights of your own'),
    (('--model', weights, '--tile', 'whole', '--overlap', '8'), '--overlap is for tiles, but --tile whole'),
  ):
    status, lines = run('a.png', '-o', 'b.png', *options, capsys=capsys)
    assert status == 2
    assert message in lines[-1]


def test_a_comparison_of_linear_light_has_no_profile_of_it():
  profile = Metadata(icc_profile=b'profile')
  for linear, wanted in ((True, None), (False, b'profile')):
    photograph = Photograph(np.full((4, 4, 3), 0.5, np.float32), metadata=profile, linear=linear)
    assert job.comparison(photograph, photograph)[0].metadata.icc_profile == wanted


def test_outputs_of_another_process_on_the_same_folder_are_skipped(folder, weights, monkeypatch, capsys):
  for name in 'ab':
    picture(folder / f'in/{name}.png')
  read = job.read_photograph

  def read_while_another_writes(path, **options):
    (folder / 'out/b.png').write_text('theirs')
    return read(path, **options)

  (folder / 'out').mkdir()
  monkeypatch.setattr(job, 'read_photograph', read_while_another_writes)
  status, lines = run('in', '-o', 'out', '--model', weights, '--skip-existing', capsys=capsys)
  assert status == 0
  assert lines[-1].endswith(', 1 skipped because their output exists')
  assert (folder / 'out/b.png').read_text() == 'theirs'


def test_a_picture_that_another_process_denoises_at_the_same_time_is_skipped(
  folder, weights, monkeypatch, capsys
):
  for name in 'ab':
    picture(folder / f'in/{name}.png')
  write = job.write_photograph

  def write_after_another(path, photograph, **options):
    if not path.exists():
      path.write_text('theirs')
    return write(path, photograph, **options)

  monkeypatch.setattr(job, 'write_photograph', write_after_another)
  status, lines = run('in', '-o', 'out', '--model', weights, '--skip-existing', capsys=capsys)
  assert status == 0
  assert lines[-1].endswith(', 2 skipped because their output exists')
  assert (folder / 'out/a.png').read_text() == 'theirs'
  for name in 'ab':
    (folder / f'out/{name}.png').unlink()
  assert run('in', '-o', 'out', '--model', weights, capsys=capsys)[0] == 1


def test_pictures_of_equal_size_are_denoised_one_after_another(folder, weights, capsys):
  for number, height in enumerate((16, 8, 16, 24, 8)):
    picture(folder / f'in/{number}.png', size=(height, 16))
  status, lines = run('in', '-o', 'out', '--model', weights, capsys=capsys)
  assert status == 0
  assert [line.split('.png')[0] for line in lines[:-1]] == ['in/0', 'in/2', 'in/1', 'in/4', 'in/3']


def test_a_file_that_appears_meanwhile_is_kept(folder, weights, monkeypatch, capsys):
  picture(folder / 'a.png')
  write = job.write_photograph

  def write_late(path, photograph, **options):
    path.write_text('mine')
    return write(path, photograph, **options)

  monkeypatch.setattr(job, 'write_photograph', write_late)
  status, (line,) = run('a.png', '-o', 'out', '--model', weights, capsys=capsys)
  assert status == 1
  assert line.startswith('sadnet-denoise: a.png: out/a.png')
  assert 'exists' in line
  assert (folder / 'out/a.png').read_text() == 'mine'
  assert all_files(folder) == ['a.png', 'out', 'out/a.png']


def test_two_pictures_never_share_an_output(folder, weights, denoiser, capsys):
  # As on a system where A.png and a.png are one name.
  one = picture(folder / 'in/one/a.png')
  picture(folder / 'in/two/a.png', seed=1)
  (folder / 'out/one').mkdir(parents=True)
  (folder / 'out/two').symlink_to('one')
  options = ['--recursive', '--overwrite', '--model', weights]
  status, lines = run('in', '-o', 'out', *options, capsys=capsys)
  assert status == 1
  assert 'in/two/a.png: out/two/a.png is the output of another picture on this file system' in lines[1]
  np.testing.assert_array_equal(pixels_of('out/one/a.png'), denoiser(one))


@pytest.mark.parametrize(
  ('error', 'text'),
  [
    (MemoryError(), 'not enough memory for this picture; try smaller tiles (--tile) or a smaller picture'),
    (RecursionError('too\ndeep'), 'unexpected error, please report it: RecursionError: too deep'),
    (OSError(5, 'Input/output error'), 'Input/output error'),
    (ValueError('image has\nNaN'), 'image has NaN'),
  ],
)
def test_an_error_in_a_picture_does_not_stop_the_others(folder, weights, error, text, monkeypatch, capsys):
  for name in 'abc':
    picture(folder / f'in/{name}.png')
  read = job.read_photograph

  def read_some(path, **_):
    if path.name == 'b.png':
      raise error
    return read(path)

  monkeypatch.setattr(job, 'read_photograph', read_some)
  status, lines = run('in', '-o', 'out', '--model', weights, '--quiet', capsys=capsys)
  assert status == 1
  assert lines[0].startswith(f'sadnet-denoise: in/b.png: {text}')
  (summary,) = lines[1:]
  assert summary.startswith('sadnet-denoise: 2 of 3 pictures denoised in ')
  assert summary.endswith(' s, 1 failed')
  assert all_files(folder / 'out') == ['a.png', 'c.png']


def test_a_full_disk_leaves_no_incomplete_file(folder, weights, capsys):
  picture(folder / 'in/large.png', size=(16, 3000))
  picture(folder / 'in/small.png')
  arguments = ['in', '-o', 'out', '--model', weights, '--tile', '64', '--overlap', '0']
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
  try:
    status, lines = run(*arguments, '--no-compilation-cache', capsys=capsys)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert status == 1
  assert lines[0].startswith('sadnet-denoise: in/large.png: out/large.png: ')
  assert all_files(folder / 'out') == ['small.png']


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


def test_each_kind_of_picture_has_its_network(folder, weights, stand_in_network, monkeypatch, capsys):
  def denoise(self, noisy, **_):
    # Differs between the networks, and a picture that is turned is not denoised like one that is not.
    rows = np.linspace(0.6, 0.8, noisy.shape[1], dtype=np.float32)[:, None, None]
    return rows * noisy + np.float32(0.03 * self.model.channels + 0.01 * self.model.offset_width)

  stand_in_network.setattr(CompiledNetwork, '__call__', denoise)
  grey_weights = write_weights(folder / 'grey.safetensors', channels=1)
  small_weights = write_weights(folder / 'small.safetensors', offset_width=3)
  files = {'rgb': weights, 'mono': grey_weights, 'small': small_weights}
  kinds = {'rgb': ('color',), 'mono': ('gray',), 'small': ('fast',)}
  noise = Noise('gaussian', (50, 50), False)

  def entry(name):
    return Entry(name, f'{name}.safetensors', '', 1, '', 3, noise, '', kinds[name])

  def published(*names):
    monkeypatch.setattr(index, 'available', lambda: {name: entry(name) for name in names})

  monkeypatch.setattr(loading, 'published', files.__getitem__)
  grey, colour = picture(folder / 'in/grey.png', channels=1), picture(folder / 'in/rgb.png')

  def assert_denoised_by(colour_by, grey_by, *options, ensemble=False):
    assert run('in', '-o', 'out', '--overwrite', *options, capsys=capsys)[0] == 0
    for name, pixels, by in (('rgb', colour, colour_by), ('grey', grey, grey_by)):
      expected = Denoiser.from_checkpoint(by, ensemble=ensemble)(pixels)
      np.testing.assert_array_equal(pixels_of(f'out/{name}.png'), expected)

  published('rgb', 'mono', 'small')
  assert_denoised_by(weights, grey_weights)
  assert_denoised_by(weights, grey_weights, '--quality', 'balanced')
  assert_denoised_by(small_weights, grey_weights, '--quality', 'fast')
  assert_denoised_by(weights, grey_weights, '--quality', 'best', ensemble=True)
  assert_denoised_by(weights, weights, '--model', weights)
  published('rgb', 'small')
  assert_denoised_by(weights, weights)
  assert_denoised_by(small_weights, weights, '--quality', 'fast')
  status, lines = run('in', '-o', 'new', '--model', grey_weights, capsys=capsys)
  assert status == 1
  assert 'in/rgb.png: this is a colour picture, but these weights are for grey ones' in lines[1]
  published('mono')
  status, lines = run('in', '-o', 'newer', '--quality', 'fast', capsys=capsys)
  assert status == 2
  reason = "no weights are published for colour pictures at the quality 'fast'; choose another, or a model"
  assert lines == [f'sadnet-denoise: {reason}']
  published('small')
  status, lines = run('in', '-o', 'newer', '--quality', 'fast', capsys=capsys)
  assert status == 1
  assert "in/grey.png: no weights are published for grey pictures at the quality 'fast'" in '\n'.join(lines)


@pytest.mark.parametrize(
  ('model', 'quality', 'message'),
  [
    ('photo', 'best', "got model 'photo' and quality 'best', but a quality chooses its own model; leave one"),
    (None, 'good', "quality must be one of fast, balanced, best, not 'good'"),
  ],
)
def test_impossible_choices_of_networks_are_refused(model, quality, message):
  with pytest.raises(ValueError, match=message):
    job.Networks(model, quality=quality, dilations=None, options={})


def test_networks_that_choose_other_weights_share_those_they_have(folder, weights):
  networks = job.Networks(str(weights), dilations=None, options={})
  first = networks.for_channels(3)
  other = write_weights(folder / 'other.safetensors', offset_width=3)
  assert networks.choosing(str(other)).for_channels(3).model != first.model
  assert networks.choosing(str(weights)).for_channels(3) is first


def test_the_published_weights_are_found(folder, capsys):
  # Before anything is denoised: the picture is none.
  (folder / 'a.png').write_text('')
  status, lines = run('a.png', '-o', 'b.png', capsys=capsys)
  assert status == 1
  (line,) = lines
  assert line.startswith('sadnet-denoise: a.png: ')


def test_devices_are_named_by_kind_and_number():
  assert choose_device(None) == choose_device('cpu') == jax.local_devices()[0]
  assert choose_device('cpu:5') == jax.local_devices()[5]
  with pytest.raises(ValueError, match='--device: there is no gpu:1; choose from cpu:0, cpu:1'):
    choose_device('gpu:1')


def test_an_accelerator_that_is_not_used_is_noted(folder, weights, monkeypatch, capsys):
  picture(folder / 'a.png')
  monkeypatch.setattr(command, 'may_have_accelerator', lambda: True)
  why = "to see why JAX does not use it: python -c 'import jax; print(jax.devices())'"
  for options, noted in (((), True), (('--device', 'cpu'), False), (('-q',), False)):
    status, lines = run('a.png', '-o', 'b.png', '--model', weights, '--overwrite', *options, capsys=capsys)
    assert status == 0
    note = f'sadnet-denoise: computing on the CPU, though a package for GPU or TPU is installed; {why}'
    assert (note in lines) == noted
  with pytest.raises(ValueError, match=r'there is no gpu:1; .* a package for it is installed, to see why'):
    choose_device('gpu:1')


def test_devices_that_jax_cannot_use_are_named(monkeypatch):
  def local_devices():
    raise RuntimeError('Unable to initialize backend')

  monkeypatch.setattr(jax, 'local_devices', local_devices)
  with pytest.raises(ValueError, match='--device: JAX cannot use its default device: Unable to initialize'):
    choose_device(None)


def test_help_shows_defaults(capsys):
  with pytest.raises(SystemExit):
    main(['--help'])
  text = ' '.join(capsys.readouterr().out.split())
  assert f'overlap of neighbouring tiles (default: {OVERLAP_PX})' in text
  assert f'quality of JPEG files, from 1 to 100 (default: {JPEG_QUALITY})' in text


def test_help_and_version_import_nothing_heavy():
  code = (
    'import sys; sys.argv[1:] = {!r}; from sadnet_jax.denoise.command import main\ntry: main()\nfinally: '
  )
  code += 'print(sorted({{"jax", "numpy", "PIL", "tqdm"}} & set(sys.modules)))'
  for option in ('--help', '--version'):
    output, errors = finish(start('-c', code.format([option])))
    assert output.splitlines()[-1] == '[]'
    assert errors == ''
  assert output.startswith(f'sadnet-denoise {machine.version("sadnet-jax")}')


def test_models_are_listed(capsys):
  with pytest.raises(SystemExit, match='0'):
    main(['--list-models'])
  output = capsys.readouterr().out
  assert output.splitlines() == [str(entry) for entry in available().values()]


def test_names_of_the_package_are_there_when_they_are_asked_for():
  assert set(sadnet_jax.__all__) <= set(dir(sadnet_jax))
  for name in sadnet_jax.__all__:
    assert getattr(sadnet_jax, name) is not None
  with pytest.raises(AttributeError, match="module 'sadnet_jax' has no attribute 'SADNett'"):
    _ = sadnet_jax.SADNett


def test_programs_are_cached_unless_told_otherwise(folder, weights, monkeypatch, capsys):
  picture(folder / 'a.png')
  calls = []
  keep = compilation_cache.keeping_programs
  monkeypatch.setattr(compilation_cache, 'keeping_programs', lambda: calls.append(1) or keep())
  run('a.png', '-o', 'b.png', '--model', weights, capsys=capsys)
  assert calls == [1]
  run('a.png', '-o', 'c.png', '--model', weights, '--no-compilation-cache', capsys=capsys)
  assert calls == [1]


def test_without_a_place_for_messages_pictures_are_written_all_the_same(folder, weights):
  picture(folder / 'a.png')
  closed = (
    'import os, sys; os.close(1); os.close(2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])'
  )
  names = [folder / 'a.png', '-o', folder / 'b.png', '--model', folder / weights]
  finish(start('-c', closed, '-m', 'sadnet_jax', *names))
  assert (folder / 'b.png').exists()


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
