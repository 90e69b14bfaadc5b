"""Training losses: mean over everything of a function of (denoised - clean)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def l1_loss(denoised: jax.Array, clean: jax.Array) -> jax.Array:
  """Mean absolute error; the paper's loss for real noise. Any equal shapes -> scalar."""
  return jnp.mean(jnp.abs(denoised - clean))


def l2_loss(denoised: jax.Array, clean: jax.Array) -> jax.Array:
  """Mean squared error; the paper's loss for synthetic noise. Any equal shapes -> scalar."""
  return jnp.mean(jnp.square(denoised - clean))


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {'l1': l1_loss, 'l2': l2_loss}
