"""Writes README.md's tables from what evaluate.py and the benchmarks wrote.

  python benchmarks/readme_results.py           # after a new file in benchmarks/results
  python benchmarks/readme_results.py --check   # fails if README.md is not what the files give

The name of a file of benchmarks/results/evaluation, without its ending, is what the table of results calls
the weights; the first line of what was run is shown below the table, with commit and hardware.
"""

import argparse
import json
import math
from pathlib import Path
import sys

sys.path.append(str(Path(__file__).resolve().parent.parent))

import jax

from benchmarks import limits, readme_speed
from sadnet_jax import SADNet
from sadnet_jax.evaluation.results import measured_by
from sadnet_jax.machine import is_committed
from sadnet_jax.nn.sadnet import param_shapes
from sadnet_jax.weights.index import read_index
from tools.model_card import read_facts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'benchmarks' / 'results' / 'evaluation'
PRETRAINED = ROOT / 'sadnet_jax' / 'pretrained'
_BY = '<!-- {}: by benchmarks/readme_results.py -->'
_END = '<!-- end of {} -->'
_HEAD = (
  'images',
  'sigma',
  'protocol',
  'method',
  'noisy',
  'PSNR',
  'SSIM, Wang et al. / MATLAB',
  'published',
  'difference',
  'others, same protocol and images',
)


def rows(name: str, content: dict) -> list[tuple[str, ...]]:
  """Cells of the table, a row a result.

  Args:
    name: What the weights are called.
    content: A results.json.
  """
  for result in content['results']:
    if result['failures'] or None in result['mean'].values():
      raise SystemExit(f'{name}: got {result["title"]} with failures or without some figure, want it whole')
  return [_row(name, result) for result in content['results']]


def _row(name, result):
  mean, method = result['mean'], result['method']['name']
  figure = next((p for p in result['published'] if p['method'] == result['compared_with']), None)
  cells = [
    f'{result["title"]}, {result["version"]}',
    'real' if result['sigma_255'] is None else f'{result["sigma_255"]:g}',
    result['protocol'],
    f'`{name}`' if method == 'sadnet' else _title(method, result['channels']),
    f'{mean["psnr_noisy"]:.2f}',
    f'{mean["psnr"]:.2f}',
    f'{mean["ssim_wang"]:.4f} / {mean["ssim_matlab"]:.4f}',
  ]
  others = ', '.join(_named(p) for p in result['published'] if p is not figure and not p['differs'])
  if figure is None:
    return (*cells, '', '', others)
  if figure['differs']:
    return (*cells, f'{_named(figure)} ({", ".join(figure["differs"])})', '', others)
  return (*cells, _named(figure), f'{mean["psnr"] - figure["psnr"]:+.2f}', others)


def _named(figure):
  return f'{figure["method"]} {figure["psnr"]:.2f}'


def _title(method, channels):
  if method == 'bm3d':
    return 'CBM3D' if channels == 3 else 'BM3D'
  return method


def markdown(files: list[Path]) -> str:
  """The table and what it was measured with.

  Args:
    files: results.json files under the names of the weights.
  """
  lines = ['| ' + ' | '.join(_HEAD) + ' |', '|' + '---|' * len(_HEAD)]
  commands = []
  for file in files:
    content = json.loads(file.read_text())
    if content['failures'] or not content['results']:
      raise SystemExit(f'{file}: got an evaluation that failed in part, or of nothing, want a whole one')
    lines += ['| ' + ' | '.join(cells) + ' |' for cells in rows(file.stem, content)]
    if not is_committed(content['environment']):
      raise SystemExit(f'{file}: got results of code that is in no commit, want those of a clean clone')
    commands.append(f'- `{file.stem}`: {measured_by(content)}')
  return '\n'.join([*lines, '', *commands])


def weights() -> str:
  """What the published weights are for, and were trained on."""
  lines = ['| weights | for | images trained on | hardware |', '|---|---|---|---|']
  for name, entry in read_index(PRETRAINED).items():
    card = (PRETRAINED / f'{name}.md').relative_to(ROOT).as_posix()
    default = f' (default for {", ".join(entry.default_for)})' if entry.default_for else ''
    facts = read_facts(PRETRAINED / f'{name}.toml')
    data, hardware = (' '.join(facts[fact].split()) for fact in ('data', 'hardware'))
    lines.append(f'| [`{name}`]({card}){default} | {entry.task} | {data} | {hardware} |')
  return '\n'.join(lines)


def network() -> str:
  """Parameters and multiply-accumulates of the network beside those of the paper's Table 7."""
  lines = ['| network | parameters | GMAC, one 480x320 image |', '|---|---|---|']
  for title, channels in (('colour', 3), ('grey', 1)):
    shapes = jax.tree.leaves(param_shapes(SADNet(channels=channels)))
    gmac = limits.network_cost((1, 320, 480, channels)).flops / 2e9
    lines.append(f'| ours, {title} | {sum(math.prod(shape.shape) for shape in shapes):,} | {gmac:.1f} |')
  return '\n'.join([*lines, '| the paper, colour (Table 7) | 4,321k | 50.1 |'])


def replaced(text: str, name: str, new: str) -> str:
  """A text with what stands between two lines of comment replaced.

  Args:
    text: Markdown with the comments.
    name: 'weights', 'results', 'network' or 'speed', as in the comments.
    new: What is to stand between them.

  Raises:
    ValueError: The comments are not there, or more than once.
  """
  begin, end = _BY.format(name), _END.format(name)
  if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
    raise ValueError(f'got no single pair of the lines {begin} and {end}, want one')
  return f'{text.split(begin)[0]}{begin}\n\n{new}\n\n{end}{text.split(end)[1]}'


def main() -> None:
  """Rewrites or checks README.md."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--check', action='store_true', help='change nothing; fail if something would change')
  check = parser.parse_args().check
  readme = ROOT / 'README.md'
  text = readme.read_text()
  try:
    new = replaced(text, 'weights', weights())
    new = replaced(new, 'results', markdown(sorted(RESULTS.glob('*.json'))))
    new = replaced(new, 'network', network())
    new = replaced(new, 'speed', readme_speed.markdown())
  except ValueError as error:
    sys.exit(f'{readme}: {error}')
  if check and new != text:
    sys.exit(
      f'{readme}: got other tables than {RESULTS.parent} gives, want python benchmarks/readme_results.py run'
    )
  if not check:
    readme.write_text(new)


if __name__ == '__main__':
  main()
