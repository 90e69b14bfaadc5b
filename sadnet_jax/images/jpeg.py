"""JPEG files before libjpeg decodes them: where the first image ends, what is refused, and metadata."""

from collections.abc import Iterable
import re

from sadnet_jax.images import metadata as blocks
from sadnet_jax.images.metadata import Metadata
from sadnet_jax.images.photograph import DecodingError

_MAX_PARTS = 200
# Neither a byte of pixels nor a mark between them.
_MARKER = re.compile(rb'\xff[^\x00\x01\xff\xd0-\xd8]')
_END = b'\xff\xd9'


def end_of_first(data) -> int:
  """Where the first image of a file ends; the end of the file if that is not marked."""
  at = 2
  while found := _MARKER.search(data, at):
    at = found.end()
    if found.group() == _END:
      return at
    # Every other marker has the length of its content.
    at += int.from_bytes(data[at : at + 2], 'big')
  return len(data)


def _count(data, pattern, end):
  count, at = 0, data.find(pattern, 0, end)
  while at >= 0:
    count, at = count + 1, data.find(pattern, at + 2, end)
  return count


def check_parts(data, end: int) -> None:
  """Raises DecodingError for an image of so many parts that decoding it would take hours.

  Real files have about ten scans, each of which decodes the whole image; and one EXIF block or a few, which
  Pillow joins one by one.

  Args:
    data: The bytes of the file.
    end: Where its first image ends.
  """
  for name, start in (('scans', b'\xff\xda'), ('EXIF blocks', blocks.EXIF_PREFIX)):
    if (count := _count(data, start, end)) > _MAX_PARTS:
      raise DecodingError(f'it has {count} {name}, more than {_MAX_PARTS}')


def has_video(data, end: int) -> bool:
  """Whether a video follows the first image, as in phones' motion photos: it begins with this box."""
  return bool(data.find(b'ftyp', end) >= 0)


def read_metadata(
  segments: Iterable[tuple[str, bytes]], channels: int, dpi: tuple[float, float] | None
) -> tuple[Metadata, tuple[str, ...]]:
  """All metadata, and notes for the user.

  Args:
    segments: Marker and content of each, as Pillow's ``applist``.
    channels: 1 or 3.
    dpi: Pixels per inch, as Pillow finds them.
  """

  def named(marker, prefix):
    return [
      content.removeprefix(prefix)
      for kind, content in segments
      if kind == marker and content.startswith(prefix)
    ]

  exif, exif_notes = blocks.checked_exif(next(iter(named('APP1', blocks.EXIF_PREFIX)), None))
  profile, profile_notes = blocks.checked_profile(_joined_profile(named('APP2', b'ICC_PROFILE\0')), channels)
  resources, photoshop_notes = blocks.checked_photoshop(b''.join(named('APP13', blocks.PHOTOSHOP_PREFIX)))
  xmp = next(iter(named('APP1', blocks.XMP_PREFIX)), None)
  notes = [*exif_notes, *profile_notes, *photoshop_notes]
  if named('APP1', b'http://ns.adobe.com/xmp/extension/\0'):
    notes.append('the second part of its XMP data was ignored')
  if any(b'c2pa' in content for content in named('APP11', b'JP')):
    notes.append(blocks.NO_CREDENTIALS)
  if xmp and b'hdrgm:' in xmp:
    notes.append('its gain map for displays of high dynamic range was ignored')
  elif named('APP2', b'MPF\0'):
    notes.append('its further images were ignored')
  comment = b'\n'.join(named('COM', b'')) or None
  if not named('APP0', b'JFIF\0'):
    # Pillow takes it from the EXIF data then, where it stays anyway.
    dpi = None
  dpi = (float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None
  xmp = blocks.xmp_without_further_images(xmp)
  return Metadata(profile, exif, xmp, resources, comment, dpi), tuple(notes)


def _joined_profile(parts):
  """A profile from its numbered parts; if one is missing, bytes that are no profile."""
  numbered = sorted((part[0], part[1], part[2:]) for part in parts if len(part) > 2)
  complete = [part[:2] for part in numbered] == [(number + 1, len(parts)) for number in range(len(parts))]
  return b''.join(part for *_, part in numbered) if complete else b'incomplete'
