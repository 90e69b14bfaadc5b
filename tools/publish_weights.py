"""Publishes weights: writes their file, model card and entry in the index.

  python -m tools.export_weights --config=configs/blind.py:color --checkpoint=RUN \\
    --output=color.safetensors --dtype=float16
  python evaluate.py --config=configs/blind.py:color --checkpoint=color.safetensors \\
    --datasets=cbsd68,kodak24 --sigmas=25,50 --output=results
  python -m tools.publish_weights --config=configs/blind.py:color --checkpoint=RUN \\
    --name=color --dtype=float16 --images=FOLDER --overwrite \\
    --facts=sadnet_jax/weights/pretrained/color.toml \\
    --sigmas=25,50 --results=results/results.json

Run this from a clone of the repository. The results must be of the weights as published, in the same dtype.
The loss of PSNR by float16 is measured here: on pairs if the config trains on real noise alone, otherwise on
clean images with white Gaussian noise of ``--sigmas``.

``--curve=RUN``, or ``--curve=FIRST,SECOND`` for several stages, draws the training curve (`plot_training`)
and stores its data; for the package's own weights, in docs/curves. FIRST may be a stored curve, whose runs
are gone. The facts may then give the seeds of all stages; otherwise the seed is that of the run. For an
average (`export_weights`), the last of these runs must be the last one averaged.

To write a new card of published weights from new results or facts, use ``--checkpoint=color --overwrite``.
Their file and their curve stay as they are.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import re
import shutil
from typing import Any

from sadnet_jax.extras import required

with required('train,plot'):
  from ml_collections import ConfigDict

  from sadnet_jax.data.layouts import find_examples
  from sadnet_jax.evaluation.protocols import ROUNDED, protocol_for_training
  from sadnet_jax.evaluation.results import shareable
  from sadnet_jax.files import replacing, write_text
  from sadnet_jax.nn.sadnet import SADNet, model_from_fields
  from sadnet_jax.training.config import training_noise
  from sadnet_jax.weights import checkpoints, safetensors
  from sadnet_jax.weights.checkpoints import check_same
  from sadnet_jax.weights.index import FOLDER, TASKS, Entry, Noise, file_sha256, read_index, write_index
  from sadnet_jax.weights.loading import locate
  from sadnet_jax.weights.paths import SAFETENSORS_SUFFIX
  from sadnet_jax.weights.safetensors import params_hash
  from tools import model_card, plot_training
  from tools.model_card import float16_cost


@dataclasses.dataclass(frozen=True)
class Request:
  """What to publish; see the flags.

  Attributes:
    name: Name to publish the weights by.
    checkpoint: A run, a file of weights, or a published name.
    config: The experiment's config as a dict.
    config_name: The config's name, such as 'configs/blind.py:color'.
    dtype: 'float32' or 'float16'.
    facts: TOML file with the texts of the card.
    results: A results.json of evaluate.py.
    images: Folder to measure float16 on: clean images, or pairs for real noise.
    sigmas_255: Standard deviations of the noise to measure it with, on the scale of 8-bit images.
    curve: Runs to draw the training curve of, in order. Without any, an existing curve stays.
    default_for: Tasks of TASKS to be the default for. None keeps those of an existing entry.
    overwrite: Whether to replace an existing entry or file of this name.
    folder: The folder of the index.
  """

  name: str
  checkpoint: str
  config: Mapping[str, Any]
  config_name: str
  dtype: str
  facts: Path
  results: Path
  images: Path | None = None
  sigmas_255: Sequence[float] = ()
  curve: Sequence[str] = ()
  default_for: Sequence[str] | None = None
  overwrite: bool = False
  folder: Path = FOLDER


@dataclasses.dataclass(frozen=True)
class _Source:
  """Weights before publishing.

  Attributes:
    model: The network.
    params: Its parameters, float32.
    dtype: 'float32' or 'float16', the dtype they are stored in.
    file: The file they are from, or None for a run.
    metadata: The file's metadata, or step and seed of the run.
  """

  model: SADNet
  params: dict[str, Any]
  dtype: str
  file: Path | None
  metadata: Mapping[str, str]


def publish(request: Request) -> Entry:
  """Writes file, card and index. All checks come before anything is written.

  Raises:
    ValueError: The name is invalid or taken; the weights are of another config; the results or the training
      curve are of other weights; or the facts are incomplete or repeat what the weights' file says.
  """
  entries = read_index(request.folder)
  _check_request(request, entries)
  facts, content = model_card.read_facts(request.facts), _read_json(request.results)
  source = _open(request)
  rounded = safetensors.rounded(source.params, request.dtype)
  params_sha256 = params_hash(rounded)
  model_card.check_results(request.results, content, params_sha256)
  measured = model_card.measured(content)
  metadata = {**source.metadata, **_precision(request, source, rounded)}
  if len(request.curve) > 1 and 'seed' in facts:
    metadata.pop('seed', None)  # It is that of the last stage only.
  if repeated := sorted(set(metadata) & set(facts)):
    raise ValueError(f'{request.facts}: remove {", ".join(repeated)}; the weights already give it')

  path = request.folder / f'{request.name}{SAFETENSORS_SUFFIX}'
  published = _is_published(path, request, source)
  files = list(plot_training.paths(request.folder, request.name)) if request.curve else []
  files += [] if published else [path]
  if not request.overwrite and (taken := [file for file in files if file.exists()]):
    raise ValueError(f'--name={request.name}: {taken[0]} exists; choose another name or pass --overwrite')
  curve = _curve(request, params_sha256, {**facts, **metadata})
  if not published:
    _write_file(path, request, source, {**metadata, 'about': facts['summary']})
  if curve is not None:
    plot_training.write(request.folder, request.name, curve)
  # Weights that stay as they are keep the noise that they were published with.
  noise = entries[request.name].noise if published and request.name in entries else _noise(request.config)
  entry = _entry(request, entries, path, source, facts, measured, noise)
  picture = plot_training.link(request.folder, request.name)
  # Only weights in the package's own folder are found by name.
  load_as = request.name if request.folder.resolve() == FOLDER.resolve() else path.name
  stored = model_card.read_stored(path)
  pixels = plot_training.pixels_seen(request.folder, request.name)
  text = model_card.card(entry, stored, facts, content, picture, load_as=load_as, pixels=pixels)
  write_text(path.with_suffix('.md'), text)
  # A task has one default.
  others = {
    name: dataclasses.replace(e, default_for=tuple(d for d in e.default_for if d not in entry.default_for))
    for name, e in entries.items()
  }
  write_index(request.folder, {**others, request.name: entry})
  return entry


def _check_request(request, entries):
  if not re.fullmatch('[a-z0-9_]+', request.name):
    raise ValueError(f'--name: only lower-case letters, digits and _ are allowed, not {request.name!r}')
  if request.name in entries and not request.overwrite:
    raise ValueError(f'--name: {request.name} is published; choose another name or pass --overwrite')
  if unknown := [d for d in request.default_for or () if d not in TASKS]:
    raise ValueError(f'--default_for: unknown {", ".join(unknown)}; choose from {", ".join(TASKS)}')
  channels = request.config['model']['channels']
  if unfit := [d for d in _default_for(request, entries) if channels not in TASKS[d]]:
    raise ValueError(
      f'--default_for: weights with {channels} channel(s) cannot be the default for {", ".join(unfit)}'
    )


def _read_json(path):
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f'{path}: not a readable results.json of evaluate.py ({error})') from error


def _open(request):
  """Loads the weights; ValueError unless they are of the config."""
  config, path = request.config, locate(request.checkpoint)
  if (dtype := config['model']['dtype']) != 'float32':
    raise ValueError(
      f'--config.model.dtype: published networks compute in float32, whatever they were trained in; {dtype} '
      'was given'
    )
  if path.is_dir():
    params, step, saved = checkpoints.load_matching_run(path, config)
    was, given = ({'data': {'pairs_share': c['data'].get('pairs_share', 0.0)}} for c in (saved, config))
    check_same(was, given, set())
    metadata = {'step': str(step), 'seed': str(saved['seed'])}
    source = _Source(model_from_fields(config['model']), params, 'float32', None, metadata)
  else:
    model, params, metadata = safetensors.load_with_model(path)
    check_same({'model': safetensors.model_fields(path, metadata)}, {'model': config['model']}, set())
    source = _Source(model, params, safetensors.stored_dtype(path), path, metadata)
  config_name = shareable(source.metadata.get('config', request.config_name))
  if config_name != request.config_name:
    raise ValueError(f'--config: {path} is of {config_name}, not of {request.config_name}')
  if (source.dtype, request.dtype) == ('float16', 'float32'):
    raise ValueError(f'--dtype: {path} is in float16; pass --dtype=float16, or the weights in float32')
  return source


def _precision(request, source, rounded):
  """The card's text on precision, if the weights are rounded here."""
  if source.dtype == request.dtype:
    if request.images is not None:
      raise ValueError('--images: the weights already have this dtype, nothing is rounded; remove the option')
    return {}
  real = _noise(request.config).kind == 'real'
  if real and (request.images is None or request.sigmas_255):
    raise ValueError(
      '--images, --sigmas: pass --images with a folder of pairs to measure float16 on, and no --sigmas'
    )
  if not real and (request.images is None or not request.sigmas_255):
    raise ValueError(
      '--images, --sigmas: pass a folder of clean images and the noise to measure float16 with'
    )
  return {
    'precision': float16_cost(
      source.model,
      source.params,
      rounded,
      examples=find_examples('pairs' if real else 'clean', request.images).examples,
      sigmas_255=[None] if real else request.sigmas_255,
      protocol=ROUNDED if real else protocol_for_training(request.config['noise']['clip']),
      source=request.images.name,
    )
  }


def _curve(request, params_sha256, known):
  """The files of a new training curve, or None after checking that an existing one is of these weights."""
  if not request.curve:
    plot_training.check_existing(request.folder, request.name, params_sha256)
    return None
  return plot_training.make(
    request.curve,
    request.name,
    dtype=request.dtype,
    step=int(known['step']),
    params_sha256=params_sha256,
    average_of=known.get(safetensors.AVERAGE_OF, ''),
    about={'config': request.config_name, 'commit': known.get('commit', model_card.UNKNOWN)},
  )


def _is_published(path, request, source):
  """Whether the file already contains the weights as they are to be published."""
  unchanged = source.file is not None and source.dtype == request.dtype
  return unchanged and path.exists() and path.samefile(source.file)


def _write_file(path, request, source, about):
  if source.file is None or source.dtype != request.dtype:
    # `save_weights` writes these itself.
    about = {name: text for name, text in about.items() if name not in ('sadnet_jax', 'model', 'step')}
    safetensors.save_weights(
      path,
      source.params,
      model=request.config['model'],
      step=int(source.metadata['step']),
      about={**about, 'config': request.config_name},
      dtype=request.dtype,
    )
  else:
    with replacing(path) as temporary:
      shutil.copyfile(source.file, temporary)


def _entry(request, entries, path, source, facts, measured, noise):
  return Entry(
    name=request.name,
    file=path.name,
    sha256=file_sha256(path),
    bytes=path.stat().st_size,
    summary=facts['summary'],
    channels=source.model.channels,
    noise=noise,
    measured=measured,
    default_for=_default_for(request, entries),
  )


def _default_for(request, entries):
  if request.default_for is not None:
    return tuple(request.default_for)
  return entries[request.name].default_for if request.name in entries else ()


def _noise(config):
  """The noise that the index states."""
  noise = training_noise(ConfigDict(config['noise']))
  pairs = config['data']['pairs_share']
  clean = 1 - pairs
  gaussian = clean * (1 - noise.camera_share - noise.clean_share)
  shares = {
    'pairs': pairs,
    'camera': clean * noise.camera_share,
    'gaussian': gaussian * (1 - noise.grain_share),
    'grain': gaussian * noise.grain_share,
    'none': clean * noise.clean_share,
  }
  shares = {kind: rounded for kind, share in shares.items() if (rounded := round(share, 4))}
  if not any(noise.sigma_255_range):
    return Noise('real')
  if set(shares) == {'gaussian'}:
    return Noise('gaussian', noise.sigma_255_range, noise.clip)
  return Noise('mixed', noise.sigma_255_range, noise.clip, shares)


def main() -> None:
  """Defines the flags and runs."""
  from absl import flags
  from ml_collections import config_flags

  from sadnet_jax import command_line

  config = config_flags.DEFINE_config_file('config', None, 'The experiment, such as configs/color.py:50.')
  name = flags.DEFINE_string('name', None, 'Name to publish the weights by.', required=True)
  checkpoint = flags.DEFINE_string(
    'checkpoint', None, 'Folder of a run, a .safetensors file, or a published name.', required=True
  )
  dtype = flags.DEFINE_enum('dtype', 'float16', ['float32', 'float16'], 'Dtype of the weights in the file.')
  facts = flags.DEFINE_string('facts', None, 'TOML file with the texts of the card.', required=True)
  results = flags.DEFINE_string('results', None, 'results.json of these weights.', required=True)
  images = flags.DEFINE_string(
    'images', None, 'Folder to measure float16 on: clean images, or pairs for real noise.'
  )
  sigmas = flags.DEFINE_list(
    'sigmas',
    None,
    'Standard deviations of the noise to measure float16 with, on the scale of 8-bit images; by default '
    "the config's.",
  )
  curve = flags.DEFINE_list('curve', [], 'Runs to draw the training curve of: RUN, or FIRST,SECOND.')
  default_for = flags.DEFINE_list(
    'default_for',
    None,
    f'Tasks to be the default for: {", ".join(TASKS)}; by default as before.',
  )
  overwrite = flags.DEFINE_bool('overwrite', False, 'Replace existing weights of this name.')
  folder = flags.DEFINE_string('folder', str(FOLDER), 'Folder of the index.')
  flags.mark_flag_as_required('config')

  def command() -> None:
    fields = config.value.to_dict()
    own = [fields['noise']['sigma_255']] if fields['noise']['sigma_255'] else []
    entry = publish(
      Request(
        name=name.value,
        checkpoint=checkpoint.value,
        config=fields,
        config_name=shareable(command_line.config_argument()),
        dtype=dtype.value,
        facts=Path(facts.value),
        results=Path(results.value),
        images=None if images.value is None else Path(images.value),
        sigmas_255=own if sigmas.value is None else command_line.numbers('sigmas', sigmas.value),
        curve=curve.value,
        default_for=default_for.value,
        overwrite=overwrite.value,
        folder=Path(folder.value),
      )
    )
    print(entry)

  command_line.run(command)


if __name__ == '__main__':
  main()
