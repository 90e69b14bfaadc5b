"""TIFF: written, deflated, with differences of neighbours."""

from collections.abc import Sequence
import itertools
import struct
import zlib

import numpy as np

from sadnet_jax.images import icc
from sadnet_jax.images import metadata as exif
from sadnet_jax.images.directories import (
  BYTE,
  RATIONAL,
  UNDEFINED,
  Directory,
  Entry,
  integer_entry,
  write_directory,
)
from sadnet_jax.images.formats.tiff import ICC, PHOTOSHOP, STRUCTURE, XMP
from sadnet_jax.images.photograph import Metadata, Photograph, left_out

_STRIP_BYTES = 2**20
_MOST_FILE_BYTES = 2**32 - 2**20


def encode(photograph: Photograph) -> tuple[Sequence[bytes | memoryview], tuple[str, ...]]:
  """The parts of a TIFF file, lossless, that holds all of a photograph but PNG's own and a comment.

  It has the byte order of the EXIF data, whose values then stay as they are.

  Returns:
    Parts, to be written one after the other, and notes.

  Raises:
    ValueError: It would be larger than 4 GiB.
  """
  metadata = photograph.metadata
  parsed = exif.parse(metadata.exif) if metadata.exif else None
  order = parsed[0].order if parsed else '<'
  rows, strips = _strips(photograph, order)
  lengths = [len(strip) for strip in strips]
  *offsets, end = itertools.accumulate(lengths, initial=8)
  if end > _MOST_FILE_BYTES:
    raise ValueError('got a picture of more than 4 GiB as TIFF, want a smaller one (write PNG)')
  padding = b'\0' * (end % 2)
  tags = parsed[1] if parsed else Directory({}, {})
  entries = {tag: entry for tag, entry in tags.entries.items() if tag not in STRUCTURE}
  structure = _structure(photograph, order, rows, offsets, lengths)
  about, notes = _metadata_entries(metadata, photograph.pixels.shape[2], order)
  # The EXIF data's own resolution comes first.
  directory = Directory({**about, **entries, **structure}, tags.children)
  if metadata.exif and parsed is None:
    notes += ('its EXIF data are damaged and left out',)
  place = end + len(padding)
  header = {'<': b'II', '>': b'MM'}[order] + struct.pack(order + 'HI', 42, place)
  lost = left_out(metadata, ('comment', 'png_chunks'), 'TIFF')
  return (header, *strips, padding, write_directory(directory, order, place)), notes + lost


def _strips(photograph, order):
  """Rows of a strip, and the strips deflated."""
  height, width, channels = photograph.pixels.shape
  samples = channels + (photograph.alpha is not None)
  kind = photograph.pixels.dtype
  rows = max(1, _STRIP_BYTES // (width * samples * kind.itemsize))
  strips = []
  for top in range(0, height, rows):
    part = photograph.pixels[top : top + rows]
    if photograph.alpha is not None:
      part = np.dstack([part, photograph.alpha[top : top + rows]])
    # Differences wrap around; the first column stays.
    differences = np.diff(part, axis=1, prepend=kind.type(0))
    strips.append(zlib.compress(differences.astype(kind.newbyteorder(order)).tobytes()))
  return rows, strips


def _structure(photograph, order, rows, offsets, lengths):
  height, width, channels = photograph.pixels.shape
  samples = channels + (photograph.alpha is not None)
  numbers = {
    256: [width],
    257: [height],
    258: [8 * photograph.pixels.dtype.itemsize] * samples,
    259: [8],
    262: [2 if channels == 3 else 1],
    273: offsets,
    277: [samples],
    278: [min(rows, height)],
    279: lengths,
    284: [1],
    317: [2],
  }
  if photograph.alpha is not None:
    # Transparency that the colours are not multiplied by.
    numbers[338] = [2]
  return {tag: integer_entry(values, order) for tag, values in numbers.items()}


def _metadata_entries(metadata: Metadata, channels: int, order: str):
  profile, notes = icc.checked(metadata.icc_profile, channels)
  contents = {
    XMP: (BYTE, metadata.xmp),
    PHOTOSHOP: (UNDEFINED, metadata.photoshop),
    ICC: (UNDEFINED, profile),
  }
  entries = {tag: Entry(kind, len(data), data) for tag, (kind, data) in contents.items() if data}
  if metadata.dpi:
    entries[296] = integer_entry([2], order)
    for tag, dpi in zip((282, 283), metadata.dpi, strict=True):
      entries[tag] = Entry(RATIONAL, 1, struct.pack(order + 'II', min(round(dpi * 1000), 2**32 - 1), 1000))
  return entries, notes
