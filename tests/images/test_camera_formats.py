"""Formats of photographers: floating point (TIFF, OpenEXR), JPEG XL, HEIC and camera raw."""

import ctypes
import os
import random
import struct
import subprocess
import sys

import imagecodecs
import numpy as np
import OpenImageIO
from PIL import Image
import pillow_heif
import pytest
import tifffile

from sadnet_jax.images import Metadata, Photograph, camera_formats, read_photograph, upright, write_photograph
from sadnet_jax.images import photograph as photograph_module
from sadnet_jax.images.metadata import Directory, Entry, build_exif, parse_exif
from sadnet_jax.images.photograph import PREMULTIPLIED, linear_from_srgb, srgb_from_linear, to_8_bits
from sadnet_jax.images.reading import read_shape
from tests.images.test_metadata import RGB_PROFILE, XMP, exif_block
from tests.support.photograph_files import (
  assert_same_pixels,
  random_photograph,
  smooth_photograph,
  write_dng,
  write_file,
)


def _bright(channels=3):
  """Floats from below black to far above white."""
  return np.random.default_rng(0).normal(1, 2, (17, 31, channels)).astype(np.float32)


def _write_by_openimageio(path, array, names=None, kind=None, **options):
  height, width, channels = array.shape
  spec = OpenImageIO.ImageSpec(
    width, height, channels, kind or {'float32': 'float'}.get(array.dtype.name, 'uint16')
  )
  if names:
    spec.channelnames = names
  for name, value in options.items():
    spec.attribute(name, value)
  writer = OpenImageIO.ImageOutput.create(str(path))
  assert writer.open(str(path), spec)
  assert writer.write_image(array)
  assert writer.close()


@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_float_tiff_passes_values_above_white_unclipped(tmp_path, dtype):
  pixels = _bright().astype(dtype)
  tifffile.imwrite(
    tmp_path / 'a.tif', pixels, photometric='rgb', compression='zlib', predictor=dtype == np.float32
  )
  read = read_photograph(tmp_path / 'a.tif')
  assert not read.linear
  np.testing.assert_array_equal(read.pixels, pixels.astype(np.float32))
  assert write_photograph(tmp_path / 'b.tif', read) == ()
  np.testing.assert_array_equal(tifffile.imread(tmp_path / 'b.tif'), pixels.astype(np.float32))


def test_float_tiff_of_linear_light_is_written_as_such(tmp_path):
  pixels = _bright()
  tifffile.imwrite(tmp_path / 'a.tif', pixels, photometric='rgb')
  read = read_photograph(tmp_path / 'a.tif', linear=True)
  np.testing.assert_allclose(read.pixels, srgb_from_linear(pixels))
  write_photograph(tmp_path / 'b.tif', read)
  np.testing.assert_allclose(tifffile.imread(tmp_path / 'b.tif'), pixels, rtol=1e-5, atol=1e-6)


def test_a_profile_of_linear_light_does_not_stay_with_other_values(tmp_path):
  metadata = Metadata(icc_profile=RGB_PROFILE)
  photograph = Photograph(_bright(), linear=True, metadata=metadata)
  notes = write_photograph(tmp_path / 'a.png', photograph)
  assert notes[1] == 'its colour profile is for linear light, which is not written to PNG: it is dropped'
  assert read_photograph(tmp_path / 'a.png').metadata.icc_profile is None
  assert write_photograph(tmp_path / 'a.tif', photograph) == ()
  assert read_photograph(tmp_path / 'a.tif').metadata.icc_profile == RGB_PROFILE


@pytest.mark.parametrize('kind', ['half', 'float'])
def test_openexr_is_linear_light_by_default(tmp_path, kind):
  pixels = _bright().astype(np.float16).astype(np.float32)
  _write_by_openimageio(tmp_path / 'a.exr', pixels, kind=kind)
  np.testing.assert_array_equal(read_photograph(tmp_path / 'a.exr', linear=False).pixels, pixels)
  read = read_photograph(tmp_path / 'a.exr')
  assert (read.linear, read.pixels.dtype) == (True, np.float32)
  np.testing.assert_allclose(read.pixels, srgb_from_linear(pixels))
  write_photograph(tmp_path / 'b.exr', read)
  again = OpenImageIO.ImageInput.open(str(tmp_path / 'b.exr')).read_image('float')
  np.testing.assert_allclose(again, pixels, rtol=1e-5, atol=1e-6)


def test_openexr_with_more_than_colours(tmp_path):
  channels = np.random.default_rng(0).uniform(0.25, 1, (5, 7, 5)).astype(np.float32)
  _write_by_openimageio(tmp_path / 'a.exr', channels, ('R', 'G', 'B', 'A', 'Z'))
  read = read_photograph(tmp_path / 'a.exr', linear=False)
  np.testing.assert_array_equal(read.alpha, channels[:, :, 3])
  np.testing.assert_allclose(read.pixels, channels[:, :, :3] / channels[:, :, 3:4], rtol=1e-6)
  assert read.notes[0] == 'its channels Z were ignored'
  write_photograph(tmp_path / 'b.exr', read)
  again = read_photograph(tmp_path / 'b.exr')
  np.testing.assert_allclose(again.pixels, read.pixels, rtol=1e-4)
  np.testing.assert_array_equal(again.alpha, read.alpha)
  _write_by_openimageio(tmp_path / 'c.exr', channels[:, :, :2], ('U', 'V'))
  with pytest.raises(
    ValueError, match=r'c\.exr: is an OpenEXR file without channels R, G and B or Y, but U, V'
  ):
    read_photograph(tmp_path / 'c.exr')


def test_light_without_opacity_stays_in_openexr(tmp_path):
  channels = np.full((2, 3, 4), 0.5, np.float32)
  channels[0, :, 3] = 0
  _write_by_openimageio(tmp_path / 'a.exr', channels, ('R', 'G', 'B', 'A'))
  write_photograph(tmp_path / 'b.exr', read_photograph(tmp_path / 'a.exr'))
  again = OpenImageIO.ImageInput.open(str(tmp_path / 'b.exr')).read_image('float')
  np.testing.assert_allclose(again, channels, rtol=1e-5)
  # In other formats, what is transparent has no light.
  transparent = Photograph(np.full((2, 3, 3), 200, np.uint8), np.zeros((2, 3), np.uint8))
  write_photograph(tmp_path / 'c.exr', transparent)
  assert not OpenImageIO.ImageInput.open(str(tmp_path / 'c.exr')).read_image('float').any()


def test_what_is_not_read_of_openexr_is_named(tmp_path):
  spec = OpenImageIO.ImageSpec(4, 4, 3, 'half')
  spec.attribute('Copyright', 'ours')
  rec709 = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)
  acescg = (0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767)
  for chromaticities, wanted in (
    (rec709, ()),
    (acescg, ('its chromaticities were ignored; its colours are',)),
  ):
    spec.attribute('chromaticities', 'float[8]', chromaticities)
    output = OpenImageIO.ImageOutput.create(str(tmp_path / 'a.exr'))
    assert output.open(str(tmp_path / 'a.exr'), spec)
    assert output.write_image(np.full((4, 4, 3), 0.5, np.float32))
    output.close()
    *notes, last = read_photograph(tmp_path / 'a.exr').notes
    assert last == 'its owner was ignored'
    assert len(notes) == len(wanted)
    assert all(note.startswith(start) for note, start in zip(notes, wanted, strict=True))


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_floats_that_are_no_numbers_are_refused(tmp_path, value):
  pixels = _bright()
  pixels[3, 4, 1] = value
  tifffile.imwrite(tmp_path / 'a.tif', pixels, photometric='rgb')
  with pytest.raises(ValueError, match=r'a\.tif: has values that are infinite or not a number; replace them'):
    read_photograph(tmp_path / 'a.tif')


def test_floats_are_clipped_and_rounded_where_the_format_stores_integers(tmp_path):
  pixels = np.array([[[-0.5], [0.25], [1.0], [3.0]]], np.float32)
  for extension, bits, wanted in (
    ('.png', 16, [0, 16384, 65535, 65535]),
    ('.jxl', 16, [0, 16384, 65535, 65535]),
    ('.bmp', 8, [0, 64, 255, 255]),
  ):
    (note,) = write_photograph(tmp_path / f'a{extension}', Photograph(pixels))
    assert f'its floating-point values are rounded to {bits} bits' in note
    assert read_photograph(tmp_path / f'a{extension}').pixels.ravel().tolist() == wanted


def test_transfer_curve_is_that_of_srgb_and_continues_beyond():
  levels = np.arange(256, dtype=np.float32) / 255
  linear = linear_from_srgb(levels)
  # IEC 61966-2-1: 188 is half of the light.
  np.testing.assert_allclose(linear[[0, 10, 188, 255]], [0, 0.003035, 0.502886, 1], atol=1e-6)
  np.testing.assert_allclose(srgb_from_linear(linear), levels, atol=1e-6)
  assert srgb_from_linear(np.float32(4)) > 1.7
  assert srgb_from_linear(np.float32(-0.5)) == -srgb_from_linear(np.float32(0.5))


def test_jpeg_xl(tmp_path):
  deep = random_photograph(dtype=np.uint16).pixels
  _write_by_openimageio(tmp_path / 'a.jxl', deep, compression='jpegxl:100')
  read = read_photograph(tmp_path / 'a.jxl')
  np.testing.assert_array_equal(read.pixels, deep)
  assert read.metadata.icc_profile
  assert write_photograph(tmp_path / 'a.tif', read) == ()
  data = (tmp_path / 'a.jxl').read_bytes()
  for end in (20, len(data) // 2, len(data) - 50):
    with pytest.raises(ValueError, match=r'b\.jxl: .*damaged or incomplete'):
      read_photograph(write_file(tmp_path / 'b.jxl', data[:end]))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('alpha', [False, True])
@pytest.mark.parametrize('channels', [1, 3])
def test_jpeg_xl_is_written_without_loss(tmp_path, channels, alpha, dtype):
  metadata = Metadata(
    icc_profile=RGB_PROFILE if channels == 3 else None, exif=exif_block(orientation=6), xmp=XMP
  )
  photograph = random_photograph(channels=channels, dtype=dtype, alpha=alpha, metadata=metadata)
  assert write_photograph(tmp_path / 'a.jxl', photograph) == ()
  read, wanted = read_photograph(tmp_path / 'a.jxl'), upright(photograph)
  assert read.notes == ()
  # Grey with transparency is stored as colour.
  pixels = np.broadcast_to(wanted.pixels, (31, 17, 3)) if alpha else wanted.pixels
  assert_same_pixels(read, Photograph(np.ascontiguousarray(pixels), wanted.alpha))
  whole = np.dstack([pixels, wanted.alpha]) if alpha else pixels
  theirs = imagecodecs.jpegxl_decode((tmp_path / 'a.jxl').read_bytes())
  np.testing.assert_array_equal(theirs.reshape(whole.shape), whole)
  assert (read.metadata.exif, read.metadata.xmp) == (wanted.metadata.exif, XMP)
  if channels == 3:
    assert read.metadata.icc_profile == RGB_PROFILE


def _in_parts(codestream):
  """A JPEG XL file whose first part has a byte of the header alone."""
  boxes = [(b'JXL ', b'\r\n\x87\n'), (b'ftyp', b'jxl \0\0\0\0jxl ')]
  boxes += [(b'jxlp', b'\0\0\0\0' + codestream[:3]), (b'jxlp', b'\x80\0\0\1' + codestream[3:])]
  return b''.join((len(content) + 8).to_bytes(4, 'big') + kind + content for kind, content in boxes)


# Sides in eights or not, of each number of bits but 30, and every ratio.
@pytest.mark.parametrize(
  ('width', 'height'),
  [
    *((64, 64), (120, 100), (120, 96), (128, 96), (96, 64), (256, 144), (200, 160), (128, 64), (24, 40)),
    *((1, 1), (31, 17), (600, 7), (7, 9000)),
  ],
)
def test_jpeg_xl_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch, width, height):
  pixels = np.zeros((height, width), np.uint8)
  files = [imagecodecs.jpegxl_encode(pixels, effort=1, usecontainer=boxes) for boxes in (False, True)]
  paths = [write_file(tmp_path / f'{i}.jxl', data) for i, data in enumerate([*files, _in_parts(files[0])])]
  for path in paths:
    assert read_photograph(path).pixels.shape == (height, width, 1)
  monkeypatch.setattr(photograph_module, 'MAX_PIXELS', 0)
  monkeypatch.setattr(OpenImageIO.ImageInput, 'open', lambda *_: pytest.fail('the file is decoded'))
  for path in paths:
    for read in (read_photograph, read_shape):
      with pytest.raises(ValueError, match=rf'\.jxl: {width}x{height} pixels are more than 0; cut the image'):
        read(path)


def test_jpeg_xl_of_several_frames_is_refused(tmp_path):
  frames = np.random.default_rng(0).integers(0, 256, (2, 40, 24, 3), np.uint8)
  for boxes in (False, True):
    path = write_file(tmp_path / 'a.jxl', imagecodecs.jpegxl_encode(frames, usecontainer=boxes))
    with pytest.raises(ValueError, match=r'a\.jxl: is an animated JPEG XL file; save one of its frames'):
      read_photograph(path)
  assert read_photograph(write_file(path, imagecodecs.jpegxl_encode(frames[0]))).pixels.shape == (40, 24, 3)


@pytest.mark.parametrize(('space', 'is_linear'), [('lin_rec709', True), ('sRGB', False)])
def test_floats_of_jpeg_xl_are_what_the_file_says(tmp_path, space, is_linear):
  values = np.random.default_rng(0).random((16, 24, 3), np.float32)
  spec = OpenImageIO.ImageSpec(24, 16, 3, 'float')
  spec.attribute('oiio:ColorSpace', space)
  writer = OpenImageIO.ImageOutput.create(str(tmp_path / 'a.jxl'))
  assert writer.open(str(tmp_path / 'a.jxl'), spec)
  assert writer.write_image(values)
  writer.close()
  stored = OpenImageIO.ImageInput.open(str(tmp_path / 'a.jxl')).read_image('float')
  read = read_photograph(tmp_path / 'a.jxl')
  assert read.linear == is_linear
  wanted = srgb_from_linear(stored) if is_linear else stored
  np.testing.assert_allclose(read.pixels, wanted, atol=1e-6)
  np.testing.assert_allclose(read_photograph(tmp_path / 'a.jxl', linear=False).pixels, stored, atol=1e-6)


def test_colours_of_heic_that_are_multiplied_by_opacity_are_divided_by_it(tmp_path):
  pixels = np.full((32, 32, 4), (100, 60, 20, 128), np.uint8)
  image = pillow_heif.from_bytes(mode='RGBa', size=(32, 32), data=pixels.tobytes())
  image.save(tmp_path / 'a.heic', quality=-1)
  read = read_photograph(tmp_path / 'a.heic')
  np.testing.assert_allclose(read.pixels[4, 5].astype(int), (199, 120, 40), atol=4)
  assert read.alpha[4, 5] == 128
  assert read.notes == (PREMULTIPLIED,)


def test_exif_data_of_jpeg_xl(tmp_path):
  _write_by_openimageio(
    tmp_path / 'a.jxl', random_photograph(dtype=np.uint16).pixels, compression='jpegxl:100'
  )
  data = (tmp_path / 'a.jxl').read_bytes()
  if data.startswith(b'\xff\x0a'):
    signature = b'\0\0\0\x0cJXL \r\n\x87\n' + b'\0\0\0\x14ftypjxl \0\0\0\0jxl '
    data = signature + (len(data) + 8).to_bytes(4, 'big') + b'jxlc' + data
  exif = b'\0\0\0\0' + exif_block()
  start = 12 + 20
  box = (len(exif) + 8).to_bytes(4, 'big') + b'Exif' + exif
  read = read_photograph(write_file(tmp_path / 'b.jxl', data[:start] + box + data[start:]))
  assert b'Model 1' in read.metadata.exif
  assert read.orientation == 1


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L'])
def test_heic_is_read_as_its_library_reads_it(tmp_path, mode):
  image = Image.fromarray(smooth_photograph().pixels).convert(mode)
  pillow_heif.from_pillow(image).save(tmp_path / 'a.heic', quality=90)
  read = read_photograph(tmp_path / 'a.heic')
  assert not read.lossless
  whole = read.pixels if read.alpha is None else np.dstack([read.pixels, read.alpha])
  wanted = np.atleast_3d(np.asarray(image)).astype(int)
  # Grey is stored, and read, as colour by some versions.
  assert whole.shape[2] in (wanted.shape[2], 3)
  np.testing.assert_allclose(whole, np.broadcast_to(wanted, whole.shape), atol=12)


def test_heic_of_a_portrait_with_metadata(tmp_path):
  image = Image.fromarray(smooth_photograph().pixels)
  options = {'exif': b'Exif\0\0' + exif_block(orientation=6), 'xmp': b'<x/>', 'icc_profile': RGB_PROFILE}
  pillow_heif.from_pillow(image).save(tmp_path / 'a.heic', quality=90, **options)
  read = read_photograph(tmp_path / 'a.heic')
  np.testing.assert_allclose(read.pixels.astype(int), np.rot90(smooth_photograph().pixels, -1), atol=12)
  assert (read.orientation, read.metadata.xmp) == (1, b'<x/>')
  assert b'Model 1' in read.metadata.exif
  data = (tmp_path / 'a.heic').read_bytes()
  for end in (60, len(data) // 2, len(data) - 10):
    with pytest.raises(ValueError, match=r'b\.heic: '):
      read_photograph(write_file(tmp_path / 'b.heic', data[:end]))


def test_heic_of_10_bits(tmp_path):
  deep = smooth_photograph().pixels.astype(np.uint16) * 257
  size = (deep.shape[1], deep.shape[0])
  pillow_heif.from_bytes('RGB;16', size, deep.tobytes()).save(tmp_path / 'a.heic', quality=90)
  read = read_photograph(tmp_path / 'a.heic')
  assert read.pixels.dtype == np.uint16
  np.testing.assert_allclose(to_8_bits(read.pixels).astype(int), smooth_photograph().pixels, atol=12)


def test_camera_raw_is_developed_with_the_cameras_white_balance(tmp_path):
  # Half-bright grey as the sensor sees it, whose green is twice as sensitive as red and blue.
  write_dng(tmp_path / 'a.dng', height=64, width=96, red=8000, green=16000, blue=8000, neutral=(0.5, 1, 0.5))
  read = read_photograph(tmp_path / 'a.dng')
  assert (read.pixels.shape, read.pixels.dtype) == ((64, 96, 3), np.uint16)
  middle = read.pixels[8:-8, 8:-8].reshape(-1, 3).astype(float)
  # Grey, of 16000/65535 of the light.
  np.testing.assert_allclose(middle, middle.mean(), rtol=0.02)
  np.testing.assert_allclose(middle.mean() / 65535, srgb_from_linear(np.float32(16000 / 65535)), rtol=0.05)
  assert b'Test Maker' in read.metadata.exif
  assert write_photograph(tmp_path / 'b.tif', read) == ()
  assert read_photograph(tmp_path / 'b.tif').pixels.dtype == np.uint16


@pytest.mark.parametrize('start', [b'II*\0', b'IIRO', b'IIRS', b'MMOR', b'IIU\0', b'MM\0*', b'FUJI'])
def test_exif_data_of_camera_raw_files_are_found(tmp_path, start):
  """What Olympus, Panasonic and Fujifilm write is not quite TIFF."""
  order = '>' if start.startswith(b'MM') else '<'
  maker = Entry(2, 5, b'Ours\0')
  block = build_exif(Directory(order, {271: maker, 256: Entry(3, 1, struct.pack(order + 'H', 9))}, {}))
  if start == b'FUJI':
    segment = b'\xff\xd8\xff\xe1\0\0Exif\0\0' + block
    data = b'FUJIFILMCCD-RAW '.ljust(84) + struct.pack('>II', 100, len(segment)) + bytes(8) + segment
  else:
    data = start + block[4:]
  found, _ = camera_formats.raw_exif(write_file(tmp_path / 'a.raw', data + bytes(99)))
  _, tags = parse_exif(found)
  # The tags of the sensor are left out.
  assert {tag: entry.data for tag, entry in tags.entries.items()} == {271: b'Ours\0'}


def test_developed_raw_files_do_not_claim_adobe_rgb_and_settings_for_developing(tmp_path):
  adobe = Directory('<', {1: Entry(2, 4, b'R03\0')})
  details = Directory('<', {40961: Entry(3, 1, b'\xff\xff'), 33434: Entry(5, 1, bytes(8))}, {40965: adobe})
  xmp = Entry(1, 5, b'<crs>')
  path = write_file(tmp_path / 'a.raw', build_exif(Directory('<', {700: xmp}, {34665: details})))
  found, notes = camera_formats.raw_exif(path)
  _, tags = parse_exif(found)
  assert (tags.entries, notes) == ({}, ('its XMP or IPTC data were ignored',))
  kept = tags.children[34665]
  assert (kept.integers(40961), set(kept.entries), kept.children) == ((1,), {40961, 33434}, {})


@pytest.mark.parametrize(
  'data', [b'', b'FUJIFILMCCD-RAW ', b'\0\0\0\x18ftypcrx ', b'II*\0\xff\xff\xff\xff', b'IIRO\x08\0\0\0\x09\0']
)
def test_camera_raw_without_readable_exif_data(tmp_path, data):
  assert camera_formats.raw_exif(write_file(tmp_path / 'a.raw', data + bytes(8)))[0] is None


def test_camera_raw_without_exif_data_is_developed_with_a_note(tmp_path, monkeypatch):
  write_dng(tmp_path / 'a.dng')
  monkeypatch.setattr(camera_formats, 'raw_exif', lambda _: (None, ()))
  read = read_photograph(tmp_path / 'a.dng')
  assert (read.metadata.exif, read.notes) == (None, ('its EXIF data were not found',))


def test_camera_raw_that_is_damaged_is_refused_in_one_line(tmp_path, capfd):
  write_dng(tmp_path / 'a.dng', height=64, width=96)
  data = (tmp_path / 'a.dng').read_bytes()
  for end in (len(data) - 2000, len(data) // 2):
    with pytest.raises(ValueError, match=r'b\.dng: LibRaw cannot develop this camera raw file'):
      read_photograph(write_file(tmp_path / 'b.dng', data[:end]))
  assert capfd.readouterr() == ('', '')
  # What others print afterwards is not lost.
  os.write(2, b'later')
  assert capfd.readouterr().err == 'later'


def test_camera_raw_without_standard_error(tmp_path):
  write_dng(tmp_path / 'a.dng')
  program = 'import sys, sadnet_jax.images as i; print(i.read_photograph(sys.argv[1]).pixels.shape)'
  shell = 'exec "$0" -c "$1" "$2" 2>&-'
  command = ['sh', '-c', shell, sys.executable, program, str(tmp_path / 'a.dng')]
  assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == '(64, 96, 3)\n'


def _damaged(data, number):
  """The file cut off, with other bytes, in its header too, or without a part."""
  draw, changed = random.Random(number), bytearray(data)
  if number % 3 == 0:
    return data[: draw.randrange(1, len(data))]
  for _ in range(draw.randrange(1, 8)):
    changed[draw.randrange(600 if number % 3 == 1 else len(data))] = draw.randrange(256)
  if draw.randrange(4) == 0:
    start = draw.randrange(len(data))
    del changed[start : start + draw.randrange(1, 200)]
  return bytes(changed)


@pytest.mark.parametrize('extension', ['.tif', '.exr', '.jxl', '.heic', '.dng'])
def test_damage_gives_a_photograph_or_one_line(tmp_path, extension, capfd):
  path, metadata = tmp_path / f'a{extension}', Metadata(icc_profile=RGB_PROFILE, exif=exif_block(), xmp=XMP)
  if extension == '.dng':
    write_dng(path)
  elif extension == '.heic':
    image = Image.fromarray(smooth_photograph().pixels)
    pillow_heif.from_pillow(image).save(path, quality=90, exif=b'Exif\0\0' + exif_block())
  elif extension == '.jxl':
    write_photograph(path, random_photograph(dtype=np.uint16, metadata=metadata))
  else:
    write_photograph(path, Photograph(_bright(), metadata=metadata))
  data, messages = path.read_bytes(), []
  for number in range(80):
    try:
      read_photograph(write_file(path, _damaged(data, number)))
    except ValueError as error:
      messages.append(str(error))
  assert 25 < len(messages) < 80
  for message in messages:
    assert message.startswith(f'{path}: ')
    assert message.isprintable()
    assert len(message.removeprefix(str(path))) < 500
  # C libraries buffer what they print.
  ctypes.CDLL(None).fflush(None)
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(('module', 'extra'), [('pillow_heif', 'heic'), ('rawpy', 'raw')])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, extra):
  monkeypatch.setitem(sys.modules, module, None)
  path = tmp_path / 'a'
  if extra == 'raw':
    write_dng(path)
  else:
    write_file(path, b'\0\0\0\x18ftypheic' + bytes(100))
  with pytest.raises(ValueError, match=rf"need \S+; from the clone: pip install '\.\[{extra}\]'"):
    read_photograph(path)


def test_metadata_that_openexr_cannot_store_is_reported(tmp_path):
  metadata = Metadata(icc_profile=RGB_PROFILE, exif=exif_block(orientation=1))
  notes = write_photograph(tmp_path / 'a.exr', smooth_photograph(metadata=metadata))
  assert notes == (
    'OpenEXR cannot store its colour profile, which is dropped',
    'OpenEXR cannot store its EXIF data, which is dropped',
  )
