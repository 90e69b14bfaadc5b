"""Weights from a URL, kept in a folder under a name of their own: whole or not at all."""

from collections.abc import Callable
import hashlib
import http.client
from pathlib import Path
import re
from typing import Any, BinaryIO
import urllib.error
import urllib.parse
import urllib.request
import zipfile

from safetensors import SafetensorError, safe_open

from sadnet_jax.files import replacing
from sadnet_jax.weights.index import file_sha256

# The largest file; SADNet's weights are 17 MB in float32.
MAX_BYTES = 2**29
# Without any data from the server.
TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 2**18

# Is told the bytes that are there and those there will be, None where the server does not tell.
Progress = Callable[[int, int | None], None]


def fetch(
  url: str,
  folder: Path,
  *,
  sha256: str | None = None,
  progress: Progress | None = None,
  timeout_seconds: float = TIMEOUT_SECONDS,
  max_bytes: int = MAX_BYTES,
) -> Path:
  """The file of a URL: downloaded, or what an earlier call kept.

  Args:
    url: http or https, without a fragment; its path ends in .safetensors, .pth or .pt.
    folder: Where it is kept; made where it is not there.
    sha256: Of the file, or None to take any; what is kept and has another is downloaded again.
    progress: Called after each part.
    timeout_seconds: Longest wait for data.
    max_bytes: Size limit.

  Raises:
    ValueError: The server or the network fails, the file is too large, incomplete, of another hash
      or no file of weights, or the folder cannot be written to. Nothing is kept then.
  """
  path = folder / _kept_name(url)
  if path.is_file() and sha256 in (None, file_sha256(path)):
    return path
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
      with temporary.open('wb') as file:
        _transfer(url, file, progress, timeout_seconds, max_bytes)
      _check_content(url, temporary, sha256)
  except OSError as error:
    raise ValueError(
      f'{folder}: got a cache folder that cannot be written to ({_one_line(error)}), want one that can, with '
      'room on its disk: set XDG_CACHE_HOME, or download the file and give its path'
    ) from error
  return path


def local_path(url: str) -> Path:
  """The path of a file URL of this machine."""
  parts = urllib.parse.urlsplit(url)
  if parts.netloc not in ('', 'localhost'):
    raise ValueError(f'{url}: got the host {parts.netloc!r}, want a file of this machine: file:///PATH')
  return Path(urllib.request.url2pathname(parts.path))


def _kept_name(url):
  """Unique for a URL, and readable."""
  name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition('/')[2]
  return f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-80:]}'


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects to http and https only, and from https to https only."""

  def redirect_request(self, request, file, code, message, headers, url):
    allowed = ('https',) if request.type == 'https' else ('http', 'https')
    if urllib.parse.urlsplit(url).scheme not in allowed:
      file.close()
      raise urllib.error.URLError(f'a redirect to {url}, want one to {" or ".join(allowed)}')
    return super().redirect_request(request, file, code, message, headers, url)


def _transfer(
  url: str, file: BinaryIO, progress: Progress | None, timeout_seconds: float, max_bytes: int
) -> None:
  done = 0
  with _from_server(url, lambda: _open(url, timeout_seconds)) as response:
    length = response.headers.get('Content-Length', '')
    total = int(length) if length.isdecimal() and len(length) < 20 else None
    while True:
      if (least := max(done, total or 0)) > max_bytes:
        raise ValueError(f'{url}: got a file of {least} bytes or more, want weights, of at most {max_bytes}')
      chunk = _from_server(url, lambda: response.read(_CHUNK_BYTES))
      if not chunk:
        break
      file.write(chunk)
      done += len(chunk)
      if progress is not None:
        progress(done, total)
  if total not in (None, done):
    raise ValueError(f'{url}: got {done} of {total} bytes, want all of them: try again')


def _open(url, timeout_seconds):
  request = urllib.request.Request(url, headers={'User-Agent': 'sadnet-jax'})
  return urllib.request.build_opener(_Redirects).open(request, timeout=timeout_seconds)


def _from_server(url: str, function: Callable[[], Any]) -> Any:
  """Calls a function; whatever the address, the network or the server raise is a ValueError."""
  try:
    return function()
  except urllib.error.HTTPError as error:
    error.close()
    raise ValueError(
      f'{url}: got HTTP status {error.code} ({_one_line(error.reason)}), want a file: check the address'
    ) from error
  # ValueError is what urllib raises for addresses that are none.
  except (OSError, http.client.HTTPException, ValueError) as error:
    reason = _one_line(getattr(error, 'reason', error)) or type(error).__name__
    raise ValueError(
      f'{url}: got no file ({reason}), want one: check the address and the network, or download it '
      'otherwise and give its path'
    ) from error


def _check_content(url, path, sha256):
  with path.open('rb') as file:
    head = file.read(512)
  if head.lstrip()[:1] == b'<':
    raise ValueError(
      f'{url}: got a page of HTML or XML, want a file of weights: take the address of the file itself'
    )
  if sha256 is not None and (actual := file_sha256(path)) != sha256:
    raise ValueError(
      f'{url}: got a file of SHA-256 {actual}, want {sha256}: the file was changed, or the hash is of another'
    )
  if not (_is_safetensors(path) if path.suffix == '.safetensors' else _is_pth(path, head)):
    raise ValueError(
      f'{url}: got a file that begins with {head[:16]!r}, want complete weights ({path.suffix})'
    )


def _is_safetensors(path):
  try:
    with safe_open(path, framework='numpy'):
      return True
  except (OSError, SafetensorError):
    return False


def _is_pth(path, head):
  """A zip archive, or a pickle, as PyTorch before 1.6 wrote."""
  return zipfile.is_zipfile(path) or head[:1] == b'\x80'


def _one_line(error):
  return ' '.join(str(error).split())[:300]
