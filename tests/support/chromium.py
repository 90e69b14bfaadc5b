"""Chromium, driven by a test, and a page opened in it."""

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
      f'got none of {", ".join(names)} on PATH, want Chromium and its driver (apt install chromium-driver)'
    )
    if os.environ.get('CI') == 'true':
      pytest.fail(reason)
    pytest.skip(reason)
  return found


@contextlib.contextmanager
def started(profile):
  """A driver of Chromium, whose own files go to a folder."""
  options = webdriver.ChromeOptions()
  options.binary_location = _find('chromium', 'chromium-browser', 'google-chrome')
  for flag in (*FLAGS.split(), f'--user-data-dir={profile}'):
    options.add_argument(flag)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
  # With its path given, Selenium looks for no driver, and downloads none.
  service = webdriver.ChromeService(_find('chromedriver'))
  driver = webdriver.Chrome(options, service)
  yield driver
  driver.quit()
  gc.collect()  # What is not closed warns here.


@contextlib.contextmanager
def watched(driver, path):
  """Gives a function that opens a page, and looks afterwards that nothing went wrong in it, or out of it."""

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
def written(driver, path):
  """Gives a function that writes a page and opens it; see `watched`."""
  with watched(driver, path) as show:

    def write_and_show(given, showcases=(), *, budget_mb=40, **screen):
      write_page(path, given, list(showcases), budget_mb=budget_mb)
      show(**screen)

    yield write_and_show


def text_of(element):
  """As it is, where `element.text` would tidy it up."""
  return element.get_attribute('textContent')
