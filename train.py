"""Trains SADNet.

  python train.py --config=configs/color.py:50 --config.data.train.clean=FOLDER

Run the same command again to continue a run that was stopped. To train with several processes, start the
same command in each of them with ``--distributed``.

Exit status: 0 at the end of the run, 130 if SIGTERM or Ctrl-C stopped it before, 1 after an error.
"""

import contextlib
from pathlib import Path
import sys

from sadnet_jax.extras import required

with required('train'):
  from absl import flags, logging
  from ml_collections import config_flags

  from sadnet_jax import command_line, machine
  from sadnet_jax.denoise import compilation_cache
  from sadnet_jax.training import distributed, loop

# As shells report a process that Ctrl-C ended.
_STOPPED = 130

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The experiment to run, such as configs/color.py:50.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run (default: runs/<name of the config>).')
_DISTRIBUTED = flags.DEFINE_string(
  'distributed',
  None,
  "Train with several processes: 'auto' under Slurm, Open MPI, Kubernetes or on Cloud TPU; otherwise "
  'INDEX/COUNT@HOST:PORT with the address of process 0, such as 0/2@10.0.0.1:1234.',
)


def main() -> None:
  """Trains the experiment given on the command line."""
  if _DISTRIBUTED.value:
    distributed.initialize(_DISTRIBUTED.value)
  if note := machine.slow_gradients_note():
    logging.warning('%s', note)
  name = command_line.config_name(command_line.config_argument())
  on_error = distributed.exit_all_on_error('train.py') if _DISTRIBUTED.value else contextlib.nullcontext()
  with on_error, compilation_cache.enabled():
    state = loop.train(_CONFIG.value, _WORKDIR.value or Path('runs', name))
  if int(state.step) < _CONFIG.value.steps:
    sys.exit(_STOPPED)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  machine.keep_freed_memory()
  command_line.run(main)
