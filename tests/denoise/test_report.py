"""What the command shows while it works."""

import re
import sys

import pytest

from sadnet_jax.denoise.report import Report
from sadnet_jax.denoise.targets import find_targets, sizes_by_header
from tests.support.denoise_command import picture, run

pytestmark = pytest.mark.usefixtures('stand_in_network')


class _Terminal:
  """A text file that is a terminal."""

  def __init__(self):
    self.text = ''

  def write(self, text):
    self.text += text

  def flush(self):
    pass

  def isatty(self):
    return True


def test_a_terminal_shows_a_progress_bar(folder, weights, monkeypatch, capsys):
  picture(folder / 'in/a.png', size=(40, 40))
  picture(folder / 'in/b.png', size=(40, 20))
  (folder / 'in/c.png').write_text('nothing')
  terminal = _Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  arguments = ['in', '-o', 'out', '--model', weights, '--tile', '24', '--overlap', '8']
  status, _ = run(*arguments, capsys=capsys)
  assert status == 1
  parts = terminal.text.replace('\r', '\n').splitlines()
  shown = [part for part in parts if 'megapixels' in part]
  assert '0%|' in shown[0]
  assert ' 0.0 of 0.0 megapixels, ' in shown[0]
  assert any('a.png ' in part for part in shown)
  assert '100%|' in shown[-1]
  assert any(part.startswith('in/a.png -> out/a.png  40x40, ') for part in parts)
  assert any(part.startswith('sadnet-denoise: in/c.png: ') for part in parts)


def test_progress_is_by_pixels(folder, monkeypatch):
  picture(folder / 'a.png', size=(1000, 1000))
  picture(folder / 'b.png', size=(500, 2000))
  (folder / 'c.png').write_text('nothing')
  terminal = _Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  targets = find_targets(['a.png', 'b.png', 'c.png'], 'out')

  def shown():
    # Naming a picture redraws the bar, which is otherwise redrawn every 0.1 s at most.
    report.start(targets[1])
    return re.findall(r'[\d.]+ of [\d.]+ megapixels', terminal.text)[-1]

  sizes = sizes_by_header(targets)
  with Report(targets, sizes, quiet=False) as report:
    # The third counts as much as the mean of the others, because its size is unknown.
    assert shown() == '0.0 of 3.0 megapixels'
    report.advance(targets[0], 1, 5)
    assert shown() == '0.2 of 3.0 megapixels'
    report.finish(targets[0], width=1000, height=1000, seconds=1)
    assert shown() == '1.0 of 3.0 megapixels'
    # The picture has another size than its header said.
    report.set_size(targets[1], 1000, 2000)
    assert shown() == '1.0 of 4.0 megapixels'
    report.fail(targets[1], 'b.png: got this')
    assert shown() == '3.0 of 4.0 megapixels'
  assert report.failed == 1


def test_quiet_shows_no_progress_bar(folder, monkeypatch):
  picture(folder / 'a.png', size=(40, 50))
  terminal = _Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  targets = find_targets(['a.png'], 'out')
  with Report(targets, sizes_by_header(targets), quiet=True) as report:
    report.start(targets[0])
    report.finish(targets[0], width=50, height=40, seconds=1)
  assert terminal.text == ''


def test_lines_say_how_many_are_done_and_how_long_the_others_take(folder, monkeypatch, capsys):
  for name in 'abcd':
    picture(folder / f'{name}.png', size=(10, 10))
  targets = find_targets([f'{name}.png' for name in 'abcd'], 'out')
  now = 0.0
  monkeypatch.setattr('time.monotonic', lambda: now)
  report = Report(targets, sizes_by_header(targets), quiet=False, skipped=2)
  now = 300.0
  report.finish(targets[0], width=10, height=10, seconds=300)
  now = 7200.0
  report.fail(targets[1], 'b.png: got this')
  report.skip(targets[2])
  report.finish(targets[3], width=10, height=10, seconds=5)
  report.summarize()
  assert capsys.readouterr().err.splitlines() == [
    'a.png -> out/a.png  10x10, 5 min  (1 of 4, 15 min left)',
    'sadnet-denoise: b.png: got this',
    'd.png -> out/d.png  10x10, 5.0 s  (3 of 3)',
    'sadnet-denoise: 2 of 6 pictures denoised in 2 h 00 min, 1 failed, 3 skipped because their output exists',
  ]
