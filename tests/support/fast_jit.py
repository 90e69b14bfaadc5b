"""`jax.jit` that compiles quickly, for programs that tests run once or twice."""

import functools

import jax

FAST_TO_COMPILE = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
fast_jit = functools.partial(jax.jit, compiler_options=FAST_TO_COMPILE)
