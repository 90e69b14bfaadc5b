"""Downloads weights and caches them; an incomplete or wrong file is never kept."""

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

from sadnet_jax.files import one_line, replacing
from sadnet_jax.weights.index import file_sha256
from sadnet_jax.weights.paths import SAFETENSORS_SUFFIX

# SADNet's weights are 17 MB in float32.
MAX_BYTES = 2**29
# Longest wait for the next data from the server.
TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 2**18

# Called with the bytes received and the total, None if the server does not say.
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
  """Downloads a file, unless an earlier call did.

  Args:
    url: http or https, without a fragment; with the extension .safetensors, .pth or .pt.
    folder: Cache folder; created if missing.
    sha256: Expected hash, None to accept any. A cached file with another hash is downloaded again.
    progress: Called after each chunk.
    timeout_seconds: Longest wait for data.
    max_bytes: Size limit.

  Returns:
    The path of the cached file.

  Raises:
    ValueError: The server or network fails; the file is too large, incomplete, not a file of weights, or has
      another hash; or the folder is not writable. A file cached earlier stays.
  """
  path = folder / _cached_name(url)
  try:
    if path.is_file() and sha256 in (None, file_sha256(path)):
      return path
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
      with temporary.open('wb') as file:
        _transfer(url, file, progress, timeout_seconds, max_bytes)
      _check_content(url, temporary, sha256)
  except OSError as error:
    raise ValueError(
      f'{folder}: the cache folder cannot be used or its disk is full ({one_line(error)}); set '
      'XDG_CACHE_HOME to another one, or download the file yourself and give its path'
    ) from error
  return path


def local_path(url: str) -> Path:
  """Returns the path in a file URL; raises ValueError if the URL names another machine."""
  parts = urllib.parse.urlsplit(url)
  if parts.netloc not in ('', 'localhost'):
    raise ValueError(f'{url}: a file URL cannot name host {parts.netloc!r}; write file:///PATH')
  return Path(urllib.request.url2pathname(parts.path))


def _cached_name(url):
  """A readable file name that is unique for the URL."""
  name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition('/')[2]
  return f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-80:]}'


class Redirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects to http and https, from https only to https."""

  def redirect_request(self, request, file, code, message, headers, url):
    """Raises URLError for a redirect that is not allowed."""
    allowed = ('https',) if request.type == 'https' else ('http', 'https')
    if urllib.parse.urlsplit(url).scheme not in allowed:
      file.close()
      raise urllib.error.URLError(f'redirected to {url}, but only {" or ".join(allowed)} is allowed')
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
        raise ValueError(f'{url}: the file has at least {least} bytes; weights may have at most {max_bytes}')
      chunk = _from_server(url, lambda: response.read(_CHUNK_BYTES))
      if not chunk:
        break
      file.write(chunk)
      done += len(chunk)
      if progress is not None:
        progress(done, total)
  if total not in (None, done):
    raise ValueError(f'{url}: the download stopped after {done} of {total} bytes; try again')


def _open(url, timeout_seconds):
  request = urllib.request.Request(url, headers={'User-Agent': 'sadnet-jax'})
  return urllib.request.build_opener(Redirects).open(request, timeout=timeout_seconds)


def _from_server(url: str, function: Callable[[], Any]) -> Any:
  """Calls a function and turns any error of URL, network or server into a ValueError."""
  try:
    return function()
  except urllib.error.HTTPError as error:
    error.close()
    raise ValueError(f'{url}: the server refused ({one_line(error, 300)}); check the address') from error
  # urllib raises ValueError for invalid URLs.
  except (OSError, http.client.HTTPException, ValueError) as error:
    reason = getattr(error, 'reason', None)
    text = one_line(reason if isinstance(reason, Exception) else error, 300)
    raise ValueError(
      f'{url}: the download failed ({text}); check the address and the network, or download the file '
      'yourself and give its path'
    ) from error


def _check_content(url, path, sha256):
  with path.open('rb') as file:
    head = file.read(512)
  if head.lstrip()[:1] == b'<':
    raise ValueError(
      f'{url}: this is a page of HTML or XML, not a file of weights; use the address of the file itself'
    )
  if sha256 is not None and (actual := file_sha256(path)) != sha256:
    raise ValueError(
      f'{url}: the SHA-256 of the file is {actual} instead of {sha256}; the file was changed, or the hash '
      'belongs to another file'
    )
  if not (_is_safetensors(path) if path.suffix == SAFETENSORS_SUFFIX else _is_pth(path)):
    raise ValueError(f'{url}: not a complete {path.suffix} file of weights; it begins with {head[:16]!r}')


def _is_safetensors(path):
  try:
    with safe_open(path, framework='numpy'):
      return True
  except (OSError, SafetensorError):
    return False


def _is_pth(path):
  """Whether it is a zip archive, whose end lists its parts, or readable as those of PyTorch before 1.6."""
  if zipfile.is_zipfile(path):
    return True
  # Imported here because it imports JAX, which finding files does not need.
  from sadnet_jax.weights import torch_files

  try:
    torch_files.read_state_dict(path)
  except ValueError:
    return False
  return True
