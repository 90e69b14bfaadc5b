"""Weights from the Hugging Face Hub, of which a server on this machine plays the part."""

import errno
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import threading
import types
from urllib.parse import unquote, urlsplit

import pytest

from configs import default
from sadnet_jax import pretrained
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights.safetensors import save_weights
from tests.support.command import ROOT
from tests.support.small_networks import SMALL, random_variables

COMMIT = '0123456789abcdef0123456789abcdef01234567'
# Finds each source of a list and prints the path or the error, and all progress.
LOCATE = """
import json, sys
from sadnet_jax import pretrained
found, calls = {}, []
for source in json.loads(sys.argv[1]):
  try:
    found[source] = str(pretrained.locate(source, progress=lambda *call: calls.append(call)))
  except ValueError as error:
    found[source] = f'ValueError: {error}'
print(json.dumps([found, calls, sorted({'jax', 'torch'} & set(sys.modules))]))
"""


class _Hub(BaseHTTPRequestHandler):
  """Serves the server's `repositories`: name -> file -> content."""

  def do_HEAD(self):
    self._answer(with_body=False)

  def do_GET(self):
    self._answer(with_body=True)

  def _answer(self, with_body):
    parts = unquote(urlsplit(self.path).path).strip('/').split('/')
    is_api = parts[:2] == ['api', 'models']
    owner, name, *rest = parts[2:] if is_api else parts
    files = self.server.repositories.get(f'{owner}/{name}')
    revision = '/'.join(rest[1:2]) or 'main'
    body, headers = b'', {'X-Repo-Commit': COMMIT}
    if files is None:
      headers['X-Error-Code'] = 'RepoNotFound'
    elif revision not in ('main', 'v1', COMMIT):
      headers['X-Error-Code'] = 'RevisionNotFound'
    elif is_api:
      sizes = {file: self.server.sizes.get(file, len(content)) for file, content in files.items()}
      siblings = [{'rfilename': file, 'size': size} for file, size in sizes.items()]
      body = json.dumps({'id': f'{owner}/{name}', 'sha': COMMIT, 'siblings': siblings}).encode()
    elif name == 'gated':
      headers['X-Error-Code'] = 'GatedRepo'
    else:
      body = files['/'.join(rest[2:])]
      self.server.downloads += with_body
      headers['ETag'] = f'"{hashlib.sha256(body).hexdigest()}"'
    codes = {None: 200, 'GatedRepo': 403}
    code = codes.get(headers.get('X-Error-Code'), 404)
    self.send_response({'expired': 401, 'busy': 429, 'broken': 503}.get(name, code))
    for key, value in {**headers, 'Content-Length': str(len(body))}.items():
      self.send_header(key, value)
    self.end_headers()
    if with_body:
      self.wfile.write(body)

  def log_message(self, *arguments):
    pass


@pytest.fixture(scope='module')
def small_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'small.safetensors'
  model = {**default.get_config().to_dict()['model'], **SMALL}
  save_weights(path, random_variables(SADNet(**SMALL))['params'], model=model, step=7, about={})
  return path


@pytest.fixture(scope='module')
def server(small_file):
  with ThreadingHTTPServer(('127.0.0.1', 0), _Hub) as server:
    weights = small_file.read_bytes()
    server.downloads, server.sizes = 0, {'huge.safetensors': 10**12}
    server.repositories = {
      'Owner/one': {'README.md': b'# one', 'config.json': b'{}', 'small.safetensors': weights},
      'Owner/two': {'a.safetensors': weights, 'sub/b.safetensors': weights, 'c.zip': b'c'},
      'Owner/none': {'README.md': b'# none'},
      'Owner/huge': {'huge.safetensors': b''},
      'Owner/gated': {'a.safetensors': weights},
      **{f'Owner/{name}': {'a.safetensors': weights} for name in ('expired', 'busy', 'broken')},
    }
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def _locate(sources, folder, endpoint, *, warnings=(), **variables):
  """What a new process finds: huggingface_hub reads its variables when it is imported."""
  environment = {
    **{name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'HUGGING'))},
    'HF_ENDPOINT': endpoint,
    'HF_HOME': str(folder),
    'no_proxy': '*',
    **variables,
  }
  done = subprocess.run(
    [sys.executable, '-c', LOCATE, json.dumps(sources)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  lines = done.stderr.splitlines()
  assert len(lines) == len(warnings), lines
  for line, warning in zip(lines, warnings, strict=True):
    assert re.fullmatch(warning, line), line
  found, calls, heavy = json.loads(done.stdout)
  assert heavy == []
  return found, calls


def test_weights_are_downloaded_once_and_found_offline(server, small_file, tmp_path):
  url = f'http://127.0.0.1:{server.server_port}'
  size = small_file.stat().st_size
  wanted = {
    'hf://Owner/one': 'small.safetensors',
    'hf://Owner/one@v1': 'small.safetensors',
    'hf://Owner/one/small.safetensors': 'small.safetensors',
    f'hf://Owner/one@{COMMIT}/small.safetensors': 'small.safetensors',
    'hf://Owner/two/sub/b.safetensors': 'sub/b.safetensors',
  }
  found, calls = _locate(list(wanted), tmp_path, url)
  for source, file in wanted.items():
    assert found[source].startswith(str(tmp_path)), found[source]
    assert found[source].endswith(f'/{COMMIT}/{file}')
  assert server.downloads == 2
  assert calls[-1] == [size, size]
  assert (
    pretrained.load(found['hf://Owner/one'])[2]['sha256']
    == hashlib.sha256(small_file.read_bytes()).hexdigest()
  )

  # Without network: what was downloaded is found, and nothing else.
  refused = ['hf://Owner/two/a.safetensors', 'hf://Owner/none']
  warnings = [
    rf'{source}: the Hugging Face Hub cannot be reached \(.*\); taking {Path(file).name}, which was '
    'downloaded before'
    for source, file in wanted.items()
    # What a commit has does not change.
    if COMMIT not in source
  ]
  for endpoint, variables in (('http://127.0.0.1:9', {}), (url, {'HF_HUB_OFFLINE': '1'})):
    again, calls = _locate([*wanted, *refused], tmp_path, endpoint, warnings=warnings, **variables)
    assert {source: again[source] for source in wanted} == found
    assert calls == []
    for source in refused:
      assert re.search(
        rf'^ValueError: {source}: the Hugging Face Hub cannot be reached \(.*\), and this was not downloaded '
        'before; check the network, or give the path of a file$',
        again[source],
      )
  assert server.downloads == 2


def test_what_the_hub_does_not_have_is_named(server, tmp_path):
  errors = {
    'hf://Owner/two': 'the repository has 2 .safetensors files; append one of them: /a.safetensors, '
    '/sub/b.safetensors',
    'hf://Owner/none': 'the repository has 0 .safetensors files; it does not hold weights of SADNet',
    'hf://Owner/one/b.safetensors': 'no such file; the .safetensors files are small.safetensors',
    'hf://Owner/huge': 'huge.safetensors has 1000000000000 bytes; weights may have at most ',
    'hf://Owner/missing': 'there is no model Owner/missing on the Hugging Face Hub, or it is private; check '
    'the name, or log in with: hf auth login',
    'hf://Owner/gated': 'its owner asks for consent; accept the conditions on the page of Owner/gated, and '
    'log in with: hf auth login',
    'hf://Owner/one@v2': 'Owner/one has no revision v2',
    'hf://Owner/expired': 'the Hugging Face Hub refuses to answer (',
    'hf://Owner/busy/a.safetensors': 'the Hugging Face Hub refuses to answer (',
    'hf://Owner/broken': 'the Hugging Face Hub cannot be reached (',
    'hf://Owner/one--b': 'not a name on the Hugging Face Hub (',
  }
  found, _ = _locate(list(errors), tmp_path, f'http://127.0.0.1:{server.server_port}')
  for source, text in errors.items():
    assert found[source].startswith(f'ValueError: {source}: {text}')
    assert '\n' not in found[source]
  assert not list(tmp_path.rglob('*.safetensors'))


@pytest.mark.parametrize(
  'source', ['hf://', 'hf://name', 'hf://owner/name/', 'hf://owner/name/a.safetensors@v1', 'hf:///a/b']
)
def test_other_forms_are_refused(source):
  with pytest.raises(
    ValueError, match=rf'^{source}: not a name on the Hugging Face Hub; write hf://OWNER/NAME,'
  ):
    pretrained.locate(source)


def test_other_files_are_refused():
  with pytest.raises(
    ValueError, match=r'the file must have one of the extensions \.safetensors, \.pth, \.pt'
  ):
    pretrained.locate('hf://owner/name/a.bin')


@pytest.mark.parametrize('code', [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, code):
  import huggingface_hub

  def download(*_, **__):
    raise OSError(code, os.strerror(code), '/caches')

  info = types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename='a.safetensors', size=1)])
  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', lambda *_, **__: info)
  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
  with pytest.raises(ValueError, match='/caches cannot be written; set HF_HOME to a folder that can'):
    pretrained.locate('hf://owner/name')


def test_a_missing_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match=r"huggingface_hub .*: pip install '\.\[hub\]'"):
    pretrained.locate('hf://owner/name')
