"""People's pictures: read and written with all that came with them, or refused in one line."""

import contextlib
import ctypes
import dataclasses
import io
import os
import struct
import tracemalloc
import warnings
import zlib

import imagecodecs
from malformed_images import malformed_images, png_chunks, png_file, sound_images
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin
import pytest
import tifffile

from sadnet_jax.photographs import (
  MAX_PIXELS,
  PHOTOGRAPH_SUFFIXES,
  Metadata,
  Photograph,
  check_output,
  exif,
  read_photograph,
  reading,
  tiff_writing,
  upright,
  write_photograph,
  writing,
)
from sadnet_jax.photographs import photograph as photograph_module

RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
GREY_PROFILE = RGB_PROFILE[:16] + b'GRAY' + RGB_PROFILE[20:]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r>caption</r></x:xmpmeta>'
MAKER_NOTE = bytes(range(256)) * 3
CAPTION = b'8BIM\x04\x04\0\0\0\0\0\x05hello\0'
OLD_SMALL_PICTURE = b'8BIM\x04\x0c\0\0\0\0\0\x04abcd'


def _photograph(height=17, width=31, channels=3, dtype=np.uint8, *, alpha=False, seed=0, **fields):
  random = np.random.default_rng(seed)
  most = np.iinfo(dtype).max
  pixels = random.integers(0, most, (height, width, channels), dtype, endpoint=True)
  opacity = random.integers(0, most, (height, width), dtype, endpoint=True) if alpha else None
  return Photograph(pixels, opacity, **fields)


def _smooth(height=24, width=40, **fields):
  y, x = np.mgrid[:height, :width]
  return Photograph(np.stack([4 * x, 5 * y, 2 * x + 2 * y], axis=-1).astype(np.uint8), **fields)


def _exif(order='<', orientation=6, thumbnail=b''):
  """A block as cameras write it, put together by Pillow; the thumbnail is the second directory."""
  exif = Image.Exif()
  exif.endian = order
  exif[271], exif[272], exif[274] = 'Maker', 'Model 1', orientation
  exif[282] = exif[283] = 72.0
  exif[34665] = {36867: '2020:01:02 03:04:05', 33434: 0.004, 37500: MAKER_NOTE}
  exif[34853] = {1: 'N', 2: (46.0, 57.0, 3.5)}
  block = exif.tobytes().removeprefix(b'Exif\0\0')
  if not thumbnail:
    return block
  block += b'\0' * (len(block) % 2)
  (count,) = struct.unpack_from(order + 'H', block, 8)
  link = 10 + 12 * count
  start = len(block) + 2 + 24 + 4
  second = struct.pack(order + 'HHHIIHHIII', 2, 513, 4, 1, start, 514, 4, 1, len(thumbnail), 0)
  return block[:link] + struct.pack(order + 'I', len(block)) + block[link + 4 :] + second + thumbnail


def _assert_tags(exif, orientation=6):
  """What `_exif` put in, as Pillow reads it."""
  assert (exif[271], exif[272], exif[274]) == ('Maker', 'Model 1', orientation)
  details = exif.get_ifd(ExifTags.IFD.Exif)
  assert (details[36867], float(details[33434])) == ('2020:01:02 03:04:05', 0.004)
  assert details[37500] == MAKER_NOTE
  assert [float(x) for x in exif.get_ifd(ExifTags.IFD.GPSInfo)[2]] == [46.0, 57.0, 3.5]


def _encoded(photograph):
  buffer = io.BytesIO()
  Image.fromarray(photograph.pixels).save(buffer, 'PNG')
  return buffer.getvalue()


def _write(path, data):
  path.write_bytes(data)
  return path


def _opened(path):
  """Pillow's view of a file that is closed."""
  return Image.open(io.BytesIO(path.read_bytes()))


def _independently(path):
  """All channels as other readers see them, [H, W, C]."""
  if path.suffix == '.tif':
    array = tifffile.imread(path)
  elif path.suffix == '.png':
    array = imagecodecs.png_decode(path.read_bytes())
  else:
    array = np.asarray(_opened(path))
  return np.atleast_3d(array)


def _assert_same(ours, theirs):
  np.testing.assert_array_equal(ours.pixels, theirs.pixels)
  assert ours.pixels.dtype == theirs.pixels.dtype
  assert (ours.alpha is None) == (theirs.alpha is None)
  if ours.alpha is not None:
    np.testing.assert_array_equal(ours.alpha, theirs.alpha)


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (31, 17)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('alpha', [False, True])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('ending', ['.png', '.tif'])
def test_lossless_formats_give_back_every_bit(tmp_path, ending, channels, alpha, dtype, size):
  photograph = _photograph(*size, channels, dtype, alpha=alpha)
  path = tmp_path / f'a{ending}'
  assert write_photograph(path, photograph) == ()
  _assert_same(read_photograph(path), photograph)
  whole = photograph.pixels if not alpha else np.dstack([photograph.pixels, photograph.alpha])
  theirs = _independently(path)
  assert theirs.dtype == dtype
  np.testing.assert_array_equal(theirs.reshape(whole.shape), whole)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('ending', ['.bmp', '.webp', '.jpg'])
def test_formats_of_8_bits(tmp_path, ending, channels):
  photograph = _smooth()
  photograph = dataclasses.replace(photograph, pixels=photograph.pixels[:, :, :channels])
  path = tmp_path / f'a{ending}'
  assert write_photograph(path, photograph) == ()
  read = read_photograph(path)
  wanted = np.broadcast_to(photograph.pixels, _independently(path).shape).astype(int)
  assert np.abs(read.pixels - wanted).max() <= (5 if ending == '.jpg' else 0)
  np.testing.assert_array_equal(read.pixels, _independently(path))
  assert read.lossless == (ending != '.jpg')


def test_webp_is_lossless_for_what_was_and_keeps_colours_that_are_transparent(tmp_path):
  photograph = _photograph(alpha=True)
  photograph.alpha[:5] = 0
  write_photograph(tmp_path / 'a.webp', photograph)
  _assert_same(read_photograph(tmp_path / 'a.webp'), photograph)
  write_photograph(tmp_path / 'b.webp', dataclasses.replace(_smooth(), lossless=False))
  lossy = read_photograph(tmp_path / 'b.webp')
  assert not lossy.lossless
  assert 0 < np.abs(lossy.pixels.astype(int) - _smooth().pixels).max() < 16


def test_jpeg_keeps_colours_at_full_resolution(tmp_path):
  write_photograph(tmp_path / 'a.jpg', _photograph())
  frame = (tmp_path / 'a.jpg').read_bytes().partition(b'\xff\xc0')[2]
  assert [frame[8 + 3 * channel + 1] for channel in range(3)] == [0x11] * 3


@pytest.mark.parametrize('ending', ['.jpg', '.webp', '.bmp'])
def test_16_bits_are_rounded_to_the_nearest_of_8(tmp_path, ending):
  values = np.array([0, 128, 129, 385, 386, 65406, 65407, 65535], np.uint16)
  photograph = Photograph(np.tile(np.repeat(values, 16)[None, :, None], (16, 1, 3)))
  (note,) = write_photograph(tmp_path / f'a{ending}', photograph)
  assert 'its 16 bits are rounded to 8' in note
  wanted = np.round(values / 257)
  found = read_photograph(tmp_path / f'a{ending}').pixels[8, 8::16, 0]
  np.testing.assert_allclose(found, wanted, atol=2 if ending == '.jpg' else 0)


# Files of other programs.


@pytest.fixture(scope='module')
def sound():
  return sound_images(np.random.default_rng(0))


_SOUND = {
  'rgb.png': None,
  'rgba.png': None,
  'grey_alpha.png': 'LA',
  'bilevel.png': 'L',
  'palette.png': 'RGBA',
  'interlaced.png': None,
  'rgb.jpg': None,
  'grey.jpg': None,
  'progressive.jpg': None,
  'restarts.jpg': None,
  'several.jpg': None,
  'lossy.webp': None,
  'transparent.webp': None,
  'rgb.bmp': None,
  'grey.bmp': None,
  'bilevel.bmp': 'L',
  'palette.bmp': 'RGB',
  'bilevel.tif': 'L',
  'palette.tif': 'RGB',
}


@pytest.mark.parametrize('name', _SOUND)
def test_files_of_8_bits_are_read_as_pillow_reads_them(sound, tmp_path, name):
  path = _write(tmp_path / name, sound[name])
  read = read_photograph(path)
  with Image.open(path) as image:
    wanted = np.atleast_3d(np.asarray(image.convert(_SOUND[name]) if _SOUND[name] else image))
  assert (read.alpha is not None) == (wanted.shape[2] in (2, 4))
  found = read.pixels if read.alpha is None else np.dstack([read.pixels, read.alpha])
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize('ending', PHOTOGRAPH_SUFFIXES)
def test_the_ending_of_a_file_is_not_believed(sound, tmp_path, ending):
  path = _write(tmp_path / f'a{ending.upper()}', sound['deep_rgb.png'])
  assert read_photograph(path).pixels.dtype == np.uint16


@pytest.mark.parametrize(
  'name', [f'deep_{kind}.png' for kind in ('rgb', 'rgba', 'grey', 'grey_alpha', 'interlaced')]
)
def test_png_of_16_bits(sound, tmp_path, name):
  read = read_photograph(_write(tmp_path / name, sound[name]))
  # The same picture, by its generator.
  eight = read_photograph(_write(tmp_path / 'b.png', sound['plain.png']))
  whole = np.dstack([eight.pixels, eight.alpha]).astype(np.uint16)
  whole = whole * 257 + (0 if 'interlaced' in name else 3)
  channels = {'rgb': 3, 'rgba': 4, 'interlaced': 4, 'grey': 1, 'grey_alpha': 2}[name[5:-4]]
  found = read.pixels if read.alpha is None else np.dstack([read.pixels, read.alpha])
  np.testing.assert_array_equal(found, whole[:, :, :channels])


_TIFFS = (
  'lzw',
  'zlib',
  'packbits',
  'zstd',
  'lzma',
  'None',
  'deep',
  'deep_grey',
  'deep_alpha',
  'tiles',
  'planes',
)
_TIFFS += ('strips', 'big_endian', 'big_tiff', 'jpeg')


@pytest.mark.parametrize('name', _TIFFS)
def test_tiff_files_of_any_layout(sound, tmp_path, name):
  path = _write(tmp_path / 'a.tif', sound[f'{name}.tif'])
  read = read_photograph(path)
  wanted = np.atleast_3d(tifffile.imread(path))
  wanted = np.moveaxis(wanted, 0, 2) if name == 'planes' else wanted
  found = read.pixels if read.alpha is None else np.dstack([read.pixels, read.alpha])
  assert found.dtype == wanted.dtype
  np.testing.assert_allclose(found, wanted, atol=1 if name == 'jpeg' else 0)
  assert read.lossless == (name != 'jpeg')


@pytest.mark.parametrize('tile', [(16, 16), (48, 32)])
@pytest.mark.parametrize('planar', ['contig', 'separate'])
def test_tiff_tiles_larger_and_smaller_than_the_picture(tmp_path, planar, tile):
  pixels = _photograph(33, 17, dtype=np.uint16).pixels
  stored = pixels if planar == 'contig' else np.moveaxis(pixels, 2, 0)
  options = {'tile': tile, 'compression': 'lzw', 'predictor': True, 'byteorder': '>'}
  tifffile.imwrite(tmp_path / 'a.tif', stored, photometric='rgb', planarconfig=planar, **options)
  np.testing.assert_array_equal(read_photograph(tmp_path / 'a.tif').pixels, pixels)


def test_tiff_that_is_white_at_zero_is_turned_around(tmp_path):
  values = np.arange(60, dtype=np.uint16).reshape(6, 10)
  tifffile.imwrite(tmp_path / 'a.tif', values, photometric='miniswhite')
  np.testing.assert_array_equal(read_photograph(tmp_path / 'a.tif').pixels[:, :, 0], 65535 - values)


def test_tiff_colours_times_opacity_are_given_without_it(tmp_path):
  straight = np.full((4, 5, 3), (200, 100, 0), np.uint8)
  opacity = np.array([[255], [128], [1], [0]], np.uint8) * np.ones((1, 5), np.uint8)
  stored = np.dstack([np.round(straight * (opacity[:, :, None] / 255)).astype(np.uint8), opacity])
  tifffile.imwrite(tmp_path / 'a.tif', stored, photometric='rgb', extrasamples=['assocalpha'])
  read = read_photograph(tmp_path / 'a.tif')
  np.testing.assert_array_equal(read.alpha, opacity)
  np.testing.assert_allclose(read.pixels[:2].astype(int), straight[:2], atol=1)
  assert read.notes == ('its colours, stored times their opacity, are kept without it',)


@pytest.mark.parametrize(('depth', 'key'), [(2, 1), (4, 9)])
def test_png_of_few_bits_with_a_transparent_grey(tmp_path, depth, key):
  levels = 2**depth
  rows = np.arange(levels, dtype=np.uint8).reshape(-1, 8 // depth)
  weights = levels ** np.arange(8 // depth - 1, -1, -1)
  content = b''.join(b'\0' + bytes([int((row * weights).sum())]) for row in rows)
  header = struct.pack('>IIBBBBB', rows.shape[1], rows.shape[0], depth, 0, 0, 0, 0)
  chunks = [(b'IHDR', header), (b'tRNS', struct.pack('>H', key)), (b'IDAT', zlib.compress(content))]
  read = read_photograph(_write(tmp_path / 'a.png', png_file([*chunks, (b'IEND', b'')])))
  np.testing.assert_array_equal(read.pixels[:, :, 0], rows * (255 // (levels - 1)))
  np.testing.assert_array_equal(read.alpha, np.where(rows == key, 0, 255))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_a_colour_that_a_png_names_transparent_becomes_alpha(tmp_path, dtype):
  photograph = _photograph(dtype=dtype)
  write_photograph(tmp_path / 'a.png', photograph)
  header, *rest = png_chunks((tmp_path / 'a.png').read_bytes())
  key = (b'tRNS', struct.pack('>3H', *photograph.pixels[4, 5]))
  read = read_photograph(_write(tmp_path / 'b.png', png_file([header, key, *rest])))
  np.testing.assert_array_equal(read.pixels, photograph.pixels)
  assert read.alpha.dtype == dtype
  assert np.argwhere(read.alpha == 0).tolist() == [[4, 5]]
  assert set(np.unique(read.alpha)) == {0, np.iinfo(dtype).max}


def test_jpeg_in_tiff_has_the_colours_that_the_tiff_says(tmp_path):
  photograph = _smooth()
  for colours in ('rgb', 'ycbcr'):
    tifffile.imwrite(
      tmp_path / f'{colours}.tif',
      photograph.pixels,
      photometric='rgb',
      compression='jpeg',
      compressionargs={'level': 100, 'outcolorspace': colours},
    )
    read = read_photograph(tmp_path / f'{colours}.tif')
    np.testing.assert_allclose(read.pixels.astype(int), photograph.pixels, atol=12)


# What comes with the pixels.


@pytest.mark.parametrize('number', range(1, 9))
def test_orientation_is_kept_and_can_be_applied(tmp_path, number):
  photograph = _photograph(5, 9, alpha=True, metadata=Metadata(exif=_exif(orientation=number), dpi=(72, 300)))
  write_photograph(tmp_path / 'a.png', photograph)
  read = read_photograph(tmp_path / 'a.png')
  assert read.orientation == number
  np.testing.assert_array_equal(read.pixels, photograph.pixels)
  turned = upright(read)
  with Image.open(tmp_path / 'a.png') as image:
    wanted = np.asarray(ImageOps.exif_transpose(image))
  np.testing.assert_array_equal(np.dstack([turned.pixels, turned.alpha]), wanted)
  assert turned.orientation == 1
  assert [round(x) for x in turned.metadata.dpi] == ([72, 300] if number < 5 else [300, 72])
  exif = Image.Exif()
  exif.load(b'Exif\0\0' + turned.metadata.exif)
  _assert_tags(exif, orientation=1)


@pytest.mark.parametrize('source', ['.jpg', '.png', '.webp', '.tif'])
@pytest.mark.parametrize('target', ['.jpg', '.png', '.webp', '.tif'])
@pytest.mark.parametrize('order', ['<', '>'])
def test_metadata_goes_from_any_format_to_any_other(tmp_path, source, target, order):
  metadata = Metadata(icc_profile=RGB_PROFILE, exif=_exif(order), xmp=XMP)
  write_photograph(tmp_path / f'a{source}', _smooth(metadata=metadata))
  first = read_photograph(tmp_path / f'a{source}')
  assert first.notes == ()
  assert write_photograph(tmp_path / f'b{target}', first) == ()
  with Image.open(tmp_path / f'b{target}') as image:
    _assert_tags(image.getexif())
    image.load()
    assert image.info['icc_profile'] == RGB_PROFILE
  assert XMP in (tmp_path / f'b{target}').read_bytes()
  second = read_photograph(tmp_path / f'b{target}')
  assert (second.metadata.icc_profile, second.metadata.xmp) == (RGB_PROFILE, XMP)
  assert second.orientation == 6


@pytest.mark.parametrize('ending', ['.png', '.tif'])
def test_metadata_of_16_bit_files(tmp_path, ending):
  photograph = _photograph(
    dtype=np.uint16, metadata=Metadata(icc_profile=RGB_PROFILE, exif=_exif('>'), xmp=XMP, dpi=(300, 150))
  )
  path = tmp_path / f'a{ending}'
  assert write_photograph(path, photograph) == ()
  if ending == '.png':
    with Image.open(path) as image:
      _assert_tags(image.getexif())
      assert image.info['icc_profile'] == RGB_PROFILE
      assert [round(x) for x in image.info['dpi']] == [300, 150]
      assert image.info['xmp'] == XMP
    return
  with tifffile.TiffFile(path) as file:
    tags = file.pages[0].tags
    assert (tags['Make'].value, tags['Orientation'].value) == ('Maker', 6)
    assert tags['ExifTag'].value['DateTimeOriginal'] == '2020:01:02 03:04:05'
    assert tags['ExifTag'].value['MakerNote'] == MAKER_NOTE
    assert tags['GPSTag'].value['GPSLatitude'] == (46, 1, 57, 1, 7, 2)
    assert (bytes(tags['InterColorProfile'].value), tags['XMP'].value) == (RGB_PROFILE, XMP)


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.bmp', '.tif'])
def test_resolution_is_kept(tmp_path, ending):
  path, again = tmp_path / f'a{ending}', tmp_path / f'b{ending}'
  Image.fromarray(_smooth().pixels).save(path, dpi=(300, 150))
  read = read_photograph(path)
  assert read.metadata.exif is None
  write_photograph(again, read)
  with Image.open(again) as image:
    np.testing.assert_allclose([float(x) for x in image.info['dpi']], (300, 150), atol=0.1)


def test_profile_larger_than_a_segment_of_jpeg(tmp_path):
  profile = RGB_PROFILE + np.random.default_rng(0).bytes(150_000)
  write_photograph(tmp_path / 'a.jpg', _smooth(metadata=Metadata(icc_profile=profile)))
  assert _opened(tmp_path / 'a.jpg').info['icc_profile'] == profile
  assert read_photograph(tmp_path / 'a.jpg').metadata.icc_profile == profile


def test_text_and_colour_of_png_stay(tmp_path):
  info = PngImagePlugin.PngInfo()
  info.add_text('Title', 'Lake')
  info.add_text('Author', 'Someone', zip=True)
  info.add_itxt('Comment', 'Süß', 'de')
  info.add(b'gAMA', struct.pack('>I', 100_000))
  Image.fromarray(_photograph().pixels).save(tmp_path / 'a.png', pnginfo=info)
  read = read_photograph(tmp_path / 'a.png')
  assert write_photograph(tmp_path / 'b.png', read) == ()
  image = _opened(tmp_path / 'b.png')
  assert (image.text, image.info['gamma']) == ({'Title': 'Lake', 'Author': 'Someone', 'Comment': 'Süß'}, 1.0)
  assert write_photograph(tmp_path / 'b.jpg', read) == (
    'its PNG text left out: JPEG has no place for it',
    'its PNG colour (gAMA, cHRM) left out: JPEG has no place for it',
  )


@pytest.mark.parametrize(
  ('kind', 'content'),
  [
    (b'zTXt', b'name\0\0' + zlib.compress(bytes(100 * 2**20))),
    (b'zTXt', b'name\0\0' + zlib.compress(bytes(100))[:-1]),
    (b'iTXt', b'name\0\1\0\0\0' + zlib.compress(bytes(100))[:-1]),
    (b'gAMA', b'\0'),
    (b'cHRM', bytes(31)),
  ],
)
def test_chunks_that_others_could_not_read_do_not_stay(tmp_path, kind, content):
  chunks = png_chunks(_encoded(_photograph()))
  _write(tmp_path / 'a.png', png_file([*chunks[:1], (kind, content), *chunks[1:]]))
  read = read_photograph(tmp_path / 'a.png')
  assert read.notes == (f'its chunk {kind!r} is damaged and left out',)
  write_photograph(tmp_path / 'b.png', read)
  assert kind not in dict(png_chunks((tmp_path / 'b.png').read_bytes()))
  _opened(tmp_path / 'b.png')


def test_comment_and_captions_of_jpeg_stay(tmp_path):
  buffer = io.BytesIO()
  resources = b'Photoshop 3.0\0' + OLD_SMALL_PICTURE + CAPTION
  segment = struct.pack('>BBH', 0xFF, 0xED, len(resources) + 2) + resources
  Image.fromarray(_photograph().pixels).save(buffer, 'JPEG', comment=b'by hand', extra=segment)
  read = read_photograph(_write(tmp_path / 'a.jpg', buffer.getvalue()))
  assert (read.metadata.comment, read.metadata.photoshop) == (b'by hand', CAPTION)
  assert write_photograph(tmp_path / 'b.jpg', read) == ()
  image = _opened(tmp_path / 'b.jpg')
  assert image.info['comment'] == b'by hand'
  assert image.info['photoshop'] == {0x0404: b'hello'}
  assert write_photograph(tmp_path / 'b.png', read) == (
    'its Photoshop data (IPTC) left out: PNG has no place for it',
  )
  assert _opened(tmp_path / 'b.png').text == {'Comment': 'by hand'}
  write_photograph(tmp_path / 'b.tif', read)
  assert read_photograph(tmp_path / 'b.tif').metadata.photoshop == CAPTION


@pytest.mark.parametrize('order', ['<', '>'])
def test_the_small_picture_of_the_noisy_file_goes_and_all_else_stays(tmp_path, order):
  block = _exif(order, thumbnail=b'\xff\xd8small picture\xff\xd9')
  buffer = io.BytesIO()
  Image.fromarray(_smooth().pixels).save(buffer, 'JPEG', exif=b'Exif\0\0' + block)
  with Image.open(buffer) as image:
    assert 513 in image.getexif().get_ifd(ExifTags.IFD.IFD1)
  read = read_photograph(_write(tmp_path / 'a.jpg', buffer.getvalue()))
  write_photograph(tmp_path / 'b.jpg', read)
  assert b'small picture' not in (tmp_path / 'b.jpg').read_bytes()
  with Image.open(tmp_path / 'b.jpg') as image:
    assert not image.getexif().get_ifd(ExifTags.IFD.IFD1)
    _assert_tags(image.getexif())
  # Nothing before the thumbnail has moved.
  plain = _exif(order)
  assert read.metadata.exif[: len(plain)] == plain


@pytest.mark.parametrize('ending', ['.png', '.jpg', '.tif', '.webp'])
def test_profile_of_other_colours_does_not_stay(tmp_path, ending):
  (note,) = write_photograph(tmp_path / f'a{ending}', _smooth(metadata=Metadata(icc_profile=GREY_PROFILE)))
  assert note == 'its colour profile is for GRAY and left out: the pixels are RGB'
  assert 'icc_profile' not in _opened(tmp_path / f'a{ending}').info


def test_grey_profile_stays_with_grey_but_not_in_webp(tmp_path):
  photograph = _photograph(channels=1, metadata=Metadata(icc_profile=GREY_PROFILE))
  for ending in ('.png', '.jpg', '.tif'):
    assert write_photograph(tmp_path / f'a{ending}', photograph) == ()
    assert read_photograph(tmp_path / f'a{ending}').metadata.icc_profile == GREY_PROFILE
  assert len(write_photograph(tmp_path / 'a.webp', photograph)) == 1
  # And from a file that has it wrong.
  Image.fromarray(_photograph().pixels).save(tmp_path / 'b.png', icc_profile=GREY_PROFILE)
  read = read_photograph(tmp_path / 'b.png')
  assert read.metadata.icc_profile is None
  assert read.notes == ('its colour profile is for GRAY and left out: the pixels are RGB',)


def test_broken_exif_is_kept_if_it_can_be_and_told(tmp_path):
  buffer = io.BytesIO()
  cut = _exif()[:300]
  Image.fromarray(_smooth().pixels).save(buffer, 'JPEG', exif=b'Exif\0\0' + cut)
  read = read_photograph(_write(tmp_path / 'a.jpg', buffer.getvalue()))
  assert read.notes == ('its EXIF data are damaged and kept as they are',)
  assert read.orientation == 6
  write_photograph(tmp_path / 'b.png', read)
  assert dict(png_chunks((tmp_path / 'b.png').read_bytes()))[b'eXIf'] == cut
  buffer = io.BytesIO()
  Image.fromarray(_smooth().pixels).save(buffer, 'JPEG', exif=b'Exif\0\0no tags')
  read = read_photograph(_write(tmp_path / 'a.jpg', buffer.getvalue()))
  assert (read.metadata.exif, read.notes) == (None, ('its EXIF data are damaged and left out',))


def test_exif_that_leads_in_circles_is_read_no_deeper(sound, tmp_path):
  header, *rest = png_chunks(sound['plain.png'])
  circle = b'MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08'
  read = read_photograph(_write(tmp_path / 'a.png', png_file([header, (b'eXIf', circle), *rest])))
  assert read.notes == ('its EXIF data are damaged and kept as they are',)


def test_exif_of_many_large_tags_at_one_place_takes_little_memory():
  tags = b''.join(struct.pack('<HHII', tag, 7, 40_000, 8) for tag in range(1, 4001))
  block = b'II*\0\x08\0\0\0' + struct.pack('<H', 4000) + tags + bytes(4)
  tracemalloc.start()
  assert exif.orientation(block) == 1
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 3_000_000


def test_png_has_a_profile_or_the_name_of_it(tmp_path):
  chunks = ((b'sRGB', b'\0'), (b'tIME', bytes(7)))
  for profile, names in ((RGB_PROFILE, {b'iCCP', b'tIME'}), (None, {b'sRGB', b'tIME'})):
    metadata = Metadata(icc_profile=profile, png_chunks=chunks)
    write_photograph(tmp_path / 'a.png', _photograph(metadata=metadata))
    found = {kind for kind, _ in png_chunks((tmp_path / 'a.png').read_bytes())}
    assert found == names | {b'IHDR', b'IDAT', b'IEND'}


def test_too_much_for_jpeg_is_left_out_and_told(tmp_path):
  metadata = Metadata(xmp=bytes(70_000))
  assert write_photograph(tmp_path / 'a.jpg', _smooth(metadata=metadata)) == (
    'its XMP data left out: JPEG holds at most 64 KB of it',
  )


# What is refused.


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
  path = _write(tmp_path / name, sound[name])
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
  path = _write(tmp_path / 'a.jpg', start + bytes(100) * bool(start))
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
  path = _write(tmp_path / 'a\nb.png', b'x')
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
  whole = read_photograph(_write(tmp_path / name, data))
  for end in range(1, len(data), 1 + len(data) // 60):
    _write(tmp_path / name, data[:end])
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
  Image.fromarray(_photograph(120, 160).pixels).save(buffer, 'JPEG', **options)
  data = buffer.getvalue()
  np.testing.assert_array_equal(
    read_photograph(_write(tmp_path / 'a.jpg', data)).pixels, np.asarray(Image.open(buffer))
  )
  silent = 0
  for end in range(len(data) // 2, len(data) - 20, len(data) // 40):
    path = _write(tmp_path / 'a.jpg', data[:end].rstrip(b'\xff') + b'\xff\xd9')
    # Pillow makes grey of what is missing, and mostly says nothing.
    with contextlib.suppress(OSError):
      silent += _opened(path).load() is not None
    with pytest.raises(ValueError, match=r'a\.jpg: got a JPEG'):
      read_photograph(path)
  assert silent > 10


def test_jpeg_cut_between_its_intervals_is_refused(tmp_path):
  buffer = io.BytesIO()
  Image.fromarray(_photograph(64, 64).pixels).save(buffer, 'JPEG', restart_marker_blocks=4)
  data = buffer.getvalue()
  path = _write(tmp_path / 'a.jpg', data[: data.index(b'\xff\xd2')] + b'\xff\xd9')
  with pytest.raises(ValueError, match='got a JPEG whose pixels are incomplete'):
    read_photograph(path)


@pytest.mark.parametrize('change', [-200, 200])
def test_png_with_fewer_or_more_rows_than_its_header_says_is_refused(sound, tmp_path, change):
  header, (_, stored), end = png_chunks(sound['plain.png'])
  rows = zlib.decompress(stored)
  rows = rows[:change] if change < 0 else rows + bytes(change)
  path = _write(tmp_path / 'a.png', png_file([header, (b'IDAT', zlib.compress(rows)), end]))
  with pytest.raises(ValueError, match='got a PNG whose pixels are not as many as its header says'):
    read_photograph(path)


def test_bmp_of_run_lengths_is_refused(sound, tmp_path):
  data = sound['palette.bmp']
  path = _write(tmp_path / 'a.bmp', data[:30] + struct.pack('<I', 1) + data[34:])
  with pytest.raises(ValueError, match='got a BMP of compression 1, want an uncompressed one'):
    read_photograph(path)


def test_jpeg_of_endless_scans_is_refused(sound, tmp_path):
  data = sound['progressive.jpg']
  scan = data[data.rindex(b'\xff\xda') : -2]
  with pytest.raises(ValueError, match=r'got a JPEG of 3\d\d scans, want 1 to 200'):
    read_photograph(_write(tmp_path / 'a.jpg', data[:-2] + 300 * scan + data[-2:]))


def test_tiff_of_more_than_its_places_can_tell_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(tiff_writing, '_MOST_FILE_BYTES', 1000)
  with pytest.raises(
    ValueError, match=r'a\.tif: got a picture of more than 4 GiB as TIFF, want a smaller one'
  ):
    write_photograph(tmp_path / 'a.tif', _photograph())
  assert not list(tmp_path.iterdir())


def test_warnings_of_decoders_do_not_leak(sound, tmp_path, monkeypatch):
  def warn(data):
    warnings.warn('from a decoder', stacklevel=1)
    return _photograph()

  monkeypatch.setattr(reading, '_READERS', {'PNG': warn})
  _assert_same(read_photograph(_write(tmp_path / 'a.png', sound['rgb.png'])), _photograph())


def test_messages_have_one_line(sound, tmp_path, monkeypatch):
  def fail(data):
    raise RuntimeError('one\nother' + 1000 * ' long')

  monkeypatch.setattr(reading, '_READERS', {'PNG': fail})
  with pytest.raises(ValueError, match=r'a\.png: got a damaged PNG file \(one other long .*want a') as caught:
    read_photograph(_write(tmp_path / 'a.png', sound['rgb.png']))
  assert len(str(caught.value)) < 500
  assert str(caught.value).isprintable()


def test_jpeg_that_lacks_a_part_in_its_middle_is_refused(tmp_path):
  buffer = io.BytesIO()
  Image.fromarray(_photograph(64, 64).pixels).save(buffer, 'JPEG', restart_marker_blocks=1)
  data = buffer.getvalue()
  lacking = data[: data.index(b'\xff\xd3')] + data[data.index(b'\xff\xd4') :]
  with pytest.raises(ValueError, match='got a JPEG with parts of a scan missing'):
    read_photograph(_write(tmp_path / 'a.jpg', lacking))


def test_headers_of_more_than_there_is_are_refused_before_anything_is_allocated(sound, tmp_path, monkeypatch):
  assert MAX_PIXELS == 500_000_000
  header, *rest = png_chunks(sound['plain.png'])
  for width, height in ((60_000, 60_000), (2**31 - 1, 1)):
    huge = [(b'IHDR', struct.pack('>II', width, height) + header[1][8:]), *rest]
    path = _write(tmp_path / 'a.png', png_file(huge))
    with pytest.raises(ValueError, match=rf'got a header of {width}x{height} pixels, want no more than'):
      read_photograph(path)
  # A flat lossless WebP takes no bytes a pixel.
  at = sound['lossless.webp'].index(b'VP8L') + 9
  size = struct.pack('<I', (16383) | (16383 << 14))
  path = _write(tmp_path / 'a.webp', sound['lossless.webp'][:at] + size + sound['lossless.webp'][at + 4 :])
  with pytest.raises(ValueError, match=r'got a WebP of 16384x16384 pixels, want at most 178,956,970'):
    read_photograph(path)
  monkeypatch.setattr(photograph_module, 'MAX_PIXELS', 100)
  with pytest.raises(ValueError, match=r'got 31x17 pixels, want at most 100 \(cut it into parts\)'):
    read_photograph(_write(tmp_path / 'a.tif', sound['deep.tif']))
  monkeypatch.undo()
  monkeypatch.setattr(photograph_module, 'free_host_bytes', lambda: 1000)
  with pytest.raises(
    ValueError, match=r'got 31x17 pixels, want a picture that fits the 0\.0 GiB of free memory'
  ):
    read_photograph(_write(tmp_path / 'a.jpg', sound['rgb.jpg']))


def test_a_hundred_megapixels_are_read_without_a_word(tmp_path):
  # Warnings are errors in tests; Pillow warns of more than 89 megapixels, and refuses 179.
  rows = zlib.compress((b'\0' + b'\xaa' * 2500) * 10_000, 1)
  header = struct.pack('>IIBBBBB', 20_000, 10_000, 1, 0, 0, 0, 0)
  path = _write(tmp_path / 'a.png', png_file([(b'IHDR', header), (b'IDAT', rows), (b'IEND', b'')]))
  read = read_photograph(path)
  assert read.pixels.shape == (10_000, 20_000, 1)
  assert read.pixels[-1, -2:, 0].tolist() == [255, 0]


# Where it is written.


def test_outputs_are_refused_before_there_is_work_to_lose(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"a\.gif: got the ending '\.gif', want one of \.png, \.jpg, \.jpeg"):
    check_output(tmp_path / 'a.gif')
  with pytest.raises(ValueError, match=r'got no such folder .*nowhere, want one'):
    check_output(tmp_path / 'nowhere' / 'a.png')
  (tmp_path / 'folder.png').mkdir()
  with pytest.raises(ValueError, match=r'folder\.png: got a folder, want the name of a file'):
    check_output(tmp_path / 'folder.png')
  for ending in PHOTOGRAPH_SUFFIXES:
    check_output(tmp_path / f'a{ending.upper()}', _photograph())
  for ending in ('.jpg', '.bmp'):
    with pytest.raises(ValueError, match=r'got a photograph with transparency, want a format that holds it'):
      check_output(tmp_path / f'a{ending}', _photograph(alpha=True))
  for ending, side in (('.jpg', 65500), ('.webp', 16383)):
    check_output(tmp_path / f'a{ending}', Photograph(np.zeros((1, side, 1), np.uint8)))
    with pytest.raises(ValueError, match=rf'got 1x{side + 1} pixels, want at most {side} a side for'):
      write_photograph(tmp_path / f'a{ending}', Photograph(np.zeros((side + 1, 1, 1), np.uint8)))
  monkeypatch.setattr(writing.os, 'access', lambda *_: False)
  with pytest.raises(ValueError, match='got a folder without permission to write'):
    check_output(tmp_path / 'a.png')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['folder.png']


def test_the_longest_sides_can_be_written(tmp_path):
  for ending, side in (('.jpg', 65500), ('.webp', 16383)):
    write_photograph(tmp_path / f'a{ending}', Photograph(np.zeros((1, side, 3), np.uint8)))
    assert read_photograph(tmp_path / f'a{ending}').pixels.shape == (1, side, 3)


def test_transparency_that_is_nowhere_need_not_be_held(tmp_path):
  opaque = dataclasses.replace(_photograph(), alpha=np.full((17, 31), 255, np.uint8))
  (note,) = write_photograph(tmp_path / 'a.jpg', opaque)
  assert note == 'its transparency is left out: it is opaque everywhere, and JPEG holds none'


@pytest.mark.parametrize(
  'error', [OSError(28, 'No space left on device'), ValueError('got bad luck, want good')]
)
def test_what_is_there_stays_if_writing_fails(tmp_path, monkeypatch, error):
  path = tmp_path / 'a.png'
  write_photograph(path, _photograph())
  before = path.read_bytes()

  class Broken:
    def __iter__(self):
      yield b'half of it'
      raise error

  broken = dataclasses.replace(writing._FORMATS['.png'], encode=lambda _: (Broken(), ()))
  monkeypatch.setattr(writing, '_FORMATS', {'.png': broken})
  with pytest.raises(ValueError, match=r'a\.png: got (No space left on device|bad luck), want'):
    write_photograph(path, _photograph(seed=1))
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


# Anything at all.


def _assert_silence(capfd, caplog):
  # Libraries in C keep what they print to themselves until they have some of it.
  ctypes.CDLL(None).fflush(None)
  assert capfd.readouterr() == ('', '')
  # Without handlers, of which pytest has some, Python prints these.
  assert caplog.messages == []


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
      assert again.pixels.shape[:2] == photograph.pixels.shape[:2]
      assert again.orientation == photograph.orientation or ending == '.bmp'
      if ending in ('.png', '.tif'):
        _assert_same(again, photograph)
  _assert_silence(capfd, caplog)
