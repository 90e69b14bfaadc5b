"""The page of results, as it is written: which images are on it, and that nothing in them is markup."""

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
  """Elements of a page, and the text of each script."""

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
  return [(place, card.name) for place, card in made.cards]


def test_the_worst_and_the_best_are_kept_whatever_the_order():
  for order in itertools.permutations(range(5)):
    made = showcase([(f'{i}.png', 20.0 + i) for i in order], worst=2, best=1)
    assert _names(made) == [('worst', '0.png'), ('worst', '1.png'), ('best', '4.png')]


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
  assert [place for place, _ in made.cards] == want
  assert names == sorted(set(names))


def test_images_of_equal_psnr_keep_their_order():
  made = showcase([(name, 30.0) for name in 'abcde'], worst=1, best=1)
  assert [card.name for _, card in made.cards] == ['a', 'e']


def test_an_image_without_a_number_is_the_worst_and_an_exact_one_the_best():
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
    ({'noisy': np.zeros((4, 5, 3))}, r'a.png, noisy: got float64 of shape \(4, 5, 3\), want uint8'),
    (
      {'denoised': np.zeros((4, 5), np.uint8)},
      r'a.png, denoised: got uint8 of shape \(4, 5\), want uint8 \[H',
    ),
    ({'noisy': np.zeros((4, 5, 4), np.uint8)}, r'shape \(4, 5, 4\), want uint8 \[H, W, C\] with C 1 or 3'),
    (
      {'clean': np.zeros((4, 6, 3), np.uint8)},
      r'a.png, clean: got shape \(4, 6, 3\), want that of noisy, \(4, 5',
    ),
  ],
)
def test_images_of_another_kind_are_named(images, message):
  good = dict.fromkeys(('noisy', 'denoised', 'clean'), np.zeros((4, 5, 3), np.uint8))
  with pytest.raises(ValueError, match=message):
    Showcase(1, 1).add('a.png', 20.0, **(good | images))


def test_images_are_all_with_a_psnr_or_all_without():
  with pytest.raises(
    ValueError, match='b: got an image without a PSNR after others with one, want all with or'
  ):
    showcase([('a', 20.0), ('b', None)])
  with pytest.raises(ValueError, match='b: got an image with a PSNR after others without one'):
    showcase([('a', None), ('b', 20.0)])


def test_numbers_of_images_are_not_negative():
  with pytest.raises(ValueError, match='worst and best: got -1 and 2, want numbers of images, 0 or more'):
    Showcase(-1, 2)


def test_all_that_is_given_is_on_the_page(tmp_path):
  given = content(
    result([image('a.png', 20.0), image(BAD_NAME, 30.0)], failures=[{'name': BAD_NAME, 'error': '<b>'}]),
    submissions=[{'dataset': 'dnd', 'title': 'DND', 'method': {'name': 'noisy'}, 'files': 2, 'seconds': 1}],
  )
  made = showcase([('a.png', 20.0), (BAD_NAME, 30.0)])
  _, read = _written(tmp_path / 'new' / 'page.html', given, [made])
  assert {key: read[key] for key in given} == given
  (shown,) = read['showcases']
  assert shown['images'] == 2
  assert [(card['place'], card['name']) for card in shown['cards']] == _names(made)
  start, _, first = read['pictures'][shown['cards'][0]['denoised']].partition(',')
  assert start == 'data:image/webp;base64'
  np.testing.assert_array_equal(_decode(base64.b64decode(first)), pixels(1))


def test_names_add_no_element_and_end_no_script(tmp_path):
  plain, _ = _written(tmp_path / 'a.html', content(result([image('a.png', 20.0)])), [])
  bad = content(result([image(BAD_NAME, 20.0)], title=BAD_NAME), command=BAD_NAME)
  hostile, read = _written(tmp_path / 'b.html', bad, [])
  assert hostile.elements == plain.elements
  assert hostile.scripts[1:] == plain.scripts[1:]
  assert read['results'][0]['images'][0]['name'] == BAD_NAME
  assert '<' not in hostile.scripts[0]


def test_equal_pictures_of_several_results_are_there_once(tmp_path):
  results = [result([image('a.png', 20.0)]), result([image('a.png', 21.0)])]
  cases = [showcase([('a.png', 20.0)]), showcase([('a.png', 21.0)])]
  _, read = _written(tmp_path / 'page.html', content(*results), cases)
  assert len(read['pictures']) == len(set(read['pictures'])) == 3


def test_numbers_that_json_has_not_are_strings_that_javascript_reads(tmp_path):
  given = content(result([image('a', math.inf), image('b', math.nan), image('c', -math.inf)]))
  reader, read = _written(tmp_path / 'page.html', given, [])
  assert [i['psnr'] for i in read['results'][0]['images']] == ['Infinity', 'NaN', '-Infinity']
  assert not re.search(r':\s*(NaN|-?Infinity)', reader.scripts[0])


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
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


def test_the_page_is_put_together_of_all_its_parts(tmp_path):
  reader, _ = _written(tmp_path / 'page.html', content(result()), [])
  whole = (tmp_path / 'page.html').read_text(encoding='utf-8')
  parts = sorted(path.name for path in Path(page.__file__).parent.glob('page*.[cj]s*'))
  assert parts == ['page.css', 'page.js', 'page_elements.js', 'page_tables.js', 'page_viewer.js']
  for name in parts:
    assert whole.count(Path(page.__file__).with_name(name).read_text(encoding='utf-8').rstrip()) == 1
  tags = [tag for tag, _ in reader.elements]
  # The data and four parts; nothing in a part ends its element.
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
  """What a page takes, and the names on it."""
  size = write_page(path, *_two_results(), **options)
  assert size == path.stat().st_size
  read = json.loads(_Reader(path.read_text(encoding='utf-8')).scripts[0])
  assert [shown['images'] for shown in read['showcases']] == [6, 2, 4]
  # Nor are pictures left that no card shows.
  used = {card[role] for shown in read['showcases'] for card in shown['cards'] for role in ('noisy', 'clean')}
  assert max(used - {None}) < len(read['pictures'])
  assert len(read['pictures']) == sum(
    card[role] is not None
    for shown in read['showcases']
    for card in shown['cards']
    for role in ('noisy', 'denoised', 'clean')
  )
  return size, [''.join(card['name'] for card in shown['cards']) for shown in read['showcases']]


def test_over_the_budget_every_result_is_cut_alike_from_the_middle(tmp_path):
  path = tmp_path / 'page.html'
  size, names = _shown(path)
  seen = [names]
  while True:
    # Few bytes less than what it took is too little; how the budget is written takes some, too.
    smaller, names = _shown(path, budget_mb=(size - 20) / 1e6)
    if names == seen[-1]:
      break
    # What is left is no less than it must be: few bytes more than it takes is enough for it.
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


def test_a_budget_is_a_number_of_bytes(tmp_path):
  for bad in (-1, math.nan):
    with pytest.raises(ValueError, match=f'budget_mb: got {bad}, want millions of bytes, 0 or more'):
      write_page(tmp_path / 'page.html', content(), [], budget_mb=bad)
  assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_made_leaves_the_one_that_is_there(tmp_path):
  path = tmp_path / 'page.html'
  path.write_text('an earlier page')
  with pytest.raises(TypeError):
    write_page(path, content(result(), command=object()), [])
  assert path.read_text() == 'an earlier page'
  assert list(tmp_path.iterdir()) == [path]
  write_page(path, content(result()), [])
  assert path.read_text(encoding='utf-8').startswith('<!doctype html>')
  assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_is_none_for_a_page_is_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(
    ValueError, match=r'page\.html: got a file that cannot be written \(.+\), want a place for'
  ):
    write_page(tmp_path / 'file' / 'page.html', content(), [])


def test_there_is_a_showcase_for_each_result_or_for_none(tmp_path):
  path, case = tmp_path / 'page.html', showcase([])
  with pytest.raises(ValueError, match='showcases: got 2 of them, want 1, one a result, or none'):
    write_page(path, content(result()), [case, case])
  given = content(result(), submissions=[{'title': 'DND', 'method': {'name': 'noisy'}, 'files': 0}] * 2)
  with pytest.raises(
    ValueError, match='got 2 of them, want 1, one a result, or 3, one a result and one a subm'
  ):
    write_page(path, given, [case, case])
  write_page(path, given, [case] * 3)
