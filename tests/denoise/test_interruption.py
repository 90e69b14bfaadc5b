"""The command when it is told to stop."""

import os
import signal

import pytest

from sadnet_jax.denoise import interruption
from tests.support.command import finish, start
from tests.support.denoise_command import all_files, picture, pixels_of


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_leaves_whole_files_only(folder, weights, number, status):
  for i in range(50):
    picture(folder / f'in/{i:02}.png', size=(64, 64))
  process = start('-m', 'sadnet_jax', 'in', '-o', 'out', '--model', weights, cwd=folder)
  first = process.stderr.readline()
  process.send_signal(number)
  _, rest = finish(process, succeeds=False)
  assert process.returncode == status
  lines = [first, *rest.splitlines()]
  ends = ['sadnet-denoise: interrupted; all written pictures are complete'] * (number == signal.SIGINT)
  assert lines[len(lines) - len(ends) :] == ends
  done = lines[: len(lines) - len(ends)]
  assert all(' -> ' in line for line in done)
  assert len(done) < 50
  assert all_files(folder / 'out') == [f'{i:02}.png' for i in range(len(done))]
  for path in (folder / 'out').iterdir():
    assert pixels_of(path).shape == (64, 64, 3)


def test_a_signal_waits_and_the_next_does_not():
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
  # What is ignored, as by nohup, stays so.
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with interruption.deferred():
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  signal.signal(signal.SIGHUP, before)


def test_a_reader_that_goes_ends_it_quietly(folder, weights):
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
