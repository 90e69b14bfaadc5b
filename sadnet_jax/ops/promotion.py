"""The type and rank promotion that the operators are written for."""

from collections.abc import Iterator
import contextlib

import jax


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
  """Decorates a function that broadcasts and mixes dtypes as JAX does by default.

  Users may set ``jax_numpy_rank_promotion = 'raise'`` or ``jax_numpy_dtype_promotion = 'strict'`` for their
  own code.
  """
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    yield
