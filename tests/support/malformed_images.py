"""Malformed and odd image files for fuzz tests, reproducible by seed."""

from collections.abc import Callable, Mapping
import io
from pathlib import Path
import struct
import zlib

import numpy as np
from PIL import Image
import tifffile

_HUGE = (60_000, 65_535, 2**31 - 1, 0)
_PNG_START = b'\x89PNG\r\n\x1a\n'
# First row and column, and steps, of an interlaced PNG's passes.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_COMPRESSIONS = ('lzw', 'zlib', 'packbits', 'zstd', 'lzma', 'jpeg', None)


def malformed_images(folder: Path, count: int, seed: int) -> list[Path]:
  """Writes files of every kind: valid but odd ones first, then damaged ones up to the count.

  Args:
    folder: An existing folder.
    count: How many files, at least 200 for some of each kind.
    seed: For all random choices.

  Returns:
    The files, whose names say how they were damaged.
  """
  random = np.random.default_rng(seed)
  sound = sound_images(random)
  files = [*_odd(sound), *_wrong_headers(sound, random)]
  names = sorted(sound)
  while len(files) < count:
    name = names[len(files) % len(names)]
    damage = list(_DAMAGES)[int(random.integers(len(_DAMAGES)))]
    stem, _, extension = name.partition('.')
    files.append((f'{damage}-{stem}.{extension}', _DAMAGES[damage](sound[name], random)))
  paths = []
  for number, (name, data) in enumerate(files[:count]):
    paths.append(folder / f'{number:04d}-{name}')
    paths[-1].write_bytes(data)
  return paths


def sound_images(random: np.random.Generator) -> dict[str, bytes]:
  """Small complete files of each format, by name, including kinds that must be refused."""
  colour = random.integers(0, 256, (17, 31, 4), dtype=np.uint8)
  # Smooth, so that compression has something to do.
  colour[4:] = np.arange(31, dtype=np.uint8)[None, :, None] * 8
  files = {**_by_pillow(colour), **_deep_pngs(colour), **_tiffs(colour)}
  files |= {'plain.png': _png(colour), 'interlaced.png': _png(colour, _PASSES)}
  return files | {'deep_interlaced.png': _png(colour.astype('>u2') * 257, _PASSES)}


def _by_pillow(colour):
  rgb, rgba = Image.fromarray(colour[:, :, :3]), Image.fromarray(colour)
  grey, palette = rgb.convert('L'), rgb.quantize(16)
  exif = rgb.getexif()
  exif[271], exif[274], exif[306] = 'Maker', 6, '2020:01:02 03:04:05'
  exif[34665] = {36867: '2020:01:02 03:04:05'}
  block = exif.tobytes()
  extras = {'exif': block, 'icc_profile': bytes(128), 'dpi': (300, 300)}
  frames = {'save_all': True, 'append_images': [rgb.rotate(180)]}
  kinds = {
    'rgb.png': (rgb, extras),
    'rgba.png': (rgba, {}),
    'grey.png': (grey, {'transparency': 7}),
    'grey_alpha.png': (rgba.convert('LA'), {}),
    'bilevel.png': (grey.convert('1'), {}),
    'palette.png': (palette, {'transparency': bytes(range(0, 160, 10))}),
    'animated.png': (rgb, frames),
    'rgb.jpg': (rgb, extras),
    'grey.jpg': (grey, {}),
    'progressive.jpg': (rgb, {'progressive': True}),
    'restarts.jpg': (rgb, {'restart_marker_blocks': 1}),
    'cmyk.jpg': (rgb.convert('CMYK'), {}),
    'several.jpg': (rgb, {**frames, 'format': 'MPO'}),
    'lossy.webp': (rgb, extras),
    'lossless.webp': (rgba, {'lossless': True}),
    'transparent.webp': (rgba, {}),
    'animated.webp': (rgb, frames),
    'rgb.bmp': (rgb, {}),
    'rgba.bmp': (rgba, {}),
    'grey.bmp': (grey, {}),
    'bilevel.bmp': (grey.convert('1'), {}),
    'palette.bmp': (palette, {}),
    'single.gif': (palette, {}),
    'animated.gif': (rgb, frames),
    'float.tif': (grey.convert('F'), {}),
    'cmyk.tif': (rgb.convert('CMYK'), {}),
    'lab.tif': (Image.frombytes('LAB', rgb.size, rgb.tobytes()), {}),
    'tags.tif': (rgb, {'exif': block}),
    'fax.tif': (grey.convert('1'), {'compression': 'group4'}),
    'bilevel.tif': (grey.convert('1'), {}),
    'palette.tif': (palette, {'compression': 'tiff_lzw'}),
  }
  return {name: _saved(image, name, options) for name, (image, options) in kinds.items()}


def _saved(image, name, options):
  buffer = io.BytesIO()
  extensions = {'jpg': 'JPEG', 'tif': 'TIFF', 'png': 'PNG', 'webp': 'WEBP', 'bmp': 'BMP', 'gif': 'GIF'}
  image.save(buffer, **{'format': extensions[name.rpartition('.')[2]], **options})
  return buffer.getvalue()


def _deep_pngs(colour):
  deep = (colour.astype(np.uint16) * 257 + 3).astype('>u2')
  return {
    'deep_rgb.png': _png(deep[:, :, :3]),
    'deep_rgba.png': _png(deep),
    'deep_grey.png': _png(deep[:, :, :1]),
    'deep_grey_alpha.png': _png(deep[:, :, :2]),
  }


def _tiffs(colour):
  rgb, deep = colour[:, :, :3].copy(), colour[:, :, :3].astype(np.uint16) * 257 + 3
  kinds = {
    f'{compression}.tif': (rgb, {'compression': compression, 'photometric': 'rgb'})
    for compression in _COMPRESSIONS
  }
  kinds |= {
    'deep.tif': (deep, {'photometric': 'rgb', 'compression': 'zlib', 'predictor': True}),
    'deep_grey.tif': (deep[:, :, 0], {'photometric': 'minisblack', 'compression': 'lzw', 'predictor': True}),
    'deep_alpha.tif': (colour.astype(np.uint16), {'photometric': 'rgb', 'extrasamples': ['unassalpha']}),
    'tiles.tif': (deep, {'photometric': 'rgb', 'tile': (16, 16), 'compression': 'zlib'}),
    'planes.tif': (np.moveaxis(rgb, 2, 0), {'photometric': 'rgb', 'planarconfig': 'separate'}),
    'strips.tif': (rgb, {'photometric': 'rgb', 'rowsperstrip': 3, 'compression': 'packbits'}),
    'big_endian.tif': (deep, {'photometric': 'rgb', 'byteorder': '>', 'compression': 'zlib'}),
    'big_tiff.tif': (deep, {'photometric': 'rgb', 'bigtiff': True}),
    'signed.tif': (rgb[:, :, 0].astype(np.int16), {'photometric': 'minisblack'}),
    'wide.tif': (rgb[:, :, 0].astype(np.uint32), {'photometric': 'minisblack'}),
    'pages.tif': (np.stack([rgb, rgb]), {'photometric': 'rgb'}),
    'five_channels.tif': (np.zeros((5, 7, 5), np.uint8), {'photometric': 'rgb'}),
  }
  return {name: _tiff(array, dict(options)) for name, (array, options) in kinds.items()}


def _tiff(array, options):
  buffer = io.BytesIO()
  opening = {key: options.pop(key) for key in ('byteorder', 'bigtiff') if key in options}
  with tifffile.TiffWriter(buffer, **opening) as writer:
    writer.write(array, metadata=None, **options)
  return buffer.getvalue()


def tiff_of_overlapping_pages(pages: int, tags: int) -> bytes:
  """A small TIFF file with many more pages, each a list of many tags, whose bytes they share."""
  data = bytearray(_tiff(np.zeros((8, 8, 3), np.uint8), {'photometric': 'rgb'}))
  (first,) = struct.unpack_from('<I', data, 4)
  (count,) = struct.unpack_from('<H', data, first)
  start = len(data) + len(data) % 2
  # The page after the first.
  struct.pack_into('<I', data, first + 2 + 12 * count, start)
  # Every 12 bytes begins a page: its number of tags, and a tag that says that it is a reduced image.
  body = bytearray((pages + tags) * struct.pack('<HHHIH', tags, 254, 3, 1, 1))
  for page in range(pages - 1):
    struct.pack_into('<I', body, 12 * (page + tags) + 2, start + 12 * (page + 1))
  return bytes(data).ljust(start, b'\0') + bytes(body)


def tiff_of_overlapping_tags() -> bytes:
  """A TIFF file of a megabyte whose tags for EXIF, GPS and interoperability all list all of its bytes."""
  data = bytearray(_tiff(np.zeros((8, 8, 3), np.uint8), {'photometric': 'rgb'}))
  (first,) = struct.unpack_from('<I', data, 4)
  (count,) = struct.unpack_from('<H', data, first)
  entries = [bytes(data[at : at + 12]) for at in range(first + 2, first + 2 + 12 * count, 12)]
  start, size, tags = len(data) + len(data) % 2, 1000, range(400, 1400)
  end = start + 2 + 12 * (count + len(tags) + 3) + 4
  entries += [struct.pack('<HHII', tag, 7, size, end) for tag in tags if tag not in range(512, 701)]
  entries += [struct.pack('<HHII', tag, 4, 1, start) for tag in (34665, 34853, 40965)]
  data[4:8] = struct.pack('<I', start)
  table = struct.pack('<H', len(entries)) + b''.join(sorted(entries, key=lambda e: e[1::-1]))
  return (bytes(data).ljust(start, b'\0') + table + bytes(4)).ljust(end, b'\0') + bytes(len(tags) * size)


def _png(colour, passes=((0, 0, 1, 1),)):
  """A PNG of pixels only, in Adam7's seven passes or in one."""
  height, width, channels = colour.shape
  colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
  parts = (colour[top::down, left::right] for top, left, down, right in passes)
  rows = b''.join(b'\0' + row.tobytes() for part in parts if part.size for row in part)
  header = _png_header(width, height, 8 * colour.itemsize, colour_type, int(len(passes) > 1))
  return png_file([(b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')])


def png_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
  """A PNG file of chunks, with valid checksums."""
  packed = (
    struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    for kind, data in chunks
  )
  return _PNG_START + b''.join(packed)


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
  """The chunks of a sound PNG file."""
  chunks, at = [], len(_PNG_START)
  while at < len(data):
    length, kind = struct.unpack_from('>I4s', data, at)
    chunks.append((kind, data[at + 8 : at + 8 + length]))
    at += 12 + length
  return chunks


def _png_header(width, height, depth, colour_type, interlaced=0):
  return struct.pack('>IIBBBBB', width, height, depth, colour_type, 0, 0, interlaced)


def _odd(sound):
  """Files that are odd rather than damaged, and files that are not images."""
  rgb = sound['rgb.png']
  yield from sound.items()
  for extension in ('png', 'jpg', 'tif', 'webp', 'bmp'):
    yield f'empty.{extension}', b''
    yield f'text.{extension}', b'This is no picture.\n' * 20
    yield f'zeros.{extension}', bytes(1000)
    yield f'start_only.{extension}', sound[f'{_FIRST[extension]}.{extension}'][:16]
    yield f'png_called.{extension}', rgb
    yield f'one_pixel.{extension}', _saved(Image.new('RGB', (1, 1), (1, 2, 3)), f'.{extension}', {})
    yield f'one_column.{extension}', _saved(Image.new('L', (1, 29), 9), f'.{extension}', {})
  for start, name in _OTHER_STARTS.items():
    yield name, start + bytes(200)
  yield 'trailing.jpg', sound['rgb.jpg'] + bytes(range(256))
  for name in ('rgb.jpg', 'progressive.jpg', 'restarts.jpg'):
    scan = sound[name].rindex(b'\xff\xda')
    yield f'cut_but_ended_{name}', sound[name][: (scan + 14 + len(sound[name])) // 2] + b'\xff\xd9'
  yield 'ycck.jpg', _ycck(sound['cmyk.jpg'])
  yield from _odd_pngs(sound)
  yield from _odd_metadata(sound)


_FIRST = {'png': 'rgb', 'jpg': 'rgb', 'tif': 'deep', 'webp': 'lossy', 'bmp': 'rgb'}
_OTHER_STARTS = {
  b'\0\0\0\x18ftypheic': 'photo.heic',
  b'\0\0\0\x18ftypavif': 'photo.avif',
  b'\0\0\0\x18ftypisom': 'film.mp4',
  b'\0\0\0\x18ftypcrx ': 'photo.cr3',
  b'8BPS\0\1': 'layers.psd',
  b'#?RADIANCE\n': 'light.hdr',
  b'\x76\x2f\x31\x01': 'light.exr',
  b'II*\0\x10\0\0\0CR\2\0': 'photo.cr2',
  b'FUJIFILMCCD-RAW': 'photo.raf',
  b'%PDF-1.7': 'paper.pdf',
  b'\xff\x0a': 'photo.jxl',
  b'RIFF\x10\0\0\0WAVE': 'sound.webp',
}


def _odd_pngs(sound):
  header, *rest = png_chunks(sound['plain.png'])
  palette = dict(png_chunks(sound['palette.png']))
  yield (
    'no_palette.png',
    png_file([chunk for chunk in png_chunks(sound['palette.png']) if chunk[0] != b'PLTE']),
  )
  short = [(kind, data[:3] if kind == b'PLTE' else data) for kind, data in palette.items()]
  yield 'short_palette.png', png_file(short)
  yield 'no_header.png', png_file(rest)
  yield 'two_headers.png', png_file([header, header, *rest])
  yield 'no_pixels.png', png_file([header, (b'IEND', b'')])
  yield 'no_end.png', png_file([header, rest[0]])
  yield 'order.png', png_file([header, *reversed(rest)])
  yield 'unknown_critical.png', png_file([header, (b'ABCD', b'1'), *rest])
  yield 'unknown_other.png', png_file([header, (b'abCd', b'1'), *rest])
  pixels = zlib.decompress(rest[0][1])
  for name, content in {
    'rows_missing': pixels[:-200],
    'rows_too_many': pixels + bytes(500),
    'wrong_filter': b'\x07' + pixels[1:],
    'bomb': bytes(10**7),
  }.items():
    yield f'{name}.png', png_file([header, (b'IDAT', zlib.compress(content)), rest[-1]])
  for colour_type in range(8):
    for depth in (0, 1, 3, 16, 255):
      yield (
        f'type_{colour_type}_{depth}.png',
        png_file([(b'IHDR', _png_header(31, 17, depth, colour_type)), *rest]),
      )


def _odd_metadata(sound):
  header, *rest = png_chunks(sound['plain.png'])
  for name, chunk in {
    'exif_garbage': (b'eXIf', b'garbage'),
    'exif_loop': (b'eXIf', b'MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08'),
    'exif_cut': (b'eXIf', b'II*\0\x08\0\0\0\xff\xff'),
    'icc_garbage': (b'iCCP', b'name\0\0' + zlib.compress(b'garbage' * 100)),
    'icc_broken': (b'iCCP', b'name\0\0nothing deflated'),
    'icc_bomb': (b'iCCP', b'name\0\0' + zlib.compress(bytes(100 * 2**20), 9)),
    'text_bomb': (b'zTXt', b'name\0\0' + zlib.compress(bytes(100 * 2**20), 9)),
    'dpi_zero': (b'pHYs', bytes(9)),
    'text_broken': (b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0broken'),
    'key_short': (b'tRNS', b'\0'),
    'colour_short': (b'gAMA', b'\0'),
    'frames': (b'acTL', b'\xff\xff\xff\xff\0\0\0\0'),
  }.items():
    yield f'{name}.png', png_file([header, chunk, *rest])
  jpeg = sound['grey.jpg']
  for name, marker, content in (
    ('exif_garbage', 0xE1, b'Exif\0\0garbage'),
    ('exif_far', 0xE1, b'Exif\0\0II*\0\xff\xff\xff\x7f'),
    ('icc_garbage', 0xE2, b'ICC_PROFILE\0\1\1garbage'),
    ('icc_part', 0xE2, b'ICC_PROFILE\0\2\3garbage'),
    ('photoshop_garbage', 0xED, b'Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff'),
    ('many_pictures', 0xE2, b'MPF\0II*\0\x08\0\0\0\xff\xff'),
  ):
    segment = struct.pack('>BBH', 0xFF, marker, len(content) + 2) + content
    yield f'{name}.jpg', jpeg[:2] + segment + jpeg[2:]


def _ycck(cmyk):
  """The same bits, labelled as YCCK."""
  at = cmyk.index(b'Adobe') + 11
  return cmyk[:at] + b'\2' + cmyk[at + 1 :]


def _wrong_headers(sound, random):
  """Sizes and numbers in headers that are huge, zero or random."""
  for size in _HUGE:
    for name in ('plain.png', 'deep_rgb.png'):
      (_, header), *rest = png_chunks(sound[name])
      for sides in ((size, size), (31, size), (size, 17)):
        yield f'sides_{size}_{name}', png_file([(b'IHDR', struct.pack('>II', *sides) + header[8:]), *rest])
    for name in ('rgb.jpg', 'progressive.jpg', 'grey.jpg'):
      at = next(sound[name].index(mark) for mark in (b'\xff\xc0', b'\xff\xc2') if mark in sound[name]) + 5
      for sides in ((size, size), (17, size)):
        sides = (min(side, 65535) for side in sides)
        yield f'sides_{size}_{name}', _put(sound[name], at, struct.pack('>HH', *sides))
    for name in ('rgb.bmp', 'palette.bmp'):
      for sides in ((size, size), (size, -size), (31, size)):
        yield f'sides_{size}_{name}', _put(sound[name], 18, struct.pack('<ii', *sides))
    lossy = sound['lossy.webp']
    yield f'sides_{size}_lossy.webp', _put(lossy, lossy.index(b'\x9d\x01\x2a') + 3, struct.pack('<I', size))
    lossless = sound['lossless.webp']
    yield f'sides_{size}_lossless.webp', _put(lossless, lossless.index(b'VP8L') + 9, struct.pack('<I', size))
    yield f'sides_{size}_canvas.webp', _put(lossy, lossy.index(b'VP8X') + 12, struct.pack('<I', size)[:3] * 2)
  yield from _wrong_tags(sound, random)


def _wrong_tags(sound, random):
  numbers = (256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347)
  files = ('deep.tif', 'tiles.tif', 'zlib.tif', 'jpeg.tif', 'palette.tif', 'planes.tif', 'lzw.tif')
  for name in files:
    data = sound[name]
    (place,) = struct.unpack_from('<I', data, 4)
    (count,) = struct.unpack_from('<H', data, place)
    for at in range(place + 2, place + 2 + 12 * count, 12):
      (number,) = struct.unpack_from('<H', data, at)
      if number in numbers:
        kind = 'tag' if number not in (256, 257) else 'side'
        value = int(random.choice([0, 1, 2, 3, 60_000, 2**31, 2**32 - 1]))
        # Type 4, one of them; or but another count.
        changed = struct.pack('<HII', 4, 1, value) if random.random() < 0.7 else struct.pack('<HI', 4, value)
        yield f'{kind}_{number}_{name}', _put(data, at + 2, changed)
    yield f'loop_{name}', _put(data, place + 2 + 12 * count, struct.pack('<I', place))
    yield f'next_{name}', _put(data, place + 2 + 12 * count, struct.pack('<I', 12))


def _put(data, at, content):
  return data[:at] + content + data[at + len(content) :]


def _cut(data, random):
  return data[: int(random.integers(1, len(data)))]


def _flip_bits(data, random):
  array = np.frombuffer(data, np.uint8).copy()
  places = random.integers(0, len(array), int(random.integers(1, 9)))
  array[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
  return array.tobytes()


def _zero_block(data, random):
  start = int(random.integers(len(data)))
  return _put(data, start, bytes(min(int(random.integers(1, 200)), len(data) - start)))


def _noise_block(data, random):
  start = int(random.integers(len(data)))
  return _put(data, start, random.bytes(min(int(random.integers(1, 60)), len(data) - start)))


def _drop_block(data, random):
  start = int(random.integers(len(data)))
  return data[:start] + data[start + int(random.integers(1, 60)) :]


def _repeat_block(data, random):
  start = int(random.integers(len(data)))
  end = start + int(random.integers(1, 60))
  return data[:end] + data[start:]


def _swap_chunks(data, random):
  """Swaps chunks of PNG files, with valid checksums; in other formats, two blocks."""
  if data.startswith(_PNG_START):
    chunks = png_chunks(data)
    for _ in range(int(random.integers(1, 3))):
      one, other = random.integers(len(chunks), size=2)
      chunks[one], chunks[other] = chunks[other], chunks[one]
    return png_file(chunks)
  start, middle, end = sorted(int(place) for place in random.integers(8, len(data), 3))
  return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def _damage_chunk(data, random):
  """Flips bits inside a PNG chunk and fixes its checksum; in other formats, anywhere after the start."""
  if not data.startswith(_PNG_START):
    return data[:16] + _flip_bits(data[16:], random)
  chunks = png_chunks(data)
  number = int(random.integers(len(chunks) - 1))
  kind, content = chunks[number]
  chunks[number] = (kind, _flip_bits(content, random))
  return png_file(chunks)


_DAMAGES: Mapping[str, Callable] = {
  'cut': _cut,
  'bits': _flip_bits,
  'zeroed': _zero_block,
  'noise': _noise_block,
  'dropped': _drop_block,
  'repeated': _repeat_block,
  'swapped': _swap_chunks,
  'chunk': _damage_chunk,
}
