"""The notebook runs from its first cell to its last."""

import json

import pytest

from configs import default
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights.safetensors import save_weights
from tests.support.command import ROOT, finish, start
from tests.support.small_networks import PLAIN, SMALL, random_variables

NOTEBOOK = ROOT / 'examples' / 'quickstart.ipynb'
# Added after the last cell.
CHECK = """
with_shapes = [noisy.shape, denoised.shape, with_strength(0.6, 1.0).shape]
assert with_shapes == [picture.shape] * 3 and denoised.dtype == np.uint8 and (denoised != noisy).any()
assert (with_strength(0.0, 0.0) == noisy).all() and (with_strength(1.0, 1.0) == denoised).all()
assert Image.open(buffer).width == 1000 and sorted(samplings) == [1, 2, 3, 4]
assert len(losses) == 20 and np.mean(losses[-3:]) < np.mean(losses[:3])
"""


def _cells():
  return json.loads(NOTEBOOK.read_text())['cells']


def test_no_outputs_are_committed():
  for cell in _cells():
    assert cell.get('outputs', []) == []
    assert cell.get('execution_count') is None


def test_the_cells_run(tmp_path):
  path = tmp_path / 'small.safetensors'
  model = {**default.get_config().to_dict()['model'], **SMALL}
  save_weights(path, random_variables(SADNet(**SMALL))['params'], model=model, step=1, about={})
  code = '\n'.join(''.join(cell['source']) for cell in _cells() if cell['cell_type'] == 'code')
  # With networks that compile quickly.
  for old, new in (
    ("MODEL = 'color'", f'MODEL = {str(path)!r}'),
    ('network = SADNet(width=8, offset_width=8)', f'network = SADNet(**{PLAIN})'),
  ):
    assert code.count(old) == 1
    code = code.replace(old, new)
  output, _ = finish(start('-c', code + CHECK, cwd=NOTEBOOK.parent))
  assert output.startswith('loss at the first steps ')


def test_outside_a_clone_the_notebook_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  settings, first = [''.join(cell['source']) for cell in _cells() if cell['cell_type'] == 'code'][:2]
  with pytest.raises(
    FileNotFoundError, match=rf'{tmp_path} is not in a clone .*; clone the repository and open'
  ):
    exec(settings + '\n' + first, {})
