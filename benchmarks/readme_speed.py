"""README's part on speed, of the committed results that docs/PERFORMANCE.md has in full.

benchmarks/readme_results.py writes it.
"""

from pathlib import Path
import sys

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import performance_tables, report

# Of the comparison with PyTorch; the page has all.
ROWS = (
  'deform_forward_1x320x480x32',
  'deform_backward_1x320x480x32',
  'deform_forward_1x40x60x256',
  'deform_backward_1x40x60x256',
  'forward_1x320x480',
  'training_4x128x128',
)
SECTIONS = ('denoiser', 'against_pytorch', 'training_loop')


def markdown() -> str:
  """A table for each of `SECTIONS` and each kind of device that it was measured on.

  Raises:
    SystemExit: Results are of code that is in no commit, or a section has none at all.
  """
  by_stem = {section.stem: section for section in report.SECTIONS}
  return '\n\n'.join(text for stem in SECTIONS for text in _parts(by_stem[stem]))


def _parts(section):
  found = {device: report.read(section, device) for device in report.DEVICES}
  if not any(found.values()):
    raise SystemExit(f'{section.file("cpu")}: got no results, want those of {section.stem}.py')
  for device, content in found.items():
    if content is not None:
      lines = _chosen(content) if section.stem == 'against_pytorch' else section.lines(content)
      heading = f'### {section.title}, {report.DEVICES[device]}'
      command = report.measured_with(section, content)
      yield '\n'.join([heading, '', section.text, '', *lines, '', command])


def _chosen(content):
  rows = {key: row for key, row in content['rows'].items() if key in ROWS}
  return performance_tables.beside_pytorch(content | {'rows': rows})
