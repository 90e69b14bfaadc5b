"""The lock, the metrics file and the progress line."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing import event_accumulator

from sadnet_jax.training import run_folder
from sadnet_jax.training.run_folder import RunLog
from sadnet_jax.training.validation import ValidationResult

METRICS = {'loss': 0.25, 'learning_rate': 1e-3}


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test sets; in seconds."""
  now = [1000.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  return now


def _lines(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_rate_and_time_left_are_over_the_steps_since_the_last_line(tmp_path, clock, capsys):
  with RunLog(tmp_path, step=0, total_steps=7300, images_per_step=8) as log:
    clock[0] += 60  # Compilation: not part of the rate.
    log.start_clock(1)
    log.add_waiting(4.95)
    clock[0] += 99 * 0.5
    log.write(100, METRICS)
    clock[0] += 200 * 2.0
    log.write(300, METRICS)
  first, second = capsys.readouterr().out.splitlines()
  assert first.startswith('step 100/7300  loss 0.250000  learning rate 1.00e-03  ')
  assert first.endswith('  16.0 images/s, 10% waiting for data  1:00:00 left')
  assert second.endswith('  4.0 images/s, 0% waiting for data  3:53:20 left')
  assert [line['images_per_second'] for line in _lines(tmp_path)] == [16, 4]
  assert [line['waiting_for_data'] for line in _lines(tmp_path)] == pytest.approx([0.1, 0])


def test_the_first_step_has_no_rate(tmp_path, clock, capsys):
  with RunLog(tmp_path, step=4, total_steps=6, images_per_step=8) as log:
    log.start_clock(5)
    log.write(5, METRICS)
  assert capsys.readouterr().out == 'step 5/6  loss 0.250000  learning rate 1.00e-03\n'
  assert _lines(tmp_path) == [{'step': 5, **METRICS}]


def test_lines_beyond_the_restored_step_and_half_lines_are_dropped(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n\0\0\n{"st')
  with RunLog(tmp_path, step=2, total_steps=6, images_per_step=8):
    assert _lines(tmp_path) == [{'step': 1}, {'step': 2}]


def test_of_a_step_whose_validation_is_repeated_only_the_validation_is_dropped(tmp_path):
  # Without loss: the step was skipped.
  kept = '{"step": 1, "psnr/a": 25.0}\n{"step": 2, "learning_rate": 0.001, "skipped_steps": 1}\n'
  (tmp_path / 'metrics.jsonl').write_text(kept + '{"step": 2, "psnr/a": 26.0}\n{"step": 2}\n')
  with RunLog(tmp_path, step=2, total_steps=6, images_per_step=8, lacks_validation=True):
    assert (tmp_path / 'metrics.jsonl').read_text() == kept


def test_a_value_that_is_not_json_is_refused(tmp_path):
  with (
    RunLog(tmp_path, step=0, total_steps=6, images_per_step=8) as log,
    pytest.raises(ValueError, match='not JSON compliant'),
  ):
    log.write(1, {**METRICS, 'loss': float('nan')})


def test_a_line_that_cannot_be_written_is_a_warning_and_the_run_continues(tmp_path, caplog):
  with RunLog(tmp_path, step=0, total_steps=6, images_per_step=8) as log:
    # Stands in for a full disk.
    (tmp_path / 'metrics.jsonl').mkdir()
    log.write(1, METRICS)
  assert 'metrics.jsonl: could not write the line of step 1 (Is a directory)' in caplog.text


def test_a_line_after_one_that_was_cut_off_is_kept(tmp_path):
  with RunLog(tmp_path, step=0, total_steps=6, images_per_step=8) as log:
    log.write(1, METRICS)
    with (tmp_path / 'metrics.jsonl').open('a') as file:
      file.write('{"step": 2, "lo')
    log.write(3, METRICS)
    log.write(4, METRICS)
  assert [line['step'] for line in run_folder.read_metrics(tmp_path)] == [1, 3, 4]


_FULL_DISK = """
import resource, signal, sys
from sadnet_jax.training.run_folder import RunLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
metrics = {'learning_rate': 1e-3, **{f'offset/{i}': 1.0 for i in range(14)}}
with RunLog(sys.argv[1], step=0, total_steps=60, images_per_step=8) as log:
  log.write(1, metrics)
  resource.setrlimit(resource.RLIMIT_FSIZE, (30, resource.RLIM_INFINITY))
  for step in range(2, 40):
    log.write(step, metrics)
  resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
  for step in range(40, 60):
    log.write(step, metrics)
"""


def test_a_full_disk_neither_ends_nor_stops_a_run_and_later_lines_are_written(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _FULL_DISK, tmp_path], capture_output=True, text=True, timeout=120, check=False
  )
  assert done.returncode == 0, done.stderr
  assert 'could not write the data of step 2 for TensorBoard' in done.stderr
  assert [line['step'] for line in run_folder.read_metrics(tmp_path)] == [1, *range(40, 60)]
  assert len(list((tmp_path / 'tensorboard').iterdir())) == 2
  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  assert [event.step for event in events.Scalars('offset/13')] == [1, *range(40, 60)]


def test_tensorboard_forgets_the_steps_that_are_repeated(tmp_path):
  for restored, steps in ((0, (1, 2, 3)), (1, (2, 4))):
    with RunLog(tmp_path, step=restored, total_steps=6, images_per_step=8) as log:
      for step in steps:
        log.write(step, {**METRICS, 'loss': restored + step / 8})
  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  assert [(event.step, event.value) for event in events.Scalars('loss')] == [(1, 0.125), (2, 1.25), (4, 1.5)]


def test_validation_is_logged_without_what_is_not_finite(tmp_path, capsys):
  results = {name: ValidationResult(20.0, score, {}) for name, score in (('a', 25.5), ('b', float('inf')))}
  with RunLog(tmp_path, step=0, total_steps=6, images_per_step=8) as log:
    log.write_validation(2, results)
  assert _lines(tmp_path) == [{'step': 2, 'psnr/a': 25.5}]
  assert 'step 2/6  a: 20.000 -> 25.500 dB' in capsys.readouterr().out


@pytest.fixture
def no_locks(monkeypatch):
  """A file system without locks."""

  def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', refuse)


# No process has this number.
DEAD = 2**22 + 1


def _marks(folder):
  return sorted(path.name for path in folder.glob('run.mark*'))


def _mark(folder, process, host=None):
  path = folder / f'run.mark.{process}.{host or socket.gethostname()}'
  path.touch()
  return path


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_file_marks_the_folder(tmp_path, monkeypatch, caplog, number):
  def refuse(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  mine = f'run.mark.{os.getpid()}.{socket.gethostname()}'
  with run_folder.open_run_folder(tmp_path):
    assert 'has no locks' in caplog.text
    with (
      pytest.raises(ValueError, match=rf'process {os.getpid()} on .* is training in this folder.* delete'),
      run_folder.open_run_folder(tmp_path),
    ):
      pass
    assert _marks(tmp_path) == [mine]
  assert _marks(tmp_path) == []


def test_marks_of_dead_processes_are_removed_also_one_of_our_number(tmp_path, no_locks):
  _mark(tmp_path, DEAD)
  mine = _mark(tmp_path, os.getpid())
  with run_folder.open_run_folder(tmp_path):
    assert _marks(tmp_path) == [mine.name]


@pytest.mark.parametrize(
  ('name', 'owner'),
  [
    ('run.mark.1.another.machine', 'process 1 on another.machine'),
    (f'run.mark.{os.getppid()}.{socket.gethostname()}', f'process {os.getppid()} on '),
    ('run.mark', 'process of unknown number on an unknown host'),
  ],
)
def test_marks_of_others_are_explained_and_stay(tmp_path, no_locks, name, owner):
  (tmp_path / name).touch()
  with (
    pytest.raises(ValueError, match=f'{owner}.*or delete .*{name} if'),
    run_folder.open_run_folder(tmp_path),
  ):
    pass
  assert _marks(tmp_path) == [name]


def test_of_two_processes_that_find_a_dead_mark_at_once_one_trains(tmp_path, no_locks, monkeypatch):
  first, second = os.getpid(), os.getppid()
  kill, refused = os.kill, []

  def start_the_second_one(process, number):
    """While the first process looks at the dead mark, the second one starts."""
    if process == DEAD and not refused:
      refused.append(None)
      with monkeypatch.context() as patch:
        patch.setattr(os, 'getpid', lambda: second)
        try:
          stack.enter_context(run_folder.open_run_folder(tmp_path))
        except ValueError as error:
          refused[0] = str(error)
    kill(process, number)

  _mark(tmp_path, DEAD)
  monkeypatch.setattr(os, 'kill', start_the_second_one)
  with contextlib.ExitStack() as stack, run_folder.open_run_folder(tmp_path):
    assert f'process {first} on' in refused[0]
    assert _marks(tmp_path) == [f'run.mark.{first}.{socket.gethostname()}']
