"""A page to drop a picture on: ``sadnet-denoise --app``, or a Space of Hugging Face (``examples/space``).

Pictures go through `job.denoise_all`, so a download holds the very bytes that the command writes. All files
lie in a temporary folder that is removed at the end; nothing is fetched from, or sent to, other machines.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import itertools
import os
from pathlib import Path
import shutil
import socket
import tempfile
import threading
import time
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from sadnet_jax.denoise import interruption, job
from sadnet_jax.denoise.quality import BALANCED, QUALITIES, default_weights
from sadnet_jax.denoise.report import Report, duration
from sadnet_jax.denoise.targets import Target
from sadnet_jax.files import one_line
from sadnet_jax.images import Metadata, Photograph, read_photograph, upright, writable_name, write_photograph
from sadnet_jax.images.photograph import to_8_bits
from sadnet_jax.images.reading import shown_path
from sadnet_jax.weights import loading
from sadnet_jax.weights.index import available
from sadnet_jax.weights.paths import is_run

HOST = '127.0.0.1'
# Tried in this order if no port is given.
PORTS = range(7860, 7960)
MAX_UPLOAD_MB = 200
# Uploads and results are removed after an hour; looked for every minute.
_KEPT_SECONDS = 3600
_SWEEP_SECONDS = 60
# Longest side of the previews of whole pictures, and height and width of the crop that is not reduced.
PREVIEW_PX = 1600
CROP_PX = (560, 840)
_AUTOMATIC = 'automatic'
# The weights that the page was started with: their name need not be UTF-8, as values on the page must be.
_GIVEN = 'given'
_INTRODUCTION = """\
# Denoise a picture
Drop a photograph, press **Denoise** (again after changing a setting), compare, and download the result with
its metadata: in the same format and bit depth, or in the format you choose. PNG, JPEG, TIFF, WebP, BMP,
OpenEXR and JPEG XL; HEIC and camera raw become PNG and TIFF. Pictures and results are removed after an
hour."""
# The link beside an uploaded picture, to that picture, would be taken for the one to the result.
_STYLE = '#upload .download { display: none; }'
# Labels and extensions of the formats to choose from.
_FORMATS = (
  ('that of the picture', ''),
  ('PNG', '.png'),
  ('JPEG', '.jpg'),
  ('TIFF', '.tif'),
  ('WebP', '.webp'),
  ('OpenEXR', '.exr'),
  ('JPEG XL', '.jxl'),
)


@contextlib.contextmanager
def serving(
  *,
  model: str | None = None,
  quality: str | None = None,
  strength: float = 1.0,
  chroma_strength: float | None = None,
  dilations: Sequence[int] | None = None,
  suffix: str | None = None,
  reading: Mapping[str, Any] | None = None,
  writing: Mapping[str, Any] | None = None,
  options: Mapping[str, Any] | None = None,
  host: str = HOST,
  port: int | None = None,
) -> Iterator[str]:
  """Serves the page while the context is open.

  Args:
    model: Weights that are selected at first, as `pretrained.load` takes them; None for those of the quality
      for each kind of picture. The published weights can be selected too.
    quality: The quality at first, a name of `QUALITIES`; None for 'balanced', or with `model`.
    strength: The strength at first, from 0 to 1.
    chroma_strength: The strength for colour noise at first; None for `strength`.
    dilations: Dilation rates of the context block of `model`, as `pretrained.load` takes them.
    suffix: Extension of the format of results at first; None for that of each picture.
    reading: Options of `read_photograph`.
    writing: Options of `write_photograph`.
    options: Further options of `Denoiser`.
    host: The address to listen on; 0.0.0.0 for all of this machine's.
    port: The port; None for the first free one of `PORTS`.

  Yields:
    The page's URL.

  Raises:
    ImportError: Gradio is not installed.
    ValueError: The port is taken, the host is none of this machine's, or the page cannot start for another
      reason; the weights do not exist; or an option is out of range.
  """
  # Before the libraries are imported, which takes a while.
  _free_port(host, port)
  presses = Presses()
  with (
    tempfile.TemporaryDirectory(prefix='sadnet-denoise-') as folder,
    _environment(folder, host),
    _swept(Path(folder), presses),
  ):
    gradio = _gradio()
    choices = _Choices(model, quality, dilations, options or {})
    page = _page(
      gradio,
      choices,
      presses,
      Path(folder),
      quality or BALANCED,
      (strength, chroma_strength),
      suffix,
      dict(reading or {}),
      dict(writing or {}),
    )
    try:
      yield _launch(gradio, page, host, port)
    finally:
      page.close(verbose=False)


def serve(**options: Any) -> None:
  """Serves the page until Ctrl-C or a termination signal; takes the arguments of `serving`."""
  with serving(**options) as url:
    print(f'Open {url} in a browser; Ctrl-C ends.', flush=True)
    try:
      while True:
        interruption.check()
        time.sleep(0.2)
    # It is the way to end the page.
    except KeyboardInterrupt:
      return


def _launch(gradio, page, host, port):
  """Starts to serve a page on the port, None for a free one, and returns its URL."""
  candidate = _free_port(host, port)
  try:
    # What would send the page elsewhere, or needs Node.js, is off even if the environment asks for it.
    _, url, _ = page.launch(
      server_name=f'[{host}]' if ':' in host and not host.startswith('[') else host,
      server_port=candidate,
      share=False,
      ssr_mode=False,
      pwa=False,
      enable_monitoring=False,
      footer_links=[],
      max_file_size=MAX_UPLOAD_MB * 2**20,
      css=_STYLE,
      theme=gradio.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']),
      prevent_thread_lock=True,
      quiet=True,
    )
  # Gradio raises errors of many kinds, as of the package for HTTP.
  except Exception as error:
    # Another program may have taken the port just now.
    if port is None and _free_port(host, None) != candidate:
      return _launch(gradio, page, host, None)
    raise ValueError(f'the page cannot start: {one_line(error)}') from error
  return url


def _free_port(host, port):
  """The port if it is free, or the first free one.

  Gradio itself would wait five seconds for each port that it cannot use, and explain itself in its own terms.
  """
  for candidate in PORTS if port is None else [port]:
    try:
      # Gradio insists on the port being free on the local address too.
      for address in {HOST, host.strip('[]')}:
        family, kind, protocol, _, bound = socket.getaddrinfo(address, candidate, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
          # Connections that have just ended do not count.
          probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
          probe.bind(bound)
      return candidate
    # UnicodeError: a host that cannot be a name.
    except (OSError, UnicodeError) as error:
      if port is not None or getattr(error, 'errno', None) != errno.EADDRINUSE:
        reason = getattr(error, 'strerror', None) or 'not the name of a host'
        raise ValueError(
          f'cannot listen on {host}, port {candidate}: {reason}; choose others with --port and --host'
        ) from error
  raise ValueError(
    f'cannot listen on {host}: ports {PORTS[0]} to {PORTS[-1]} are all in use; choose another with --port'
  )


@contextlib.contextmanager
def _environment(folder, host):
  """Sets what Gradio reads from the environment: its folder, no reports, and no proxy for the page itself."""
  # As other packages read them; of two, the first one counts.
  without_proxy = os.environ.get('no_proxy') or os.environ.get('NO_PROXY') or ''
  if without_proxy != '*':
    own = f'{HOST},localhost,{host.strip("[]")}'
    without_proxy = f'{without_proxy},{own}' if without_proxy else own
  wanted = {
    'no_proxy': without_proxy,
    'NO_PROXY': without_proxy,
    'GRADIO_TEMP_DIR': folder,
    'GRADIO_ANALYTICS_ENABLED': 'False',
    'GRADIO_RUN_HISTORY': 'False',
    'HF_HUB_DISABLE_TELEMETRY': '1',
  }
  before = {name: os.environ.get(name) for name in wanted}
  os.environ.update(wanted)
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        os.environ.pop(name, None)
      else:
        os.environ[name] = value


@contextlib.contextmanager
def _swept(folder, presses):
  """Removes old files now and then, since Gradio does not know those of uploads that were broken off."""
  ended = threading.Event()

  def sweep():
    while not ended.wait(_SWEEP_SECONDS):
      presses.keep_waiting()
      remove_old_files(folder, _KEPT_SECONDS)

  thread = threading.Thread(target=sweep, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


def remove_old_files(folder: Path, seconds: float) -> None:
  """Removes the files below a folder that have not changed for some time."""
  for parent, _, names in os.walk(folder):
    for name in names:
      # Gradio may remove it at the same time.
      with contextlib.suppress(OSError):
        path = Path(parent, name)
        if time.time() - path.stat().st_mtime > seconds:
          path.unlink()


def _gradio():
  try:
    import gradio
  except ImportError as error:
    raise ImportError(f"the page needs Gradio ({error}); from the clone: pip install '.[app]'") from error
  return gradio


class _Choices:
  """The weights to choose from: automatic, those that the page was started with, and the published ones."""

  def __init__(self, model, quality, dilations, options):
    self._model = model
    self._is_published = model in available() and not is_run(model)
    # By its file, as one that is selected later, so that it is loaded once.
    model = loading.published(model) if self._is_published else model
    self._networks = job.Networks(model, quality=quality, dilations=dilations, options=options)

  @property
  def all(self):
    """(label, name) of each."""
    given = [(_shown_model(self._model), _GIVEN)] if self.first == _GIVEN else []
    return [(_AUTOMATIC, _AUTOMATIC), *given, *((name, name) for name in available())]

  def about(self, name, quality):
    """What a choice is for, in a sentence."""
    if name == _AUTOMATIC:
      colour, grey = (default_weights(channels, quality) for channels in (3, 1))
      return f'{colour} for colour pictures, {grey} for grey ones.'
    entry = available().get(name)
    return entry.summary if entry is not None else 'Your own weights.'

  @property
  def first(self):
    if self._model is None:
      return _AUTOMATIC
    return self._model if self._is_published else _GIVEN

  def networks(self, name, quality):
    """The networks of a choice; the quality only counts for automatic weights."""
    if name == _AUTOMATIC:
      return self._networks.choosing(None, quality)
    return self._networks.choosing(self._model if name == _GIVEN else loading.published(name))


def _shown_model(model):
  """The last part of a path, or of a URL without its query, which may be a signature."""
  path = unquote(urlsplit(model).path) if '://' in model else model
  return shown_path(Path(path).name)


class _Stopped(BaseException):
  """The visitor pressed Stop or left; no Exception, which would be an error of the picture."""


class Presses:
  """Presses of Denoise by session, of which Stop ends the running one and those that wait for others."""

  def __init__(self) -> None:
    """Nothing is pressed yet."""
    self._running: dict[str, threading.Event] = {}
    self._waiting: dict[str, list[str | Path]] = {}
    self._pressed: dict[str, float] = {}
    self._stopped: dict[str, float] = {}

  def press(self, session: str, upload: str | Path | None) -> None:
    """Denoise was pressed for an uploaded file, or without one."""
    self._pressed[session] = time.monotonic()
    if upload is not None:
      self._waiting.setdefault(session, []).append(upload)

  def keep_waiting(self) -> None:
    """Touches the uploads that wait for their turn, because old files are removed."""
    for upload in itertools.chain.from_iterable(list(self._waiting.values())):
      with contextlib.suppress(OSError):
        os.utime(upload)

  def stop(self, session: str) -> None:
    """Also what is pressed already, but has not begun."""
    self._stopped[session] = time.monotonic()
    if session in self._running:
      self._running[session].set()

  def leave(self, session: str) -> None:
    """The visitor has gone: stops, and keeps no uploads."""
    self.stop(session)
    self._waiting.pop(session, None)

  def is_running(self, session: str) -> bool:
    """Whether a picture of the session is being denoised."""
    return session in self._running

  @contextlib.contextmanager
  def running(self, session: str, upload: str | Path) -> Iterator[threading.Event]:
    """While a picture is denoised: an event, set if it is not wanted any more."""
    with contextlib.suppress(KeyError, ValueError):
      self._waiting[session].remove(upload)
    event = self._running[session] = threading.Event()
    if self._stopped.get(session, -1) > self._pressed.get(session, 0):
      event.set()
    try:
      yield event
    finally:
      del self._running[session]


class _Progress(Report):
  """Shows on the page what the command shows in the terminal.

  Attributes:
    lines: What there is to say about the picture.
  """

  def __init__(self, target, display, stopped):
    """`display` shows progress; once `stopped` is set, an event, this raises `_Stopped` instead."""
    super().__init__([target], {}, quiet=True)
    self.lines: list[str] = []
    self._display, self._stopped, self._started = display, stopped, time.monotonic()
    self._source = target.source
    self._folders = {f'{shown_path(path.parent)}{os.sep}' for path in (target.source, target.output)}

  def start(self, target):
    self._show(0, desc='Reading')

  def set_size(self, target, width, height):
    self._started = time.monotonic()
    self._show(0, desc='Denoising; the first picture takes longer')

  def advance(self, target, done, total):
    left = (time.monotonic() - self._started) * (total / done - 1)
    self._show(done / total, desc=f'Denoising, {duration(left)} left' if done < total else 'Writing')

  def finish(self, target, *, width, height, seconds):
    self.lines.insert(0, f'{target.output.name}: {width}x{height} pixels, {duration(seconds)}')

  def note(self, path, notes):
    self.lines += [self._without_folders(f'{shown_path(path)}: {note}') for note in notes]

  def fail(self, target, text):
    self.failed += 1
    self.lines.append(self._without_folders(text))

  def _show(self, share, desc):
    if self._stopped.is_set():
      raise _Stopped
    # Uploads are removed an hour after their last change, even those that are being denoised.
    with contextlib.suppress(OSError):
      os.utime(self._source)
    self._display(share, desc=desc)

  def _without_folders(self, text):
    for folder in self._folders:
      text = text.replace(folder, '')
    return text


def _page(gradio, choices, presses, folder, first_quality, strengths, first_suffix, reading, writing):
  """The page; its files are written below `folder`."""

  def nothing(text=''):
    """No result, and perhaps why."""
    return None, None, gradio.update(value=None, visible=False), gradio.update(value=text, visible=bool(text))

  def forget(upload, request: gradio.Request):  # type: ignore[name-defined]
    has_picture = upload is not None
    can_stop = has_picture or presses.is_running(request.session_hash)
    return *nothing(), gradio.update(interactive=has_picture), gradio.update(interactive=can_stop)

  def describe(name, quality):
    return gradio.update(info=choices.about(name, quality)), gradio.update(visible=name == _AUTOMATIC)

  def press(upload, request: gradio.Request):  # type: ignore[name-defined]
    presses.press(request.session_hash, upload)

  def stop(request: gradio.Request):  # type: ignore[name-defined]
    presses.stop(request.session_hash)
    if not presses.is_running(request.session_hash):
      return gradio.skip()
    return gradio.update(value='Stopping after the current tile', visible=True)

  def leave(request: gradio.Request):  # type: ignore[name-defined]
    presses.leave(request.session_hash)

  def denoise(
    upload,
    name,
    quality,
    suffix,
    strength,
    chroma_strength,
    request: gradio.Request,  # type: ignore[name-defined]
    progress=gradio.Progress(),  # noqa: B008
  ):
    if upload is None:
      return upload, nothing('Drop a picture first.')
    source = Path(upload)
    # Inside Gradio's folder, so that Gradio makes no copy, and removes the files.
    results = Path(tempfile.mkdtemp(prefix='result-', dir=folder))
    output = writable_name(results / f'{source.stem}-denoised{source.suffix}', suffix or None)
    with presses.running(request.session_hash, upload) as stopped, contextlib.ExitStack() as on_failure:
      report = _Progress(Target(source, output), progress, stopped)
      # Gradio knows the files only once they are returned.
      on_failure.callback(shutil.rmtree, results, ignore_errors=True)
      try:
        chosen = choices.networks(name, quality).with_strength(strength, chroma_strength)
        job.denoise_all([Target(source, output)], chosen, report, overwrite=False, **reading, **writing)
        if report.failed:
          return upload, nothing('\n'.join(report.lines))
        progress(1, desc='Preparing the preview')
        whole, crop = _previews((source, output), results, reading)
      # Weights that cannot be read.
      except ValueError as error:
        return upload, nothing(str(error))
      except _Stopped:
        return upload, nothing('Stopped.')
      except (KeyboardInterrupt, SystemExit):
        raise gradio.Error('The page has been stopped.', print_exception=False) from None
      on_failure.pop_all()
    text = '\n'.join(report.lines)
    return upload, (
      whole,
      crop,
      gradio.update(value=output, visible=True),
      gradio.update(value=text, lines=len(report.lines), visible=True),
    )

  def show(upload, result):
    """What was made of a picture, unless another one was dropped meanwhile."""
    denoised, parts = result
    return parts if denoised == upload else nothing()

  strength, chroma_strength = strengths
  with gradio.Blocks(
    title='Denoise a picture', analytics_enabled=False, delete_cache=(_SWEEP_SECONDS, _KEPT_SECONDS)
  ) as page:
    gradio.Markdown(_INTRODUCTION)
    with gradio.Row():
      with gradio.Column(scale=1, min_width=300):
        upload = gradio.File(label=f'Picture (up to {MAX_UPLOAD_MB} MB)', height=150, elem_id='upload')
        with gradio.Row():
          button = gradio.Button('Denoise', variant='primary', interactive=False, min_width=100)
          stop_button = gradio.Button('Stop', interactive=False, min_width=100)
        model = gradio.Dropdown(
          choices.all,
          value=choices.first,
          label='Kind of noise (weights)',
          info=choices.about(choices.first, first_quality),
        )
        quality = gradio.Radio(
          list(QUALITIES),
          value=first_quality,
          label='Quality',
          info='Fast: a smaller network for colour pictures. Best: averaged over eight flips and rotations.',
          visible=choices.first == _AUTOMATIC,
          elem_id='quality',
        )
        form = gradio.Dropdown(_FORMATS, value=first_suffix or '', label='Format')
        luma = gradio.Slider(
          0, 1, strength, step=0.05, label='Strength', info='Grain: 0 keeps it, 1 removes all of it.'
        )
        chroma = gradio.Slider(
          0,
          1,
          strength if chroma_strength is None else chroma_strength,
          step=0.05,
          label='Colour strength',
          info='Colour noise: 0 keeps it, 1 removes all of it.',
        )
      with gradio.Column(scale=3, min_width=300):
        # Above the pictures, to be seen without scrolling.
        with gradio.Row():
          status = gradio.Textbox(
            show_label=False, interactive=False, container=False, visible=False, elem_id='status', scale=3
          )
          download = gradio.DownloadButton(
            'Download', variant='primary', visible=False, elem_id='download', scale=1
          )
        with gradio.Tab('Whole picture'):
          whole = _slider(gradio, 'whole')
        with gradio.Tab('Middle in detail'):
          crop = _slider(gradio, 'crop')
    shown = [whole, crop, download, status]
    upload.change(
      forget, upload, [*shown, button, stop_button], show_progress='hidden', api_visibility='private'
    )
    for choice in (model, quality):
      choice.change(
        describe, [model, quality], [model, quality], show_progress='hidden', api_visibility='private'
      )
    # Without the queue, in which it would wait for the picture that it is to stop.
    stop_button.click(stop, None, status, queue=False, show_progress='hidden', api_visibility='private')
    page.unload(leave)
    result = gradio.State()
    # Presses wait for each other: the second may be for another picture.
    button.click(
      press, upload, queue=False, trigger_mode='multiple', show_progress='hidden', api_visibility='private'
    ).then(
      denoise,
      [upload, model, quality, form, luma, chroma],
      result,
      show_progress_on=[whole, crop],
      trigger_mode='multiple',
      concurrency_limit=1,
      api_visibility='private',
    ).success(show, [upload, result], shown, show_progress='hidden', api_visibility='private')
  return page


def _slider(gradio, name):
  return gradio.ImageSlider(
    label='Noisy (left) and denoised (right)',
    format='png',
    type='filepath',
    buttons=['fullscreen'],
    interactive=False,
    max_height=CROP_PX[0],
    elem_id=name,
  )


def _previews(paths, folder, reading):
  """Writes PNG files of bounded size: of input and output the whole, reduced, and the middle as it is."""
  whole: list[Path] = []
  crop: list[Path] = []
  for number, path in enumerate(paths):
    photograph = read_photograph(path, **reading)
    # For the second file, written from the first.
    reading = job.reading_of_output(photograph)
    photograph = upright(photograph)
    metadata = Metadata(icc_profile=job.shown_profile(photograph))
    pixels = photograph.pixels
    for found, name, part in (
      (whole, 'whole', _reduced(pixels)),
      (crop, 'crop', to_8_bits(job.middle(pixels, CROP_PX))),
    ):
      found.append(folder / f'{name}{number}.png')
      write_photograph(found[-1], Photograph(part, metadata=metadata))
  return tuple(whole), tuple(crop)


def _reduced(pixels):
  """8 bits, and at most `PREVIEW_PX` on a side."""
  height, width, channels = pixels.shape
  scale = min(1, PREVIEW_PX / max(height, width))
  size = max(1, round(width * scale)), max(1, round(height * scale))
  # Without copies of channels: large pictures take much memory.
  parts = [
    Image.fromarray(to_8_bits(pixels[:, :, i])).resize(size, Image.Resampling.BOX) for i in range(channels)
  ]
  return np.stack([np.asarray(part) for part in parts], axis=2)
