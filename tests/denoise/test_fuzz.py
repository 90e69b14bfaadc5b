"""The command on hundreds of malformed and odd files: one line each, no traceback, no partial output."""

import os

from PIL import Image
import pytest

from sadnet_jax.images import INPUT_SUFFIXES, read_photograph, upright
from tests.support.command import finish, start
from tests.support.denoise_command import all_files, picture, run
from tests.support.malformed_images import malformed_images


def _check(lines, sources, output):
  """Checks for one line per bad file, and outputs for the good files only."""
  failed = set()
  for line in lines:
    assert line.isprintable()
    assert 'Traceback' not in line
    assert 'unexpected error' not in line
    if line.startswith('sadnet-denoise: '):
      (source,) = (path for path in sources if line.startswith(f'sadnet-denoise: {path}: '))
      assert source not in failed, line
      failed.add(source)
  good = [path for path in sources if path not in failed]
  assert all_files(output) == sorted(path.name for path in good)
  for source in good:
    assert f'{source} -> {output / source.name}' in '\n'.join(lines)
    # PNG, WebP and BMP are stored upright.
    written, read = (upright(read_photograph(path)) for path in (output / source.name, source))
    assert written.pixels.shape == read.pixels.shape
    if (size := _size_by_pillow(source)) is not None:
      assert _size_by_pillow(output / source.name) == size
  return good, failed


def _size_by_pillow(path):
  """The sides in order, because Pillow rotates TIFF alone; None if Pillow cannot read the file."""
  try:
    with Image.open(path) as image:
      image.load()
      return sorted(image.size)
  except Exception:
    return None


def test_damage_of_every_kind(weights, tmp_path, capsys):
  (tmp_path / 'in').mkdir()
  sources = malformed_images(tmp_path / 'in', 400, seed=0)
  status, lines = run(*sources, '-o', tmp_path / 'out', '--model', weights, capsys=capsys)
  assert status == 1
  good, failed = _check(lines[:-1], sources, tmp_path / 'out')
  assert len(good) > 50
  assert len(failed) > 200
  assert lines[-1].startswith(f'sadnet-denoise: {len(good)} of {len(sources)} pictures denoised in ')
  assert lines[-1].endswith(f', {len(failed)} failed')
  # No input was touched.
  assert len(list((tmp_path / 'in').iterdir())) == len(sources)


def test_a_folder_of_damaged_files_in_its_own_process(weights, tmp_path):
  (tmp_path / 'in').mkdir()
  sources = malformed_images(tmp_path / 'in', 300, 2)[::3]
  for path in set((tmp_path / 'in').iterdir()) - set(sources):
    path.unlink()
  sources = [path for path in sources if path.suffix in INPUT_SUFFIXES]
  process = start('-m', 'sadnet_jax', tmp_path / 'in', '-o', tmp_path / 'out', '--model', weights)
  output, errors = finish(process, succeeds=False)
  assert process.returncode == 1
  assert output == ''
  good, failed = _check(errors.splitlines()[:-1], sources, tmp_path / 'out')
  assert good
  assert failed


def test_unusual_file_names(weights, tmp_path, capsys):
  folder = tmp_path / 'in'
  fine = [
    'a b.png',
    ' .png',
    'ünï 写真.png',
    'new\nline.png',
    'esc\x1b[31m.png',
    '-o.png',
    'a[1].png',
    'q\'".png',
  ]
  fine += ['*.png', 'A.png', 'a.png', '%s{0}.png', 'a.png.png', f'{"x" * 251}.png', os.fsdecode(b'\xff.png')]
  for name in fine:
    picture(folder / name)
  status, lines = run(folder, '-o', tmp_path / 'out', '--model', weights, capsys=capsys)
  assert status == 0, lines
  assert all(line.isprintable() for line in lines)
  # The last one is the summary.
  assert len(lines) == len(fine) + 1
  assert all_files(tmp_path / 'out') == sorted(fine)


def test_pipes_devices_and_broken_links_fail_alone(weights, tmp_path, capsys):
  folder = tmp_path / 'in'
  picture(folder / 'a.png')
  (folder / 'folder.png').mkdir()
  (folder / 'loop.png').symlink_to('loop.png')
  (folder / 'broken.png').symlink_to('nowhere')
  (folder / 'link.png').symlink_to('a.png')
  (folder / 'circle').symlink_to('.')
  os.mkfifo(folder / 'pipe.png')
  (folder / 'device.png').symlink_to('/dev/zero')
  options = ['-o', tmp_path / 'out', '--model', weights, '--recursive']
  status, lines = run(folder, '/dev/null', *options, capsys=capsys)
  assert status == 1
  failed = ['broken.png', 'device.png', 'loop.png', 'pipe.png']
  *errors, _ = (line for line in lines if line.startswith('sadnet-denoise: '))
  assert [line.split(': ')[1] for line in errors] == [*(str(folder / name) for name in failed), '/dev/null']
  assert all_files(tmp_path / 'out') == ['a.png', 'link.png']


def test_an_unreadable_file_fails_alone(weights, tmp_path, capsys):
  picture(tmp_path / 'a.png')
  picture(tmp_path / 'b.png')
  (tmp_path / 'a.png').chmod(0)
  if os.access(tmp_path / 'a.png', os.R_OK):
    pytest.skip('this user may read everything')
  options = ['-o', tmp_path / 'out', '--model', weights]
  status, lines = run(tmp_path / 'a.png', tmp_path / 'b.png', *options, capsys=capsys)
  assert status == 1
  assert 'a.png: cannot be read (Permission denied)' in lines[0]
  assert all_files(tmp_path / 'out') == ['b.png']
