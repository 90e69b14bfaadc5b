"""Several processes on one folder share its pictures."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from sadnet_jax.denoise.claims import claimed
from tests.support.denoise_command import all_files, picture, pixels_of, run, write_weights

# Claims an output, says so, and does what the next line tells it.
_CLAIM = """
import pathlib, sys
from sadnet_jax.denoise.claims import claimed
path = pathlib.Path(sys.argv[1])
with claimed(path) as is_ours:
  print(is_ours, flush=True)
  if (content := sys.stdin.readline().strip()):
    path.write_text(content)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def other():
  """Starts a process that claims an output; its output says whether it could."""
  started = []

  def claim(path):
    process = subprocess.Popen(
      [sys.executable, '-c', _CLAIM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    started.append(process)
    return process, process.stdout.readline().strip() == 'True'

  yield claim
  for process in started:
    process.kill()
    process.communicate()


def test_one_process_has_a_claim_until_it_ends_in_whatever_way(folder, other):
  output = folder / 'out/sub/a.png'
  process, is_theirs = other(output)
  assert is_theirs
  with claimed(output) as is_ours, claimed(folder / 'out/sub/b.png') as another_is_ours:
    assert (is_ours, another_is_ours) == (False, True)
  process.kill()
  process.wait()
  with claimed(output) as is_ours:
    assert is_ours
    assert not other(output)[1]
  assert all_files(folder) == ['out', 'out/sub']


def test_where_nothing_can_be_written_every_process_has_its_claim(folder):
  (folder / 'file').touch()
  with claimed(folder / 'file/a.png') as is_ours:
    assert is_ours


@pytest.mark.parametrize('written', [True, False])
def test_a_picture_that_another_process_works_on_comes_last(folder, other, capsys, written):
  weights = write_weights(folder / 'small.safetensors')
  for number, name in enumerate('abc'):
    picture(folder / f'in/{name}.png', seed=number)
  process, is_theirs = other(folder / 'out/a.png')
  assert is_theirs

  def finish_after_the_others():
    deadline = time.monotonic() + 120
    while not ((folder / 'out/b.png').exists() and (folder / 'out/c.png').exists()):
      if time.monotonic() > deadline:
        break
      time.sleep(0.01)
    process.communicate('theirs\n' if written else '\n')

  thread = threading.Thread(target=finish_after_the_others)
  thread.start()
  status, lines = run('in', '-o', 'out', '--model', weights, '--skip-existing', capsys=capsys)
  thread.join()
  assert status == 0
  assert [line.split('.png')[0] for line in lines[:-1]] == ['in/b', 'in/c', *([] if written else ['in/a'])]
  if written:
    assert lines[-1].endswith(', 1 skipped because their output exists')
    assert (folder / 'out/a.png').read_text() == 'theirs'
  else:
    assert pixels_of('out/a.png').dtype == np.uint8
  assert all_files(folder / 'out') == ['a.png', 'b.png', 'c.png']
