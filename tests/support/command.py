"""The commands as a user runs them, in processes of their own."""

import functools
import os
from pathlib import Path
import subprocess
import sys

import jax

ROOT = Path(__file__).resolve().parent.parent.parent


def start(*arguments, cwd=ROOT, **variables):
  """Starts Python with these arguments, on the CPU with one device, unless ``variables`` says otherwise."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': _quick_to_compile(), **variables}
  if 'SADNET_DATA' not in variables:
    environment.pop('SADNET_DATA', None)
  command = [sys.executable, *map(str, arguments)]
  return subprocess.Popen(
    command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def finish(process, *, succeeds=True, seconds=300):
  """Waits for a process and returns (stdout, stderr); fails if the process ended otherwise than expected."""
  try:
    output, errors = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  assert (process.returncode == 0) == succeeds, output + errors
  return output, errors


@functools.cache
def _quick_to_compile():
  """XLA_FLAGS that make compiling, which is most of what short commands do, three times faster.

  The numbers of optimised programs are tested where they are compared with the references.
  """
  flags = ['--xla_backend_optimization_level=0', '--xla_llvm_disable_expensive_passes=true']
  # Saves a quarter of a short command's processor time. XLA aborts on flags it does not know, and newer
  # ones do not know this one.
  if _xla_knows('xla_cpu_use_fusion_emitters'):
    flags.append('--xla_cpu_use_fusion_emitters=false')
  return ' '.join(flags)


def _xla_knows(option):
  try:
    jax.jit(lambda x: x, compiler_options={option: False}).lower(0.0).compile()
  except Exception:
    return False
  return True
