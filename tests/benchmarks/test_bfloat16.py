"""Both dtypes train alike except for rounding, and means are over the right steps."""

import json

import numpy as np
from PIL import Image
import pytest

from benchmarks import bfloat16

pytestmark = pytest.mark.usefixtures('quick_to_compile')


@pytest.fixture
def images(tmp_path):
  rng = np.random.default_rng(0)
  for i in range(2):
    Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(tmp_path / f'{i}.png')
  return tmp_path


@pytest.fixture
def tiny(monkeypatch):
  """A small network on few small patches, and means over two steps."""
  full = bfloat16.run_config

  def small(*arguments):
    config = full(*arguments)
    config.model.update(width=8, offset_width=8, use_rsab=False, use_context=False)
    config.optimizer.name = 'adam'
    config.data.patch_px = 8
    config.batch_size = 2
    return config

  monkeypatch.setattr(bfloat16, 'run_config', small)
  monkeypatch.setattr(bfloat16, 'AVERAGED_STEPS', 2)


def test_both_dtypes_train_alike(images, tiny, tmp_path, capsys):
  bfloat16.main(['--images', str(images), '--steps', '4', '--json', str(tmp_path / 'a.json')])
  results = json.loads((tmp_path / 'a.json').read_text())
  assert results['command'].endswith('--steps 4 --dtypes float32 bfloat16')
  assert [row['step'] for row in results['rows']] == [2, 4]
  for row in results['rows']:
    assert 0 < row['float32'] < 1
    assert 0 < abs(row['bfloat16'] / row['float32'] - 1) < 0.05
  assert '| step | float32 | bfloat16 | bfloat16 minus float32 |' in capsys.readouterr().out


def _steps(monkeypatch, metrics):
  """Makes each training step return one of these metrics."""
  remaining = iter(metrics)
  monkeypatch.setattr(bfloat16, 'step_from_config', lambda *_: lambda state, _: (state, next(remaining)))
  monkeypatch.setattr(bfloat16, 'create_train_state', lambda _: None)


def test_the_last_mean_is_over_the_remaining_steps(images, tiny, monkeypatch):
  _steps(monkeypatch, [{'loss': np.float32(loss), 'finite': np.True_} for loss in (1, 2, 4)])
  assert bfloat16.curve(bfloat16.run_config(images, 'float32', 3)) == [1.5, 4]


def test_divergence_is_reported_with_its_step(images, tiny, monkeypatch):
  _steps(
    monkeypatch,
    [{'loss': np.float32(1), 'finite': np.True_}, {'loss': np.float32(np.nan), 'finite': np.False_}],
  )
  with pytest.raises(ValueError, match=r'step 2: the run has diverged, loss is nan'):
    bfloat16.curve(bfloat16.run_config(images, 'float32', 4))
