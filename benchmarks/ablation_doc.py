"""Writes docs/ABLATION.md from the committed results of benchmarks/ablation.py.

  python benchmarks/ablation_doc.py           # after a new ablation_cpu.json in benchmarks/results
  python benchmarks/ablation_doc.py --check   # fails if the page is not what the files give

Where no such file is, there is no page.
"""

import argparse
import json
import math
from pathlib import Path
import statistics
import sys

sys.path.append(str(Path(__file__).resolve().parent.parent))

from scipy import stats

from benchmarks.performance_tables import machine, table
from benchmarks.report import DEVICES, RESULTS, ROOT
from configs import color
from configs.ablation import PAPER_PSNR, ROWS
from sadnet_jax.machine import is_committed

PAGE = ROOT / 'docs' / 'ABLATION.md'
# In the order of the values of ROWS.
PARTS = ('RSAB', 'offset transfer', 'context block')
_HEAD = '<!-- By benchmarks/ablation_doc.py, from benchmarks/results: change those, not this file. -->'
_OPENING = (
  'The rows of Table 1 of the paper, trained alike at a small scale by `benchmarks/ablation.py`. Rows of one '
  'seed differ in the parts of the network, and so in the number of its parameters, and in nothing else: '
  'they see the same patches with the same noise. All figures are PSNR in dB. Ours and those of the paper '
  'are of other trainings and another protocol, so compare differences, not levels.'
)


def additions() -> list[tuple[str, str, str]]:
  """All (part, row without it, row with it) where two rows differ in that part alone."""
  return [
    (PARTS[differing[0]], without, with_it)
    for with_it, parts in ROWS.items()
    for without, fewer in ROWS.items()
    if len(differing := [i for i in range(len(PARTS)) if parts[i] != fewer[i]]) == 1 and parts[differing[0]]
  ]


def complete_seeds(content: dict) -> list[str]:
  """Seeds that every row is trained with: means over others would not be of the same runs."""
  first, *others = (content['rows'][row]['seeds'] for row in ROWS)
  return [seed for seed in first if all(seed in seeds for seeds in others)]


def psnr(content: dict, row: str) -> list[float]:
  """PSNR of a row, one a complete seed."""
  return [content['rows'][row]['seeds'][seed]['psnr'] for seed in complete_seeds(content)]


def differences(content: dict, without: str, with_it: str) -> list[float]:
  """What a row has more than another, one a complete seed."""
  return [b - a for a, b in zip(psnr(content, without), psnr(content, with_it), strict=True)]


def rows_table(content: dict) -> list[str]:
  """A line a row: its parts, ours, the spread between seeds, the paper's."""
  seeds = len(complete_seeds(content))
  cells = []
  for row, parts in ROWS.items():
    ours = psnr(content, row)
    names = ', '.join(name for name, there in zip(PARTS, parts, strict=True) if there)
    cells.append(
      (
        f'`{row}`',
        names or 'none',
        f'{content["rows"][row]["parameters"]:,}',
        f'{statistics.fmean(ours):.3f}',
        f'{statistics.stdev(ours):.3f}' if seeds > 1 else 'one seed',
        f'{statistics.fmean(differences(content, "none", row)):+.3f}' if row != 'none' else '',
        f'{PAPER_PSNR[row]:.2f}',
        f'{PAPER_PSNR[row] - PAPER_PSNR["none"]:+.2f}' if row != 'none' else '',
      )
    )
  spread = f'standard deviation over {seeds} seeds' if seeds > 1 else 'between seeds'
  head = ('row', 'parts', 'parameters', 'ours', spread, 'minus `none`', 'paper', 'minus `none`')
  return table(head, cells)


def additions_table(content: dict) -> list[str]:
  """A line for each two rows that differ in one part."""
  bound = noise_bound(content)
  cells = []
  for part, without, with_it in additions():
    found = differences(content, without, with_it)
    mean = statistics.fmean(found)
    cells.append(
      (
        part,
        f'`{without}`',
        f'{mean:+.3f}',
        'one seed' if bound is None else f'{min(found):+.3f} to {max(found):+.3f}',
        'not known' if bound is None else 'yes' if abs(mean) > bound else 'no',
        f'{PAPER_PSNR[with_it] - PAPER_PSNR[without]:+.2f}',
      )
    )
  return table(('what is added', 'to', 'ours', 'lowest and highest of a seed', 'above noise', 'paper'), cells)


def standard_error(content: dict) -> float | None:
  """Of the difference of two rows' means, in dB, by the variance between seeds pooled over all rows.

  What rows of one seed have in common is not taken out. None with one seed.
  """
  if len(complete_seeds(content)) < 2:
    return None
  runs = [psnr(content, row) for row in ROWS]
  variance = statistics.fmean(map(statistics.variance, runs))
  return math.sqrt(2 * variance / len(runs[0]))


def degrees_of_freedom(content: dict) -> int:
  """Of `standard_error`."""
  return len(ROWS) * (len(complete_seeds(content)) - 1)


def noise_bound(content: dict) -> float | None:
  """What a difference between two rows of one true mean stays below in 95% of all cases (Student's t), in dB.

  None with one seed.
  """
  error = standard_error(content)
  return None if error is None else error * float(stats.t.ppf(0.975, degrees_of_freedom(content)))


def noise(content: dict) -> str:
  """What of the differences can be told from noise between runs."""
  seeds, error, pairs = complete_seeds(content), standard_error(content), additions()
  if error is None:
    return (
      f'Each row was trained once, with seed {seeds[0]}. How much another seed would change is not known, so '
      'none of these differences can be told from noise between runs.'
    )
  bound = noise_bound(content)
  spread = {row: statistics.stdev(psnr(content, row)) for row in ROWS}
  least, most = (
    f'{spread[row]:.3f} (`{row}`)' for row in sorted(ROWS, key=lambda row: spread[row])[:: len(ROWS) - 1]
  )
  ours = [statistics.fmean(differences(content, without, with_it)) for _, without, with_it in pairs]
  paper = [PAPER_PSNR[with_it] - PAPER_PSNR[without] for _, without, with_it in pairs]
  above = sum(abs(value) > bound for value in ours)
  alike = sum(a * b > 0 for a, b in zip(ours, paper, strict=True))
  small = sum(abs(value) <= bound for value in paper)
  return (
    f'Noise between runs: the standard deviation over {len(seeds)} seeds, pooled over all rows, is '
    f'{error * math.sqrt(len(seeds) / 2):.3f} dB, of single rows from {least} to {most}, and the standard '
    f'error of a difference of two means of {len(seeds)} runs {error:.3f} dB. Of the {len(pairs)} '
    f'differences that a part makes, {above} exceed {bound:.3f} dB, below which chance alone stays in 95% of '
    f"all cases (Student's t with {degrees_of_freedom(content)} degrees of freedom), and "
    f"{len(pairs) - above} cannot be told from noise; {alike} have the sign of the paper's. "
    f'That rows of one seed share their patches is not made use of; among {len(pairs)} '
    'differences, one or another may exceed the bound by chance. '
    f'The paper does not tell its noise: {small} of its {len(pairs)} differences would be '
    'too small to be seen here.'
  )


def scale(content: dict) -> str:
  """What was trained, beside the paper's recipe, and what it was tested on."""
  ours, paper = content['config'], color.get_config().to_dict()

  def batch(config):
    return f'{config["batch_size"]} patches of {config["data"]["patch_px"]}x{config["data"]["patch_px"]}'

  def recipe(config):
    return f'loss `{config["loss"]}`, optimiser `{config["optimizer"]["name"]}`'

  width, offset_width = ours['model']['width'], ours['model']['offset_width']
  return (
    f'Width {width} and offset width {offset_width} (the paper: {paper["model"]["width"]} and '
    f'{paper["model"]["offset_width"]}); {ours["steps"]:,} steps of {batch(ours)} (the paper: '
    f'{batch(paper)}); {recipe(ours)}, as in `configs/color_fast.py` (the paper: {recipe(paper)}); clean '
    f'images of `{ours["data"]["train"]["clean"]}`. Tested on {content["test"]}, sigma '
    f'{content["sigma_255"]:g}, protocol {content["protocol"]} (the paper: full images of Kodak24, '
    'noise clipped).'
  )


def tables(content: dict) -> list[str]:
  """Both tables, and what they say and do not say, as lines of Markdown."""
  seeds = {seed for row in ROWS for seed in content['rows'][row]['seeds']}
  left_out = sorted(seeds - set(complete_seeds(content)), key=int)
  note = f' Not all rows are trained with seed {" and ".join(left_out)} yet: left out.' if left_out else ''
  return [*rows_table(content), '', *additions_table(content), '', noise(content) + note]


def read(device: str) -> dict | None:
  """The results on a kind of device, None where there are none.

  Raises:
    SystemExit: They are of code that is in no commit, or there is no seed with all rows.
  """
  file = RESULTS / f'ablation_{device}.json'
  if not file.exists():
    return None
  content = json.loads(file.read_text())
  if not all(map(is_committed, [content, *_starts(content)])):
    raise SystemExit(f'{file}: got results of code that is in no commit, want those of a clean clone')
  if not complete_seeds(content):
    raise SystemExit(f'{file}: got no seed that all rows are trained with, want at least one')
  return content


def _starts(content):
  return [
    start
    for row in content['rows'].values()
    for result in row['seeds'].values()
    for start in result['starts']
  ]


def measured_with(content: dict) -> str:
  """Command, hardware, versions, and the commits that were trained at."""
  commits = dict.fromkeys(start['commit'][:7] for start in _starts(content))
  return '; '.join([f'`{content["command"]}`', *machine(content), f'trained at commit {", ".join(commits)}.'])


def page() -> str | None:
  """The whole page; None where there are no results."""
  found = {device: content for device in DEVICES if (content := read(device))}
  if not found:
    return None
  lines = ['# Ablation', '', _HEAD, '', _OPENING]
  for device, content in found.items():
    lines += [
      '',
      f'## {DEVICES[device]}',
      '',
      scale(content),
      '',
      *tables(content),
      '',
      measured_with(content),
    ]
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Writes or checks docs/ABLATION.md."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--check', action='store_true', help='change nothing; fail if something would change')
  check = parser.parse_args().check
  text = page()
  there = PAGE.read_text() if PAGE.exists() else None
  if check and there != text:
    sys.exit(f'{PAGE}: got another page than {RESULTS} gives, want python benchmarks/ablation_doc.py run')
  if not check and text is None:
    sys.exit(f'{RESULTS}: got no ablation_cpu.json or ablation_gpu.json, want one by benchmarks/ablation.py')
  if not check:
    PAGE.write_text(text)


if __name__ == '__main__':
  main()
