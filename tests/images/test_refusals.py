"""People's pictures: what is refused, and any damage, in one line."""

import contextlib
import ctypes
import dataclasses
import io
import os
import struct
import warnings
import zlib

import numpy as np
from PIL import Image
import pytest

from sadnet_jax.images import (
  MAX_PIXELS,
  PHOTOGRAPH_SUFFIXES,
  Photograph,
  check_output,
  read_photograph,
  reading,
  upright,
  write_photograph,
  writing,
)
from sadnet_jax.images import photograph as photograph_module
from sadnet_jax.images.formats import tiff_writing
from tests.support.malformed_images import malformed_images, png_chunks, png_file, sound_images
from tests.support.photograph_files import assert_same_pixels, opened, random_photograph, write_file


def _assert_silence(capfd, caplog):
  # Libraries in C keep what they print to themselves until they have some of it.
  ctypes.CDLL(None).fflush(None)
  assert capfd.readouterr() == ('', '')
  # Without handlers, of which pytest has some, Python prints these.
  assert caplog.messages == []


@pytest.fixture(scope='module')
def sound():
  return sound_images(np.random.default_rng(0))


@pytest.mark.parametrize(
  ('name', 'message'),
  {
    'cmyk.jpg': r'got a JPEG of CMYK colours, want grey or RGB \(convert it to RGB',
    'cmyk.tif': r'got a TIFF of CMYK, want grey or RGB',
    'lab.tif': r'got a TIFF of Lab, want grey or RGB',
    'float.tif': r'got a TIFF of floating-point values, want whole numbers from 0 \(convert it to 16 bits\)',
    'signed.tif': r'got a TIFF of signed values',
    'wide.tif': r'got a TIFF of 32 bits a channel, want 8 or 16',
    'fax.tif': r'got a TIFF of compression 4 \(fax\), want none, LZW',
    'pages.tif': r'got a TIFF of 2 pages, want a single picture',
    'five_channels.tif': r'got a TIFF of 5 channels, want colours and at most one more \(flatten it\)',
    'animated.png': r'got an animated PNG of 2 frames, want a single picture',
    'animated.webp': r'got an animated WebP of 2 frames, want a single picture',
    'single.gif': r'got a GIF file, want a PNG, JPEG, TIFF, WebP or BMP file \(convert it\)',
  }.items(),
)
def test_other_kinds_of_pictures_are_refused_by_name(sound, tmp_path, name, message):
  path = write_file(tmp_path / name, sound[name])
  with pytest.raises(ValueError, match=rf'{name}: {message}'):
    read_photograph(path)


@pytest.mark.parametrize(
  ('start', 'message'),
  [
    (b'', 'got an empty file'),
    (b'hello\n', 'got a file of unknown format'),
    (b'\0\0\0\x18ftypheic', 'got a HEIC file'),
    (b'\0\0\0\x18ftypisom', 'got a film'),
    (b'\0\0\0\x18ftypcrx ', 'got a camera raw file, .*develop it'),
    (b'II*\0\x10\0\0\0CR', 'got a camera raw file, .*develop it'),
    (b'8BPS', 'got a Photoshop document'),
    (b'\x76\x2f\x31\x01', 'got an OpenEXR file of high dynamic range'),
  ],
)
def test_other_files_are_refused_by_their_first_bytes(tmp_path, start, message):
  path = write_file(tmp_path / 'a.jpg', start + bytes(100) * bool(start))
  with pytest.raises(ValueError, match=rf'a\.jpg: {message}'):
    read_photograph(path)


def test_what_is_no_file_to_read_is_refused(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r'nowhere\.png: got no readable file \(No such file or directory\)'):
    read_photograph(tmp_path / 'nowhere.png')
  with pytest.raises(ValueError, match=r': got a folder, want a PNG'):
    read_photograph(tmp_path)
  os.mkfifo(tmp_path / 'pipe.png')
  with pytest.raises(ValueError, match=r'pipe\.png: got no regular file'):
    read_photograph(tmp_path / 'pipe.png')
  path = write_file(tmp_path / 'a\nb.png', b'x')
  with pytest.raises(ValueError, match=r"a\\\\?nb\.png'?: got a file of unknown") as caught:
    read_photograph(path)
  assert '\n' not in str(caught.value)

  def refuse(*_):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr('pathlib.Path.open', refuse)
  with pytest.raises(ValueError, match=r'got no readable file \(Permission denied\)'):
    read_photograph(path)


@pytest.mark.parametrize('name', ['rgb.png', 'deep_rgb.png', 'rgb.jpg', 'rgb.bmp', 'lossy.webp', 'deep.tif'])
def test_no_part_of_a_file_is_taken_for_a_picture(sound, tmp_path, name):
  data = sound[name]
  whole = read_photograph(write_file(tmp_path / name, data))
  for end in range(1, len(data), 1 + len(data) // 60):
    write_file(tmp_path / name, data[:end])
    try:
      read = read_photograph(tmp_path / name)
    except ValueError:
      continue
    # Of some files the end is not of the picture.
    np.testing.assert_array_equal(read.pixels, whole.pixels)
    assert end > 0.9 * len(data)


@pytest.mark.parametrize(
  'options',
  [{}, {'progressive': True}, {'restart_marker_blocks': 5}],
  ids=['plain', 'progressive', 'restarts'],
)
def test_jpeg_whose_end_is_put_on_too_early_is_refused(tmp_path, options):
  buffer = io.BytesIO()
  Image.fromarray(random_photograph(120, 160).pixels).save(buffer, 'JPEG', **options)
  data = buffer.getvalue()
  np.testing.assert_array_equal(
    read_photograph(write_file(tmp_path / 'a.jpg', data)).pixels, np.asarray(Image.open(buffer))
  )
  silent = 0
  for end in range(len(data) // 2, len(data) - 20, len(data) // 40):
    path = write_file(tmp_path / 'a.jpg', data[:end].rstrip(b'\xff') + b'\xff\xd9')
    # Pillow makes grey of what is missing, and mostly says nothing.
    with contextlib.suppress(OSError):
      silent += opened(path).load() is not None
    with pytest.raises(ValueError, match=r'a\.jpg: got a JPEG'):
      read_photograph(path)
  assert silent > 10


def test_jpeg_cut_between_its_intervals_is_refused(tmp_path):
  buffer = io.BytesIO()
  Image.fromarray(random_photograph(64, 64).pixels).save(buffer, 'JPEG', restart_marker_blocks=4)
  data = buffer.getvalue()
  path = write_file(tmp_path / 'a.jpg', data[: data.index(b'\xff\xd2')] + b'\xff\xd9')
  with pytest.raises(ValueError, match='got a JPEG whose pixels are incomplete'):
    read_photograph(path)


@pytest.mark.parametrize('change', [-200, 200])
def test_png_with_fewer_or_more_rows_than_its_header_says_is_refused(sound, tmp_path, change):
  header, (_, stored), end = png_chunks(sound['plain.png'])
  rows = zlib.decompress(stored)
  rows = rows[:change] if change < 0 else rows + bytes(change)
  path = write_file(tmp_path / 'a.png', png_file([header, (b'IDAT', zlib.compress(rows)), end]))
  with pytest.raises(ValueError, match='got a PNG whose pixels are not as many as its header says'):
    read_photograph(path)


def test_bmp_of_run_lengths_is_refused(sound, tmp_path):
  data = sound['palette.bmp']
  path = write_file(tmp_path / 'a.bmp', data[:30] + struct.pack('<I', 1) + data[34:])
  with pytest.raises(ValueError, match='got a BMP of compression 1, want an uncompressed one'):
    read_photograph(path)


def test_jpeg_of_endless_scans_is_refused(sound, tmp_path):
  data = sound['progressive.jpg']
  scan = data[data.rindex(b'\xff\xda') : -2]
  with pytest.raises(ValueError, match=r'got a JPEG of 3\d\d scans, want 1 to 200'):
    read_photograph(write_file(tmp_path / 'a.jpg', data[:-2] + 300 * scan + data[-2:]))


def test_tiff_of_more_than_its_places_can_tell_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(tiff_writing, '_MOST_FILE_BYTES', 1000)
  with pytest.raises(
    ValueError, match=r'a\.tif: got a picture of more than 4 GiB as TIFF, want a smaller one'
  ):
    write_photograph(tmp_path / 'a.tif', random_photograph())
  assert not list(tmp_path.iterdir())


def test_warnings_of_decoders_do_not_leak(sound, tmp_path, monkeypatch):
  def warn(data):
    warnings.warn('from a decoder', stacklevel=1)
    return random_photograph()

  monkeypatch.setattr(reading, '_READERS', {'PNG': warn})
  assert_same_pixels(read_photograph(write_file(tmp_path / 'a.png', sound['rgb.png'])), random_photograph())


def test_messages_have_one_line(sound, tmp_path, monkeypatch):
  def fail(data):
    raise RuntimeError('one\nother' + 1000 * ' long')

  monkeypatch.setattr(reading, '_READERS', {'PNG': fail})
  with pytest.raises(ValueError, match=r'a\.png: got a damaged PNG file \(one other long .*want a') as caught:
    read_photograph(write_file(tmp_path / 'a.png', sound['rgb.png']))
  assert len(str(caught.value)) < 500
  assert str(caught.value).isprintable()


def test_jpeg_that_lacks_a_part_in_its_middle_is_refused(tmp_path):
  buffer = io.BytesIO()
  Image.fromarray(random_photograph(64, 64).pixels).save(buffer, 'JPEG', restart_marker_blocks=1)
  data = buffer.getvalue()
  lacking = data[: data.index(b'\xff\xd3')] + data[data.index(b'\xff\xd4') :]
  with pytest.raises(ValueError, match='got a JPEG with parts of a scan missing'):
    read_photograph(write_file(tmp_path / 'a.jpg', lacking))


def test_headers_of_more_than_there_is_are_refused_before_anything_is_allocated(sound, tmp_path, monkeypatch):
  assert MAX_PIXELS == 500_000_000
  header, *rest = png_chunks(sound['plain.png'])
  for width, height in ((60_000, 60_000), (2**31 - 1, 1)):
    huge = [(b'IHDR', struct.pack('>II', width, height) + header[1][8:]), *rest]
    path = write_file(tmp_path / 'a.png', png_file(huge))
    with pytest.raises(ValueError, match=rf'got a header of {width}x{height} pixels, want no more than'):
      read_photograph(path)
  # A flat lossless WebP takes no bytes a pixel.
  at = sound['lossless.webp'].index(b'VP8L') + 9
  size = struct.pack('<I', (16383) | (16383 << 14))
  path = write_file(
    tmp_path / 'a.webp', sound['lossless.webp'][:at] + size + sound['lossless.webp'][at + 4 :]
  )
  with pytest.raises(ValueError, match=r'got a WebP of 16384x16384 pixels, want at most 178,956,970'):
    read_photograph(path)
  monkeypatch.setattr(photograph_module, 'MAX_PIXELS', 100)
  with pytest.raises(ValueError, match=r'got 31x17 pixels, want at most 100 \(cut it into parts\)'):
    read_photograph(write_file(tmp_path / 'a.tif', sound['deep.tif']))
  monkeypatch.undo()
  monkeypatch.setattr(photograph_module, 'free_host_bytes', lambda: 1000)
  with pytest.raises(
    ValueError, match=r'got 31x17 pixels, want a picture that fits the 0\.0 GiB of free memory'
  ):
    read_photograph(write_file(tmp_path / 'a.jpg', sound['rgb.jpg']))


def test_outputs_are_refused_before_there_is_work_to_lose(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"a\.gif: got the ending '\.gif', want one of \.png, \.jpg, \.jpeg"):
    check_output(tmp_path / 'a.gif')
  with pytest.raises(ValueError, match=r'got no such folder .*nowhere, want one'):
    check_output(tmp_path / 'nowhere' / 'a.png')
  (tmp_path / 'folder.png').mkdir()
  with pytest.raises(ValueError, match=r'folder\.png: got a folder, want the name of a file'):
    check_output(tmp_path / 'folder.png')
  for ending in PHOTOGRAPH_SUFFIXES:
    check_output(tmp_path / f'a{ending.upper()}', random_photograph())
  for ending in ('.jpg', '.bmp'):
    with pytest.raises(ValueError, match=r'got a photograph with transparency, want a format that holds it'):
      check_output(tmp_path / f'a{ending}', random_photograph(alpha=True))
  for ending, side in (('.jpg', 65500), ('.webp', 16383)):
    check_output(tmp_path / f'a{ending}', Photograph(np.zeros((1, side, 1), np.uint8)))
    with pytest.raises(ValueError, match=rf'got 1x{side + 1} pixels, want at most {side} a side for'):
      write_photograph(tmp_path / f'a{ending}', Photograph(np.zeros((side + 1, 1, 1), np.uint8)))
  monkeypatch.setattr(writing.os, 'access', lambda *_: False)
  with pytest.raises(ValueError, match='got a folder without permission to write'):
    check_output(tmp_path / 'a.png')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['folder.png']


@pytest.mark.parametrize(
  'error', [OSError(28, 'No space left on device'), ValueError('got bad luck, want good')]
)
def test_what_is_there_stays_if_writing_fails(tmp_path, monkeypatch, error):
  path = tmp_path / 'a.png'
  write_photograph(path, random_photograph())
  before = path.read_bytes()

  class Broken:
    def __iter__(self):
      yield b'half of it'
      raise error

  broken = dataclasses.replace(writing._FORMATS['.png'], encode=lambda _: (Broken(), ()))
  monkeypatch.setattr(writing, '_FORMATS', {'.png': broken})
  with pytest.raises(ValueError, match=r'a\.png: got (No space left on device|bad luck), want'):
    write_photograph(path, random_photograph(seed=1))
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['a.png']


def test_arrays_of_another_form_are_no_photograph():
  pixels = np.zeros((3, 4, 3), np.uint8)
  for wrong in (pixels[:, :, 0], pixels[:, :, :2], pixels.astype(np.float32)):
    with pytest.raises(ValueError, match=r'pixels: got .* want uint8 or uint16 of shape'):
      Photograph(wrong)
  with pytest.raises(ValueError, match='pixels: got an empty array'):
    Photograph(pixels[:0])
  for wrong in (np.zeros((3, 5), np.uint8), np.zeros((3, 4), np.uint16)):
    with pytest.raises(ValueError, match=r'alpha: got .* want uint8 \(3, 4\) as the pixels'):
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
    assert message.startswith(f'{path}: got ')
    assert len(message.removeprefix(str(path))) < 500
    assert message.isprintable(), message
  # Neither all nor none.
  assert 400 < len(messages) < 700
  _assert_silence(capfd, caplog)
  again = tmp_path / 'again'
  again.mkdir()
  assert [p.read_bytes() for p in malformed_images(again, 800, seed=1)] == [p.read_bytes() for p in files]


def test_what_was_read_of_odd_files_can_be_written_anywhere(tmp_path, capfd, caplog):
  for path in malformed_images(tmp_path, 500, seed=2):
    try:
      photograph = read_photograph(path)
    except ValueError:
      continue
    for ending in ('.png', '.tif', '.jpg', '.webp', '.bmp'):
      try:
        notes = write_photograph(tmp_path / f'out{ending}', photograph)
      except ValueError:
        assert photograph.alpha is not None
        continue
      assert all(note.isprintable() and len(note) < 300 for note in notes)
      again = read_photograph(tmp_path / f'out{ending}')
      # Without a place for the orientation, it is turned.
      wanted = upright(photograph) if ending == '.bmp' else photograph
      assert again.pixels.shape[:2] == wanted.pixels.shape[:2]
      assert again.orientation == wanted.orientation
      if ending in ('.png', '.tif'):
        assert_same_pixels(again, photograph)
  _assert_silence(capfd, caplog)
