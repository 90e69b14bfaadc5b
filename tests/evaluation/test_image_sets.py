"""Test sets found by name, and any folder: their images, and what is missing or wrong."""

import io

import numpy as np
from PIL import Image
import pytest

from sadnet_jax.data.test_sets import SCORED, below_root, find_folder
from sadnet_jax.evaluation.image_sets import open_set
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.evaluation.protocols import FLOAT, ROUNDED
from tests.support import dataset_files, matlab_files
from tests.support.real_data import DATA, needs

SIDD_FILES = ('ValidationNoisyBlocksSrgb', 'ValidationGtBlocksSrgb')


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
  """Hides the data sets of this machine."""
  monkeypatch.delenv('SADNET_DATA', raising=False)


def _flat(folder, names, width, height, mode='RGB'):
  """Writes the same flat image under several names."""
  content = io.BytesIO()
  Image.new(mode, (width, height)).save(content, 'PNG')
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    (folder / name).write_bytes(content.getvalue())


def _names(image_set):
  return [image.name for image in image_set.images]


@pytest.mark.parametrize('parent', ['test', 'real', '.'])
@pytest.mark.parametrize('folder', ['CBSD68', 'cbsd68', 'CbsD68'])
def test_a_set_is_found_in_three_folders_in_any_case(tmp_path, parent, folder):
  _flat(tmp_path / parent / folder, ['101085.png'], 48, 32)
  image_set = open_set('cbsd68', tmp_path)
  assert _names(image_set) == ['101085']
  assert (image_set.name, image_set.title, image_set.real) == ('cbsd68', 'CBSD68', False)


def test_the_folder_test_comes_first_and_real_second(tmp_path):
  for parent in ('.', 'real', 'test'):
    _flat(tmp_path / parent / 'McMaster', ['1.png'], 9, 9)
    assert find_folder('mcmaster', tmp_path) == tmp_path / parent / 'McMaster'


def test_an_empty_folder_does_not_hide_the_next(tmp_path):
  (tmp_path / 'test' / 'McMaster').mkdir(parents=True)
  _flat(tmp_path / 'real' / 'McMaster', ['a.png'], 8, 8)
  assert find_folder('mcmaster', tmp_path) == tmp_path / 'real' / 'McMaster'
  (tmp_path / 'test' / 'Set12').mkdir()
  with pytest.raises(ValueError, match='Set12: the folder has no image with an extension'):
    open_set('set12', tmp_path)


def test_the_root_comes_from_the_argument_or_else_the_environment(tmp_path, monkeypatch):
  _flat(tmp_path / 'one' / 'Set12', ['01.png'], 9, 9, 'L')
  _flat(tmp_path / 'two' / 'Urban100', ['img_001.png'], 9, 9)
  monkeypatch.setenv('SADNET_DATA', str(tmp_path / 'one'))
  assert find_folder('set12', None) == tmp_path / 'one' / 'Set12'
  assert find_folder('urban100', tmp_path / 'two') == tmp_path / 'two' / 'Urban100'
  # The environment is not searched as well.
  with pytest.raises(ValueError, match=r'set12: .*Set12.*two'):
    find_folder('set12', tmp_path / 'two')


def test_a_missing_root_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'kodak24: .*test/Kodak24.*--data'):
    open_set('kodak24', None)
  with pytest.raises(ValueError, match=r'kodak24: .*nowhere.*test/'):
    open_set('kodak24', tmp_path / 'nowhere')


def test_a_missing_set_is_reported_with_its_source(tmp_path):
  # Other images in the root are not the set.
  _flat(tmp_path, ['holiday.png'], 9, 9)
  (tmp_path / 'test').mkdir()
  with pytest.raises(
    ValueError,
    match=r'cbsd68: .*/test/CBSD68.*the 68 test images',
  ):
    open_set('cbsd68', tmp_path)
  for name in SCORED:
    with pytest.raises(ValueError, match=rf'{name}: .*download'):
      open_set(name, tmp_path)


def test_sets_of_matlab_files_are_found_by_the_files_they_need(tmp_path):
  with pytest.raises(
    ValueError,
    match=r'sidd_val: .*SIDD.*ValidationNoisyBlocksSrgb.mat and ValidationGtBlocksSrgb.mat.*/test/SIDD',
  ):
    find_folder('sidd_val', tmp_path)
  wanted = {
    'sidd_val': [f'{name}.mat' for name in SIDD_FILES],
    'sidd_benchmark': ['BenchmarkNoisyBlocksSrgb.mat'],
    'dnd': ['info.mat'],
  }
  # One of two files is not enough.
  (tmp_path / 'test' / 'sidd').mkdir(parents=True)
  (tmp_path / 'test' / 'sidd' / wanted['sidd_val'][0]).touch()
  (tmp_path / wanted['sidd_val'][1]).touch()
  with pytest.raises(ValueError, match=r'sidd_val: .*SIDD'):
    find_folder('sidd_val', tmp_path)
  places = {
    'sidd_val': ['SIDD', 'real/sidd', 'test/SIDD'],
    'sidd_benchmark': ['.', 'SIDD'],
    'dnd': ['.', 'dnd_2017', 'real/dnd_2017', 'test/dnd_2017', 'DND', 'test/dnd/dnd_2017', 'test/dnd'],
  }
  # Each folder takes precedence over those before it.
  for name, folders in places.items():
    for folder in folders:
      (tmp_path / folder).mkdir(parents=True, exist_ok=True)
      for file in wanted[name]:
        (tmp_path / folder / file).touch()
      assert find_folder(name, tmp_path) == tmp_path / folder


def test_a_wrong_number_of_images_is_noted(tmp_path):
  folder = tmp_path / 'CBSD68'
  _flat(folder, [f'{i}.png' for i in range(53)], 48, 32)
  _flat(folder, [f'{i}.png' for i in range(53, 67)], 32, 48)
  image_set = open_set('cbsd68', tmp_path)
  assert image_set.notes == ['CBSD68: 67 images instead of the 68 of CBSD68']
  assert image_set.version == '67 images, 53 of 48x32, 14 of 32x48'
  _flat(folder, ['67.png'], 32, 48)
  image_set = open_set('cbsd68', tmp_path)
  assert image_set.notes == []
  assert image_set.version == '68 images, 53 of 48x32, 15 of 32x48'
  assert len(image_set.images) == len(set(_names(image_set))) == 68


def test_notes_name_the_folder_relative_to_the_root(tmp_path, monkeypatch):
  root = tmp_path / 'data'
  _flat(root / 'test' / 'CBSD68', ['1.png'], 7, 11)
  monkeypatch.setenv('SADNET_DATA', str(root))
  (note,) = open_set('cbsd68', None).notes
  assert note == 'test/CBSD68: 1 images instead of the 68 of CBSD68'
  assert open_set('cbsd68', root).notes == [note]
  (root / 'test' / 'CBSD68' / 'Thumbs.db').touch()
  ignored = 'ignored files of other types: Thumbs.db'
  # Likewise for other folders, by relative or absolute path.
  for folder in ('test/CBSD68', str(root / 'test' / 'CBSD68')):
    assert open_set(folder, None).notes == [f'test/CBSD68: {ignored}']
  monkeypatch.chdir(root / 'test' / 'CBSD68')
  assert open_set('.', tmp_path / 'elsewhere').notes == [f'CBSD68: {ignored}']
  assert below_root(root, root) == 'data'


@pytest.mark.parametrize(
  ('landscape', 'crops', 'version'),
  [
    (0, 24, "FFDNet's centre crops, 24 images of 500x500"),
    (18, 0, 'full images, 24 images, 18 of 768x512, 6 of 512x768'),
    (23, 1, '24 images, 23 of 768x512, 1 of 500x500'),
    (0, 23, '24 images, 23 of 500x500, 1 of 512x768'),
  ],
)
def test_the_version_of_kodak24_follows_from_its_sizes(tmp_path, landscape, crops, version):
  folder, names = tmp_path / 'test' / 'Kodak24', [f'kodim{i:02}.png' for i in range(1, 25)]
  _flat(folder, names[:landscape], 768, 512)
  _flat(folder, names[landscape : landscape + crops], 500, 500)
  _flat(folder, names[landscape + crops :], 512, 768)
  assert open_set('kodak24', tmp_path).version == version


def test_nam_is_the_25_patches_or_the_15_crops(tmp_path):
  first, second = tmp_path / 'a' / 'Nam', tmp_path / 'b' / 'Nam'
  _flat(first / 'Nam_patches', [f'{i:02}_noise.png' for i in range(1, 26)], 512, 512)
  _flat(first / 'Nam_patch_GT', [f'{i:02}_gt.png' for i in range(1, 26)], 512, 512)
  _flat(second, [f'5dmark3_{i}_{role}.png' for i in range(15) for role in ('real', 'mean')], 512, 512)
  patches, crops = open_set('nam', tmp_path / 'a'), open_set('nam', tmp_path / 'b')
  assert patches.version == "CBDNet's 25 patches, 25 images of 512x512"
  assert (patches.notes, patches.problems) == ([], [])
  assert (patches.real, patches.protocol) == (True, ROUNDED)
  assert crops.version == 'the 15 crops, 15 images of 512x512'
  assert crops.notes == ['Nam: 15 images instead of the 25 of Nam']


def test_pairs_of_a_known_set_are_read_noisy_first(tmp_path):
  noisy, clean = dataset_files.picture(9, 13, 0), dataset_files.picture(9, 13, 1)
  dataset_files.write(tmp_path / 'Nam' / 'Nam_patches' / '01_noise.png', noisy)
  dataset_files.write(tmp_path / 'Nam' / 'Nam_patch_GT' / '01_gt.png', clean)
  (image,) = open_set('nam', tmp_path).images
  np.testing.assert_array_equal(image.read(3), (noisy, clean))
  assert image.shape() == (9, 13, 3)
  crops = tmp_path / 'real' / 'PolyU' / 'CroppedImages'
  for role in ('real', 'mean'):
    _flat(crops, [f'Canon5D2_5_160_3200_chair_11_{role}.JPG'], 20, 24)
  (crops.parent / 'OriginalImages').mkdir()
  _flat(crops.parent / 'OriginalImages', ['Canon5D2_chair_Real.JPG', 'Canon5D2_chair_mean.JPG'], 80, 60)
  polyu = open_set('polyu', tmp_path)
  assert _names(polyu) == ['CroppedImages/Canon5D2_5_160_3200_chair_11_real']
  assert polyu.protocol == ROUNDED


def test_held_out_scenes_are_a_set_of_their_own(tmp_path):
  crops = tmp_path / 'real' / 'PolyU' / 'CroppedImages'
  held_out = ['Canon5D2_5_160_6400_fruit_3', 'Sony_3-5_200_1600_door_1']
  for name in (*held_out, 'Canon5D2_5_160_3200_chair_11', 'Canon80D_5_160_3200_fruit_1'):
    _flat(crops, [f'{name}_{role}.JPG' for role in ('real', 'mean')], 20, 24)
  image_set = open_set('polyu_held_out', tmp_path)
  assert image_set.title == 'PolyU, held-out scenes'
  assert _names(image_set) == [f'CroppedImages/{name}_real' for name in held_out]
  assert len(open_set('polyu', tmp_path).images) == 4
  for name in held_out:
    for role in ('real', 'mean'):
      (crops / f'{name}_{role}.JPG').unlink()
  with pytest.raises(
    ValueError, match=r'polyu_held_out: .*PolyU has no image of its scenes \(Canon5D2_fruit, '
  ):
    open_set('polyu_held_out', tmp_path)


def test_grey_sets_are_read_in_grey_and_colour_sets_refuse_grey_files(tmp_path):
  pixels = dataset_files.picture(9, 13, 0)
  dataset_files.write(tmp_path / 'BSD68' / 'test001.png', pixels[:, :, :1])
  dataset_files.write(tmp_path / 'Set12' / '01.png', pixels)
  dataset_files.write(tmp_path / 'CBSD68' / '1.png', pixels[:, :, :1])
  bsd68, set12, cbsd68 = (open_set(name, tmp_path) for name in ('bsd68', 'set12', 'cbsd68'))
  assert (bsd68.channels, set12.channels, cbsd68.channels) == (1, 1, 3)
  noisy, clean = bsd68.images[0].read(1)
  assert noisy is None
  np.testing.assert_array_equal(clean, pixels[:, :, :1])
  # A colour copy of a grey set is converted.
  assert set12.images[0].read(1)[1].shape == (9, 13, 1)
  with pytest.raises(ValueError, match=r'1.png: '):
    cbsd68.images[0].read(3)


def test_a_folder_is_clean_images_or_pairs_by_the_words_of_its_files(tmp_path):
  _flat(tmp_path / 'photos' / 'deep', ['b.png', 'c.jpg'], 11, 7)
  _flat(tmp_path / 'photos', ['a.PNG', 'c.bmp', 'c.png'], 7, 11)
  _flat(tmp_path / 'pairs', ['1_noisy.png', '1_gt.png', '2_noisy.png', '2_gt.png'], 7, 11)
  photos, pairs = open_set(str(tmp_path / 'photos'), None), open_set(str(tmp_path / 'pairs'), None)
  # Files that differ only in their extension keep it in their names.
  assert _names(photos) == ['a', 'c.bmp', 'c.png', 'deep/b', 'deep/c']
  assert (photos.title, photos.protocol, photos.channels) == ('photos', None, 3)
  assert photos.version == '5 images, 3 of 7x11, 2 of 11x7'
  assert _names(pairs) == ['1_noisy', '2_noisy']
  assert pairs.protocol == ROUNDED
  _flat(tmp_path / 'photos', ['the_real_thing.png'], 7, 11)
  with pytest.raises(
    ValueError,
    match=r'photos: file names contain a word for noisy images, but none has a partner; pass clean:.*photos',
  ):
    open_set(str(tmp_path / 'photos'), None)
  assert len(open_set(f'clean:{tmp_path / "photos"}', None).images) == 6


def test_a_prefix_says_what_a_folder_holds(tmp_path):
  # A colon in the name of a folder is no prefix.
  folder = tmp_path / 'a:b'
  _flat(folder, ['1_noisy.png', '1_gt.png'], 7, 11)
  assert [open_set(f'{kind}{folder}', None).real for kind in ('', 'pairs:', 'clean:')] == [True, True, False]
  assert _names(open_set(f'clean:{folder}', None)) == ['1_gt', '1_noisy']
  _flat(tmp_path / 'c', ['1.png'], 7, 11)
  with pytest.raises(ValueError, match=r'c: '):
    open_set(f'pairs:{tmp_path / "c"}', None)


@pytest.mark.parametrize('name', ['mine/photos', 'clean:mine/photos'])
def test_a_folder_may_be_relative_to_the_root_or_to_where_one_is(tmp_path, monkeypatch, name):
  _flat(tmp_path / 'root' / 'mine' / 'photos', ['1.png'], 7, 11)
  assert open_set(name, tmp_path / 'root').title == 'photos'
  monkeypatch.setenv('SADNET_DATA', str(tmp_path / 'root'))
  assert open_set(name, None).title == 'photos'
  monkeypatch.delenv('SADNET_DATA')
  monkeypatch.chdir(tmp_path / 'root')
  assert open_set(name, None).title == 'photos'


def test_other_folders_are_grey_only_if_all_their_images_are(tmp_path):
  _flat(tmp_path, ['1.png', '2.png'], 7, 11, 'L')
  assert open_set(str(tmp_path), None).channels == 1
  _flat(tmp_path, ['3.png'], 7, 11)
  assert open_set(str(tmp_path), None).channels == 3


def test_anything_else_is_refused(tmp_path):
  _flat(tmp_path, ['a.png'], 7, 11)
  with pytest.raises(
    ValueError, match=r"--datasets: 'cbsd86' is neither a known data set nor an existing folder"
  ):
    open_set('cbsd86', tmp_path)
  with pytest.raises(ValueError, match=r'give any of cbsd68, .*dnd, or a folder of images \(clean:FOLDER'):
    open_set('pairs:nowhere', tmp_path)
  for kind in ('', 'clean:', 'pairs:'):
    with pytest.raises(ValueError, match=r"'.*a.png' is a file"):
      open_set(f'{kind}{tmp_path / "a.png"}', None)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=r'empty: '):
    open_set(str(tmp_path / 'empty'), None)


@pytest.mark.parametrize('name', ['', 'clean:', 'pairs:'])
def test_an_empty_name_is_not_the_working_folder(tmp_path, monkeypatch, name):
  _flat(tmp_path, ['a.png'], 7, 11)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=rf"--datasets: '{name}' is neither"):
    open_set(name, tmp_path)


def test_ignored_files_are_noted(tmp_path):
  _flat(tmp_path, ['1.png', '2.gif', '.DS_Store', 'Thumbs.db', '._1.png'], 7, 11)
  (tmp_path / 'more').mkdir()
  (tmp_path / 'more' / 'notes.txt').touch()
  (tmp_path / 'linked').symlink_to(tmp_path / 'more', target_is_directory=True)
  (tmp_path / 'gone.png').symlink_to(tmp_path / 'nothing.png')
  image_set = open_set(str(tmp_path), None)
  # Hidden files, as macOS creates them, are not even noted.
  assert _names(image_set) == ['1']
  assert image_set.notes == [
    f'{tmp_path.name}: ignored files of other types: 2.gif, Thumbs.db, more/notes.txt',
    f'{tmp_path.name}: ignored links to missing files: gone.png',
  ]
  _flat(tmp_path / 'more', [f'{i}.heic' for i in range(4)], 7, 11)
  assert (
    open_set(str(tmp_path), None)
    .notes[0]
    .endswith(': 2.gif, Thumbs.db, more/0.heic, more/1.heic, more/2.heic, 2 more')
  )


def test_files_without_a_partner_are_problems(tmp_path):
  _flat(tmp_path, ['1_noisy.png', '1_gt.png', '2_noisy.png', '3.png'], 7, 11)
  for name in (str(tmp_path), f'pairs:{tmp_path}'):
    image_set = open_set(name, None)
    assert _names(image_set) == ['1_noisy']
    first, second = sorted(image_set.problems)
    assert first.startswith(f'{tmp_path}/2_noisy.png: ')
    assert second.startswith(f'{tmp_path}/3.png: ')


def test_damaged_images_are_refused_when_they_are_read(tmp_path):
  for i in range(3):
    dataset_files.write(tmp_path / f'{i}.png', dataset_files.picture(40, 30, i))
  (tmp_path / '0.png').write_text('no image')
  dataset_files.truncate(tmp_path / '1.png')
  image_set = open_set(str(tmp_path), None)
  assert _names(image_set) == ['0', '1', '2']
  # The header of the second is intact.
  assert image_set.version == '2 images of 30x40'
  with pytest.raises(ValueError, match=r'0.png: '):
    image_set.images[0].shape()
  assert image_set.images[1].shape() == (40, 30, 3)
  with pytest.raises(ValueError, match=r'1.png: '):
    image_set.images[1].read(3)
  for i in range(1, 3):
    (tmp_path / f'{i}.png').write_text('no image')
  assert open_set(str(tmp_path), None).version == 'no readable image'


def test_a_pair_of_two_sizes_is_refused_when_it_is_read(tmp_path):
  _flat(tmp_path, ['1_noisy.png', '2_noisy.png', '2_gt.png'], 7, 11)
  _flat(tmp_path, ['1_gt.png'], 8, 11)
  image_set = open_set(str(tmp_path), None)
  assert image_set.version == '1 images of 7x11'
  for call in (image_set.images[0].shape, lambda: image_set.images[0].read(3)):
    with pytest.raises(ValueError, match=r'1_noisy: .*7x11.*8x11'):
      call()


@pytest.mark.parametrize('hdf5', [False, True])
def test_sidd_validation_is_its_blocks_image_by_image(tmp_path, hdf5):
  content = matlab_files.sidd(tmp_path / 'SIDD', SIDD_FILES, (2, 3, 8, 12, 3), hdf5=hdf5)
  image_set = open_set('sidd_val', tmp_path)
  assert _names(image_set) == ['0001_01', '0001_02', '0001_03', '0002_01', '0002_02', '0002_03']
  assert (image_set.protocol, image_set.channels, image_set.title) == (FLOAT, 3, 'SIDD validation')
  assert image_set.version == '6 images of 12x8'
  assert image_set.notes == [
    'SIDD: 6 blocks (2 images x 3 of 12x8) instead of the 1280 (40 x 32 of 256x256) of SIDD validation'
  ]
  for number, image in enumerate(image_set.images):
    noisy, clean = image.read(3)
    np.testing.assert_array_equal(noisy, content[SIDD_FILES[0]][divmod(number, 3)])
    np.testing.assert_array_equal(clean, content[SIDD_FILES[1]][divmod(number, 3)])
    assert image.shape() == (8, 12, 3)
  with pytest.raises(
    ValueError, match=r'0001_01: the blocks of SIDD are in colour; use a network with model.channels'
  ):
    image_set.images[0].read(1)


def test_complete_sidd_validation_needs_no_note(tmp_path):
  matlab_files.sidd(tmp_path, SIDD_FILES, (40, 32, 1, 1, 3))
  image_set = open_set('sidd_val', tmp_path)
  assert (len(image_set.images), image_set.notes) == (1280, [])
  assert _names(image_set)[-1] == '0040_32'


@needs('test/CBSD68', 'test/BSD68', 'test/Kodak24', 'test/Nam', 'real/PolyU')
@pytest.mark.parametrize(
  ('name', 'channels', 'version'),
  [
    ('cbsd68', 3, '68 images, 53 of 481x321, 15 of 321x481'),
    ('bsd68', 1, '68 images, 53 of 481x321, 15 of 321x481'),
    ('kodak24', 3, "FFDNet's centre crops, 24 images of 500x500"),
    ('nam', 3, "CBDNet's 25 patches, 25 images of 512x512"),
    ('polyu', 3, '100 images of 512x512'),
    ('polyu_held_out', 3, '17 images of 512x512'),
  ],
)
def test_the_real_sets_are_complete(name, channels, version):
  image_set = open_set(name, DATA)
  assert (image_set.channels, image_set.version) == (channels, version)
  assert image_set.problems in ((), [])
  assert not any('instead of' in note for note in image_set.notes)


@needs('test/Nam', 'real/PolyU')
@pytest.mark.parametrize(('name', 'expected'), [('nam', 37.064), ('polyu', 35.969)])
def test_the_noisy_images_of_real_sets_have_the_known_psnr(name, expected):
  image_set = open_set(name, DATA)
  assert image_set.protocol is not None
  pairs = (image_set.protocol.prepare(*image.read(3), None) for image in image_set.images)
  assert np.mean([psnr(noisy, clean) for noisy, clean in pairs]) == pytest.approx(expected, abs=0.001)
