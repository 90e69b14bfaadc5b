"""The command sadnet-denoise: pictures in, denoised pictures out.

  sadnet-denoise photo.jpg -o denoised.png
  sadnet-denoise photos -o denoised/ --recursive --compare

Exit status: 0 if all pictures are denoised; 1 if some are not, each told of by one line; 2 if nothing
was begun, for what was asked cannot be; 130 after Ctrl-C.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Literal
import warnings

import sadnet_jax
from sadnet_jax.denoise import interruption
from sadnet_jax.denoise.report import COMMAND, tell

if TYPE_CHECKING:
  import jax

_DESCRIPTION = """\
Denoises pictures: PNG, JPEG, TIFF, WebP and BMP, of 8 or 16 bits, grey or colour, of any size. Transparency,
orientation, colour profile and metadata are kept."""
_EPILOG = """\
examples:
  sadnet-denoise photo.jpg -o denoised.png
  sadnet-denoise photos -o denoised/ --recursive --compare
  sadnet-denoise 'photos/**/*.tif' -o denoised/ --model runs/color-blind

exit status: 0 if all pictures are denoised, 1 if some are not, 2 if nothing was begun, 130 after Ctrl-C"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    argv: Its arguments, by default those of the process.

  Returns:
    The exit status. For wrong arguments, --help and the like SystemExit is raised instead, with it.
  """
  try:
    with interruption.deferred():
      return _denoise(_parser().parse_intermixed_args(_names_marked(argv)))
  except KeyboardInterrupt:
    tell('interrupted: what is written is complete')
    return 130
  except BrokenPipeError:
    # Nobody reads on; Python itself would complain of what is left to say.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return 1


def _denoise(arguments: argparse.Namespace) -> int:
  try:
    # Before JAX, which takes a second to import: most mistakes are in the names.
    from sadnet_jax.denoise.targets import find_targets

    targets = find_targets(
      arguments.inputs,
      arguments.output,
      recursive=arguments.recursive,
      compare=arguments.compare,
      overwrite=arguments.overwrite,
    )
    with _quiet_libraries(), _cached_programs(arguments.compilation_cache):
      from sadnet_jax.denoise import job
      from sadnet_jax.denoise.report import Report

      interruption.check()
      networks = job.Networks(
        arguments.model, dilations=arguments.dilations, options=_denoiser_options(arguments)
      )
      with Report(targets, quiet=arguments.quiet) as report:
        job.denoise_all(targets, networks, report, overwrite=arguments.overwrite)
  except (ValueError, ImportError, OSError) as error:
    if isinstance(error, BrokenPipeError):
      raise
    tell(str(error))
    return 2
  if report.failed and len(targets) > 1:
    tell(f'{report.failed} of {len(targets)} pictures are not denoised')
  return 1 if report.failed else 0


def _denoiser_options(arguments):
  options: dict[str, Any] = {'ensemble': arguments.self_ensemble, 'tile_px': arguments.tile}
  if arguments.overlap is not None:
    options['overlap_px'] = arguments.overlap
  options['device'] = choose_device(arguments.device)
  return options


def choose_device(wanted: str | None) -> 'jax.Device':
  """A device of this machine.

  Args:
    wanted: 'cpu', 'gpu' or 'tpu', perhaps with a colon and its number; None for JAX's first. Where it
      is named before JAX is used, no other kind is touched.

  Raises:
    ValueError: There is no such device; those that there are are told. Or JAX fails to use any.
  """
  import jax

  platform, _, number = (wanted or '').partition(':')
  if platform == 'cpu':
    jax.config.update('jax_platforms', 'cpu')
  elif platform and jax.config.jax_platforms == 'cpu':  # type: ignore[attr-defined]
    # The option comes before the environment.
    jax.config.update('jax_platforms', None)
  try:
    there = jax.local_devices()
  except RuntimeError as error:
    raise ValueError(
      f'--device: got {wanted or "none"}, which JAX fails at ({error}), want one that works'
    ) from error
  fitting = [device for device in there if platform in ('', device.platform)]
  if int(number or 0) >= len(fitting):
    names = [f'{device.platform}:{i}' for i, device in enumerate(there)]
    names += ['cpu'] * (there[0].platform != 'cpu')
    raise ValueError(f'--device: got {wanted}, want one that is there: {", ".join(names)}')
  return fitting[int(number or 0)]


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
  """What JAX logs is of no use to those who have pictures: that there is no GPU, how it compiles."""
  # Read when jaxlib is imported.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # First: it takes its logger's level for its own, and knows but those with a name.
  import jax  # noqa: F401

  loggers = [logging.getLogger(name) for name in ('jax', 'jax_plugins')]
  levels = [logger.level for logger in loggers]
  try:
    for logger in loggers:
      logger.setLevel(logging.CRITICAL + 1)
    yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


@contextlib.contextmanager
def _cached_programs(enabled: bool) -> Iterator[None]:
  """Keeps compiled programs for the next time, and nothing that is found damaged; no warnings are shown."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    from sadnet_jax.denoise import compilation_cache

    folder = compilation_cache.enable() if enabled else None
    try:
      yield
    finally:
      if folder is not None and any(compilation_cache.is_damage(str(w.message)) for w in caught):
        compilation_cache.clear(folder)


class _ListModels(argparse.Action):
  """Prints the published weights and ends, as --help."""

  def __call__(self, parser, namespace, values, option_string=None):
    from sadnet_jax.weights.index import available

    try:
      entries = available()
    except ValueError as error:
      parser.error(str(error))
    print(*entries.values(), sep='\n', flush=True)
    parser.exit()


def _tile(text: str) -> int | Literal['auto', 'whole']:
  if text == 'auto':
    return 'auto'
  if text == 'whole':
    return 'whole'
  try:
    return int(text)
  except ValueError:
    raise argparse.ArgumentTypeError(f'got {text!r}, want auto, whole or pixels') from None


def _dilations(text: str) -> tuple[int, ...]:
  try:
    return tuple(int(part) for part in text.split(','))
  except ValueError:
    raise argparse.ArgumentTypeError(f'got {text!r}, want numbers, such as 1,2,3,4') from None


def _device(text: str) -> str:
  platform, colon, number = text.partition(':')
  if platform not in ('cpu', 'gpu', 'tpu') or (colon and not number.isdecimal()):
    raise argparse.ArgumentTypeError(f'got {text!r}, want cpu, gpu or tpu, perhaps with a number: gpu:1')
  return text


def _names_marked(argv):
  """What follows -- are names, also where argparse, which takes options anywhere, passes over the mark."""
  arguments = list(sys.argv[1:] if argv is None else argv)
  if '--' not in arguments:
    return arguments
  at = arguments.index('--')
  names = (os.path.join(os.curdir, x) if x.startswith('-') else x for x in arguments[at + 1 :])
  return [*arguments[:at], *names]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    COMMAND,
    description=_DESCRIPTION,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add(
    'inputs',
    metavar='INPUT',
    nargs='+',
    help="pictures, folders of them, patterns in quotes ('**' for any subfolders)",
  )
  add(
    '-o',
    '--output',
    metavar='OUTPUT',
    required=True,
    help='a picture, its ending tells the format; or a folder',
  )
  add(
    '-r', '--recursive', action='store_true', help='take pictures in subfolders, too; they keep their place'
  )
  add('--overwrite', action='store_true', help='replace outputs that are there')
  add(
    '--compare', action='store_true', help='write NAME.compare.png, too: noisy and denoised beside each other'
  )
  add('--model', metavar='NAME', help='weights: a name of --list-models, a file, a training run or a URL')
  add(
    '--dilations',
    metavar='A,B,C,D',
    type=_dilations,
    help='of the context block, for .pth files, which do not tell',
  )
  add(
    '--self-ensemble',
    action='store_true',
    help='mean over 8 flips and rotations: a little better, 8 times the work',
  )
  add('--device', metavar='DEVICE', type=_device, help="cpu, gpu, gpu:1, ...; by default JAX's first")
  add(
    '--tile',
    metavar='PIXELS',
    type=_tile,
    default='auto',
    help='side of the tiles of large pictures (at least 16 more than they overlap), auto, or whole',
  )
  add('--overlap', metavar='PIXELS', type=int, help='of neighbouring tiles (default: 120)')
  add('-q', '--quiet', action='store_true', help='say nothing but errors')
  add(
    '--no-compilation-cache', dest='compilation_cache', action='store_false', help='keep no compiled programs'
  )
  add('--list-models', action=_ListModels, nargs=0, help='list the published weights and end')
  add('--version', action='version', version=f'{COMMAND} {sadnet_jax.__version__}')
  return parser
