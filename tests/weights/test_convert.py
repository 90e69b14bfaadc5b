"""The command that converts weights."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open

from configs import default
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights.convert import convert, main
from sadnet_jax.weights.loading import load_params
from sadnet_jax.weights.safetensors import load_with_model, save_weights
from sadnet_jax.weights.torch_files import read_state_dict, write_state_dict
from tests.support.command import ROOT, finish, start
from tests.support.small_networks import SMALL, random_variables, to_nhwc

MODEL = SADNet(**SMALL)
COMMAND = 'python -m sadnet_jax.weights.convert'
FIELDS = {**default.get_config().model.to_dict(), **SMALL}


@pytest.fixture
def ours(tmp_path):
  """A .safetensors file of random weights."""
  path = tmp_path / 'ours.safetensors'
  save_weights(path, random_variables(MODEL)['params'], model=FIELDS, step=7, about={})
  return path


def _refused(capsys, *arguments):
  """Returns the error message of a command that must fail, without the command."""
  with pytest.raises(SystemExit) as end:
    main([str(argument) for argument in arguments])
  assert end.value.code == 1
  output, errors = capsys.readouterr()
  assert output == ''
  assert errors.startswith(f'{COMMAND}: ')
  assert errors.count('\n') == 1
  return errors.removeprefix(f'{COMMAND}: ')


@pytest.mark.parametrize('name', ['sadnet_color_c8', 'sadnet_color_c8_dataparallel'])
def test_weights_of_the_authors_denoise_as_their_network(golden, tmp_path, capsys, name):
  source, target = golden / f'{name}.pth', tmp_path / 'a.safetensors'
  main([str(source), str(target), '--about=For a test.'])
  assert capsys.readouterr().out == (
    f'{target}: 1.3 MB, float32; channels 3, width 8, offset width 8, dilations 1, 2, 3, 4\n'
  )
  model, params, metadata = load_with_model(target)
  assert json.loads(metadata.pop('model')) == {**FIELDS, 'dilations': [1, 2, 3, 4]}
  assert metadata == {
    'sadnet_jax': '1',
    'step': '0',
    'source': f'{name}.pth',
    'source_sha256': hashlib.sha256(source.read_bytes()).hexdigest(),
    'about': 'For a test.',
  }
  with np.load(golden / 'sadnet_color_c8.npz') as arrays:
    y = jax.jit(model.apply)({'params': params}, to_nhwc(arrays['x']))
    np.testing.assert_allclose(y, to_nhwc(arrays['y']), rtol=0, atol=1e-5)


def test_a_round_trip_keeps_every_bit(ours, tmp_path):
  convert(ours, tmp_path / 'a.pth')
  convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', step=7)
  convert(tmp_path / 'b.safetensors', tmp_path / 'b.pt')
  (model, params, metadata), (_, wanted, _) = (
    load_with_model(tmp_path / 'b.safetensors'),
    load_with_model(ours),
  )
  jax.tree.map(np.testing.assert_array_equal, params, wanted)
  assert model == load_with_model(ours)[0]
  assert metadata['step'] == '7'
  assert (tmp_path / 'a.pth').read_bytes() == (tmp_path / 'b.pt').read_bytes()


def test_a_converted_file_loads_for_a_config(golden, tmp_path):
  convert(golden / 'sadnet_color_c8.pth', tmp_path / 'a.safetensors')
  config = default.get_config()
  config.model.update(SMALL)
  step, _ = load_params(tmp_path / 'a.safetensors', config.model.to_dict())
  assert step == 0


def test_rates_of_dilation_are_recorded(golden, tmp_path):
  with np.load(golden / 'sadnet_gray_c8_dilation1248.npz') as arrays:
    state_dict = {name[6:]: arrays[name] for name in arrays.files if name.startswith('param:')}
    x, y = arrays['x'], arrays['y']
  write_state_dict(tmp_path / 'a.pth', state_dict)
  line = convert(tmp_path / 'a.pth', tmp_path / 'a.safetensors', dilations='1,2,4,8')
  assert line.endswith('channels 1, width 8, offset width 8, dilations 1, 2, 4, 8')
  model, params, _ = load_with_model(tmp_path / 'a.safetensors')
  got = jax.jit(model.apply)({'params': params}, to_nhwc(x))
  np.testing.assert_allclose(got, to_nhwc(y), rtol=0, atol=1e-5)
  assert 'dilations 1, 2, 4, 8' in convert(tmp_path / 'a.safetensors', tmp_path / 'b.pth')


def test_half_precision_both_ways(ours, tmp_path):
  convert(ours, tmp_path / 'a.pth', dtype='float16')
  state_dict = read_state_dict(tmp_path / 'a.pth')
  assert {array.dtype for array in state_dict.values()} == {np.dtype('float16')}
  convert(tmp_path / 'a.pth', tmp_path / 'a.safetensors', dtype='float16')
  with safe_open(tmp_path / 'a.safetensors', 'numpy') as file:
    assert file.get_tensor('out/kernel').dtype == np.float16
  params, wanted = load_with_model(tmp_path / 'a.safetensors')[1], load_with_model(ours)[1]
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16)), params, wanted)


def test_existing_files_are_replaced_only_with_overwrite(ours, tmp_path, capsys):
  target = tmp_path / 'a.pth'
  target.write_text('kept')
  assert _refused(capsys, ours, target) == (f'{target} exists; choose another name or pass --overwrite\n')
  assert target.read_text() == 'kept'
  main([str(ours), str(target), '--overwrite'])
  assert len(read_state_dict(target)) == 96


@pytest.mark.parametrize(
  ('arguments', 'match'),
  [
    (
      ['a.pth', 'b.pth'],
      'cannot convert a.pth to b.pth; one must be a .pth or .pt file and the other a .safetensors file',
    ),
    (['a.safetensors', 'b.safetensors'], 'cannot convert a.safetensors to b.safetensors; one'),
    (['a.npz', 'b.safetensors'], 'cannot convert a.npz to b.safetensors; one'),
    (['a.pth', 'b'], 'cannot convert a.pth to b; one'),
    (['a.pth', 'no/b.safetensors'], 'no/b.safetensors: the folder does not exist'),
    (['a.pth', 'b.safetensors'], 'a.pth: cannot be read ([Errno 2] No such file'),
    (['no.safetensors', 'b.pth'], 'no.safetensors: not a complete .safetensors file'),
    (
      ['ours.safetensors', 'b.pth', '--dilations=1,2'],
      'b.pth cannot record --dilations; omit it',
    ),
    (['ours.safetensors', 'b.pth', '--step=1', '--about=x'], 'b.pth cannot record --step, --about; omit it'),
    (['good.pth', 'b.safetensors', '--step=-1'], '--step: -1 is negative'),
    (
      ['good.pth', 'b.safetensors', '--dilations=1,x'],
      '--dilations: 1,x is not a list of whole numbers such as 1,2,4,8',
    ),
    (
      ['good.pth', 'b.safetensors', '--dilations=1,2'],
      'good.pth: dilations: 2 rates (1, 2) given, but the context block in the state dict has 4',
    ),
    (
      ['good.pth', 'b.safetensors', '--dilations=1,2,3,0'],
      'good.pth: SADNet.dilations must be',
    ),
    # Such a file could not be loaded.
    (
      ['good.pth', 'b.safetensors', '--dilations=1,2,3,1025'],
      'good.pth: 4 dilations of up to 1025; weights may have up to 64, each at most 1024',
    ),
    (['cut.pth', 'b.safetensors'], 'cut.pth: cannot be read ('),
    (['less.pth', 'b.safetensors'], 'less.pth: the state dict does not fit this SADNet'),
    (
      ['large.pth', 'b.safetensors', '--dtype=float16'],
      'out/bias has values that are not finite in float16',
    ),
    (['large.pth', 'b.safetensors'], 'out/bias has values that are not finite in float32'),
  ],
)
def test_errors_are_one_line_and_nothing_is_written(ours, tmp_path, monkeypatch, capsys, arguments, match):
  monkeypatch.chdir(tmp_path)
  convert(ours, tmp_path / 'good.pth')
  (tmp_path / 'cut.pth').write_bytes((tmp_path / 'good.pth').read_bytes()[:-100])
  state_dict = read_state_dict(tmp_path / 'good.pth')
  write_state_dict(tmp_path / 'large.pth', {**state_dict, 'out.bias': np.full(3, 1e300)})
  del state_dict['up1.bias']
  write_state_dict(tmp_path / 'less.pth', state_dict)
  before = sorted(tmp_path.iterdir())
  assert match in _refused(capsys, *arguments)
  assert sorted(tmp_path.iterdir()) == before


def test_networks_that_the_authors_code_lacks_are_not_converted(tmp_path, capsys):
  model = SADNet(**SMALL, use_rsab=False)
  source = tmp_path / 'a.safetensors'
  fields = {**FIELDS, 'use_rsab': False}
  save_weights(source, random_variables(model)['params'], model=fields, step=0, about={})
  assert _refused(capsys, source, tmp_path / 'b.pth') == (
    f"{source}: the authors' code has no such network: use_rsab is False, only True is supported\n"
  )
  assert not (tmp_path / 'b.pth').exists()


def test_weights_too_large_for_half_precision_are_not_converted(tmp_path, capsys):
  params = random_variables(MODEL)['params']
  params['out']['bias'] = np.full(3, 1e6, np.float32)
  save_weights(tmp_path / 'a.safetensors', params, model=FIELDS, step=0, about={})
  errors = _refused(capsys, tmp_path / 'a.safetensors', tmp_path / 'b.pth', '--dtype=float16')
  assert 'out.bias has values that are not finite in float16' in errors
  assert not (tmp_path / 'b.pth').exists()


def test_a_file_name_need_not_be_text(golden, tmp_path, capsysbinary):
  source = tmp_path / os.fsdecode(b'caf\xe9.pth')
  source.write_bytes((golden / 'sadnet_color_c8.pth').read_bytes())
  main([os.fspath(source), str(tmp_path / 'a.safetensors')])
  assert load_with_model(tmp_path / 'a.safetensors')[2]['source'] == 'caf?.pth'


def test_the_command_in_a_process_of_its_own(ours, tmp_path):
  module = ['-m', 'sadnet_jax.weights.convert']
  output, errors = finish(start(*module, ours, tmp_path / 'a.pth'))
  assert output.startswith(f'{tmp_path}/a.pth: 1.3 MB, float32;')
  assert errors == ''
  _, errors = finish(start(*module, ours, tmp_path / 'a.pth'), succeeds=False)
  assert errors.splitlines() == [
    f'{COMMAND}: {tmp_path}/a.pth exists; choose another name or pass --overwrite'
  ]


def test_nothing_heavy_is_imported():
  code = (
    'import sys, sadnet_jax.weights.convert; '
    "assert not {'torch', 'tensorflow', 'ml_collections', 'orbax'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
