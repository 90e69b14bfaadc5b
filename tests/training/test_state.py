"""Schedules at the steps that matter, and both optimisers."""

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from sadnet_jax.nn.sadnet import SADNet, param_shapes
from sadnet_jax.training.state import kernels_as_matrices, make_optimizer, make_schedule, run_key
from tests.support.fast_jit import fast_jit
from tests.support.small_networks import SMALL


def _schedule(**changes):
  fields = {
    'name': 'step_halving',
    'learning_rate': 1e-4,
    'halve_every': 300_000,
    'warmup_steps': 0,
    'total_steps': 900_000,
  }
  return make_schedule(**{**fields, **changes})


def _optimizer(schedule, **changes):
  fields = {'name': 'adam', 'b1': 0.9, 'b2': 0.999, 'eps': 1e-8, 'bias_rate': 0.4, 'offset_rate': 1.0}
  return make_optimizer(schedule, **{**fields, 'clip_norm': 0.0, **changes})


@pytest.mark.parametrize(
  ('step', 'rate'), [(0, 1e-4), (299_999, 1e-4), (300_000, 5e-5), (599_999, 5e-5), (600_000, 2.5e-5)]
)
def test_step_halving_at_its_corners(step, rate):
  assert float(_schedule()(step)) == pytest.approx(rate, rel=1e-6)


def test_the_random_keys_of_a_run_do_not_depend_on_options_of_jax():
  config = default.get_config()
  want = jax.random.normal(run_key(config, 'noise'))
  with jax.default_prng_impl('rbg'):
    assert jax.random.normal(run_key(config, 'noise')) == want


def test_warmup_rises_linearly_and_the_schedule_starts_after_it():
  schedule = _schedule(warmup_steps=10, halve_every=100)
  assert [float(schedule(s)) for s in (0, 5, 10, 109, 110)] == pytest.approx(
    [1e-4 / 11, 6e-4 / 11, 1e-4, 1e-4, 5e-5]
  )


def test_cosine_ends_at_zero():
  schedule = _schedule(name='cosine', warmup_steps=100, total_steps=1100)
  assert [float(schedule(s)) for s in (100, 600, 1100)] == pytest.approx([1e-4, 5e-5, 0], abs=1e-10)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'linear'}, "unknown schedule 'linear'; choose 'step_halving' or 'cosine'"),
    ({'learning_rate': -1.0}, 'learning_rate is -1.0, but must be at least 0'),
    ({'halve_every': 0}, 'halve_every is 0, but must be at least 1'),
    (
      {'warmup_steps': 900_000},
      'warmup_steps is 900000, but must be at least 0 and less than the 900000 steps',
    ),
  ],
)
def test_a_schedule_that_cannot_work_is_rejected(changes, message):
  with pytest.raises(ValueError, match=message):
    _schedule(**changes)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'b1': 1.0}, 'b1 is 1.0, but must be at least 0 and less than 1'),
    ({'eps': -1e-8}, 'eps is -1e-08, but must be at least 0'),
    ({'name': 'sgd'}, "unknown optimizer 'sgd'; choose one of 'adam', 'muon'"),
    ({'offset_rate': -0.1}, 'offset_rate is -0.1, but must be at least 0'),
    ({'clip_norm': -1.0}, 'clip_norm is -1.0, but must be positive, or 0'),
  ],
)
def test_an_optimizer_that_cannot_work_is_rejected(changes, message):
  with pytest.raises(ValueError, match=message):
    _optimizer(1e-3, **changes)


def test_first_adam_update_is_the_learning_rate():
  params = {'w': jnp.array([1.0, -2.0])}
  optimizer = _optimizer(lambda step: 1e-3)
  updates, _ = optimizer.update({'w': jnp.array([0.3, -4.0])}, optimizer.init(params), params)
  # Adam's first step is rate * g / (|g| + eps).
  np.testing.assert_allclose(updates['w'], [-1e-3, 1e-3], rtol=1e-5)


def test_clipping_bounds_the_gradient_adam_sees():
  params = {'w': jnp.zeros(2)}
  gradient = {'w': jnp.array([3.0, 4.0])}
  optimizer = _optimizer(lambda step: 1e-3, clip_norm=0.5)
  _, state = optimizer.update(gradient, optimizer.init(params), params)
  mean = optax.tree_utils.tree_get(state, 'mu')['w']
  np.testing.assert_allclose(mean, 0.1 * np.array([0.3, 0.4]), rtol=1e-5)


@pytest.mark.parametrize('name', ['adam', 'muon'])
def test_offset_rate_slows_what_predicts_offsets_and_nothing_else(name):
  rng = np.random.default_rng(0)
  gradient = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), param_shapes(SADNet(**SMALL)))

  def update(rate):
    optimizer = _optimizer(lambda step: 1e-2, name=name, offset_rate=rate)
    return fast_jit(lambda x: optimizer.update(x, optimizer.init(x), x)[0])(gradient)

  expected, slowed = (flax.traverse_util.flatten_dict(update(rate)) for rate in (1.0, 0.25))
  predicting = {path for path in expected if path[0].startswith('offset') or 'conv_offset_mask' in path}
  # Two or three convolutions of each of the four offset blocks, and one of each RSAB, with their biases.
  assert len(predicting) == 2 * (11 + 4)
  for path, change in expected.items():
    np.testing.assert_allclose(slowed[path], change * (0.25 if path in predicting else 1), rtol=1e-6)


def test_muon_orthogonalises_kernels_and_leaves_biases_to_adam():
  params = {'kernel': jnp.ones((3, 3, 4, 8)), 'bias': jnp.ones(8)}
  gradient = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
  optimizer = _optimizer(lambda step: 1e-2, name='muon')
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  # An orthogonalised update has all its singular values near each other; the gradient's are not.
  spread = np.linalg.svd(np.asarray(updates['kernel']).reshape(36, 8), compute_uv=False)
  assert spread.min() / spread.max() > 0.6
  raw = np.linalg.svd(np.asarray(gradient['kernel']).reshape(36, 8), compute_uv=False)
  assert raw.min() / raw.max() < 0.6
  # The bias: Adam with Nesterov's momentum, at 0.4 of the schedule's rate.
  adam = optax.adam(0.4e-2, nesterov=True)
  expected, _ = adam.update(gradient['bias'], adam.init(params['bias']), params['bias'])
  np.testing.assert_allclose(updates['bias'], expected, rtol=1e-5)
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@pytest.mark.parametrize('size', [1e-12, 1e-21, 1e-33])
def test_muon_orthogonalises_updates_of_any_size(size):
  # As small as the rate makes them late in a schedule; the sum of their squares may be zero in float32.
  gradient = {'kernel': jax.random.normal(jax.random.key(2), (3, 3, 4, 8))}

  def update(rate):
    optimizer = _optimizer(lambda step: rate, name='muon')
    return optimizer.update(gradient, optimizer.init(gradient), gradient)[0]['kernel']

  np.testing.assert_allclose(update(size) / size, update(1.0), atol=1e-3)


def test_eps_reaches_both_parts_of_muon():
  gradient = {'kernel': jnp.full((3, 3, 4, 8), 1e-3), 'bias': jnp.full(8, 1e-3)}

  def update(eps):
    optimizer = _optimizer(lambda step: 1e-2, name='muon', eps=eps)
    return optimizer.update(gradient, optimizer.init(gradient), gradient)[0]

  usual, large = update(1e-8), update(1.0)
  # Beside such an eps gradients of 1e-3 are small.
  assert all(np.abs(large[name]).max() < 0.1 * np.abs(usual[name]).max() for name in gradient)


def test_muon_takes_a_transposed_kernel_as_the_matrix_it_multiplies_by():
  kernel = jax.random.normal(jax.random.key(1), (2, 2, 12, 5))
  params = {'up1': {'kernel': jnp.ones_like(kernel)}, 'res1': {'conv': {'kernel': jnp.ones_like(kernel)}}}
  gradient = {'up1': {'kernel': kernel}, 'res1': {'conv': {'kernel': kernel}}}
  optimizer = _optimizer(lambda step: 1e-2, name='muon')
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  # Orthogonalised: the singular values of the layer's own matrix are near each other.
  up = np.asarray(updates['up1']['kernel']).transpose(2, 0, 1, 3).reshape(12, 20)
  spread = np.linalg.svd(up, compute_uv=False)
  assert spread.min() / spread.max() > 0.6
  res = np.asarray(updates['res1']['conv']['kernel']).reshape(48, 5)
  spread = np.linalg.svd(res, compute_uv=False)
  assert spread.min() / spread.max() > 0.6


def test_muon_multiplies_in_full_float32():
  optimizer = _optimizer(lambda step: 1e-2, name='muon')
  params = {'res1': {'conv': {'kernel': jnp.ones((3, 3, 4, 8))}}}
  traced = jax.make_jaxpr(optimizer.update)(params, optimizer.init(params), params)
  highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
  products = [e for e in _equations(traced.jaxpr) if e.primitive.name == 'dot_general']
  assert products
  assert all(product.params['precision'] == highest for product in products)


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    # The loop is that of optax's own iterations, which are none.
    if equation.primitive.name in ('while', 'scan'):
      continue
    yield equation
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, 'eqns') or hasattr(leaf, 'jaxpr')
    ):
      if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr'):
        yield from _equations(getattr(inner, 'jaxpr', inner))


def test_muon_is_optax_muon_but_for_rounding_and_has_its_state():
  params = {
    'up1': {'kernel': jnp.ones((2, 2, 12, 6))},
    'res1': {'conv': {'kernel': jnp.ones((3, 3, 4, 8)), 'bias': jnp.ones(8)}},
    'res2': {'conv': {'kernel': jnp.ones((3, 3, 4, 8))}},
    'first': {'kernel': jnp.ones((1, 1, 3, 20))},
  }
  schedule = optax.linear_schedule(0.0, 1e-2, 3)
  ours = _optimizer(schedule, name='muon')
  theirs = optax.contrib.muon(
    schedule,
    adam_b1=0.9,
    adam_b2=0.999,
    adam_learning_rate=lambda step: 0.4 * schedule(step),
    consistent_rms=0.2,
    muon_weight_dimension_numbers=kernels_as_matrices,
  )
  state, expected_state = ours.init(params), theirs.init(params)
  for step in range(3):
    keys = iter(jax.random.split(jax.random.key(step), 8))
    gradients = jax.tree.map(lambda p, keys=keys: jax.random.normal(next(keys), p.shape), params)
    updates, state = ours.update(gradients, state, params)
    expected, expected_state = theirs.update(gradients, expected_state, params)
    # The first rate is zero.
    chex.assert_trees_all_close(updates, expected, atol=2e-4 * float(schedule(step)), rtol=1e-3)
  chex.assert_trees_all_equal(state, expected_state)
