"""Results as a table of text, the paper's figure and the difference beside ours."""

from collections.abc import Sequence

from sadnet_jax.evaluation.known_sets import IMAGE_SETS, SIDD_VALIDATION_BLOCKS
from sadnet_jax.evaluation.published import PAPER, Published, published
from sadnet_jax.evaluation.results import SetResult

_HEAD = (
  'data set',
  'sigma',
  'protocol',
  'method',
  'noisy',
  'PSNR',
  'SSIM W',
  'SSIM M',
  's/image',
  'paper',
  'diff',
)
_NOTES = (
  'PSNR in dB; SSIM W: Wang et al., per channel, valid region; SSIM M: MATLAB, the colours as a volume.'
)


def paper_row(result: SetResult) -> tuple[Published | None, bool]:
  """The SADNet paper's figure for what was evaluated, and whether it is of this protocol and these images.

  These images are all of the set, in the paper's version of it.
  """
  rows = published(result.image_set.name, result.channels, result.sigma_255)
  paper = next((p for p in rows if p.method == PAPER), None)
  if paper is None:
    return None, False
  alike = (
    paper.protocol == result.protocol.name
    and result.image_set.version.startswith(paper.version)
    and len(result.images) == _count(result)
  )
  return paper, alike


def _count(result):
  """Images of the whole set."""
  known = IMAGE_SETS.get(result.image_set.name)
  return known.count if known else SIDD_VALIDATION_BLOCKS


def table(results: Sequence[SetResult]) -> str:
  """Lines of text, with a line below for what the stars mean."""
  rows, versions, differs = [_HEAD], {}, {}
  for r in results:
    mean, (paper, alike) = r.mean(), paper_row(r)
    star = '' if alike else '*'
    ours = mean['psnr']
    if paper and not alike:
      whole = f'all {_count(r)} images' if len(r.images) != _count(r) else ''
      words = ', '.join(filter(None, (paper.protocol, paper.version, whole)))
      differs[f'{r.image_set.title}: {words}'] = 0
    versions[f'{r.image_set.title}: {r.image_set.version}'] = 0
    rows.append(
      (
        r.image_set.title,
        'real' if r.sigma_255 is None else f'{r.sigma_255:g}',
        r.protocol.name,
        r.method['name'],
        _figure(mean['psnr_noisy'], '.3f'),
        _figure(ours, '.3f'),
        _figure(mean['ssim_wang'], '.4f'),
        _figure(mean['ssim_matlab'], '.4f'),
        _figure(mean['seconds'], '.3g'),
        f'{paper.psnr:.2f}{star}' if paper else '-',
        f'{ours - paper.psnr:+.2f}{star}' if paper and ours is not None else '-',
      )
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
  lines = ['  '.join(_cell(row[i], widths[i], i) for i in range(len(_HEAD))).rstrip() for row in rows]
  lines += [_NOTES, *versions]
  if differs:
    lines.append(f"* the paper's figure is of another protocol or other images: {'; '.join(differs)}")
  return '\n'.join(lines)


def _figure(value, form):
  return '-' if value is None else format(value, form)


def _cell(text, width, column):
  return text.ljust(width) if column < 4 else text.rjust(width)
