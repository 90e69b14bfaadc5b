"""Trains SADNet.

  python train.py --config=configs/color.py:50 --config.data.train_dir=FOLDER

Run the same command again to continue a run that was stopped.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from sadnet_jax import command_line, training

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment, such as configs/color.py:50.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; by default runs/<name of the config>.')


def main() -> None:
  """Trains the experiment of the command line."""
  name = command_line.config_name(config_flags.get_config_filename(flags.FLAGS['config']))
  training.train(_CONFIG.value, _WORKDIR.value or Path('runs', name))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  command_line.run(main)
