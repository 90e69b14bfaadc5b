"""Signals and closed pipes."""

import os
import signal

import pytest

from sadnet_jax.denoise import interruption
from tests.support.command import finish, start
from tests.support.denoise_command import all_files, picture, pixels_of


def test_an_interrupted_command_leaves_complete_files_only(folder, weights):
  for i in range(50):
    picture(folder / f'in/{i:02}.png', size=(64, 64))
  process = start('-m', 'sadnet_jax', 'in', '-o', 'out', '--model', weights, cwd=folder)
  lines = [process.stderr.readline()]
  process.send_signal(signal.SIGINT)
  _, rest = finish(process, succeeds=False)
  assert process.returncode == 130
  lines += rest.splitlines()
  assert lines.pop() == 'sadnet-denoise: interrupted; all written pictures are complete'
  assert all(' -> ' in line for line in lines)
  assert len(lines) < 50
  assert all_files(folder / 'out') == [f'{i:02}.png' for i in range(len(lines))]
  for path in (folder / 'out').iterdir():
    assert pixels_of(path).shape == (64, 64, 3)


def test_a_signal_waits_for_check():
  with interruption.deferred():
    interruption.check()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      interruption.check()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
  with interruption.deferred():
    interruption.check()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit, match='143'):
      interruption.check()
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  # Ignored signals stay ignored, as under nohup.
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with interruption.deferred():
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  signal.signal(signal.SIGHUP, before)


def test_a_closed_pipe_ends_the_command_quietly(folder, weights):
  for i in range(3):
    picture(folder / f'in/{i}.png')
  process = start('-m', 'sadnet_jax', 'in', '-o', 'out', '--model', weights, cwd=folder)
  process.stderr.close()
  process.stdout.close()
  assert process.wait(timeout=100) == 1
  assert all(len(path) == 5 for path in all_files(folder / 'out'))
  process = start('-m', 'sadnet_jax', '--list-models')
  process.stdout.close()
  with process.stderr:
    assert process.stderr.read() == ''
  assert process.wait(timeout=100) == 1
