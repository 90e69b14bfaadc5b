"""Writes the weights of a checkpoint, or the average of several, to one file.

  python -m tools.export_weights --config=configs/color_fast.py:50 --checkpoint=RUN \\
    --output=color_50.safetensors --dtype=float16

Several checkpoints are averaged, weight by weight: ``--checkpoint=FIRST,SECOND --shares=2,1`` gives
(2 * first + second) / 3, with the step of the last. Checkpoints fine-tuned from a common start can be
averaged; sometimes the average beats each of them ("Model soups" and "Robust fine-tuning of zero-shot
models", both Wortsman et al. 2022). The average of networks with different starts does not denoise.

The file can be used wherever a run can: ``evaluate.py --checkpoint=color_50.safetensors``,
``train.py --config.init_from=color_50.safetensors``.
"""

import math
from pathlib import Path

from sadnet_jax.extras import required

with required('evaluate'):
  from absl import flags
  from ml_collections import config_flags

  from sadnet_jax import command_line
  from sadnet_jax.evaluation.results import shareable
  from sadnet_jax.files import refuse_existing
  from sadnet_jax.weights import checkpoints
  from sadnet_jax.weights.loading import load_params
  from sadnet_jax.weights.paths import is_run
  from sadnet_jax.weights.safetensors import AVERAGE_OF, average_text, averaged, params_hash, save_weights


def main() -> None:
  """Defines the flags and runs."""
  config = config_flags.DEFINE_config_file('config', None, 'The experiment, such as configs/color.py:50.')
  checkpoint = flags.DEFINE_list(
    'checkpoint',
    None,
    'A run, one of its checkpoints, a file of weights, or a published name; or several to average.',
    required=True,
  )
  shares = flags.DEFINE_list(
    'shares',
    [],
    'Share of each checkpoint in the average, such as 2,1. Only ratios matter; equal by default.',
  )
  output = flags.DEFINE_string('output', None, 'File to write, *.safetensors.', required=True)
  dtype = flags.DEFINE_enum('dtype', 'float32', ['float32', 'float16'], 'Dtype of the weights in the file.')
  text = flags.DEFINE_string('about', '', 'Text to store with the weights, such as how they were trained.')
  overwrite = flags.DEFINE_bool('overwrite', False, 'Replace an existing file.')
  flags.mark_flag_as_required('config')

  def command() -> None:
    refuse_existing(output.value, overwrite=overwrite.value)
    ratios = parse_shares(checkpoint.value, shares.value)
    steps, trees = zip(*(_load(path, config.value) for path in checkpoint.value), strict=True)
    about = shareable({'config': command_line.config_argument(), 'about': text.value})
    if len(trees) > 1:
      about[AVERAGE_OF] = average_text(ratios, [params_hash(tree) for tree in trees])
    save_weights(
      output.value,
      averaged(trees, ratios),
      model=config.value.model.to_dict(),
      step=steps[-1],
      about=about,
      dtype=dtype.value,
      overwrite=overwrite.value,
    )
    print(f'{output.value}: {Path(output.value).stat().st_size / 1e6:.1f} MB, step {steps[-1]}')

  command_line.run(command)


def parse_shares(paths, texts):
  """The share of each checkpoint in the average."""
  if not paths or not all(paths):
    raise ValueError(f'--checkpoint: {",".join(paths)!r} has an empty name; separate runs or files by commas')
  shares = command_line.numbers('shares', texts) or [1.0] * len(paths)
  if len(shares) != len(paths) or not all(0 < share < math.inf for share in shares):
    raise ValueError(f'--shares: {len(paths)} checkpoint(s) need as many numbers above 0, not {shares}')
  return shares


def _load(path, config):
  """Step and parameters of a checkpoint; ValueError unless they are of the config."""
  fields = config.to_dict()
  if is_run(path):
    params, step, _ = checkpoints.load_matching_run(path, fields)
    return step, params
  return load_params(path, fields['model'])


if __name__ == '__main__':
  main()
