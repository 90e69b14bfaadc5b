"""Evaluates a trained SADNet on a folder of clean images.

  python evaluate.py --config=configs/color.py:50 --checkpoint=runs/color-50 --dataset=FOLDER

Adds Gaussian noise of the config's sigma to every image, prints the PSNR before
and after, and writes the pictures and ``results.json``.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from sadnet_jax import checkpoints, command_line, evaluation
from sadnet_jax.images import find_data_dir
from sadnet_jax.noise import PROTOCOLS
from sadnet_jax.train_state import model_from_config

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment, such as configs/color.py:50.')
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'Folder of the run, or of one of its checkpoints.', required=True
)
_DATASET = flags.DEFINE_string(
  'dataset', None, 'Folder of clean images; may be relative to SADNET_DATA.', required=True
)
_PROTOCOL = flags.DEFINE_enum(
  'protocol',
  None,
  PROTOCOLS,
  'How noise is added; by default as the config trains: clipped8 if it clips, unclipped if not.',
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder for pictures and results; by default a new one in the folder of the run.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Write into an output folder that has something in it.')


def main() -> None:
  """Evaluates the run of the command line."""
  config, dataset = _CONFIG.value, find_data_dir(_DATASET.value, '--dataset')
  sigma_255 = config.noise.sigma_255
  protocol = _PROTOCOL.value or ('clipped8' if config.noise.clip else 'unclipped')
  model = model_from_config(config.model)
  step, params = checkpoints.restore_params(_CHECKPOINT.value, model, config.to_dict())
  label = f'{dataset.resolve().name}-sigma{sigma_255:g}-{protocol}-step{step}'
  run, _ = checkpoints.split_path(_CHECKPOINT.value)
  output = Path(_OUTPUT.value or run / 'evaluation' / label)
  if output.exists() and not output.is_dir():
    raise ValueError(f'--output: got {output}, which is a file, want a folder')
  if output.exists() and any(output.iterdir()) and not _OVERWRITE.value:
    raise ValueError(f'{output}: got a folder with something in it, want an empty one, or pass --overwrite')

  print(f'{dataset}: sigma_255 {sigma_255:g}, protocol {protocol}, checkpoint of step {step}')
  print(f'{"image":32} {"noisy":>9} {"denoised":>9}  PSNR in dB')
  results = []
  denoise = evaluation.make_denoiser(model, params)
  for result in evaluation.evaluate_folder(
    denoise, dataset, channels=config.model.channels, sigma_255=sigma_255, protocol=protocol, output=output
  ):
    results.append(result)
    print(f'{result.name:32} {result.noisy_psnr:9.3f} {result.denoised_psnr:9.3f}', flush=True)
  noisy, denoised = evaluation.mean_psnr(results)
  print(f'{f"mean of {len(results)}":32} {noisy:9.3f} {denoised:9.3f}')
  labels = {
    'dataset': dataset.resolve().name,
    'sigma_255': sigma_255,
    'protocol': protocol,
    'checkpoint': str(_CHECKPOINT.value),
    'step': step,
  }
  evaluation.write_results(output, results, labels)
  print(f'pictures and {evaluation.RESULTS_FILE} are in {output}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  command_line.run(main)
