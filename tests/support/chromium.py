"""Chromium driven by tests, and pages opened in it."""

import contextlib
import gc
import json
import os
import shutil

import pytest
from selenium import webdriver

from sadnet_jax.evaluation.page import write_page

FLAGS = (
  '--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
  '--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1 '
  '--force-color-profile=srgb'
)


def _find(*names):
  found = next((path for path in map(shutil.which, names) if path), None)
  if found is None:
    reason = (
      f'none of {", ".join(names)} on PATH; install Chromium and its driver (apt install chromium-driver)'
    )
    if os.environ.get('CI') == 'true':
      pytest.fail(reason)
    pytest.skip(reason)
  return found


@contextlib.contextmanager
def started(profile):
  """A driver of Chromium that stores its files in the folder ``profile``."""
  options = webdriver.ChromeOptions()
  options.binary_location = _find('chromium', 'chromium-browser', 'google-chrome')
  for flag in (*FLAGS.split(), f'--user-data-dir={profile}'):
    options.add_argument(flag)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
  # Given the path of the driver, Selenium neither searches nor downloads one.
  service = webdriver.ChromeService(_find('chromedriver'))
  driver = webdriver.Chrome(options, service)
  # Leaves the start page, whose own requests would be taken for those of the first page.
  driver.get('about:blank')
  yield driver
  driver.quit()
  gc.collect()  # Unclosed resources warn here.


@contextlib.contextmanager
def page_opener(driver, path):
  """A function that opens a page; afterwards checks that it logged no error and requested nothing else."""

  def show(*, width=1100, height=900, scheme='light', touch=False):
    screen = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': False}
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
    driver.execute_cdp_cmd('Emulation.setTouchEmulationEnabled', {'enabled': touch})
    media = [{'name': 'prefers-color-scheme', 'value': scheme}]
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': media})
    driver.get_log('browser'), driver.get_log('performance')
    driver.get(path.as_uri())

  yield show
  assert driver.get_log('browser') == []
  messages = [json.loads(entry['message'])['message'] for entry in driver.get_log('performance')]
  sent = [m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent']
  assert path.as_uri() in sent
  assert {url.split(':')[0] for url in sent} <= {'file', 'data'}
  assert {url.split('#')[0] for url in sent if url.startswith('file:')} == {path.as_uri()}


@contextlib.contextmanager
def page_writer(driver, path):
  """A function that writes a page and opens it; see `page_opener`."""
  with page_opener(driver, path) as show:

    def write_and_show(given, showcases=(), *, budget_mb=40, **screen):
      write_page(path, given, list(showcases), budget_mb=budget_mb)
      show(**screen)

    yield write_and_show


def text_of(element):
  """The text of an element unchanged, where `element.text` normalises white space."""
  return element.get_attribute('textContent')
