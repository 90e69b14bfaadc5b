"""Pictures on the page of results, compared in Chromium by mouse, finger and keyboard."""

import io

import numpy as np
from PIL import Image
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from sadnet_jax.evaluation.page import Showcase
from tests.support import chromium
from tests.support.page_content import BAD_NAME, NAMES, content, five_images, image, pixels, result, showcase

# Pictures of 30x20 are magnified by this.
SCALE = 16


@pytest.fixture
def cards(open_page, driver):
  """The cards of a page with one result of five images."""
  open_page(*five_images())
  return [_Card(driver, element) for element in driver.find_elements(By.CSS_SELECTOR, 'figure')]


class _Card:
  """A card as the user sees it."""

  def __init__(self, driver, element):
    self.driver, self.element = driver, element
    self.view = element.find_element(By.CSS_SELECTOR, '.view')
    self.slider = element.find_element(By.CSS_SELECTOR, '[role=slider]')
    self.name = chromium.text_of(element.find_element(By.CSS_SELECTOR, '.name'))

  def now(self):
    return int(self.slider.get_attribute('aria-valuenow'))

  def button(self, label):
    return self.element.find_element(By.CSS_SELECTOR, f'[aria-label="{label}"]')

  def level(self):
    return self.element.find_element(By.CSS_SELECTOR, '.level').text

  def crop(self):
    return self.element.find_element(By.CSS_SELECTOR, '.crop').text

  def bring_into_view(self):
    self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.view)

  def at(self, x, y):
    """Actions that start with the mouse over the picture at (x, y), in screen pixels."""
    self.bring_into_view()
    size = self.view.size
    across, down = round(x - size['width'] / 2), round(y - size['height'] / 2)
    return ActionChains(self.driver, duration=50).move_to_element_with_offset(self.view, across, down)

  def drag(self, start, to):
    moved = self.at(*start).click_and_hold()
    moved.move_by_offset(to[0] - start[0], to[1] - start[1]).release().perform()

  def seen(self):
    """The picture as it is on the screen, uint8 [H, W, 3]."""
    self.bring_into_view()
    box = self.driver.execute_script('return arguments[0].getBoundingClientRect()', self.view)
    shot = np.asarray(Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert('RGB'))
    top, left = round(box['top']), round(box['left'])
    return shot[top : top + round(box['height']), left : left + round(box['width'])]

  def assert_shows(self, left, right, line, box=(0, 0, 20, 30)):
    """Compares the screen with two images, at the centre of each of their pixels.

    Args:
      left: uint8 [H, W, 3].
      right: The same shape.
      line: Position of the divider in screen pixels.
      box: Rows and columns in view: (top, left, height, width).
    """
    seen = self.seen()
    top, first, height, width = box
    scale = seen.shape[0] / height
    y, x = (((np.arange(count) + 0.5) * scale).astype(int) for count in (height, width))
    left, right = (image[top : top + height, first : first + width] for image in (left, right))
    expected = np.where((x < line)[:, None], left, right)
    # The labels and the divider cover the picture.
    visible = (y >= 32)[:, None] & (np.abs(x - line) >= 26)
    np.testing.assert_array_equal(seen[np.ix_(y, x)][visible], expected[visible])
    assert visible.sum() > 0.5 * height * width


def _images(card):
  """Noisy, denoised and clean image of a card."""
  return [pixels(10 * NAMES.index(card.name) + role) for role in range(3)]


def test_cards_go_from_the_worst_to_the_best_and_start_half_noisy_half_denoised(cards):
  assert [card.name for card in cards] == ['worst.png', 'c9.png', BAD_NAME, 'best.png']
  groups = [card.element.find_element(By.CSS_SELECTOR, '.extreme').text for card in cards]
  assert groups == ['Lowest PSNR'] * 2 + ['Highest PSNR'] * 2
  noisy, denoised, _ = _images(cards[0])
  cards[0].assert_shows(noisy, denoised, 15 * SCALE)
  assert cards[0].now() == 50


def test_the_divider_is_dragged_by_the_mouse(cards, driver):
  card = cards[1]
  noisy, denoised, _ = _images(card)
  card.drag((15 * SCALE + 12, 100), (6 * SCALE + 12, 130))  # Beside the line, but on the divider.
  assert card.now() == 20
  card.assert_shows(noisy, denoised, 6 * SCALE)
  card.drag((25 * SCALE, 150), (24 * SCALE, 150))  # It jumps to the pointer.
  assert card.now() == 80
  card.assert_shows(noisy, denoised, 24 * SCALE)
  card.drag((24 * SCALE, 150), (32 * SCALE, 150))  # Out of the picture.
  assert card.now() == 100
  assert cards[0].now() == 50
  assert driver.switch_to.active_element == card.slider  # For the wheel and the keys.
  # Once released it no longer follows the mouse.
  card.drag((15 * SCALE, 100), (9 * SCALE, 100))
  card.at(25 * SCALE, 100).perform()
  assert card.now() == 30


def test_a_finger_drags_the_divider_sideways_and_scrolls_the_page_vertically(open_page, driver):
  open_page(content(result([image('a', 20.0)])), [showcase([('a', 20.0)])], touch=True)
  card = _Card(driver, driver.find_element(By.CSS_SELECTOR, 'figure'))
  card.bring_into_view()
  before = driver.execute_script('return scrollY')
  observer = 'new MutationObserver(() => places.push(arguments[0].style.left))'
  driver.execute_script(
    f'window.places = []; {observer}.observe(arguments[0], {{attributes: true}})', card.slider
  )
  _swipe(driver, card.view, [(100 - step, 100 - 20 * step) for step in range(10)])
  WebDriverWait(driver, 10).until(lambda _: driver.execute_script('return scrollY') > before)
  assert card.now() == 50
  assert set(driver.execute_script('return places')) <= {'50%'}  # Not even for a moment.
  card.bring_into_view()
  _swipe(driver, card.view, [(100 - 12 * step, 100 - 20 * step) for step in range(10)])
  assert card.now() == 50
  card.bring_into_view()
  _swipe(driver, card.view, [(SCALE * step, 50) for step in range(10)])
  assert card.now() == 80
  card.assert_shows(pixels(0), pixels(1), 24 * SCALE)


def _swipe(driver, element, places):
  """Moves a finger through the places, given in pixels from the middle of an element."""
  actions = ActionBuilder(driver, mouse=PointerInput('touch', 'finger'), duration=20)
  actions.pointer_action.move_to(element, *places[0]).pointer_down()
  for place in places[1:]:
    actions.pointer_action.move_to(element, *place)
  actions.pointer_action.pointer_up()
  actions.perform()


def test_the_divider_is_moved_by_keys(cards):
  card = cards[0]
  noisy, denoised, _ = _images(card)
  for keys, now in (
    (Keys.ARROW_LEFT, 48),
    (Keys.ARROW_DOWN, 46),
    (Keys.ARROW_RIGHT * 3, 52),
    (Keys.ARROW_UP, 54),
    (Keys.PAGE_DOWN, 44),
    (Keys.PAGE_UP * 2, 64),
    (Keys.HOME + Keys.ARROW_LEFT, 0),
    (Keys.END + Keys.ARROW_RIGHT, 100),
  ):
    card.slider.send_keys(keys)
    assert card.now() == now
    card.assert_shows(noisy, denoised, now / 100 * 30 * SCALE)
    assert card.slider.get_attribute('aria-valuetext') == f'{now}% noisy, {100 - now}% denoised'


def test_tab_reaches_the_divider_and_its_buttons_and_shows_the_focus(cards, driver):
  driver.execute_script('arguments[0].focus({focusVisible: true})', cards[0].slider)
  ring = "return getComputedStyle(arguments[0], '::before').outlineStyle"
  assert driver.execute_script(ring, cards[0].slider) == 'solid'
  assert driver.execute_script(ring, cards[1].slider) == 'none'
  labels = []
  for _ in range(4):
    ActionChains(driver).send_keys(Keys.TAB).perform()
    labels.append(driver.switch_to.active_element.get_attribute('aria-label'))
  pairs = ['Compare noisy and denoised', 'Compare denoised and clean', 'Compare noisy and clean']
  assert labels == [*pairs, 'Zoom in']  # Zooming out is disabled.


def test_buttons_choose_the_compared_pair(cards):
  card = cards[2]
  noisy, denoised, clean = _images(card)
  for name, left, right in (('denoised and clean', denoised, clean), ('noisy and clean', noisy, clean)):
    card.button(f'Compare {name}').click()
    card.assert_shows(left, right, 15 * SCALE)
    pressed = card.element.find_elements(By.CSS_SELECTOR, '[aria-pressed=true]')
    assert [button.accessible_name for button in pressed] == [f'Compare {name}']
    assert card.slider.accessible_name == f'Divider between {name}, {card.name}'
    labels = [span.text for span in card.view.find_elements(By.CSS_SELECTOR, 'span') if span.is_displayed()]
    assert sorted(labels) == sorted(word.title() for word in name.split(' and '))


def test_without_ground_truth_there_is_one_pair(open_page, driver):
  submission = {'title': 'DND', 'method': {'name': 'noisy'}, 'files': ['dnd-noisy'], 'seconds': 3}
  open_page(content(submissions=[submission]), [showcase([('0001_01', None)], clean=False)])
  card = _Card(driver, driver.find_element(By.CSS_SELECTOR, 'figure'))
  card.assert_shows(pixels(0), pixels(1), 15 * SCALE)
  assert not card.element.find_elements(By.CSS_SELECTOR, '[aria-pressed]')
  assert len(card.element.find_elements(By.CSS_SELECTOR, 'img')) == 2


def test_buttons_zoom_into_the_middle_up_to_8x(cards):
  card = cards[0]
  noisy, denoised, _ = _images(card)
  levels = []
  for _ in range(3):
    card.button('Zoom in').click()
    levels.append(card.level())
  assert levels == ['2x', '4x', '8x']
  assert not card.button('Zoom in').is_enabled()
  card.button('Zoom out').click()
  assert card.level() == '4x'
  # 30x20 / 4 = 7.5x5 pixels around the middle: from column 11.25 and row 7.5 on.
  assert card.crop() == 'Columns 11 to 18, rows 7 to 12 of 30x20'
  seen, scale = card.seen(), 4 * SCALE
  for row, column in ((8, 12), (11, 13), (10, 16), (9, 17)):
    y, x = int((row + 0.5 - 7.5) * scale), int((column + 0.5 - 11.25) * scale)
    want = (noisy if column < 15 else denoised)[row, column]
    # Every pixel is a square of one colour.
    np.testing.assert_array_equal(seen[y - 28 : y + 28, x - 20 : x + 20], np.broadcast_to(want, (56, 40, 3)))
  card.button('Show the whole picture').click()
  card.assert_shows(noisy, denoised, 15 * SCALE)


def test_a_double_click_zooms_where_it_happens_and_the_divider_still_works(cards):
  card = cards[0]
  noisy, denoised, _ = _images(card)
  for _ in range(2):
    card.at(0, 0).move_by_offset(1, 1).double_click().perform()
  assert card.level() == '4x'
  assert card.crop() == 'Columns 0 to 7, rows 0 to 5 of 30x20'
  card.button('Show the whole picture').click()
  card.slider.send_keys('+')
  card.drag((29 * SCALE, 250), (0, 0))  # As far as possible: columns from 15, rows from 10.
  card.drag((29 * SCALE, 250), (0, 0))
  assert card.crop() == 'Columns 15 to 29, rows 10 to 19 of 30x20'
  card.slider.send_keys(Keys.HOME)
  box = (10, 15, 10, 15)
  card.assert_shows(noisy, denoised, 0, box)
  card.slider.send_keys(Keys.PAGE_UP * 4)
  card.assert_shows(noisy, denoised, 12 * SCALE, box)
  card.drag((12 * SCALE, 100), (21 * SCALE, 100))
  assert card.now() == 70
  card.assert_shows(noisy, denoised, 21 * SCALE, box)


def test_the_crop_is_moved_by_dragging_and_by_keys_within_the_picture(cards):
  card = cards[0]
  noisy, denoised, _ = _images(card)
  card.slider.send_keys('+', Keys.HOME)
  assert card.crop() == 'Columns 7 to 22, rows 5 to 14 of 30x20'
  card.drag((300, 200), (300 - 3 * SCALE, 200 + 4 * SCALE))  # 1.5 columns to the right, 2 rows up.
  assert card.crop() == 'Columns 9 to 23, rows 3 to 12 of 30x20'
  card.assert_shows(noisy, denoised, 0, (3, 9, 10, 15))
  assert card.now() == 0
  for key, crop in (
    (Keys.ARROW_RIGHT, 'Columns 12 to 27, rows 3 to 12 of 30x20'),
    (Keys.ARROW_RIGHT, 'Columns 15 to 29, rows 3 to 12 of 30x20'),
    (Keys.ARROW_UP, 'Columns 15 to 29, rows 0 to 10 of 30x20'),
    (Keys.ARROW_DOWN * 9, 'Columns 15 to 29, rows 10 to 19 of 30x20'),
    (Keys.ARROW_LEFT * 9, 'Columns 0 to 14, rows 10 to 19 of 30x20'),
  ):
    card.slider.send_keys(Keys.SHIFT, key)
    assert card.crop() == crop


def test_the_wheel_zooms_a_picture_with_the_focus_and_scrolls_the_page_over_others(cards, driver):
  card = cards[0]
  _, denoised, _ = _images(card)
  card.bring_into_view()
  before = driver.execute_script('return scrollY')
  ActionChains(driver).scroll_from_origin(ScrollOrigin.from_element(card.view), 0, -60).perform()
  WebDriverWait(driver, 10).until(lambda _: driver.execute_script('return scrollY') < before)
  assert card.level() == '1x'
  card.bring_into_view()
  card.slider.send_keys(Keys.HOME)
  scrolled = driver.execute_script('return scrollY')
  # At the centre of column 21 and row 15, which stays in its place.
  origin = ScrollOrigin.from_element(card.view, int(6.5 * SCALE), int(5.5 * SCALE))
  ActionChains(driver).scroll_from_origin(origin, 0, -240).perform()
  assert card.level() == '4x'
  assert driver.execute_script('return scrollY') == scrolled
  seen = card.seen()
  np.testing.assert_array_equal(seen[int(15.5 * SCALE), int(21.5 * SCALE)], denoised[15, 21])
  np.testing.assert_array_equal(seen[int(15.5 * SCALE), int(21.5 * SCALE) - 4 * SCALE], denoised[15, 20])
  np.testing.assert_array_equal(seen[int(15.5 * SCALE) - 8 * SCALE, int(21.5 * SCALE)], denoised[13, 21])


def test_the_card_of_a_large_image_says_which_part_it_shows(open_page, driver):
  made = Showcase(1, 0)
  large = pixels(0, (100, 1100, 3))
  made.add('large.png', 20.0, large, large, large)
  open_page(content(result([image('large.png', 20.0, height=100, width=1100)])), [made])
  card = _Card(driver, driver.find_element(By.CSS_SELECTOR, 'figure'))
  assert card.crop() == 'Columns 38 to 1061, rows 0 to 99 of 1100x100, of which this page has the middle'
