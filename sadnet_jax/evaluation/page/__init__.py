"""The results of an evaluation as one HTML file that needs nothing else, pictures included."""

import base64
import bisect
from collections.abc import Mapping, Sequence
import dataclasses
import io
import json
import math
from pathlib import Path
import string
from typing import Any

import numpy as np
from PIL import Image

from sadnet_jax.files import replacing

# Larger pictures are shown by their middle: a page of whole photographs would be too large to open,
# and one made smaller would not show the noise.
MAX_SIDE_PX = 1024
# What stands in page.html under these names.
_PARTS = {
  'style': 'page.css',
  'elements': 'page_elements.js',
  'viewer': 'page_viewer.js',
  'tables': 'page_tables.js',
  'page': 'page.js',
}
_WEBP = 'data:image/webp;base64,'


@dataclasses.dataclass(frozen=True)
class Card:
  """An image that the page shows.

  Attributes:
    name: As in the results.
    psnr: Of the denoised image in dB, or None where there is no ground truth.
    height: Of the image, in pixels.
    width: The same.
    box: The part that is shown, (top, left, height, width) in pixels.
    noisy: WebP file of that part, lossless, as are the others.
    denoised: WebP file.
    clean: WebP file, or None where there is no ground truth.
  """

  name: str
  psnr: float | None
  height: int
  width: int
  box: tuple[int, int, int, int]
  noisy: bytes
  denoised: bytes
  clean: bytes | None


class Showcase:
  """The images of one result that the page shows: those of lowest and of highest PSNR.

  Images are given one at a time, in any order, and only those shown are kept, encoded.
  Where there is no PSNR the first ones are shown.
  """

  def __init__(self, worst: int, best: int) -> None:
    """Starts with no image.

    Args:
      worst: Most images of lowest PSNR.
      best: Most images of highest PSNR.

    Raises:
      ValueError: A negative number.
    """
    if worst < 0 or best < 0:
      raise ValueError(f'worst and best: got {worst} and {best}, want numbers of images, 0 or more')
    self._worst, self._best = worst, best
    self._cards: list[Card] = []
    self._rated: bool | None = None
    self._count = 0

  def add(
    self, name: str, psnr: float | None, noisy: np.ndarray, denoised: np.ndarray, clean: np.ndarray | None
  ) -> None:
    """Takes an image, and lets go of one that is no longer among those shown.

    Args:
      name: As in the results.
      psnr: Of the denoised image in dB, or None where it is not known.
      noisy: uint8 [H, W, C], C 1 or 3.
      denoised: The same shape.
      clean: The same shape, or None without ground truth.

    Raises:
      ValueError: Not uint8, not of one shape, or some images with and some without a PSNR.
    """
    _check(name, noisy, denoised, clean)
    if self._rated not in (None, psnr is not None):
      raise ValueError(
        f'{name}: got an image {"with" if self._rated is False else "without"} a PSNR after others '
        f'{"without" if self._rated is False else "with"} one, want all with or all without'
      )
    self._rated = psnr is not None
    self._count += 1
    room = self._worst + self._best
    place = bisect.bisect_right([_rank(card.psnr) for card in self._cards], _rank(psnr))
    # Of the cards in order, the one too many is behind the worst and before the best. Without a PSNR
    # all rank equally: a new one comes last.
    surplus = room if psnr is None else self._worst
    if len(self._cards) == room and place == surplus:
      return
    self._cards.insert(place, _encode(name, psnr, noisy, denoised, clean))
    if len(self._cards) > room:
      del self._cards[surplus]

  @property
  def count(self) -> int:
    """How many images it was given."""
    return self._count

  @property
  def cards(self) -> list[tuple[str, Card]]:
    """What is shown, in order: ('worst', card) from the lowest PSNR on, then ('best', card).

    Where all images are shown, they are divided as the numbers asked for are. Without
    PSNR every place is 'first'.
    """
    if self._rated is False:
      return [('first', card) for card in self._cards]
    room = self._worst + self._best
    worst = math.ceil(len(self._cards) * self._worst / room) if room else 0
    return [('worst' if i < worst else 'best', card) for i, card in enumerate(self._cards)]


def write_page(
  path: str | Path, content: Mapping[str, Any], showcases: Sequence[Showcase], *, budget_mb: float = 40
) -> int:
  """Writes the page, in place of one that is there; never half of it.

  Args:
    path: The HTML file; its folder is made.
    content: What ``results.json`` holds.
    showcases: One for each of ``content['results']``, in their order; after them there
      may be one for each of ``content['submissions']``. Empty for a page without pictures.
    budget_mb: What the page may take, in millions of bytes. Where it would take more, every showcase
      is limited to the same number of images, the least extreme left out. The worst and the best
      one of each are always there, whatever they take.

  Returns:
    What the page takes, in bytes.

  Raises:
    ValueError: Another number of showcases, a budget that is none, or the file cannot be written.
  """
  results, submissions = len(content['results']), len(content.get('submissions', ()))
  if len(showcases) not in (0, results, results + submissions):
    raise ValueError(
      f'showcases: got {len(showcases)} of them, want {results}, one a result'
      + (f', or {results + submissions}, one a result and one a submission' if submissions else '')
      + ', or none'
    )
  if not budget_mb >= 0:
    raise ValueError(f'budget_mb: got {budget_mb}, want millions of bytes, 0 or more')
  blob, pictures = _within_budget(content, showcases, budget_mb)
  blob['pictures'] = [f'{_WEBP}{base64.b64encode(picture).decode()}' for picture in pictures]
  page = _render(blob)
  path = Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
      temporary.write_bytes(page)
  except OSError as error:
    raise ValueError(
      f'{path}: got a file that cannot be written ({error.strerror}), want a place for the page'
    ) from error
  return len(page)


def _rank(psnr):
  """Sorts; an image whose PSNR is no number is the worst there is."""
  return 0.0 if psnr is None else -math.inf if math.isnan(psnr) else psnr


def _check(name, noisy, denoised, clean):
  images = {'noisy': noisy, 'denoised': denoised} | ({} if clean is None else {'clean': clean})
  for role, image in images.items():
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
      raise ValueError(
        f'{name}, {role}: got {image.dtype} of shape {image.shape}, want uint8 [H, W, C] with C 1 or 3'
      )
    if image.shape != noisy.shape:
      raise ValueError(f'{name}, {role}: got shape {image.shape}, want that of noisy, {noisy.shape}')


def _encode(name, psnr, noisy, denoised, clean):
  height, width = noisy.shape[:2]
  shown_height, shown_width = min(height, MAX_SIDE_PX), min(width, MAX_SIDE_PX)
  top, left = (height - shown_height) // 2, (width - shown_width) // 2
  noisy, denoised, clean = (
    None if image is None else _to_webp(image[top : top + shown_height, left : left + shown_width])
    for image in (noisy, denoised, clean)
  )
  return Card(name, psnr, height, width, (top, left, shown_height, shown_width), noisy, denoised, clean)


def _to_webp(image):
  """Lossless, the noisy image too: lossy WebP halves the resolution of colour, and takes 30% of its noise."""
  pixels = np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)
  file = io.BytesIO()
  # Here quality is effort: more of it takes twice as long and saves less than 1%.
  Image.fromarray(pixels).save(file, 'WEBP', lossless=True, quality=20)
  return file.getvalue()


def _within_budget(content, showcases, budget_mb):
  """The largest blob, of those with 0, 1, 2, ... images of each showcase, that the budget has room for."""
  all_cards = [showcase.cards for showcase in showcases]

  def blob_and_pictures(limit):
    shown = [_most_extreme(cards, limit) for cards in all_cards]
    pictures: dict[bytes, int] = {}
    blob = {
      **content,
      'showcases': [
        {'images': showcase.count, 'cards': [_describe(place, card, pictures) for place, card in cards]}
        for showcase, cards in zip(showcases, shown, strict=True)
      ],
      'cut_to_mb': None if shown == all_cards else budget_mb,
      'pictures': [],
    }
    return blob, list(pictures)

  def size_mb(limit):
    blob, pictures = blob_and_pictures(limit)
    # Four characters for three bytes, quotation marks, a comma and a space.
    return (len(_render(blob)) + sum(len(_WEBP) + -(-len(p) // 3) * 4 + 4 for p in pictures)) / 1e6

  limits = range(max(map(len, all_cards), default=0) + 1)
  return blob_and_pictures(max(bisect.bisect_right(limits, budget_mb, key=size_mb) - 1, 0))


def _most_extreme(cards, limit):
  """Cards without those in the middle; the first and the last of them are never among these."""
  worst = [card for card in cards if card[0] != 'best']
  best = [card for card in cards if card[0] == 'best']
  while len(worst) + len(best) > limit and max(len(worst), len(best)) > 1:
    if len(worst) > len(best):
      worst.pop()
    else:
      best.pop(0)
  return worst + best


def _describe(place, card, pictures):
  """A card for the page, its pictures by their numbers: equal ones of several results are there once."""
  numbers = {
    role: None if picture is None else pictures.setdefault(picture, len(pictures))
    for role, picture in (('noisy', card.noisy), ('denoised', card.denoised), ('clean', card.clean))
  }
  return {
    'place': place,
    'name': card.name,
    'height': card.height,
    'width': card.width,
    'box': card.box,
    **numbers,
  }


def _render(blob):
  """The page as UTF-8. What is put into page.html is not searched for names to replace."""
  folder = Path(__file__).parent
  parts = {name: (folder / file).read_text(encoding='utf-8').rstrip() for name, file in _PARTS.items()}
  template = string.Template((folder / 'page.html').read_text(encoding='utf-8'))
  return template.substitute(parts, content=_to_script(blob)).encode()


def _to_script(value):
  """JSON that is safe inside a script element whatever the strings in it are."""
  text = json.dumps(_replace_non_finite(value), allow_nan=False)
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def _replace_non_finite(value):
  """Strings that JavaScript's Number reads, for the numbers that JSON has not."""
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  if isinstance(value, Mapping):
    return {key: _replace_non_finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_replace_non_finite(item) for item in value]
  return value
