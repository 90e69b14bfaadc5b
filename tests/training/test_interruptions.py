"""A run that is killed, finds no room to write and is signalled to stop, and what is left of it."""

import json
import os
import random
import signal
import time

import jax
import numpy as np
from PIL import Image
import pytest

from configs import demo
from sadnet_jax.training.distributed import StopSignal
from sadnet_jax.weights.loading import load_params
from tests.support.command import ROOT, finish, start
from tests.support.small_networks import PLAIN

# More than any of the processes takes.
STEPS = 100_000


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
    *(f'--config.model.{name}={value}' for name, value in PLAIN.items()),
    '--config.data.train.clean=images',
    '--config.data.reader=memory',
    '--config.data.patch_px=16',
    '--config.batch_size=2',
    '--config.ema_decay=0.9',
    '--config.optimizer.warmup_steps=2',
    # Does not depend on the number of steps.
    '--config.optimizer.schedule=step_halving',
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
  config.model.update(PLAIN)
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


# Saving takes most of the time of these short runs.
RARELY = '--config.checkpoint_every=1000'


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _kill(process):
  process.kill()
  process.communicate()


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(folder):
  run = folder / 'run'
  checkpoints = run / 'checkpoints'
  # At a random moment.
  process = _train(folder, 'run')
  _wait_for_step(process, 2)
  time.sleep(random.Random(0).uniform(0, 0.3))
  _kill(process)
  first = max(_saved(run))

  # On a full disk, which cannot be killed but ends: a clear error, and the checkpoint before is intact.
  _, before = _weights(run)
  # Stands in for a full disk: no file may grow past a size that the weights need.
  limited = (
    'import resource, runpy, signal, sys;'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN);'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));'
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
  )
  # Compiled programs would not fit either.
  options = {'PYTHONPATH': str(ROOT), 'JAX_ENABLE_COMPILATION_CACHE': '0'}
  _, errors = finish(start('-c', limited, *process.args[1:], cwd=folder, **options), succeeds=False)
  assert 'could not be written' in errors or 'cannot be written' in errors
  step, after = _weights(run)
  assert step == first
  _assert_equal(after, before)

  # In the middle of a save, which must not end between the look and the signal.
  def is_saving():
    return any(checkpoints.glob('*.orbax-checkpoint-tmp*'))

  def stops_while_saving():
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.01)
    return is_saving()

  process = _train(folder, 'run')
  _wait_for_step(process, first + 2)
  while not (is_saving() and stops_while_saving()):
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGCONT)
    time.sleep(1e-4)
  _kill(process)
  assert first < max(_saved(run))

  # By signals, upon which the run saves its step. Meanwhile no other process may train in the folder.
  steps = []
  for number in (signal.SIGTERM, signal.SIGINT):
    process = _train(folder, 'run', RARELY)
    _wait_for_step(process)
    if not steps:
      _, errors = finish(_train(folder, 'run', RARELY), succeeds=False)
      assert f'run: process {process.pid} is training in this folder; give another --workdir' in errors
    process.send_signal(number)
    output, _ = finish(process, succeeds=False)
    assert process.returncode == 130
    steps.append(_saved(run)[-1])
    assert f'stopped at step {steps[-1]}, which is saved; run the same command to continue' in output
  assert first < steps[0] < steps[1]

  assert not list(checkpoints.glob('*tmp*'))
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == list(range(1, steps[1] + 1))
  finish(_train(folder, 'uninterrupted', RARELY, f'--config.steps={steps[1]}', '--config.log_every=100'))
  (step, weights), (_, expected) = _weights(run), _weights(folder / 'uninterrupted')
  assert step == steps[1]
  _assert_equal(weights, expected)


def test_ignored_signals_stay_ignored():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with StopSignal() as stop:
      os.kill(os.getpid(), signal.SIGINT)
      assert not stop.received
      os.kill(os.getpid(), signal.SIGTERM)
      assert stop.received
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, before)


def test_after_one_signal_the_other_ends_the_process_too():
  before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
  with StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.received
    assert {number: signal.getsignal(number) for number in before} == before
