"""What a path says about weights, without opening anything; importing this needs neither JAX nor Orbax."""

import os
from pathlib import Path

SAFETENSORS_SUFFIX = '.safetensors'
TORCH_SUFFIXES = ('.pth', '.pt')
SUFFIXES = (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES)
# In the folder of a training run; holds one folder per saved step.
CHECKPOINTS = 'checkpoints'


def split_run_path(path: str | Path) -> tuple[Path, int | None]:
  """Splits ``RUN/checkpoints/STEP`` into RUN and STEP; for any other path, the step is None."""
  path = Path(os.path.expanduser(path)).absolute()
  if path.parent.name == CHECKPOINTS and path.name.isdigit():
    return path.parent.parent, int(path.name)
  return path, None


def is_run(path: str | Path) -> bool:
  """Whether a path is the folder of a training run or of one of its checkpoints."""
  return (split_run_path(path)[0] / CHECKPOINTS).is_dir()


def has_checkpoint(run: Path) -> bool:
  """Whether the folder of a run has at least one checkpoint."""
  return any((run / CHECKPOINTS).glob('[0-9]*'))
