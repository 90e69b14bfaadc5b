"""Reading, finding and writing image files, and what is refused."""

import numpy as np
from PIL import Image
import pytest

from sadnet_jax.data.folders import find_data_dir
from sadnet_jax.images import Photograph, arrays, write_photograph
from sadnet_jax.images.arrays import find_images, read_image, rgb_to_gray, write_png
from sadnet_jax.images.reading import read_shape


def _colour(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_written_png_reads_back_the_same(tmp_path):
  pixels = _colour(5, 9)
  write_png(tmp_path / 'deep' / 'a.png', pixels / 255)
  np.testing.assert_array_equal(read_image(tmp_path / 'deep' / 'a.png', 3), pixels)
  assert read_image(tmp_path / 'deep' / 'a.png', 3).shape == (5, 9, 3)


def test_writing_clips_and_rounds(tmp_path):
  write_png(tmp_path / 'a.png', np.array([[[-1.0], [0.4 / 255], [0.6 / 255], [2.0]]]))
  np.testing.assert_array_equal(read_image(tmp_path / 'a.png', 1)[0, :, 0], [0, 0, 1, 255])


def test_colour_becomes_grey_as_in_matlab(tmp_path):
  # MATLAB: rgb2gray(uint8(cat(3, 255, 0, 0))) is 76, green 150, blue 29.
  pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
  np.testing.assert_array_equal(rgb_to_gray(pixels)[0, :, 0], [76, 150, 29, 255])
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  np.testing.assert_array_equal(read_image(tmp_path / 'a.png', 1), rgb_to_gray(pixels))


def test_images_are_found_below_the_folder_in_the_order_of_their_paths(tmp_path):
  for name in ('b.PNG', 'a/z.jpg', 'a/notes.txt', 'c.tiff'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == ['a/z.jpg', 'b.PNG', 'c.tiff']
  assert [p.name for p in find_images(tmp_path, ('.jpg',))] == ['z.jpg']


def test_missing_and_empty_folders_are_named(tmp_path):
  with pytest.raises(ValueError, match=r'nowhere: the folder does not exist'):
    find_images(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=r'the folder has no image with an extension of .png'):
    find_images(tmp_path)


def test_data_folder_may_be_relative_to_the_root_in_the_environment(tmp_path, monkeypatch):
  (tmp_path / 'train' / 'set').mkdir(parents=True)
  monkeypatch.delenv('SADNET_DATA', raising=False)
  with pytest.raises(ValueError, match=r'--flag: no folder at train/set; give'):
    find_data_dir('train/set', '--flag')
  monkeypatch.setenv('SADNET_DATA', str(tmp_path))
  assert find_data_dir('train/set', '--flag') == tmp_path / 'train' / 'set'
  with pytest.raises(ValueError, match=rf'no folder at other or {tmp_path}/other; give'):
    find_data_dir('other', '--flag')


def test_files_that_are_no_images_are_refused_by_format(tmp_path):
  (tmp_path / 'text.png').write_text('not an image')
  with pytest.raises(ValueError, match=r'text.png: is not an image file of a known format'):
    read_image(tmp_path / 'text.png', 3)
  with pytest.raises(ValueError, match=r'gone.png: cannot be read'):
    read_image(tmp_path / 'gone.png', 3)


def test_a_truncated_image_is_refused_by_name(tmp_path):
  Image.fromarray(_colour(64, 64)).save(tmp_path / 'a.png')
  content = (tmp_path / 'a.png').read_bytes()
  (tmp_path / 'a.png').write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match=r'a.png: the file is damaged or incomplete'):
    read_image(tmp_path / 'a.png', 3)


def test_grey_images_are_refused_where_colour_is_needed(tmp_path):
  Image.fromarray(_colour(4, 4)[:, :, 0]).save(tmp_path / 'grey.png')
  with pytest.raises(ValueError, match=r'grey.png: the image is grey, but colour is needed'):
    read_image(tmp_path / 'grey.png', 3)


def test_all_that_photographs_come_in_is_read_as_8_bits(tmp_path):
  pixels = _colour(6, 8)
  deep = pixels.astype(np.uint16) * 257
  alpha = np.full((6, 8), 7, np.uint8)
  write_photograph(tmp_path / 'alpha.png', Photograph(pixels, alpha))
  write_photograph(tmp_path / 'alpha.webp', Photograph(pixels, alpha))
  # Rounded to the nearest: up from 128 of 257 steps less than half down.
  write_photograph(tmp_path / 'deep.png', Photograph(deep + 100))
  write_photograph(tmp_path / 'deep.tif', Photograph(deep - np.minimum(deep, 100)))
  write_photograph(tmp_path / 'float.tif', Photograph(pixels.astype(np.float32) / 255))
  write_photograph(tmp_path / 'float.exr', Photograph(pixels.astype(np.float32) / 255))
  palette = Image.fromarray(pixels).quantize(48)
  palette.save(tmp_path / 'palette.png')
  for path in sorted(tmp_path.iterdir()):
    wanted = np.asarray(palette.convert('RGB')) if path.stem == 'palette' else pixels
    np.testing.assert_array_equal(read_image(path, 3), wanted, err_msg=path.name)
    assert read_shape(path) == (6, 8, 3)
  Image.fromarray(pixels[:, :, 0]).convert('1').save(tmp_path / 'bilevel.png')
  assert read_image(tmp_path / 'bilevel.png', 1).shape == read_shape(tmp_path / 'bilevel.png') == (6, 8, 1)


def test_a_damaged_header_has_no_shape(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n\0')
  with pytest.raises(ValueError, match=r'a\.png: the file is damaged or incomplete'):
    read_shape(tmp_path / 'a.png')


def test_notes_of_the_reader_are_logged_once_for_each_kind(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(arrays, 'logged_kinds', set())
  for number in range(3):
    Image.fromarray(np.full((8, 8), 900 + number, np.uint16)).save(tmp_path / f'dark{number}.png')
    Image.fromarray(_colour(8, 8)).save(tmp_path / f'{number}.tif', icc_profile=bytes(200))
  for path in sorted(tmp_path.iterdir(), reverse=True):
    read_image(path, 1)
  dark, profile = [record.getMessage() for record in caplog.records]
  assert dark.startswith(
    f'{tmp_path}/dark2.png: its values use less than a sixteenth of the range of 16 bits'
  )
  assert 'the highest is 902; if white is 1023, ' in dark
  assert profile.startswith(f'{tmp_path}/2.tif: its colour profile is damaged and was ignored')
  assert {record.levelname for record in caplog.records} == {'WARNING'}
