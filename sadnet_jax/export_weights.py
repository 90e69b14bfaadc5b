"""Writes the weights of a run's checkpoint as one file.

  python -m sadnet_jax.export_weights --config=configs/color_fast.py:50 --checkpoint=RUN \\
    --output=color_50.safetensors --dtype=float16

Several runs of one network are averaged, weight by weight: ``--checkpoint=FIRST,SECOND --shares=2,1``
gives (2 * first + second) / 3. Of a network and of what it was fine-tuned to, that often is better
than either ("Robust fine-tuning of zero-shot models", Wortsman et al. 2022). Of networks that do not
come from the same weights it is none.

The file is taken wherever a run is: ``evaluate.py --checkpoint=color_50.safetensors``,
``train.py --config.init_from=color_50.safetensors``.
"""

import math
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from sadnet_jax import checkpoints, command_line
from sadnet_jax.evaluation.results import params_hash
from sadnet_jax.train_state import model_from_config
from sadnet_jax.weights import AVERAGE_OF, averaged, save_weights


def main() -> None:
  """Defines the flags and runs."""
  config = config_flags.DEFINE_config_file('config', None, 'The experiment, such as configs/color.py:50.')
  checkpoint = flags.DEFINE_list(
    'checkpoint',
    None,
    'Folder of the run, or of one of its checkpoints; or several, to average.',
    required=True,
  )
  shares = flags.DEFINE_list('shares', [], 'Of each in the average, such as 2,1; by default equal ones.')
  output = flags.DEFINE_string('output', None, 'The file to write, *.safetensors.', required=True)
  dtype = flags.DEFINE_enum('dtype', 'float32', ['float32', 'float16'], 'Of the weights in the file.')
  about = flags.DEFINE_string('about', '', 'What to tell of the weights: how they were trained.')
  overwrite = flags.DEFINE_bool('overwrite', False, 'Write over a file that is there.')
  flags.mark_flag_as_required('config')

  def command() -> None:
    if Path(output.value).exists() and not overwrite.value:
      raise ValueError(f'--output: got {output.value}, which is there, want another, or pass --overwrite')
    fields = config.value.to_dict()
    loaded = [_load(path, config.value) for path in checkpoint.value]
    parts = command_line.numbers('shares', shares.value) or [1.0] * len(loaded)
    if len(parts) != len(loaded) or not all(0 < share < math.inf for share in parts):
      raise ValueError(
        f'--shares: got {parts} for {len(loaded)} checkpoint(s), want a number above 0 for each'
      )
    # An average of one is that one.
    step, params = loaded[-1]
    told = {'config': command_line.config_argument(), 'about': about.value}
    if len(loaded) > 1:
      told[AVERAGE_OF] = ' + '.join(
        f'{share:g} * {params_hash(p)}' for share, (_, p) in zip(parts, loaded, strict=True)
      )
      params = averaged([p for _, p in loaded], parts)
    save_weights(
      output.value,
      params,
      model=fields['model'],
      step=step,
      about=told,
      dtype=dtype.value,
    )
    print(f'{output.value}: {Path(output.value).stat().st_size / 1e6:.1f} MB, step {step}')

  command_line.run(command)


def _load(path, config):
  """Step and parameters; ValueError unless they are of the config."""
  fields = config.to_dict()
  if checkpoints.is_run(path):
    params, step, _ = checkpoints.load_run_of(path, fields)
    return step, params
  return checkpoints.restore_params(path, model_from_config(config.model), fields)


if __name__ == '__main__':
  main()
