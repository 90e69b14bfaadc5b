"""The training loop: learning, logging, validation, checkpoints, resume, and what is rejected."""

import io
import json
import math
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator

from configs import default
from sadnet_jax.data import layouts
from sadnet_jax.data.examples import check_examples
from sadnet_jax.evaluation.image_sets import open_set
from sadnet_jax.evaluation.methods import SADNetMethod
from sadnet_jax.evaluation.protocols import CLIPPED8, UNCLIPPED
from sadnet_jax.evaluation.scoring import evaluate_set
from sadnet_jax.images.arrays import read_image
from sadnet_jax.training import inputs, loop, validation
from sadnet_jax.training.loop import describe_divergence, step_from_config, train, warn_of_offsets
from sadnet_jax.training.state import create_train_state, model_from_config
from sadnet_jax.weights.loading import load_params
from tests.support.small_networks import PLAIN, SMALL

pytestmark = pytest.mark.usefixtures('compiled_once')


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
  """A folder of small smooth colour images, one of them a JPEG in a subfolder."""
  folder = tmp_path_factory.mktemp('photographs')
  (folder / 'more').mkdir()
  for i, (height, width) in enumerate([(40, 33), (24, 41), (37, 24)]):
    y, x = np.mgrid[:height, :width] / 16
    colours = [np.sin(x * (i + 1) + c) * np.cos(y + c) for c in range(3)]
    pixels = np.uint8(127.5 + 127.5 * np.stack(colours, axis=-1))
    Image.fromarray(pixels).save(folder / ('more/last.jpg' if i == 2 else f'{i}.png'))
  return folder


def _config(folder='unused', **changes) -> ml_collections.ConfigDict:
  """A short run of a tiny network, without the blocks that take most of the time to compile."""
  config = default.get_config()
  config.model.update(PLAIN)
  config.data.train.clean = str(folder)
  config.validation.every = 0
  config.data.patch_px = 16
  config.batch_size = 8
  config.steps = 6
  config.log_every = 1
  config.checkpoint_every = 2
  config.optimizer.learning_rate = 1e-3
  config.ema_decay = 0.5
  config.update_from_flattened_dict(changes)
  return config


def _idle_step(config, *rest):
  """`step_from_config`, but the step leaves the weights as they are."""

  def step(state, batch):
    metrics = {'loss': jnp.float32(0), 'finite': jnp.bool_(True), 'skipped_steps': state.skipped}
    return state.replace(step=jnp.int32(state.step + 1)), metrics

  return step


def _batch(config, seed=0):
  shape = (config.batch_size, config.data.patch_px, config.data.patch_px, config.model.channels)
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_bucket_is_refused_before_anything_is_made(photographs, folder):
  with pytest.raises(ValueError, match='gs://bucket/run is a URL, but only local paths'):
    train(_config(photographs), 'gs://bucket/run')
  assert not list(folder.iterdir())


def test_a_tiny_network_overfits_one_batch():
  sigma_255 = 50.0
  changes = {'noise.sigma_255': sigma_255, 'noise.clip': False, 'optimizer.learning_rate': 5e-3, 'loss': 'l1'}
  config = _config(**changes)
  config.model = default.get_config().model
  config.model.update(**SMALL, dilations=(1, 2))
  step = step_from_config(config, jax.devices()[:1])
  state, batch = create_train_state(config), _batch(config)
  # One colour a patch, far apart: what averages over the patch can learn.
  batch[:] = batch[:, :1, :1]
  losses = []
  for _ in range(100):
    state, metrics = step(state, {'clean': batch})
    losses.append(float(metrics['loss']))
  # The mean absolute value of the noise is what a network that does nothing is left with.
  assert np.mean(losses[-10:]) < 0.4 * sigma_255 / 255 * np.sqrt(2 / np.pi)


@pytest.fixture(scope='module')
def whole_run(photographs, tmp_path_factory):
  """An uninterrupted run of six steps: its folder and its last state."""
  run = tmp_path_factory.mktemp('whole')
  return run, train(_config(photographs, keep_checkpoints=2), run, jax.devices()[:1])


@pytest.fixture(scope='module')
def stopped_run(photographs, tmp_path_factory):
  """The same run, stopped after four steps. Tests that continue it work on a copy."""
  run = tmp_path_factory.mktemp('stopped')
  return run, train(_config(photographs, steps=4), run, jax.devices()[:1])


def _lines(run):
  return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def test_a_run_that_was_stopped_or_killed_ends_as_an_uninterrupted_one(
  whole_run, stopped_run, photographs, tmp_path
):
  whole_folder, whole = whole_run
  run = shutil.copytree(stopped_run[0], tmp_path / 'run')
  # As a kill after step 5 leaves it: a line beyond the checkpoint, and half a line.
  with (run / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 5, "loss": 123.0}\n{"step": 6, "lo')
  resumed = train(_config(photographs), run, jax.devices()[:1])
  assert int(resumed.step) == 6
  _assert_equal((whole.params, whole.opt_state, whole.ema), (resumed.params, resumed.opt_state, resumed.ema))
  assert [line['step'] for line in _lines(run)] == [1, 2, 3, 4, 5, 6]
  assert [line['loss'] for line in _lines(run)] == [line['loss'] for line in _lines(whole_folder)]


def test_saved_weights_are_those_of_the_state_and_keep_is_respected(whole_run, stopped_run):
  (run, state), (_, shorter) = whole_run, stopped_run
  fields = _config().model.to_dict()
  step, params = load_params(run, fields)
  assert step == 6
  _assert_equal(params, state.best_params)
  assert sorted(p.name for p in (run / 'checkpoints').iterdir() if p.is_dir()) == ['4', '6']
  step, older = load_params(run / 'checkpoints' / '4', fields)
  assert step == 4
  # Saved in the background while later steps reused the state's buffers.
  _assert_equal(older, shorter.best_params)
  assert not np.array_equal(older['out']['kernel'], params['out']['kernel'])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    # Of the network: all fields that differ.
    ({'model.width': 16, 'model.last_kernel': 1}, r'model.last_kernel.*3.*1.*model.width.*8.*16'),
    ({'optimizer.name': 'muon'}, r'optimizer.name.*adam.*muon'),
    ({'optimizer.clip_norm': 0.5}, r'optimizer.clip_norm.*0\.0.*0\.5'),
    ({'noise.sigma_255': 30.0}, r'noise.sigma_255.*50\.0.*30\.0'),
    ({'seed': 1}, r'seed.*0.*1'),
    ({'optimizer.schedule': 'cosine', 'steps': 2}, r'optimizer.schedule.*step_halving.*cosine.*steps'),
  ],
)
def test_a_run_is_not_continued_with_another_recipe(stopped_run, photographs, changes, message):
  with pytest.raises(ValueError, match=message):
    train(_config(photographs, **{'steps': 4, **changes}), stopped_run[0], jax.devices()[:1])


def test_a_finished_run_stays_unchanged_also_with_other_fields_that_do_not_matter(
  stopped_run, photographs, capsys
):
  run, state = stopped_run
  changes = {
    'data.tile_px': 200,
    'data.stride_px': 100,
    'data.skip_bad': True,
    'optimizer.bias_rate': 0.1,
    'validation.pictures': 1,
  }
  before = signal.getsignal(signal.SIGTERM)
  again = train(_config(photographs, steps=4, **changes), run, jax.devices()[:1])
  _assert_equal((again.params, again.ema), (state.params, state.ema))
  assert 'nothing to do, the run is at step 4 of 4' in capsys.readouterr().out
  # The process has its reaction to SIGTERM back.
  assert signal.getsignal(signal.SIGTERM) is before


def test_grey_trains_and_is_evaluated_on_colour_files(photographs, tmp_path):
  config = _config(
    photographs, **{'model.channels': 1, 'steps': 2, 'optimizer.name': 'muon', 'ema_decay': 0.0}
  )
  state = train(config, tmp_path / 'run', jax.devices()[:1])
  model = model_from_config(config.model)
  _, params = load_params(tmp_path / 'run', config.model.to_dict())
  _assert_equal(params, state.params)
  results = _evaluate(model, params, photographs, sigma_255=25, protocol=UNCLIPPED)
  assert [(r.name, r.height, r.width) for r in results] == [
    ('0', 40, 33),
    ('1', 24, 41),
    ('more/last', 37, 24),
  ]


def _evaluate(model, params, folder, *, sigma_255, protocol):
  method = SADNetMethod(model, params, {}, devices=jax.devices()[:1])
  return evaluate_set(
    method,
    open_set(str(folder), None),
    channels=model.channels,
    sigma_255=sigma_255,
    protocol=protocol,
    keep_going=False,
  ).images


def test_a_divergence_is_described_by_the_metric_closest_to_its_cause():
  metrics = {'loss': math.nan, 'gradient_norm': math.nan, 'gradient_norm/scale1': 1.0, 'offset/scale4': 1.0}
  metrics |= {'offset/scale1': math.inf, 'offset/scale2': math.inf}
  text = describe_divergence(7, metrics)
  expected = 'step 7: the run has diverged, offset/scale2 is inf (and offset/scale1, loss); earlier'
  assert text.startswith(expected)
  text = describe_divergence(7, {**metrics, 'loss': 1.0, 'offset/scale1': 1.0, 'offset/scale2': 1.0})
  assert text.startswith('step 7: the run has diverged, gradient_norm is nan; earlier')
  text = describe_divergence(7, {'loss': 1.0, 'gradient_norm': 1.0})
  assert text.startswith(
    'step 7: the optimiser makes weights that are not finite of finite gradients; earlier'
  )


def test_offsets_larger_than_the_patch_are_a_warning(caplog):
  with caplog.at_level('WARNING'):
    warn_of_offsets(
      7, {'loss': 1.0, 'offset/scale1': 16.5, 'offset/scale2': 8.0, 'offset/scale4': 2.5}, patch_px=16
    )
  texts = [r.getMessage() for r in caplog.records]
  assert [t.split(',')[0] for t in texts] == [
    'step 7: the mean absolute offset of scale 1 is 16.5 pixels',
    'step 7: the mean absolute offset of scale 4 is 2.5 pixels',
  ]


def test_a_bad_image_is_named_before_anything_is_trained(tmp_path):
  folder = tmp_path / 'images'
  folder.mkdir()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
    folder / 'cut.png'
  )
  content = (folder / 'cut.png').read_bytes()
  (folder / 'cut.png').write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match=r'cut.png: the file is damaged or incomplete'):
    train(_config(folder), tmp_path / 'run')
  (folder / 'cut.png').unlink()
  Image.new('L', (64, 64)).save(folder / 'grey.png')
  with pytest.raises(ValueError, match=r'grey.png: the image is grey, but colour is needed'):
    train(_config(folder), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_an_image_smaller_than_a_patch_is_named_before_anything_is_trained(photographs, tmp_path):
  with pytest.raises(ValueError, match=r'0.png: 33x40 pixels are fewer than a patch of 35x35'):
    train(_config(photographs, **{'data.patch_px': 35}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def validated_run(photographs, tmp_path_factory):
  """A run whose best step is the first: afterwards the weights are shaken. Its folder and its last state."""
  run = tmp_path_factory.mktemp('validated')
  changes = {'steps': 3, 'validation.every': 1, 'validation.clean': (str(photographs), 'nowhere')}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'step_from_config', _with_rate(loop.step_from_config, iter([0.0, 0.1, 0.1])))
    return run, train(_config(photographs, keep_checkpoints=1, **changes), run, jax.devices()[:1])


def test_validation_keeps_the_best_checkpoint_and_shows_pictures(validated_run, photographs):
  run, _ = validated_run
  scores = {line['step']: line[f'psnr/{photographs.name}'] for line in _lines(run) if 'loss' not in line}
  assert sorted(scores) == [1, 2, 3]
  assert max(scores, key=scores.get) == 1
  assert sorted(p.name for p in (run / 'checkpoints').iterdir()) == ['1', '3']
  events = event_accumulator.EventAccumulator(str(run / 'tensorboard'), size_guidance={'images': 0})
  events.Reload()
  pictures = events.Tags()['images']
  assert pictures == [f'{photographs.name}/0', f'{photographs.name}/1']
  (first, *_), image = events.Images(pictures[0]), read_image(photographs / '0.png', 3)
  shown = np.asarray(Image.open(io.BytesIO(first.encoded_image_string)))
  np.testing.assert_array_equal(shown[:, 2 * image.shape[1] :], image)


def test_validation_measures_what_evaluation_does(validated_run, photographs):
  run, state = validated_run
  config = _config()
  _, params = load_params(run, config.model.to_dict())
  _assert_equal(params, state.ema)
  assert not np.array_equal(params['out']['kernel'], state.params['out']['kernel'])
  results = _evaluate(model_from_config(config.model), params, photographs, sigma_255=50.0, protocol=CLIPPED8)
  expected = np.mean([r.psnr for r in results])
  assert _lines(run)[-1][f'psnr/{photographs.name}'] == pytest.approx(expected, abs=1e-4)


def _with_rate(make_step, rates):
  """`step_from_config`, but each step adds noise of the next of these sizes to the weights."""

  def make(config, *rest):
    step = make_step(config, *rest)

    def disturbed(state, batch):
      state, metrics = step(state, batch)
      rate, rng = next(rates), np.random.default_rng(0)
      params, ema = jax.tree.map(
        lambda p: jnp.asarray(p + rate * rng.normal(size=p.shape), p.dtype), (state.params, state.ema)
      )
      params, ema = jax.device_put((params, ema), state.step.sharding)
      return state.replace(params=params, ema=ema), metrics

    return disturbed

  return make


def test_other_images_than_the_run_was_started_on_are_rejected(stopped_run, photographs, tmp_path):
  run, folder = tmp_path / 'run', tmp_path / 'images'
  shutil.copytree(stopped_run[0], run)
  shutil.copytree(photographs, folder)
  Image.new('RGB', (40, 40)).save(folder / 'new.png')
  with pytest.raises(ValueError, match=r'training images.*4 images, \w+,.* 3 images, \w+'):
    train(_config(folder), run, jax.devices()[:1])
  (folder / 'new.png').unlink()
  # The same images elsewhere are the same.
  assert int(train(_config(folder, steps=5), run, jax.devices()[:1]).step) == 5


def test_a_damaged_checkpoint_is_named_and_the_one_before_takes_over(
  whole_run, stopped_run, photographs, tmp_path
):
  devices = jax.devices()[:1]
  run = shutil.copytree(stopped_run[0], tmp_path / 'damaged')
  for path in (run / 'checkpoints' / '4' / 'params').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(ValueError, match=r'checkpoints/4: .*cannot be read .*move'):
    train(_config(photographs), run, devices)
  (run / 'checkpoints' / '4').rename(run / 'set_aside')
  _assert_equal(train(_config(photographs), run, devices).params, whole_run[1].params)


def test_a_folder_that_cannot_be_written_to_is_rejected(photographs, tmp_path):
  (tmp_path / 'file').write_text('')
  for folder in (tmp_path / 'file' / 'run', '/proc/run'):
    with pytest.raises(ValueError, match=r'run: cannot write to this folder \(.*\); free some space, or'):
      train(_config(photographs), folder, jax.devices()[:1])


def test_non_finite_steps_are_skipped_and_counted_where_configured(photographs, tmp_path, monkeypatch):
  poisoned, make_step = {2, 3, 5}, loop.step_from_config
  monkeypatch.setattr(loop, 'step_from_config', _with_poison(make_step, poisoned))
  config = _config(photographs, on_nonfinite='skip')
  state = train(config, tmp_path / 'run', jax.devices()[:1])
  assert (int(state.step), int(state.skipped)) == (6, 3)
  chex.assert_tree_all_finite((state.params, state.opt_state))
  lines = _lines(tmp_path / 'run')
  assert [line['skipped_steps'] for line in lines] == [0, 1, 2, 2, 3, 3]
  assert ['loss' in line for line in lines] == [True, False, False, True, False, True]
  # The count is saved too.
  monkeypatch.setattr(loop, 'step_from_config', make_step)
  assert (
    int(
      train(_config(photographs, on_nonfinite='skip', steps=7), tmp_path / 'run', jax.devices()[:1]).skipped
    )
    == 3
  )
  monkeypatch.setattr(loop, 'step_from_config', _with_poison(make_step, poisoned))
  with pytest.raises(ValueError, match=r'^step 2: the run has diverged, (?=.*loss)'):
    train(_config(photographs), tmp_path / 'stopped', jax.devices()[:1])
  # Step 1 was good, but what it led to was not: nothing may be saved after it.
  assert not list((tmp_path / 'stopped' / 'checkpoints').iterdir())


def test_too_many_skipped_steps_in_a_row_end_the_run(photographs, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'step_from_config', _with_poison(loop.step_from_config, {2, 3, 4, 5, 6}))
  monkeypatch.setattr(loop, 'MAX_SKIPPED_IN_A_ROW', 3)
  with pytest.raises(
    ValueError, match=r'^step 5: the run has diverged, .* number 4 of steps in a row .* start a new run'
  ):
    train(_config(photographs, on_nonfinite='skip'), tmp_path / 'run', jax.devices()[:1])


def _with_poison(make_step, steps):
  """`step_from_config`, but the weights of some steps are not finite while the gradient is computed."""

  def make(config, *rest):
    step = make_step(config, *rest)

    def poisoned(state, batch):
      if int(state.step) + 1 not in steps:
        return step(state, batch)
      kernel = state.params['out']['kernel']
      kept = np.array(kernel)
      state.params['out']['kernel'] = jax.device_put(np.full_like(kept, np.nan), kernel.sharding)
      state, metrics = step(state, batch)
      state.params['out']['kernel'] = jax.device_put(kept, state.params['out']['kernel'].sharding)
      return state, metrics

    return poisoned

  return make


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """Noisy and clean images of four scenes, large enough for tiles of 24 pixels."""
  folder, rng = tmp_path_factory.mktemp('pairs'), np.random.default_rng(0)
  for i in range(4):
    clean = np.repeat(np.repeat(rng.integers(0, 256, (5, 6, 3)), 8, axis=0), 8, axis=1)
    noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255)
    for role, pixels in (('clean', clean), ('noisy', noisy)):
      Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}_{role}.png')
  return folder


def _pairs_config(pairs, tmp_path, reader, **changes):
  return _config(
    '',
    **{
      'data.train.pairs': str(pairs),
      'data.reader': reader,
      'data.tiles_dir': str(tmp_path / 'tiles'),
      'data.tile_px': 24,
      'data.stride_px': 12,
      'data.crops_per_image': 2,
      'noise.sigma_255': 0.0,
      'loss': 'l1',
      'steps': 3,
      **changes,
    },
  )


@pytest.mark.parametrize('reader', ['files', 'tiles', 'memory'])
def test_pairs_train_from_every_reader_and_held_out_scenes_are_validated(pairs, tmp_path, reader, capsys):
  scene = layouts.find_examples('pairs', pairs).examples[1].scene
  changes = {'data.held_out': (scene,), 'validation.every': 3}
  config = _pairs_config(pairs, tmp_path, reader, **changes)
  whole = train(config, tmp_path / 'whole', jax.devices()[:2])
  output = capsys.readouterr().out
  assert 'validation on held_out (1 images)' in output
  assert ('27 tiles' if reader == 'tiles' else '3 images') + ', 1 images held out' in output
  assert _lines(tmp_path / 'whole')[-1]['psnr/held_out'] > 10
  # Stopped in the middle of a round of two steps an image.
  for steps in (1, 3):
    changes = {'data.held_out': (scene,), 'steps': steps}
    halves = train(_pairs_config(pairs, tmp_path, reader, **changes), tmp_path / 'halves', jax.devices()[:2])
  _assert_equal((whole.params, whole.opt_state), (halves.params, halves.opt_state))


def test_tiles_train_after_their_images_are_gone(pairs, tmp_path):
  folder = tmp_path / 'download'
  shutil.copytree(pairs, folder)
  config = _pairs_config(folder, tmp_path, 'tiles', steps=1)
  train(config, tmp_path / 'run', jax.devices()[:2])
  shutil.rmtree(folder)
  assert int(train(_pairs_config(folder, tmp_path, 'tiles'), tmp_path / 'run', jax.devices()[:2]).step) == 3


@pytest.mark.parametrize(
  ('reader', 'small', 'summary'),
  [
    ('files', 'small.png: 8x8 pixels are fewer than a patch of 16x16', '3 images, 2 skipped'),
    ('tiles', 'the tiles of small have a side of 8 pixels, but data.patch_px is 16', ' tiles, 2 skipped'),
  ],
)
def test_what_cannot_be_used_is_skipped_and_counted_where_configured(
  photographs, tmp_path, reader, small, summary, capsys
):
  folder = tmp_path / 'images'
  shutil.copytree(photographs, folder)
  content = (folder / '0.png').read_bytes()
  (folder / 'cut.png').write_bytes(content[: len(content) // 2])
  Image.new('RGB', (8, 8)).save(folder / 'small.png')
  tiles = {'data.tiles_dir': str(tmp_path / 'tiles'), 'data.tile_px': 24, 'data.stride_px': 12}
  config = _config(folder, **{'data.skip_bad': True, 'data.reader': reader, 'steps': 1, **tiles})
  train(config, tmp_path / 'run', jax.devices()[:1])
  output = capsys.readouterr().out
  assert 'cut.png: the file is damaged or incomplete' in output
  assert small in output
  assert summary in output
  if reader == 'tiles':
    (folder / 'cut.png').unlink()
    config.data.update(skip_bad=False, tiles_dir=str(tmp_path / 'others'))
    with pytest.raises(ValueError, match=r'the tiles of small have a side of 8 pixels, .*; choose smaller'):
      train(config, tmp_path / 'other', jax.devices()[:1])


def test_fine_tuning_starts_from_the_weights_of_a_run(stopped_run, photographs, tmp_path, monkeypatch):
  shutil.copytree(stopped_run[0], tmp_path / 'first')
  monkeypatch.setattr(loop, 'step_from_config', _idle_step)
  changes = {'init_from': str(tmp_path / 'first'), 'steps': 1}
  tuned = train(_config(photographs, **changes), tmp_path / 'tuned', jax.devices()[:1])
  _assert_equal(tuned.params, stopped_run[1].best_params)
  other = _config(photographs, **changes, **{'model.width': 16})
  with pytest.raises(ValueError, match=r'model.width.*8.*16'):
    train(other, tmp_path / 'other', jax.devices()[:1])
  grey = _config(photographs, **changes, **{'model.channels': 1})
  started = train(grey, tmp_path / 'grey', jax.devices()[:1])
  assert started.best_params['out']['bias'].shape == (1,)
  # A run continues without what it started from.
  shutil.rmtree(tmp_path / 'first')
  longer = _config(photographs, **{**changes, 'steps': 3})
  other = _config(photographs, **{**changes, 'init_from': 'color'})
  with pytest.raises(
    ValueError, match=r'with another config: init_from: checkpoint .*, config "color"; give the values'
  ):
    train(other, tmp_path / 'tuned', jax.devices()[:1])
  assert int(train(longer, tmp_path / 'tuned', jax.devices()[:1]).step) == 3


def test_a_bad_validation_image_is_named_before_anything_is_trained(photographs, tmp_path):
  folder = tmp_path / 'test'
  folder.mkdir()
  Image.new('L', (20, 20)).save(folder / 'grey.png')
  config = _config(photographs, **{'validation.every': 2, 'validation.clean': (str(folder),)})
  with pytest.raises(ValueError, match=r'grey.png: the image is grey, but colour is needed'):
    train(config, tmp_path / 'run', jax.devices()[:1])
  assert not (tmp_path / 'run').exists()


def test_a_run_goes_on_although_a_validation_image_fails(photographs, tmp_path, monkeypatch, capsys):
  folder = tmp_path / 'validation'
  folder.mkdir()
  for name in ('0.png', '1.png'):
    (folder / name).write_bytes((photographs / name).read_bytes())
  measured_on = loop.validation.measured_on

  def damage_later(*arguments, **noise):
    digest = measured_on(*arguments, **noise)
    (folder / '1.png').write_bytes(b'')
    return digest

  monkeypatch.setattr(loop.validation, 'measured_on', damage_later)
  saved = []
  save = loop.checkpoints.save
  monkeypatch.setattr(loop.checkpoints, 'save', lambda *a, **b: saved.append(a[4]) or save(*a, **b))
  config = _config(photographs, **{'steps': 4, 'validation.every': 2, 'validation.clean': (str(folder),)})
  assert int(train(config, tmp_path / 'run', jax.devices()[:1]).step) == 4
  assert capsys.readouterr().out.count(' dB, without 1 failed') == 2
  # A mean over fewer images would not compare with other steps.
  assert [set(metrics) for metrics in saved] == [{'measured_on'}, {'measured_on'}]


def test_a_step_is_saved_although_its_validation_fails(photographs, tmp_path, monkeypatch):
  def fails(*arguments, **fields):
    def validate(params, interrupted):
      raise RuntimeError('out of memory')

    return validate

  monkeypatch.setattr(loop.validation, 'make_validator', fails)
  config = _config(photographs, **{'validation.every': 3, 'validation.clean': (str(photographs),)})
  with pytest.raises(RuntimeError, match='out of memory'):
    train(config, tmp_path / 'run', jax.devices()[:1])
  assert sorted(p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()) == ['2', '3']


def _scores(run):
  return [line['step'] for line in _lines(run) if any(name.startswith('psnr/') for name in line)]


def test_a_last_validation_that_was_interrupted_is_made_up(photographs, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(loop, 'step_from_config', _idle_step)
  config = _config(
    photographs, **{'validation.every': 2, 'validation.clean': (str(photographs),), 'steps': 2}
  )
  run, devices = tmp_path / 'run', jax.devices()[:1]
  # First what validation returns after SIGTERM.
  results = iter([None, {'a': validation.ValidationResult(20.0, 30.0, {})}])
  monkeypatch.setattr(loop.validation, 'make_validator', lambda *_, **__: lambda *_: next(results))
  train(config, run, devices)
  assert _scores(run) == []
  train(config, run, devices)
  assert _scores(run) == [2]
  assert 'best checkpoint so far: 2' in capsys.readouterr().out
  train(config, run, devices)
  assert _scores(run) == [2]
  assert 'nothing to do, the run is at step 2 of 2' in capsys.readouterr().out


def test_a_signal_during_validation_stops_the_run_at_that_step(photographs, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(loop, 'step_from_config', _idle_step)
  config = _config(
    photographs, **{'validation.every': 2, 'validation.clean': (str(photographs),), 'steps': 4}
  )
  run, devices = tmp_path / 'run', jax.devices()[:1]
  result = {'a': validation.ValidationResult(20.0, 30.0, {})}
  # Interrupted at step 2, and again when it is made up.
  results = iter([None, None, result, result])
  monkeypatch.setattr(loop.validation, 'make_validator', lambda *_, **__: lambda *_: next(results))
  for _ in range(2):
    assert int(train(config, run, devices).step) == 2
    assert 'stopped at step 2, which is saved' in capsys.readouterr().out
  assert _scores(run) == []
  assert int(train(config, run, devices).step) == 4
  assert _scores(run) == [2, 4]


def test_a_validation_whose_psnr_did_not_reach_the_checkpoint_is_repeated(
  photographs, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(loop, 'step_from_config', _idle_step)
  changes = {'validation.every': 2, 'validation.clean': (str(photographs),), 'steps': 2}
  run, devices, config = tmp_path / 'run', jax.devices()[:1], _config(photographs, **changes)
  results = iter([None, *[{'a': validation.ValidationResult(20.0, 30.0, {})}] * 2])
  monkeypatch.setattr(loop.validation, 'make_validator', lambda *_, **__: lambda *_: next(results))
  train(config, run, devices)

  def end(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    # The process ends when the line is in the log.
    patch.setattr(loop.checkpoints, 'add_validation', end)
    with pytest.raises(KeyboardInterrupt):
      train(config, run, devices)
  assert _scores(run) == [2]
  train(config, run, devices)
  assert _scores(run) == [2]
  assert 'best checkpoint so far: 2' in capsys.readouterr().out


def test_psnr_on_other_images_is_not_compared(photographs, tmp_path, monkeypatch, capsys):
  scores = iter([40.0, 30.0, 31.0, 29.0])

  def validate(params, interrupted):
    return {'a': validation.ValidationResult(20.0, next(scores), {})}

  monkeypatch.setattr(loop, 'step_from_config', _idle_step)
  monkeypatch.setattr(loop.validation, 'make_validator', lambda *_, **__: validate)
  changes = {'validation.every': 1, 'validation.clean': (str(photographs),), 'keep_checkpoints': 1}
  changes['optimizer.schedule'] = 'step_halving'
  run, devices = tmp_path / 'run', jax.devices()[:1]
  train(_config(photographs, **changes, steps=1), run, devices)
  train(_config(photographs, **changes, **{'validation.images': 1}, steps=4), run, devices)
  assert capsys.readouterr().out.split('best checkpoint so far: ')[-1].strip() == '3'
  # The best of each kind, and the newest.
  assert sorted(p.name for p in (run / 'checkpoints').iterdir()) == ['1', '3', '4']


def test_equal_images_validate_to_infinity_without_harm(tmp_path, pairs, monkeypatch, capsys):
  folder = tmp_path / 'equal'
  folder.mkdir()
  for role in ('clean', 'noisy'):
    shutil.copy(next(pairs.glob('*clean.png')), folder / f'1_{role}.png')
  changes = {'validation.every': 1, 'validation.pairs': (str(folder),), 'steps': 1, 'ema_decay': 0.0}
  config = _pairs_config(pairs, tmp_path, 'memory', **changes)
  start = loop.create_train_state(config)
  # A network that changes nothing: its last layer is zero.
  start.params['out'] = jax.tree.map(jnp.zeros_like, start.params['out'])
  monkeypatch.setattr(loop, 'create_train_state', lambda config: start)
  monkeypatch.setattr(loop, 'step_from_config', _idle_step)
  train(config, tmp_path / 'run', jax.devices()[:1])
  assert 'psnr' not in (tmp_path / 'run' / 'metrics.jsonl').read_text()
  assert (tmp_path / 'run' / 'checkpoints' / '1').is_dir()
  train(config, tmp_path / 'run', jax.devices()[:1])
  # The validation is not missing.
  assert 'nothing to do' in capsys.readouterr().out


def test_an_image_gone_bad_during_a_run_is_named(tmp_path, photographs, monkeypatch):
  folder = tmp_path / 'images'
  shutil.copytree(photographs, folder)

  def check_and_damage(examples, channels, patch_px):
    check_examples(examples, channels, patch_px)
    (folder / '1.png').write_bytes((folder / '1.png').read_bytes()[:100])

  monkeypatch.setattr(inputs, 'check_examples', check_and_damage)
  with pytest.raises(ValueError, match=r'1.png: the file is damaged or incomplete'):
    train(_config(folder), tmp_path / 'run', jax.devices()[:1])
