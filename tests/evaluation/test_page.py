"""The file of the page: which images it contains, and that no name is taken for markup."""

import base64
from html.parser import HTMLParser
import io
import itertools
import json
import math
from pathlib import Path
import re

import numpy as np
from PIL import Image
import pytest

from sadnet_jax.evaluation import page
from sadnet_jax.evaluation.page import Showcase, write_page
from tests.support.page_content import BAD_NAME, content, image, pixels, result, showcase


class _Reader(HTMLParser):
  """The elements of a page, and the text of each script."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.scripts = [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag == 'script':
      self.scripts.append('')

  def handle_data(self, data):
    if self.elements and self.elements[-1][0] == 'script':
      self.scripts[-1] += data


def _written(path, *arguments):
  write_page(path, *arguments)
  reader = _Reader(path.read_text(encoding='utf-8'))
  return reader, json.loads(reader.scripts[0])


def _decode(file):
  return np.asarray(Image.open(io.BytesIO(file)))


def _names(made):
  return [(group, card.name) for group, card in made.cards]


def test_the_worst_and_the_best_are_kept_whatever_the_order():
  for order in itertools.permutations(range(4)):
    made = showcase([(f'{i}.png', 20.0 + i) for i in order], worst=2, best=1)
    assert _names(made) == [('worst', '0.png'), ('worst', '1.png'), ('best', '3.png')]


@pytest.mark.parametrize(
  ('worst', 'best', 'count', 'want'),
  [
    (3, 3, 1, ['worst']),
    (3, 3, 2, ['worst', 'best']),
    (3, 3, 5, ['worst', 'worst', 'worst', 'best', 'best']),
    (0, 2, 5, ['best', 'best']),
    (2, 0, 5, ['worst', 'worst']),
    (0, 0, 5, []),
  ],
)
def test_no_image_is_shown_twice(worst, best, count, want):
  made = showcase([(f'{i}.png', float(i)) for i in range(count)], worst, best)
  names = [card.name for _, card in made.cards]
  assert [group for group, _ in made.cards] == want
  assert names == sorted(set(names))


def test_images_of_equal_psnr_keep_their_order():
  made = showcase([(name, 30.0) for name in 'abcde'], worst=1, best=1)
  assert [card.name for _, card in made.cards] == ['a', 'e']


def test_nan_is_the_worst_and_an_exact_image_the_best():
  made = showcase([('a', 30.0), ('exact', math.inf), ('broken', math.nan), ('b', 31.0)], worst=1, best=1)
  assert _names(made) == [('worst', 'broken'), ('best', 'exact')]


def test_without_ground_truth_the_first_are_shown():
  made = showcase([(name, None) for name in 'bcade'], worst=2, best=1, clean=False)
  assert _names(made) == [('first', 'b'), ('first', 'c'), ('first', 'a')]
  assert made.cards[0][1].clean is None


def test_pictures_are_exact():
  made = showcase([('a', 20.0), ('b', 30.0)])
  for i, (_, card) in enumerate(made.cards):
    for role, file in enumerate((card.noisy, card.denoised, card.clean)):
      assert file[8:12] == b'WEBP'
      np.testing.assert_array_equal(_decode(file), pixels(10 * i + role))


def test_grey_pictures_are_grey():
  grey = pixels(0, (9, 7, 1))
  made = Showcase(1, 0)
  made.add('a', 20.0, grey, grey, grey)
  np.testing.assert_array_equal(_decode(made.cards[0][1].clean), np.broadcast_to(grey, (9, 7, 3)))


def test_of_a_large_image_the_middle_is_shown():
  large = pixels(0, (8, 1031, 3))
  made = Showcase(1, 0)
  made.add('a', 20.0, large, large, None)
  card = made.cards[0][1]
  assert (card.height, card.width, card.box) == (8, 1031, (0, 3, 8, 1024))
  np.testing.assert_array_equal(_decode(card.denoised), large[:, 3:1027])


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    ({'noisy': np.zeros((4, 5, 3))}, r'a.png, noisy: must be uint8 .* not float64 \(4, 5, 3\)'),
    (
      {'denoised': np.zeros((4, 5), np.uint8)},
      r'a.png, denoised: must be uint8 \[H, W, C\] .* not uint8 \(4, 5\)',
    ),
    ({'noisy': np.zeros((4, 5, 4), np.uint8)}, r'C = 1 or 3, not uint8 \(4, 5, 4\)'),
    (
      {'clean': np.zeros((4, 6, 3), np.uint8)},
      r'a.png, clean: must have the shape \(4, 5, 3\) of noisy, not \(4, 6, 3\)',
    ),
  ],
)
def test_other_images_are_refused(images, message):
  good = dict.fromkeys(('noisy', 'denoised', 'clean'), np.zeros((4, 5, 3), np.uint8))
  with pytest.raises(ValueError, match=message):
    Showcase(1, 1).add('a.png', 20.0, **(good | images))


def test_images_are_all_with_a_psnr_or_all_without():
  for psnrs in ((20.0, None), (None, 20.0)):
    with pytest.raises(ValueError, match='b: either all images of a showcase must have a PSNR, or none'):
      showcase(zip('ab', psnrs, strict=True))


def test_negative_numbers_of_images_are_refused():
  with pytest.raises(ValueError, match='worst and best must be at least 0, not -1 and 2'):
    Showcase(-1, 2)


def test_the_page_contains_the_results_and_the_pictures(tmp_path):
  given = content(
    result([image('a.png', 20.0), image(BAD_NAME, 30.0)], failures=[{'name': BAD_NAME, 'error': '<b>'}]),
    submissions=[{'dataset': 'dnd', 'title': 'DND', 'method': {'name': 'noisy'}, 'files': 2, 'seconds': 1}],
  )
  made = showcase([('a.png', 20.0), (BAD_NAME, 30.0)])
  _, read = _written(tmp_path / 'new' / 'page.html', given, [made])
  assert {key: read[key] for key in given} == given
  (shown,) = read['showcases']
  assert shown['images'] == 2
  assert [(card['group'], card['name']) for card in shown['cards']] == _names(made)
  start, _, first = read['pictures'][shown['cards'][0]['denoised']].partition(',')
  assert start == 'data:image/webp;base64'
  np.testing.assert_array_equal(_decode(base64.b64decode(first)), pixels(1))


def test_names_are_never_markup(tmp_path):
  plain, _ = _written(tmp_path / 'a.html', content(result([image('a.png', 20.0)])), [])
  bad = content(result([image(BAD_NAME, 20.0)], title=BAD_NAME), command=BAD_NAME)
  hostile, read = _written(tmp_path / 'b.html', bad, [])
  assert hostile.elements == plain.elements
  assert hostile.scripts[1:] == plain.scripts[1:]
  assert read['results'][0]['images'][0]['name'] == BAD_NAME
  assert '<' not in hostile.scripts[0]


def test_equal_pictures_of_several_results_are_stored_once(tmp_path):
  results = [result([image('a.png', 20.0)]), result([image('a.png', 21.0)])]
  cases = [showcase([('a.png', 20.0)]), showcase([('a.png', 21.0)])]
  _, read = _written(tmp_path / 'page.html', content(*results), cases)
  assert len(read['pictures']) == len(set(read['pictures'])) == 3


def test_nan_and_infinity_are_strings_that_javascript_reads(tmp_path):
  given = content(result([image('a', math.inf), image('b', math.nan), image('c', -math.inf)]))
  reader, read = _written(tmp_path / 'page.html', given, [])
  assert [i['psnr'] for i in read['results'][0]['images']] == ['Infinity', 'NaN', '-Infinity']
  assert not re.search(r':\s*(NaN|-?Infinity)', reader.scripts[0])


def test_the_page_is_self_contained(tmp_path):
  reader, _ = _written(tmp_path / 'page.html', content(result()), [])
  policy = next(
    a['content'] for tag, a in reader.elements if a.get('http-equiv') == 'Content-Security-Policy'
  )
  rules = dict(rule.split(maxsplit=1) for rule in policy.split(';'))
  assert rules['default-src'] == "'none'"
  assert rules['img-src'] == 'data:'
  assert {'default-src', 'img-src', 'style-src', 'script-src', 'base-uri', 'form-action'} == set(rules)
  assert rules['style-src'] == rules['script-src'] == "'unsafe-inline'"
  links = [a[key] for _, a in reader.elements for key in ('src', 'href', 'action') if key in a]
  assert links == ['data:,']
  whole = (tmp_path / 'page.html').read_text(encoding='utf-8')
  assert not re.search(r'https?:|url\(|@import|innerHTML|document\.write|eval\(', whole)


def test_the_page_contains_all_its_parts(tmp_path):
  reader, _ = _written(tmp_path / 'page.html', content(result()), [])
  whole = (tmp_path / 'page.html').read_text(encoding='utf-8')
  parts = {path.name for path in Path(page.__file__).parent.glob('*.[cj]s*')}
  assert parts == set(page.PARTS.values())
  for name in parts:
    assert whole.count(Path(page.__file__).with_name(name).read_text(encoding='utf-8').rstrip()) == 1
  tags = [tag for tag, _ in reader.elements]
  # The data and four parts; no part ends its element early.
  assert (tags.count('style'), tags.count('script'), tags.count('main')) == (1, 5, 1)
  assert [script.count("'use strict';") for script in reader.scripts] == [0, 1, 1, 1, 1]


def _two_results():
  """Content, and showcases of six images, of two, and of four without ground truth."""
  submission = {'title': 'DND', 'method': {'name': 'noisy'}, 'files': 1}
  given = content(result(), result(), submissions=[submission])
  sets = ((list('abcdef'), 0, True), (list('gh'), 10, True), (list('ijkl'), None, False))
  showcases = []
  for names, psnr, rated in sets:
    made = Showcase(3, 3) if rated else Showcase(4, 0)
    for i, name in enumerate(names):
      noisy, denoised, clean = (pixels(100 * ord(name) + role) for role in range(3))
      made.add(name, psnr + i if rated else None, noisy, denoised, clean if rated else None)
    showcases.append(made)
  return given, showcases


def _shown(path, **options):
  """The size of a page, and the names on it."""
  size = write_page(path, *_two_results(), **options)
  assert size == path.stat().st_size
  read = json.loads(_Reader(path.read_text(encoding='utf-8')).scripts[0])
  assert [shown['images'] for shown in read['showcases']] == [6, 2, 4]
  # No picture is stored without a card.
  used = {card[role] for shown in read['showcases'] for card in shown['cards'] for role in ('noisy', 'clean')}
  assert max(used - {None}) < len(read['pictures'])
  assert len(read['pictures']) == sum(
    card[role] is not None
    for shown in read['showcases']
    for card in shown['cards']
    for role in ('noisy', 'denoised', 'clean')
  )
  return size, [''.join(card['name'] for card in shown['cards']) for shown in read['showcases']]


def test_over_budget_all_showcases_lose_images_from_the_middle(tmp_path):
  path = tmp_path / 'page.html'
  size, names = _shown(path)
  seen = [names]
  while True:
    # A few bytes less than its size are too few, because the budget itself is on the page.
    smaller, names = _shown(path, budget_mb=(size - 20) / 1e6)
    if names == seen[-1]:
      break
    # No more is dropped than necessary.
    assert _shown(path, budget_mb=(smaller + 20) / 1e6)[1] == names
    assert smaller < size - 1000
    size = smaller
    seen.append(names)
  assert seen == [
    ['abcdef', 'gh', 'ijkl'],
    ['abcef', 'gh', 'ijkl'],
    ['abef', 'gh', 'ijkl'],
    ['abf', 'gh', 'ijk'],
    ['af', 'gh', 'ij'],
    ['af', 'gh', 'i'],
  ]
  assert _shown(path, budget_mb=0)[1] == seen[-1]


def test_an_invalid_budget_is_refused(tmp_path):
  for bad in (-1, math.nan):
    with pytest.raises(ValueError, match=f'budget_mb must be at least 0, not {bad}'):
      write_page(tmp_path / 'page.html', content(), [], budget_mb=bad)
  assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_existing_page(tmp_path):
  path = tmp_path / 'page.html'
  path.write_text('an earlier page')
  with pytest.raises(TypeError):
    write_page(path, content(result(), command=object()), [])
  assert path.read_text() == 'an earlier page'
  assert list(tmp_path.iterdir()) == [path]
  write_page(path, content(result()), [])
  assert path.read_text(encoding='utf-8').startswith('<!doctype html>')
  assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_path_is_reported(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match=r'page\.html: cannot write the page \(.+\)'):
    write_page(tmp_path / 'file' / 'page.html', content(), [])


def test_the_number_of_showcases_is_checked(tmp_path):
  path, case = tmp_path / 'page.html', showcase([])
  with pytest.raises(ValueError, match=r'one per result \(1\), .*, not 2'):
    write_page(path, content(result()), [case, case])
  given = content(result(), submissions=[{'title': 'DND', 'method': {'name': 'noisy'}, 'files': 0}] * 2)
  with pytest.raises(
    ValueError, match=r'one per result \(1\), or one per result and submission \(3\), not 2'
  ):
    write_page(path, given, [case, case])
  write_page(path, given, [case] * 3)
