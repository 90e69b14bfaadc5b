"""The results of an evaluation as one self-contained HTML file, including pictures."""

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

# Only the middle of larger pictures is shown: whole photographs would make the page too large to open,
# and downscaled ones would not show the noise.
MAX_SIDE_PX = 1024


@dataclasses.dataclass(frozen=True)
class Card:
  """An image on the page.

  Attributes:
    name: As in the results.
    psnr: Of the denoised image in dB, or None without ground truth.
    height: Height of the whole image.
    width: Width of the whole image.
    box: The part that is shown, (top, left, height, width) in pixels.
    noisy: That part as a lossless WebP file.
    denoised: Likewise.
    clean: Likewise, or None without ground truth.
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

  Images are added one at a time, in any order; only those to be shown are kept, encoded. Without PSNR the
  first ones are shown.
  """

  def __init__(self, worst: int, best: int) -> None:
    """Starts without images.

    Args:
      worst: Largest number of images of lowest PSNR.
      best: Largest number of images of highest PSNR.

    Raises:
      ValueError: A number is negative.
    """
    if worst < 0 or best < 0:
      raise ValueError(f'worst and best must be at least 0, not {worst} and {best}')
    self._worst, self._best = worst, best
    self._cards: list[Card] = []
    self._rated: bool | None = None
    self._count = 0

  def add(
    self, name: str, psnr: float | None, noisy: np.ndarray, denoised: np.ndarray, clean: np.ndarray | None
  ) -> None:
    """Adds an image, and drops one that is no longer among those to be shown.

    Args:
      name: As in the results.
      psnr: Of the denoised image in dB, or None if unknown.
      noisy: uint8 [H, W, C] with C = 1 or 3.
      denoised: The same shape.
      clean: The same shape, or None without ground truth.

    Raises:
      ValueError: The images are not uint8 or differ in shape, or only some images have a PSNR.
    """
    _check_images(name, noisy, denoised, clean)
    if self._rated not in (None, psnr is not None):
      raise ValueError(f'{name}: either all images of a showcase must have a PSNR, or none')
    self._rated = psnr is not None
    self._count += 1
    capacity = self._worst + self._best
    place = bisect.bisect_right([_rank(card.psnr) for card in self._cards], _rank(psnr))
    # The cards are sorted; if there is one too many, it is the one after the worst and before the best.
    # Without a PSNR all ranks are equal, and a new image comes last.
    surplus = capacity if psnr is None else self._worst
    if len(self._cards) == capacity and place == surplus:
      return
    self._cards.insert(place, _make_card(name, psnr, noisy, denoised, clean))
    if len(self._cards) > capacity:
      del self._cards[surplus]

  @property
  def count(self) -> int:
    """Number of images that were added."""
    return self._count

  @property
  def cards(self) -> list[tuple[str, Card]]:
    """The images to show: ('worst', card) from the lowest PSNR on, then ('best', card).

    If all images are shown, they are divided in the proportion of the two numbers. Without PSNR every label
    is 'first'.
    """
    if self._rated is False:
      return [('first', card) for card in self._cards]
    capacity = self._worst + self._best
    worst = math.ceil(len(self._cards) * self._worst / capacity) if capacity else 0
    return [('worst' if i < worst else 'best', card) for i, card in enumerate(self._cards)]


def _rank(psnr):
  """Returns a sort key; NaN is worse than any PSNR."""
  return 0.0 if psnr is None else -math.inf if math.isnan(psnr) else psnr


def _check_images(name, noisy, denoised, clean):
  images = {'noisy': noisy, 'denoised': denoised} | ({} if clean is None else {'clean': clean})
  for role, image in images.items():
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
      raise ValueError(
        f'{name}, {role}: must be uint8 [H, W, C] with C = 1 or 3, not {image.dtype} {image.shape}'
      )
    if image.shape != noisy.shape:
      raise ValueError(f'{name}, {role}: must have the shape {noisy.shape} of noisy, not {image.shape}')


def _make_card(name, psnr, noisy, denoised, clean):
  height, width = noisy.shape[:2]
  shown_height, shown_width = min(height, MAX_SIDE_PX), min(width, MAX_SIDE_PX)
  top, left = (height - shown_height) // 2, (width - shown_width) // 2
  noisy, denoised, clean = (
    None if image is None else _to_webp(image[top : top + shown_height, left : left + shown_width])
    for image in (noisy, denoised, clean)
  )
  return Card(name, psnr, height, width, (top, left, shown_height, shown_width), noisy, denoised, clean)


def _to_webp(image):
  """Encodes losslessly: lossy WebP would halve the resolution of colour and remove 30% of the noise."""
  pixels = np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)
  file = io.BytesIO()
  # For lossless files the quality is the effort: more takes twice as long and saves less than 1%.
  Image.fromarray(pixels).save(file, 'WEBP', lossless=True, quality=20)
  return file.getvalue()


def write_page(
  path: str | Path, content: Mapping[str, Any], showcases: Sequence[Showcase], *, budget_mb: float = 40
) -> int:
  """Writes the page, completely or not at all; replaces an existing one.

  Args:
    path: The HTML file; its folder is created.
    content: The content of ``results.json``.
    showcases: One for each of ``content['results']``, in their order, optionally followed by one for each of
      ``content['submissions']``. Empty for a page without pictures.
    budget_mb: Largest size of the page in millions of bytes. If it would be larger, all showcases are limited
      to the same number of images, dropping the least extreme. The worst and the best image of each are
      always kept, even if they exceed the budget.

  Returns:
    The size of the page in bytes.

  Raises:
    ValueError: The number of showcases or the budget is not valid, or the file cannot be written.
  """
  results, submissions = len(content['results']), len(content.get('submissions', ()))
  if len(showcases) not in (0, results, results + submissions):
    raise ValueError(
      f'there must be no showcase, one per result ({results}), or one per result and submission '
      f'({results + submissions}), not {len(showcases)}'
    )
  if not budget_mb >= 0:
    raise ValueError(f'budget_mb must be at least 0, not {budget_mb}')
  blob, pictures = _within_budget(content, showcases, budget_mb)
  blob['pictures'] = [f'{_WEBP_URL}{base64.b64encode(picture).decode()}' for picture in pictures]
  page = _render(blob)
  path = Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
      temporary.write_bytes(page)
  except OSError as error:
    raise ValueError(f'{path}: cannot write the page ({error.strerror}); choose another folder') from error
  return len(page)


_WEBP_URL = 'data:image/webp;base64,'


def _within_budget(content, showcases, budget_mb):
  """Returns the data of the page, with the most images per showcase that fit, and the pictures."""
  all_cards = [showcase.cards for showcase in showcases]

  def blob_and_pictures(limit):
    shown = [_most_extreme(cards, limit) for cards in all_cards]
    pictures: dict[bytes, int] = {}
    blob = {
      **content,
      'showcases': [
        {'images': showcase.count, 'cards': [_describe(group, card, pictures) for group, card in cards]}
        for showcase, cards in zip(showcases, shown, strict=True)
      ],
      'cut_to_mb': None if shown == all_cards else budget_mb,
      'pictures': [],
    }
    return blob, list(pictures)

  def size_mb(limit):
    blob, pictures = blob_and_pictures(limit)
    # base64 has four characters for three bytes; JSON adds quotation marks, a comma and a space.
    return (len(_render(blob)) + sum(len(_WEBP_URL) + -(-len(p) // 3) * 4 + 4 for p in pictures)) / 1e6

  limits = range(max(map(len, all_cards), default=0) + 1)
  return blob_and_pictures(max(bisect.bisect_right(limits, budget_mb, key=size_mb) - 1, 0))


def _most_extreme(cards, limit):
  """Drops cards from the middle, but never the first or the last."""
  worst = [card for card in cards if card[0] != 'best']
  best = [card for card in cards if card[0] == 'best']
  while len(worst) + len(best) > limit and max(len(worst), len(best)) > 1:
    if len(worst) > len(best):
      worst.pop()
    else:
      best.pop(0)
  return worst + best


def _describe(group, card, pictures):
  """Returns a card as JSON, with the numbers of its pictures; equal pictures of several results share one."""
  numbers = {
    role: None if picture is None else pictures.setdefault(picture, len(pictures))
    for role, picture in (('noisy', card.noisy), ('denoised', card.denoised), ('clean', card.clean))
  }
  return {
    'group': group,
    'name': card.name,
    'height': card.height,
    'width': card.width,
    'box': card.box,
    **numbers,
  }


# The names in page.html, and the files that replace them.
PARTS = {
  'style': 'page.css',
  'elements': 'elements.js',
  'viewer': 'viewer.js',
  'tables': 'tables.js',
  'page': 'page.js',
}


def _render(blob):
  """Returns the page as UTF-8. Names in the inserted text are not replaced again."""
  folder = Path(__file__).parent
  parts = {name: (folder / file).read_text(encoding='utf-8').rstrip() for name, file in PARTS.items()}
  template = string.Template((folder / 'page.html').read_text(encoding='utf-8'))
  return template.substitute(parts, content=_to_script(blob)).encode()


def _to_script(value):
  """Returns JSON that is safe inside a script element, whatever its strings contain."""
  text = json.dumps(_replace_non_finite(value), allow_nan=False)
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def _replace_non_finite(value):
  """Replaces NaN and infinity, which JSON lacks, by strings that JavaScript's Number() understands."""
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  if isinstance(value, Mapping):
    return {key: _replace_non_finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_replace_non_finite(item) for item in value]
  return value
