"""JPEG: segments taken apart and put together; pixels by Pillow, which sees no metadata."""

from collections.abc import Sequence
import dataclasses
import io
import re
import struct

import numpy as np
from PIL import Image, JpegImagePlugin

from sadnet_jax.images import icc, photoshop
from sadnet_jax.images import metadata as exif
from sadnet_jax.images.photograph import Metadata, Photograph, check_size, left_out

SIGNATURE = b'\xff\xd8\xff'
MAX_SIDE = 65500  # of libjpeg; the format allows 35 more.
_START, _END = b'\xff\xd8', b'\xff\xd9'
_SCAN, _COMMENT, _TABLES = 0xDA, 0xFE, (0xC4, 0xDB, 0xDD)
_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = {3: 'lossless', 9: 'arithmetic', 10: 'arithmetic', 11: 'arithmetic lossless'}
_APP0, _APP1, _APP2, _APP13, _APP14 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
_JFIF = b'JFIF\0'
_XMP = b'http://ns.adobe.com/xap/1.0/\0'
_MORE_XMP = b'http://ns.adobe.com/xmp/extension/\0'
_ICC = b'ICC_PROFILE\0'
_PHOTOSHOP = b'Photoshop 3.0\0'
_MOST_CONTENT_BYTES = 65533
MAX_EXIF_BYTES = _MOST_CONTENT_BYTES - len(exif.PREFIX)
# What ends the bits of a scan, and what stands between parts of them.
_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
_RESTART = re.compile(rb'\xff[\xd0-\xd7]')
# One bit for a block of 8x8 is the least.
_MOST_PIXELS_A_BYTE = 512
# Real ones have about ten; each goes through the whole picture.
_MOST_SCANS = 200
_FILLING = np.random.default_rng(0).integers(0, 255, 64, dtype=np.uint8).tobytes()


@dataclasses.dataclass(frozen=True)
class Segment:
  """A marker's second byte, what it holds, and the bits of the scan that it begins."""

  marker: int
  content: bytes
  scan: bytes = b''


def split(data: bytes) -> tuple[list[Segment], int]:
  """The segments of the first picture, and the place after it.

  Raises:
    ValueError: The data end before the picture does.
  """
  segments: list[Segment] = []
  at = len(_START)
  while True:
    at = data.find(b'\xff', at)
    if at < 0 or at + 4 > len(data):
      # The end itself is but two bytes.
      if at >= 0 and data[at : at + 2] == _END:
        return segments, at + 2
      raise ValueError('got a JPEG that ends too early, want a complete one (the file is cut off)')
    marker = data[at + 1]
    if marker == 0xD9:
      return segments, at + 2
    # Fill bytes, stuffed zeros and markers without content.
    if marker in (0, 1, 0xFF) or 0xD0 <= marker <= 0xD8:
      at += 1 if marker == 0xFF else 2
      continue
    (length,) = struct.unpack_from('>H', data, at + 2)
    end = at + 2 + length
    if length < 2 or end > len(data):
      raise ValueError(
        'got a JPEG with a damaged segment, want a complete one (the file is damaged or cut off)'
      )
    content, scan = data[at + 4 : end], b''
    if marker == _SCAN:
      found = _MARKER.search(data, end)
      if found is None:
        raise ValueError('got a JPEG that ends too early, want a complete one (the file is cut off)')
      scan = data[end : found.start()]
      end = found.start()
    segments.append(Segment(marker, content, scan))
    at = end


def read(data: bytes) -> Photograph:
  """Reads the first picture of a JPEG file.

  Raises:
    ValueError: It is CMYK, of 12 bits, of a rare kind, or damaged.
  """
  segments, end = split(data)
  pixels = decode(segments)
  notes = []
  if data[end:].strip(b'\0'):
    notes.append(f'{len(data) - end} bytes after the picture (further pictures, a video) are left out')
  metadata = _metadata(segments, pixels.shape[2], notes)
  return Photograph(pixels, None, metadata, lossless=False, notes=tuple(notes))


def decode(segments: Sequence[Segment]) -> np.ndarray:
  """Pixels, uint8 [H, W, 1 or 3].

  Raises:
    ValueError: The picture is of a kind that is not for us, or incomplete.
  """
  frame = _frame(segments)
  scans = [s for s in segments if s.marker == _SCAN]
  if not scans or len(scans) > _MOST_SCANS:
    raise ValueError(f'got a JPEG of {len(scans)} scans, want 1 to {_MOST_SCANS} (the file is damaged)')
  height, width = struct.unpack_from('>HH', frame.content, 1)
  stored = sum(len(s.scan) for s in scans)
  check_size(width, height, 4, stored * _MOST_PIXELS_A_BYTE)
  needed = [s for s in segments if s.marker in (*_TABLES, _SCAN, _APP14, frame.marker) or _is_jfif(s)]
  pixels = _decoded(needed)
  _check_complete(needed, pixels)
  return np.atleast_3d(pixels)


def _is_jfif(segment):
  return segment.marker == _APP0 and segment.content.startswith(_JFIF)


def _frame(segments):
  frames = [s for s in segments if 0xC0 <= s.marker <= 0xCF and s.marker not in (0xC4, 0xC8, 0xCC)]
  if len(frames) != 1 or len(frames[0].content) < 6:
    raise ValueError('got a JPEG without one header, want a complete one (the file is damaged)')
  (frame,) = frames
  if frame.marker not in _FRAMES:
    kind = _OTHER_FRAMES.get(frame.marker - 0xC0, 'hierarchical')
    raise ValueError(f'got a JPEG of {kind} coding, want a baseline or progressive one (convert it)')
  if frame.content[0] != 8:
    raise ValueError(f'got a JPEG of {frame.content[0]} bits, want 8 (convert it to 16-bit PNG)')
  channels = frame.content[5]
  if channels == 4:
    adobe = next((s.content for s in segments if s.marker == _APP14 and s.content[:5] == b'Adobe'), b'')
    kind = 'YCCK' if adobe[11:12] == b'\2' else 'CMYK'
    raise ValueError(f'got a JPEG of {kind} colours, want grey or RGB (convert it to RGB with its profile)')
  if channels not in (1, 3):
    raise ValueError(f'got a JPEG of {channels} channels, want 1 or 3 (the file may be damaged)')
  return frame


def _check_complete(segments, pixels):
  """Finds pictures whose bits run out, which decoders make grey from there on without a word.

  They pass over bytes after the last block of a scan or interval; so what comes out does not change
  with what is put there, unless some were missing.
  """
  filled = [dataclasses.replace(s, scan=_filled(s.scan)) if s.marker == _SCAN else s for s in segments]
  # Row by row: whole pictures take much memory.
  if not all(map(np.array_equal, pixels, _decoded(filled))):
    raise ValueError('got a JPEG whose pixels are incomplete, want a complete one (the file is damaged)')


def _filled(scan):
  restarts = _RESTART.findall(scan)
  if restarts != [_restart(number) for number in range(len(restarts))]:
    raise ValueError('got a JPEG with parts of a scan missing, want a complete one (the file is damaged)')
  filled = _RESTART.sub(lambda restart: _FILLING + restart.group(), scan)
  # One interval more than there should be.
  return filled + _FILLING + _restart(len(restarts)) + _FILLING


def _restart(number):
  return bytes([0xFF, 0xD0 + number % 8])


def _decoded(segments):
  stream = _START + b''.join(_pack(s.marker, s.content) + s.scan for s in segments) + _END
  with JpegImagePlugin.JpegImageFile(io.BytesIO(stream)) as image:
    image.load()
    return np.asarray(image)


def _metadata(segments, channels, notes):
  def named(marker, prefix):
    return [
      s.content.removeprefix(prefix) for s in segments if s.marker == marker and s.content.startswith(prefix)
    ]

  block, about_exif = exif.checked(next(iter(named(_APP1, exif.PREFIX)), None))
  profile, about_profile = icc.checked(_profile(named(_APP2, _ICC)), channels)
  resources, about_resources = photoshop.checked(b''.join(named(_APP13, _PHOTOSHOP)))
  packet = next(iter(named(_APP1, _XMP)), None)
  notes += [*about_exif, *about_profile, *about_resources]
  if named(_APP1, _MORE_XMP):
    notes.append('its second part of XMP data is left out')
  if packet and b'hdrgm:' in packet:
    notes.append('its gain map for displays of high dynamic range is left out')
  return Metadata(
    icc_profile=profile,
    exif=block,
    xmp=packet,
    photoshop=resources,
    comment=b'\n'.join(s.content for s in segments if s.marker == _COMMENT) or None,
    dpi=_density(named(_APP0, _JFIF)),
  )


def _profile(parts):
  """Put together from numbered parts; something that is no profile if one is missing."""
  numbered = sorted((part[0], part[1], part[2:]) for part in parts if len(part) > 2)
  complete = [(number, total) for number, total, _ in numbered] == [
    (number + 1, len(parts)) for number in range(len(parts))
  ]
  return b''.join(part for _, _, part in numbered) if complete else b'incomplete'


def _density(headers):
  if not headers or len(headers[0]) < 7:
    return None
  unit, x, y = struct.unpack_from('>BHH', headers[0], 2)
  scale = {1: 1.0, 2: 2.54}.get(unit)
  return (x * scale, y * scale) if scale and x and y else None


def _pack(marker, content):
  return struct.pack('>BBH', 0xFF, marker, len(content) + 2) + content


def encode(photograph: Photograph) -> tuple[Sequence[bytes | memoryview], tuple[str, ...]]:
  """The parts of a JPEG file of quality 95 with colour at full resolution, of uint8 pixels.

  Returns:
    Parts, to be written one after the other, and notes.
  """
  pixels, metadata = photograph.pixels, photograph.metadata
  buffer = io.BytesIO()
  dpi = tuple(min(max(round(x), 1), 65535) for x in metadata.dpi) if metadata.dpi else (0, 0)
  image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
  image.save(buffer, 'JPEG', quality=95, subsampling=0, dpi=dpi)
  stream = buffer.getbuffer()
  profile, notes = icc.checked(metadata.icc_profile, pixels.shape[2])
  contents = [
    ('EXIF data', _APP1, exif.PREFIX, metadata.exif),
    ('XMP data', _APP1, _XMP, metadata.xmp),
    ('Photoshop data', _APP13, _PHOTOSHOP, metadata.photoshop),
    ('comment', _COMMENT, b'', metadata.comment),
  ]
  packed = []
  for name, marker, prefix, content in contents:
    if content and len(prefix + content) > _MOST_CONTENT_BYTES:
      notes += (f'its {name} left out: JPEG holds at most 64 KB of it',)
    elif content:
      packed.append(_pack(marker, prefix + content))
  packed += _packed_profile(profile) if profile else []
  # They stand behind JFIF's header.
  head = 2 + 2 + 16
  return (bytes(stream[:head]), *packed, stream[head:]), notes + left_out(metadata, ('png_chunks',), 'JPEG')


def _packed_profile(profile):
  step = _MOST_CONTENT_BYTES - len(_ICC) - 2
  parts = [profile[at : at + step] for at in range(0, len(profile), step)]
  return [_pack(_APP2, _ICC + bytes([i + 1, len(parts)]) + part) for i, part in enumerate(parts)]
