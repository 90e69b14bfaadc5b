"""What the comparison with PyTorch writes: limits beside the figures, marks, rows of several runs."""

import json
from pathlib import Path
from typing import Any

from benchmarks.limits import Limits
from benchmarks.pytorch.rows import ROWS

# What must be the same for the rows of two runs to stand in one file.
_SAME = (
  'cpu', 'cores', 'gpu', 'device', 'devices', 'torch_threads', 'python', 'versions', 'commit',
  'uncommitted_changes', 'seed',
)  # fmt: skip
# On a CPU (of two cores) and on a GPU (an H200): at least so many times as fast as PyTorch.
_CPU_RATIOS = {'forward_1x320x480': 3.0, 'training_4x128x128': 4.0}
GPU_EAGER_RATIO, GPU_COMPILE_RATIO = 2.0, 1.2
GPU_FORWARD_MS = 2.0
# Time per pixel of the first over that of the second, at most.
_GROWTH_ROWS = ('deform_backward_1x320x480x32', 'deform_backward_4x128x128x32')
_GROWTH = 1.5
HEADER = f'{"what":<44}{"PyTorch ms":>12}{"JAX ms":>12}{"ratio":>8}{"limit ms":>10}{"share":>8}{"runs":>6}'


def read_results(path: Path) -> dict[str, Any] | None:
  """The results in a file that may be missing.

  Raises:
    ValueError: The file has something else.
  """
  if not path.exists():
    return None
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path}: got no JSON ({error}), want results of this script') from None
  known = isinstance(content, dict) and isinstance(content.get('rows'), dict)
  if not known or not set(content['rows']) <= set(ROWS) or not {*_SAME, 'limits'} <= set(content):
    raise ValueError(f'{path}: got something else, want results of this script: move it or name another file')
  return content


def check_same_environment(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
  """Raises ValueError unless the rows of both may stand beside each other."""
  differing = [f'{name} {old[name]!r}, not {new[name]!r}' for name in _SAME if old[name] != new[name]]
  if differing:
    raise ValueError(
      f'{path}: got rows measured with {"; ".join(differing)}, want those of the same machine, versions, '
      'commit and seed: move it or name another file'
    )


def merge(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
  """The new results, with the rows of the old ones that were not measured again.

  A limit is the higher of both measurements, and stands beside every row; marks are those of all rows.
  """
  limits = {name: Limits(**rates) for name, rates in new['limits'].items()}
  rows = dict(new['rows'])
  if old is not None:
    for name, rates in old['limits'].items():
      limits[name] = limits[name].best(Limits(**rates))
    rows = {**old['rows'], **rows}
  ordered = {key: with_limits(rows[key], limits) for key in ROWS if key in rows}
  return {
    **new,
    'limits': {name: rates.to_json() for name, rates in limits.items()},
    'rows': ordered,
    'marks': marks(ordered, new['device']),
  }


def with_limits(row: dict[str, Any], limits: dict[str, Limits]) -> dict[str, Any]:
  """A row with the least milliseconds that this machine needs, for each of JAX's precisions and in float32.

  A precision's limit is at its own matrix rate, with half the bytes in bfloat16. The share is the limit
  over what was measured, None where nothing was.
  """
  jax_results = {}
  for precision, result in row['jax'].items():
    bytes_ = row['bytes'] / (2 if precision == 'bfloat16' else 1)
    limit_ms = 1e3 * limits[precision].seconds(row['flops'], bytes_)
    share = limit_ms / result['ms'] if 'ms' in result else None
    jax_results[precision] = {**result, 'limit_ms': limit_ms, 'limit_share': share}
  in_float32 = {name: jax_results['float32'][name] for name in ('limit_ms', 'limit_share')}
  return {**row, 'jax': jax_results, **in_float32}


def ratio(row: dict[str, Any], torch_variant: str = 'eager', precision: str = 'float32') -> float | None:
  """How many times as fast JAX is; None unless both were timed."""
  theirs, ours = row['pytorch'].get(torch_variant, {}), row['jax'].get(precision, {})
  return theirs['ms'] / ours['ms'] if 'ms' in theirs and 'ms' in ours else None


def marks(rows: dict[str, Any], device: str) -> dict[str, dict[str, Any]]:
  """What is to be reached by those of the rows that were timed: what, value, want, sense, reached."""
  found = _cpu_marks(rows) if device == 'cpu' else _gpu_marks(rows)
  return {
    name: {
      'what': what,
      'value': value,
      'want': want,
      'sense': sense,
      'reached': value >= want if sense == 'at least' else value <= want,
    }
    for name, (what, value, sense, want) in found.items()
    if value is not None
  }


def _cpu_marks(rows):
  found = {}
  for key, want in _CPU_RATIOS.items():
    if key in rows:
      what = f'{ROWS[key].what}: times as fast as PyTorch (eager)'
      found[key] = what, ratio(rows[key]), 'at least', want
  if all('ms' in rows.get(key, {'jax': {'float32': {}}})['jax']['float32'] for key in _GROWTH_ROWS):
    large, small = (rows[key]['jax']['float32']['ms'] / _pixels(key) for key in _GROWTH_ROWS)
    what = f'{ROWS[_GROWTH_ROWS[0]].what}: time per pixel over that of 4x128x128x32'
    found['deform_backward_growth'] = what, large / small, 'at most', _GROWTH
  return found


def _gpu_marks(rows):
  """For each precision against PyTorch in the same."""
  found = {}
  for key, row in rows.items():
    if ROWS[key].is_operator:
      continue
    for precision in row['jax']:
      suffix = '' if precision == 'float32' else f'_{precision}'
      for name, variant, want in (
        ('eager', precision if suffix else 'eager', GPU_EAGER_RATIO),
        ('compile', f'compile{suffix}', GPU_COMPILE_RATIO),
      ):
        what = f'{ROWS[key].what}, {precision}: times as fast as PyTorch ({name})'
        found[f'{key}_{precision}_{name}'] = what, ratio(row, variant, precision), 'at least', want
      if key == 'forward_1x320x480':
        what = f'{ROWS[key].what}, {precision}: milliseconds'
        found[f'{key}_{precision}_ms'] = what, row['jax'][precision].get('ms'), 'at most', GPU_FORWARD_MS
  return found


def _pixels(key):
  n, h, w, _ = ROWS[key].shape
  return n * h * w


def table_lines(row: dict[str, Any]) -> list[str]:
  """A row as text: both in float32, then the other variants, or why they were not run."""
  eager, ours = row['pytorch']['eager'], row['jax']['float32']
  times = ''.join(f'{_ms(result):>12}' for result in (eager, ours))
  share = 'none' if row['limit_share'] is None else f'{row["limit_share"]:.0%}'
  quotient = 'none' if row['ratio'] is None else f'{row["ratio"]:.2f}'
  lines = [f'{row["what"]:<44}{times}{quotient:>8}{row["limit_ms"]:>10.2f}{share:>8}{row["runs"]:>6}']
  for framework, name in (('pytorch', 'PyTorch'), ('jax', 'JAX')):
    for variant, result in row[framework].items():
      label = f'torch.compile{variant.removeprefix("compile")}' if variant.startswith('compile') else variant
      if 'not_run' in result:
        lines.append(f'  {name} {label}: not run: {result["not_run"]}')
      elif result is not eager and result is not ours:
        limit = f', {result["limit_share"]:.0%} of its limit' if 'limit_share' in result else ''
        lines.append(f'  {name} {label}: {_ms(result)} ms{limit}')
  return lines


def _ms(result):
  return f'{result["ms"]:.2f}' if 'ms' in result else 'not run'


def write_results(path: Path, results: dict[str, Any]) -> None:
  """Writes the file in one step, so that what was there stays until the new content is whole."""
  temporary = path.with_name(path.name + '.part')
  temporary.write_text(json.dumps(results, indent=2) + '\n')
  temporary.replace(path)
