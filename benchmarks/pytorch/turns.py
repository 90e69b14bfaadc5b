"""Runs the contenders of a row: do they fit, do they agree, and how long do they take, in turn."""

from collections.abc import Iterable, Sequence
import gc
import statistics
import time
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.pytorch.contenders import Contender
from benchmarks.pytorch.rows import Row
from benchmarks.pytorch.variants import Started
from sadnet_jax.machine import free_host_bytes

# Norm of the difference from the reference, over the reference's norm: the largest of what a call returns.
# In float32 rounding gives some 1e-6, and gradients differ by more: bilinear samples and leaky ReLU have
# kinks, and a value that rounds to the other side of one changes the gradient by a jump. In bfloat16 a CPU
# gave 0.0019 and 0.0024 (the operator on small shapes, beside float32 of rounded inputs), 0.009 and 0.008;
# TF32 keeps 3 bits more.
TOLERANCES = {
  'deform_forward': {'float32': 1e-5, 'tf32': 2e-3, 'bfloat16': 6e-3},
  'deform_backward': {'float32': 1e-3, 'tf32': 1e-2, 'bfloat16': 7e-3},
  'forward': {'float32': 1e-4, 'tf32': 1e-2, 'bfloat16': 5e-2},
  'training': {'float32': 1e-3, 'tf32': 2e-2, 'bfloat16': 1e-1},
}
# What the others must agree with; without it nothing of a row is timed.
_REFERENCE = ('pytorch', 'eager')
# Beside the first call, which compiles and is checked.
WARM_UP_ROUNDS = 1
_GIB = 2**30


class Comparison:
  """One row: ``variants`` has the results by framework and variant, ``problems`` what should not be."""

  def __init__(self, row: Row, device: torch.device):
    """``device`` is PyTorch's; JAX has the same as its default."""
    self.row = row
    self.device = device
    self.variants: dict[str, dict[str, dict]] = {'pytorch': {}, 'jax': {}}
    self.problems: list[str] = []
    self._reference: dict[str, np.ndarray] | None = None

  def run(self, contenders: Sequence[Contender], runs: int) -> None:
    """Checks every contender and then times, call by call in turn, those that can be."""
    started = {}
    for contender in contenders:
      result = self.variants[contender.framework][contender.variant] = {}
      if self._reference is None and (contender.framework, contender.variant) != _REFERENCE:
        result['not_run'] = 'no eager PyTorch result to agree with'
        continue
      try:
        started[contender] = self._start(contender, result)
      except _NotRunError as error:
        result['not_run'] = str(error)
      except Exception as error:
        # In torch.compile anything can fail; else RuntimeError is what both raise when a computation does.
        if not (contender.compiled_by_torch or isinstance(error, RuntimeError)):
          raise
        self._fail(contender, error)
    self._time(started, runs)

  def _start(self, contender: Contender, result: dict) -> Started:
    """The contender after its first call, whose result was read and agreed with the reference."""
    prepared = contender.prepare()
    free = free_bytes(contender.framework, self.device)
    if prepared.bytes_needed > free:
      raise _NotRunError(f'needs about {prepared.bytes_needed / _GIB:.1f} GiB, got {free / _GIB:.1f} GiB')
    started = prepared.start()
    first = started.read(wait(started.call(), contender.framework, self.device))
    if self._reference is None:
      self._reference = first
      return started
    wanted = contender.reference() if contender.reference else self._reference
    difference = relative_difference(first, wanted)
    tolerance = TOLERANCES[self.row.kind][contender.precision]
    result |= {'relative_difference': difference, 'tolerance': tolerance}
    # Written so that NaN fails.
    if not difference <= tolerance:
      text = f'relative difference {difference:.1e}, want at most {tolerance:.0e}'
      self.problems.append(f'{self.row.key}, {contender.framework} {contender.variant}: {text}')
      raise _NotRunError(text)
    return started

  def _time(self, started: dict[Contender, Started], runs: int) -> None:
    taken: dict[Contender, list[float]] = {contender: [] for contender in started}
    for _ in range(WARM_UP_ROUNDS + runs):
      for contender in list(taken):
        try:
          taken[contender].append(timed_ms(started[contender], contender.framework, self.device))
        except RuntimeError as error:
          self._fail(contender, error)
          del taken[contender]
    for contender, all_ms in taken.items():
      counted = all_ms[WARM_UP_ROUNDS:]
      result = self.variants[contender.framework][contender.variant]
      result |= {'ms': statistics.median(counted), 'runs_ms': counted}

  def _fail(self, contender: Contender, error: Exception) -> None:
    reason = f'{type(error).__name__}: {(str(error).strip() or "no message").splitlines()[0]}'
    if is_out_of_memory(error):
      free = free_bytes(contender.framework, self.device)
      reason = f'out of memory, {free / _GIB:.1f} GiB free: {reason}'
    elif not contender.compiled_by_torch:
      self.problems.append(f'{self.row.key}, {contender.framework} {contender.variant}: {reason}')
    self.variants[contender.framework][contender.variant] = {'not_run': reason}


class _NotRunError(Exception):
  """The text says why."""


def groups_that_fit(contenders: Iterable[Contender], bytes_needed: int, device: torch.device) -> list[list]:
  """All contenders in one group, to take turns; or PyTorch's, then JAX's, where both do not fit together.

  Both frameworks keep a GPU's memory for their next call. PyTorch can be made to give it back, JAX not.

  Args:
    contenders: All of a row.
    bytes_needed: What one framework needs; JAX needs less than PyTorch.
    device: PyTorch's.
  """
  everyone = list(contenders)
  if device.type == 'cpu' or 2 * bytes_needed <= free_bytes('pytorch', device):
    return [everyone]
  return [[c for c in everyone if c.framework == framework] for framework in ('pytorch', 'jax')]


def release(device: torch.device) -> None:
  """Lets go what PyTorch compiled and keeps of a GPU's memory."""
  gc.collect()
  torch.compiler.reset()
  if device.type == 'cuda':
    torch.cuda.empty_cache()


def free_bytes(framework: str, device: torch.device) -> float:
  """What a framework may still take; infinite where nothing says."""
  if device.type == 'cpu':
    free = free_host_bytes()
    return float('inf') if free is None else free
  torch.cuda.empty_cache()
  free, _ = torch.cuda.mem_get_info(device)
  if framework == 'pytorch':
    return free
  stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
  used = stats.get('bytes_in_use', 0)
  # What JAX keeps and does not use is not free for others.
  kept = max(0, stats.get('pool_bytes', used) - used)
  return min(free + kept, stats.get('bytes_limit', float('inf')) - used)


def is_out_of_memory(error: Exception) -> bool:
  """Whether a framework says that there is no memory left."""
  texts = ('RESOURCE_EXHAUSTED', "can't allocate memory", 'out of memory')
  return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def relative_difference(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
  """The largest over the arrays: norm of the difference over norm of what is wanted."""
  return max(float(np.linalg.norm(got[k] - w) / np.linalg.norm(w)) for k, w in wanted.items())


def wait(result: Any, framework: str, device: torch.device) -> Any:
  """The result, when it is there."""
  if framework == 'jax':
    return jax.block_until_ready(result)
  if device.type == 'cuda':
    torch.cuda.synchronize(device)
  return result


def timed_ms(started: Started, framework: str, device: torch.device) -> float:
  """Milliseconds until the results of one call are there."""
  start = time.perf_counter()
  wait(started.call(), framework, device)
  return 1e3 * (time.perf_counter() - start)
