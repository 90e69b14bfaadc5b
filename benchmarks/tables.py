"""The tables of benchmarks' results as lines of Markdown, for the terminal and for the documentation.

Each takes the content of a results file.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
from pathlib import Path
import statistics
import sys
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from scipy import stats

from benchmarks.pytorch.rows import ROWS as PYTORCH_ROWS
from configs.ablation import PAPER_PSNR, ROWS
from sadnet_jax.weights.index import available


def figure(value: float) -> str:
  """Three significant digits, or more where the number is large, and never an exponent: 1263, 8.20,
  0.0582."""
  if not value:
    return '0'
  return f'{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}'


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> list[str]:
  """Lines of a Markdown table; the first columns are aligned to the left, the others to the right."""
  rule = '|' + '---|' * text_columns + '---:|' * (len(head) - text_columns)
  return ['| ' + ' | '.join(head) + ' |', rule, *('| ' + ' | '.join(cells) + ' |' for cells in rows)]


def machine(content: Mapping[str, Any]) -> str:
  """Hardware and versions of a results file."""
  versions = [f'{name} {version}' for name, version in content['versions'].items() if version]
  hardware = f'{content["cores"]} cores, {content["cpu"]}, {content["gpu"] or "no GPU"}'
  return f'{hardware}; ' + ', '.join(['Python ' + content['python'], *versions])


def pytorch_tables(content: Mapping[str, Any]) -> list[str]:
  """A table for each precision, then the rows of the benchmark that were not measured."""
  found = content['agreement']
  lines = [
    f'Before timing, the outputs (absolute values up to {figure(found["forward_max_abs"])}) differed by at '
    f'most {found["forward_max_abs_difference"]:.1e}, and the gradients by '
    f'{found["gradient_relative_difference"]:.1e} of their norm.'
  ]
  others = [name for name in ('tf32', 'bfloat16') if name not in content['limits']]
  for precision in content['limits']:
    shown = others if precision == 'float32' else []
    lines += ['', f'{precision}:', '', *_pytorch_table(content['rows'], precision, shown)]
  if missing := [row.what for key, row in PYTORCH_ROWS.items() if key not in content['rows']]:
    lines += ['', f'Not measured: {"; ".join(missing)}.']
  return lines


# Column -> variant in float32, and in another precision.
_PEERS = {
  'PyTorch eager': ('eager', '{}'),
  'channels-last': ('channels_last', 'channels_last_{}'),
  'torch.compile': ('compile', 'compile_{}'),
}
_ONNX_RUNTIME = 'ONNX Runtime'


def _pytorch_table(rows, precision, others=()):
  """One row per measurement. Peers are those of this precision, and of ``others``, which JAX was not timed
  in."""
  columns = {
    (column if precision_ == precision else f'{column}, {precision_}'): (
      plain if precision_ == 'float32' else other.format(precision_)
    )
    for precision_ in (precision, *others)
    for column, (plain, other) in _PEERS.items()
  }
  cells, missing = [], []
  for row in rows.values():
    found = {column: row['pytorch'].get(variant, {}) for column, variant in columns.items()}
    found[_ONNX_RUNTIME] = row.get('onnx_runtime', {}).get(precision, {})
    cells.append((row, found, row['jax'].get(precision, {})))
    missing += [
      f'- {row["what"]}, {column}: not run: {result["not_run"]}'
      for column, result in {**found, 'JAX': cells[-1][2]}.items()
      if 'not_run' in result
    ]
  shown = [c for c in (*columns, _ONNX_RUNTIME) if any(found[c] for _, found, _ in cells)]
  lines = [_pytorch_cells(row, [found[c].get('ms') for c in shown], ours) for row, found, ours in cells]
  head = ('milliseconds', *shown, 'JAX', 'eager / JAX', 'fastest other / JAX', 'limit', 'limit / JAX', 'runs')
  return [*markdown_table(head, lines), *(['', *missing] if missing else [])]


def _pytorch_cells(row, theirs, ours):
  """``theirs``: milliseconds or None, eager PyTorch first."""
  ms = ours.get('ms')
  ratios = [
    each / ms if each and ms else None
    for each in (next(iter(theirs), None), min(filter(None, theirs), default=None))
  ]
  return (
    row['what'],
    *('' if each is None else figure(each) for each in (*theirs, ms)),
    *('' if ratio is None else f'{ratio:.2f}' for ratio in ratios),
    figure(ours['limit_ms']) if ours else '',
    f'{ours["limit_share"]:.0%}' if ours.get('limit_share') else '',
    str(row['runs']) if row['in_turn'] else f'{row["runs"]}, one after the other',
  )


def start_up_table(content: Mapping[str, Any]) -> list[str]:
  """Seconds without and with a compilation cache."""
  rows = [
    (
      row['what'],
      figure(row['no_cache']['seconds']),
      figure(row['filled_cache']['seconds']) if 'filled_cache' in row else '',
      figure(row['limit_seconds']) if 'limit_seconds' in row else '',
      str(len(row['no_cache']['runs_seconds'])),
    )
    for row in content['rows'].values()
  ]
  return markdown_table(('seconds', 'no cache', 'filled cache', 'limit', 'runs'), rows)


def memory_table(content: Mapping[str, Any]) -> list[str]:
  """Megabytes that XLA plans, and the peak of the process and of the device."""
  columns = {
    'temporary': 'temporary',
    'argument': 'arguments',
    'output': 'outputs',
    'resident_compiled': 'process, compiled',
    'resident': 'process, after one run',
    'device': 'device',
  }
  measured = [c for c in columns if any(row['bytes'][c] is not None for row in content['rows'].values())]
  rows = [
    (
      row['what'],
      *(_megabytes(row['bytes'][column]) for column in measured),
      _megabytes(row.get('limit_bytes')),
    )
    for row in content['rows'].values()
  ]
  return markdown_table(('MB', *(columns[column] for column in measured), 'all offsets and masks'), rows)


def _megabytes(value):
  return '' if value is None else figure(value / 1e6)


def image_size_table(content: Mapping[str, Any]) -> list[str]:
  """Microseconds per pixel by image size."""
  rows, missing = [], []
  for row in content['rows'].values():
    height, width = row['tile_size']
    whole = row['whole']
    if 'not_run' in whole:
      missing.append(f'- {row["what"]}, whole: not run: {whole["not_run"]}')
    rows.append(
      (
        row['what'],
        f'{row["tiles"]} of {width}x{height}' if row['tiles'] > 1 else 'whole',
        f'{row["pixels_of_tiles"] / row["pixels"]:.2f}',
        figure(row['tiled']['seconds']),
        figure(row['tiled']['us_per_pixel']),
        '' if 'not_run' in whole else figure(whole['us_per_pixel']),
        figure(1e3 * row['limit_ms'] / row['pixels']),
        f'{row["limit_share"]:.0%}',
        str(len(row['tiled']['runs_seconds'])),
      )
    )
  head = (
    'image', 'tiles', 'pixels of the tiles / of the image', 'seconds', 'us per pixel', 'whole: us per pixel',
    'limit: us per pixel', 'limit / tiled', 'runs',
  )  # fmt: skip
  return [*markdown_table(head, rows), *(['', *missing] if missing else [])]


def onnx_runtime_table(content: Mapping[str, Any]) -> list[str]:
  """Best seconds of the network in JAX and in ONNX Runtime."""
  rows = [
    (
      row['what'],
      *(figure(min(row[name]['runs_seconds'])) for name in ('jax', 'onnx_runtime')),
      figure(row['ratio_of_best']),
      f'{row["largest_difference"]:.1e}',
      str(len(row['jax']['runs_seconds'])),
    )
    for row in content['rows'].values()
  ]
  head = (
    'image',
    'JAX: seconds',
    'ONNX Runtime: seconds',
    'ONNX Runtime / JAX',
    'largest difference',
    'runs',
  )
  return markdown_table(head, rows)


def backward_pass_table(content: Mapping[str, Any]) -> list[str]:
  """Milliseconds and temporary megabytes of the hand-written backward pass and of JAX's."""
  rows = [
    (
      row['what'],
      *(figure(1e3 * row[name]['seconds']) for name in ('by_hand', 'autodiff')),
      f'{row["autodiff"]["seconds"] / row["by_hand"]["seconds"]:.2f}',
      figure(row['limit_ms']),
      *(figure(row[name]['temporary_bytes'] / 1e6) for name in ('by_hand', 'autodiff')),
      str(len(row['by_hand']['runs_seconds'])),
    )
    for row in content['rows'].values()
  ]
  head = (
    '', 'hand-written: ms', 'JAX: ms', 'JAX / hand-written', 'limit: ms', 'hand-written: temporary MB',
    'JAX: temporary MB', 'runs',
  )  # fmt: skip
  return markdown_table(head, rows)


def training_loop_table(content: Mapping[str, Any]) -> list[str]:
  """Steps per second by data set, reader and dtype."""
  (precision,) = content['limits']
  rows = [
    (
      f'{row["data"]}, `{row["reader"]}`, {row["dtype"]}',
      figure(1 / row['seconds_per_step']),
      figure(row['images_per_second']),
      figure(row['seconds_per_step']),
      figure(content['limit_seconds']),
      f'{row["waiting_for_data"]:.2%}',
    )
    for row in content['rows']
  ]
  head = (
    'data, reader, dtype', 'steps per second', 'patches per second', 'seconds per step',
    f'limit, {precision}', 'waiting for data',
  )  # fmt: skip
  patch = content['patch_px']
  opening = f'{content["batch_size"]} patches of {patch}x{patch} per step, {content["steps"]} steps:'
  return [opening, '', *markdown_table(head, rows)]


def bfloat16_table(content: Mapping[str, Any]) -> list[str]:
  """Every tenth mean of the loss by dtype, and the largest difference between the dtypes."""
  first, *others = content['dtypes']
  rows = content['rows']

  def difference(row, dtype):
    return row[dtype] / row[first] - 1

  cells = [
    (
      str(row['step']),
      *(figure(row[dtype]) for dtype in content['dtypes']),
      *(f'{difference(row, dtype):+.2%}' for dtype in others),
    )
    for row in rows[9::10] or rows[-1:]
  ]
  lines = markdown_table(('step', *content['dtypes'], *(f'{dtype} minus {first}' for dtype in others)), cells)
  for dtype in others:
    largest = max(rows, key=lambda row: abs(difference(row, dtype)))
    lines += [
      '',
      f'Of all {len(rows)} means, {dtype} differs most from {first} at step {largest["step"]}: '
      f'{difference(largest, dtype):+.2%}; at the end by {difference(rows[-1], dtype):+.2%}.',
    ]
  return [f'Loss, mean over the last {content["averaged_steps"]} steps:', '', *lines]


def command_tables(content: Mapping[str, Any]) -> list[str]:
  """The command by picture size and its start, then the seams; whether the weights are others now."""
  rows = [
    (
      f'{row["width"]}x{row["height"]}, --quality {row["quality"]}',
      figure(row['seconds']),
      figure(row['later_seconds']) if 'later_seconds' in row else '',
      f'{row["peak_mib"] / 1024:.2f} GiB',
      f'{row["psnr_noisy"]:.2f} to {row["psnr"]:.2f} dB',
    )
    for row in content['sizes']
  ]
  if start := content.get('start_512x512'):
    empty, filled = (start[name] for name in ('first_seconds', 'later_seconds'))
    medians = (figure(statistics.median(seconds)) for seconds in (empty, filled))
    rows.append((f'512x512, median of {len(empty)}', *medians, '', ''))
  head = ('picture', 'seconds, empty cache', 'filled cache', 'peak memory of the process', 'PSNR')
  lines = markdown_table(head, rows)
  if content.get('seams'):
    lines += ['', *_seams(content)]
  published = {name: entry.sha256 for name, entry in available().items()}
  if replaced := sorted(set(content.get('weights', {}).items()) - set(published.items())):
    names = ', '.join(f'`{name}`' for name, _ in replaced)
    lines += ['', f'PSNR and differences are of other weights than those published now: {names}.']
  return lines


def _seams(content):
  by_sigma: dict[float, dict[int, str]] = {}
  for row in content['seams']:
    by_sigma.setdefault(row['sigma_255'], {})[row['overlap_px']] = figure(row['largest'])
  overlaps = list(dict.fromkeys(row['overlap_px'] for row in content['seams']))
  rows = [(f'{sigma:g}', *(found[px] for px in overlaps)) for sigma, found in by_sigma.items()]
  text = (
    'Largest difference between an image denoised in two by two tiles and the same image denoised whole, in '
    f'levels of 1/255, by the overlap in pixels (default: {content["default_overlap_px"]}):'
  )
  return [text, '', *markdown_table(('sigma', *map(str, overlaps)), rows)]


def many_sizes_table(content: Mapping[str, Any]) -> list[str]:
  """A folder of small pictures, memory by number of sizes, and what sharing programs changes."""
  resident, differences = content['resident_mib'], content['differences']
  seconds = content['folder_seconds']
  count = len(resident)
  rows = [
    (
      f'command, 30 pictures of 30 sizes, empty cache: seconds, median of {len(seconds)}',
      figure(statistics.median(seconds)),
    ),
    ('the same: CPU seconds, of all cores', figure(statistics.median(content['folder_cpu_seconds']))),
    (f'`Denoiser`, {count} sizes: seconds', figure(content['seconds'])),
    *(
      (f'resident memory after {n} sizes', f'{resident[n - 1]:.0f} MiB')
      for n in (1, 10, 50, 100, count)
      if n <= count
    ),
    (
      'shared program: largest difference, levels of 1/255',
      figure(max(row['shared'] for row in differences)),
    ),
    (
      'filled up by reflection instead: largest difference',
      figure(max(row['reflected'] for row in differences)),
    ),
    (
      'filled up by reflection instead: mean difference',
      figure(statistics.mean(row['reflected_mean'] for row in differences)),
    ),
  ]
  return markdown_table(('', 'measured'), rows)


def data_readers_table(content: Mapping[str, Any]) -> list[str]:
  """Patches per second of each reader."""
  rows = [
    (
      f'{row["data"]}, `{row["reader"]}`, {row["crops_per_image"]} per decoded image',
      figure(row['patches_per_second']),
      figure(row['cpu_ms_per_patch']),
    )
    for row in content['rows']
  ]
  patch = content['patch_px']
  head = ('data, reader, patches', 'patches per second', 'CPU milliseconds per patch')
  return [f'{content["batch_size"]} patches of {patch}x{patch} per batch:', '', *markdown_table(head, rows)]


# Ablation.

# In the order of the values of ROWS.
PARTS = ('RSAB', 'offset transfer', 'context block')


def additions() -> list[tuple[str, str, str]]:
  """All (part, row without it, row with it) of two rows that differ in that part alone."""
  return [
    (PARTS[differing[0]], without, with_it)
    for with_it, parts in ROWS.items()
    for without, fewer in ROWS.items()
    if len(differing := [i for i in range(len(PARTS)) if parts[i] != fewer[i]]) == 1 and parts[differing[0]]
  ]


def complete_seeds(content: Mapping[str, Any]) -> list[str]:
  """The seeds that every row was trained with; means are taken over these."""
  first, *others = (content['rows'][row]['seeds'] for row in ROWS)
  return [seed for seed in first if all(seed in seeds for seeds in others)]


def psnr_by_seed(content: Mapping[str, Any], row: str) -> list[float]:
  """PSNR of a row in dB, one value per complete seed."""
  return [content['rows'][row]['seeds'][seed]['psnr'] for seed in complete_seeds(content)]


def differences(content: Mapping[str, Any], without: str, with_it: str) -> list[float]:
  """PSNR of one row minus that of another, one value per complete seed."""
  pairs = zip(psnr_by_seed(content, without), psnr_by_seed(content, with_it), strict=True)
  return [b - a for a, b in pairs]


def standard_error(content: Mapping[str, Any]) -> float | None:
  """Standard error of the difference of two rows' means in dB, or None with a single seed.

  From the variance between seeds, pooled over all rows. That rows of one seed share their patches is not
  used.
  """
  if len(complete_seeds(content)) < 2:
    return None
  runs = [psnr_by_seed(content, row) for row in ROWS]
  variance = statistics.fmean(map(statistics.variance, runs))
  return math.sqrt(2 * variance / len(runs[0]))


def degrees_of_freedom(content: Mapping[str, Any]) -> int:
  """Degrees of freedom of `standard_error`."""
  return len(ROWS) * (len(complete_seeds(content)) - 1)


def chance_bound(content: Mapping[str, Any]) -> float | None:
  """The bound in dB that the difference of two equally good rows stays below in 95% of cases (Student's t).

  None with a single seed.
  """
  error = standard_error(content)
  return None if error is None else error * float(stats.t.ppf(0.975, degrees_of_freedom(content)))


def ablation_tables(content: Mapping[str, Any]) -> list[str]:
  """Both tables and which differences are above chance, as lines of Markdown."""
  seeds = {seed for row in ROWS for seed in content['rows'][row]['seeds']}
  excluded = sorted(seeds - set(complete_seeds(content)), key=int)
  note = (
    f' Excluded, because not all rows are trained yet: seed {" and ".join(excluded)}.' if excluded else ''
  )
  return [*_rows_table(content), '', *_additions_table(content), '', _variation(content) + note]


def _rows_table(content):
  """One line per row: its parts, our PSNR, the spread between seeds, the paper's PSNR."""
  seeds = len(complete_seeds(content))
  cells = []
  for row, parts in ROWS.items():
    ours = psnr_by_seed(content, row)
    names = ', '.join(name for name, used in zip(PARTS, parts, strict=True) if used)
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
  return markdown_table(head, cells, 2)


def _additions_table(content):
  """One line per pair of rows that differ in one part."""
  bound = chance_bound(content)
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
  return markdown_table(('added part', 'to', 'ours', 'range over seeds', 'above chance', 'paper'), cells, 2)


def _variation(content):
  """Which of the differences can be distinguished from the variation between runs."""
  seeds, error, pairs = complete_seeds(content), standard_error(content), additions()
  if error is None:
    return (
      f'Each row was trained once, with seed {seeds[0]}. The spread between seeds is not known, so none of '
      'these differences can be distinguished from chance.'
    )
  bound = chance_bound(content)
  spread = {row: statistics.stdev(psnr_by_seed(content, row)) for row in ROWS}
  least, most = (
    f'{spread[row]:.3f} (`{row}`)' for row in sorted(ROWS, key=lambda row: spread[row])[:: len(ROWS) - 1]
  )
  ours = [statistics.fmean(differences(content, without, with_it)) for _, without, with_it in pairs]
  paper = [PAPER_PSNR[with_it] - PAPER_PSNR[without] for _, without, with_it in pairs]
  above = sum(abs(value) > bound for value in ours)
  same_sign = sum(a * b > 0 for a, b in zip(ours, paper, strict=True))
  small = sum(abs(value) <= bound for value in paper)
  return (
    f'Variation between runs: the standard deviation over {len(seeds)} seeds, pooled over all rows, is '
    f'{error * math.sqrt(len(seeds) / 2):.3f} dB (single rows: from {least} to {most}), and the standard '
    f'error of the difference of two means of {len(seeds)} runs is {error:.3f} dB. Chance alone stays below '
    f"{bound:.3f} dB in 95% of cases (Student's t with {degrees_of_freedom(content)} degrees of freedom). Of "
    f'the {len(pairs)} differences that a part makes, {above} exceed this bound and {len(pairs) - above} '
    f"cannot be distinguished from chance; {same_sign} have the sign of the paper's. Among {len(pairs)} "
    'differences, one or another may exceed the bound by chance. That rows of one seed share their patches '
    f'is not used. The paper does not state the variation between its runs: {small} of its {len(pairs)} '
    'differences would be too small to be visible here.'
  )
