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
from sadnet_jax.training.state import create_train_state
from sadnet_jax.weights.loading import load_params
from tests.support.command import ROOT, finish, start


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


def _train(folder, run, *changes, devices=1):
  return start(
    ROOT / 'train.py',
    f'--config={ROOT}/configs/demo.py',
    '--config.model.width=8',
    '--config.model.offset_width=8',
    '--config.data.train.clean=images',
    '--config.data.patch_px=16',
    # With its usual value Adam would turn rounding in gradients near zero into whole steps.
    '--config.optimizer.name=adam',
    '--config.optimizer.eps=1e-3',
    '--config.optimizer.learning_rate=1e-3',
    # Which does not depend on the number of steps.
    '--config.optimizer.schedule=step_halving',
    '--config.optimizer.warmup_steps=1',
    '--config.model.offset_init=xavier',
    '--config.ema_decay=0.5',
    '--config.steps=4',
    '--config.log_every=1',
    '--config.checkpoint_every=2',
    f'--workdir={run}',
    *changes,
    cwd=folder,
    JAX_NUM_CPU_DEVICES=str(devices),
  )


def _train_on_two_processes(folder, run, *changes, succeeds=True):
  processes = _start_two_processes(folder, run, *changes)
  return [finish(process, succeeds=succeeds) for process in processes]


def _start_two_processes(folder, run, *changes, of_the_second=()):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  more = [changes, [*changes, *of_the_second]]
  return [_train(folder, run, f'--distributed={i}/2@{address}', *more[i], devices=2) for i in range(2)]


def _config():
  config = demo.get_config()
  config.model.update(width=8, offset_width=8, offset_init='xavier')
  config.ema_decay = 0.5
  return config


def _weights(run):
  config = _config()
  return load_params(run, config.model.to_dict())[1]


def _losses(run):
  return [json.loads(line)['loss'] for line in (run / 'metrics.jsonl').read_text().splitlines()]


def _distance(a, b):
  return optax.tree.norm(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b))


@pytest.mark.parametrize('reader', ['files', 'memory'])
def test_two_processes_of_two_devices_give_the_weights_of_one_device(folder, reader):
  run, read = f'two_{reader}', f'--config.data.reader={reader}'
  outputs = _train_on_two_processes(folder, run, read)
  finish(_train(folder, f'one_{reader}', read))
  assert '3 images, 4 device(s), from step 0' in outputs[0][0]
  assert 'step' not in outputs[1][0]
  one, two = folder / f'one_{reader}', folder / run
  assert sorted(p.name for p in (two / 'checkpoints').iterdir()) == ['2', '4']
  # Equal but for rounding, and for the kinks of bilinear sampling; see test_step.py.
  difference = _distance(_weights(one), _weights(two))
  assert difference < 1e-3 * _distance(_weights(one), create_train_state(_config()).params)
  assert _losses(two) == pytest.approx(_losses(one), rel=1e-5)
  if reader == 'memory':
    return
  # Continued by two processes, the run is the same bit for bit.
  shutil.copytree(two, folder / 'continued')
  shutil.rmtree(folder / 'continued' / 'checkpoints' / '4')
  outputs = _train_on_two_processes(folder, 'continued', read)
  assert 'from step 2' in outputs[0][0]
  jax.tree.map(np.testing.assert_array_equal, _weights(folder / 'continued'), _weights(two))


def test_an_error_of_process_0_ends_both(folder):
  outputs = _train_on_two_processes(folder, 'failed', '--config.init_from=nowhere', succeeds=False)
  assert 'train.py: nowhere: neither published weights' in outputs[0][1]


def test_processes_with_other_images_are_rejected(folder):
  (folder / 'fewer').mkdir()
  shutil.copy(folder / 'images' / '0.png', folder / 'fewer')
  processes = _start_two_processes(folder, 'differing', of_the_second=['--config.data.train.clean=fewer'])
  for process in processes:
    _, errors = finish(process, succeeds=False)
    assert 'the training data differs between processes' in errors or 'another task died' in errors


def test_sigterm_to_one_process_saves_and_ends_both(folder):
  processes = _start_two_processes(folder, 'stopped', '--config.steps=100000')
  for line in processes[0].stdout:
    if line.startswith('step '):
      break
  processes[1].send_signal(signal.SIGTERM)
  (output, _), _ = (finish(process) for process in processes)
  saved = sorted(int(p.name) for p in (folder / 'stopped' / 'checkpoints').iterdir())
  assert f'stopped at step {saved[-1]}, which is saved' in output


@pytest.mark.parametrize('cluster', ['2', '2/2@localhost:1', '0/2@localhost', 'nonsense'])
def test_a_cluster_that_cannot_be_is_rejected(cluster):
  with pytest.raises(
    ValueError, match=r"--distributed=.* is not valid; pass 'auto', or INDEX/COUNT@HOST:PORT"
  ):
    distributed.initialize(cluster)
