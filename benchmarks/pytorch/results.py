"""The results file of the comparison with PyTorch: limits, targets, and rows merged from several runs."""

import json
from pathlib import Path
from typing import Any

from benchmarks.common import Limits, at_least, at_most
from benchmarks.pytorch.rows import ROWS
from sadnet_jax.files import write_text

# Rows of two runs can be in one file only if these are the same.
_SAME = (
  'cpu', 'cores', 'gpu', 'device', 'devices', 'torch_threads', 'python', 'versions', 'commit',
  'uncommitted_changes', 'seed',
)  # fmt: skip
# Targets: speedup over PyTorch on two CPU cores and on a GPU (H200), and milliseconds on that GPU.
_CPU_RATIOS = {'forward_1x320x480': 3.0, 'training_4x128x128': 4.0}
_RATIO_TO_FASTEST = 1.0
GPU_EAGER_RATIO, GPU_COMPILE_RATIO = 2.0, 1.2
GPU_FORWARD_MS = 2.0
# Target: time per pixel of the first over that of the second.
_GROWTH_ROWS = ('deform_backward_1x320x480x32', 'deform_backward_4x128x128x32')
_GROWTH = 1.5
HEADER = f'{"what":<44}{"PyTorch ms":>12}{"JAX ms":>12}{"ratio":>8}{"limit ms":>10}{"share":>8}{"runs":>6}'


def read_results(path: Path) -> dict[str, Any] | None:
  """Reads a results file; None if there is none.

  Raises:
    ValueError: The file is not a results file of this benchmark.
  """
  if not path.exists():
    return None
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path}: not JSON ({error}); move the file or give another name') from None
  known = isinstance(content, dict) and isinstance(content.get('rows'), dict)
  if not known or not set(content['rows']) <= set(ROWS) or not {*_SAME, 'limits'} <= set(content):
    raise ValueError(f'{path}: not results of this script; move the file or give another name')
  return content


def check_same_environment(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
  """Raises ValueError unless rows of both results can be in one file."""
  differing = [f'{name} {old[name]!r}, not {new[name]!r}' for name in _SAME if old[name] != new[name]]
  if differing:
    raise ValueError(
      f'{path}: its rows were measured with {"; ".join(differing)}; only rows of the same machine, versions, '
      'commit and seed can be in one file. Move the file or give another name'
    )


def merge(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
  """The new results, with those rows of the old results that were not measured again.

  The rates are the higher ones of both measurements. Limits and targets are computed again for all rows.
  """
  limits = {name: Limits(**rates) for name, rates in new['limits'].items()}
  rows, commands = dict(new['rows']), new['commands']
  if old is not None:
    for name, rates in old['limits'].items():
      limits[name] = limits[name].best(Limits(**rates))
    rows = {**old['rows'], **rows}
    commands = list(dict.fromkeys([*old['commands'], *commands]))
  ordered = {key: with_limits(rows[key], limits) for key in ROWS if key in rows}
  return {
    **new,
    'limits': {name: rates.to_json() for name, rates in limits.items()},
    'commands': commands,
    'rows': ordered,
    'targets': targets(ordered, new['device']),
  }


def with_limits(row: dict[str, Any], limits: dict[str, Limits]) -> dict[str, Any]:
  """A row with its limit in milliseconds, for each of JAX's precisions and for float32.

  Each precision has its own matrix rate, and bfloat16 half the bytes. The share is the limit over the
  measured time, or None if nothing was measured.
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
  """How many times as fast as PyTorch JAX is, or None unless both were timed."""
  theirs, ours = row['pytorch'].get(torch_variant, {}), row['jax'].get(precision, {})
  return theirs['ms'] / ours['ms'] if 'ms' in theirs and 'ms' in ours else None


def ratio_to_fastest(row: dict[str, Any]) -> float | None:
  """How many times as fast as the fastest other, in any precision, JAX is in float32; None unless both were
  timed."""
  others = [*row['pytorch'].values(), *row.get('onnx_runtime', {}).values()]
  return _ratio_to_fastest_of(others, row['jax']['float32'])


def _ratio_to_fastest_of(others, ours):
  theirs = [result['ms'] for result in others if 'ms' in result]
  return min(theirs) / ours['ms'] if theirs and 'ms' in ours else None


def targets(rows: dict[str, Any], device: str) -> dict[str, dict[str, Any]]:
  """The targets of the rows that were timed, as from `common.at_least`."""
  found = _cpu_targets(rows) if device == 'cpu' else _gpu_targets(rows)
  return {
    name: compare(what, value, target)
    for name, (compare, what, value, target) in found.items()
    if value is not None
  }


def _cpu_targets(rows):
  found = {}
  for key, target in _CPU_RATIOS.items():
    if key in rows:
      found[key] = at_least, f'{ROWS[key].what}: speedup over eager PyTorch', ratio(rows[key]), target
      what = f'{ROWS[key].what}: speedup over the fastest other, in any precision'
      found[f'{key}_fastest'] = at_least, what, ratio_to_fastest(rows[key]), _RATIO_TO_FASTEST
  if all('ms' in rows.get(key, {'jax': {'float32': {}}})['jax']['float32'] for key in _GROWTH_ROWS):
    large, small = (rows[key]['jax']['float32']['ms'] / _pixels(key) for key in _GROWTH_ROWS)
    what = f'{ROWS[_GROWTH_ROWS[0]].what}: time per pixel relative to 4x128x128x32'
    found['deform_backward_growth'] = at_most, what, large / small, _GROWTH
  return found


def _gpu_targets(rows):
  """For each precision, compared with PyTorch in the same precision."""
  found = {}
  for key, row in rows.items():
    if ROWS[key].is_operator:
      continue
    for precision in row['jax']:
      suffix = '' if precision == 'float32' else f'_{precision}'
      for name, title, variant, target in (
        ('eager', 'eager PyTorch', precision if suffix else 'eager', GPU_EAGER_RATIO),
        ('compile', 'torch.compile', f'compile{suffix}', GPU_COMPILE_RATIO),
      ):
        what = f'{ROWS[key].what}, {precision}: speedup over {title}'
        found[f'{key}_{precision}_{name}'] = at_least, what, ratio(row, variant, precision), target
      peers = [result for variant, result in row['pytorch'].items() if _precision(variant) == precision]
      what = f'{ROWS[key].what}, {precision}: speedup over the fastest other of this precision'
      fastest = _ratio_to_fastest_of(peers, row['jax'][precision])
      found[f'{key}_{precision}_fastest'] = at_least, what, fastest, _RATIO_TO_FASTEST
      if key == 'forward_1x320x480':
        what = f'{ROWS[key].what}, {precision}: milliseconds'
        found[f'{key}_{precision}_ms'] = at_most, what, row['jax'][precision].get('ms'), GPU_FORWARD_MS
  return found


def _precision(variant):
  """The precision of one of PyTorch's variants, which are named by it unless it is float32."""
  return next((name for name in ('tf32', 'bfloat16') if variant.endswith(name)), 'float32')


def _pixels(key):
  n, h, w, _ = ROWS[key].shape
  return n * h * w


def table_lines(row: dict[str, Any]) -> list[str]:
  """A row as text: both frameworks in float32, then the other variants, or why they were not run."""
  eager, ours = row['pytorch']['eager'], row['jax']['float32']
  times = ''.join(f'{_ms(result):>12}' for result in (eager, ours))
  share = 'none' if row['limit_share'] is None else f'{row["limit_share"]:.0%}'
  quotient = 'none' if row['ratio'] is None else f'{row["ratio"]:.2f}'
  lines = [f'{row["what"]:<44}{times}{quotient:>8}{row["limit_ms"]:>10.2f}{share:>8}{row["runs"]:>6}']
  for framework, name in (('pytorch', 'PyTorch'), ('onnx_runtime', 'ONNX Runtime'), ('jax', 'JAX')):
    for variant, result in row.get(framework, {}).items():
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
  """Writes the results file; an existing one stays until the new content is complete."""
  write_text(path, json.dumps(results, indent=2) + '\n')
