"""Pixels of photographs, in all formats."""

import dataclasses
import os
import struct
import zlib

import numpy as np
import OpenImageIO
from PIL import Image
import pytest
import tifffile

from sadnet_jax.images import PHOTOGRAPH_SUFFIXES, Photograph, read_photograph, upright, write_photograph
from sadnet_jax.images.arrays import read_image
from tests.support.malformed_images import png_chunks, png_file, sound_images
from tests.support.photograph_files import (
  assert_same_pixels,
  opened,
  random_photograph,
  smooth_photograph,
  write_file,
)


def _independently(path):
  """All channels as other readers see them, [H, W, C]."""
  array = tifffile.imread(path) if path.suffix == '.tif' else np.asarray(opened(path))
  return np.atleast_3d(array)


@pytest.fixture(scope='module')
def sound():
  return sound_images(np.random.default_rng(0))


# Not UTF-8, and one for a locale that writes it in another way than OpenImageIO.
@pytest.mark.parametrize('name', [os.fsdecode(b'caf\xe9.png'), 'café.png'])
def test_names_in_other_encodings_than_utf8(tmp_path, monkeypatch, name):
  path, photograph, opened_as = tmp_path / name, random_photograph(7, 9), []
  open_image = OpenImageIO.ImageInput.open

  def watch(name, *options):
    opened_as.append(name)
    return open_image(name, *options)

  with monkeypatch.context() as patched:
    patched.setattr(os, 'fsencode', lambda path: str(path).encode('latin-1', 'surrogateescape'))
    patched.setattr(OpenImageIO.ImageInput, 'open', watch)
    write_photograph(path, photograph)
    assert_same_pixels(read_photograph(path), photograph)
  assert opened_as
  assert ''.join(opened_as).isascii()
  assert_same_pixels(read_photograph(path), photograph)


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (31, 17)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('alpha', [False, True])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('extension', ['.png', '.tif'])
def test_lossless_formats_give_back_every_bit(tmp_path, extension, channels, alpha, dtype, size):
  photograph = random_photograph(*size, channels, dtype, alpha=alpha)
  path = tmp_path / f'a{extension}'
  assert write_photograph(path, photograph) == ()
  assert_same_pixels(read_photograph(path), photograph)
  whole = photograph.pixels if not alpha else np.dstack([photograph.pixels, photograph.alpha])
  theirs = _independently(path)
  # Of colour PNG files of 16 bits, Pillow gives the upper 8.
  if dtype == np.uint16 and theirs.dtype == np.uint8:
    whole = (whole >> 8).astype(np.uint8)
    theirs = theirs[:, :, [0, 3]] if whole.shape[2] == 2 else theirs
  np.testing.assert_array_equal(theirs.reshape(whole.shape), whole)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('extension', ['.bmp', '.webp', '.jpg'])
def test_formats_of_8_bits(tmp_path, extension, channels):
  photograph = smooth_photograph()
  photograph = dataclasses.replace(photograph, pixels=photograph.pixels[:, :, :channels])
  path = tmp_path / f'a{extension}'
  assert write_photograph(path, photograph) == ()
  read = read_photograph(path)
  wanted = np.broadcast_to(photograph.pixels, _independently(path).shape).astype(int)
  assert np.abs(read.pixels - wanted).max() <= (5 if extension == '.jpg' else 0)
  np.testing.assert_array_equal(read.pixels, _independently(path))
  assert read.lossless == (extension != '.jpg')


def test_webp_is_lossless_for_lossless_sources_and_keeps_transparent_colours(tmp_path):
  photograph = random_photograph(alpha=True)
  photograph.alpha[:5] = 0
  write_photograph(tmp_path / 'a.webp', photograph)
  assert_same_pixels(read_photograph(tmp_path / 'a.webp'), photograph)
  write_photograph(tmp_path / 'b.webp', dataclasses.replace(smooth_photograph(), lossless=False))
  lossy = read_photograph(tmp_path / 'b.webp')
  assert not lossy.lossless
  assert 0 < np.abs(lossy.pixels.astype(int) - smooth_photograph().pixels).max() < 16


def test_what_follows_a_webp_file_is_not_read(tmp_path):
  write_photograph(tmp_path / 'a.webp', random_photograph())
  data = (tmp_path / 'a.webp').read_bytes()
  read = read_photograph(write_file(tmp_path / 'b.webp', data + b'EXIF\xff\xff\xff\xff and more'))
  assert_same_pixels(read, random_photograph())
  with pytest.raises(ValueError, match=r'c\.webp: the file is damaged or incomplete'):
    read_photograph(write_file(tmp_path / 'c.webp', data[:-8]))


def test_jpeg_keeps_colours_at_full_resolution(tmp_path):
  write_photograph(tmp_path / 'a.jpg', random_photograph())
  frame = (tmp_path / 'a.jpg').read_bytes().partition(b'\xff\xc0')[2]
  assert [frame[8 + 3 * channel + 1] for channel in range(3)] == [0x11] * 3


@pytest.mark.parametrize('extension', ['.jpg', '.webp', '.bmp'])
def test_16_bits_are_rounded_to_the_nearest_of_8(tmp_path, extension):
  values = np.array([0, 128, 129, 385, 386, 65406, 65407, 65535], np.uint16)
  photograph = Photograph(np.tile(np.repeat(values, 16)[None, :, None], (16, 1, 3)))
  (note,) = write_photograph(tmp_path / f'a{extension}', photograph)
  assert 'its 16 bits are rounded to 8' in note
  wanted = np.round(values / 257)
  found = read_photograph(tmp_path / f'a{extension}').pixels[8, 8::16, 0]
  np.testing.assert_allclose(found, wanted, atol=2 if extension == '.jpg' else 0)


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
  # The fourth byte of 32 bits without masks is padding.
  'rgba.bmp': None,
  'grey.bmp': None,
  'bilevel.bmp': 'RGB',
  'palette.bmp': 'RGB',
  'bilevel.tif': 'L',
  'palette.tif': 'RGB',
}


@pytest.mark.parametrize('name', _SOUND)
def test_files_of_8_bits_are_read_as_pillow_reads_them(sound, tmp_path, name):
  path = write_file(tmp_path / name, sound[name])
  read = read_photograph(path)
  with Image.open(path) as image:
    wanted = np.atleast_3d(np.asarray(image.convert(_SOUND[name]) if _SOUND[name] else image))
  assert (read.alpha is not None) == (wanted.shape[2] in (2, 4))
  found = read.pixels if read.alpha is None else np.dstack([read.pixels, read.alpha])
  # A TIFF palette has 16 bits; libtiff rounds them as the standard says, where Pillow drops the lower 8.
  np.testing.assert_allclose(found.astype(int), wanted, atol=1 if name == 'palette.tif' else 0)


def _bmp_of_32_bits(pixels, compression, header_bytes, masks):
  """A BMP file of [H, W, 4]: red, green, blue and the fourth byte, with a header of 40 or more bytes."""
  height, width, _ = pixels.shape
  rows = pixels[::-1, :, [2, 1, 0, 3]].tobytes()
  fields = (header_bytes, width, height, 1, 32, compression, len(rows), 2835, 2835, 0, 0)
  info = struct.pack('<IiiHHIIiiII', *fields) + struct.pack(f'<{len(masks)}I', *masks)
  info = info.ljust(header_bytes, b'\0')
  start = 14 + len(info)
  return struct.pack('<2sIHHI', b'BM', start + len(rows), 0, 0, start) + info + rows


@pytest.mark.parametrize(
  ('compression', 'header_bytes', 'masks', 'fourth', 'has_alpha'),
  [
    (0, 40, (), 0, False),
    (0, 108, (0, 0, 0, 0xFF000000), 7, False),
    (3, 40, (0xFF0000, 0xFF00, 0xFF), 0, False),
    (3, 108, (0xFF0000, 0xFF00, 0xFF, 0), 7, False),
    (3, 108, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 7, True),
    (3, 124, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 0, False),
  ],
)
def test_the_fourth_byte_of_bmp_is_opacity_only_where_the_header_says_so(
  tmp_path, compression, header_bytes, masks, fourth, has_alpha
):
  pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4), np.uint8)
  pixels[..., 3] = fourth
  path = write_file(tmp_path / 'a.bmp', _bmp_of_32_bits(pixels, compression, header_bytes, masks))
  read = read_photograph(path)
  np.testing.assert_array_equal(read.pixels, pixels[..., :3])
  assert (read.alpha is not None) == has_alpha
  if has_alpha:
    np.testing.assert_array_equal(read.alpha, pixels[..., 3])
  ignored = 'its opacity is zero everywhere and was ignored'
  assert (ignored in read.notes) == (header_bytes == 124)
  write_file(path, _bmp_of_32_bits(pixels, 3, 108, (0xFF, 0xFF00, 0xFF0000, 0)))
  with pytest.raises(ValueError, match=r'is a BMP file of 32 bits in an unusual order; save it again'):
    read_photograph(path)


@pytest.mark.parametrize('extension', PHOTOGRAPH_SUFFIXES)
def test_the_first_bytes_decide_the_format_and_not_the_extension(sound, tmp_path, extension):
  path = write_file(tmp_path / f'a{extension.upper()}', sound['deep_rgb.png'])
  assert read_photograph(path).pixels.dtype == np.uint16


@pytest.mark.parametrize(
  'name', [f'deep_{kind}.png' for kind in ('rgb', 'rgba', 'grey', 'grey_alpha', 'interlaced')]
)
def test_png_of_16_bits(sound, tmp_path, name):
  read = read_photograph(write_file(tmp_path / name, sound[name]))
  # The same picture, by its generator.
  eight = read_photograph(write_file(tmp_path / 'b.png', sound['plain.png']))
  whole = np.dstack([eight.pixels, eight.alpha]).astype(np.uint16)
  whole = whole * 257 + (0 if 'interlaced' in name else 3)
  channels = {'rgb': 3, 'rgba': 4, 'interlaced': 4, 'grey': 1, 'grey_alpha': 2}[name[5:-4]]
  found = read.pixels if read.alpha is None else np.dstack([read.pixels, read.alpha])
  np.testing.assert_array_equal(found, whole[:, :, :channels])


_TIFFS = (
  'lzw',
  'zlib',
  'packbits',
  'fax',
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
  path = write_file(tmp_path / 'a.tif', sound[f'{name}.tif'])
  read = read_photograph(path)
  wanted = np.atleast_3d(tifffile.imread(path))
  wanted = np.moveaxis(wanted, 0, 2) if name == 'planes' else wanted
  wanted = wanted * np.uint8(255) if name == 'fax' else wanted
  found = read.pixels if read.alpha is None else np.dstack([read.pixels, read.alpha])
  assert found.dtype == wanted.dtype
  np.testing.assert_allclose(found, wanted, atol=1 if name == 'jpeg' else 0)
  assert read.lossless == (name != 'jpeg')


@pytest.mark.parametrize('tile', [(16, 16), (48, 32)])
@pytest.mark.parametrize('planar', ['contig', 'separate'])
def test_tiff_tiles_larger_and_smaller_than_the_picture(tmp_path, planar, tile):
  pixels = random_photograph(33, 17, dtype=np.uint16).pixels
  stored = pixels if planar == 'contig' else np.moveaxis(pixels, 2, 0)
  options = {'tile': tile, 'compression': 'lzw', 'predictor': True, 'byteorder': '>'}
  tifffile.imwrite(tmp_path / 'a.tif', stored, photometric='rgb', planarconfig=planar, **options)
  np.testing.assert_array_equal(read_photograph(tmp_path / 'a.tif').pixels, pixels)


def test_tiff_with_white_at_zero_is_inverted(tmp_path):
  values = np.arange(60, dtype=np.uint16).reshape(6, 10)
  tifffile.imwrite(tmp_path / 'a.tif', values, photometric='miniswhite')
  np.testing.assert_array_equal(read_photograph(tmp_path / 'a.tif').pixels[:, :, 0], 65535 - values)


def test_tiff_of_floats_with_white_at_zero_is_inverted(tmp_path):
  tifffile.imwrite(tmp_path / 'a.tif', np.float32([[0, 0.25], [1, 0.5]]), photometric='miniswhite')
  np.testing.assert_array_equal(
    read_photograph(tmp_path / 'a.tif').pixels[:, :, 0], np.float32([[1, 0.75], [0, 0.5]])
  )


def test_premultiplied_tiff_colours_are_divided_by_alpha(tmp_path):
  straight = np.full((4, 5, 3), (200, 100, 0), np.uint8)
  opacity = np.array([[255], [128], [1], [0]], np.uint8) * np.ones((1, 5), np.uint8)
  stored = np.dstack([np.round(straight * (opacity[:, :, None] / 255)).astype(np.uint8), opacity])
  tifffile.imwrite(tmp_path / 'a.tif', stored, photometric='rgb', extrasamples=['assocalpha'])
  read = read_photograph(tmp_path / 'a.tif')
  np.testing.assert_array_equal(read.alpha, opacity)
  np.testing.assert_allclose(read.pixels[:2].astype(int), straight[:2], atol=1)
  assert read.notes == ('its colours, which were stored multiplied by their opacity, are divided by it',)


@pytest.mark.parametrize(('depth', 'key'), [(2, 1), (4, 9)])
def test_png_of_few_bits_with_a_transparent_grey(tmp_path, depth, key):
  levels = 2**depth
  rows = np.arange(levels, dtype=np.uint8).reshape(-1, 8 // depth)
  weights = levels ** np.arange(8 // depth - 1, -1, -1)
  content = b''.join(b'\0' + bytes([int((row * weights).sum())]) for row in rows)
  header = struct.pack('>IIBBBBB', rows.shape[1], rows.shape[0], depth, 0, 0, 0, 0)
  chunks = [(b'IHDR', header), (b'tRNS', struct.pack('>H', key)), (b'IDAT', zlib.compress(content))]
  read = read_photograph(write_file(tmp_path / 'a.png', png_file([*chunks, (b'IEND', b'')])))
  np.testing.assert_array_equal(read.pixels[:, :, 0], rows * (255 // (levels - 1)))
  np.testing.assert_array_equal(read.alpha, np.where(rows == key, 0, 255))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_a_transparent_colour_of_png_becomes_alpha(tmp_path, dtype):
  photograph = random_photograph(dtype=dtype)
  write_photograph(tmp_path / 'a.png', photograph)
  header, *rest = png_chunks((tmp_path / 'a.png').read_bytes())
  key = (b'tRNS', struct.pack('>3H', *photograph.pixels[4, 5]))
  read = read_photograph(write_file(tmp_path / 'b.png', png_file([header, key, *rest])))
  np.testing.assert_array_equal(read.pixels, photograph.pixels)
  assert read.alpha.dtype == dtype
  assert np.argwhere(read.alpha == 0).tolist() == [[4, 5]]
  assert set(np.unique(read.alpha)) == {0, np.iinfo(dtype).max}


def test_jpeg_in_tiff_follows_the_colours_of_the_tiff_tags(tmp_path):
  photograph = smooth_photograph()
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


@pytest.mark.parametrize('orientation', [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'YCbCr'])
def test_jpeg_in_tiff_is_read_as_stored_whatever_its_orientation(tmp_path, mode, orientation):
  # libtiff turns grey ones and YCbCr ones, and mirrors those of a quarter turn.
  pixels = smooth_photograph().pixels
  image = Image.fromarray(pixels).convert(mode)
  image.save(tmp_path / 'a.tif', compression='jpeg', quality=95, tiffinfo={274: orientation})
  read = read_photograph(tmp_path / 'a.tif')
  wanted = np.atleast_3d(np.asarray(image.convert('L' if mode == 'L' else 'RGB')))
  assert np.abs(read.pixels.astype(int) - wanted).mean() < 3
  turned = upright(read).pixels
  assert turned.shape[:2] == (wanted.shape[:2] if orientation < 5 else wanted.shape[1::-1])


def test_two_hundred_megapixels_are_read_without_warnings(tmp_path):
  # Warnings are errors in tests; Pillow warns of more than 89 megapixels, and refuses 179.
  rows = zlib.compress((b'\0' + b'\xaa' * 2500) * 10_000, 1)
  header = struct.pack('>IIBBBBB', 20_000, 10_000, 1, 0, 0, 0, 0)
  path = write_file(tmp_path / 'a.png', png_file([(b'IHDR', header), (b'IDAT', rows), (b'IEND', b'')]))
  read = read_photograph(path)
  assert read.pixels.shape == (10_000, 20_000, 1)
  assert read.pixels[-1, -2:, 0].tolist() == [255, 0]


def test_the_longest_sides_can_be_written(tmp_path):
  for extension, side in (('.jpg', 65500), ('.webp', 16383)):
    write_photograph(tmp_path / f'a{extension}', Photograph(np.zeros((1, side, 3), np.uint8)))
    assert read_photograph(tmp_path / f'a{extension}').pixels.shape == (1, side, 3)


def test_alpha_that_is_opaque_everywhere_may_be_dropped(tmp_path):
  opaque = dataclasses.replace(random_photograph(), alpha=np.full((17, 31), 255, np.uint8))
  (note,) = write_photograph(tmp_path / 'a.jpg', opaque)
  assert note == 'its transparency is dropped, because it is opaque everywhere and JPEG stores none'


def _tiff(path, pixels, *tags):
  # Code, type (3: 16 bits), count, value, whether it is written once.
  tifffile.imwrite(
    path, pixels, photometric='minisblack', extratags=[(tag, 3, 1, v, True) for tag, v in tags]
  )


def test_the_white_level_is_given_or_tagged_and_kept(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 4096, (9, 8), dtype=np.uint16)
  pixels[0, :2] = 0, 4095
  paths = [tmp_path / name for name in ('given.tif', 'dng.tif', 'largest.tif', 'tagged.png')]
  _tiff(paths[0], pixels)
  _tiff(paths[1], pixels, (50717, 4095))
  _tiff(paths[2], pixels, (281, 4095))
  write_photograph(paths[3], Photograph(pixels[:, :, None]))
  chunks = png_chunks(paths[3].read_bytes())
  paths[3].write_bytes(png_file([chunks[0], (b'sBIT', b'\x0c'), *chunks[1:]]))
  for path in paths:
    given = 4095 if path == paths[0] else None
    photograph = read_photograph(path, white_level=given)
    assert (photograph.white_level, photograph.pixels[0, :2, 0].tolist()) == (4095, [0, 65535])
    assert any('white is 4095 by its tags' in note for note in photograph.notes) == (given is None)
    for extension in ('.png', '.tif'):
      write_photograph(tmp_path / f'out{extension}', photograph)
      np.testing.assert_array_equal(_independently(tmp_path / f'out{extension}')[:, :, 0], pixels)
      assert read_photograph(tmp_path / f'out{extension}').white_level == 4095


def test_a_white_level_that_is_no_number_of_bits_is_kept(tmp_path):
  _tiff(tmp_path / 'a.tif', np.full((4, 4), 15000, np.uint16))
  photograph = read_photograph(tmp_path / 'a.tif', white_level=15000)
  write_photograph(tmp_path / 'b.tif', photograph)
  again = read_photograph(tmp_path / 'b.tif')
  assert (again.white_level, again.pixels.max()) == (15000, 65535)
  assert tifffile.imread(tmp_path / 'b.tif').max() == 15000


def test_openexr_of_values_that_are_not_linear_says_that_they_are_converted(tmp_path):
  photograph = Photograph(np.full((4, 4, 3), 0.5, np.float32))
  notes = write_photograph(tmp_path / 'a.exr', photograph)
  assert notes == ('its values are converted to linear light, which OpenEXR stores',)
  np.testing.assert_allclose(read_photograph(tmp_path / 'a.exr').pixels, 0.5, atol=1e-6)
  assert write_photograph(tmp_path / 'b.exr', read_photograph(tmp_path / 'a.exr')) == ()


def test_transparency_has_the_full_range_whatever_white_is(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 4096, (8, 9, 4)).astype(np.uint16)
  pixels[..., 3] = 65535
  pixels[0, :2, 3] = 5000, 0
  for extension in ('.png', '.tif'):
    path = tmp_path / f'a{extension}'
    tifffile.imwrite(tmp_path / 'a.tif', pixels, photometric='rgb', extrasamples=['unassalpha'])
    if extension == '.png':
      write_photograph(path, Photograph(pixels[..., :3], alpha=pixels[..., 3]))
    photograph = read_photograph(path, white_level=4095)
    np.testing.assert_array_equal(photograph.alpha, pixels[..., 3])
    assert photograph.pixels.max() > 64000
    write_photograph(tmp_path / f'b{extension}', photograph)
    again = read_photograph(tmp_path / f'b{extension}', white_level=65535)
    np.testing.assert_array_equal(again.alpha, pixels[..., 3])
    np.testing.assert_array_equal(again.pixels, pixels[..., :3])


def test_a_dark_png_that_its_tags_brighten_stays_dark_with_white_of_the_full_range(tmp_path):
  """As docs/denoise.md says."""
  write_photograph(tmp_path / 'a.png', Photograph(np.full((8, 8, 3), 2007, np.uint16)))
  chunks = png_chunks((tmp_path / 'a.png').read_bytes())
  (tmp_path / 'a.png').write_bytes(png_file([chunks[0], (b'sBIT', bytes([12] * 3)), *chunks[1:]]))
  for given, level, notes in (
    (
      None,
      round(2007 / 4095 * 255),
      ('white is 4095 by its tags (sadnet-denoise --white-level sets another)',),
    ),
    (65535, round(2007 / 65535 * 255), ()),
  ):
    photograph = read_photograph(tmp_path / 'a.png', white_level=given)
    assert photograph.notes == notes
    write_photograph(tmp_path / 'a.webp', photograph)
    assert (read_photograph(tmp_path / 'a.webp').pixels == level).all()
    # PNG keeps the range of the file.
    write_photograph(tmp_path / 'b.png', photograph)
    assert (np.asarray(read_photograph(tmp_path / 'b.png', white_level=65535).pixels) == 2007).all()


@pytest.mark.parametrize('bits', [10, 12, 15])
def test_samples_scaled_to_16_bits_keep_the_full_range(tmp_path, bits):
  """As the PNG specification wants samples of fewer bits, with sBIT saying how many they had."""
  values = np.random.default_rng(0).integers(0, 2**bits, (6, 7, 1))
  shifted = values << (16 - bits)
  for scaled in (shifted, shifted | values >> (2 * bits - 16), np.round(values * 65535 / (2**bits - 1))):
    write_photograph(tmp_path / 'a.png', Photograph(scaled.astype(np.uint16)))
    chunks = png_chunks((tmp_path / 'a.png').read_bytes())
    (tmp_path / 'a.png').write_bytes(png_file([chunks[0], (b'sBIT', bytes([bits])), *chunks[1:]]))
    photograph = read_photograph(tmp_path / 'a.png')
    np.testing.assert_array_equal(photograph.pixels, scaled)
    assert photograph.white_level is None


@pytest.mark.parametrize('extension', ['.tif', '.exr'])
def test_floats_on_another_scale_are_noted_in_photographs_and_refused_in_data_sets(tmp_path, extension):
  path = tmp_path / f'a{extension}'
  pixels = np.random.default_rng(0).uniform(0, 255, (8, 9, 3)).astype(np.float32)
  write_photograph(path, Photograph(pixels))
  photograph = read_photograph(path)
  assert any('most of its values are above 1, which is white' in note for note in photograph.notes)
  with pytest.raises(ValueError, match=r'above 1, which is white; divide them by the value of white'):
    read_image(path, 3)
  # Highlights are no sign of another scale.
  write_photograph(path, Photograph(pixels / 500))
  photograph = read_photograph(path)
  assert not any('above 1' in note for note in photograph.notes)
  write_photograph(path, Photograph(np.where(pixels > 200, pixels, pixels / 300)))
  assert not any('above 1' in note for note in read_photograph(path).notes)


def test_a_wrong_or_missing_white_level_is_noted(tmp_path):
  path, pixels = tmp_path / 'a.tif', np.full((4, 4), 900, np.uint16)
  _tiff(path, pixels)
  (note,) = read_photograph(path).notes
  assert 'the highest is 900; if white is 1023, pass --white-level 1023' in note
  photograph = read_photograph(path, white_level=800)
  assert (photograph.pixels == 65535).all()
  assert 'above the white level 800 (the highest is 900) are clipped' in photograph.notes[0]
  # What one picture reaches is no white level, and one below its values is wrong.
  for tag, value in ((281, 1000), (281, 511), (50717, 800)):
    _tiff(path, pixels, (tag, value))
    assert read_photograph(path).white_level is None
  with pytest.raises(ValueError, match='white_level is 0, but must be from 1 to 65535'):
    read_photograph(path, white_level=0)
