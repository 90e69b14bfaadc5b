"""Trains SADNet.

  python train.py --config=configs/color.py:50 --config.data.train_dir=FOLDER

Run the same command again to continue a run that was stopped.
"""

from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sadnet_jax.training import train_and_evaluate

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment, such as configs/color.py:50.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; by default runs/<name of the config>.')


def default_workdir(config_argument: str) -> Path:
  """'configs/color.py:50' -> runs/color-50."""
  path, _, argument = config_argument.partition(':')
  return Path('runs', Path(path).stem + (f'-{argument}' if argument else ''))


def main(argv: list[str]) -> None:
  """Trains the experiment of the command line."""
  if len(argv) > 1:
    raise app.UsageError(f'got unexpected arguments {argv[1:]}')
  workdir = _WORKDIR.value or default_workdir(config_flags.get_config_filename(flags.FLAGS['config']))
  try:
    train_and_evaluate(_CONFIG.value, workdir)
  except ValueError as error:
    raise SystemExit(f'train.py: {error}') from error


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
