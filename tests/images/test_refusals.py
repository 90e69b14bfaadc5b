"""Refusals: other kinds of images, and damage of every kind, in one line."""

import contextlib
import ctypes
import io
import os
from pathlib import Path
import shutil
import struct
import time
import warnings
import zlib

import numpy as np
import OpenImageIO
from PIL import Image
import pytest
import tifffile

from sadnet_jax.images import (
  MAX_PIXELS,
  PHOTOGRAPH_SUFFIXES,
  Photograph,
  check_output,
  png,
  read_photograph,
  upright,
  write_photograph,
  writing,
)
from sadnet_jax.images import photograph as photograph_module
from tests.support.malformed_images import (
  malformed_images,
  png_chunks,
  png_file,
  sound_images,
  tiff_of_overlapping_pages,
  tiff_of_overlapping_tags,
)
from tests.support.photograph_files import assert_same_pixels, opened, random_photograph, write_file


def _assert_silence(capfd, caplog):
  # C libraries buffer what they print.
  ctypes.CDLL(None).fflush(None)
  assert capfd.readouterr() == ('', '')
  # Without pytest's handlers, Python would print these.
  assert caplog.messages == []


@pytest.fixture(scope='module')
def sound():
  return sound_images(np.random.default_rng(0))


@pytest.mark.parametrize(
  ('name', 'message'),
  {
    'cmyk.jpg': r'is a JPEG file of CMYK colours; convert it to RGB',
    'cmyk.tif': r'is a TIFF file of CMYK; convert it to RGB',
    'lab.tif': r'is a TIFF file of Lab; convert it',
    'zstd.tif': r'is a TIFF file compressed by Zstandard; save it with LZW or Deflate',
    'signed.tif': r'is a TIFF file of signed or complex numbers; convert it to 16 bits',
    'wide.tif': r'is a TIFF file of 32 bits per channel; convert it to 8 or 16',
    'pages.tif': r'is a TIFF file of 2 pages; save them',
    'five_channels.tif': r'has 5 channels, more than colours and transparency; flatten it',
    'animated.png': r'is an animated PNG of 2 frames; save one of them',
    'animated.webp': r'is an animated WebP; save one of its frames',
    'single.gif': r'is a GIF file; convert it \(readable are PNG, JPEG, TIFF, ',
  }.items(),
)
def test_other_kinds_of_images_are_refused_by_name(sound, tmp_path, name, message):
  path = write_file(tmp_path / name, sound[name])
  with pytest.raises(ValueError, match=rf'{name}: {message}'):
    read_photograph(path)


@pytest.mark.parametrize(
  ('start', 'message'),
  [
    (b'', 'the file is empty'),
    (b'hello\n', 'is not an image file of a known format'),
    (b'\0\0\0\x18ftypisom', 'is a video'),
    (b'\0\0\0\x18ftypavif', 'is an AVIF file; convert it'),
    (b'II*\0\x10\0\0\0CR', 'LibRaw cannot develop this camera raw file'),
    (b'II\x1a\0\0\0HEAPCCDR', 'LibRaw cannot develop this camera raw file'),
    (b'\0MRM', 'LibRaw cannot develop this camera raw file'),
    (b'8BPS', 'is a Photoshop document; export it'),
    (b'#?RADIANCE', 'is a Radiance file; convert it to OpenEXR'),
  ],
)
def test_other_files_are_refused_by_their_first_bytes(tmp_path, start, message):
  path = write_file(tmp_path / 'a.jpg', start + bytes(100) * bool(start))
  with pytest.raises(ValueError, match=rf'a\.jpg: {message}'):
    read_photograph(path)


def test_tiff_with_transparency_compressed_by_jpeg_is_refused(tmp_path):
  # libtiff multiplies its colours by the opacity.
  Image.new('RGBA', (32, 24), (90, 120, 150, 100)).save(tmp_path / 'a.tif', compression='jpeg')
  with pytest.raises(
    ValueError, match=r'a\.tif: is a TIFF file with transparency compressed by JPEG; save it'
  ):
    read_photograph(tmp_path / 'a.tif')


@pytest.mark.parametrize('transfer', [16, 18])
def test_high_dynamic_range_is_refused_in_any_format(tmp_path, transfer):
  spec = OpenImageIO.ImageSpec(32, 32, 3, 'uint16')
  spec.attribute('CICP', OpenImageIO.TypeDesc('int[4]'), (9, transfer, 0, 1))
  writer = OpenImageIO.ImageOutput.create(str(tmp_path / 'a.jxl'))
  assert writer.open(str(tmp_path / 'a.jxl'), spec)
  assert writer.write_image(random_photograph(32, 32, dtype=np.uint16).pixels)
  assert writer.close()
  with pytest.raises(ValueError, match=r'a\.jxl: is a JPEG XL file of high dynamic range \(PQ or HLG\)'):
    read_photograph(tmp_path / 'a.jxl')
  # The tag of a colour profile says the same.
  tag = struct.pack('>I4sII4sxxxxBBBB', 1, b'cicp', 144, 12, b'cicp', 9, transfer, 0, 1)
  profile = struct.pack('>I12x4s16x4s88x', 156, b'RGB ', b'acsp') + tag
  for name in ('a.png', 'a.tif', 'a.webp'):
    Image.new('RGB', (32, 32)).save(tmp_path / name, icc_profile=profile)
    with pytest.raises(ValueError, match=rf'{name}: has a colour profile of high dynamic range'):
      read_photograph(tmp_path / name)
  Image.new('RGB', (32, 32)).save(
    tmp_path / 'b.png', icc_profile=profile.replace(bytes([9, transfer]), b'\x0c\x0d')
  )
  assert read_photograph(tmp_path / 'b.png').notes == ()


def test_folders_pipes_and_unreadable_files_are_refused(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r'nowhere\.png: cannot be read \(No such file or directory\)'):
    read_photograph(tmp_path / 'nowhere.png')
  with pytest.raises(ValueError, match=r': is a folder, not an image file'):
    read_photograph(tmp_path)
  os.mkfifo(tmp_path / 'pipe.png')
  with pytest.raises(ValueError, match=r'pipe\.png: is not a regular file'):
    read_photograph(tmp_path / 'pipe.png')
  path = write_file(tmp_path / 'a\nb.png', b'x')
  with pytest.raises(ValueError, match=r"a\\\\?nb\.png'?: is not an image file") as caught:
    read_photograph(path)
  assert '\n' not in str(caught.value)

  def refuse(*_):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr('pathlib.Path.open', refuse)
  with pytest.raises(ValueError, match=r'cannot be read \(Permission denied\)'):
    read_photograph(path)


@pytest.mark.parametrize('name', ['rgb.png', 'deep_rgb.png', 'rgb.jpg', 'rgb.bmp', 'lossy.webp', 'deep.tif'])
def test_truncated_files_are_refused(sound, tmp_path, name):
  data = sound[name]
  whole = read_photograph(write_file(tmp_path / name, data))
  for end in range(1, len(data), 1 + len(data) // 60):
    write_file(tmp_path / name, data[:end])
    try:
      read = read_photograph(tmp_path / name)
    except ValueError:
      continue
    # The last bytes of some files do not belong to the image.
    np.testing.assert_array_equal(read.pixels, whole.pixels)
    assert end > 0.9 * len(data)


@pytest.mark.parametrize(
  'options',
  [{}, {'progressive': True}, {'restart_marker_blocks': 5}],
  ids=['plain', 'progressive', 'restarts'],
)
def test_jpeg_with_an_end_marker_too_early_is_refused(tmp_path, options):
  buffer = io.BytesIO()
  Image.fromarray(random_photograph(120, 160).pixels).save(buffer, 'JPEG', **options)
  data = buffer.getvalue()
  np.testing.assert_array_equal(
    read_photograph(write_file(tmp_path / 'a.jpg', data)).pixels, np.asarray(Image.open(buffer))
  )
  silent = 0
  for end in range(len(data) // 2, len(data) - 20, len(data) // 40):
    path = write_file(tmp_path / 'a.jpg', data[:end].rstrip(b'\xff') + b'\xff\xd9')
    # Pillow fills what is missing with grey, mostly silently.
    with contextlib.suppress(OSError):
      silent += opened(path).load() is not None
    with pytest.raises(ValueError, match=r'a\.jpg: the file is damaged or incomplete'):
      read_photograph(path)
  assert silent > 10


def test_jpeg_cut_at_a_restart_marker_is_refused(tmp_path):
  buffer = io.BytesIO()
  Image.fromarray(random_photograph(64, 64).pixels).save(buffer, 'JPEG', restart_marker_blocks=4)
  data = buffer.getvalue()
  path = write_file(tmp_path / 'a.jpg', data[: data.index(b'\xff\xd2')] + b'\xff\xd9')
  with pytest.raises(ValueError, match='the file is damaged or incomplete'):
    read_photograph(path)


@pytest.mark.parametrize('change', [-200, 200])
def test_png_with_fewer_or_more_rows_than_its_header_says_is_refused(sound, tmp_path, change):
  header, (_, stored), end = png_chunks(sound['plain.png'])
  rows = zlib.decompress(stored)
  rows = rows[:change] if change < 0 else rows + bytes(change)
  path = write_file(tmp_path / 'a.png', png_file([header, (b'IDAT', zlib.compress(rows)), end]))
  with pytest.raises(ValueError, match='it has fewer or more pixels than its header says'):
    read_photograph(path)


def test_jpeg_with_hundreds_of_scans_is_refused(sound, tmp_path):
  data = sound['progressive.jpg']
  scan = data[data.rindex(b'\xff\xda') : -2]
  with pytest.raises(ValueError, match=r'it has 3\d\d scans, more than 200'):
    read_photograph(write_file(tmp_path / 'a.jpg', data[:-2] + 300 * scan + data[-2:]))


def test_a_video_after_a_jpeg_is_ignored_with_a_note(sound, tmp_path):
  data = sound['progressive.jpg']
  # Of the bytes of a long video, some are like the start of a scan.
  video = b'\0\0\0\x18ftypmp42' + 300 * b'\xff\xda'
  read = read_photograph(write_file(tmp_path / 'a.jpg', data + video))
  assert read.notes == ('the video that follows it was ignored',)
  np.testing.assert_array_equal(read.pixels, read_photograph(write_file(tmp_path / 'b.jpg', data)).pixels)
  assert not read_photograph(tmp_path / 'b.jpg').notes
  # Damage is that of this file, although a part of it is decoded.
  half = data[: len(data) // 2] + b'\xff\xd9' + video
  with pytest.raises(ValueError, match=r'c\.jpg: the file is damaged') as raised:
    read_photograph(write_file(tmp_path / 'c.jpg', half))
  assert 'first.jpg' not in str(raised.value)


def test_jpeg_with_hundreds_of_exif_blocks_is_refused(sound, tmp_path):
  data = sound['grey.jpg']
  block = b'\xff\xe1\0\x09Exif\0\0a'
  assert read_photograph(write_file(tmp_path / 'a.jpg', data[:2] + 200 * block + data[2:])).pixels.shape
  with pytest.raises(ValueError, match='it has 700000 EXIF blocks, more than 200'):
    read_photograph(write_file(tmp_path / 'a.jpg', data[:2] + 700_000 * block + data[2:]))


def test_png_of_a_chunk_for_every_byte_is_read_in_bounded_time(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
  write_photograph(tmp_path / 'a.png', Photograph(pixels))
  parts = []
  for kind, content in png_chunks((tmp_path / 'a.png').read_bytes()):
    size = 1 if kind == b'IDAT' else len(content) or 1
    parts += [(kind, content[at : at + size]) for at in range(0, len(content) or 1, size)]
  path = write_file(tmp_path / 'a.png', png_file(parts))
  assert path.stat().st_size > 3_000_000
  start = time.process_time()
  np.testing.assert_array_equal(read_photograph(path).pixels, pixels)
  assert time.process_time() - start < 3


def test_messages_of_decoders_become_one_short_line(sound, tmp_path, monkeypatch):
  class Failing:
    @staticmethod
    def open(*_):
      warnings.warn('from a decoder', stacklevel=1)
      raise RuntimeError('one\nother' + 1000 * ' long')

  monkeypatch.setattr(OpenImageIO, 'ImageInput', Failing)
  with pytest.raises(
    ValueError, match=r'a\.png: the file is damaged or incomplete: one other long '
  ) as caught:
    read_photograph(write_file(tmp_path / 'a.png', sound['rgb.png']))
  assert len(str(caught.value)) < 500
  assert str(caught.value).isprintable()


def test_jpeg_without_a_part_in_its_middle_is_refused(tmp_path):
  buffer = io.BytesIO()
  Image.fromarray(random_photograph(64, 64).pixels).save(buffer, 'JPEG', restart_marker_blocks=1)
  data = buffer.getvalue()
  lacking = data[: data.index(b'\xff\xd3')] + data[data.index(b'\xff\xd4') :]
  with pytest.raises(ValueError, match='the file is damaged or incomplete'):
    read_photograph(write_file(tmp_path / 'a.jpg', lacking))


def test_headers_with_too_many_pixels_are_refused_before_allocation(sound, tmp_path, monkeypatch):
  assert MAX_PIXELS == 500_000_000
  header, *rest = png_chunks(sound['plain.png'])
  for width, height in ((60_000, 60_000), (2**31 - 1, 1)):
    huge = [(b'IHDR', struct.pack('>II', width, height) + header[1][8:]), *rest]
    path = write_file(tmp_path / 'a.png', png_file(huge))
    with pytest.raises(
      ValueError, match=rf'its header says {width}x{height} pixels, more than a file of its size can hold'
    ):
      read_photograph(path)
  # JPEG XL: sides that are no multiples of 8, the height in 30 bits, and the width is the same.
  huge = (3 << 1 | 999_999 << 3 | 1 << 33).to_bytes(40, 'little')
  with pytest.raises(ValueError, match=r'a\.jxl: 1000000x1000000 pixels are more than 500,000,000; cut'):
    read_photograph(write_file(tmp_path / 'a.jxl', b'\xff\x0a' + huge))
  monkeypatch.setattr(photograph_module, 'MAX_PIXELS', 100)
  with pytest.raises(ValueError, match=r'31x17 pixels are more than 100; cut the image into parts'):
    read_photograph(write_file(tmp_path / 'a.tif', sound['deep.tif']))
  monkeypatch.undo()
  monkeypatch.setattr(photograph_module, 'free_host_bytes', lambda: 1000)
  with pytest.raises(ValueError, match=r'31x17 pixels do not fit into the 0\.0 GiB of free memory'):
    read_photograph(write_file(tmp_path / 'a.jpg', sound['rgb.jpg']))


def test_outputs_are_checked_before_the_work(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"a\.gif: the extension '\.gif' is not one of \.png, \.jpg, \.jpeg"):
    check_output(tmp_path / 'a.gif')
  with pytest.raises(ValueError, match=r'the folder .*nowhere does not exist; create it'):
    check_output(tmp_path / 'nowhere' / 'a.png')
  (tmp_path / 'folder.png').mkdir()
  with pytest.raises(ValueError, match=r'folder\.png: is a folder; give the name of a file'):
    check_output(tmp_path / 'folder.png')
  for extension in PHOTOGRAPH_SUFFIXES:
    check_output(tmp_path / f'a{extension.upper()}', random_photograph())
  for extension in ('.jpg', '.bmp'):
    with pytest.raises(ValueError, match=r'the photograph has transparency, which (JPEG|BMP) cannot store'):
      check_output(tmp_path / f'a{extension}', random_photograph(alpha=True))
  for extension, side in (('.jpg', 65500), ('.webp', 16383)):
    check_output(tmp_path / f'a{extension}', Photograph(np.zeros((1, side, 1), np.uint8)))
    with pytest.raises(ValueError, match=rf'1x{side + 1} pixels are too many for .* at most {side} per side'):
      write_photograph(tmp_path / f'a{extension}', Photograph(np.zeros((side + 1, 1, 1), np.uint8)))
  # Without taking that much memory.
  large = np.broadcast_to(np.float32(0), (20_000, 20_000, 3))
  with pytest.raises(
    ValueError, match=r'a\.tif: the pixels take 4\.47 GiB, too much for TIFF, which stores 3\.94'
  ):
    check_output(tmp_path / 'a.tif', Photograph(large))
  check_output(tmp_path / 'a.tif', Photograph(large[:10_000]))
  monkeypatch.setattr(writing.os, 'access', lambda *_: False)
  with pytest.raises(ValueError, match=r'no permission to write into the folder .*; choose another'):
    check_output(tmp_path / 'a.png')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['folder.png']


def test_a_link_is_checked_where_it_leads(tmp_path, monkeypatch):
  for name in ('links', 'pictures'):
    (tmp_path / name).mkdir()
  link = tmp_path / 'links' / 'a.png'
  link.symlink_to('../pictures/b.png')
  closed = tmp_path / 'links'
  monkeypatch.setattr(writing.os, 'access', lambda path, mode: Path(path) != closed)
  check_output(link)
  write_photograph(link, random_photograph())
  assert link.is_symlink()
  assert (tmp_path / 'pictures' / 'b.png').exists()
  closed = tmp_path / 'pictures'
  with pytest.raises(ValueError, match=r'links/a\.png: no permission to write into the folder .*/pictures;'):
    check_output(link)
  link.unlink()
  link.symlink_to('../nowhere/b.png')
  with pytest.raises(ValueError, match=r'links/a\.png: the folder .*/nowhere does not exist; create it'):
    check_output(link)


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), ValueError('bad luck')])
def test_an_existing_file_survives_if_writing_fails(tmp_path, monkeypatch, error):
  path = tmp_path / 'a.bmp'
  write_photograph(path, random_photograph())
  before = path.read_bytes()

  def fail(image, name, *_, **__):
    Path(name).write_bytes(b'half of it')
    raise error

  monkeypatch.setattr(Image.Image, 'save', fail)
  with pytest.raises(ValueError, match=r'a\.bmp: (cannot be written \(No space left on device\)|bad luck)'):
    write_photograph(path, random_photograph(seed=1))
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['a.bmp']


def test_existing_files_are_not_replaced_unless_wanted(tmp_path):
  path = tmp_path / 'a.png'
  write_photograph(path, random_photograph(), overwrite=False)
  before = path.read_bytes()
  with pytest.raises(ValueError, match=r'a\.png: exists already'):
    write_photograph(path, random_photograph(seed=1), overwrite=False)
  assert path.read_bytes() == before


def test_text_that_takes_gigabytes_when_decompressed_is_refused_quickly(sound, tmp_path):
  header, *rest = png_chunks(sound['plain.png'])
  text = (b'zTXt', b'name\0\0' + zlib.compress(bytes(16 * 2**20), 9))
  path = write_file(tmp_path / 'a.png', png_file([header, *[text] * 500, *rest]))
  start = time.process_time()
  with pytest.raises(
    ValueError, match='the text and profiles in the PNG file take more than 33,554,432 bytes'
  ):
    read_photograph(path)
  assert time.process_time() - start < 2


def test_tiff_files_of_overlapping_pages_are_read_quickly(tmp_path):
  for tags in (60_000, 4000):
    path = write_file(tmp_path / 'a.tif', tiff_of_overlapping_pages(1000, tags))
    start = time.process_time()
    photograph = read_photograph(path)
    assert time.process_time() - start < 2
    assert 'what follows its first page is damaged and was ignored' in photograph.notes


def test_the_tags_of_a_tiff_file_take_no_more_than_the_file(tmp_path):
  path = write_file(tmp_path / 'a.tif', tiff_of_overlapping_tags())
  photograph = read_photograph(path)
  assert photograph.notes == ('some of its tags are damaged and were ignored',)
  assert 500_000 < len(photograph.metadata.exif) < path.stat().st_size + 100_000


def test_pages_before_damage_are_pages(tmp_path):
  buffer = io.BytesIO()
  tifffile.imwrite(buffer, np.zeros((3, 8, 8, 3), np.uint8), photometric='rgb', metadata=None)
  buffer.seek(0)
  with tifffile.TiffFile(buffer) as file:
    third = file.pages[2].offset
  data = bytearray(buffer.getvalue())
  data[third : third + 2] = b'\xff\xff'
  with pytest.raises(ValueError, match='is a TIFF file of 2 or more pages; save them as files of one page'):
    read_photograph(write_file(tmp_path / 'a.tif', data))


def test_arrays_of_other_shapes_and_dtypes_are_refused():
  pixels = np.zeros((3, 4, 3), np.uint8)
  for wrong in (pixels[:, :, 0], pixels[:, :, :2], pixels.astype(np.float64)):
    with pytest.raises(ValueError, match=r'pixels must be uint8, uint16 or float32 of shape .* not '):
      Photograph(wrong)
  with pytest.raises(ValueError, match='pixels must not be empty'):
    Photograph(pixels[:0])
  for wrong in (np.zeros((3, 5), np.uint8), np.zeros((3, 4), np.uint16)):
    with pytest.raises(ValueError, match=r'alpha must be uint8 \(3, 4\) like the pixels'):
      Photograph(pixels, wrong)


def test_any_file_gives_a_photograph_or_one_line(tmp_path, capfd, caplog):
  files = malformed_images(tmp_path, 800, seed=1)
  assert len(files) == 800
  messages = {}
  for path in files:
    try:
      photograph = read_photograph(path)
    except ValueError as error:
      messages[path] = str(error)
    else:
      assert isinstance(photograph, Photograph)
  for path, message in messages.items():
    assert message.startswith(f'{path}: ')
    assert len(message.removeprefix(str(path))) < 500
    assert message.isprintable(), message
  # Neither all nor none.
  assert 400 < len(messages) < 700
  _assert_silence(capfd, caplog)
  again = tmp_path / 'again'
  again.mkdir()
  assert [p.read_bytes() for p in malformed_images(again, 800, seed=1)] == [p.read_bytes() for p in files]


def test_whatever_was_read_can_be_written_in_all_formats(tmp_path, capfd, caplog):
  for path in malformed_images(tmp_path, 350, seed=2):
    try:
      photograph = read_photograph(path)
    except ValueError:
      continue
    for extension in ('.png', '.tif', '.jpg', '.webp', '.bmp', '.exr', '.jxl'):
      try:
        notes = write_photograph(tmp_path / f'out{extension}', photograph)
      except ValueError:
        assert photograph.alpha is not None
        continue
      assert all(note.isprintable() and len(note) < 300 for note in notes)
      again = read_photograph(tmp_path / f'out{extension}')
      wanted = photograph if extension in ('.tif', '.jpg') else upright(photograph)
      assert again.pixels.shape[:2] == wanted.pixels.shape[:2]
      assert again.orientation == wanted.orientation
      if extension == '.tif' or (extension == '.png' and photograph.pixels.dtype != np.float32):
        assert_same_pixels(again, wanted)
      if extension == '.jxl' and photograph.pixels.dtype != np.float32:
        # Grey with transparency is stored as colour.
        np.testing.assert_array_equal(again.pixels, np.broadcast_to(wanted.pixels, again.pixels.shape))
  _assert_silence(capfd, caplog)


@pytest.mark.parametrize('change', ['rewritten', 'replaced'])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, change):
  path, read_metadata = tmp_path / 'a.png', png.read_metadata
  write_photograph(path, random_photograph(8, 9))

  def read_metadata_while_another_program_writes(*arguments):
    if change == 'rewritten':
      path.write_bytes(path.read_bytes() + b'\0')
    else:
      shutil.copy(path, tmp_path / 'b.png')
      (tmp_path / 'b.png').replace(path)
    return read_metadata(*arguments)

  monkeypatch.setattr(png, 'read_metadata', read_metadata_while_another_program_writes)
  with pytest.raises(ValueError, match=r'a\.png: the file was changed while it was read; try again'):
    read_photograph(path)
