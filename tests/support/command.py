"""The commands as a user runs them, in processes of their own."""

import os
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).resolve().parent.parent.parent
# Compiling is most of what short commands do; this halves their time. The numbers of optimised
# programs are tested where they are compared with the references.
_QUICK_TO_COMPILE = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  ' --xla_cpu_use_fusion_emitters=false'
)


def start(*arguments, cwd=ROOT, **variables):
  """Starts Python with these arguments, on the CPU with one device, unless ``variables`` says otherwise."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': _QUICK_TO_COMPILE, **variables}
  if 'SADNET_DATA' not in variables:
    environment.pop('SADNET_DATA', None)
  command = [sys.executable, *map(str, arguments)]
  return subprocess.Popen(
    command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def finish(process, *, succeeds=True, seconds=300):
  """Waits for a process; (stdout, stderr) where it ended as it should."""
  try:
    output, errors = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  assert (process.returncode == 0) == succeeds, output + errors
  return output, errors
