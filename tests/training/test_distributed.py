"""Several processes, one run, over the loopback interface."""

import json
import shutil
import signal
import socket

import jax
import numpy as np
import optax
from PIL import Image
import pytest

from configs import demo
from sadnet_jax.training import distributed
from sadnet_jax.training.loop import train
from sadnet_jax.training.state import create_train_state
from sadnet_jax.weights.loading import load_params
from tests.support.command import ROOT, finish, start
from tests.support.small_networks import PLAIN

pytestmark = pytest.mark.usefixtures('quick_to_compile')

# What the runs change in the demo's config.
CHANGES = {
  **{f'model.{name}': value for name, value in PLAIN.items()},
  'data.train.clean': 'images',
  # Needs no TensorFlow, whose import would take most of the time.
  'data.reader': 'memory',
  'data.patch_px': 16,
  # With its usual value Adam would turn rounding in gradients near zero into whole steps.
  'optimizer.name': 'adam',
  'optimizer.eps': 1e-3,
  'optimizer.learning_rate': 1e-3,
  # Which does not depend on the number of steps.
  'optimizer.schedule': 'step_halving',
  'optimizer.warmup_steps': 1,
  'ema_decay': 0.5,
  'steps': 4,
  'log_every': 1,
  'checkpoint_every': 2,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with images in ``images``, where the runs are started."""
  folder = tmp_path_factory.mktemp('runs')
  (folder / 'images').mkdir()
  for i, size in enumerate([(19, 33), (40, 24), (24, 24)]):
    y, x = np.mgrid[: size[0], : size[1]] / 8
    pixels = np.uint8(127.5 + 127.5 * np.stack([np.sin(x + i), np.cos(y), np.sin(x * y)], axis=-1))
    Image.fromarray(pixels).save(folder / f'images/{i}.png')
  return folder


def _train_on_two_processes(folder, run, *, succeeds=True, **changes):
  processes = _start_two_processes(folder, run, **changes)
  return [finish(process, succeeds=succeeds) for process in processes]


def _start_two_processes(folder, run, *, of_the_second=(), **changes):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'

  def start_one(index, changes):
    return start(
      ROOT / 'train.py',
      f'--config={ROOT}/configs/demo.py',
      *(f'--config.{name}={value}' for name, value in {**CHANGES, **changes}.items()),
      f'--workdir={run}',
      f'--distributed={index}/2@{address}',
      cwd=folder,
      JAX_NUM_CPU_DEVICES='2',
    )

  return [start_one(0, changes), start_one(1, {**changes, **dict(of_the_second)})]


def _config():
  config = demo.get_config()
  config.update_from_flattened_dict(CHANGES)
  return config


def _train_on_one_device(folder, run, **changes):
  """The same run in this process."""
  config = _config()
  config.update_from_flattened_dict({'data.train.clean': str(folder / 'images'), **changes})
  train(config, folder / run, jax.devices()[:1])


def _weights(run):
  return load_params(run, _config().model.to_dict())[1]


def _losses(run):
  return [json.loads(line)['loss'] for line in (run / 'metrics.jsonl').read_text().splitlines()]


def _distance(a, b):
  return optax.tree.norm(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b))


def test_two_processes_of_two_devices_give_the_weights_of_one_device(folder):
  # With tf.data, of which each process reads its share.
  files = {'data.reader': 'files'}
  outputs = _train_on_two_processes(folder, 'two', **files)
  _train_on_one_device(folder, 'one', **files)
  assert '3 images, 4 device(s), from step 0' in outputs[0][0]
  assert 'step' not in outputs[1][0]
  one, two = folder / 'one', folder / 'two'
  assert sorted(p.name for p in (two / 'checkpoints').iterdir()) == ['2', '4']
  # Equal but for rounding.
  difference = _distance(_weights(one), _weights(two))
  assert difference < 1e-3 * _distance(_weights(one), create_train_state(_config()).params)
  assert _losses(two) == pytest.approx(_losses(one), rel=1e-5)
  # Continued by two processes, the run is the same bit for bit.
  shutil.copytree(two, folder / 'continued')
  shutil.rmtree(folder / 'continued' / 'checkpoints' / '4')
  outputs = _train_on_two_processes(folder, 'continued', **files)
  assert 'from step 2' in outputs[0][0]
  jax.tree.map(np.testing.assert_array_equal, _weights(folder / 'continued'), _weights(two))


def test_a_validation_that_a_finished_run_lacks_is_made_up(folder):
  """On an image of more pixels than the smallest tile, for which validation asks where the weights are."""
  (folder / 'large').mkdir()
  Image.fromarray(np.full((136, 136, 3), 128, np.uint8)).save(folder / 'large' / '0.png')
  _train_on_two_processes(folder, 'validated', steps=2, **{'validation.every': 0})
  changes = {'validation.every': 2, 'validation.clean': "('large',)"}
  outputs = _train_on_two_processes(folder, 'validated', steps=2, **changes)
  assert 'step 2/2  best checkpoint so far: 2' in outputs[0][0]
  assert 'left out' not in outputs[0][1]


def test_an_error_of_process_0_ends_both(folder):
  outputs = _train_on_two_processes(folder, 'failed', init_from='nowhere', succeeds=False)
  assert 'train.py: nowhere: neither published weights' in outputs[0][1]


def test_processes_with_other_images_are_rejected(folder):
  (folder / 'fewer').mkdir()
  shutil.copy(folder / 'images' / '0.png', folder / 'fewer')
  processes = _start_two_processes(folder, 'differing', of_the_second={'data.train.clean': 'fewer'})
  for process in processes:
    _, errors = finish(process, succeeds=False)
    assert 'the training data differs between processes' in errors or 'another task died' in errors


def test_processes_with_another_config_are_rejected(folder):
  changes = {'optimizer.learning_rate': 3e-4, 'data.train.clean': str(folder / 'images')}
  processes = _start_two_processes(folder, 'other', of_the_second=changes)
  errors = [finish(process, succeeds=False)[1] for process in processes]
  assert any('config.optimizer differs between processes' in text for text in errors)


def test_sigterm_to_one_process_saves_and_ends_both(folder):
  """Also that each device samples its own share of the batch from the images in its memory."""
  processes = _start_two_processes(folder, 'stopped', **{'steps': 100_000, 'data.reader': 'memory'})
  for line in processes[0].stdout:
    if line.startswith('step '):
      break
  processes[1].send_signal(signal.SIGTERM)
  (output, _), _ = (finish(process, succeeds=False) for process in processes)
  assert [process.returncode for process in processes] == [130, 130]
  saved = sorted(int(p.name) for p in (folder / 'stopped' / 'checkpoints').iterdir())
  assert f'stopped at step {saved[-1]}, which is saved' in output
  _train_on_one_device(folder, 'not_stopped', **{'steps': 2, 'data.reader': 'memory'})
  assert _losses(folder / 'stopped')[:2] == pytest.approx(_losses(folder / 'not_stopped'), rel=1e-5)


@pytest.mark.parametrize('cluster', ['2', '2/2@localhost:1', '0/2@localhost', 'nonsense'])
def test_a_cluster_that_cannot_be_is_rejected(cluster):
  with pytest.raises(
    ValueError, match=r"--distributed=.* is not valid; pass 'auto', or INDEX/COUNT@HOST:PORT"
  ):
    distributed.initialize(cluster)
