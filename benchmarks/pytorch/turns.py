"""Runs the contenders of a row: whether they fit in memory and agree, and how long they take, timed in
turn."""

from collections.abc import Iterable, Sequence
import gc
import statistics
import time
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.pytorch.contenders import Contender, Started
from benchmarks.pytorch.rows import Row
from sadnet_jax.files import one_line
from sadnet_jax.machine import free_host_bytes

# Norm of the difference from the reference over the norm of the reference, the largest of all arrays of a
# call. Rounding in float32 gives about 1e-6. Gradients differ by more, because bilinear sampling and leaky
# ReLU have kinks: a value that rounds to the other side of one makes the gradient jump. In bfloat16 a CPU
# gave, in the order of the rows below, 0.0019 and 0.0024 (small shapes, float32 of rounded inputs as
# reference), 0.009 and 0.008. TF32 keeps 3 more bits.
TOLERANCES = {
  'deform_forward': {'float32': 1e-5, 'tf32': 2e-3, 'bfloat16': 6e-3},
  'deform_backward': {'float32': 1e-3, 'tf32': 1e-2, 'bfloat16': 7e-3},
  'forward': {'float32': 1e-4, 'tf32': 1e-2, 'bfloat16': 5e-2},
  'training': {'float32': 1e-3, 'tf32': 2e-2, 'bfloat16': 1e-1},
}
# The others must agree with this one; without it, nothing of a row is timed.
_REFERENCE = ('pytorch', 'eager')
# In addition to the first call, which compiles and is checked.
WARM_UP_ROUNDS = 1
_GIB = 2**30


class Comparison:
  """One row.

  Attributes:
    variants: Results by framework and variant.
    problems: Descriptions of disagreements and unexpected failures.
  """

  def __init__(self, row: Row, device: torch.device):
    """``device`` is PyTorch's; it is also JAX's default device."""
    self.row = row
    self.device = device
    self.variants: dict[str, dict[str, dict]] = {'pytorch': {}, 'onnx_runtime': {}, 'jax': {}}
    self.problems: list[str] = []
    self._reference: dict[str, np.ndarray] | None = None

  def run(self, contenders: Sequence[Contender], runs: int) -> None:
    """Checks every contender, then times those that agree, one call of each in turn."""
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
        if not _computation_failed(contender, error):
          raise
        self._fail(contender, error)
    self._time(started, runs)

  def _start(self, contender: Contender, result: dict) -> Started:
    """The contender after its first call, whose result agreed with the reference."""
    prepared = contender.prepare()
    free = free_bytes(contender.framework, self.device)
    if prepared.bytes_needed > free:
      needed = prepared.bytes_needed / _GIB
      raise _NotRunError(f'needs about {needed:.1f} GiB; {free / _GIB:.1f} GiB are free')
    started = prepared.start()
    first = started.read(wait(started.call(), contender.framework, self.device))
    if self._reference is None:
      self._reference = first
      return started
    expected = contender.reference() if contender.reference else self._reference
    difference = relative_difference(first, expected)
    tolerance = TOLERANCES[self.row.kind][contender.precision]
    result |= {'relative_difference': difference, 'tolerance': tolerance}
    # NaN fails this comparison.
    if not difference <= tolerance:
      text = f'relative difference {difference:.1e} exceeds the tolerance {tolerance:.0e}'
      self.problems.append(f'{self.row.key}, {contender.framework} {contender.variant}: {text}')
      raise _NotRunError(text)
    return started

  def _time(self, started: dict[Contender, Started], runs: int) -> None:
    taken: dict[Contender, list[float]] = {contender: [] for contender in started}
    for turn in range(WARM_UP_ROUNDS + runs):
      # Backwards in every other turn, so that a contender is not always timed after the same one.
      for contender in list(taken)[:: -1 if turn % 2 else 1]:
        try:
          taken[contender].append(timed_ms(started[contender], contender.framework, self.device))
        except Exception as error:
          if not _computation_failed(contender, error):
            raise
          self._fail(contender, error)
          del taken[contender]
    for contender, all_ms in taken.items():
      counted = all_ms[WARM_UP_ROUNDS:]
      result = self.variants[contender.framework][contender.variant]
      result |= {'ms': statistics.median(counted), 'runs_ms': counted}

  def _fail(self, contender: Contender, error: Exception) -> None:
    reason = f'{type(error).__name__}: {one_line(error, 200)}'
    if is_out_of_memory(error):
      free = free_bytes(contender.framework, self.device)
      reason = f'out of memory, {free / _GIB:.1f} GiB free: {reason}'
    elif not contender.compiled_by_torch:
      self.problems.append(f'{self.row.key}, {contender.framework} {contender.variant}: {reason}')
    self.variants[contender.framework][contender.variant] = {'not_run': reason}


class _NotRunError(Exception):
  """Why a contender was not run."""


def _computation_failed(contender, error):
  """Whether it is the computation that failed, not the code that calls it.

  JAX and PyTorch raise RuntimeError, ONNX Runtime and torch.compile other exceptions too.
  """
  may_raise_others = contender.compiled_by_torch or contender.framework == 'onnx_runtime'
  return may_raise_others or isinstance(error, RuntimeError)


def groups_that_fit(contenders: Iterable[Contender], bytes_needed: int, device: torch.device) -> list[list]:
  """The contenders in one group, to be timed in turn; or PyTorch's, then JAX's, if memory is too small for
  both.

  Both frameworks keep GPU memory for their next call. PyTorch can be made to release it, JAX cannot.

  Args:
    contenders: All contenders of a row.
    bytes_needed: Memory that one framework needs; JAX needs less than PyTorch.
    device: PyTorch's device.
  """
  everyone = list(contenders)
  if device.type == 'cpu' or 2 * bytes_needed <= free_bytes('pytorch', device):
    return [everyone]
  return [[c for c in everyone if c.framework == framework] for framework in ('pytorch', 'jax')]


def release(device: torch.device) -> None:
  """Releases PyTorch's compiled programs and its unused GPU memory."""
  gc.collect()
  torch.compiler.reset()
  if device.type == 'cuda':
    torch.cuda.empty_cache()


def free_bytes(framework: str, device: torch.device) -> float:
  """Memory that a framework can still take, or infinity if unknown."""
  if device.type == 'cpu':
    free = free_host_bytes()
    return float('inf') if free is None else free
  torch.cuda.empty_cache()
  free, _ = torch.cuda.mem_get_info(device)
  if framework == 'pytorch':
    return free
  stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
  used = stats.get('bytes_in_use', 0)
  # Memory that JAX keeps but does not use is free only for JAX.
  kept = max(0, stats.get('pool_bytes', used) - used)
  return min(free + kept, stats.get('bytes_limit', float('inf')) - used)


def is_out_of_memory(error: Exception) -> bool:
  """Whether a framework has run out of memory."""
  texts = ('RESOURCE_EXHAUSTED', "can't allocate memory", 'out of memory', 'Failed to allocate memory')
  return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def relative_difference(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
  """Norm of the difference over the norm of the expected array: the largest of all arrays."""
  return max(float(np.linalg.norm(got[k] - e) / np.linalg.norm(e)) for k, e in expected.items())


def wait(result: Any, framework: str, device: torch.device) -> Any:
  """Waits for a result and returns it."""
  if framework == 'jax':
    return jax.block_until_ready(result)
  if device.type == 'cuda':
    torch.cuda.synchronize(device)
  return result


def timed_ms(started: Started, framework: str, device: torch.device) -> float:
  """Milliseconds of one call, including its results."""
  start = time.perf_counter()
  wait(started.call(), framework, device)
  return 1e3 * (time.perf_counter() - start)
