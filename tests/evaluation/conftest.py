"""One browser for all tests of the page."""

import pytest


@pytest.fixture(scope='session')
def driver(tmp_path_factory):
  # Imported here because most tests need no browser.
  from tests.support import chromium

  with chromium.started(tmp_path_factory.mktemp('chromium')) as driver:
    yield driver


@pytest.fixture
def open_page(driver, tmp_path):
  """A function that writes a page and opens it; see `chromium.page_writer`."""
  from tests.support import chromium

  with chromium.page_writer(driver, tmp_path / 'page.html') as open_page:
    yield open_page
