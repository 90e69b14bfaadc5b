"""Writes the weights of a run's checkpoint, or the average of several, as one file.

  python -m tools.export_weights --config=configs/color_fast.py:50 --checkpoint=RUN \\
    --output=color_50.safetensors --dtype=float16

Several are averaged, weight by weight: ``--checkpoint=FIRST,SECOND --shares=2,1`` gives
(2 * first + second) / 3, with the step of the last. What was fine-tuned from the same weights, and these
weights, may be better averaged than each is ("Model soups" and "Robust fine-tuning of zero-shot models",
both Wortsman et al. 2022). The average of networks that began differently denoises nothing.

The file is taken wherever a run is: ``evaluate.py --checkpoint=color_50.safetensors``,
``train.py --config.init_from=color_50.safetensors``.
"""

import math
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from sadnet_jax import command_line
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
    'A run, one of its checkpoints, a file of weights or a published name; or several, to average.',
    required=True,
  )
  shares = flags.DEFINE_list(
    'shares', [], 'Of each in the average, in their order, such as 2,1: only ratios matter; equal by default.'
  )
  output = flags.DEFINE_string('output', None, 'The file to write, *.safetensors.', required=True)
  dtype = flags.DEFINE_enum('dtype', 'float32', ['float32', 'float16'], 'Of the weights in the file.')
  about = flags.DEFINE_string('about', '', 'What to tell of the weights: how they were trained.')
  overwrite = flags.DEFINE_bool('overwrite', False, 'Write over a file that is there.')
  flags.mark_flag_as_required('config')

  def command() -> None:
    if Path(output.value).exists() and not overwrite.value:
      raise ValueError(f'--output: got {output.value}, which is there, want another, or pass --overwrite')
    ratios = _shares(checkpoint.value, shares.value)
    steps, trees = zip(*(_load(path, config.value) for path in checkpoint.value), strict=True)
    told = {'config': command_line.config_argument(), 'about': about.value}
    if len(trees) > 1:
      told[AVERAGE_OF] = average_text(ratios, [params_hash(tree) for tree in trees])
    save_weights(
      output.value,
      averaged(trees, ratios),
      model=config.value.model.to_dict(),
      step=steps[-1],
      about=told,
      dtype=dtype.value,
    )
    print(f'{output.value}: {Path(output.value).stat().st_size / 1e6:.1f} MB, step {steps[-1]}')

  command_line.run(command)


def _shares(paths, texts):
  """How much each checkpoint counts."""
  if not paths or not all(paths):
    raise ValueError(
      f'--checkpoint: got {",".join(paths)!r}, want a run or a file of weights, or several between commas'
    )
  shares = command_line.numbers('shares', texts) or [1.0] * len(paths)
  if len(shares) != len(paths) or not all(0 < share < math.inf for share in shares):
    raise ValueError(f'--shares: got {shares} for {len(paths)} checkpoint(s), want a number above 0 for each')
  return shares


def _load(path, config):
  """Step and parameters; ValueError unless they are of the config."""
  fields = config.to_dict()
  if is_run(path):
    params, step, _ = checkpoints.load_run_of(path, fields)
    return step, params
  return load_params(path, fields['model'])


if __name__ == '__main__':
  main()
