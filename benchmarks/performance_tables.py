"""The tables of docs/PERFORMANCE.md, each from the JSON that a benchmark wrote: lines of Markdown."""

from collections.abc import Iterable, Mapping, Sequence
import math
from pathlib import Path
import statistics
import sys

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.pytorch.rows import ROWS

# Column -> PyTorch's variant in float32, and in another precision.
_VARIANTS = {
  'PyTorch eager': ('eager', '{}'),
  'PyTorch channels-last': ('channels_last', 'channels_last_{}'),
  'torch.compile': ('compile', 'compile_{}'),
}


def figure(value: float) -> str:
  """Three digits that count, or more where the number is large, and never an exponent: 1263, 8.20, 0.0582."""
  if not value:
    return '0'
  return f'{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """A table of Markdown, its first column to the left, the others to the right."""
  rule = '|---|' + '---:|' * (len(head) - 1)
  return ['| ' + ' | '.join(head) + ' |', rule, *('| ' + ' | '.join(cells) + ' |' for cells in rows)]


def machine(content: dict) -> list[str]:
  """Hardware and versions that results were taken with."""
  # Results of older scripts have no 'gpu': there the device is its name.
  gpu = content.get('gpu') or (None if content['device'] in ('cpu', 'gpu') else content['device'])
  versions = [f'{name} {version}' for name, version in content['versions'].items() if version]
  return [
    f'{content["cores"]} cores, {content["cpu"]}, {gpu or "no GPU"}',
    ', '.join([f'Python {content["python"]}', *versions]),
  ]


def marks(contents: Mapping[str, dict]) -> list[str]:
  """All marks of all results.

  Args:
    contents: By what they are called in the table.
  """
  rows = [
    (
      mark['what'],
      name,
      figure(mark['value']),
      f'{mark["sense"]} {mark["want"]:g}',
      'yes' if mark['reached'] else '**no**',
    )
    for name, content in contents.items()
    for mark in content.get('marks', {}).values()
  ]
  return table(('', 'on', 'got', 'wanted', 'reached'), rows) if rows else ['None of them is measured.']


def limits(content: dict) -> list[str]:
  """The machine's rates, measured in the same run."""
  return [
    f'Rates in the same run, {precision}: {figure(rates["flops_per_second"] / 1e9)} GFLOP/s in matrix '
    f'products, {figure(rates["bytes_per_second"] / 1e9)} GB/s read and written.'
    for precision, rates in content.get('limits', {}).items()
  ]


def against_pytorch(content: dict) -> list[str]:
  """A table for each precision, and which rows of the script are not in it."""
  missing = [row.what for key, row in ROWS.items() if key not in content['rows']]
  lines = beside_pytorch(content)
  return [*lines, '', f'Not measured: {"; ".join(missing)}.'] if missing else lines


def beside_pytorch(content: dict) -> list[str]:
  """A table for each precision, of the rows that are there."""
  found = content['agreement']
  lines = [
    f'Before anything was timed, outputs of up to {figure(found["forward_max_abs"])} differed by '
    f'{found["forward_max_abs_difference"]:.1e} at most, and the norm of the difference of the gradients was '
    f'{found["gradient_relative_difference"]:.1e} of theirs.'
  ]
  for precision in content['limits']:
    lines += ['', f'{precision}:', '', *_precision(content['rows'], precision)]
  return lines


def _precision(rows, precision):
  names = {
    column: plain if precision == 'float32' else other.format(precision)
    for column, (plain, other) in _VARIANTS.items()
  }
  columns = [c for c, variant in names.items() if any(variant in row['pytorch'] for row in rows.values())]
  cells, missing = [], []
  for row in rows.values():
    results = {column: row['pytorch'].get(names[column], {}) for column in columns}
    results['JAX'] = ours = row['jax'].get(precision, {})
    times = {column: result.get('ms') for column, result in results.items()}
    ratios = [times[c] / times['JAX'] if times[c] and times['JAX'] else None for c in columns]
    cells.append(
      (
        row['what'],
        *('' if ms is None else figure(ms) for ms in times.values()),
        *('' if ratio is None else f'{ratio:.2f}' for ratio in ratios),
        figure(ours['limit_ms']) if ours else '',
        f'{ours["limit_share"]:.0%}' if ours.get('limit_share') else '',
        str(row['runs']) if row['in_turn'] else f'{row["runs"]}, not in turn',
      )
    )
    missing += [
      f'- {row["what"]}, {column}: not run: {result["not_run"]}'
      for column, result in results.items()
      if 'not_run' in result
    ]
  head = ('milliseconds', *columns, 'JAX', *(f'{c} / JAX' for c in columns), 'limit', 'limit / JAX', 'runs')
  return [*table(head, cells), *(['', *missing] if missing else [])]


def start_up(content: dict) -> list[str]:
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
  return table(('seconds', 'no cache', 'filled cache', 'limit', 'runs'), rows)


def memory_use(content: dict) -> list[str]:
  """Megabytes that XLA plans, and that a process and a device take at most."""
  columns = {
    'temporary': 'temporary',
    'argument': 'arguments',
    'output': 'outputs',
    'resident_compiled': 'process, compiled',
    'resident': 'process, after one run',
    'device': 'device',
  }
  there = [c for c in columns if any(row['bytes'][c] is not None for row in content['rows'].values())]
  rows = [
    (
      row['what'],
      *(_megabytes(row['bytes'][column]) for column in there),
      _megabytes(row.get('limit_bytes')),
    )
    for row in content['rows'].values()
  ]
  return table(('MB', *(columns[column] for column in there), 'offsets and masks whole'), rows)


def _megabytes(value):
  return '' if value is None else figure(value / 1e6)


def growth(content: dict) -> list[str]:
  """Microseconds a pixel by the image's size."""
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
    'image', 'tiles', 'their pixels / its', 'seconds', 'us a pixel', 'whole: us a pixel', 'limit: us a pixel',
    'limit / tiles', 'runs',
  )  # fmt: skip
  return [*table(head, rows), *(['', *missing] if missing else [])]


def vjp_against_autodiff(content: dict) -> list[str]:
  """Milliseconds and temporary megabytes of the backward pass by hand and by JAX."""
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
    '', 'by hand: ms', 'by JAX: ms', 'by JAX / by hand', 'limit: ms', 'by hand: temporary MB',
    'by JAX: temporary MB', 'runs',
  )  # fmt: skip
  return table(head, rows)


def training_loop(content: dict) -> list[str]:
  """Steps a second by source of data, reader and dtype."""
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
  lines = table(
    (
      'data, reader, computed in',
      'steps a second',
      'patches a second',
      'seconds a step',
      f'limit, {precision}',
      'waiting for data',
    ),
    rows,
  )
  patch = content['patch_px']
  return [f'{content["batch_size"]} patches of {patch}x{patch} a step, {content["steps"]} steps:', '', *lines]


def loss_curves(content: dict) -> list[str]:
  """Every tenth mean of the loss by dtype, and how far the dtypes part."""
  first, *others = content['dtypes']
  rows = content['rows']

  def apart(row, dtype):
    return row[dtype] / row[first] - 1

  cells = [
    (
      str(row['step']),
      *(figure(row[dtype]) for dtype in content['dtypes']),
      *(f'{apart(row, dtype):+.2%}' for dtype in others),
    )
    for row in rows[9::10] or rows[-1:]
  ]
  lines = table(('step', *content['dtypes'], *(f'{dtype} against {first}' for dtype in others)), cells)
  for dtype in others:
    farthest = max(rows, key=lambda row: abs(apart(row, dtype)))
    lines += [
      '',
      f'Of all {len(rows)} means, {dtype} is farthest from {first} at step {farthest["step"]}: '
      f'{apart(farthest, dtype):+.2%}; at the end {apart(rows[-1], dtype):+.2%}.',
    ]
  return [f'Loss, the mean over the last {content["averaged_steps"]} steps:', '', *lines]


def denoiser(content: dict) -> list[str]:
  """The command by the picture's size, and its start."""
  rows = [
    (f'{row["width"]}x{row["height"]}', figure(row['seconds']), f'{row["peak_mib"] / 1024:.2f} GiB')
    for row in content['sizes']
  ]
  start = content.get('start_512x512', {})
  for name, what in (('first_seconds', 'no cache'), ('later_seconds', 'filled cache')):
    if name in start:
      text = f'512x512, {what}, median of {len(start[name])}'
      rows.append((text, figure(statistics.median(start[name])), ''))
  lines = table(('picture', 'seconds', 'peak memory of the process'), rows)
  return [*lines, '', *_seams(content)] if content.get('seams') else lines


def _seams(content):
  by_sigma: dict[float, dict[int, str]] = {}
  for row in content['seams']:
    by_sigma.setdefault(row['sigma_255'], {})[row['overlap_px']] = figure(row['largest'])
  overlaps = list(dict.fromkeys(row['overlap_px'] for row in content['seams']))
  rows = [(f'{sigma:g}', *(found[px] for px in overlaps)) for sigma, found in by_sigma.items()]
  text = (
    'The largest difference between two times two tiles and the whole image, in levels of 1/255, by their '
    f'overlap in pixels (the default is {content["default_overlap_px"]}):'
  )
  return [text, '', *table(('sigma', *map(str, overlaps)), rows)]


def input_pipeline(content: dict) -> list[str]:
  """Patches a second of each reader."""
  rows = [
    (
      f'{row["data"]}, `{row["reader"]}`, {row["crops_per_image"]} a decoded image',
      figure(row['patches_per_second']),
      figure(row['cpu_ms_per_patch']),
    )
    for row in content['rows']
  ]
  lines = table(('data, reader, patches', 'patches a second', 'CPU milliseconds a patch'), rows)
  patch = content['patch_px']
  return [f'{content["batch_size"]} patches of {patch}x{patch} a batch:', '', *lines]
