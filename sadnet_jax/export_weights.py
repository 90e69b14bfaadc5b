"""Writes the weights of a run's checkpoint as one file.

  python -m sadnet_jax.export_weights --config=configs/color_fast.py:50 --checkpoint=RUN \\
    --output=color_50.safetensors --dtype=float16

The file is taken wherever a run is: ``evaluate.py --checkpoint=color_50.safetensors``,
``train.py --config.init_from=color_50.safetensors``.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from sadnet_jax import checkpoints, command_line
from sadnet_jax.train_state import model_from_config
from sadnet_jax.weights import save_weights


def main() -> None:
  """Defines the flags and runs."""
  config = config_flags.DEFINE_config_file('config', None, 'The experiment, such as configs/color.py:50.')
  checkpoint = flags.DEFINE_string(
    'checkpoint', None, 'Folder of the run, or of one of its checkpoints.', required=True
  )
  output = flags.DEFINE_string('output', None, 'The file to write, *.safetensors.', required=True)
  dtype = flags.DEFINE_enum('dtype', 'float32', ['float32', 'float16'], 'Of the weights in the file.')
  about = flags.DEFINE_string('about', '', 'What to tell of the weights: how they were trained.')
  overwrite = flags.DEFINE_bool('overwrite', False, 'Write over a file that is there.')
  flags.mark_flag_as_required('config')

  def command() -> None:
    if Path(output.value).exists() and not overwrite.value:
      raise ValueError(f'--output: got {output.value}, which is there, want another, or pass --overwrite')
    fields = config.value.to_dict()
    if checkpoints.is_run(checkpoint.value):
      params, step, _ = checkpoints.load_run_of(checkpoint.value, fields)
    else:
      step, params = checkpoints.restore_params(
        checkpoint.value, model_from_config(config.value.model), fields
      )
    save_weights(
      output.value,
      params,
      model=fields['model'],
      step=step,
      about={'config': command_line.config_argument(), 'about': about.value},
      dtype=dtype.value,
    )
    print(f'{output.value}: {Path(output.value).stat().st_size / 1e6:.1f} MB, step {step}')

  command_line.run(command)


if __name__ == '__main__':
  main()
