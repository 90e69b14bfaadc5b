"""The command sadnet-denoise: what it writes, what it leaves as it was, and errors in single pictures."""

import resource

import numpy as np
import pytest

import sadnet_jax
from sadnet_jax.denoise import job
from tests.support.command import finish, start
from tests.support.denoise_command import all_files, picture, pixels_of, run

pytestmark = pytest.mark.usefixtures('stand_in_network')


def test_a_picture_is_what_the_network_makes_of_it(folder, weights, denoiser, stand_in_network, capsys):
  stand_in_network.undo()
  pixels = picture(folder / 'a.png', channels=4)
  status, lines = run('a.png', '-o', 'b.tif', '--model', weights, capsys=capsys)
  assert status == 0
  assert lines[-1].startswith('a.png -> b.tif  22x13, ')
  assert lines[-1].endswith(' s')
  np.testing.assert_array_equal(pixels_of('b.tif')[:, :, :3], denoiser(pixels[:, :, :3]))
  np.testing.assert_array_equal(pixels_of('b.tif')[:, :, 3], pixels[:, :, 3])


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


def test_names_of_the_package_are_there_when_they_are_asked_for():
  assert set(sadnet_jax.__all__) <= set(dir(sadnet_jax))
  for name in sadnet_jax.__all__:
    assert getattr(sadnet_jax, name) is not None
  with pytest.raises(AttributeError, match="module 'sadnet_jax' has no attribute 'SADNett'"):
    _ = sadnet_jax.SADNett


def test_without_a_place_for_messages_pictures_are_written_all_the_same(folder, weights):
  picture(folder / 'a.png')
  closed = (
    'import os, sys; os.close(1); os.close(2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])'
  )
  names = [folder / 'a.png', '-o', folder / 'b.png', '--model', folder / weights]
  finish(start('-c', closed, '-m', 'sadnet_jax', *names))
  assert (folder / 'b.png').exists()
