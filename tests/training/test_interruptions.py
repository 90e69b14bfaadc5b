"""Runs that are killed, told to stop, or find no room to write, and what is left of them."""

import json
import random
import signal
import time

import jax
import numpy as np
from PIL import Image
import pytest

from configs import demo
from sadnet_jax.weights.loading import load_params
from tests.support.command import ROOT, finish, start

STEPS = 60


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with images in ``images``, where the runs are started."""
  folder = tmp_path_factory.mktemp('runs')
  (folder / 'images').mkdir()
  for i, size in enumerate([(19, 33), (40, 24)]):
    y, x = np.mgrid[: size[0], : size[1]] / 8
    pixels = np.uint8(127.5 + 127.5 * np.stack([np.sin(x + i), np.cos(y), np.sin(x * y)], axis=-1))
    Image.fromarray(pixels).save(folder / f'images/{i}.png')
  return folder


def _train(folder, run, *changes, **variables):
  """The demo's recipe on a tiny network, which saves at every step."""
  return start(
    ROOT / 'train.py',
    f'--config={ROOT}/configs/demo.py',
    '--config.model.width=8',
    '--config.model.offset_width=8',
    '--config.data.train.clean=images',
    '--config.data.reader=memory',
    '--config.data.patch_px=16',
    '--config.batch_size=2',
    '--config.ema_decay=0.9',
    '--config.optimizer.warmup_steps=2',
    f'--config.steps={STEPS}',
    '--config.checkpoint_every=1',
    '--config.log_every=1',
    f'--workdir={run}',
    *changes,
    cwd=folder,
    **variables,
  )


def _weights(run):
  config = demo.get_config()
  config.model.width = config.model.offset_width = 8
  config.ema_decay = 0.9
  return load_params(run, config.model.to_dict())


def _wait_for_step(process, step=0):
  """Reads lines until one is of a step after ``step``."""
  for line in process.stdout:
    if line.startswith('step ') and int(line.split()[1].split('/')[0]) > step:
      return
  raise AssertionError(process.stderr.read())


def _saved(run):
  return sorted(int(p.name) for p in (run / 'checkpoints').glob('*') if p.name.isdigit())


RARELY = '--config.checkpoint_every=1000'


@pytest.fixture(scope='module')
def whole(folder):
  """The weights of a run that nothing happened to."""
  finish(_train(folder, 'whole', RARELY))
  step, weights = _weights(folder / 'whole')
  assert step == STEPS
  return weights


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_killed_at_random_moments_ends_with_the_weights_of_an_uninterrupted_one(folder):
  # Each image is used for three steps: a kill also falls in the middle of such a round.
  stream = ['--config.data.reader=files', '--config.data.crops_per_image=3']
  moments = random.Random(0)
  checkpoints = folder / 'killed' / 'checkpoints'
  caught_saving = 0
  for kill in range(2):
    process = _train(folder, 'killed', *stream)
    # Past what was saved before, so that every kill loses something and all get on.
    _wait_for_step(process, max(_saved(folder / 'killed'), default=0) + 2)
    if kill % 2:
      # In the middle of a save.
      while process.poll() is None and not any(checkpoints.glob('*.orbax-checkpoint-tmp*')):
        time.sleep(1e-4)
    else:
      time.sleep(moments.uniform(0, 0.3))
    process.kill()
    process.communicate()
    caught_saving += any(checkpoints.glob('*.orbax-checkpoint-tmp*'))
  assert 0 < max(_saved(folder / 'killed')) < STEPS
  assert caught_saving > 0
  finish(_train(folder, 'killed', *stream, RARELY))
  finish(_train(folder, 'whole_stream', *stream, RARELY))
  step, weights = _weights(folder / 'killed')
  assert step == STEPS
  _assert_equal(weights, _weights(folder / 'whole_stream')[1])
  assert not list(checkpoints.glob('*tmp*'))
  lines = (folder / 'killed' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == list(range(1, STEPS + 1))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_run_told_to_stop_saves_and_continues_later(folder, whole, number):
  name = signal.Signals(number).name
  process = _train(folder, name, RARELY)
  _wait_for_step(process)
  process.send_signal(number)
  output, _ = finish(process)
  (step,) = _saved(folder / name)
  assert step < STEPS
  assert f'stopped at step {step}, which is saved; run the same command to continue' in output
  finish(_train(folder, name, RARELY))
  _assert_equal(_weights(folder / name)[1], whole)


def test_a_full_disk_is_a_clear_error_and_the_checkpoint_before_is_good(folder, whole):
  # Stands in for a full disk: no file may grow past a size that the weights need.
  limited = (
    'import resource, runpy, signal, sys;'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN);'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));'
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
  )
  process = _train(folder, 'full')
  _wait_for_step(process, 2)
  process.send_signal(signal.SIGTERM)
  finish(process)
  before = _saved(folder / 'full')
  weights = _weights(folder / 'full')
  arguments = process.args[1:]
  # Compiled programs would not fit either.
  _, errors = finish(
    start('-c', limited, *arguments, cwd=folder, PYTHONPATH=str(ROOT), JAX_ENABLE_COMPILATION_CACHE='0'),
    succeeds=False,
  )
  assert 'the checkpoint could not be written' in errors
  assert 'earlier checkpoints are intact' in errors
  assert _saved(folder / 'full')[-1] == before[-1]
  step, after = _weights(folder / 'full')
  assert step == weights[0]
  _assert_equal(after, weights[1])
  finish(_train(folder, 'full', RARELY))
  _assert_equal(_weights(folder / 'full')[1], whole)


def test_a_second_run_in_the_same_folder_is_refused(folder):
  first = _train(folder, 'shared')
  _wait_for_step(first)
  _, errors = finish(_train(folder, 'shared'), succeeds=False)
  assert f'shared: got a folder that process {first.pid} is training in, want a folder for each run' in errors
  first.kill()
  first.communicate()
