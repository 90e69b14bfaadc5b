"""Image resources of Adobe Photoshop: where JPEG and TIFF files keep IPTC captions."""

import struct

_SIGNATURE = b'8BIM'
_THUMBNAILS = (1033, 1036)


def checked(resources: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
  """The resources without the thumbnails of the file as it was; None, and a note, if they are damaged."""
  if not resources:
    return None, ()
  kept, at = [], 0
  # What follows the last one is padding.
  while resources[at : at + 4] == _SIGNATURE:
    try:
      number, name_bytes = struct.unpack_from('>HB', resources, at + 4)
      # Names, with their length, and contents are padded to even lengths.
      size_at = at + 6 + (1 + name_bytes + 1) // 2 * 2
      (size,) = struct.unpack_from('>I', resources, size_at)
    except struct.error:
      break
    end = size_at + 4 + size
    if end > len(resources):
      break
    end += size % 2
    if number not in _THUMBNAILS:
      kept.append(resources[at:end].ljust(end - at, b'\0'))
    at = end
  else:
    if not resources[at:].strip(b'\0'):
      return b''.join(kept) or None, ()
  return None, ('its Photoshop data are damaged and left out',)
