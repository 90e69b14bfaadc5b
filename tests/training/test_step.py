"""The training step: metrics, noise, average, skipped steps, and independence of how the batch is split."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import default
from sadnet_jax import OffsetBlock, ResBlock, RSABlock
from sadnet_jax.data.noise import add_gaussian_noise
from sadnet_jax.nn.layers import Conv
from sadnet_jax.training.loop import step_from_config
from sadnet_jax.training.state import model_from_config, run_key, state_from_params
from sadnet_jax.training.step import charbonnier_loss, train_step
from tests.support.fast_jit import fast_jit
from tests.support.small_networks import SMALL, apply, random_like

BLIND = (10.0, 60.0)
EMA_DECAY = 0.2
B1 = 0.9


def _config(**changes) -> ml_collections.ConfigDict:
  config = default.get_config()
  config.model.update(**SMALL, dilations=(1, 2))
  config.data.patch_px = 16
  config.batch_size = 4
  config.optimizer.learning_rate = 5e-3
  config.optimizer.b1 = B1
  # Adam's usual one would turn rounding in gradients near zero into whole steps.
  config.optimizer.eps = 1e-3
  config.ema_decay = EMA_DECAY
  config.update_from_flattened_dict(changes)
  return config


KEY = run_key(_config(), 'noise')


class OneScale(nn.Module):
  """The finest scale of a SADNet, deformable convolution included: it compiles faster than all four."""

  channels: int = 3
  dtype: jnp.dtype = jnp.dtype('float32')

  @nn.compact
  def __call__(self, noisy):
    x = ResBlock(8, project=True, dtype=self.dtype, name='res1')(noisy)
    x = RSABlock(8, dtype=self.dtype, name='dres1')(x, OffsetBlock(8, dtype=self.dtype, name='offset1')(x))
    return noisy + Conv(3, 3, dtype=self.dtype, name='out')(x).astype(noisy.dtype)


def _first_state(config, model):
  """A state with parameters that are zero nowhere."""
  noisy = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), noisy)['params']
  state = state_from_params(config, model, random_like(shapes))
  # As a step returns it, so that the second step needs no compilation of its own.
  return jax.tree.map(jnp.asarray, state.replace(step=jnp.int32(0)))


@functools.lru_cache
def _start(dtype='float32'):
  """The same state for all tests: each has an optimiser, and so programs, of its own."""
  return _first_state(_config(), OneScale(dtype=jnp.dtype(dtype)))


def _images(seed, count=4):
  return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def _pairs(seed):
  return {'clean': _images(seed), 'noisy': _images(seed + 1000)}


def _charbonnier_and_nan_of_black(denoised, clean):
  """Charbonnier, but not a number where an image of the batch is black; the gradient is then finite: zero."""
  black = jnp.any(jnp.all(clean == 0, axis=(1, 2, 3)))
  return jnp.where(black, jnp.nan, charbonnier_loss(denoised, clean))


def _root_mean_square(denoised, clean):
  """Its gradient is not finite where the images are equal; the loss is: zero."""
  return jnp.sqrt(jnp.mean(jnp.square(denoised - clean)))


@functools.lru_cache
def _step(loss=_charbonnier_and_nan_of_black, accumulate=1, sigmas=(50.0, 50.0)):
  add_noise = functools.partial(add_gaussian_noise, sigma_255_range=sigmas, clip=1)
  options = {'add_noise': add_noise, 'ema_decay': EMA_DECAY}
  return fast_jit(functools.partial(train_step, noise_key=KEY, loss=loss, accumulate=accumulate, **options))


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _distance(a, b):
  """Norm of the difference of all weights, in float64."""
  squares = jax.tree.map(
    lambda x, y: np.sum((np.asarray(x, np.float64) - np.asarray(y, np.float64)) ** 2), a, b
  )
  return np.sqrt(sum(jax.tree.leaves(squares)))


# --- Metrics.


@pytest.fixture(scope='module')
def first_step():
  """State before, state after and metrics of one step of the whole network."""
  config = _config()
  state = _first_state(config, model_from_config(config.model))
  return (state, *_step()(state, {'clean': _images(0)}))


def test_metrics_are_those_of_the_docstring_and_finite(first_step):
  _, new, metrics = first_step
  scales = [f'scale{scale}' for scale in (1, 2, 3, 4)]
  names = {'loss', 'gradient_norm', 'finite', 'skipped_steps'}
  assert set(metrics) == names | {f'{kind}/{s}' for kind in ('gradient_norm', 'offset') for s in scales}
  assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
  assert all(metrics[f'offset/{s}'] > 0 for s in scales)
  assert metrics['finite'].dtype == bool
  assert bool(metrics['finite'])
  assert int(metrics['skipped_steps']) == int(new.skipped) == 0
  assert int(new.step) == 1


def test_gradient_norms_are_those_of_the_gradient_that_adam_got(first_step):
  _, new, metrics = first_step
  # After one step Adam's mean is (1 - b1) times the gradient.
  mean = optax.tree_utils.tree_get(new.opt_state, 'mu')

  def norm(modules):
    leaves = jax.tree.leaves([mean[m] for m in modules])
    return np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in leaves)) / (1 - B1)

  scales = {
    1: {'res1', 'up1', 'dconv1_1', 'offset1', 'dres1', 'out'},
    2: {'down1', 'res2', 'up2', 'dconv2_1', 'offset2', 'dres2'},
    3: {'down2', 'res3', 'up3', 'dconv3_1', 'offset3', 'dres3'},
    4: {'down3', 'res4', 'context', 'offset4', 'dres4'},
  }
  assert set.union(*scales.values()) == set(mean)
  for scale, modules in scales.items():
    assert float(metrics[f'gradient_norm/scale{scale}']) == pytest.approx(norm(modules), rel=1e-4)
  assert float(metrics['gradient_norm']) == pytest.approx(norm(mean), rel=1e-4)
  squares = [float(metrics[f'gradient_norm/scale{scale}']) ** 2 for scale in scales]
  assert sum(squares) == pytest.approx(float(metrics['gradient_norm']) ** 2, rel=1e-5)
  assert min(squares) > 0


def test_a_step_repeated_is_the_same_bit_for_bit(first_step):
  state, *expected = first_step
  _assert_equal(list(_step()(state, {'clean': _images(0)})), expected)


def test_a_network_without_rsab_has_no_offsets_to_report():
  config = _config(**{'model.use_rsab': False})
  state = _first_state(config, model_from_config(config.model))
  _, metrics = jax.eval_shape(_step().__wrapped__, state, {'clean': _images(0)})
  assert 'loss' in metrics
  assert not any(name.startswith('offset') for name in metrics)


def test_networks_of_other_modules_have_no_norms_by_scale():
  class Other(nn.Module):
    @nn.compact
    def __call__(self, noisy):
      return noisy + Conv(3, 3)(ResBlock(8, project=True, name='head')(noisy))

  state = _first_state(_config(), Other())
  _, metrics = jax.eval_shape(_step().__wrapped__, state, {'clean': _images(0)})
  assert set(metrics) == {'loss', 'gradient_norm', 'finite', 'skipped_steps'}


# --- Noise.


def test_clean_images_get_the_noise_of_the_step_and_of_their_position():
  state, batch = _start(), {'clean': _images(3)}
  clean = batch['clean'].astype(np.float32) / 255
  for step in (0, 5):
    at_step = state.replace(step=jnp.int32(step))
    _, metrics = _step(sigmas=BLIND)(at_step, batch)
    step_key = jax.random.fold_in(KEY, step)
    keys = jnp.stack([jax.random.fold_in(step_key, place) for place in range(4)])
    noisy = add_gaussian_noise(keys, clean, sigma_255_range=BLIND, clip=1)
    denoised = apply(OneScale(), {'params': state.params}, noisy)
    expected = np.mean(np.sqrt((denoised - clean) ** 2 + 1e-6))
    assert float(metrics['loss']) == pytest.approx(float(expected), rel=1e-4)


def test_pairs_are_taken_as_they_are():
  state, batch = _start(), _pairs(4)
  noisy, clean = (batch[name].astype(np.float32) / 255 for name in ('noisy', 'clean'))
  denoised = apply(OneScale(), {'params': state.params}, noisy)
  step = _step(_root_mean_square)
  first, metrics = step(state, batch)
  assert float(metrics['loss']) == pytest.approx(np.sqrt(np.mean((denoised - clean) ** 2)), rel=1e-5)
  # Nothing of a step with pairs is random.
  later, _ = step(state.replace(step=jnp.int32(9)), batch)
  _assert_equal(first.params, later.params)


def test_images_may_be_floating_point_in_the_unit_range():
  state, batch = _start(), _pairs(4)
  want, metrics = _step(_root_mean_square)(state, batch)
  as_floats = {name: image.astype(np.float32) / 255 for name, image in batch.items()}
  got, same = _step(_root_mean_square)(state, as_floats)
  assert float(same['loss']) == pytest.approx(float(metrics['loss']), rel=1e-5)
  assert _distance(got.params, want.params) < 1e-5
  for name in batch:
    with pytest.raises(ValueError, match=rf"batch\['{name}'\] must be uint8 or floating point .* not uint16"):
      _step(_root_mean_square)(state, batch | {name: batch[name].astype(np.uint16)})


# --- The average.


def test_the_average_is_its_recurrence_over_the_parameters_and_is_what_is_evaluated():
  state = _start()
  _assert_equal(state.ema, state.params)
  average = jax.tree.map(lambda a: np.asarray(a, np.float64), state.params)
  decays = []
  for step in range(5):
    state, _ = _step(sigmas=BLIND)(state, {'clean': _images(step)})
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    average = jax.tree.map(
      lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p, np.float64), average, state.params
    )
    # 1e-7 is the rounding of weights of about one.
    jax.tree.map(
      lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7), state.ema, average
    )
    decays.append(decay)
  # Both the lower decay of the first steps and the one asked for took part.
  assert decays == pytest.approx([1 / 10, 2 / 11, 0.2, 0.2, 0.2])
  assert _distance(state.ema, state.params) > 1e-3
  assert state.best_params is state.ema


def test_without_decay_there_is_no_average_and_the_parameters_are_evaluated():
  state = _first_state(_config(ema_decay=0.0), OneScale())
  assert state.ema is None
  assert state.best_params is state.params
  without = functools.partial(_step().__wrapped__, ema_decay=0.0)
  new, _ = jax.eval_shape(without, state, {'clean': _images(0)})
  assert new.ema is None
  with pytest.raises(ValueError, match=r'ema_decay is 0\.2, but the state has no average'):
    jax.eval_shape(_step().__wrapped__, state, {'clean': _images(0)})


# --- Skipped steps.


def _assert_skipped(before, after, metrics):
  _assert_equal((after.params, after.opt_state, after.ema), (before.params, before.opt_state, before.ema))
  assert int(after.step) == int(before.step) + 1
  assert int(after.skipped) == int(metrics['skipped_steps']) == int(before.skipped) + 1
  assert not bool(metrics['finite'])


def test_a_step_whose_loss_is_not_finite_changes_nothing_and_training_continues():
  step = _step(sigmas=BLIND)
  # After a step Adam would move on even with the gradient of zero that this loss has.
  before, metrics = step(_start(), {'clean': _images(0)})
  assert bool(metrics['finite'])
  bad = _images(1)
  bad[2] = 0
  after, metrics = step(before, {'clean': bad})
  assert np.isnan(metrics['loss'])
  assert float(metrics['gradient_norm']) == 0
  _assert_skipped(before, after, metrics)
  again, metrics = step(after, {'clean': bad})
  _assert_skipped(after, again, metrics)
  new, metrics = step(again, {'clean': _images(2)})
  assert bool(metrics['finite'])
  assert (int(new.step), int(new.skipped), int(metrics['skipped_steps'])) == (4, 2, 2)
  assert _distance(new.params, before.params) > 1e-3
  assert _distance(new.ema, before.ema) > 1e-3


def test_a_step_whose_gradient_alone_is_not_finite_changes_nothing():
  before = _start()
  # The output is the input: with equal pairs, the loss is at its minimum of zero.
  before = before.replace(params={**before.params, 'out': jax.tree.map(jnp.zeros_like, before.params['out'])})
  batch = {'clean': _images(0), 'noisy': _images(0)}
  after, metrics = _step(_root_mean_square)(before, batch)
  assert float(metrics['loss']) == 0
  assert not np.isfinite(metrics['gradient_norm'])
  _assert_skipped(before, after, metrics)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('module', ['res1', 'offset1', 'out'])
def test_parameters_that_are_not_finite_stay_as_they_are(module, value):
  before = _start()
  poisoned = jax.tree.map(lambda a: a.at[..., 0].set(value), before.params[module])
  before = before.replace(params={**before.params, module: poisoned})
  after, metrics = _step(sigmas=BLIND)(before, {'clean': _images(0)})
  _assert_skipped(before, after, metrics)


# --- Parts of a batch, and devices.


def test_parts_of_a_batch_give_the_step_of_the_whole():
  whole, divided = _step(sigmas=BLIND), _step(sigmas=BLIND, accumulate=2)
  start = one = other = _start()
  for seed in range(3):
    batch = {'clean': _images(seed)}
    (one, one_metrics), (other, other_metrics) = whole(one, batch), divided(other, batch)
    assert set(one_metrics) == set(other_metrics)
    for name in one_metrics:
      assert float(other_metrics[name]) == pytest.approx(float(one_metrics[name]), rel=1e-3), name
  distance = _distance(one.params, start.params)
  assert distance > 1e-2
  # Rounding, and single weights where it moves a value across a kink of bilinear sampling or leaky ReLU.
  assert _distance(other.params, one.params) < 1e-3 * distance
  assert _distance(other.ema, one.ema) < 1e-3 * distance


def test_one_part_that_is_not_finite_skips_the_whole_step():
  step = _step(sigmas=BLIND, accumulate=2)
  before, metrics = step(_start(), {'clean': _images(0)})
  assert bool(metrics['finite'])
  bad = _images(1)
  bad[3] = 0
  after, metrics = step(before, {'clean': bad})
  _assert_skipped(before, after, metrics)


def test_two_devices_with_two_parts_each_by_the_config_give_the_weights_of_one_with_one():
  config = _config(**{'accumulate': 2, 'noise.sigma_255_range': BLIND, 'loss': 'charbonnier'})
  alone = _step(sigmas=BLIND)
  together = step_from_config(config, jax.devices()[:2])
  worked_on = set()

  def apply_and_record(variables, noisy, **options):
    worked_on.add(noisy.shape[0])
    return OneScale().apply(variables, noisy, **options)

  # The parallel step donates its state.
  start, one, other = (_first_state(config, OneScale()) for _ in range(3))
  other = other.replace(apply_fn=apply_and_record)
  for seed in range(3):
    batch = {'clean': _images(seed)}
    one, one_metrics = alone(one, batch)
    other, other_metrics = together(other, batch)
    assert float(other_metrics['loss']) == pytest.approx(float(one_metrics['loss']), rel=1e-5)
  # A quarter of the batch of four at a time.
  assert worked_on == {1}
  distance = _distance(one.params, start.params)
  assert distance > 1e-2
  assert _distance(one.params, other.params) < 1e-3 * distance
  assert _distance(one.ema, other.ema) < 1e-3 * distance


# --- bfloat16.


def test_bfloat16_learns_keeps_float32_weights_and_starts_at_the_loss_of_float32():
  _, exact = _step(sigmas=BLIND)(_start(), {'clean': _images(0)})
  state = _start('bfloat16')
  losses = []
  for _ in range(10):
    state, metrics = _step(sigmas=BLIND)(state, {'clean': _images(0)})
    losses.append(float(metrics['loss']))
    if len(losses) == 1:
      # Not the same: it was computed in bfloat16 indeed.
      assert losses[0] != float(exact['loss'])
      assert losses[0] == pytest.approx(float(exact['loss']), rel=0.01)
      assert float(metrics['gradient_norm']) == pytest.approx(float(exact['gradient_norm']), rel=0.02)
  assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {jnp.dtype(jnp.float32)}
  moments = [optax.tree_utils.tree_get(state.opt_state, name) for name in ('mu', 'nu')]
  assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {jnp.dtype(jnp.float32)}
  assert bool(metrics['finite'])
  assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_a_step_whose_new_weights_are_not_finite_is_skipped():
  # Adam divides by eps where all gradients have been zero, as those of a parameter that is not used are.
  config = _config(**{'optimizer.eps': 0.0})
  state = _first_state(config, OneScale())
  state = state.replace(params={**state.params, 'res4': {'kernel': jnp.ones((1, 1, 3, 3))}})
  state = state.replace(opt_state=state.tx.init(state.params), ema=state.params)
  new, metrics = _step()(state, {'clean': _images(0)})
  assert np.isfinite(metrics['loss'])
  assert np.isfinite(metrics['gradient_norm'])
  assert not metrics['finite']
  assert int(metrics['skipped_steps']) == 1
  _assert_equal(new.params, state.params)


# --- Speed.


def test_the_noise_is_a_computation_of_its_own():
  """Else XLA on a CPU computes it again for every channel of a wide network's first layer."""
  add_noise = functools.partial(add_gaussian_noise, sigma_255_range=(50.0, 50.0), clip=0)
  step = functools.partial(train_step, noise_key=KEY, loss=charbonnier_loss, add_noise=add_noise)
  equations = jax.make_jaxpr(step)(_start(), {'clean': _images(0)}).jaxpr.eqns
  # A normal random number is the inverse error function of a uniform one.
  assert [e.primitive.name for e in equations if 'erf_inv' in str(e)] == ['cond']
