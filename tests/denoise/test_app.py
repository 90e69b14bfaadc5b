"""The page of sadnet-denoise in Chromium, and what the command refuses beside it."""

import contextlib
import functools
import json
import os
import re
import runpy
import signal
import socket
import sys
import time
import tomllib
import urllib.request

import numpy as np
from PIL import Image
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from sadnet_jax.denoise import app
from sadnet_jax.denoise.command import main
from sadnet_jax.denoise.quality import BALANCED, QUALITIES
from sadnet_jax.images import Metadata, Photograph, read_photograph, write_photograph
from tests.support import chromium
from tests.support.command import ROOT, finish, start
from tests.support.denoise_command import run, write_weights
from tests.support.photograph_files import random_photograph

# Both in one process: importing JAX takes most of the time.
COMMAND_THEN_PAGE = """
import sys
from sadnet_jax.denoise.command import main
model, options = ['--model', 'tiny.safetensors'], ['--chroma-strength', '0.5']
assert main(['photo.png', '-o', 'command.png', '--strength', '0.8', *model, *options]) == 0
options += ['--no-linear', '--jpeg-quality', '60', '--format', 'jpg']
assert main(['float.tif', '-o', 'command', *model, *options]) == 0
assert main(['fast.tif', '-o', 'command', '--quality', 'fast', *options]) == 0
sys.exit(main(['--app', *model, *options]))
"""


@contextlib.contextmanager
def _served(folder):
  """Runs the command, then the page, in a folder; its URL."""
  (folder / 'tmp').mkdir()
  with contextlib.ExitStack() as stack:
    # Taken, so that the page needs another one.
    with contextlib.suppress(OSError):
      stack.enter_context(socket.create_server((app.HOST, app.PORTS[0])))
    yield from _page_of(folder)


def _page_of(folder):
  process = start('-c', COMMAND_THEN_PAGE, cwd=folder, PYTHONPATH=str(ROOT), TMPDIR=str(folder / 'tmp'))
  try:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    url = re.search(r'http://127\.0\.0\.1:\d+/', line)[0]
    assert f':{app.PORTS[0]}/' not in url
    yield url
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
  finally:
    process.kill()
    process.communicate()


def test_the_page_denoises_a_picture_as_the_command_does(tmp_path):
  write_weights(tmp_path / 'tiny.safetensors')
  # Wider than a preview may be.
  metadata = Metadata(png_chunks=((b'tEXt', b'Title\0A'),))
  photograph = random_photograph(120, 1640, dtype=np.uint16, metadata=metadata)
  write_photograph(tmp_path / 'photo.png', photograph)
  floats = random_photograph().pixels.astype(np.float32) / 255
  for name in ('float', 'fast'):
    write_photograph(tmp_path / f'{name}.tif', Photograph(floats))
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
  Image.fromarray(pixels, mode='CMYK').save(tmp_path / 'ink.jpg')
  with _served(tmp_path) as url, chromium.started(tmp_path / 'profile') as driver:
    driver.get_log('performance')
    driver.execute_cdp_cmd(
      'Browser.setDownloadBehavior', {'behavior': 'allow', 'downloadPath': str(tmp_path / 'downloads')}
    )
    driver.set_window_size(1300, 1000)
    driver.get(url)
    wait = WebDriverWait(driver, 60, 0.1)

    def denoise(name):
      wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, 'input[type=file]'))[0].send_keys(
        str(tmp_path / name)
      )
      button = driver.find_element(By.XPATH, "//button[normalize-space()='Denoise']")
      wait.until(lambda _: button.is_enabled())
      button.click()
      wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, '#status textarea'))
      return driver.find_element(By.CSS_SELECTOR, '#status textarea').get_attribute('value')

    def choose(form, what='Format'):
      driver.find_element(By.CSS_SELECTOR, f'input[aria-label="{what}"]').click()
      wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, f'li[aria-label="{form}"]'))[0].click()

    def qualities():
      return driver.find_elements(By.CSS_SELECTOR, '#quality input')

    def download(name):
      # Only the result can be downloaded: a link to the upload would be taken for it.
      assert not any(link.is_displayed() for link in driver.find_elements(By.CSS_SELECTOR, '#upload a'))
      button, pictures = (driver.find_element(By.ID, name) for name in ('download', 'whole'))
      # Seen without scrolling.
      assert button.rect['y'] < pictures.rect['y']
      button.click()
      wait.until(lambda _: (tmp_path / 'downloads' / name).exists())
      return (tmp_path / 'downloads' / name).read_bytes()

    def clear():
      driver.find_element(By.CSS_SELECTOR, 'button[aria-label="Clear"]').click()
      wait.until(lambda _: not driver.find_elements(By.ID, 'status'))

    reason = 'is a JPEG file of CMYK colours; convert it to RGB with its colour profile'
    assert denoise('ink.jpg') == f'ink.jpg: {reason}'
    assert not driver.find_elements(By.CSS_SELECTOR, '#whole img, #download')
    # Nothing that failed is kept.
    assert list((tmp_path / 'tmp').glob('sadnet-denoise-*/result-*')) == []
    clear()
    # As the command, with the options that the page was started with.
    assert denoise('float.tif').startswith('float-denoised.jpg: 31x17 pixels, ')
    assert download('float-denoised.jpg') == (tmp_path / 'command/float.jpg').read_bytes()
    clear()

    # A quality chooses the weights, so it is only shown where none are chosen.
    assert qualities() == []
    choose('automatic', 'Kind of noise (weights)')
    assert [x.get_attribute('value') for x in wait.until(lambda _: qualities())] == list(QUALITIES)
    assert [x.get_attribute('value') for x in qualities() if x.is_selected()] == [BALANCED]
    driver.find_element(By.CSS_SELECTOR, '#quality input[value="fast"]').click()
    about = 'photo_fast for colour pictures, gray for grey ones.'
    wait.until(lambda _: about in driver.find_element(By.TAG_NAME, 'body').text)
    assert denoise('fast.tif').startswith('fast-denoised.jpg: 31x17 pixels, ')
    assert download('fast-denoised.jpg') == (tmp_path / 'command/fast.jpg').read_bytes()
    clear()
    choose('tiny.safetensors', 'Kind of noise (weights)')
    wait.until(lambda _: not qualities())

    # OpenEXR stores linear light, although --no-linear says that what is read does not.
    choose('OpenEXR')
    assert denoise('float.tif').startswith('float-denoised.exr: ')
    _, after = wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, '#whole img'))
    with urllib.request.urlopen(after.get_attribute('src')) as response:
      preview = np.asarray(Image.open(response), float)
    with Image.open(tmp_path / 'command/float.jpg') as image:
      np.testing.assert_allclose(preview.mean(), np.asarray(image).mean(), atol=8)
    clear()

    strength = driver.find_element(By.CSS_SELECTOR, 'input[type=number][aria-label*=" Strength"]')
    strength.send_keys(Keys.CONTROL, 'a')
    strength.send_keys('0.8', Keys.TAB)
    choose('that of the picture')
    assert denoise('photo.png').startswith('photo-denoised.png: 1640x120 pixels, ')

    before, after = wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, '#whole img'))
    wait.until(lambda _: after.get_property('naturalWidth'))
    assert [image.get_property('naturalWidth') for image in (before, after)] == [1600, 1600]
    middle = after.value_of_css_property('clip-path')
    handle = driver.find_element(By.CSS_SELECTOR, '#whole [data-testid=slider]')

    def drag(_):
      # Without effect until the page has laid out the images.
      ActionChains(driver).drag_and_drop_by_offset(handle, 30, 0).perform()
      return after.value_of_css_property('clip-path') != middle

    wait.until(drag)

    assert download('photo-denoised.png') == (tmp_path / 'command.png').read_bytes()
    assert read_photograph(tmp_path / 'command.png').pixels.dtype == np.uint16

    messages = [json.loads(entry['message'])['message'] for entry in driver.get_log('performance')]
    sent = [m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent']
    assert url in sent
    assert [x for x in sent if not x.startswith((url, 'data:', 'blob:', 'chrome'))] == []
  # Uploads and results are gone.
  assert list((tmp_path / 'tmp').glob('sadnet-denoise-*')) == []


def test_a_picture_is_stopped_by_its_button_and_by_leaving(tmp_path):
  weights = write_weights(tmp_path / 'tiny.safetensors')
  # A minute of work, in tens of thousands of tiles.
  write_photograph(tmp_path / 'photo.png', random_photograph(2000, 2000))
  (tmp_path / 'tmp').mkdir()
  arguments = ['--app', '--model', weights, '--tile', '32', '--overlap', '16']
  process = start('-m', 'sadnet_jax', *arguments, TMPDIR=str(tmp_path / 'tmp'))
  results = functools.partial((tmp_path / 'tmp').glob, 'sadnet-denoise-*/result-*')
  try:
    url = re.search(r'http://127\.0\.0\.1:\d+/', process.stdout.readline())[0]
    with chromium.started(tmp_path / 'profile') as driver:
      wait = WebDriverWait(driver, 60, 0.1)
      driver.get(url)

      def begin():
        wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, 'input[type=file]'))[0].send_keys(
          str(tmp_path / 'photo.png')
        )
        denoise = driver.find_element(By.XPATH, "//button[normalize-space()='Denoise']")
        wait.until(lambda _: denoise.is_enabled())
        uploaded = next((tmp_path / 'tmp').glob('sadnet-denoise-*/*/photo.png'))
        os.utime(uploaded, 2 * (time.time() - 3000,))
        # The second press waits for the first.
        denoise.click()
        denoise.click()
        wait.until(lambda _: re.search('Denoising, .* left', driver.find_element(By.TAG_NAME, 'body').text))
        assert list(results())
        # So that it is not removed as old while it is needed.
        assert time.time() - uploaded.stat().st_mtime < 600

      begin()
      driver.find_element(By.XPATH, "//button[normalize-space()='Stop']").click()
      status = wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, '#status textarea'))[0]
      assert status.get_attribute('value') in ('Stopping after the current tile', 'Stopped.')
      wait.until(lambda _: status.get_attribute('value') == 'Stopped.')
      # Both presses are stopped, without a result.
      wait.until(lambda _: list(results()) == [])
      time.sleep(1)
      assert list(results()) == []
      driver.get(url)
      begin()
      driver.get('about:blank')
      # The folder of a finished picture stays.
      wait.until(lambda _: not list(results()))
  finally:
    process.kill()
    process.communicate()


def test_the_page_is_on_this_machine_whatever_the_proxy(tmp_path):
  wanted = {'127.0.0.1': 'http://127.0.0.1:'}
  # Not every machine has IPv6.
  with contextlib.suppress(OSError):
    socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    wanted |= {'::1': 'http://[::1]:', '[::1]': 'http://[::1]:'}
  weights = write_weights(tmp_path / 'tiny.safetensors')
  program = (
    'import sys; from sadnet_jax.denoise import app\n'
    'for host in sys.argv[2:]:\n'
    '  with app.serving(model=sys.argv[1], host=host) as url: print(url)'
  )
  # A proxy that is not there.
  proxies = {name: 'http://127.0.0.1:9' for name in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY')}
  output, _ = finish(start('-c', program, weights, *wanted, NO_PROXY='', no_proxy='', **proxies))
  for url, beginning in zip(output.splitlines(), wanted.values(), strict=True):
    assert url.startswith(beginning)


def test_a_port_that_is_taken_at_the_last_moment_is_replaced(tmp_path):
  weights = write_weights(tmp_path / 'tiny.safetensors')
  program = """
import socket, sys
import gradio
from sadnet_jax.denoise import app
launch, others = gradio.Blocks.launch, []
def launch_after_another_program(page, **options):
  if not others:
    others.append(socket.create_server((app.HOST, options['server_port'])))
  return launch(page, **options)
gradio.Blocks.launch = launch_after_another_program
with app.serving(model=sys.argv[1]) as url:
  print(others[0].getsockname()[1], url)
"""
  output, _ = finish(start('-c', program, weights))
  taken, url = output.split()
  assert re.fullmatch(r'http://127\.0\.0\.1:\d+/', url)
  assert f':{taken}/' not in url


def test_old_files_are_removed(tmp_path):
  for name, age in (('old/upload', 3601), ('new/upload', 3500)):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b'')
    os.utime(tmp_path / name, 2 * (time.time() - age,))
  app.remove_old_files(tmp_path, 3600)
  assert [path.parent.name for path in tmp_path.glob('*/upload')] == ['new']


def test_uploads_that_wait_for_their_turn_are_kept(tmp_path):
  uploads = [tmp_path / name for name in ('first', 'second', 'gone', 'other')]
  presses = app.Presses()
  for upload in uploads:
    upload.touch()
    presses.press('somebody' if upload.name == 'other' else 'me', upload)
    os.utime(upload, 2 * (time.time() - 3601,))
  presses.press('me', None)
  uploads[2].unlink()
  # One that is denoised is kept by its progress.
  with presses.running('me', uploads[0]):
    presses.leave('somebody')
    presses.keep_waiting()
    app.remove_old_files(tmp_path, 3600)
    assert [path.name for path in tmp_path.iterdir()] == ['second']


def test_a_taken_port_is_one_line(capsys):
  with socket.create_server((app.HOST, 0)) as other:
    port = other.getsockname()[1]
    status, lines = run('--app', '--port', port, capsys=capsys)
  assert (status, lines) == (
    2,
    [
      f'sadnet-denoise: cannot listen on 127.0.0.1, port {port}: Address already in use; choose others with '
      '--port and --host'
    ],
  )


@pytest.mark.parametrize('port', [[], ['--port', '8123']])
@pytest.mark.parametrize(
  ('host', 'reason'),
  [
    # An address for documentation: no machine has it.
    ('192.0.2.1', 'Cannot assign requested address'),
    ('a..b', 'not the name of a host'),
  ],
)
def test_a_host_of_another_machine_is_one_line(host, reason, port, capsys):
  status, lines = run('--app', '--host', host, *port, capsys=capsys)
  assert (status, len(lines)) == (2, 1)
  message = rf'cannot listen on {host}, port \d+: {reason}; choose others with --port and --host'
  assert re.fullmatch(f'sadnet-denoise: {message}', lines[0])


def test_when_all_ports_are_taken_one_line_says_so(monkeypatch, capsys):
  with socket.create_server((app.HOST, 0)) as other:
    port = other.getsockname()[1]
    monkeypatch.setattr(app, 'PORTS', [port])
    status, lines = run('--app', capsys=capsys)
  message = f'cannot listen on 127.0.0.1: ports {port} to {port} are all in use; choose another with --port'
  assert (status, lines) == (2, [f'sadnet-denoise: {message}'])


def test_a_missing_extra_is_named(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'gradio', None)
  status, lines = run('--app', capsys=capsys)
  assert status == 2
  assert lines[-1].endswith("from the clone: pip install '.[app]'")


@pytest.mark.parametrize(
  ('arguments', 'reason'),
  [
    (['--app', 'a.png'], 'unrecognized arguments: a.png'),
    (['--app', '--port', '0'], "must be a number from 1 to 65535, not '0'"),
    (['a.png', '-o', 'b.png', '--host', '0.0.0.0'], 'unrecognized arguments: --host 0.0.0.0'),
  ],
)
def test_options_of_the_page_and_of_files_do_not_mix(arguments, reason, capsys):
  status, lines = run(*arguments, capsys=capsys)
  assert status == 2
  assert reason in lines[-1]


def test_the_page_starts_with_the_options_of_the_command(monkeypatch):
  served = {}
  monkeypatch.setattr(app, 'serve', lambda **options: served.update(options))
  assert main(['--app', '--quality', 'fast', '--strength', '0.7', '--format', 'png', '--port', '8123']) == 0
  assert (served['model'], served['quality'], served['strength']) == (None, 'fast', 0.7)
  assert (served['suffix'], served['port']) == ('.png', 8123)


def test_the_space_serves_everyone_on_the_port_of_spaces(monkeypatch):
  served = {}
  monkeypatch.setattr(app, 'serve', lambda **options: served.update(options))
  with pytest.raises(SystemExit) as ended:
    runpy.run_path(str(ROOT / 'examples/space/app.py'), run_name='__main__')
  assert ended.value.code == 0
  assert (served['host'], served['port']) == ('0.0.0.0', 7860)


def test_the_space_installs_what_the_page_needs():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  requirements = (ROOT / 'examples/space/requirements.txt').read_text().split()
  extras = [name for extra in ('app', 'heic', 'raw') for name in project['optional-dependencies'][extra]]
  assert requirements == [*project['dependencies'], *extras]
  header = (ROOT / 'examples/space/README.md').read_text()
  version = re.search('^sdk_version: (.*)$', header, re.MULTILINE)[1]
  assert f'\ngradio=={version}\n' in (ROOT / 'constraints.txt').read_text()
