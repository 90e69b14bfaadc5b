"""The model card of published weights, as Markdown: made from what is known, never written by hand.

What no file tells is in the facts, a TOML file of texts beside the weights.
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
from sadnet_jax.evaluation.results import measured_by
from sadnet_jax.machine import is_committed
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights import safetensors
from sadnet_jax.weights.index import Entry
from sadnet_jax.weights.safetensors import params_hash

UNKNOWN = 'not known'
# Texts that the facts must have, and may have; `precision` and `seed` only where the file does not tell.
REQUIRED = ('summary', 'data', 'training', 'command', 'hardware', 'hours', 'limits', 'licence')
OPTIONAL = ('commit', 'seed', 'precision')
_HEAD = ('images', 'sigma', 'protocol', 'noisy', 'PSNR', 'SSIM, Wang et al.', 'SSIM, MATLAB')


@dataclasses.dataclass(frozen=True)
class Stored:
  """What a file of weights tells of itself.

  Attributes:
    metadata: Of the file.
    dtype: Of its tensors.
    count: Of the weights.
    params_sha256: `params_hash` of the weights as they are read.
  """

  metadata: Mapping[str, str]
  dtype: str
  count: int
  params_sha256: str


def stored(path: str | Path) -> Stored:
  """Reads a file of weights."""
  _, params, metadata = safetensors.load_with_model(path)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  return Stored(metadata, safetensors.stored_dtype(path), count, params_hash(params))


def read_facts(path: str | Path) -> dict[str, str]:
  """Reads the texts of a card.

  Raises:
    ValueError: No such file or no TOML, a text is missing or unknown, or is none.
  """
  try:
    facts = tomllib.loads(Path(path).read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f'{path}: got no readable facts ({error}), want a TOML file of texts') from error
  missing, unknown = sorted(set(REQUIRED) - set(facts)), sorted(set(facts) - {*REQUIRED, *OPTIONAL})
  if missing or unknown:
    raise ValueError(
      f'{path}: got facts without {missing} and with {unknown}, want {", ".join(REQUIRED)}, and where known '
      f'{", ".join(OPTIONAL)}'
    )
  if bad := [name for name, text in facts.items() if not isinstance(text, str) or not text.strip()]:
    raise ValueError(f'{path}: got no text for {bad}, want one each')
  return facts


def check_results(source: str | Path, content: Mapping[str, Any], params_sha256: str) -> list[dict[str, Any]]:
  """Those results of a results.json that are SADNet's.

  Args:
    source: Names the file in errors.
    content: What is in it.
    params_sha256: Of the weights that they have to be of.

  Raises:
    ValueError: There are none, they are of other weights or not whole, or of code in no commit.
  """
  try:
    results = [result for result in content['results'] if result['method']['name'] == 'sadnet']
    hashes = {result['method']['sha256'] for result in results}
    failures = [*content['failures'], *(failure for result in results for failure in result['failures'])]
    committed = is_committed(content['environment'])
  except (KeyError, TypeError) as error:
    raise ValueError(f'{source}: got no results of evaluate.py ({error!r}), want its results.json') from error
  if not results:
    raise ValueError(f'{source}: got no result of sadnet, want those of these weights')
  if hashes != {params_sha256}:
    raise ValueError(
      f'{source}: got results of the weights {", ".join(sorted(hashes))}, want those of {params_sha256}: '
      'evaluate the weights as they are published, in their dtype'
    )
  if failures:
    raise ValueError(f'{source}: got results with {len(failures)} failure(s), want whole ones')
  if not committed:
    raise ValueError(f'{source}: got results of code that is in no commit, want those of a clean clone')
  return results


def card(
  entry: Entry,
  told: Stored,
  facts: Mapping[str, str],
  content: Mapping[str, Any],
  curve: str | None = None,
) -> str:
  """The card's text.

  Args:
    entry: Of the index.
    told: What the file tells.
    facts: As `read_facts` gives them.
    content: A results.json of evaluate.py that `check_results` accepts.
    curve: Path of the picture of the training curve, from the card's folder, if there is one.
  """
  known = {**facts, **{name: told.metadata[name] for name in OPTIONAL if name in told.metadata}}
  table = {
    'network': f'SADNet, config `{told.metadata.get("config", UNKNOWN)}`; {told.count:,} weights in '
    f'{told.dtype}, {entry.bytes / 1e6:.1f} MB',
    'task': f'{"colour" if entry.channels == 3 else "grey"} images, {entry.noise}',
    'data': known['data'],
    'training': known['training'],
    'step': told.metadata['step'],
    **_average(told.metadata.get(safetensors.AVERAGE_OF)),
    'seed': known.get('seed', UNKNOWN),
    'commit': known.get('commit', UNKNOWN),
    'hardware': known['hardware'],
    'hours': known['hours'],
    'precision': known.get('precision', 'as trained' if told.dtype == 'float32' else UNKNOWN),
    'limits': known['limits'],
    'licence': known['licence'],
    'SHA-256 of the file': f'`{entry.sha256}`',
    'SHA-256 of the weights, as in results.json': f'`{told.params_sha256}`',
  }
  return '\n'.join(
    [
      f'# {entry.name}',
      '',
      facts['summary'],
      '',
      *_table(('', ''), table.items()),
      '',
      '## Trained by',
      '',
      '```',
      known['command'].strip('\n'),
      '```',
      '',
      *(_curve(curve) if curve else []),
      '## Figures',
      '',
      'PSNR in dB, means over the images of a set.',
      '',
      *_table(_HEAD, [_row(r) for r in check_results(entry.name, content, told.params_sha256)]),
      '',
      f'By {measured_by(content)}.',
      f'Once published, `--checkpoint={entry.name}` takes the same weights.',
      '',
      '## Use',
      '',
      '```python',
      'from sadnet_jax import Denoiser',
      '',
      f"denoised = Denoiser.from_pretrained('{entry.name}')(noisy)",
      '```',
      '',
      '<!-- By python -m tools.publish_weights: not to be changed by hand. -->',
      '',
    ]
  )


def _average(text):
  return {'average of, share * SHA-256 of the weights': f'`{text}`'} if text else {}


def _curve(picture):
  numbers = picture.removesuffix('.png') + '.json'
  return [
    '## Training curve',
    '',
    f'![Loss, PSNR and learning rate by step]({picture})',
    '',
    f'Its numbers: [{numbers.rpartition("/")[2]}]({numbers}).',
    '',
  ]


def measured(content: Mapping[str, Any]) -> str:
  """The first figure of a results.json of evaluate.py, in words."""
  result = next(result for result in content['results'] if result['method']['name'] == 'sadnet')
  noise = 'real noise' if result['sigma_255'] is None else f'sigma {result["sigma_255"]:g}'
  mean = result['mean']
  figures = f'PSNR from {mean["psnr_noisy"]:.2f} to {mean["psnr"]:.2f} dB'
  return f'{result["title"]}, {noise}, {result["protocol"]}: {figures}'


def _row(result):
  mean = result['mean']
  wang, matlab = (mean[name] for name in ('ssim_wang', 'ssim_matlab'))
  return (
    f'{result["title"]}, {result["version"]}',
    'real' if result['sigma_255'] is None else f'{result["sigma_255"]:g}',
    result['protocol'],
    *(UNKNOWN if mean[name] is None else f'{mean[name]:.2f}' for name in ('psnr_noisy', 'psnr')),
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
  """The difference in PSNR that rounding to float16 makes, in words.

  Args:
    model: The network.
    params: Its weights, float32.
    rounded: The same rounded to float16, as float32.
    examples: Clean images, or pairs of real noise.
    sigmas_255: Standard deviations of the noise to add to them, on the scale of 8-bit images; None alone for
      pairs.
    protocol: How it is added, and how PSNR is measured.
    source: What the examples are called.

  Returns:
    The largest and the mean difference in dB, and over what.

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
