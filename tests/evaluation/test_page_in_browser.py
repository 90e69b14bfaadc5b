"""The page of results in Chromium: its tables and texts, in light and dark, on narrow screens and paper."""

import json

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sadnet_jax.evaluation import run
from sadnet_jax.evaluation.methods import Noisy
from tests.support import chromium, dataset_files, matlab_files
from tests.support.evaluation_options import evaluation_options
from tests.support.page_content import BAD_NAME, NAMES, content, five_images, image, result, showcase

# Minus sign, sigma, and the sign for a missing value.
MINUS, SIGMA, NONE = '\u2212', '\u03c3', '\u2013'


def test_a_column_sorts_by_its_numbers_and_back(open_page, driver):
  open_page(*five_images())
  table = driver.find_element(By.CSS_SELECTOR, '.images table')

  def names():
    return [chromium.text_of(row) for row in table.find_elements(By.CSS_SELECTOR, 'tbody th')]

  assert names() == NAMES
  head = table.find_element(By.XPATH, ".//th[contains(., 'PSNR denoised')]")
  by_psnr = ['worst.png', 'c9.png', 'c10.png', BAD_NAME, 'best.png']
  head.find_element(By.TAG_NAME, 'button').click()
  assert names() == by_psnr
  assert head.get_attribute('aria-sort') == 'ascending'
  head.find_element(By.TAG_NAME, 'button').send_keys(Keys.ENTER)
  assert names() == by_psnr[::-1]
  assert head.get_attribute('aria-sort') == 'descending'
  table.find_element(By.XPATH, ".//button[. = 'Image']").click()
  assert names().index('c9.png') < names().index('c10.png') < names().index('worst.png')
  assert head.get_attribute('aria-sort') is None


def test_missing_values_are_sorted_last(open_page, driver):
  images = [
    image('a', None),
    image('b', 9.5),
    image('c', float('nan')),
    image('d', 10.5),
    image('e', float('inf')),
  ]
  open_page(content(result(images)))
  button = driver.find_element(By.XPATH, "//button[. = 'PSNR denoised']")
  for want in ('bdeac', 'edbac'):
    button.click()
    rows = driver.find_elements(By.CSS_SELECTOR, '.images tbody tr')
    assert ''.join(row.find_element(By.TAG_NAME, 'th').text for row in rows) == want
  assert [row.find_elements(By.TAG_NAME, 'td')[2].text for row in rows] == ['∞', '10.50', '9.50', NONE, 'NaN']


def _rows(driver):
  rows = driver.find_elements(By.CSS_SELECTOR, '.summary tbody tr')
  return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, 'th, td')] for row in rows]


def test_the_summary_shows_the_difference_to_the_published_result(open_page, driver):
  real = result(
    sigma_255=None, title='Nam', method={'name': 'bm3d', 'version': '4.0.3'}, published=[], mean={}
  )
  open_page(content(result(), real))
  first, second = _rows(driver)
  assert first == [
    'CBSD68\n68 images, 53 of 481x321, 15 of 321x481',
    f'{SIGMA} 50\nclipped8',
    'SADNet\nconfigs/color_fast.py:50, step 5000',
    '14.16 → 28.05',
    '0.7934\nfrom 0.2345',
    '0.8765\nfrom 0.3456',
    '1.25',
    '28.32\nSADNet (paper)',
    f'{MINUS}0.27',
  ]
  assert second[1:4] == ['real noise\nclipped8', 'BM3D\nversion 4.0.3', f'{NONE} → {NONE}']
  assert second[-2:] == [NONE, NONE]
  assert not driver.find_elements(By.CSS_SELECTOR, '#notes li')


def test_the_published_result_and_its_differences_are_taken_from_the_content(open_page, driver):
  paper = result()['published'][0]
  bm3d = {'method': 'CBM3D', 'psnr': 27.38, 'ssim': 0.9, 'protocols': ['unclipped'], 'version': ''}
  bm3d['differs'] = ['protocol unclipped', 'all 68 images']
  both = {'published': [paper, bm3d], 'method': {'name': 'bm3d'}}
  named = result(**both, compared_with='CBM3D')
  unnamed = result(**both)
  del unnamed['compared_with']
  undocumented = result(published=[{k: v for k, v in paper.items() if k != 'differs'}])
  # The page itself finds neither the comparable result nor its differences.
  alike = result(protocol='unclipped', version='two images')
  open_page(content(named, unnamed, result(**both, compared_with=None), undocumented, alike))
  assert [row[-2:] for row in _rows(driver)] == [
    ['27.38\nCBM3D', '+0.671'],  # With the footnote's number.
    [NONE, NONE],
    [NONE, NONE],
    ['28.32\nSADNet (paper)', f'{MINUS}0.27'],
    ['28.32\nSADNet (paper)', f'{MINUS}0.27'],
  ]
  (note,) = driver.find_elements(By.CSS_SELECTOR, '#notes li')
  assert note.text.startswith(
    f'CBM3D on CBSD68, {SIGMA} 50 was published for: protocol unclipped; all 68 images.'
  )
  driver.find_element(By.CSS_SELECTOR, '.summary sup a').click()
  assert driver.execute_script('return document.querySelector(":target").textContent') == note.text
  tiles = driver.find_elements(By.CSS_SELECTOR, '.tile:nth-child(5)')
  assert [tile.text.split('\n')[0] for tile in tiles] == ['Against CBM3D', *['Against SADNet (paper)'] * 2]
  table = driver.find_element(By.CSS_SELECTOR, '#result-0 [aria-label^="Published results"]')
  rows = [row.text for row in table.find_elements(By.CSS_SELECTOR, 'tbody tr')]
  assert rows == [
    f'SADNet (paper) 28.32 {NONE} clipped8 or authors {MINUS}0.27',
    'CBM3D 27.38 0.9000 unclipped +0.67 protocol unclipped; all 68 images',
  ]


def test_notes_are_on_the_result_and_linked_in_the_summary(open_page, driver):
  notes = ['CBSD68: 67 images instead of the 68 of CBSD68', f'{BAD_NAME}: ignored links']
  open_page(content(result(notes=notes), result(notes=[]), result()))
  (remarks,) = driver.find_elements(By.CSS_SELECTOR, '.remarks')
  assert [chromium.text_of(item) for item in remarks.find_elements(By.TAG_NAME, 'li')] == notes
  (link,) = driver.find_elements(By.CSS_SELECTOR, '.summary a[href^="#remarks"]')
  assert link.text == '2 notes'
  link.click()
  assert driver.execute_script('return document.querySelector(":target")') == remarks


def test_the_page_starts_with_the_command_the_hardware_and_the_versions(open_page, driver):
  open_page(content(result()))
  header = driver.find_element(By.TAG_NAME, 'header')
  assert header.find_element(By.TAG_NAME, 'h1').text == 'Denoising results'
  assert header.find_element(By.TAG_NAME, 'pre').text == 'evaluate.py --datasets=cbsd68'
  names, values = (map(chromium.text_of, header.find_elements(By.TAG_NAME, tag)) for tag in ('dt', 'dd'))
  assert dict(zip(names, values, strict=True)) == {'cpu': 'AMD EPYC', 'cores': '2', 'jax': '0.10.2'}


def test_headings_identify_results(open_page, driver):
  noisy = result(protocol='authors', method={'name': 'noisy'}, mean={'seconds': 3e-6})
  open_page(content(result(), noisy))
  heads = [chromium.text_of(head) for head in driver.find_elements(By.TAG_NAME, 'h2')]
  assert heads == [f'CBSD68, {SIGMA} 50 SADNet, clipped8', f'CBSD68, {SIGMA} 50 Noisy input, authors']
  # No method takes zero seconds.
  assert driver.find_element(By.CSS_SELECTOR, '#result-1 .tile:nth-child(4) .value').text == '< 0.001 s'


def test_failures_are_red_and_listed_once(open_page, driver):
  bad = {'name': 'bad.png', 'error': 'bad.png: damaged image file'}
  missing = {'name': 'urban100', 'error': 'no such folder'}
  open_page(content(result(failures=[bad]), failures=[bad, missing]))
  texts = [item.text for item in driver.find_elements(By.CSS_SELECTOR, '.failures li')]
  assert texts == ['urban100: no such folder', bad['error']]
  for item in driver.find_elements(By.CSS_SELECTOR, '.failures li, .summary .bad'):
    red, green, blue = _color(driver, item, 'color')
    assert red > 2 * max(green, blue)
  assert driver.find_element(By.CSS_SELECTOR, '.summary .bad').text == '1 failed'


def test_a_submission_is_listed_with_its_files(open_page, driver):
  method = {'name': 'sadnet', 'step': 5000}
  dnd = {'title': 'DND', 'method': method, 'files': ['dnd-sadnet'], 'checks': ['50 bundles'], 'seconds': 12.5}
  open_page(content(submissions=[dnd | {'margin_px': 64}, dnd | {'title': 'SIDD benchmark', 'files': 7}]))
  sections = [section.text for section in driver.find_elements(By.CSS_SELECTOR, '.submission')]
  assert all(text in sections[0] for text in ('DND', 'SADNet', 'dnd-sadnet', '50 bundles', '5000', '12.5'))
  assert all(text in sections[1] for text in ('SIDD benchmark', '7 files'))
  facts = driver.find_elements(By.CSS_SELECTOR, '.submission .facts')
  label = 'context around each box in pixels'
  assert [chromium.text_of(f).partition(label)[2][:2] for f in facts] == ['64', '']


def test_the_page_says_how_many_images_it_shows_and_why_not_more(open_page, driver):
  given, showcases = five_images()
  note = 'Fewer images than requested are shown'

  def heads_and_end():
    heads = [head.text for head in driver.find_elements(By.TAG_NAME, 'h3') if 'Pictures' in head.text]
    return heads, driver.find_element(By.CSS_SELECTOR, 'main > section:last-child').text

  open_page(given, showcases)
  heads, end = heads_and_end()
  assert heads == ['Pictures, from the lowest PSNR to the highest: 4 of 5']
  assert note not in end
  open_page(given, showcases, budget_mb=0.001)
  heads, end = heads_and_end()
  assert heads == ['Pictures, from the lowest PSNR to the highest: 2 of 5']
  assert f'{note}, to keep the page within 0.001 MB' in end
  marks = driver.find_elements(By.CSS_SELECTOR, '.strip a')
  titles = [mark.get_attribute('title') for mark in marks]
  assert titles == ['worst.png: 19.50 dB', 'best.png: 31.25 dB']  # In the order of the results.
  submission = {'title': 'DND', 'method': {'name': 'noisy'}, 'files': 1}
  open_page(content(submissions=[submission]), [showcase([('a', None)], clean=False)])
  assert heads_and_end()[0] == ['Pictures']


def test_names_that_look_like_markup_are_text(open_page, driver):
  open_page(*five_images())
  assert driver.title.startswith('Denoising results')
  assert BAD_NAME in [chromium.text_of(e) for e in driver.find_elements(By.CSS_SELECTOR, 'figure .name')]
  shown = [image.get_attribute('alt') for image in driver.find_elements(By.TAG_NAME, 'img')]
  assert len(shown) == 12
  assert f'Clean {BAD_NAME}' in shown
  assert all(e.get_attribute('src').startswith('data:') for e in driver.find_elements(By.TAG_NAME, 'img'))


def test_the_browser_refuses_all_requests(open_page, driver):
  open_page(content(result()))
  refused = driver.execute_async_script("""
    const done = arguments[0], found = [];
    addEventListener('securitypolicyviolation', (event) => {
      found.push(event.effectiveDirective);
      if (found.length === 3) done(found.sort());
    });
    new Image().src = 'http://127.0.0.1:9/a.png';
    fetch('http://127.0.0.1:9/b').catch(() => {});
    document.head.append(Object.assign(document.createElement('link'), {rel: 'stylesheet', href: 'http://127.0.0.1:9/c'}));
  """)
  assert refused == ['connect-src', 'img-src', 'style-src-elem']
  assert len(driver.get_log('browser')) >= 3  # Empties the log, which is checked afterwards.
  driver.get_log('performance')
  driver.refresh()


def _color(driver, element, name):
  text = driver.execute_script('return getComputedStyle(arguments[0])[arguments[1]]', element, name)
  return [int(part) for part in text[text.index('(') + 1 : -1].split(',')[:3]]


def _luminance(color):
  """Relative luminance, as WCAG 2 defines it."""
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(color) / 255]
  return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_is_readable_in_light_and_dark(open_page, driver, scheme):
  failures = [{'name': 'bad.png', 'error': 'damaged'}]
  given = content(result([image('a', 20.0)], failures=failures))
  open_page(given, [showcase([('a', 20.0)])], scheme=scheme)
  page = _color(driver, driver.find_element(By.TAG_NAME, 'body'), 'backgroundColor')
  sheet = _color(driver, driver.find_element(By.CSS_SELECTOR, '.sheet'), 'backgroundColor')
  assert (_luminance(page) < 0.1) == (_luminance(sheet) < 0.1) == (scheme == 'dark')
  for selector in ('h1', '.muted', '.small', '.bad', 'dt', '.summary a', '.extreme', '.numbers', 'thead th'):
    text = _luminance(_color(driver, driver.find_element(By.CSS_SELECTOR, selector), 'color'))
    for background in map(_luminance, (page, sheet)):
      dark, light = sorted((text, background))
      assert (light + 0.05) / (dark + 0.05) > 4.5, selector
  pressed = driver.find_element(By.CSS_SELECTOR, '[aria-pressed=true]')
  dark, light = sorted(_luminance(_color(driver, pressed, name)) for name in ('color', 'backgroundColor'))
  assert (light + 0.05) / (dark + 0.05) > 4.5


@pytest.mark.parametrize('width', [320, 800])
def test_narrow_screens_scroll_only_vertically(open_page, driver, width):
  long = result(
    [image('a' * 90 + '.png', 20.0)], failures=[{'name': 'b' * 90, 'error': 'c' * 90}], title='d' * 60
  )
  open_page(
    content(long, command=f'evaluate.py --checkpoint={"e" * 90}'), [showcase([('a' * 90, 20.0)])], width=width
  )
  assert driver.execute_script('return document.documentElement.scrollWidth') <= width
  view = driver.find_element(By.CSS_SELECTOR, 'figure .view').rect
  assert view['x'] >= 0
  assert view['x'] + view['width'] <= width


def test_print_has_all_rows_and_no_buttons(open_page, driver):
  images = [image(f'{i}', 20.0 + i) for i in range(40)]
  open_page(content(result(images)), [showcase([('0', 20.0)])])
  rows = driver.find_element(By.CSS_SELECTOR, '.images')
  hidden = 'return arguments[0].scrollHeight > arguments[0].clientHeight'
  assert driver.execute_script(hidden, rows)
  driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': 'print'})
  assert not driver.execute_script(hidden, rows)
  tools = driver.find_elements(By.CSS_SELECTOR, '.tools button')
  assert len(tools) == 6
  assert not any(button.is_displayed() for button in tools)
  driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': ''})


@pytest.fixture
def evaluated(tmp_path):
  """The output of an evaluation of four small images as CBSD68, one of them damaged, and of two as DND."""
  folder = tmp_path / 'test' / 'CBSD68'
  for i, (height, width) in enumerate([(19, 21), (21, 18), (19, 21), (16, 17)]):
    dataset_files.write(folder / f'{i}.png', dataset_files.picture(height, width, i))
  dataset_files.truncate(folder / '2.png')
  boxes = np.array([[[1, 1, 12, 12], [29, 39, 40, 50]], [[7, 3, 18, 14], [49, 22, 60, 33]]])
  matlab_files.dnd(tmp_path / 'test' / 'DND', [(40, 50), (60, 33)], boxes)
  options = evaluation_options(
    tmp_path,
    'cbsd68',
    'dnd',
    sigmas_255=[50.0],
    protocols=['clipped8', 'unclipped'],
    keep_going=True,
    page_images=4,
  )
  with pytest.raises(ValueError, match=r'^1 failure\(s\)'):
    run.evaluate([Noisy(), _NamedSADNet()], options)
  return tmp_path / 'output'


class _NamedSADNet(Noisy):
  """Has published results, because of its name."""

  name = 'sadnet'


def test_the_page_of_an_evaluation_shows_all_its_results(driver, evaluated):
  content = json.loads((evaluated / 'results.json').read_text())
  with chromium.page_opener(driver, evaluated / 'index.html') as show:
    show()
    rows = _rows(driver)
    assert len(rows) == len(content['results']) == 4
    for row, result in zip(rows, content['results'], strict=True):
      means, (paper, *_) = result['mean'], result['published']
      assert '1 failed' in row[0]
      assert row[3] == f'{means["psnr_noisy"]:.2f} → {means["psnr"]:.2f}'
      assert row[4].startswith(f'{means["ssim_wang"]:.4f}\nfrom ')
      assert row[5].startswith(f'{means["ssim_matlab"]:.4f}\nfrom ')
      known = result['method']['name'] == 'sadnet'
      assert row[7] == ('28.32\nSADNet (paper)' if known else NONE)
      assert paper['differs']  # 3 images instead of 68.
      difference = means['psnr'] - 28.32
      assert row[8].startswith(f'{MINUS}{-difference:.2f}' if known else NONE)
      assert not any(NONE in cell for cell in row[: 9 if known else 7])
    texts = [e.text for e in driver.find_elements(By.CSS_SELECTOR, '.images td, .tile, .numbers, .ends')]
    assert len(texts) == 4 * (3 * 7 + 4 + 3 + 1) + 2  # Two have a tile of the published result.
    assert not any(NONE in text or 'NaN' in text or 'undefined' in text or not text for text in texts)
    assert [len(e.find_elements(By.TAG_NAME, 'figure')) for e in _sections(driver)] == [3, 3, 3, 3, 4, 4]
    (note,) = content['results'][0]['notes']
    assert note in driver.find_element(By.CSS_SELECTOR, '#result-0 .remarks').text
    notes = [item.text for item in driver.find_elements(By.CSS_SELECTOR, '#notes li')]
    assert len(notes) == 2  # One per protocol.
    assert all('all 68 images' in text for text in notes)
    assert 'protocol clipped8 or authors' in notes[1]
    assert 'CBSD68/2.png: ' in driver.find_element(By.CSS_SELECTOR, '#failures-0').text
    assert (
      'context around each box in pixels\n3'
      in driver.find_element(By.CSS_SELECTOR, '.submission .facts').text
    )


def _sections(driver):
  return driver.find_elements(By.CSS_SELECTOR, '.result, .submission')
