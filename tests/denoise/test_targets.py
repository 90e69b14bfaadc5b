"""Which pictures are denoised, and the output of each."""

import errno
import os
import struct

import numpy as np
from PIL import Image
import pillow_heif
import pytest

from sadnet_jax.denoise.targets import Target, find_targets, sizes_by_header, split_existing
from sadnet_jax.images import write_photograph
from sadnet_jax.images.reading import read_shape
from tests.support.denoise_command import picture
from tests.support.malformed_images import png_file
from tests.support.photograph_files import random_photograph, write_dng
from tests.support.work import growth


def _sources_and_outputs(*inputs, output='out', **options):
  targets = find_targets(inputs, output, **options)
  return {str(target.source): ' '.join(map(str, target.files)) for target in targets}


def test_what_an_earlier_run_wrote_beside_its_inputs_is_no_input_of_the_next(folder):
  for name in ('in/a.bmp', 'in/b.bmp', 'in/c.png'):
    picture(folder / name)
  first = {'in/a.bmp': 'in/a.png', 'in/b.bmp': 'in/b.png'}
  options = {'output': 'in', 'suffix': '.png'}
  assert _sources_and_outputs('in/*.bmp', **options) == first
  picture(folder / 'in/a.png')
  notes = []
  assert _sources_and_outputs('in/*.bmp', 'in/a.png', **options, skip_existing=True, notes=notes) == first
  assert [(str(path), note) for path, note in notes] == [('in/a.png', 'left out, as the output of in/a.bmp')]
  # Not by chance: with --overwrite, both would be denoised to the same file.
  with pytest.raises(ValueError, match=r'in/a\.bmp and in/a\.png have the same output'):
    find_targets(['in/a.bmp', 'in/a.png'], 'in', suffix='.png', overwrite=True)
  # An input is never its own output.
  with pytest.raises(ValueError, match=r'the output in/c\.png is the input in/c\.png'):
    find_targets(['in'], 'in', suffix='.png', skip_existing=True)


def test_pictures_of_a_folder_keep_their_relative_paths(folder):
  names = [
    'a.png',
    'B.JPG',
    'notes.txt',
    '.hidden.png',
    'a.compare.png',
    'sub/a.png',
    '.dir/a.png',
    'sub/x/c.tif',
  ]
  for name in names:
    (folder / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / 'in' / name).touch()
  (folder / 'in/circle').symlink_to('.')
  top = {'in/B.JPG': 'out/B.JPG', 'in/a.png': 'out/a.png'}
  assert _sources_and_outputs('in') == top
  below = {'in/sub/a.png': 'out/sub/a.png', 'in/sub/x/c.tif': 'out/sub/x/c.tif'}
  everything = {**top, **below}
  assert _sources_and_outputs('in', recursive=True) == everything
  # A picture that is found twice is denoised once.
  assert (
    _sources_and_outputs('in/', 'in/a.png', output='new/out/', recursive=True).keys() == everything.keys()
  )
  assert _sources_and_outputs('in/**/*.[pt][ni][gf]') == {
    'in/a.png': 'out/a.png',
    'in/sub/a.png': 'out/sub/a.png',
    'in/sub/x/c.tif': 'out/sub/x/c.tif',
  }
  assert _sources_and_outputs('in/**') == everything
  assert _sources_and_outputs('in/s*/*.png') == {'in/sub/a.png': 'out/sub/a.png'}
  # Files that are named are taken whatever their name is.
  assert _sources_and_outputs('in/.hidden.png', 'in/notes.txt', 'in/a.compare.png').keys() == {
    'in/.hidden.png',
    'in/notes.txt',
    'in/a.compare.png',
  }


def test_pictures_of_a_folder_that_are_left_out_are_noted(folder):
  for name in ('a.jpg', 'b.HIF', 'c.avif', 'sub/d.avif', 'e.rwl', 'f.GIF', 'notes.txt', '.g.gif'):
    (folder / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / 'in' / name).touch()
  notes = []
  targets = find_targets(['in'], 'out/', notes=notes)
  assert [target.output.name for target in targets] == ['a.jpg', 'b.png', 'e.tif']
  assert [(str(path), text) for path, text in notes] == [
    ('in', 'left out 2 files of formats that are not read (.avif, .gif)')
  ]
  notes.clear()
  find_targets(['in'], 'out/', recursive=True, notes=notes)
  assert notes[0][1].startswith('left out 3 files ')


def test_links_to_folders_are_followed_by_folders_and_patterns(folder):
  (folder / 'in').mkdir()
  picture(folder / 'elsewhere' / 'sub' / 'a.png')
  (folder / 'in' / 'more').symlink_to(folder / 'elsewhere')
  (folder / 'elsewhere' / 'back').symlink_to(folder / 'in')
  wanted = {'in/more/sub/a.png': 'out/more/sub/a.png'}
  assert _sources_and_outputs('in', recursive=True) == wanted
  assert _sources_and_outputs('in/**/*.png') == wanted


def test_an_existing_folder_is_no_pattern(folder):
  picture(folder / 'fotos [2020]' / 'a.png')
  assert _sources_and_outputs('fotos [2020]/*.png') == {'fotos [2020]/a.png': 'out/a.png'}
  assert _sources_and_outputs('fotos [[]20*/*.png') == {'fotos [2020]/a.png': 'out/fotos [2020]/a.png'}


def test_the_home_folder_may_be_written_as_in_a_shell(folder, monkeypatch):
  monkeypatch.setenv('HOME', str(folder))
  picture(folder / 'in' / 'a.png')
  assert _sources_and_outputs('~/in', output='~/out/') == {f'{folder}/in/a.png': f'{folder}/out/a.png'}


@pytest.mark.parametrize(
  ('name', 'message'),
  [('-', "'-' is not read as standard input or output.*./-"), ('s3://bucket/out/', 'is a URL.*local paths')],
)
def test_streams_and_buckets_are_refused(folder, name, message):
  picture(folder / 'a.png')
  for inputs, output in ((['a.png'], name), ([name], 'out')):
    with pytest.raises(ValueError, match=message):
      find_targets(inputs, output)


def test_an_output_folder_in_the_input_folder_is_not_an_input(folder):
  for name in ('a.png', 'sub/a.png', 'done/a.png', 'done/sub/a.png'):
    picture(folder / 'in' / name)
  options = {'output': 'in/done', 'overwrite': True}
  wanted = {'in/a.png': 'in/done/a.png', 'in/sub/a.png': 'in/done/sub/a.png'}
  assert _sources_and_outputs('in', recursive=True, **options) == wanted
  assert _sources_and_outputs('in/**/*.png', **options) == wanted


@pytest.mark.parametrize('output', ['.', 'photos'])
def test_pictures_below_an_output_folder_that_holds_the_input_are_found(folder, output):
  for name in ('a.jpg', '2023/b.jpg'):
    picture(folder / 'photos' / name)
  wanted = {'photos/a.jpg': f'{output}/a.png', 'photos/2023/b.jpg': f'{output}/2023/b.png'}
  wanted = {source: target.removeprefix('./') for source, target in wanted.items()}
  options = {'output': output, 'suffix': '.png'}
  assert _sources_and_outputs('photos', recursive=True, **options) == wanted
  assert _sources_and_outputs('photos/**/*.jpg', **options) == wanted
  assert _sources_and_outputs('photos/*.jpg', **options).keys() == {'photos/a.jpg'}
  assert _sources_and_outputs('photos/2023', **options).keys() == {'photos/2023/b.jpg'}


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
  picture(folder / 'in/a.png')
  (folder / 'in/private').mkdir()
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('private'):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return scandir(path)

  # Root may read everything.
  monkeypatch.setattr(os, 'scandir', refuse)
  for inputs, options in (('in', {'recursive': True}), ('in/**/*.png', {})):
    with pytest.raises(ValueError, match=r'cannot read the folder in/private: Permission denied'):
      find_targets([inputs], 'out', **options)


@pytest.mark.parametrize('options', [{'overwrite': True}, {'skip_existing': True}])
def test_outputs_that_the_file_system_takes_for_one_file_are_refused(folder, options):
  for name in ('A.png', 'a.png'):
    picture(folder / 'in' / name)
  picture(folder / 'out/A.png')
  # As on file systems where names that differ only by case are one.
  os.link(folder / 'out/A.png', folder / 'out/a.png')
  with pytest.raises(ValueError, match=r'in/A\.png and in/a\.png have the same output, out/a\.png'):
    find_targets(['in'], 'out', **options)


def test_a_name_with_brackets_that_exists_is_a_name(folder):
  for name in ('a[1].png', 'a1.png'):
    (folder / name).touch()
  assert _sources_and_outputs('a[1].png') == {'a[1].png': 'out/a[1].png'}
  (folder / 'a[1].png').unlink()
  assert _sources_and_outputs('a[1].png') == {'a1.png': 'out/a1.png'}


def test_outputs_in_a_folder_get_the_format_that_is_asked_for(folder):
  names = ('a.png', 'b.JPEG', 'sub/c.heic', 'd.CR2', 'e.2020')
  for name in names:
    (folder / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / 'in' / name).touch()
  inputs = ('in', 'in/e.2020')

  def outputs(suffix):
    return sorted(_sources_and_outputs(*inputs, suffix=suffix, recursive=True).values())

  # The format's own extensions stay; what is no extension of a picture stays in the name.
  assert outputs('.jpg') == ['out/a.jpg', 'out/b.JPEG', 'out/d.jpg', 'out/e.2020.jpg', 'out/sub/c.jpg']
  assert outputs('.tif') == ['out/a.tif', 'out/b.tif', 'out/d.tif', 'out/e.2020.tif', 'out/sub/c.tif']
  assert outputs(None) == ['out/a.png', 'out/b.JPEG', 'out/d.tif', 'out/e.2020', 'out/sub/c.png']
  assert _sources_and_outputs('in/a.png', output='b.jpeg', suffix='.jpg') == {'in/a.png': 'b.jpeg'}


@pytest.mark.parametrize('names', [('a.jpg', 'a.png'), ('a.CR2', 'a.JPG'), ('a.png', 'a.PNG')])
@pytest.mark.parametrize('options', [{}, {'overwrite': True}, {'skip_existing': True, 'compare': True}])
def test_pictures_that_get_the_same_output_are_refused(folder, names, options):
  for name in names:
    (folder / 'in' / name).parent.mkdir(exist_ok=True)
    (folder / 'in' / name).touch()
  first, second = (rf'in/{name}' for name in sorted(names))
  with pytest.raises(
    ValueError,
    match=f'{first} and {second} have the same output, out/a.webp; denoise them in separate runs to separate '
    'folders, or rename one',
  ):
    find_targets(['in'], 'out', suffix='.webp', **options)
  assert not (folder / 'out').exists()


def test_existing_outputs_are_found_by_the_name_in_the_other_format(folder):
  for name in ('in/a.png', 'in/b.png', 'out/a.webp', 'out/b.png'):
    picture(folder / name)
  targets = find_targets(['in'], 'out', suffix='.webp', skip_existing=True)
  missing, existing = split_existing(targets)
  assert [[str(target.output) for target in part] for part in (missing, existing)] == [
    ['out/b.webp'],
    ['out/a.webp'],
  ]
  with pytest.raises(ValueError, match=r'out/a\.webp already exists'):
    find_targets(['in'], 'out', suffix='.webp')
  # An input in the output folder is still kept.
  with pytest.raises(ValueError, match=r'the output in/a\.png is the input in/a\.png'):
    find_targets(['in'], 'in', suffix='.png', overwrite=True)


def test_comparisons_have_names_of_their_own(folder):
  for name in ('a.png', 'a.jpg', 'b.png'):
    (folder / name).touch()
  assert _sources_and_outputs('a.png', 'a.jpg', 'b.png', compare=True) == {
    'a.png': 'out/a.png out/a.png.compare.png',
    'a.jpg': 'out/a.jpg out/a.jpg.compare.png',
    'b.png': 'out/b.png out/b.compare.png',
  }


def test_a_folder_that_cannot_be_written_to_is_refused(folder, monkeypatch):
  picture(folder / 'a.png', size=(8, 8))
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  with pytest.raises(ValueError, match=r'no permission to write into the folder \.; choose another'):
    find_targets(['a.png'], 'out/deep')
  assert not (folder / 'out').exists()


def test_sizes_are_read_from_headers_alone(folder):
  photograph = random_photograph(20, 30, dtype=np.uint8)
  for extension in ('.png', '.jpg', '.tif', '.webp', '.bmp', '.exr', '.jxl'):
    write_photograph(folder / f'a{extension}', photograph)
  pillow_heif.from_pillow(Image.fromarray(photograph.pixels)).save(folder / 'a.heic')
  write_dng(folder / 'a.dng')
  # More pixels than Pillow opens, and none to decode.
  header = struct.pack('>IIBBBBB', 20_000, 10_000, 8, 2, 0, 0, 0)
  (folder / 'large.png').write_bytes(png_file([(b'IHDR', header)]))
  (folder / 'bad.png').write_bytes(b'')
  sizes = sizes_by_header(Target(path, path) for path in folder.iterdir())
  unknown = {'a.jxl', 'a.dng', 'bad.png'}
  assert {path.name for path, size in sizes.items() if size is None} == unknown
  assert sizes.pop(folder / 'large.png') == (10_000, 20_000)
  assert {size for path, size in sizes.items() if path.name not in unknown} == {(20, 30)}
  # Where it is worth decoding, the shape is known.
  assert (read_shape(folder / 'a.jxl'), read_shape(folder / 'a.heic')) == ((20, 30, 3), (20, 30, 3))


@pytest.mark.parametrize('options', [{}, {'compare': True}, {'compare': True, 'skip_existing': True}])
def test_the_work_grows_with_the_number_of_files_not_with_its_square(folder, options):
  def make(count):
    for number in range(count):
      (folder / str(count)).mkdir(exist_ok=True)
      (folder / str(count) / f'{number}.png').touch()
    return lambda: find_targets([str(count)], 'out', **options)

  assert growth(make) < 2.5
