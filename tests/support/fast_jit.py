"""Compilation for what runs once, where compiling is all the cost."""

import functools

import jax

fast_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
)
