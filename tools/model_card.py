"""The model card of published weights in Markdown: generated, never written by hand.

It combines the weights' file, their entry in the index, the results of evaluate.py, and the facts: texts in a
TOML file beside the weights, for what no other file says.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import tomllib
from typing import Any

import jax
import numpy as np

from sadnet_jax.data.examples import Example, read_example
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.evaluation.protocols import Protocol
from sadnet_jax.evaluation.results import measured_by, shareable
from sadnet_jax.machine import is_committed
from sadnet_jax.nn.sadnet import STRIDE, SADNet
from sadnet_jax.weights import safetensors
from sadnet_jax.weights.index import Entry
from sadnet_jax.weights.safetensors import params_hash

UNKNOWN = 'unknown'
# Required and optional texts of the facts; `precision` and `seed` only if the weights' file has none.
REQUIRED = ('summary', 'data', 'training', 'command', 'hardware', 'hours', 'limits', 'licence')
OPTIONAL = ('commit', 'seed', 'precision')
# In the header, for the Hugging Face Hub.
_TAGS = ('image-denoising', 'sadnet', 'deformable-convolution', 'jax', 'flax')
_LICENCE = 'Apache-2.0'
_HEAD = ('images', 'sigma', 'protocol', 'noisy', 'PSNR', 'SSIM, Wang et al.', 'SSIM, MATLAB')


@dataclasses.dataclass(frozen=True)
class Stored:
  """What a file of weights says about itself.

  Attributes:
    metadata: The file's metadata.
    dtype: The dtype of its tensors.
    count: Number of parameters.
    params_sha256: `params_hash` of the parameters as read from the file.
  """

  metadata: Mapping[str, str]
  dtype: str
  count: int
  params_sha256: str


def read_stored(path: str | Path) -> Stored:
  """Reads what a file of weights says about itself."""
  _, params, metadata = safetensors.load_with_model(path)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  return Stored(metadata, safetensors.stored_dtype(path), count, params_hash(params))


def read_facts(path: str | Path) -> dict[str, str]:
  """Reads the facts of a card, which are published: without secrets in URLs, as `shareable` leaves them.

  Raises:
    ValueError: The file cannot be read or is not TOML, or a text is missing, unknown, empty or not a text.
  """
  try:
    facts = tomllib.loads(Path(path).read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ValueError(f'{path}: cannot be read as a TOML file of texts ({error})') from error
  missing, unknown = sorted(set(REQUIRED) - set(facts)), sorted(set(facts) - {*REQUIRED, *OPTIONAL})
  if missing or unknown:
    raise ValueError(
      f'{path}: missing {missing}, unknown {unknown}; the facts are {", ".join(REQUIRED)}, and optionally '
      f'{", ".join(OPTIONAL)}'
    )
  if bad := [name for name, text in facts.items() if not isinstance(text, str) or not text.strip()]:
    raise ValueError(f'{path}: {bad} must be texts that are not empty')
  return shareable(facts)


def check_results(source: str | Path, content: Mapping[str, Any], params_sha256: str) -> list[dict[str, Any]]:
  """Returns SADNet's results in a results.json after checking that they can be published.

  Args:
    source: The file, for error messages.
    content: The content of the file.
    params_sha256: Hash of the weights that must have been evaluated.

  Raises:
    ValueError: There are no such results; they are of other weights or incomplete; they were measured in
      another dtype or with other padding than networks have by default; or on uncommitted code.
  """
  try:
    results = [result for result in content['results'] if result['method']['name'] == 'sadnet']
    hashes = {result['method']['sha256'] for result in results}
    failures = [*content['failures'], *(failure for result in results for failure in result['failures'])]
    committed = is_committed(content['environment'])
    # What the card will need.
    _ = [_row(result) for result in results]
  except (KeyError, TypeError) as error:
    raise ValueError(f'{source}: not a results.json of evaluate.py ({error!r})') from error
  if not results:
    raise ValueError(f'{source}: has no result of sadnet; evaluate these weights')
  if hashes != {params_sha256}:
    raise ValueError(
      f'{source}: has results of the weights {", ".join(sorted(hashes))}, not of {params_sha256}; evaluate '
      'the weights as they will be published, in the same dtype'
    )
  for name, wanted in (('dtype', 'float32'), ('pad_to_px', STRIDE)):
    # Older results do not name their dtype.
    if others := {found for r in results if (found := r['method'].get(name, wanted)) != wanted}:
      raise ValueError(
        f'{source}: measured with {name} = {", ".join(map(str, others))}; cards are about {name} = {wanted}, '
        'so evaluate again without that option'
      )
  if not content.get('complete', True):
    raise ValueError(f'{source}: the evaluation was interrupted; evaluate again')
  if failures:
    raise ValueError(f'{source}: the evaluation has {len(failures)} failure(s); evaluate again')
  if not committed:
    raise ValueError(f'{source}: measured on uncommitted code; evaluate again in a clean clone')
  return results


def card(
  entry: Entry,
  stored: Stored,
  facts: Mapping[str, str],
  content: Mapping[str, Any],
  curve: str | None = None,
  *,
  load_as: str,
  pixels: int | None = None,
) -> str:
  """The text of the card, which begins with the metadata that the Hugging Face Hub reads.

  Args:
    entry: The weights' entry in the index.
    stored: The result of `read_stored`.
    facts: The result of `read_facts`.
    content: The content of a results.json that `check_results` accepts.
    curve: Path of the picture of the training curve, relative to the card's folder, if there is one.
    load_as: What loads the weights: a published name, or their file.
    pixels: Pixels that the runs of the curve have seen.
  """
  # The facts may give the seeds of all stages, and the file that of the last one.
  known = {**{name: stored.metadata[name] for name in OPTIONAL if name in stored.metadata}, **facts}
  table = {
    'network': f'SADNet, config `{stored.metadata.get("config", UNKNOWN)}`; {stored.count:,} weights in '
    f'{stored.dtype}, {entry.bytes / 1e6:.1f} MB',
    'task': f'{"colour" if entry.channels == 3 else "grey"} images, {entry.noise}',
    'training images': known['data'],
    'training': known['training'],
    **({'pixels seen': f'{pixels / 1e6:,.0f} million, in the runs of the training curve'} if pixels else {}),
    'step': stored.metadata['step'],
    **_average(stored.metadata.get(safetensors.AVERAGE_OF)),
    'seed': known.get('seed', UNKNOWN),
    'commit': known.get('commit', UNKNOWN),
    'hardware': known['hardware'],
    'training hours': known['hours'],
    'precision': known.get('precision', 'as trained' if stored.dtype == 'float32' else UNKNOWN),
    'limits': known['limits'],
    'licence': known['licence'],
    'SHA-256 of the file': f'`{entry.sha256}`',
    'SHA-256 of the weights (as in results.json)': f'`{stored.params_sha256}`',
  }
  return '\n'.join(
    [
      *_metadata(known['licence']),
      '',
      f'# {entry.name}',
      '',
      facts['summary'],
      '',
      *_table(('', ''), table.items()),
      '',
      '## Training commands',
      '',
      '```',
      known['command'].strip('\n'),
      '```',
      '',
      *(_curve(curve) if curve else []),
      '## Results',
      '',
      'PSNR in dB; means over the images of each set.',
      '',
      *_table(_HEAD, [_row(r) for r in check_results(entry.name, content, stored.params_sha256)]),
      '',
      f'Measured by {measured_by(content)}.',
      f'`--checkpoint={load_as}` now loads the same weights.',
      '',
      '## Use',
      '',
      '```python',
      'from sadnet_jax import Denoiser',
      '',
      f"denoised = Denoiser.from_pretrained('{load_as}')(noisy)",
      '```',
      '',
      '<!-- Written by python -m tools.publish_weights: do not edit. -->',
      '',
    ]
  )


def _metadata(licence):
  """YAML; no data sets, because the Hub takes only the names of its own."""
  is_ours = licence.strip().startswith(_LICENCE)
  return [
    '---',
    f'license: {_LICENCE.lower() if is_ours else "other"}',
    'library_name: sadnet-jax',
    'pipeline_tag: image-to-image',
    'tags:',
    *(f'- {tag}' for tag in _TAGS),
    'metrics:',
    '- psnr',
    '- ssim',
    '---',
  ]


def _average(text):
  return {'average of (share * SHA-256 of the weights)': f'`{text}`'} if text else {}


def _curve(picture):
  numbers = picture.removesuffix('.png') + '.json'
  return [
    '## Training curve',
    '',
    f'![Loss, PSNR and learning rate by step]({picture})',
    '',
    f'Data: [{numbers.rpartition("/")[2]}]({numbers}).',
    '',
  ]


def measured(content: Mapping[str, Any]) -> str:
  """The first result in a results.json of evaluate.py as a phrase."""
  result = next(result for result in content['results'] if result['method']['name'] == 'sadnet')
  noise = 'real noise' if result['sigma_255'] is None else f'sigma {result["sigma_255"]:g}'
  noisy, denoised = (_decibels(result['mean'][name]) for name in ('psnr_noisy', 'psnr'))
  figures = f'PSNR from {noisy} to {denoised} dB'
  return f'{result["title"]}, {noise}, {result["protocol"]}: {figures}'


def _decibels(value):
  """A PSNR; that of equal images is null in results.json."""
  return UNKNOWN if value is None else f'{value:.2f}'


def _row(result):
  mean = result['mean']
  wang, matlab = (mean[name] for name in ('ssim_wang', 'ssim_matlab'))
  return (
    f'{result["title"]}, {result["version"]}',
    'real' if result['sigma_255'] is None else f'{result["sigma_255"]:g}',
    result['protocol'],
    *(_decibels(mean[name]) for name in ('psnr_noisy', 'psnr')),
    *(UNKNOWN if value is None else f'{value:.4f}' for value in (wang, matlab)),
  )


def _table(head: Sequence[str], rows: Any) -> list[str]:
  cells = [[' '.join(cell.split()).replace('|', '\\|') for cell in row] for row in (head, *rows)]
  lines = [f'| {" | ".join(row)} |' for row in cells]
  return [lines[0], '|' + '---|' * len(head), *lines[1:]]


def float16_cost(
  model: SADNet,
  params: Mapping[str, Any],
  rounded: Mapping[str, Any],
  *,
  examples: Sequence[Example],
  sigmas_255: Sequence[float | None],
  protocol: Protocol,
  source: str,
) -> str:
  """Measures how much rounding to float16 changes the PSNR, and describes it in a phrase.

  Args:
    model: The network.
    params: Its parameters, float32.
    rounded: The same parameters rounded to float16, as float32.
    examples: Clean images, or pairs with real noise.
    sigmas_255: Standard deviations of the noise to add, on the scale of 8-bit images; ``[None]`` for pairs.
    protocol: How noise is added and PSNR is measured.
    source: Name of the examples.

  Returns:
    The largest and the mean difference in dB, and the images and noise they were measured on.

  Raises:
    ValueError: An image cannot be read.
  """
  differences = []
  apply = jax.jit(model.apply)
  for example in examples:
    images = read_example(example, model.channels)
    for sigma_255 in sigmas_255:
      noisy, clean = protocol.prepare(*images, sigma_255)
      exact, other = (
        psnr(protocol.finish(np.asarray(apply({'params': p}, noisy[None])[0])), clean)
        for p in (params, rounded)
      )
      differences.append(float(other - exact))
  levels = [f'{s:g}' for s in sigmas_255 if s is not None]
  noise = f'sigma {", ".join(levels)}' if levels else 'real noise'
  return (
    f'float16 against float32: PSNR differs by {max(map(abs, differences)):.4f} dB at most, '
    f'{np.mean(differences):+z.4f} dB on average, over {len(examples)} images ({source}), '
    f'{noise}, {protocol.name}'
  )
