"""The training step and loop: learning, parallelism, resume, and what is refused."""

import json

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from PIL import Image
import pytest

from configs import color, color_fast, default, demo, gray
from sadnet_jax import checkpoints
from sadnet_jax.evaluation import evaluate_folder, make_denoiser
from sadnet_jax.images import read_image
from sadnet_jax.model import SADNet
from sadnet_jax.training import (
  check_config,
  check_healthy,
  create_train_state,
  make_parallel_step,
  model_from_config,
  train,
)


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
  """A tiny network and a short run."""
  config = default.get_config()
  config.model.update(width=8, offset_width=8, dilations=(1, 2))
  config.data.train_dir = str(folder)
  config.data.patch_px = 16
  config.batch_size = 8
  config.steps = 6
  config.log_every = 1
  config.checkpoint_every = 2
  config.optimizer.learning_rate = 1e-3
  config.update_from_flattened_dict(changes)
  return config


def _batch(config, seed=0):
  shape = (config.batch_size, config.data.patch_px, config.data.patch_px, config.model.channels)
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_tiny_network_overfits_one_batch():
  sigma_255 = 50.0
  changes = {'noise.sigma_255': sigma_255, 'noise.clip': False, 'optimizer.learning_rate': 5e-3, 'loss': 'l1'}
  config = _config(**changes)
  step = make_parallel_step(config, jax.devices()[:1])
  state, batch = create_train_state(config), _batch(config)
  # One colour a patch, far apart: what averages over the patch can learn.
  batch[:] = batch[:, :1, :1]
  losses = []
  for _ in range(100):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  # The mean absolute value of the noise is what a network that does nothing is left with.
  assert np.mean(losses[-10:]) < 0.4 * sigma_255 / 255 * np.sqrt(2 / np.pi)


@pytest.mark.parametrize('device_count', [2, 8])
def test_many_devices_give_the_weights_of_one(device_count):
  # Adam divides by the root of the square of the gradient plus eps: with its usual eps it
  # would turn rounding in gradients near zero into whole steps.
  config = _config(**{'optimizer.eps': 1e-3, 'model.offset_init': 'xavier'})
  start = create_train_state(config).params
  ends, losses = [], []
  for devices in (jax.devices()[:1], jax.devices()[:device_count]):
    state, step = create_train_state(config), make_parallel_step(config, devices)
    for seed in range(3):
      state, metrics = step(state, _batch(config, seed))
    ends.append(state.params)
    losses.append(float(metrics['loss']))
  # Sums over the batch are taken in another order. Where that moves a value across a kink of
  # bilinear sampling or leaky ReLU, a single weight differs by more than rounding, so what is
  # bounded is the difference of all weights beside the distance they have come.
  difference, distance = (
    optax.tree.norm(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), ends[0], other))
    for other in (ends[1], start)
  )
  assert distance > 1e-2
  assert difference < 1e-3 * distance
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_noise_differs_between_steps_and_not_between_runs():
  config = _config(**{'optimizer.learning_rate': 0.0})
  step = make_parallel_step(config, jax.devices()[:2])
  runs = []
  for _ in range(2):
    state, losses = create_train_state(config), []
    for _ in range(2):
      state, metrics = step(state, _batch(config))
      losses.append(float(metrics['loss']))
    runs.append(losses)
  assert runs[0] == runs[1]
  assert runs[0][0] != runs[0][1]


def test_metrics_have_the_mean_offset_of_every_scale():
  config = _config(**{'model.offset_init': 'xavier'})
  _, metrics = make_parallel_step(config, jax.devices()[:2])(create_train_state(config), _batch(config))
  assert {'loss', 'gradient_norm', *(f'offset/scale{s}' for s in (1, 2, 3, 4))} == set(metrics)
  chex.assert_tree_all_finite(metrics)
  assert all(metrics[f'offset/scale{s}'] > 0 for s in (1, 2, 3, 4))


def test_a_network_without_rsab_trains():
  config = _config(**{'model.use_rsab': False})
  _, metrics = make_parallel_step(config, jax.devices()[:1])(create_train_state(config), _batch(config))
  assert set(metrics) == {'loss', 'gradient_norm'}


def test_stopped_and_resumed_equals_uninterrupted(photographs, tmp_path):
  devices = jax.devices()[:2]
  whole = train(_config(photographs), tmp_path / 'whole', devices)
  # The first half, then the second in what could be another process.
  train(_config(photographs, steps=3), tmp_path / 'halves', devices)
  halves = train(_config(photographs), tmp_path / 'halves', devices)
  assert int(halves.step) == 6
  _assert_equal((whole.params, whole.opt_state), (halves.params, halves.opt_state))
  lines = [
    [json.loads(line) for line in (tmp_path / run / 'metrics.jsonl').read_text().splitlines()]
    for run in ('whole', 'halves')
  ]
  assert [line['step'] for line in lines[1]] == [1, 2, 3, 4, 5, 6]
  assert [line['loss'] for line in lines[0]] == [line['loss'] for line in lines[1]]


def test_a_run_continues_from_its_checkpoint_when_later_work_was_lost(photographs, tmp_path):
  devices = jax.devices()[:1]
  whole = train(_config(photographs), tmp_path / 'whole', devices)
  train(_config(photographs, steps=4), tmp_path / 'killed', devices)
  # As a kill after step 5 leaves it: a line beyond the checkpoint, and half a line.
  with (tmp_path / 'killed' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 5, "loss": 123.0}\n{"step": 6, "lo')
  resumed = train(_config(photographs), tmp_path / 'killed', devices)
  _assert_equal(whole.params, resumed.params)
  lines = [json.loads(line) for line in (tmp_path / 'killed' / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
  assert lines[4]['loss'] != 123.0


def test_a_finished_run_is_left_alone(photographs, tmp_path, capsys):
  config = _config(photographs, steps=2)
  first = train(config, tmp_path / 'run', jax.devices()[:1])
  again = train(config, tmp_path / 'run', jax.devices()[:1])
  _assert_equal(first.params, again.params)
  assert 'nothing to do, the run is at step 2 of 2' in capsys.readouterr().out


def test_saved_weights_are_those_of_the_state_and_keep_is_respected(photographs, tmp_path):
  config = _config(photographs, keep_checkpoints=2)
  state = train(config, tmp_path / 'run', jax.devices()[:1])
  model = SADNet(width=8, offset_width=8, dilations=(1, 2))
  step, params = checkpoints.restore_params(tmp_path / 'run', model, config.to_dict())
  assert step == 6
  _assert_equal(params, state.params)
  assert sorted(p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir() if p.is_dir()) == ['4', '6']
  step, older = checkpoints.restore_params(tmp_path / 'run' / 'checkpoints' / '4', model, config.to_dict())
  assert step == 4
  # Saved in the background while later steps reused the state's buffers.
  shorter = train(_config(photographs, steps=4), tmp_path / 'shorter', jax.devices()[:1])
  _assert_equal(older, shorter.params)
  assert not np.array_equal(older['out']['kernel'], params['out']['kernel'])
  with pytest.raises(ValueError, match=r'got checkpoints of steps \[4, 6\], want 5'):
    checkpoints.restore_params(tmp_path / 'run' / 'checkpoints' / '5', model, config.to_dict())


def test_a_checkpoint_of_another_network_names_the_fields(photographs, tmp_path):
  train(_config(photographs, steps=1), tmp_path / 'run', jax.devices()[:1])
  other = _config(photographs, **{'model.width': 16, 'model.last_kernel': 1})
  message = r'model.last_kernel: checkpoint 3, config 1; model.width: checkpoint 8, config 16'
  with pytest.raises(ValueError, match=message):
    train(other, tmp_path / 'run', jax.devices()[:1])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'optimizer.name': 'muon'}, r'optimizer.name: checkpoint "adam", config "muon"'),
    ({'optimizer.clip_norm': 0.5}, r'optimizer.clip_norm: checkpoint 0.0, config 0.5'),
    ({'noise.sigma_255': 30.0}, r'noise.sigma_255: checkpoint 50.0, config 30.0'),
    ({'seed': 1}, r'seed: checkpoint 0, config 1'),
    (
      {'optimizer.schedule': 'cosine', 'steps': 2},
      r'checkpoint "step_halving", config "cosine"; steps: checkpoint 1',
    ),
  ],
)
def test_a_run_is_not_continued_with_another_recipe(short_run, photographs, changes, message):
  with pytest.raises(ValueError, match=rf'the checkpoint is of a run with another config: .*{message}'):
    train(_config(photographs, **{'steps': 1, **changes}), short_run, jax.devices()[:1])


@pytest.fixture(scope='module')
def short_run(photographs, tmp_path_factory):
  run = tmp_path_factory.mktemp('run')
  train(_config(photographs, steps=1), run, jax.devices()[:1])
  return run


def test_grey_trains_and_is_evaluated_on_colour_files(photographs, tmp_path):
  config = _config(photographs, **{'model.channels': 1, 'steps': 2, 'optimizer.name': 'muon'})
  state = train(config, tmp_path / 'run', jax.devices()[:1])
  model = model_from_config(config.model)
  _, params = checkpoints.restore_params(tmp_path / 'run', model, config.to_dict())
  _assert_equal(params, state.params)
  results = list(
    evaluate_folder(
      make_denoiser(model, params),
      photographs,
      channels=1,
      sigma_255=25,
      protocol='unclipped',
      output=tmp_path / 'pictures',
    )
  )
  assert [r.name for r in results] == ['0.png', '1.png', 'more/last.jpg']
  assert read_image(tmp_path / 'pictures' / 'denoised' / 'more' / 'last.png', 1).shape == (37, 24, 1)


def test_pictures_of_images_with_one_stem_are_not_written_over_each_other(tmp_path):
  for name in ('a.png', 'a.bmp', 'b.png'):
    Image.new('RGB', (8, 8)).save(tmp_path / name)
  results = evaluate_folder(
    lambda noisy: noisy, tmp_path, channels=3, sigma_255=25, protocol='unclipped', output=tmp_path / 'out'
  )
  with pytest.raises(
    ValueError, match=r"got images that differ only in their ending: \['a'\], want distinct"
  ):
    next(results)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
  with pytest.raises(
    ValueError, match=r"got no folder 'checkpoints' in it, want the folder of a training run"
  ):
    checkpoints.restore_params(tmp_path, SADNet(), {})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'batch_size': 6}, r'config.batch_size: got 6, want a multiple of the 4 devices'),
    ({'batch_size': 0}, r'config.batch_size: got 0, want at least 1'),
    ({'steps': 0}, r'config.steps: got 0, want at least 1'),
    ({'noise.sigma_255': -1.0}, r'config.noise.sigma_255: got -1.0, want at least 0'),
    ({'loss': 'l3'}, r"config.loss: got 'l3', want one of \['l1', 'l2'\]"),
    ({'model.channels': 2}, r'config.model.channels: got 2, want 3 \(colour\) or 1 \(grey\)'),
    ({'model.dtype': 'float16'}, r"model.dtype: got 'float16', want 'float32' or 'bfloat16'"),
    ({'model.width': 12}, r'SADNet.width: got 12, want a multiple of deformable_groups = 8'),
    ({'optimizer.schedule': 'linear'}, r"schedule: got 'linear'"),
    ({'optimizer.name': 'sgd'}, r"optimizer: got 'sgd'"),
    ({'seed': -1}, r'config.seed: got -1, want 0 to 2\*\*31 - 1'),
    ({'seed': 2**31}, r'config.seed: got 2147483648, want 0 to'),
    ({'log_every': 0}, r'config.log_every: got 0, want at least 1'),
    ({'checkpoint_every': 0}, r'config.checkpoint_every: got 0, want at least 1'),
    ({'keep_checkpoints': 0}, r'config.keep_checkpoints: got 0, want at least 1'),
    ({'data.patch_px': 0}, r'config.data.patch_px: got 0, want at least 1'),
  ],
)
def test_a_config_that_cannot_work_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    check_config(_config(**changes), device_count=4)


@pytest.mark.parametrize(
  'config',
  [color.get_config('30'), gray.get_config(), color_fast.get_config('15'), demo.get_config()],
  ids=['color', 'gray', 'color_fast', 'demo'],
)
def test_every_config_can_work(config):
  check_config(config, device_count=8)
  model = model_from_config(config.model)
  image = jax.ShapeDtypeStruct((1, 8, 8, config.model.channels), jnp.float32)
  chex.assert_shape(jax.eval_shape(model.init_with_output, jax.random.key(0), image)[0], image.shape)


def test_a_diverged_run_stops_and_names_the_metric_and_the_step(photographs, tmp_path):
  config = _config(photographs, **{'optimizer.learning_rate': 1e30, 'optimizer.schedule': 'step_halving'})
  with pytest.raises(
    ValueError, match=r'step \d: got (loss|gradient_norm|offset/scale\d) = (nan|inf), want a finite'
  ):
    train(config, tmp_path / 'run', jax.devices()[:1])


def test_offsets_larger_than_the_patch_are_a_warning(caplog):
  with caplog.at_level('WARNING'):
    check_healthy(
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
  with pytest.raises(ValueError, match=r'cut.png: got a damaged image file'):
    train(_config(folder), tmp_path / 'run')
  (folder / 'cut.png').unlink()
  Image.new('L', (64, 64)).save(folder / 'grey.png')
  with pytest.raises(ValueError, match=r'grey.png: got a grey image, want colour'):
    train(_config(folder), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_an_image_smaller_than_a_patch_is_named_before_anything_is_trained(photographs, tmp_path):
  with pytest.raises(ValueError, match=r'0.png: got 33x40 pixels, want at least 35x35 for a crop'):
    train(_config(photographs, **{'data.patch_px': 35}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_the_color_config_is_the_paper():
  config = color.get_config('30')
  check_config(config, device_count=8)
  assert (config.batch_size, config.data.patch_px, config.noise.sigma_255) == (16, 128, 30.0)
  optimizer = config.optimizer
  assert (optimizer.learning_rate, optimizer.halve_every) == (1e-4, 300_000)
  assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-8)
