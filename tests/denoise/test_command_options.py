"""The options of sadnet-denoise: what they choose, what is refused, and what they say of themselves."""

import jax
import numpy as np
import pytest

from sadnet_jax import machine
from sadnet_jax.denoise import command, compilation_cache, job
from sadnet_jax.denoise.command import choose_device, main
from sadnet_jax.denoise.compiled_network import CompiledNetwork
from sadnet_jax.denoise.denoiser import OVERLAP_PX, Denoiser
from sadnet_jax.images.writing import JPEG_QUALITY
from sadnet_jax.weights import index, loading
from sadnet_jax.weights.index import Entry, Noise, available
from tests.support.command import finish, start
from tests.support.denoise_command import all_files, picture, pixels_of, run, write_weights

pytestmark = pytest.mark.usefixtures('stand_in_network')


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


def test_options_without_effect_are_refused(folder, weights, capsys):
  picture(folder / 'a.png')
  for options, message in (
    (('--dilations', '1,2,3,4'), '--dilations is for weights of your own'),
    (('--model', weights, '--tile', 'whole', '--overlap', '8'), '--overlap is for tiles, but --tile whole'),
  ):
    status, lines = run('a.png', '-o', 'b.png', *options, capsys=capsys)
    assert status == 2
    assert message in lines[-1]


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


def test_programs_are_cached_unless_told_otherwise(folder, weights, monkeypatch, capsys):
  picture(folder / 'a.png')
  calls = []
  keep = compilation_cache.keeping_programs
  monkeypatch.setattr(compilation_cache, 'keeping_programs', lambda: calls.append(1) or keep())
  run('a.png', '-o', 'b.png', '--model', weights, capsys=capsys)
  assert calls == [1]
  run('a.png', '-o', 'c.png', '--model', weights, '--no-compilation-cache', capsys=capsys)
  assert calls == [1]
