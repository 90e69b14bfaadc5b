"""Published weights by name, and weights from files, runs and URLs."""

import contextlib
import errno
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import io
import json
import os
from pathlib import Path
import shutil
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import optax
import pytest

from configs import default
from sadnet_jax import pretrained
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.training.state import TrainState
from sadnet_jax.weights import authors, checkpoints, download, index, loading, torch_files
from sadnet_jax.weights.safetensors import save_weights
from tests.support.command import ROOT
from tests.support.small_networks import SMALL, apply, image, random_variables
from tests.support.torch_pickles import mapping, pickled, storage, tensor, write_rows

MODEL = SADNet(**SMALL)
PARAMS = random_variables(MODEL)['params']


def _config():
  config = default.get_config()
  config.model.update(SMALL)
  return config.to_dict()


def _assert_equal(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope='module')
def small_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'small.safetensors'
  save_weights(path, PARAMS, model=_config()['model'], step=7, about={'about': 'For a test.'})
  return path


@pytest.fixture
def small_package(small_file, tmp_path, monkeypatch):
  """A package that ships the small weights; its folder."""
  folder = tmp_path / 'package'
  folder.mkdir()
  shutil.copy(small_file, folder / 'small.safetensors')
  entry = pretrained.Entry(
    name='small',
    file='small.safetensors',
    sha256=_sha256(small_file),
    bytes=small_file.stat().st_size,
    summary='For a test.',
    channels=3,
    noise=pretrained.Noise('gaussian', (0.0, 75.0), clipped=True),
    measured='A set, sigma 50: PSNR from 14.16 to 20.00 dB',
  )
  index.write_index(folder, {'small': entry})
  monkeypatch.setattr(index, 'FOLDER', folder)
  assert pretrained.available() == {'small': entry}
  return folder


def _sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


# Names.


def test_an_entry_is_one_line():
  entry = pretrained.available()['color']
  assert str(entry).startswith('color: colour, Gaussian noise of sigma 0 to 75, 50% clipped; 8.5 MB')
  assert str(entry).endswith(f' {entry.summary} {entry.measured}.')
  assert (
    str(pretrained.Noise('gaussian', (0.0, 75.0), clipped=True)) == 'Gaussian noise of sigma 0 to 75, clipped'
  )
  assert str(pretrained.Noise('real')) == 'real noise'
  with pytest.raises(AttributeError):
    entry.name = 'other'


def test_a_run_does_not_hide_what_is_published(tmp_path, monkeypatch):
  (tmp_path / 'color' / 'checkpoints').mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert pretrained.locate('color') == Path('color')
  assert loading.published('color').name == 'color.safetensors'


def test_a_name_is_loaded_with_its_network():
  model, params, about = pretrained.load('color')
  assert (model.width, tuple(model.dilations), about['config']) == (
    32,
    (1, 2, 3, 4),
    'configs/blind.py:color',
  )
  assert about['sha256'] == pretrained.available()['color'].sha256
  assert params['res1']['conv0']['kernel'].dtype == np.float32
  assert pretrained.locate('color').name == 'color.safetensors'


def test_a_damaged_file_of_the_package_is_refused(small_package):
  assert pretrained.locate('small') == small_package / 'small.safetensors'
  content = bytearray((small_package / 'small.safetensors').read_bytes())
  content[-1] ^= 1
  (small_package / 'small.safetensors').write_bytes(content)
  with pytest.raises(
    ValueError, match=r'small: its file .* is damaged .*instead of [0-9a-f]{64}\); reinstall'
  ):
    pretrained.locate('small')
  (small_package / 'small.safetensors').unlink()
  with pytest.raises(ValueError, match=r'small: its file .*small\.safetensors is missing; reinstall'):
    pretrained.locate('small')


@pytest.mark.parametrize('text', ['{', '[]', '{"small": {}}', '{"small": {"noise": {}, "default_for": []}}'])
def test_a_damaged_index_is_refused(small_package, text):
  (small_package / 'index.json').write_text(text)
  with pytest.raises(ValueError, match=r'index\.json: the index is damaged .*; reinstall'):
    pretrained.available()


def test_similar_names_are_suggested(small_package):
  for source in ('smal', 'Small'):
    with pytest.raises(ValueError, match=rf'{source}: neither published weights .*; did you mean small\?'):
      pretrained.locate(source)
  for source in ('', 'something else', 'x' * 5000, 'a\0b'):
    with pytest.raises(
      ValueError,
      match=r'neither published weights \(small\) nor an existing file or folder$|not a usable path',
    ):
      pretrained.locate(source)


# Files and runs.


def test_a_file_is_loaded_with_its_network(small_file):
  for source in (small_file, str(small_file), small_file.as_uri()):
    model, params, about = pretrained.load(source)
    _assert_equal(params, PARAMS)
    assert (about['sha256'], about['path']) == (_sha256(small_file), str(small_file))
    assert about['about'] == 'For a test.'
  noisy = image()
  np.testing.assert_array_equal(
    apply(model, {'params': params}, noisy), apply(MODEL, {'params': PARAMS}, noisy)
  )
  assert pretrained.load(small_file, dilations=[1, 2, 3, 4])[2] == about
  with pytest.raises(
    ValueError, match=r'dilations: got \(1, 2, 4, 8\), but .*small.* has \(1, 2, 3, 4\); omit'
  ):
    pretrained.load(small_file, dilations=[1, 2, 4, 8])


def test_other_files_are_refused(tmp_path):
  (tmp_path / 'a.npz').touch()
  for name, match in {
    'a.npz': r"a\.npz: unknown extension '\.npz'; weights are files with one of \.safetensors, \.pth",
    'b.pth': r'b\.pth: no such file',
    'b.safetensors': r'b\.safetensors: no such file',
  }.items():
    with pytest.raises(ValueError, match=match):
      pretrained.load(tmp_path / name)


def test_the_authors_files_are_loaded(golden, tmp_path):
  with np.load(golden / 'sadnet_color_c8.npz') as data:
    state_dict = {key.removeprefix('param:'): data[key] for key in data.files if key.startswith('param:')}
  torch_files.write_state_dict(tmp_path / 'a.pth', state_dict)
  model, params, about = pretrained.load(tmp_path / 'a.pth')
  np.testing.assert_array_equal(params['out']['bias'], state_dict['out.bias'])
  assert (model.width, tuple(model.dilations)) == (8, (1, 2, 3, 4))
  assert (about['path'], about['sha256']) == (str(tmp_path / 'a.pth'), _sha256(tmp_path / 'a.pth'))
  assert json.loads(about['model']) == {**_config()['model'], 'dilations': [1, 2, 3, 4]}
  assert tuple(pretrained.load(tmp_path / 'a.pth', dilations=[1, 2, 4, 8])[0].dilations) == (1, 2, 4, 8)
  del state_dict['out.bias']
  torch_files.write_state_dict(tmp_path / 'a.pth', state_dict)
  with pytest.raises(ValueError, match=r'a\.pth: .*missing .*out'):
    pretrained.load(tmp_path / 'a.pth')


def test_weights_that_are_not_finite_are_refused(tmp_path):
  broken = jax.tree.map(np.copy, PARAMS)
  broken['out']['bias'][0] = np.nan
  torch_files.write_state_dict(tmp_path / 'a.pth', authors.state_dict_from_params(broken))
  with pytest.raises(ValueError, match=r'a\.pth: out/bias has values that are not finite'):
    pretrained.load(tmp_path / 'a.pth')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with checkpoints of steps 1 and 2 that keeps the average of its weights."""
  folder = tmp_path_factory.mktemp('run')
  config = {**_config(), 'ema_decay': 0.5}
  with checkpoints.open_for_training(folder, keep=2) as manager:
    for step in (1, 2):
      params = jax.tree.map(lambda leaf, step=step: leaf * step, PARAMS)
      state = TrainState.create(
        apply_fn=MODEL.apply, params=PARAMS, tx=optax.scale_by_adam(), ema=params, skipped=np.int32(0)
      )
      checkpoints.save(manager, state.replace(step=step), config, 'images')
  return folder


def test_a_run_is_loaded_with_its_network(run):
  model, params, about = pretrained.load(run)
  assert (model.width, about['step'], about['path']) == (8, '2', str(run))
  _assert_equal(params, jax.tree.map(lambda leaf: leaf * 2, PARAMS))
  _, params, about = pretrained.load(str(run / 'checkpoints' / '1'))
  assert about['step'] == '1'
  _assert_equal(params, PARAMS)
  with pytest.raises(ValueError, match=r"no folder 'checkpoints' in it; give the folder of a training run"):
    pretrained.load(run.parent)
  with pytest.raises(ValueError, match=r'no checkpoint of step 3; the run has those of \[1, 2\]'):
    pretrained.load(run / 'checkpoints' / '3')


def test_a_run_without_orbax_says_what_to_install(run, monkeypatch):
  monkeypatch.setitem(sys.modules, 'orbax.checkpoint', None)
  monkeypatch.delitem(sys.modules, 'sadnet_jax.weights.checkpoints')
  monkeypatch.delattr('sadnet_jax.weights.checkpoints')
  with pytest.raises(
    ValueError, match=r"reading a training run needs more packages .*: pip install '\.\[evaluate\]'"
  ):
    pretrained.load(run)


def test_weights_for_colour_start_a_network_for_grey_images(small_file):
  """It gives the mean of what the one for colour makes of three equal channels."""
  fields = {**_config()['model'], 'channels': 1}
  _, params = loading.load_params(small_file, fields, as_start=True)
  grey = image()[..., :1]
  colour = apply(MODEL, {'params': PARAMS}, np.repeat(grey, 3, -1))
  found = apply(SADNet(**{**SMALL, 'channels': 1}), {'params': params}, grey)
  np.testing.assert_allclose(found, np.mean(colour, -1, keepdims=True), atol=1e-6)
  with pytest.raises(ValueError, match=r'model\.width: checkpoint 8, config 16'):
    loading.load_params(small_file, {**fields, 'width': 16}, as_start=True)
  with pytest.raises(ValueError, match=r'model\.channels: checkpoint 3, config 4'):
    loading.load_params(small_file, {**fields, 'channels': 4}, as_start=True)
  # Only for training: results of converted weights would not be those of the published ones.
  with pytest.raises(ValueError, match=r'model\.channels: checkpoint 3, config 1'):
    loading.load_params(small_file, fields)


def test_weights_for_a_config(small_package, small_file, run, golden, tmp_path, monkeypatch):
  fields = _config()['model']
  for source in ('small', small_file.as_uri()):
    step, params = loading.load_params(source, fields)
    assert step == 7
    _assert_equal(params, PARAMS)
  with pytest.raises(
    ValueError, match=r'another config: model\.dilations: checkpoint \[1, 2, 3, 4\], config'
  ):
    loading.load_params('small', {**fields, 'dilations': [1, 2, 4, 8]})
  # A file of the authors' network has no rates of dilation: those of the config are taken.
  for dilations in ([1, 2, 3, 4], [1, 2, 4, 8]):
    step, params = loading.load_params(
      golden / 'sadnet_color_c8.pth', {**fields, 'dilations': dilations, 'dtype': 'bfloat16'}
    )
    assert (step, params['out']['bias'].shape) == (0, (3,))
  with pytest.raises(ValueError, match=r'model\.rsab_order: checkpoint "deform_first", config "deform_last"'):
    loading.load_params(golden / 'sadnet_color_c8.pth', {**fields, 'rsab_order': 'deform_last'})
  # A folder with the name of published weights is used if it is a run.
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'small').mkdir()
  assert loading.load_params('small', fields)[0] == 7
  shutil.copytree(run / 'checkpoints', tmp_path / 'small' / 'checkpoints')
  assert loading.load_params('small', fields)[0] == 2
  assert pretrained.load('small')[2]['step'] == '2'


# URLs.


class _Handler(BaseHTTPRequestHandler):
  """Serves the server's `pages`: path -> (status, headers, body)."""

  def do_GET(self):
    self.server.asked.append(self.path)
    status, headers, body = self.server.pages[self.path]
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.end_headers()
    with contextlib.suppress(ConnectionError):
      self.wfile.write(body)
    # A server that falls silent.
    self.server.release.wait(timeout=float(headers.get('X-Wait', 0)))

  def log_message(self, *arguments):
    pass


@pytest.fixture
def server(small_file, tmp_path, monkeypatch):
  """A server with the small weights at /a.safetensors; the cache is tmp_path / 'cache'."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('no_proxy', '*')
  with ThreadingHTTPServer(('127.0.0.1', 0), _Handler) as server:
    server.url = f'http://127.0.0.1:{server.server_port}'
    server.asked, server.release = [], threading.Event()
    body = small_file.read_bytes()
    server.pages = {'/a.safetensors': (200, {'Content-Length': str(len(body))}, body)}
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()


def _kept(tmp_path):
  return [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]


def test_a_url_is_downloaded_once(server, small_file, tmp_path):
  calls = []
  url = f'{server.url}/a.safetensors'
  path = pretrained.locate(url, progress=lambda done, total: calls.append((done, total)))
  assert path.parent == tmp_path / 'cache' / 'sadnet-jax' / 'weights'
  assert path.name.endswith('-a.safetensors')
  assert path.read_bytes() == small_file.read_bytes()
  size = small_file.stat().st_size
  assert calls[-1] == (size, size)
  assert len(calls) > 1
  # No server is needed afterwards.
  del server.pages['/a.safetensors']
  _, params, about = pretrained.load(url)
  _assert_equal(params, PARAMS)
  assert (about['sha256'], about['path']) == (_sha256(small_file), str(path))
  assert pretrained.locate(f'{url}#sha256={_sha256(small_file)}') == path
  assert server.asked == ['/a.safetensors']


def test_each_url_has_a_file_of_its_own(server):
  page = server.pages['/a.safetensors']
  server.pages |= {'/b/a.safetensors': page, '/a.safetensors?v=2': page, '/%C3%A4%20%2F.safetensors': page}
  paths = [pretrained.locate(server.url + path) for path in server.pages]
  assert len(set(paths)) == 4
  assert paths[-1].name.endswith('-.safetensors')


def test_hashes_are_checked(server, small_file, tmp_path):
  url, right, wrong = f'{server.url}/a.safetensors', _sha256(small_file), '0' * 64
  with pytest.raises(
    ValueError, match=rf'a\.safetensors: the SHA-256 of the file is {right} instead of {wrong}'
  ):
    pretrained.locate(f'{url}#sha256={wrong}')
  assert _kept(tmp_path) == []
  path = pretrained.locate(f'{url}#sha256={right.upper()}')
  # A damaged cached file is downloaded again.
  path.write_bytes(b'damaged')
  assert pretrained.locate(f'{url}#sha256={right}').read_bytes() == small_file.read_bytes()
  assert len(server.asked) == 3
  # A failed download does not replace the cached file.
  with pytest.raises(ValueError, match='the SHA-256 of the file is'):
    pretrained.locate(f'{url}#sha256={wrong}')
  assert path.read_bytes() == small_file.read_bytes()
  for bad in ('sha256=12', 'md5=' + right, 'x'):
    with pytest.raises(
      ValueError, match=rf"'{bad}' after the # is not a hash; write sha256= and 64 hexadecimal digits"
    ):
      pretrained.locate(f'{url}#{bad}')
  with pytest.raises(ValueError, match=rf'the SHA-256 of the file is {right} instead of {wrong}'):
    pretrained.locate(f'{small_file.as_uri()}#sha256={wrong}')
  assert pretrained.locate(f'{small_file.as_uri()}#sha256={right}') == small_file


def _pages(body):
  half, length = body[: len(body) // 2], {'Content-Length': str(len(body))}
  return {
    'gone': (404, {}, b'', r'the server refused \(HTTP Error 404: Not Found\); check the address'),
    'broken': (503, {}, b'', r'the server refused \(HTTP Error 503'),
    'cut': (200, length, half, rf'the download stopped after {len(half)} of {len(body)} bytes; try again'),
    'short': (200, {}, half, r'not a complete \.safetensors file of weights'),
    'empty': (200, {}, b'', r"begins with b''"),
    'page': (200, {}, b'\n<!DOCTYPE html><html>', r'this is a page of HTML or XML, not a file of weights'),
    'pointer': (200, {}, b'version https://git-lfs', r"begins with b'version https://'"),
    'to_file': (
      302,
      {'Location': 'file:///etc/hostname'},
      b'',
      r'the server refused \(HTTP Error 302: .*file:///.* is not allowed',
    ),
    'to_ftp': (
      301,
      {'Location': 'ftp://127.0.0.1/a'},
      b'',
      r'redirected to ftp://127\.0\.0\.1/a, but only http or https',
    ),
    'round': (
      302,
      {'Location': '/round.safetensors'},
      b'',
      r'the server refused \(HTTP Error 302: .*infinite loop',
    ),
    'huge': (
      200,
      {'Content-Length': '9' * 12},
      b'',
      r'the file has at least 9{12} bytes; weights may have at most',
    ),
    'nonsense': (200, {'Content-Length': '9' * 5000}, half, r'not a complete'),
  }


@pytest.mark.parametrize('name', _pages(b''))
def test_server_errors(server, small_file, tmp_path, name):
  status, headers, body, match = _pages(small_file.read_bytes())[name]
  server.pages[f'/{name}.safetensors'] = (status, headers, body)
  with pytest.raises(ValueError, match=rf'^http://127.*/{name}\.safetensors: .*{match}') as caught:
    pretrained.load(f'{server.url}/{name}.safetensors')
  assert '\n' not in str(caught.value)
  assert _kept(tmp_path) == []


def test_a_redirect_is_followed(server, small_file):
  server.pages['/b.safetensors'] = (302, {'Location': '/a.safetensors'}, b'')
  assert pretrained.locate(f'{server.url}/b.safetensors').read_bytes() == small_file.read_bytes()


def test_from_https_no_redirect_leads_to_http():
  request = download.urllib.request.Request('https://host/a.pth')
  response = io.BytesIO()
  with pytest.raises(OSError, match=r'redirected to http://host/b\.pth, but only https is allowed'):
    download.Redirects().redirect_request(request, response, 302, 'Found', {}, 'http://host/b.pth')
  assert response.closed


def test_size_and_time_have_limits(server, small_file, tmp_path):
  size = small_file.stat().st_size
  url = f'{server.url}/b.safetensors'
  # A server that does not say how much comes.
  server.pages['/b.safetensors'] = (200, {}, small_file.read_bytes())
  with pytest.raises(
    ValueError, match=rf'the file has at least \d+ bytes; weights may have at most {size - 1}'
  ):
    download.fetch(url, tmp_path / 'cache', max_bytes=size - 1)
  server.pages['/b.safetensors'] = (200, {'Content-Length': str(size), 'X-Wait': '60'}, b'')
  with pytest.raises(ValueError, match=r'b\.safetensors: the download failed \(timed out\); check the'):
    download.fetch(url, tmp_path / 'cache', timeout_seconds=0.2)
  assert _kept(tmp_path) == []


def test_without_a_server_the_download_fails(tmp_path, monkeypatch):
  monkeypatch.setenv('no_proxy', '*')
  with socket.create_server(('127.0.0.1', 0)) as free:
    port = free.getsockname()[1]
  with pytest.raises(
    ValueError, match=r'the download failed \(.*refused\); check the address and the network'
  ):
    download.fetch(f'http://127.0.0.1:{port}/a.safetensors', tmp_path)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('source', 'match'),
  [
    ('ftp://host/a.pth', r"scheme 'ftp' is not supported; use http, https, file or hf"),
    ('https://host/a.zip', r'the path of the URL must have one of the extensions \.safetensors, \.pth, \.pt'),
    ('https://host/', 'the path of the URL must have one of the extensions'),
    ('https://[host/a.pth', r'not a valid URL \(Invalid IPv6 URL\)'),
    ('https://host:port/a.pth', 'the download failed .*port'),
    ('https:///a.pth', 'the download failed .*no host given'),
    ('http://host/a b\n.pth', 'the download failed .*control characters'),
    ('file://host/a.pth', r"a file URL cannot name host 'host'; write file:///PATH"),
    ('file:///nowhere/a.pth', r'/nowhere/a\.pth: no such file'),
  ],
)
def test_other_urls_are_refused(source, match, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  with pytest.raises(ValueError, match=match):
    pretrained.locate(source)


def test_a_cache_that_is_not_writable_is_reported(server, tmp_path):
  (tmp_path / 'cache').write_text('A file where the folder would be.')
  with pytest.raises(
    ValueError, match=r'the cache folder cannot be used or its disk is full .*set XDG_CACHE_HOME'
  ):
    pretrained.locate(f'{server.url}/a.safetensors')
  assert server.asked == []


def test_a_cache_of_another_user_is_reported(server, tmp_path, monkeypatch):
  def is_file(path):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

  with monkeypatch.context() as patched:
    patched.setattr(Path, 'is_file', is_file)
    with pytest.raises(
      ValueError, match=r'the cache folder cannot be used .*Permission denied.*XDG_CACHE_HOME'
    ):
      download.fetch(f'{server.url}/a.safetensors', tmp_path)


def test_without_a_home_a_download_has_no_place(server, no_home):
  with pytest.raises(ValueError, match=r'a\.safetensors: the home folder is unknown; set XDG_CACHE_HOME'):
    pretrained.locate(f'{server.url}/a.safetensors')


def test_a_pth_from_a_url(server, tmp_path):
  torch_files.write_state_dict(tmp_path / 'a.pth', {'a': np.zeros(3, np.float32)})
  server.pages['/a.pth'] = (200, {}, (tmp_path / 'a.pth').read_bytes())
  server.pages['/b.pth'] = (200, {}, (tmp_path / 'a.pth').read_bytes()[:-30])
  assert pretrained.locate(f'{server.url}/a.pth').read_bytes() == (tmp_path / 'a.pth').read_bytes()
  # Files of PyTorch before 1.6 have no end that says whether they are complete.
  content = mapping(a=tensor([2], place=storage(2, last=b'N')))
  old = write_rows(tmp_path / 'c.pth', pickled(content), [np.zeros(2, np.float32)]).read_bytes()
  server.pages['/c.pth'] = (200, {}, old)
  server.pages['/d.pth'] = (200, {}, old[:-5])
  server.pages['/e.pth'] = (200, {}, b'\x80\x02]q\x00.')
  assert pretrained.locate(f'{server.url}/c.pth').read_bytes() == old
  for name in 'bde':
    with pytest.raises(ValueError, match=r'not a complete \.pth file of weights'):
      pretrained.locate(f'{server.url}/{name}.pth')


def test_loading_published_weights_imports_little():
  code = """if True:
    import sys
    from sadnet_jax import pretrained
    pretrained.available()
    pretrained.load('color')
    heavy = {'tensorflow', 'torch', 'orbax', 'ml_collections', 'optax', 'platformdirs', 'urllib.request'}
    print(*heavy & set(sys.modules))
  """
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout.split() == []
