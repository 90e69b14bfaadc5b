"""Metadata of photographs: kept where the format can store them, reported where it cannot."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin
import pillow_heif
import pytest
import tifffile

from sadnet_jax.images import Metadata, Photograph, metadata, read_photograph, upright, write_photograph
from sadnet_jax.images.photograph import to_8_bits
from tests.support.malformed_images import png_chunks, png_file, sound_images
from tests.support.photograph_files import opened, random_photograph, smooth_photograph, write_file

RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
GREY_PROFILE = RGB_PROFILE[:16] + b'GRAY' + RGB_PROFILE[20:]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r>caption</r></x:xmpmeta>'
MAKER_NOTE = bytes(range(256)) * 3
CAPTION = b'8BIM\x04\x04\0\0\0\0\0\x05hello\0'
OLD_SMALL_PICTURE = b'8BIM\x04\x0c\0\0\0\0\0\x04abcd'


def exif_block(order='<', orientation=6, thumbnail=b''):
  """An EXIF block like a camera's, made with Pillow; the thumbnail is the second directory."""
  metadata = Image.Exif()
  metadata.endian = order
  metadata[271], metadata[272], metadata[274] = 'Maker', 'Model 1', orientation
  metadata[282] = metadata[283] = 72.0
  metadata[34665] = {36867: '2020:01:02 03:04:05', 33434: 0.004, 37500: MAKER_NOTE}
  metadata[34853] = {1: 'N', 2: (46.0, 57.0, 3.5)}
  block = metadata.tobytes().removeprefix(b'Exif\0\0')
  if not thumbnail:
    return block
  block += b'\0' * (len(block) % 2)
  (count,) = struct.unpack_from(order + 'H', block, 8)
  link = 10 + 12 * count
  start = len(block) + 2 + 24 + 4
  second = struct.pack(order + 'HHHIIHHIII', 2, 513, 4, 1, start, 514, 4, 1, len(thumbnail), 0)
  return block[:link] + struct.pack(order + 'I', len(block)) + block[link + 4 :] + second + thumbnail


def _assert_tags(exif, orientation=6):
  """Checks the tags of `exif_block` as Pillow reads them."""
  assert (exif[271], exif[272], exif[274]) == ('Maker', 'Model 1', orientation)
  details = exif.get_ifd(ExifTags.IFD.Exif)
  assert (details[36867], float(details[33434])) == ('2020:01:02 03:04:05', 0.004)
  assert details[37500] == MAKER_NOTE
  assert [float(x) for x in exif.get_ifd(ExifTags.IFD.GPSInfo)[2]] == [46.0, 57.0, 3.5]


def _encoded(photograph):
  buffer = io.BytesIO()
  Image.fromarray(photograph.pixels).save(buffer, 'PNG')
  return buffer.getvalue()


@pytest.fixture(scope='module')
def sound():
  return sound_images(np.random.default_rng(0))


@pytest.mark.parametrize('number', range(1, 9))
def test_orientation_is_kept_and_can_be_applied(tmp_path, number):
  photograph = random_photograph(
    5, 9, alpha=True, metadata=Metadata(exif=exif_block(orientation=number), dpi=(72, 300))
  )
  write_photograph(tmp_path / 'a.tif', photograph)
  read = read_photograph(tmp_path / 'a.tif')
  assert read.orientation == number
  np.testing.assert_array_equal(read.pixels, photograph.pixels)
  turned = upright(read)
  image = Image.fromarray(np.dstack([photograph.pixels, photograph.alpha]))
  image.getexif()[274] = number
  wanted = np.asarray(ImageOps.exif_transpose(image))
  np.testing.assert_array_equal(np.dstack([turned.pixels, turned.alpha]), wanted)
  assert turned.orientation == 1
  assert [round(x) for x in upright(photograph).metadata.dpi] == ([72, 300] if number < 5 else [300, 72])
  metadata = Image.Exif()
  metadata.load(b'Exif\0\0' + turned.metadata.exif)
  _assert_tags(metadata, orientation=1)


def _profile(curve):
  """An ICC profile for RGB whose curve of red is this."""
  start = 128 + 4 + 12
  tags = struct.pack('>I4sII', 1, b'rTRC', start, len(curve))
  size = start + len(curve)
  header = struct.pack('>I', size).ljust(16, b'\0') + b'RGB XYZ '
  return header.ljust(36, b'\0') + b'acsp'.ljust(92, b'\0') + tags + curve


@pytest.mark.parametrize(
  ('curve', 'is_linear'),
  [
    (b'curv' + bytes(8), True),
    (b'curv' + struct.pack('>IIH', 0, 1, 256), True),
    (b'curv' + struct.pack('>IIH', 0, 1, 563), False),
    (b'para' + struct.pack('>IHHI', 0, 0, 0, 65536), True),
    (b'para' + struct.pack('>IHHI', 0, 3, 0, 65536), False),
    (b'curv' + struct.pack('>IIHHH', 0, 3, 0, 10000, 65535), False),
    (b'', False),
  ],
)
def test_a_profile_of_linear_light_is_noted_where_the_values_may_be_that(tmp_path, curve, is_linear):
  pixels = random_photograph().pixels.astype(np.float32) / 255
  metadata = Metadata(icc_profile=_profile(curve))
  write_photograph(tmp_path / 'a.tif', Photograph(pixels, metadata=metadata))
  notes = read_photograph(tmp_path / 'a.tif').notes
  note = 'its colour profile is for linear light; if its values are, read it as such (--linear)'
  assert notes == ((note,) if is_linear else ())
  for linear in (True, False):
    assert read_photograph(tmp_path / 'a.tif', linear=linear).notes == ()
  # Integers are encoded for display whatever the profile says.
  write_photograph(tmp_path / 'b.tif', random_photograph(metadata=metadata))
  assert read_photograph(tmp_path / 'b.tif').notes == ()


def test_options_without_effect_on_a_file_are_noted(tmp_path):
  write_photograph(tmp_path / 'a.png', random_photograph())
  assert read_photograph(tmp_path / 'a.png', linear=False).notes == ()
  assert read_photograph(tmp_path / 'a.png', linear=True, white_level=1023).notes == (
    'has no floating-point values, so it was not read as linear light',
    'is no PNG or TIFF file of 16 bits, so the white level was ignored',
  )
  write_photograph(tmp_path / 'b.png', random_photograph(dtype=np.uint16))
  assert read_photograph(tmp_path / 'b.png', white_level=65535).notes == ()


@pytest.mark.parametrize('extension', ['.png', '.webp', '.bmp', '.exr', '.jxl', '.jpg'])
def test_portraits_are_stored_upright_where_viewers_may_ignore_the_orientation(tmp_path, extension):
  # In JPEG only if the EXIF data are too long to be stored.
  exif = Image.Exif()
  exif[274], exif[270] = 6, 'a' * (70_000 if extension == '.jpg' else 9)
  photograph = smooth_photograph(metadata=Metadata(exif=exif.tobytes().removeprefix(b'Exif\0\0')))
  path = tmp_path / f'a{extension}'
  notes = write_photograph(path, photograph)
  if extension == '.jpg':
    assert notes == (
      'it is rotated upright, because JPEG cannot store its orientation',
      'JPEG stores at most 64 KB of its EXIF data, which is dropped',
    )
  read = read_photograph(path)
  assert read.orientation == 1
  assert (read.metadata.exif is None) == (extension in ('.bmp', '.exr', '.jpg'))
  wanted = np.rot90(photograph.pixels, -1).astype(int)
  np.testing.assert_allclose(to_8_bits(read.pixels), wanted, atol=5 if extension == '.jpg' else 0)


_ORIENTED_XMP = (
  b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>',
  b"<rdf:Description tiff:Orientation = '%d' tiff:Make='6'/>",
  b'<rdf:li><tiff:Orientation> %d </tiff:Orientation><tiff:Make>6</tiff:Make></rdf:li>',
)


@pytest.mark.parametrize('xmp', _ORIENTED_XMP)
@pytest.mark.parametrize('extension', ['.png', '.webp', '.jxl', '.tif', '.jpg'])
def test_the_orientation_in_xmp_data_is_that_of_the_pixels(tmp_path, extension, xmp):
  metadata = Metadata(exif=exif_block(orientation=6), xmp=xmp % 6)
  write_photograph(tmp_path / f'a{extension}', smooth_photograph(metadata=metadata))
  read = read_photograph(tmp_path / f'a{extension}')
  assert read.metadata.xmp == xmp % read.orientation
  assert read.orientation == (6 if extension in ('.tif', '.jpg') else 1)


def test_decoders_that_turn_the_pixels_leave_no_orientation_in_xmp_data(tmp_path):
  xmp = _ORIENTED_XMP[0]
  image = Image.fromarray(smooth_photograph().pixels)
  pillow_heif.from_pillow(image).save(tmp_path / 'a.heic', xmp=xmp % 6, exif=b'Exif\0\0' + exif_block())
  write_photograph(tmp_path / 'a.jxl', smooth_photograph(metadata=Metadata(xmp=xmp % 6)))
  for name in ('a.heic', 'a.jxl'):
    read = read_photograph(tmp_path / name)
    assert (read.orientation, read.metadata.xmp) == (1, xmp % 1)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('number', range(1, 9))
def test_sizes_in_exif_data_are_those_of_the_turned_pixels(order, number):
  before = Image.Exif()
  before.endian = order
  before[256], before[257] = 70_000, 3000  # LONG and SHORT
  before[274], before[282], before[283] = number, 300.0, 72.0
  before[34665] = {40962: 4000, 40963: 3000, 41486: 1234.5, 37500: MAKER_NOTE}
  turned = metadata.exif_made_upright(before.tobytes().removeprefix(b'Exif\0\0'))
  after = Image.Exif()
  after.load(b'Exif\0\0' + turned)
  details = after.get_ifd(ExifTags.IFD.Exif)
  step = 1 if number < 5 else -1
  assert (after[256], after[257]) == (70_000, 3000)[::step]
  assert (after[282], after[283]) == (300.0, 72.0)[::step]
  assert (details[40962], details[40963]) == (4000, 3000)[::step]
  # One without its partner, and everything else, stay.
  assert (after[274], float(details[41486]), details[37500]) == (1, 1234.5, MAKER_NOTE)


def test_crafted_exif_data_take_no_longer_than_others():
  orientation = struct.pack('<HHIHH', 274, 3, 1, 6, 0)
  exif = b'II*\0\x08\0\0\0' + struct.pack('<H', 4000) + 4000 * orientation + bytes(2**23)
  start = time.process_time()
  turned = metadata.exif_made_upright(exif)
  assert time.process_time() - start < 2
  assert turned == exif.replace(orientation, struct.pack('<HHIHH', 274, 3, 1, 1, 0))


def test_crafted_xmp_data_take_no_longer_than_others():
  start = time.process_time()
  for crafted in (b'tiff:Orientation', b'tiff:Orientation ', b'tiff:Orientation="'):
    assert metadata.xmp_made_upright(crafted * 500_000) == crafted * 500_000
  # At most 64 KB in JPEG.
  for crafted in (b'hdrgm:Version="', b' ', b'<Container:Directory>', b'<hdrgm:Version '):
    metadata.xmp_without_further_images(crafted * 4000)
  assert time.process_time() - start < 5


@pytest.mark.parametrize('source', ['.jpg', '.png', '.webp', '.tif'])
@pytest.mark.parametrize('target', ['.jpg', '.png', '.webp', '.tif'])
def test_metadata_goes_from_any_format_to_any_other(tmp_path, source, target):
  # Each format with both byte orders.
  order = '<>'[(source in ('.jpg', '.tif')) ^ (target in ('.jpg', '.webp'))]
  metadata = Metadata(icc_profile=RGB_PROFILE, exif=exif_block(order), xmp=XMP)
  write_photograph(tmp_path / f'a{source}', smooth_photograph(metadata=metadata))
  first = read_photograph(tmp_path / f'a{source}')
  assert first.notes == ()
  assert write_photograph(tmp_path / f'b{target}', first) == ()
  orientation = 6 if {source, target} <= {'.jpg', '.tif'} else 1
  with Image.open(tmp_path / f'b{target}') as image:
    _assert_tags(image.getexif(), orientation)
    image.load()
    assert image.info['icc_profile'] == RGB_PROFILE
  assert XMP in (tmp_path / f'b{target}').read_bytes()
  second = read_photograph(tmp_path / f'b{target}')
  assert (second.metadata.icc_profile, second.metadata.xmp) == (RGB_PROFILE, XMP)
  assert second.orientation == orientation


@pytest.mark.parametrize('extension', ['.png', '.tif'])
def test_metadata_of_16_bit_files(tmp_path, extension):
  photograph = random_photograph(
    dtype=np.uint16, metadata=Metadata(icc_profile=RGB_PROFILE, exif=exif_block('>'), xmp=XMP, dpi=(300, 150))
  )
  path = tmp_path / f'a{extension}'
  assert write_photograph(path, photograph) == ()
  if extension == '.png':
    with Image.open(path) as image:
      _assert_tags(image.getexif(), orientation=1)
      assert image.info['icc_profile'] == RGB_PROFILE
      # Rotated with the pixels.
      assert [round(x) for x in image.info['dpi']] == [150, 300]
      assert image.info['xmp'] == XMP
    return
  with tifffile.TiffFile(path) as file:
    tags = file.pages[0].tags
    assert (tags['Make'].value, tags['Orientation'].value) == ('Maker', 6)
    assert tags['ExifTag'].value['DateTimeOriginal'] == '2020:01:02 03:04:05'
    assert tags['ExifTag'].value['MakerNote'] == MAKER_NOTE
    assert tags['GPSTag'].value['GPSLatitude'] == (46, 1, 57, 1, 7, 2)
    assert (bytes(tags['InterColorProfile'].value), tags['XMP'].value) == (RGB_PROFILE, XMP)


@pytest.mark.parametrize('extension', ['.jpg', '.png', '.bmp', '.tif'])
def test_resolution_is_kept(tmp_path, extension):
  path, again = tmp_path / f'a{extension}', tmp_path / f'b{extension}'
  Image.fromarray(smooth_photograph().pixels).save(path, dpi=(300, 150))
  read = read_photograph(path)
  assert read.metadata.exif is None
  write_photograph(again, read)
  with Image.open(again) as image:
    np.testing.assert_allclose([float(x) for x in image.info['dpi']], (300, 150), atol=0.1)


def test_profile_larger_than_a_segment_of_jpeg(tmp_path):
  profile = RGB_PROFILE + np.random.default_rng(0).bytes(150_000)
  write_photograph(tmp_path / 'a.jpg', smooth_photograph(metadata=Metadata(icc_profile=profile)))
  assert opened(tmp_path / 'a.jpg').info['icc_profile'] == profile
  assert read_photograph(tmp_path / 'a.jpg').metadata.icc_profile == profile


def test_text_and_colour_of_png_are_kept(tmp_path):
  info = PngImagePlugin.PngInfo()
  info.add_text('Title', 'Lake')
  info.add_text('Author', 'Someone', zip=True)
  info.add_itxt('Comment', 'Süß', 'de')
  info.add(b'gAMA', struct.pack('>I', 100_000))
  Image.fromarray(random_photograph().pixels).save(tmp_path / 'a.png', pnginfo=info)
  read = read_photograph(tmp_path / 'a.png')
  assert write_photograph(tmp_path / 'b.png', read) == ()
  image = opened(tmp_path / 'b.png')
  assert (image.text, image.info['gamma']) == ({'Title': 'Lake', 'Author': 'Someone', 'Comment': 'Süß'}, 1.0)
  assert write_photograph(tmp_path / 'b.jpg', read) == (
    'JPEG cannot store its PNG text, which is dropped',
    'JPEG cannot store its PNG colour (gAMA, cHRM), which is dropped',
  )


@pytest.mark.parametrize(
  ('kind', 'content'),
  [
    (b'zTXt', b'name\0\0' + zlib.compress(bytes(100))[:-1]),
    (b'iTXt', b'name\0\1\0\0\0' + zlib.compress(bytes(100))[:-1]),
    (b'gAMA', b'\0'),
    (b'cHRM', bytes(31)),
  ],
)
def test_damaged_chunks_are_ignored(tmp_path, kind, content):
  chunks = png_chunks(_encoded(random_photograph()))
  write_file(tmp_path / 'a.png', png_file([*chunks[:1], (kind, content), *chunks[1:]]))
  read = read_photograph(tmp_path / 'a.png')
  assert read.notes == (f'its damaged chunk {kind!r} was ignored',)
  write_photograph(tmp_path / 'b.png', read)
  assert kind not in dict(png_chunks((tmp_path / 'b.png').read_bytes()))
  opened(tmp_path / 'b.png')


def test_notes_on_damaged_chunks_are_few_whatever_a_file_holds(tmp_path):
  chunks = png_chunks(_encoded(random_photograph()))
  sound = png_file([*chunks[:1], *[(b'gAMA', b'\0')] * 100, *chunks[1:]])
  # Two hundred kinds whose checksums are wrong.
  wrong = b''.join(struct.pack('>I4sI', 0, b'ab%c%c' % (97 + i // 20, 97 + i % 20), 1) for i in range(200))
  end = sound.index(b'IEND') - 4
  read = read_photograph(write_file(tmp_path / 'a.png', sound[:end] + wrong + sound[end:]))
  kinds = [b'aba%c' % (97 + i) for i in range(8)] + [b'gAMA']
  assert read.notes == tuple(f'its damaged chunk {kind!r} was ignored' for kind in kinds)


@pytest.mark.parametrize('comment', ['Grüße 日本'.encode(), 'Grüße'.encode('latin-1'), b'plain'])
def test_comments_reach_png_in_their_own_characters(tmp_path, comment):
  buffer = io.BytesIO()
  Image.fromarray(random_photograph().pixels).save(buffer, 'JPEG', comment=comment)
  write_photograph(tmp_path / 'b.png', read_photograph(write_file(tmp_path / 'a.jpg', buffer.getvalue())))
  wanted = comment.decode('latin-1' if comment == 'Grüße'.encode('latin-1') else 'utf-8')
  assert opened(tmp_path / 'b.png').text == {'Comment': wanted}
  assert read_photograph(tmp_path / 'b.png').notes == ()


def test_comment_and_captions_of_jpeg_are_kept(tmp_path):
  buffer = io.BytesIO()
  resources = b'Photoshop 3.0\0' + OLD_SMALL_PICTURE + CAPTION
  segment = struct.pack('>BBH', 0xFF, 0xED, len(resources) + 2) + resources
  Image.fromarray(random_photograph().pixels).save(buffer, 'JPEG', comment=b'by hand', extra=segment)
  read = read_photograph(write_file(tmp_path / 'a.jpg', buffer.getvalue()))
  assert (read.metadata.comment, read.metadata.photoshop) == (b'by hand', CAPTION)
  assert write_photograph(tmp_path / 'b.jpg', read) == ()
  image = opened(tmp_path / 'b.jpg')
  assert image.info['comment'] == b'by hand'
  assert image.info['photoshop'] == {0x0404: b'hello'}
  assert write_photograph(tmp_path / 'b.png', read) == (
    'PNG cannot store its Photoshop data (IPTC), which is dropped',
  )
  assert opened(tmp_path / 'b.png').text == {'Comment': 'by hand'}
  write_photograph(tmp_path / 'b.tif', read)
  assert read_photograph(tmp_path / 'b.tif').metadata.photoshop == CAPTION


@pytest.mark.parametrize('order', ['<', '>'])
def test_the_thumbnail_of_the_noisy_file_is_dropped_and_all_else_kept(tmp_path, order):
  block = exif_block(order, thumbnail=b'\xff\xd8small picture\xff\xd9')
  buffer = io.BytesIO()
  Image.fromarray(smooth_photograph().pixels).save(buffer, 'JPEG', exif=b'Exif\0\0' + block)
  with Image.open(buffer) as image:
    assert 513 in image.getexif().get_ifd(ExifTags.IFD.IFD1)
  read = read_photograph(write_file(tmp_path / 'a.jpg', buffer.getvalue()))
  write_photograph(tmp_path / 'b.jpg', read)
  assert b'small picture' not in (tmp_path / 'b.jpg').read_bytes()
  with Image.open(tmp_path / 'b.jpg') as image:
    assert not image.getexif().get_ifd(ExifTags.IFD.IFD1)
    _assert_tags(image.getexif())
  # Nothing before the thumbnail has moved.
  plain = exif_block(order)
  assert read.metadata.exif[: len(plain)] == plain


def test_values_that_follow_a_directory_without_a_link_are_kept():
  # Entry of Make, whose value begins where the link to the next directory should be.
  start = 8 + 2 + 12
  block = struct.pack('<2sHIHHHII', b'II', 42, 8, 1, 271, 2, 8, start) + b'Maker 1\0'
  assert metadata.checked_exif(block) == (block, ())


@pytest.mark.parametrize('extension', ['.tif', '.webp'])
def test_content_credentials_that_are_lost_are_noted(tmp_path, extension):
  path = tmp_path / f'a{extension}'
  pixels = random_photograph().pixels
  if extension == '.tif':
    tifffile.imwrite(path, pixels, photometric='rgb', extratags=[(52545, 7, 8, b'jumbjumb', True)])
  else:
    Image.fromarray(pixels).save(path, lossless=True)
    data = path.read_bytes() + b'C2PA' + struct.pack('<I', 8) + b'jumbjumb'
    path.write_bytes(data[:4] + struct.pack('<I', len(data) - 8) + data[8:])
  read = read_photograph(path)
  np.testing.assert_array_equal(read.pixels, pixels)
  assert read.notes == (metadata.NO_CREDENTIALS,)


@pytest.mark.parametrize('extension', ['.png', '.jpg', '.tif', '.webp'])
def test_profile_for_other_colours_is_dropped(tmp_path, extension):
  (note,) = write_photograph(
    tmp_path / f'a{extension}', smooth_photograph(metadata=Metadata(icc_profile=GREY_PROFILE))
  )
  assert note == 'its colour profile is for GRAY, but the pixels are RGB: it was ignored'
  assert 'icc_profile' not in opened(tmp_path / f'a{extension}').info


def test_grey_profile_is_kept_with_grey_but_not_in_webp(tmp_path):
  photograph = random_photograph(channels=1, metadata=Metadata(icc_profile=GREY_PROFILE))
  for extension in ('.png', '.jpg', '.tif'):
    assert write_photograph(tmp_path / f'a{extension}', photograph) == ()
    assert read_photograph(tmp_path / f'a{extension}').metadata.icc_profile == GREY_PROFILE
  assert len(write_photograph(tmp_path / 'a.webp', photograph)) == 1
  # And from a file that has it wrong.
  Image.fromarray(random_photograph().pixels).save(tmp_path / 'b.png', icc_profile=GREY_PROFILE)
  read = read_photograph(tmp_path / 'b.png')
  assert read.metadata.icc_profile is None
  assert read.notes == ('its colour profile is for GRAY, but the pixels are RGB: it was ignored',)


def test_damaged_exif_is_kept_and_reported(tmp_path):
  buffer = io.BytesIO()
  cut = exif_block()[:300]
  Image.fromarray(smooth_photograph().pixels).save(buffer, 'JPEG', exif=b'Exif\0\0' + cut)
  read = read_photograph(write_file(tmp_path / 'a.jpg', buffer.getvalue()))
  assert read.notes == ('its EXIF data are damaged and kept as they are',)
  assert read.orientation == 6
  write_photograph(tmp_path / 'b.jpg', read)
  assert cut in (tmp_path / 'b.jpg').read_bytes()
  buffer = io.BytesIO()
  Image.fromarray(smooth_photograph().pixels).save(buffer, 'JPEG', exif=b'Exif\0\0no tags')
  read = read_photograph(write_file(tmp_path / 'a.jpg', buffer.getvalue()))
  assert (read.metadata.exif, read.notes) == (None, ('its EXIF data are damaged and were ignored',))


def test_circular_exif_is_not_followed(sound, tmp_path):
  header, *rest = png_chunks(sound['plain.png'])
  circle = b'MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08'
  read = read_photograph(write_file(tmp_path / 'a.png', png_file([header, (b'eXIf', circle), *rest])))
  assert read.notes == ('its EXIF data are damaged and kept as they are',)


def test_exif_with_many_tags_sharing_one_large_value_takes_little_memory():
  tags = b''.join(struct.pack('<HHII', tag, 7, 40_000, 8) for tag in range(1, 4001))
  block = b'II*\0\x08\0\0\0' + struct.pack('<H', 4000) + tags + bytes(4)
  tracemalloc.start()
  assert metadata.orientation(block) == 1
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 3_000_000


def test_png_has_a_profile_or_srgb_but_not_both(tmp_path):
  chunks = ((b'sRGB', b'\0'), (b'tIME', bytes(7)))
  for profile, names in ((RGB_PROFILE, {b'iCCP', b'tIME'}), (None, {b'sRGB', b'tIME'})):
    metadata = Metadata(icc_profile=profile, png_chunks=chunks)
    write_photograph(tmp_path / 'a.png', random_photograph(metadata=metadata))
    found = {kind for kind, _ in png_chunks((tmp_path / 'a.png').read_bytes())}
    assert found == names | {b'IHDR', b'IDAT', b'IEND'}


def test_metadata_too_long_for_jpeg_are_dropped_and_reported(tmp_path):
  metadata = Metadata(xmp=bytes(70_000))
  assert write_photograph(tmp_path / 'a.jpg', smooth_photograph(metadata=metadata)) == (
    'JPEG stores at most 64 KB of its XMP data, which is dropped',
  )


@pytest.mark.parametrize('order', '<>')
def test_only_the_makers_note_is_lost_where_it_is_too_long_for_jpeg(tmp_path, order):
  exif = Image.Exif()
  exif.endian = order
  exif[274] = 6
  exif[34665] = {36867: '2020:01:02 03:04:05', 37500: bytes(70_000)}
  photograph = smooth_photograph(metadata=Metadata(exif=exif.tobytes().removeprefix(b'Exif\0\0')))
  assert write_photograph(tmp_path / 'a.jpg', photograph) == (
    "the maker's note of its EXIF data is dropped, because JPEG stores at most 64 KB of them",
  )
  written = opened(tmp_path / 'a.jpg').getexif()
  assert (written[274], written.get_ifd(ExifTags.IFD.Exif)) == (6, {36867: '2020:01:02 03:04:05'})
  # Nothing empty is left.
  exif[34665] = {37500: bytes(70_000)}
  photograph = smooth_photograph(metadata=Metadata(exif=exif.tobytes().removeprefix(b'Exif\0\0')))
  write_photograph(tmp_path / 'b.jpg', photograph)
  assert read_photograph(tmp_path / 'b.jpg').notes == ()
  assert write_photograph(tmp_path / 'a.png', photograph) == ()


def test_tags_of_a_raw_file_do_not_make_a_tiff_file_one(tmp_path):
  exif = Image.Exif()
  exif[271], exif[50706], exif[50717] = 'Maker', b'\1\4\0\0', 800
  photograph = random_photograph(dtype=np.uint16, metadata=Metadata(exif=exif.tobytes()[6:]))
  write_photograph(tmp_path / 'a.tif', photograph)
  read = read_photograph(tmp_path / 'a.tif')
  np.testing.assert_array_equal(read.pixels, photograph.pixels)
  assert (read.white_level, read.notes) == (None, ())
  assert b'Maker' in read.metadata.exif


def test_content_credentials_are_ignored_with_a_note(tmp_path):
  note = ('its content credentials, which are those of the noisy picture, were ignored',)
  segment = b'JP\0\1\0\0\0\1' + struct.pack('>I', 30) + b'jumb....jumdc2pa'
  plain = _jpeg(struct.pack('>BBH', 0xFF, 0xEB, len(segment) + 2) + segment)
  assert read_photograph(write_file(tmp_path / 'a.jpg', plain)).notes == note
  chunks = png_chunks(_encoded(smooth_photograph()))
  chunks.insert(1, (b'caBX', b'jumbc2pa'))
  assert read_photograph(write_file(tmp_path / 'a.png', png_file(chunks))).notes == note


def _jpeg(segments, picture=None):
  """A JPEG file with further segments."""
  buffer = io.BytesIO()
  Image.fromarray(smooth_photograph().pixels if picture is None else picture).save(
    buffer, 'JPEG', quality=95, extra=segments
  )
  return buffer.getvalue()


def _app_segment(number, content):
  return struct.pack('>BBH', 0xFF, 0xE0 + number, len(content) + 2) + content


def _with_gain_map():
  """A JPEG file of Ultra HDR, which doubles the light at most, by the specification of Android."""
  space = b'http://ns.adobe.com/hdr-gain-map/1.0/'
  start = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
  )
  fields = b'Version="1.0" Gamma="1" OffsetSDR="0.0" OffsetHDR="0.0" BaseRenditionIsHDR="False"'
  fields += b' GainMapMin="0" GainMapMax="1" HDRCapacityMin="0" HDRCapacityMax="1"'
  about = b' '.join(b'hdrgm:' + field for field in fields.split())
  end = b'</rdf:RDF></x:xmpmeta>'
  packet = b'%b<rdf:Description xmlns:hdrgm="%b" %b/>%b' % (start, space, about, end)
  gain_map = _jpeg(_app_segment(1, metadata.XMP_PREFIX + packet), np.full((12, 20), 128, np.uint8))
  item = (
    b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="%b" Item:Mime="image/jpeg"%b/></rdf:li>'
  )
  items = item % (b'Primary', b'') + item % (b'GainMap', b' Item:Length="%d"' % len(gain_map))
  container = b'http://ns.google.com/photos/1.0/container/'
  packet = (
    b'%b<rdf:Description xmlns:Container="%b" xmlns:Item="%bitem/" xmlns:hdrgm="%b" hdrgm:Version="1.0">'
    b'<Container:Directory><rdf:Seq>%b</rdf:Seq></Container:Directory></rdf:Description>%b'
  ) % (start, container, container, space, items, end)

  def first(length, offset):
    # A list of both images (CIPA DC-007): sizes, and the offset of the second from the byte order below.
    index = b'MM\0*' + struct.pack('>IH', 8, 3)
    index += struct.pack('>HHI4sHHIIHHII', 0xB000, 7, 4, b'0100', 0xB001, 4, 1, 2, 0xB002, 7, 32, 50)
    index += bytes(4) + struct.pack('>IIIHHIIIHH', 0x030000, length, 0, 0, 0, 0, len(gain_map), offset, 0, 0)
    return _jpeg(_app_segment(1, metadata.XMP_PREFIX + packet) + _app_segment(2, b'MPF\0' + index))

  length = len(first(0, 0))
  return first(length, length - first(0, 0).index(b'MPF\0') - 4) + gain_map


def test_a_gain_map_is_neither_applied_nor_promised_by_the_output(tmp_path):
  data = _with_gain_map()
  read = read_photograph(write_file(tmp_path / 'a.jpg', data))
  assert read.notes == ('its gain map for displays of high dynamic range was ignored',)
  with Image.open(io.BytesIO(data)) as image:
    np.testing.assert_array_equal(read.pixels, np.asarray(image))
  write_photograph(tmp_path / 'b.jpg', read)
  again = read_photograph(tmp_path / 'b.jpg')
  assert again.notes == ()
  assert b'hdrgm:Version' not in again.metadata.xmp
  assert b'Container:Directory' not in again.metadata.xmp


def test_a_motion_photo_becomes_a_photo(tmp_path):
  packet = (
    b'<x:xmpmeta><rdf:Description GCamera:MotionPhoto="1" Camera:MicroVideoOffset="9" xCamera:MotionPhoto="2"'
    b' dc:title="kept"><OpCamera:MotionPhotoOwner>a</OpCamera:MotionPhotoOwner></rdf:Description></x:xmpmeta>'
  )
  data = _jpeg(_app_segment(1, metadata.XMP_PREFIX + packet)) + b'\0\0\0\x18ftypmp42'
  kept = b'<x:xmpmeta><rdf:Description xCamera:MotionPhoto="2" dc:title="kept"></rdf:Description></x:xmpmeta>'
  assert read_photograph(write_file(tmp_path / 'a.jpg', data)).metadata.xmp == kept
