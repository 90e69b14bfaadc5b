"""Photographs from files: what they are is told by their first bytes, never by their ending."""

from collections.abc import Callable, Mapping
from pathlib import Path
import warnings

from sadnet_jax.images.formats import bmp, jpeg, png, tiff, webp
from sadnet_jax.images.photograph import MAX_PIXELS, Photograph

_WANT = 'want a PNG, JPEG, TIFF, WebP or BMP file'
_HEAD_BYTES = 32
# 16-bit colour and transparency, and as much again of metadata.
_MOST_FILE_BYTES = 16 * MAX_PIXELS
_READERS: Mapping[str, Callable[[bytes], Photograph]] = {
  'PNG': png.read,
  'JPEG': jpeg.read,
  'TIFF': tiff.read,
  'WebP': webp.read,
  'BMP': bmp.read,
}
_TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_RAW = 'develop it, for instance to 16-bit TIFF'
_CONVERT = 'convert it'
# Starts of files that are no photographs here, each with a name and what to do.
_OTHERS = (
  (b'GIF87a', 'a GIF file', _CONVERT),
  (b'GIF89a', 'a GIF file', _CONVERT),
  (b'8BPS', 'a Photoshop document', 'export it'),
  (b'gimp xcf', 'a GIMP document', 'export it'),
  (b'\0\0\0\x0cjP  ', 'a JPEG 2000 file', _CONVERT),
  (b'\xff\x4f\xff\x51', 'a JPEG 2000 file', _CONVERT),
  (b'\0\0\0\x0cJXL ', 'a JPEG XL file', _CONVERT),
  (b'\xff\x0a', 'a JPEG XL file', _CONVERT),
  (b'\x76\x2f\x31\x01', 'an OpenEXR file of high dynamic range', 'convert it to 16-bit RGB'),
  (b'#?RADIANCE', 'a Radiance file of high dynamic range', 'convert it to 16-bit RGB'),
  (b'#?RGBE', 'a Radiance file of high dynamic range', 'convert it to 16-bit RGB'),
  (b'FUJIFILMCCD-RAW', 'a camera raw file', _RAW),
  (b'IIRO', 'a camera raw file', _RAW),
  (b'IIRS', 'a camera raw file', _RAW),
  (b'MMOR', 'a camera raw file', _RAW),
  (b'IIU\0', 'a camera raw file', _RAW),
  (b'%PDF', 'a PDF file', 'export its pictures'),
  (b'<svg', 'an SVG drawing', 'render it'),
  (b'\0\0\1\0', 'an icon', _CONVERT),
  (b'qoif', 'a QOI file', _CONVERT),
  (b'\x8aMNG', 'an MNG animation', 'save a frame'),
)
# Brands of the container that films, HEIC and others share.
_BRANDS = {
  b'heic': 'a HEIC file',
  b'heix': 'a HEIC file',
  b'hevc': 'a HEIC file',
  b'mif1': 'a HEIC file',
  b'msf1': 'a HEIC file',
  b'avif': 'an AVIF file',
  b'avis': 'an AVIF file',
}


def read_photograph(path: str | Path) -> Photograph:
  """Reads a photograph with all that came with it.

  The pixels are as stored: 8 or 16 bits, not turned. One and two bits become eight, palettes
  RGB, a colour named transparent becomes alpha. Of a JPEG file with several pictures (MPO) the
  first is taken. Everything is refused that would have to be guessed: CMYK, Lab, floating
  point, several pages or frames, pixels that are missing.

  Args:
    path: A PNG, JPEG, TIFF, WebP or BMP file, whatever its ending.

  Returns:
    The photograph; its notes tell what of the file is left out.

  Raises:
    ValueError: No such file, no permission, another format, a kind of picture that is
      not for a denoiser of photographs, a damaged or incomplete file, or one too large.
  """
  shown = shown_path(path)
  try:
    data, form = _load(Path(path), shown)
  except OSError as error:
    raise ValueError(f'{shown}: got no readable file ({error.strerror}), {_WANT}') from error
  try:
    with warnings.catch_warnings():
      # Whatever is of interest is in the notes.
      warnings.simplefilter('ignore')
      return _READERS[form](data)
  except ValueError as error:
    raise ValueError(f'{shown}: {_about(error, form)}') from error
  except MemoryError as error:
    raise ValueError(f'{shown}: got a picture too large for the memory, want a smaller one') from error
  # Decoders of damaged files raise whatever they come across.
  except Exception as error:
    raise ValueError(f'{shown}: {_damaged(error, form)}') from error


def shown_path(path: str | Path) -> str:
  """A path for messages: of one line, and text that can be printed."""
  text = str(path)
  return text if text.isprintable() else repr(text)


def _load(path, shown):
  """The bytes of a file, and the name of their format."""
  if path.is_dir():
    raise ValueError(f'{shown}: got a folder, {_WANT}')
  if path.exists() and not path.is_file():
    raise ValueError(f'{shown}: got no regular file, {_WANT}')
  with path.open('rb') as file:
    head = file.read(_HEAD_BYTES)
    form = _form(head, shown)
    size = path.stat().st_size
    if size > _MOST_FILE_BYTES:
      raise ValueError(f'{shown}: got a file of {size:,} bytes, want at most {_MOST_FILE_BYTES:,}')
    return head + file.read(), form


def _form(head, shown):
  """The name of the format that a file begins as."""
  if not head:
    raise ValueError(f'{shown}: got an empty file, {_WANT}')
  if head.startswith(png.SIGNATURE):
    return 'PNG'
  if head.startswith(jpeg.SIGNATURE):
    return 'JPEG'
  if head.startswith(_TIFF_STARTS):
    if head[8:10] == b'CR':
      raise ValueError(f'{shown}: got a camera raw file, {_WANT} ({_RAW})')
    return 'TIFF'
  if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
    return 'WebP'
  if head[:2] == b'BM':
    return 'BMP'
  for start, name, advice in _OTHERS:
    if head.startswith(start):
      raise ValueError(f'{shown}: got {name}, {_WANT} ({advice})')
  if head[4:8] == b'ftyp':
    brand = head[8:12]
    if brand == b'crx ':
      raise ValueError(f'{shown}: got a camera raw file, {_WANT} ({_RAW})')
    name = _BRANDS.get(brand, 'a film')
    raise ValueError(f'{shown}: got {name}, {_WANT} ({_CONVERT})')
  raise ValueError(f'{shown}: got a file of unknown format, {_WANT}')


def _about(error, form):
  text = str(error)
  # Ours say what was got; those of decoders are of any form.
  return text if text.startswith('got ') else _damaged(error, form)


def _damaged(error, form):
  text = ' '.join(''.join(c if c.isprintable() else ' ' for c in str(error)).split())[:150]
  return f'got a damaged {form} file ({text or type(error).__name__}), want a complete one'
