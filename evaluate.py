"""Evaluates a trained SADNet, and other methods, by published protocols.

  python evaluate.py --config=configs/color.py:blind --checkpoint=runs/color-blind \\
    --datasets=cbsd68,kodak24 --sigmas=30,50,70 --data=FOLDER
  python evaluate.py --methods=noisy,bm3d --datasets=cbsd68 --sigmas=50

Sets known by name are looked for in the folder of ``--data``; any folder of clean
images or of pairs can be given too. Prints a table, the paper's figures beside
ours, and writes results.json, images.csv, index.html (to look at), the denoised
pictures, and the submissions of sets without public ground truth.
"""

from pathlib import Path

from absl import flags
import jax
from ml_collections import config_flags

from sadnet_jax import command_line
from sadnet_jax.data.test_sets import SCORED, SIDD_FORMS, UNSCORED
from sadnet_jax.evaluation import run
from sadnet_jax.evaluation.methods import BM3D, Method, Noisy, SADNetMethod
from sadnet_jax.evaluation.protocols import PROTOCOLS, UNCLIPPED, of_training
from sadnet_jax.training.state import model_from_config
from sadnet_jax.weights import checkpoints
from sadnet_jax.weights.safetensors import params_hash

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The experiment, such as configs/color.py:50. For sadnet.'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Folder of the run, or of one of its checkpoints; a .safetensors file, or its URL; or a name of published '
  'weights, such as color_50. For sadnet.',
)
_DATASETS = flags.DEFINE_list(
  'datasets',
  None,
  f'Some of {", ".join((*SCORED, *UNSCORED))}; or folders of clean images or of pairs (clean:FOLDER and '
  'pairs:FOLDER say which).',
  required=True,
)
_DATA = flags.DEFINE_string(
  'data', None, 'Folder with the sets known by name; by default that of the variable SADNET_DATA.'
)
_METHODS = flags.DEFINE_list('methods', ['sadnet'], 'Some of sadnet, noisy (the image as it is), bm3d.')
_SIGMAS = flags.DEFINE_list(
  'sigmas',
  None,
  "Standard deviations of the noise to add, on the scale of 8-bit images; by default the config's.",
)
_PROTOCOLS = flags.DEFINE_list(
  'protocols',
  None,
  f'How clean images are evaluated: some of {", ".join(PROTOCOLS)}; by default the one whose '
  'noise is as in the training of the config, else unclipped.',
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  "Folder for what is written; by default a new one, in the run's folder or below evaluation/.",
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Write into an output folder that has something in it.')
_KEEP_GOING = flags.DEFINE_bool(
  'keep_going', False, 'Evaluate the rest where something is bad, list what was, and fail at the end.'
)
flags.DEFINE_alias('keep-going', 'keep_going')
_PICTURES = flags.DEFINE_bool('pictures', True, 'Write the pictures, alone and beside noisy and clean.')
_PAGE_IMAGES = flags.DEFINE_integer(
  'page_images',
  8,
  'Images of each result on the page: half of them the worst, half the best.',
  lower_bound=0,
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 1, 'Images a device denoises at once. For sadnet.')
_PAD_TO_PX = flags.DEFINE_integer(
  'pad_to_px',
  None,
  'Extend sides to multiples of this; by default 8, as the network does, or 64 where a set has more than 8 '
  'sizes. For sadnet.',
)
_SIDD_FORMS = flags.DEFINE_list(
  'sidd_forms', ['csv'], f"Of the submission to SIDD's benchmark, some of {', '.join(SIDD_FORMS)}."
)
_DND_MARGIN_PX = flags.DEFINE_integer(
  'dnd_margin_px', 64, 'Pixels around each box of DND that the method sees as well.', lower_bound=0
)


def main() -> None:
  """Evaluates what the command line asks for."""
  config = _CONFIG.value
  sigmas_255: list[float] = []
  if _SIGMAS.value is not None:
    sigmas_255 = command_line.numbers('sigmas', _SIGMAS.value)
  elif config is not None and config.noise.sigma_255 > 0:
    sigmas_255 = [config.noise.sigma_255]
  protocols = _PROTOCOLS.value
  if protocols is None:
    protocols = [(UNCLIPPED if config is None else of_training(config.noise.clip)).name]
  methods, folder, ending = _methods(config)
  name = run.folder_name(_METHODS.value, _DATASETS.value, sigmas_255, protocols)
  output = Path(_OUTPUT.value or folder / f'{name}{ending}')
  run.evaluate(
    methods,
    run.Options(
      datasets=_DATASETS.value,
      data=_DATA.value,
      # Methods without a network take the images as they are.
      channels=config.model.channels if config is not None else None,
      sigmas_255=sigmas_255,
      protocols=protocols,
      output=output,
      overwrite=_OVERWRITE.value,
      keep_going=_KEEP_GOING.value,
      pictures=_PICTURES.value,
      page_images=_PAGE_IMAGES.value,
      sidd_forms=_SIDD_FORMS.value,
      dnd_margin_px=_DND_MARGIN_PX.value,
    ),
  )


def _methods(config) -> tuple[list[Method], Path, str]:
  """The methods asked for, where to write to by default, and the end of the folder's name."""
  methods: list[Method] = []
  folder, ending = Path('evaluation'), ''
  for name in _METHODS.value:
    if name == 'noisy':
      methods.append(Noisy())
    elif name == 'bm3d':
      methods.append(BM3D())
    elif name == 'sadnet':
      method, folder, ending = _sadnet(config)
      methods.append(method)
    else:
      raise ValueError(f'--methods: got {name!r}, want some of sadnet, noisy, bm3d')
  return methods, folder, ending


def _sadnet(config):
  if config is None or _CHECKPOINT.value is None:
    raise ValueError('--methods: got sadnet without --config and --checkpoint, want both for it')
  model = model_from_config(config.model)
  step, params = checkpoints.restore_params(_CHECKPOINT.value, model, config.to_dict())
  labels = {
    'config': command_line.config_argument(),
    'checkpoint': str(_CHECKPOINT.value),
    'step': step,
    'sha256': params_hash(params),
  }
  method = SADNetMethod(
    model,
    params,
    labels,
    devices=jax.local_devices(),
    batch_size=_BATCH_SIZE.value,
    pad_to_px=_PAD_TO_PX.value,
  )
  checkpoint = Path(_CHECKPOINT.value)
  if not checkpoints.is_run(checkpoint):
    return method, Path('evaluation'), f'-{checkpoint.stem}'
  folder, _ = checkpoints.split_path(checkpoint)
  return method, folder / 'evaluation', f'-step{step}'


if __name__ == '__main__':
  command_line.run(main)
