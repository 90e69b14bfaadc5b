"""The command sadnet-denoise: pictures in, denoised pictures out.

  sadnet-denoise photo.jpg -o denoised.png
  sadnet-denoise photos -o denoised/ --recursive --compare
  sadnet-denoise --app

Exit status: 0 if all pictures were denoised, 1 if some were not (one line on stderr for each), 2 if nothing
was started because of wrong arguments, 130 after Ctrl-C.

JAX, NumPy and the image libraries are imported only where needed, so that --help and misspelled names answer
at once.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import gc
import logging
import os
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any, Literal, NoReturn
import warnings

from sadnet_jax.denoise import interruption
from sadnet_jax.denoise.quality import QUALITIES
from sadnet_jax.denoise.report import COMMAND, print_error
from sadnet_jax.machine import may_have_accelerator
from sadnet_jax.weights.index import available

if TYPE_CHECKING:
  import jax

_DESCRIPTION = """\
Denoises pictures: PNG, JPEG, TIFF, WebP, BMP, OpenEXR and JPEG XL, grey and colour, of any size; reads HEIC
and camera raw too. Transparency, orientation, colour profile and metadata are kept."""
# More than JAX and Flax make when they are imported.
_OBJECTS_OF_LIBRARIES = 500_000
_WHY_NO_ACCELERATOR = "to see why JAX does not use it: python -c 'import jax; print(jax.devices())'"
# What --format takes: extensions without their dot.
_FORMATS = ('png', 'jpg', 'tif', 'webp', 'exr', 'jxl')
_EPILOG = """\
examples:
  sadnet-denoise photo.jpg -o denoised.png
  sadnet-denoise photos -o denoised/ --recursive --compare --quality fast
  sadnet-denoise 'photos/**/*.tif' -o denoised/ --model runs/color-blind
  sadnet-denoise raw -o denoised/ --format jpg --jpeg-quality 90
  sadnet-denoise --app

exit status: 0 if all pictures were denoised, 1 if some were not, 2 if nothing was started, 130 after
Ctrl-C"""


def run() -> NoReturn:
  """`main` as a process of its own, which ends without Python's teardown of JAX: that takes 0.25 s."""
  status = main()
  for stream in (sys.stdout, sys.stderr):
    # A stream that was closed before the start is None.
    if stream is not None:
      with contextlib.suppress(OSError):
        stream.flush()
  os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    argv: The arguments, by default those of the process.

  Returns:
    The exit status.

  Raises:
    SystemExit: With the exit status, for wrong arguments, --help and the like.
  """
  try:
    with interruption.deferred():
      given = _protect_names(argv)
      if '--app' in given:
        return _serve_page(_app_parser().parse_args(given))
      return _denoise(_parser().parse_intermixed_args(given))
  except KeyboardInterrupt:
    print_error('interrupted; all written pictures are complete')
    return 130
  except BrokenPipeError:
    # The reader has gone. Without this, Python would complain when it flushes stdout and stderr.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return 1


def _denoise(arguments: argparse.Namespace) -> int:
  try:
    # Before importing JAX, which takes a second: most mistakes are in the names.
    from sadnet_jax.denoise.targets import find_targets, group_by_size, sizes_by_header, split_existing
    from sadnet_jax.images import has_format

    notes: list[tuple[Path, str]] = []
    targets = find_targets(
      arguments.inputs,
      arguments.output,
      suffix=_suffix(arguments),
      recursive=arguments.recursive,
      compare=arguments.compare,
      overwrite=arguments.overwrite,
      skip_existing=arguments.skip_existing,
      notes=notes,
    )
    if arguments.jpeg_quality is not None and not any(has_format(x.output, '.jpg') for x in targets):
      raise ValueError(
        '--jpeg-quality is given, but no output is a JPEG file; end the name of the output in .jpg, pass '
        '--format jpg for a folder, or leave --jpeg-quality out'
      )
    skipped = 0
    if arguments.skip_existing:
      targets, existing = split_existing(targets)
      skipped = len(existing)
    sizes = sizes_by_header(targets)
    targets = group_by_size(targets, sizes)
    with _quiet_libraries(keep_programs=arguments.compilation_cache):
      from sadnet_jax.denoise import job
      from sadnet_jax.denoise.report import Report

      interruption.check()
      strengths = {'strength': arguments.strength, 'chroma_strength': arguments.chroma_strength}
      options = _denoiser_options(arguments)
      networks = job.Networks(
        arguments.model,
        quality=arguments.quality,
        dilations=arguments.dilations,
        options={**options, **strengths},
      )
      is_on_cpu = options['device'].platform == 'cpu'
      if is_on_cpu and arguments.device is None and not arguments.quiet and may_have_accelerator():
        print_error(
          f'computing on the CPU, though a package for GPU or TPU is installed; {_WHY_NO_ACCELERATOR}'
        )
      with Report(targets, sizes, quiet=arguments.quiet, skipped=skipped) as report:
        for folder, note in notes:
          report.note(folder, (note,))
        job.denoise_all(
          targets,
          networks,
          report,
          overwrite=arguments.overwrite,
          skip_existing=arguments.skip_existing,
          linear=arguments.linear,
          white_level=arguments.white_level,
          **_writing_options(arguments),
        )
  except (ValueError, ImportError, OSError) as error:
    if isinstance(error, BrokenPipeError):
      raise
    print_error(str(error))
    return 2
  report.summarize()
  return 1 if report.failed else 0


def _serve_page(arguments: argparse.Namespace) -> int:
  try:
    with _quiet_libraries(keep_programs=arguments.compilation_cache):
      from sadnet_jax.denoise import app

      app.serve(
        model=arguments.model,
        quality=arguments.quality,
        strength=arguments.strength,
        chroma_strength=arguments.chroma_strength,
        dilations=arguments.dilations,
        suffix=_suffix(arguments),
        reading={'linear': arguments.linear, 'white_level': arguments.white_level},
        writing=_writing_options(arguments),
        options=_denoiser_options(arguments),
        host=arguments.host,
        port=arguments.port,
      )
  except (ValueError, ImportError, OSError) as error:
    print_error(str(error))
    return 2
  return 0


def _suffix(arguments):
  return None if arguments.format is None else f'.{arguments.format}'


def _writing_options(arguments):
  """The options of `write_photograph`."""
  return {} if arguments.jpeg_quality is None else {'jpeg_quality': arguments.jpeg_quality}


def _denoiser_options(arguments):
  """The options of `Denoiser` but the strengths."""
  options: dict[str, Any] = {
    'tile_px': arguments.tile,
    'ensemble': arguments.self_ensemble,
    'device': choose_device(arguments.device),
  }
  if arguments.overlap is not None:
    if arguments.tile == 'whole':
      raise ValueError('--overlap is for tiles, but --tile whole makes none; remove one of them')
    options['overlap_px'] = arguments.overlap
  return options


def choose_device(wanted: str | None) -> 'jax.Device':
  """Finds a device of this machine.

  Args:
    wanted: 'cpu', 'gpu' or 'tpu', optionally with a colon and a number; None for JAX's first device. If it
      is given before JAX is used, no other kind of device is initialised.

  Raises:
    ValueError: There is no such device, or JAX cannot initialise any.
  """
  import jax

  platform, _, number = (wanted or '').partition(':')
  if platform == 'cpu':
    jax.config.update('jax_platforms', 'cpu')
  elif platform and getattr(jax.config, 'jax_platforms', None) == 'cpu':
    # The option overrides JAX_PLATFORMS.
    jax.config.update('jax_platforms', None)
  try:
    devices = jax.local_devices()
  except RuntimeError as error:
    raise ValueError(f'--device: JAX cannot use {wanted or "its default device"}: {error}') from error
  matching = [device for device in devices if platform in ('', device.platform)]
  if int(number or 0) >= len(matching):
    names = [f'{device.platform}:{i}' for i, device in enumerate(devices)]
    names += ['cpu'] * (devices[0].platform != 'cpu')
    reason = ''
    if platform in ('gpu', 'cuda', 'tpu') and may_have_accelerator():
      reason = f'; a package for it is installed, {_WHY_NO_ACCELERATOR}'
    raise ValueError(f'--device: there is no {wanted}; choose from {", ".join(names)}{reason}')
  return matching[int(number or 0)]


@contextlib.contextmanager
def _quiet_libraries(keep_programs: bool) -> Iterator[None]:
  """JAX without messages, and with compiled programs kept on disk if wanted.

  Messages and warnings of libraries, such as that there is no GPU, do not help people with pictures.
  """
  # jaxlib reads it when it is imported.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # Else JAX takes three quarters of a GPU's memory at once, also from other programs that use it.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  # JAX sets up its loggers on import, so the levels have to be changed afterwards.
  with _rare_garbage_collection():
    from sadnet_jax.denoise import compilation_cache, job  # noqa: F401
  loggers = [logging.getLogger(name) for name in ('jax', 'jax_plugins')]
  levels = [logger.level for logger in loggers]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    try:
      for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
      with compilation_cache.keeping_programs() if keep_programs else contextlib.nullcontext():
        yield
    finally:
      for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@contextlib.contextmanager
def _rare_garbage_collection() -> Iterator[None]:
  """For importing JAX and Flax, which makes many objects and little garbage: a tenth of a second faster."""
  before = gc.get_threshold()
  gc.set_threshold(_OBJECTS_OF_LIBRARIES)
  try:
    yield
  finally:
    gc.set_threshold(*before)


class _OneLineParser(argparse.ArgumentParser):
  """Names wrong arguments in one line, without a list of all options before it."""

  def error(self, message: str) -> NoReturn:
    """Ends with exit status 2."""
    print_error(f'{message}; {self.prog} --help shows all options and examples')
    raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
  parser = _OneLineParser(
    COMMAND,
    description=_DESCRIPTION,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    'inputs',
    metavar='INPUT',
    nargs='+',
    help="pictures, folders, or patterns in quotes ('**' matches any subfolders)",
  )
  parser.add_argument(
    '-o',
    '--output',
    metavar='OUTPUT',
    required=True,
    help='a picture, whose extension selects the format, or a folder',
  )
  files = parser.add_argument_group('files')
  files.add_argument(
    '-r',
    '--recursive',
    action='store_true',
    help='include the pictures in subfolders, and keep the folder structure',
  )
  existing = files.add_mutually_exclusive_group()
  existing.add_argument('--overwrite', action='store_true', help='replace existing files')
  existing.add_argument(
    '--skip-existing',
    action='store_true',
    help='skip pictures whose output exists, for example to go on after an interruption',
  )
  files.add_argument(
    '--compare',
    action='store_true',
    help='also write NAME.compare.png, with noisy and denoised side by side',
  )
  _add_writing_options(files, 'format of the pictures written to a folder')
  _add_reading_options(files)
  _add_denoising_options(parser)
  _add_device_options(parser)
  parser.add_argument('-q', '--quiet', action='store_true', help='print errors only')
  parser.add_argument(
    '--app',
    action='store_true',
    help=f'show a page in the browser instead, to drop pictures on; see {COMMAND} --app --help',
  )
  parser.add_argument(
    '--list-models', action=_ListModels, nargs=0, help='list the published weights and exit'
  )
  parser.add_argument('--version', action=_Version, nargs=0, help='print the version and exit')
  return parser


def _app_parser() -> argparse.ArgumentParser:
  parser = _OneLineParser(
    f'{COMMAND} --app',
    description='Shows a page in the browser, to drop pictures on; uploads and results are removed.',
    allow_abbrev=False,
  )
  parser.add_argument('--app', action='store_true', required=True, help=argparse.SUPPRESS)
  page = parser.add_argument_group('page')
  page.add_argument(
    '--host',
    default='127.0.0.1',
    help='address to listen on (default: 127.0.0.1, for this machine only; 0.0.0.0: for everyone)',
  )
  page.add_argument('--port', type=_port, help='port to listen on (default: the first free one from 7860)')
  _add_writing_options(page, 'format of the results, as the page opens')
  _add_reading_options(page)
  _add_denoising_options(parser)
  _add_device_options(parser)
  return parser


def _add_writing_options(group, what):
  group.add_argument(
    '--format',
    choices=_FORMATS,
    help=f'{what} (default: that of each input; PNG for HEIC, TIFF for camera raw)',
  )
  group.add_argument(
    '--jpeg-quality',
    metavar='Q',
    type=_jpeg_quality,
    help='quality of JPEG files, from 1 to 100 (default: 95)',
  )


def _add_reading_options(group):
  group.add_argument(
    '--linear',
    action=argparse.BooleanOptionalAction,
    help='whether floating-point files hold linear light (default: OpenEXR does, TIFF does not, JPEG XL '
    'says which)',
  )
  group.add_argument(
    '--white-level',
    metavar='VALUE',
    type=_white_level,
    help='white in 16-bit PNG and TIFF files, such as 4095 for data of 12 bits (default: by their tags, else '
    '65535)',
  )


def _add_denoising_options(parser):
  denoising = parser.add_argument_group('denoising')
  weights = denoising.add_mutually_exclusive_group()
  weights.add_argument(
    '--quality',
    choices=tuple(QUALITIES),
    help='fast: a smaller network for colour pictures; balanced: the default; best: the default averaged '
    'over 8 flips and rotations, 8 times the work',
  )
  weights.add_argument(
    '--model',
    metavar='NAME',
    help='weights: a name from --list-models, a file, a training run, a URL or hf://OWNER/NAME',
  )
  denoising.add_argument(
    '--strength',
    metavar='S',
    type=_strength,
    default=1.0,
    help='from 0, which keeps the noisy picture, to 1, the fully denoised one (default: 1)',
  )
  denoising.add_argument(
    '--chroma-strength',
    metavar='S',
    type=_strength,
    help='the same for colour noise alone; --strength is then for brightness (default: as --strength)',
  )
  denoising.add_argument(
    '--self-ensemble',
    action='store_true',
    help='average over 8 flips and rotations, as --quality best does',
  )
  denoising.add_argument(
    '--dilations',
    metavar='A,B,C,D',
    type=_dilations,
    help='dilation rates of the context block, for .pth files, which do not record them',
  )


def _add_device_options(parser):
  running = parser.add_argument_group('device and memory')
  running.add_argument(
    '--device', metavar='DEVICE', type=_device, help="cpu, gpu, gpu:1, ... (default: JAX's first device)"
  )
  running.add_argument(
    '--tile',
    metavar='PIXELS',
    type=_tile,
    default='auto',
    help='longest side of the tiles of large pictures (a multiple of 8, at least 16 more than the overlap), '
    'auto, or whole',
  )
  running.add_argument(
    '--overlap', metavar='PIXELS', type=int, help='overlap of neighbouring tiles (default: 120)'
  )
  running.add_argument(
    '--no-compilation-cache',
    dest='compilation_cache',
    action='store_false',
    help='do not keep compiled programs on disk',
  )


class _ListModels(argparse.Action):
  """Prints the published weights and exits."""

  def __call__(self, parser, namespace, values, option_string=None):
    try:
      entries = available()
    except ValueError as error:
      parser.error(str(error))
    print(*entries.values(), sep='\n', flush=True)
    parser.exit()


class _Version(argparse.Action):
  """Prints the version of the installed package and exits."""

  def __call__(self, parser, namespace, values, option_string=None):
    from sadnet_jax import machine

    print(COMMAND, machine.version('sadnet-jax') or '(not installed)', flush=True)
    parser.exit()


def _strength(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = float('nan')
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f'must be a number from 0 to 1, not {text!r}')
  return value


def _white_level(text: str) -> int:
  value = int(text) if text.isdecimal() else 0
  if not 1 <= value <= 65535:
    raise argparse.ArgumentTypeError(f'must be a whole number from 1 to 65535, not {text!r}')
  return value


def _jpeg_quality(text: str) -> int:
  value = int(text) if text.isdecimal() else 0
  if not 1 <= value <= 100:
    raise argparse.ArgumentTypeError(f'must be a whole number from 1 to 100, not {text!r}')
  return value


def _port(text: str) -> int:
  if not (text.isdecimal() and 0 < int(text) < 2**16):
    raise argparse.ArgumentTypeError(f'must be a number from 1 to {2**16 - 1}, not {text!r}')
  return int(text)


def _tile(text: str) -> int | Literal['auto', 'whole']:
  if text == 'auto':
    return 'auto'
  if text == 'whole':
    return 'whole'
  try:
    return int(text)
  except ValueError:
    raise argparse.ArgumentTypeError(f'must be auto, whole or a number of pixels, not {text!r}') from None


def _dilations(text: str) -> tuple[int, ...]:
  try:
    return tuple(int(part) for part in text.split(','))
  except ValueError:
    raise argparse.ArgumentTypeError(f'must be numbers such as 1,2,3,4, not {text!r}') from None


def _device(text: str) -> str:
  platform, colon, number = text.partition(':')
  if platform not in ('cpu', 'gpu', 'tpu') or (colon and not number.isdecimal()):
    raise argparse.ArgumentTypeError(
      f'must be cpu, gpu or tpu, optionally with a number as in gpu:1, not {text!r}'
    )
  return text


def _protect_names(argv):
  """Puts ./ before names after -- that look like options, which parse_intermixed_args would take as such."""
  arguments = list(sys.argv[1:] if argv is None else argv)
  if '--' not in arguments:
    return arguments
  at = arguments.index('--')
  names = (os.path.join(os.curdir, x) if x.startswith('-') else x for x in arguments[at + 1 :])
  return [*arguments[:at], *names]
