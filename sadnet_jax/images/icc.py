"""Colour profiles: which may go with which pixels."""

_HEADER_BYTES = 128
_SPACES = {1: b'GRAY', 3: b'RGB '}


def checked(profile: bytes | None, channels: int) -> tuple[bytes | None, tuple[str, ...]]:
  """The profile if it is one for pixels of so many channels.

  Args:
    profile: ICC profile, or None.
    channels: 1 or 3.

  Returns:
    The profile or None, and a note if it is left out.
  """
  if not profile:
    return None, ()
  if (
    len(profile) < _HEADER_BYTES
    or profile[36:40] != b'acsp'
    or int.from_bytes(profile[:4], 'big') > len(profile)
  ):
    return None, ('its colour profile is damaged and left out',)
  if profile[16:20] != _SPACES[channels]:
    space = profile[16:20].decode('latin-1').strip()
    name = space if space.isprintable() else 'unknown'
    pixels = {1: 'grey', 3: 'RGB'}[channels]
    return None, (f'its colour profile is for {name} and left out: the pixels are {pixels}',)
  return profile, ()
