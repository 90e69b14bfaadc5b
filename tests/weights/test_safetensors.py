"""Weights in one file."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import default
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights.loading import load_params
from sadnet_jax.weights.safetensors import (
  averaged,
  load_weights,
  load_with_model,
  params_hash,
  save_weights,
  stored_dtype,
)
from tests.support.command import ROOT, finish, start
from tests.support.logged_runs import save_checkpoint, small_config
from tests.support.small_networks import SMALL, apply, image, random_variables
from tools import export_weights

MODEL = SADNet(**SMALL)
ABOUT = {'model': SMALL, 'step': 7, 'about': {'data': 'none'}}


@pytest.fixture
def params():
  return random_variables(MODEL)['params']


def _assert_equal(ours, theirs, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **{'rtol': 0, **tolerance}), ours, theirs)


def test_weights_come_back(params, tmp_path):
  save_weights(tmp_path / 'a.safetensors', params, **ABOUT)
  loaded, metadata = load_weights(tmp_path / 'a.safetensors', MODEL)
  _assert_equal(loaded, params)
  assert metadata == {
    'sadnet_jax': '1',
    'model': '{"width": 8, "offset_width": 8}',
    'step': '7',
    'data': 'none',
  }
  np.testing.assert_array_equal(
    apply(MODEL, {'params': loaded}, image()), apply(MODEL, {'params': params}, image())
  )


def test_weights_may_have_any_memory_layout(params, tmp_path):
  turned = jax.tree.map(lambda leaf: np.asarray(leaf.T.copy()).T, params)
  assert not turned['out']['kernel'].flags.c_contiguous
  save_weights(tmp_path / 'a.safetensors', turned, **ABOUT)
  _assert_equal(load_weights(tmp_path / 'a.safetensors', MODEL)[0], params)


def test_half_precision_is_half_the_size(params, tmp_path):
  save_weights(tmp_path / 'a.safetensors', params, **ABOUT)
  save_weights(tmp_path / 'b.safetensors', params, **ABOUT, dtype='float16')
  loaded, _ = load_weights(tmp_path / 'b.safetensors', MODEL)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype('float32')}
  _assert_equal(loaded, params, rtol=2**-11, atol=1e-7)
  sizes = [(tmp_path / f'{name}.safetensors').stat().st_size for name in 'ab']
  assert sizes[1] < 0.6 * sizes[0]
  params['out']['bias'] = np.full(3, 1e6, np.float32)
  with (
    np.errstate(over='ignore'),
    pytest.raises(ValueError, match='out/bias has values that are not finite in float16'),
  ):
    save_weights(tmp_path / 'b.safetensors', params, **ABOUT, dtype='float16')
  # The existing file stays.
  _assert_equal(load_weights(tmp_path / 'b.safetensors', MODEL)[0], loaded)


def test_another_network_is_refused_by_tensor(params, tmp_path):
  save_weights(tmp_path / 'a.safetensors', params, **ABOUT)
  with pytest.raises(ValueError, match=r"unexpected tensors \['context/.*missing \[\]"):
    load_weights(tmp_path / 'a.safetensors', SADNet(**SMALL, use_context=False))
  with pytest.raises(ValueError, match=r'out/kernel is \(3, 3, 8, 3\) instead of \(3, 3, 8, 1\)'):
    load_weights(tmp_path / 'a.safetensors', SADNet(**SMALL, channels=1))


def test_other_files_are_refused(params, tmp_path):
  path = tmp_path / 'a.safetensors'
  with pytest.raises(ValueError, match=r'a\.safetensors: not a complete \.safetensors file'):
    load_weights(path, MODEL)
  save_weights(path, params, **ABOUT)
  arrays = load_file(path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match=r'not a complete \.safetensors file'):
    load_weights(path, MODEL)
  save_file(arrays, path)
  with pytest.raises(ValueError, match=r'not weights of sadnet_jax: its metadata {} lack'):
    load_weights(path, MODEL)
  with pytest.raises(ValueError, match=r"the extension must be \.safetensors, not '\.npz'"):
    save_weights(tmp_path / 'a.npz', params, **ABOUT)
  for about, match in [({'step': '8'}, 'about: step is reserved'), ({'n': 8}, 'about: values must be text')]:
    with pytest.raises(ValueError, match=match):
      save_weights(path, params, model=SMALL, step=7, about=about)
  with pytest.raises(ValueError, match="dtype: 'int8' is not supported; use float32 or float16"):
    save_weights(path, params, **ABOUT, dtype='int8')


FIELDS = default.get_config().model.to_dict() | SMALL


def test_a_file_describes_its_network(params, tmp_path):
  path = tmp_path / 'a.safetensors'
  for changes in ({}, {'channels': 1, 'dilations': (1, 2, 4, 8), 'dtype': 'bfloat16'}):
    wanted = SADNet(**{**SMALL, **changes})
    params = random_variables(wanted)['params']
    save_weights(path, params, model=FIELDS | changes, step=7, about={'data': 'none'}, dtype='float16')
    model, loaded, metadata = load_with_model(path)
    assert (model.channels, model.width, model.dilations) == (wanted.channels, 8, tuple(wanted.dilations))
    assert model.dtype == changes.get('dtype', 'float32')
    _assert_equal(loaded, params, rtol=2**-11, atol=1e-7)
    assert (metadata['step'], metadata['data']) == ('7', 'none')
    assert stored_dtype(path) == 'float16'


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'width': '8'}, r"model\.width must be of type int, at most 1048576, not '8'"),
    ({'width': True}, r'model\.width must be of type int, at most 1048576, not True'),
    ({'width': 8 * 10**30}, r'model\.width must be of type int, at most 1048576, not 80{30}'),
    ({'width': 12}, r'SADNet\.width must be a multiple of deformable_groups = 8, not 12'),
    ({'use_rsab': 1}, r'model\.use_rsab must be of type bool, not 1'),
    ({'rsab_order': 'last'}, r'SADNet\.rsab_order must be one of'),
    ({'rsab_order': ['last']}, r"model\.rsab_order must be of type str, not \['last'\]"),
    ({'dilations': 3}, r'model\.dilations must be a list of integers, not 3'),
    ({'dilations': [1, 2.0]}, r'model\.dilations must be a list of integers, not \[1, 2\.0\]'),
    (
      {'dilations': [10**30]},
      r'SADNet\.dilations must be one or more rates from 1 to 1048576, not \(10{30},\)',
    ),
    ({'dtype': None}, r"model\.dtype must be 'float32' or 'bfloat16', not None"),
    ({'depth': 3}, r"model must have exactly the fields of SADNet: missing \[\], unknown \['depth'\]"),
  ],
)
def test_invalid_fields_are_refused(params, tmp_path, changes, match):
  path = tmp_path / 'a.safetensors'
  save_weights(path, params, model=FIELDS | changes, step=7, about={})
  with pytest.raises(ValueError, match=rf'a\.safetensors: its metadata do not describe a network \({match}'):
    load_with_model(path)


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'width': 8192}, 'width is 8192; weights may have up to 4096'),
    ({'dilations': [1] * 65}, r'65 dilations of up to 1; weights may have up to 64, each at most 1024'),
    ({'dilations': [1, 2, 3, 1025]}, r'4 dilations of up to 1025; weights may have'),
  ],
)
def test_huge_networks_are_refused(params, tmp_path, changes, match):
  path = tmp_path / 'a.safetensors'
  save_weights(path, params, model=FIELDS | changes, step=7, about={})
  with pytest.raises(ValueError, match=rf'its metadata do not describe a network \({match}'):
    load_with_model(path)


@pytest.mark.parametrize(
  ('model', 'match'),
  [
    (
      json.dumps(SMALL),
      r'its metadata do not describe a network \(model must have exactly the fields of SADNet: missing',
    ),
    ('{', r'"model" in its metadata is not JSON'),
    ('[' * 100_000, r'"model" in its metadata is not JSON'),
    ('[3]', r'"model" in its metadata is .\[3\]., not the fields of a network'),
  ],
)
def test_metadata_without_a_network_are_refused(params, tmp_path, model, match):
  path = tmp_path / 'a.safetensors'
  save_weights(path, params, **ABOUT)
  save_file(load_file(path), path, {'sadnet_jax': '1', 'step': '7', 'model': model})
  with pytest.raises(ValueError, match=rf'a\.safetensors: {match}'):
    load_with_model(path)


def test_tensors_of_other_dtypes_are_refused(params, tmp_path):
  path = tmp_path / 'a.safetensors'
  save_weights(path, params, **ABOUT)
  arrays = load_file(path)
  arrays['out/bias'] = arrays['out/bias'].astype(np.float64)
  save_file(arrays, path, {'sadnet_jax': '1', 'step': '7', 'model': '{}'})
  with pytest.raises(
    ValueError, match=r"a\.safetensors: all tensors must be .* but they are \['float32', 'float64'\]"
  ):
    stored_dtype(path)
  save_file(arrays, path, {'sadnet_jax': '1', 'step': 'last', 'model': '{}'})
  with pytest.raises(ValueError, match=r'not weights of sadnet_jax: its metadata'):
    load_with_model(path)


def test_a_file_loads_for_a_config(params, tmp_path):
  config = default.get_config()
  config.model.update(SMALL)
  path = tmp_path / 'a.safetensors'
  save_weights(path, params, model=config.model.to_dict(), step=7, about={})
  step, restored = load_params(path, config.model.to_dict())
  assert step == 7
  _assert_equal(restored, params)
  # The same tensors, sampled elsewhere.
  config.model.dilations = (1, 2, 4, 8)
  with pytest.raises(ValueError, match=r'another config: model\.dilations: checkpoint \[1, 2, 3, 4\]'):
    load_params(path, config.model.to_dict())


def test_exported_weights_are_those_of_the_checkpoint(params, tmp_path):
  flags = [f'--config={ROOT}/configs/color.py:50', '--config.model.width=8', '--config.model.offset_width=8']
  config = default.get_config()
  config.model.update(SMALL)
  save_weights(tmp_path / 'a.safetensors', params, model=config.model.to_dict(), step=7, about={})
  export = ['-m', 'tools.export_weights', *flags]
  export += [f'--checkpoint={tmp_path}/a.safetensors', f'--output={tmp_path}/b.safetensors']
  output, _ = finish(start(*export, '--about=For a test.'))
  assert output.startswith(f'{tmp_path}/b.safetensors: 1.')
  loaded, metadata = load_weights(tmp_path / 'b.safetensors', MODEL)
  _assert_equal(loaded, params)
  assert metadata['about'] == 'For a test.'
  _, errors = finish(start(*export), succeeds=False)
  assert 'b.safetensors exists; choose another name or pass --overwrite' in errors


def test_a_run_is_exported_as_of_its_own_noise_alone(params, tmp_path):
  save_checkpoint(tmp_path / 'run', params, small_config('25'), 7)
  export = ['-m', 'tools.export_weights', f'--checkpoint={tmp_path}/run']
  export += ['--about=From https://host/a.pth?X-Signature=5ec']
  network = ['--config.model.width=8', '--config.model.offset_width=8']
  of_25, of_50 = (
    start(
      *export,
      f'--output={tmp_path}/{sigma}.safetensors',
      f'--config={ROOT}/configs/color.py:{sigma}',
      *network,
    )
    for sigma in (25, 50)
  )
  _, errors = finish(of_50, succeeds=False)
  assert 'noise.sigma_255: checkpoint 25.0, config 50.0' in errors
  finish(of_25)
  loaded, metadata = load_weights(tmp_path / '25.safetensors', MODEL)
  assert not (tmp_path / '50.safetensors').exists()
  _assert_equal(loaded, params)
  assert (metadata['step'], metadata['config']) == ('7', 'configs/color.py:25')
  assert metadata['about'] == 'From https://host/a.pth'


def test_the_average_of_weights_is_by_their_shares(params):
  trees = [params, *(random_variables(MODEL, seed=seed)['params'] for seed in (1, 2))]
  mean = averaged(trees, [1, 2, 2])
  wanted = jax.tree.map(lambda a, b, c: 0.2 * a + 0.4 * b + 0.4 * c, *trees)
  _assert_equal(mean, wanted, rtol=1e-5, atol=1e-7)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(mean)} == {'float32'}
  _assert_equal(averaged([params], [3]), params)


def test_several_runs_are_exported_as_their_average(params, tmp_path):
  others = random_variables(MODEL, seed=1)['params']
  for name, tree, step in (('first', params, 7), ('second', others, 9)):
    save_checkpoint(tmp_path / name, tree, small_config('50'), step)
  export = ['-m', 'tools.export_weights', f'--config={ROOT}/configs/color.py:50']
  export += ['--config.model.width=8', '--config.model.offset_width=8']
  export += [f'--checkpoint={tmp_path}/first,{tmp_path}/second']
  equal = start(*export, f'--output={tmp_path}/equal.safetensors')
  three = start(*export, f'--output={tmp_path}/three.safetensors', '--shares=3,1')
  for run, name, shares in ((equal, 'equal', (1, 1)), (three, 'three', (3, 1))):
    finish(run)
    loaded, metadata = load_weights(tmp_path / f'{name}.safetensors', MODEL)
    _assert_equal(loaded, averaged([params, others], shares))
    assert metadata['step'] == '9'
    expected = f'{shares[0]} * {params_hash(params)} + 1 * {params_hash(others)}'
    assert metadata['average_of'] == expected


@pytest.mark.parametrize(
  ('checkpoints', 'shares', 'message'),
  [
    ('', [], "--checkpoint: '' has an empty name"),
    ('a,', [], "--checkpoint: 'a,' has an empty name"),
    ('a,b', ['1'], '--shares: 2 checkpoint(s) need as many numbers above 0, not [1.0]'),
    ('a', ['1', '2'], '--shares: 1 checkpoint(s) need as many numbers above 0, not [1.0, 2.0]'),
    ('a,b', ['1', '0'], 'not [1.0, 0.0]'),
    ('a,b', ['1', 'inf'], 'not [1.0, inf]'),
    ('a,b', ['1', 'nan'], 'not [1.0, nan]'),
    ('a,b', ['1', 'x'], '--shares=1,x is not a list of numbers'),
  ],
)
def test_shares_that_do_not_fit_are_refused_before_anything_is_read(checkpoints, shares, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    export_weights.parse_shares(checkpoints.split(',') if checkpoints else [], shares)
