"""Writes docs/PERFORMANCE.md from the committed results of the benchmarks.

  python benchmarks/performance_doc.py           # after a new file in benchmarks/results
  python benchmarks/performance_doc.py --check   # fails if the page is not what the files give

benchmarks/readme_results.py writes some of it to README.md. The words beside the tables are in
benchmarks/performance_notes.md: what stands before its first heading opens the page, the rest ends it.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import performance_tables as tables
from benchmarks.pytorch.results import GPU_COMPILE_RATIO, GPU_EAGER_RATIO, GPU_FORWARD_MS
from benchmarks.pytorch.rows import ROWS
from sadnet_jax.machine import is_committed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'benchmarks' / 'results'
NOTES = ROOT / 'benchmarks' / 'performance_notes.md'
PAGE = ROOT / 'docs' / 'PERFORMANCE.md'
DEVICES = {'cpu': 'CPU', 'gpu': 'GPU'}
# Written to a file of the clone, results would themselves be an uncommitted change to the next run.
_HOW = (
  f'Every command takes `--json FILE`: name a file outside the clone, and when all is measured copy it to '
  f"`{RESULTS.relative_to(ROOT)}`, as the script's name with `_cpu.json` or `_gpu.json`."
)
_GPU_MARKS = (
  f'On a GPU, not measured: forward and training at least {GPU_EAGER_RATIO:g} times as fast as PyTorch '
  f'(eager) and {GPU_COMPILE_RATIO:g} times as fast as torch.compile, in each precision; forward, 1 image '
  f'480x320: at most {GPU_FORWARD_MS:g} ms.'
)
_HEAD = '<!-- By benchmarks/performance_doc.py: change benchmarks/performance_notes.md, not this file. -->'


@dataclasses.dataclass(frozen=True)
class Section:
  """A script's part of the page.

  Attributes:
    stem: The script's name; its results are ``stem_cpu.json`` and ``stem_gpu.json``.
    title: The heading.
    text: What is measured.
    lines: Results -> table.
    options: Results that do not tell their command -> options of the script that give them.
    needs: What results of the script as it is now have; others do not count.
    why_not_on_cpu: What the page says where there are none.
  """

  stem: str
  title: str
  text: str
  lines: Callable[[dict], list[str]]
  options: Callable[[dict], str] = lambda content: ''
  needs: frozenset[str] = frozenset({'rows'})
  why_not_on_cpu: str = 'no results of the script as it is now'

  def file(self, device: str) -> Path:
    """Where the results of a kind of device are."""
    return RESULTS / f'{self.stem}_{device}.json'

  def command(self, content: dict) -> str:
    """What was run."""
    return content.get('command') or f'python benchmarks/{self.stem}.py {self.options(content)}'.strip()


def _options_against_pytorch(content):
  """One command for each number of runs: the most rows first, the others by name."""
  rows: dict[int, list[str]] = {}
  for key, row in content['rows'].items():
    rows.setdefault(row['runs'], []).append(key)
  default = {key for key, row in ROWS.items() if content['device'] != 'cpu' or not row.heavy}
  commands = []
  for runs, keys in sorted(rows.items(), key=lambda item: -len(item[1])):
    everything = not commands and default <= set(content['rows']) and set(keys) <= default
    only = '' if everything else f' --only {" ".join(keys)}'
    commands.append(f'--runs {runs} --seed {content["seed"]}{only}')
  return ' && python benchmarks/against_pytorch.py '.join(commands)


SECTIONS = (
  Section(
    'against_pytorch',
    'Beside PyTorch',
    "The same network with the same weights in PyTorch, on torchvision's operator, in the same process. A "
    "limit is the operations over the machine's matrix rate, or the bytes that pass between layers over its "
    'copy rate, whichever is more; `benchmarks/limits.py` says what counts.',
    tables.against_pytorch,
    _options_against_pytorch,
    frozenset({'rows', 'limits', 'agreement', 'marks'}),
  ),
  Section(
    'start_up',
    'Until the first image',
    'Every start is a process of its own. Lowering is tracing and turning into StableHLO; no cache keeps it. '
    'Only the second call does nothing but compute: beside it stands the limit of the forward pass.',
    tables.start_up,
  ),
  Section(
    'memory_use',
    'Memory',
    'Temporary, argument and output megabytes are what XLA plans; those of the process are the most that it '
    'had in memory, beyond that of a process which only imports. The last column is what the finest '
    'deformable convolution reads and writes, with the offsets and masks of the whole image: a program that '
    'needs less never has all of them.',
    tables.memory_use,
  ),
  Section(
    'growth',
    'Growth with the image',
    '`sadnet_jax.Denoiser` with the tiles that it chooses itself, without compilation, beside the network '
    'alone on the image in one piece, once. A run of less than 1.5 megapixels is the mean of several calls, '
    'after one that is not counted: it would fetch the memory anew that a large image gave back.',
    tables.growth,
  ),
  Section(
    'vjp_against_autodiff',
    'The backward pass by hand',
    'All gradients of `deform_conv2d`, by its own backward pass and by what JAX makes of the same forward '
    'pass in the same blocks (on a CPU, without the conditionals that keep XLA from merging its loops).',
    tables.vjp_against_autodiff,
  ),
  Section(
    'training_loop',
    'The whole training loop',
    'The network at full width, from each reader of its data.',
    tables.training_loop,
    needs=frozenset({'rows', 'limits', 'command'}),
  ),
  Section(
    'loss_curves',
    'The loss in bfloat16',
    'Two trainings that differ in nothing but the dtype in which the network computes.',
    tables.loss_curves,
    needs=frozenset({'rows', 'dtypes', 'averaged_steps'}),
    why_not_on_cpu='it is meant for GPUs, which are faster in bfloat16; two cores would take hours',
  ),
  Section(
    'denoiser',
    'The command',
    '`sadnet-denoise` on a picture, a process each.',
    tables.denoiser,
    needs=frozenset({'sizes', 'command'}),
  ),
  Section(
    'input_pipeline',
    'The readers alone',
    'Patches until they lie on the first device, without training.',
    tables.input_pipeline,
    needs=frozenset({'rows', 'command'}),
  ),
)


def read(section: Section, device: str) -> dict[str, Any] | None:
  """The results of a section on a device, None where there are none of the script as it is now.

  Raises:
    SystemExit: They are of code that is in no commit.
  """
  file = section.file(device)
  content = json.loads(file.read_text()) if file.exists() else {}
  if not section.needs <= set(content):
    return None
  if not is_committed(content):
    raise SystemExit(f'{file}: got results of code that is in no commit, want those of a clean clone')
  return content


def measured_with(section: Section, content: dict) -> str:
  """Command, hardware, versions and commit."""
  return '; '.join(
    [f'`{section.command(content)}`', *tables.machine(content), f'commit {content["commit"][:7]}.']
  )


def part(section: Section, device: str, content: dict | None) -> list[str]:
  """One device's part of a section."""
  lines = [f'### {section.title}, {DEVICES[device]}', '']
  if content is None:
    reason = 'no GPU was at hand' if device == 'gpu' else section.why_not_on_cpu
    return [
      *lines,
      f'Not measured: {reason}. To measure: `python benchmarks/{section.stem}.py --json '
      f'/tmp/{section.file(device).name}`',
    ]
  rates = tables.limits(content)
  lines += [*section.lines(content), '']
  return [*lines, *rates, *([''] if rates else []), measured_with(section, content)]


def page(notes: str) -> str:
  """The whole page.

  Args:
    notes: Markdown; see the head of this file.
  """
  opening, heading, rest = notes.partition('\n## ')
  found = {(section, device): read(section, device) for section in SECTIONS for device in DEVICES}
  by_name = {
    f'{DEVICES[device]}, `{section.stem}`': content
    for (section, device), content in found.items()
    if content is not None
  }
  lines = ['# Performance', '', _HEAD, '', opening.strip(), '', _HOW, '', '## What was to be reached', '']
  lines += tables.marks(by_name)
  if not any(device == 'gpu' for (_, device), content in found.items() if content is not None):
    lines += ['', _GPU_MARKS]
  for section in SECTIONS:
    lines += ['', f'## {section.title}', '', section.text]
    for device in DEVICES:
      lines += ['', *part(section, device, found[section, device])]
  if heading:
    lines += [heading + rest.strip()]
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Writes or checks docs/PERFORMANCE.md."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--check', action='store_true', help='change nothing; fail if something would change')
  check = parser.parse_args().check
  text = page(NOTES.read_text())
  if not check:
    PAGE.write_text(text)
  elif not PAGE.exists() or PAGE.read_text() != text:
    sys.exit(f'{PAGE}: got another page than {RESULTS} gives, want python benchmarks/performance_doc.py run')


if __name__ == '__main__':
  main()
