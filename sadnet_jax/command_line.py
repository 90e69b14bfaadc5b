"""What the commands share: flags, quiet libraries, errors as one line."""

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import sys

from absl import app, flags, logging
from ml_collections import config_flags


def run(command: Callable[[], None]) -> None:
  """Parses the flags and runs a command; a ValueError or OSError ends it with one line.

  Args:
    command: The command; reads its flags itself.
  """
  name = Path(sys.argv[0]).name

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f'got unexpected arguments {argv[1:]}')
    logging.set_verbosity(logging.WARNING)
    try:
      command()
    except (ValueError, OSError) as error:
      raise SystemExit(f'{name}: {error}') from error

  # Read by TensorFlow when it is imported, which happens later, if at all. It only
  # decodes and crops here; oneDNN would add nothing but messages.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  name = Path(argv[0]).name
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as error:
    given = ' '.join(a for a in argv if a.startswith('--config.'))
    if not given:
      raise
    # What ml_collections raises for a field the config does not have; its text is
    # quoted twice over.
    field = ' '.join(str(error).replace('\\n', ' ').split()).strip('"\'')
    raise SystemExit(
      f'{name}: unknown field {field} in {given}; configs/default.py has all fields'
    ) from error


def config_name(argument: str) -> str:
  """'configs/color.py:50' -> 'color-50'."""
  path, _, value = argument.partition(':')
  return Path(path).stem + (f'-{value}' if value else '')


def config_argument() -> str:
  """What the flag ``--config`` was given: 'configs/color.py:50'."""
  return config_flags.get_config_filename(flags.FLAGS['config'])


def numbers(flag: str, texts: Sequence[str]) -> list[float]:
  """A list flag's values as numbers; ValueError if one is none."""
  try:
    return [float(text) for text in texts]
  except ValueError as error:
    raise ValueError(f'--{flag}: got {",".join(texts)}, want numbers, such as --{flag}=30,50') from error
