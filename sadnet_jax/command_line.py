"""Shared by the commands: parsing flags, silencing libraries, reporting errors in one line."""

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import re
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from sadnet_jax.files import one_line, print_any_name


def run(command: Callable[[], None]) -> None:
  """Parses the flags and runs a command; after a ValueError or OSError, exits with a one-line message.

  Args:
    command: The command, which reads the values of its flags itself.
  """
  name = _command_name()

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments {" ".join(argv[1:])}')
    logging.set_verbosity(logging.WARNING)
    try:
      command()
    except (ValueError, OSError) as error:
      raise SystemExit(f'{name}: {one_line(error)}') from error

  print_any_name()
  # TensorFlow reads these when it is imported, later if at all. It only decodes and crops images here, for
  # which oneDNN adds nothing but messages.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  app.run(main, flags_parser=_parse)


def _command_name() -> str:
  """The command as users type it: 'train.py', or 'python -m tools.plot_training'."""
  module = sys.modules['__main__'].__spec__
  return f'python -m {module.name}' if module else Path(sys.argv[0]).name


# Packages whose code runs while flags are parsed.
_PARSERS = ('absl', 'ml_collections', 'sadnet_jax')
# A ~ that begins a value of a flag, one of its parts, or the folder in clean:FOLDER.
_HOME = re.compile(r'(?<=[=,:])~[^/,]*')


def _parse(argv: list[str]) -> list[str]:
  # Shells replace the ~ of `--flag ~/x`, but not that of --flag=~/x.
  argv = [_HOME.sub(lambda match: os.path.expanduser(match[0]), a) if a.startswith('--') else a for a in argv]
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as error:
    given = ' '.join(a for a in argv if a.startswith('--config.'))
    if not given or _is_from_config_file(error):
      raise
    # ml_collections raises this for unknown fields of the config, with a text that is quoted twice.
    field = one_line(str(error).replace('\\n', ' ')).strip('"\'')
    raise SystemExit(
      f'{_command_name()}: unknown field {field} in {given}; configs/default.py lists all fields'
    ) from error


def _is_from_config_file(error: AttributeError) -> bool:
  """Whether the code of a config raised it, rather than the parsing of flags."""
  frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
  return any(frame.f_globals['__name__'].split('.')[0] not in _PARSERS for frame in frames)


def config_name(argument: str) -> str:
  """Returns the name of an experiment: 'configs/color.py:50' -> 'color-50'."""
  path, _, value = argument.partition(':')
  return Path(path).stem + (f'-{value}' if value else '')


def config_argument() -> str:
  """Returns the value of the flag ``--config``, such as 'configs/color.py:50'."""
  return config_flags.get_config_filename(flags.FLAGS['config'])


def numbers(flag: str, texts: Sequence[str]) -> list[float]:
  """Parses the values of a list flag as numbers; raises ValueError if one is not a number."""
  try:
    return [float(text) for text in texts]
  except ValueError as error:
    raise ValueError(f'--{flag}={",".join(texts)} is not a list of numbers such as 30,50') from error
