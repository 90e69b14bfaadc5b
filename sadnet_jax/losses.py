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


def charbonnier_loss(denoised: jax.Array, clean: jax.Array) -> jax.Array:
  """Mean of sqrt(difference**2 + eps**2), eps = 1e-3: smooth near zero, L1 beyond (Lai et al., 2017)."""
  return jnp.mean(jnp.sqrt(jnp.square(denoised - clean) + 1e-6))


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'charbonnier': charbonnier_loss,
  'l1': l1_loss,
  'l2': l2_loss,
}
