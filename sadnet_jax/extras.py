"""Names the extra to install where a command finds one of its packages missing."""

from collections.abc import Iterator
import contextlib


@contextlib.contextmanager
def required(extra: str) -> Iterator[None]:
  """A context for imports: exits with a one-line message if one of them fails for a missing package.

  Args:
    extra: What to install, such as 'train' or 'evaluate,plot'.

  Raises:
    SystemExit: A package is missing.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    # A module of this project that is missing is a mistake of the code.
    if (error.name or '').partition('.')[0] in ('sadnet_jax', 'tools', 'configs', 'benchmarks', ''):
      raise
    raise SystemExit(
      f"{error.name} is missing; from the clone, install what this needs: pip install '.[{extra}]'"
    ) from error
