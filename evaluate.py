"""Evaluates a trained SADNet, and other methods, by published protocols.

  python evaluate.py --config=configs/color.py:blind --checkpoint=runs/color-blind \\
    --datasets=cbsd68,kodak24 --sigmas=30,50,70 --data=FOLDER
  python evaluate.py --methods=noisy,bm3d --datasets=cbsd68 --sigmas=50

Known data sets are looked up in the folder given by --data. Any folder of clean images or of noisy and clean
pairs can be given, too. Prints a table with the paper's results beside ours, and writes results.json,
images.csv, index.html (a page to look at), the denoised pictures, and the submissions for data sets without
public ground truth.
"""

from pathlib import Path
from urllib.parse import urlsplit

from sadnet_jax.extras import required

with required('evaluate'):
  from absl import flags
  import jax
  from ml_collections import config_flags

  from sadnet_jax import command_line
  from sadnet_jax.data.test_sets import SCORED, SIDD_FORMS, UNSCORED
  from sadnet_jax.denoise import compilation_cache
  from sadnet_jax.evaluation import run
  from sadnet_jax.evaluation.methods import BM3D, Method, Noisy, SADNetMethod
  from sadnet_jax.evaluation.protocols import PROTOCOLS, UNCLIPPED, protocol_for_training
  from sadnet_jax.files import local_path
  from sadnet_jax.nn.sadnet import model_from_fields
  from sadnet_jax.weights.loading import load_params
  from sadnet_jax.weights.paths import is_run, split_run_path
  from sadnet_jax.weights.safetensors import params_hash

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config of the run, such as configs/color.py:50. Required for sadnet.'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Folder of a run or of one of its checkpoints, a .safetensors or .pth file or its URL, hf://OWNER/NAME, or '
  'the name of published weights, such as color. Required for sadnet.',
)
_DATASETS = flags.DEFINE_list(
  'datasets',
  None,
  f'Any of {", ".join((*SCORED, *UNSCORED))}, or folders of clean images or of pairs (with the prefix clean: '
  'or pairs: if the file names do not show which).',
  required=True,
)
_DATA = flags.DEFINE_string(
  'data', None, 'Folder of the known data sets; defaults to the environment variable SADNET_DATA.'
)
_METHODS = flags.DEFINE_list('methods', ['sadnet'], 'Any of sadnet, noisy (the unchanged image), bm3d.')
_SIGMAS = flags.DEFINE_list(
  'sigmas',
  None,
  "Standard deviations of the noise to add, on the scale of 8-bit images; defaults to the config's.",
)
_PROTOCOLS = flags.DEFINE_list(
  'protocols',
  None,
  f'Protocols for clean images, any of {", ".join(PROTOCOLS)}; defaults to the one that matches the '
  'training noise, or unclipped without a config. With authors, real pairs are measured by it too.',
)
_OUTPUT = flags.DEFINE_string(
  'output', None, "Output folder; defaults to a new one in the run's folder or below evaluation/."
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Write into an output folder that is not empty.')
_KEEP_GOING = flags.DEFINE_bool(
  'keep_going', False, 'Continue after failures, list them at the end, and exit with an error.'
)
flags.DEFINE_alias('keep-going', 'keep_going')
_PICTURES = flags.DEFINE_bool(
  'pictures', True, 'Write the denoised pictures, alone and side by side with noisy and clean.'
)
_PAGE_IMAGES = flags.DEFINE_integer(
  'page_images', 8, 'Images of each result on the page: half of them the worst, half the best.', lower_bound=0
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 1, 'Images per device that are denoised at once. For sadnet.'
)
_PAD_TO_PX = flags.DEFINE_integer(
  'pad_to_px', 8, 'Pad sides to multiples of this by reflection; 8 as in the network. For sadnet.'
)
_SIDD_FORMS = flags.DEFINE_list(
  'sidd_forms', ['csv'], f"Forms of the submission to SIDD's benchmark, any of {', '.join(SIDD_FORMS)}."
)
_DND_MARGIN_PX = flags.DEFINE_integer(
  'dnd_margin_px', 64, 'Pixels of context around each box of DND that the method receives.', lower_bound=0
)


def main() -> None:
  """Evaluates what the command line asks for."""
  with compilation_cache.enabled():
    _evaluate()


def _evaluate() -> None:
  config = _CONFIG.value
  sigmas_255: list[float] = []
  if _SIGMAS.value is not None:
    sigmas_255 = command_line.numbers('sigmas', _SIGMAS.value)
  elif config is not None and config.noise.sigma_255 > 0:
    sigmas_255 = [config.noise.sigma_255]
  protocols = _PROTOCOLS.value
  if protocols is None:
    protocols = [(UNCLIPPED if config is None else protocol_for_training(config.noise.clip)).name]
  methods, parent, suffix = _methods(config)
  name = run.folder_name(_METHODS.value, _DATASETS.value, sigmas_255, protocols)
  output = local_path(_OUTPUT.value or parent / f'{name}{suffix}')
  run.evaluate(
    methods,
    run.Options(
      datasets=_DATASETS.value,
      data=_DATA.value,
      # Methods without a network accept grey and colour images.
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
  """Returns the methods, and by default where to create the output folder and the end of its name."""
  methods: list[Method] = []
  parent, suffix = Path('evaluation'), ''
  for name in _METHODS.value:
    if name == 'noisy':
      methods.append(Noisy())
    elif name == 'bm3d':
      methods.append(BM3D())
    elif name == 'sadnet':
      method, parent, suffix = _sadnet(config)
      methods.append(method)
    else:
      raise ValueError(f'--methods: unknown name {name!r}; choose from sadnet, noisy, bm3d')
  return methods, parent, suffix


def _sadnet(config) -> tuple[Method, Path, str]:
  if config is None or _CHECKPOINT.value is None:
    raise ValueError('--methods: sadnet needs --config and --checkpoint; pass both')
  model = model_from_fields(config.model.to_dict())
  step, params = load_params(_CHECKPOINT.value, config.model.to_dict())
  labels = {
    'config': command_line.config_argument(),
    'checkpoint': str(_CHECKPOINT.value),
    'step': step,
    'sha256': params_hash(params),
    'dtype': config.model.dtype,
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
  if not is_run(checkpoint):
    # Only the path of a URL, because its query may be a signature.
    return method, Path('evaluation'), f'-{Path(urlsplit(_CHECKPOINT.value).path).stem}'
  folder, _ = split_run_path(checkpoint)
  return method, folder / 'evaluation', f'-step{step}'


if __name__ == '__main__':
  command_line.run(main)
