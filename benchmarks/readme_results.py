"""Writes README.md's table of results from the results.json files of evaluate.py that are committed.

  python benchmarks/readme_results.py           # after a new file in benchmarks/results/evaluation
  python benchmarks/readme_results.py --check   # fails if README.md is not what the files give

A file's name, without its ending, is what the table calls the weights; the first line of
what was run is shown below the table, with commit and hardware.
"""

import argparse
import json
from pathlib import Path
import sys

from sadnet_jax.evaluation.published import PAPER

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'benchmarks' / 'results' / 'evaluation'
BEGIN, END = '<!-- results: by benchmarks/readme_results.py -->', '<!-- end of results -->'
_HEAD = (
  'images',
  'sigma',
  'protocol',
  'method',
  'noisy',
  'PSNR',
  'SSIM, Wang et al. / MATLAB',
  "paper's SADNet",
  'difference',
)


def rows(name: str, content: dict) -> list[tuple[str, ...]]:
  """Cells of the table, a row a result.

  Args:
    name: What the weights are called.
    content: A results.json.
  """
  return [_row(name, result) for result in content['results']]


def _row(name, result):
  mean, method = result['mean'], result['method']['name']
  paper = next((p for p in result['published'] if p['method'] == PAPER), None)
  cells = [
    f'{result["title"]}, {result["version"]}',
    'real' if result['sigma_255'] is None else f'{result["sigma_255"]:g}',
    result['protocol'],
    f'`{name}`' if method == 'sadnet' else _title(method, result['channels']),
    f'{mean["psnr_noisy"]:.2f}',
    f'{mean["psnr"]:.2f}',
    f'{mean["ssim_wang"]:.4f} / {mean["ssim_matlab"]:.4f}',
  ]
  if paper is None:
    return (*cells, '', '')
  alike = paper['protocol'] == result['protocol'] and result['version'].startswith(paper['version'])
  note = '' if alike else f' ({", ".join(filter(None, (paper["protocol"], paper["version"])))})'
  return (*cells, f'{paper["psnr"]:.2f}{note}', f'{mean["psnr"] - paper["psnr"]:+.2f}')


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
    lines += ['| ' + ' | '.join(cells) + ' |' for cells in rows(file.stem, content)]
    environment = content['environment']
    commands.append(
      f'- `{file.stem}`: `{content["command"]}`; {environment["cores"]} cores, {environment["cpu"]}, '
      f'{environment["device"]}; commit {environment["commit"][:7]}'
    )
  return '\n'.join([*lines, '', *commands])


def main() -> None:
  """Rewrites or checks README.md."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--check', action='store_true', help='change nothing; fail if something would change')
  check = parser.parse_args().check
  readme = ROOT / 'README.md'
  text = readme.read_text()
  if text.count(BEGIN) != 1 or text.count(END) != 1:
    sys.exit(f'{readme}: got no single pair of the lines {BEGIN} and {END}, want one')
  before, after = text.split(BEGIN)[0], text.split(END)[1]
  new = f'{before}{BEGIN}\n\n{markdown(sorted(RESULTS.glob("*.json")))}\n\n{END}{after}'
  if check and new != text:
    sys.exit(
      f'{readme}: got another table than {RESULTS} gives, want python benchmarks/readme_results.py run'
    )
  if not check:
    readme.write_text(new)


if __name__ == '__main__':
  main()
