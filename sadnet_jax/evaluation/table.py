"""Results as a table of text, the published figure of the method and the difference beside ours."""

from collections.abc import Sequence

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
  'published',
  'diff',
  'of',
)
_NOTES = (
  'PSNR in dB; SSIM W: Wang et al., per channel, valid region; SSIM M: MATLAB, the colours as a volume.'
)


def table(results: Sequence[SetResult]) -> str:
  """Lines of text, with a line below for what the stars mean."""
  rows, versions, stars = [_HEAD], {}, {}
  for r in results:
    mean, figure = r.mean(), r.compared_with()
    differs = r.differs(figure) if figure else []
    star = '*' if differs else ''
    if figure and differs:
      stars[f'{r.image_set.title}, {figure.method}: {", ".join(differs)}'] = 0
    versions[f'{r.image_set.title}: {r.image_set.version}'] = 0
    rows.append(
      (
        r.image_set.title,
        'real' if r.sigma_255 is None else f'{r.sigma_255:g}',
        r.protocol.name,
        r.method['name'],
        _figure(mean['psnr_noisy'], '.3f'),
        _figure(mean['psnr'], '.3f'),
        _figure(mean['ssim_wang'], '.4f'),
        _figure(mean['ssim_matlab'], '.4f'),
        _figure(mean['seconds'], '.3g'),
        f'{figure.psnr:.2f}{star}' if figure else '-',
        f'{mean["psnr"] - figure.psnr:+.2f}{star}' if figure and mean['psnr'] is not None else '-',
        figure.method if figure else '-',
      )
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
  lines = ['  '.join(_cell(row[i], widths[i], i) for i in range(len(_HEAD))).rstrip() for row in rows]
  lines += [_NOTES, *versions]
  if stars:
    lines.append(f'* the published figure is of: {"; ".join(stars)}')
  return '\n'.join(lines)


def _figure(value, form):
  return '-' if value is None else format(value, form)


def _cell(text, width, column):
  return text.ljust(width) if column < 4 or column == len(_HEAD) - 1 else text.rjust(width)
