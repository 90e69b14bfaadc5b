"""The ONNX model, run by ONNX Runtime, computes what the network does."""

import builtins
import re

import jax
import numpy as np
import onnx
import onnxruntime
from PIL import Image
import pytest

from sadnet_jax import pretrained
from sadnet_jax.denoise.export import main
from sadnet_jax.denoise.onnx_graph import onnx_denoiser
from sadnet_jax.nn.sadnet import SADNet, pad_to_multiple
from tests.support.command import ROOT
from tests.support.small_networks import SMALL, apply, image, random_variables, to_nhwc

EXAMPLE = re.search(r'```python\n([^`]*onnxruntime[^`]*)```', (ROOT / 'docs' / 'denoise.md').read_text())[1]
# Where published weights are tried: one compilation for all.
PUBLISHED_SIZE = (39, 48)


def _session(model, params, **options):
  content = onnx_denoiser(model, params, **options).SerializeToString()
  return onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])


def _run(session, noisy):
  (denoised,) = session.run(None, {'noisy': noisy.transpose(0, 3, 1, 2)})
  return to_nhwc(denoised)


def _run_jax(model, params, noisy):
  # Images of similar size share one compiled program.
  padded = pad_to_multiple(noisy, 8)
  return apply(model, {'params': params}, padded)[:, : noisy.shape[1], : noisy.shape[2]]


def _assert_equals_jax(session, model, params, noisy):
  ours = _run(session, noisy)
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours, _run_jax(model, params, noisy), rtol=0, atol=2e-6)
  assert np.abs(ours - noisy).max() > 0.01


def test_any_size_and_batch():
  model = SADNet(**SMALL)
  params = random_variables(model)['params']
  session = _session(model, params)
  for seed, (batch, *size) in enumerate([(1, 1, 1), (1, 2, 1), (1, 3, 5), (1, 8, 8), (2, 9, 13), (2, 16, 9)]):
    _assert_equals_jax(session, model, params, image(seed, batch=batch, size=size))


@pytest.mark.parametrize(
  'fields',
  [
    {
      'channels': 1,
      'rsab_order': 'deform_last',
      'last_kernel': 1,
      'dilations': (1, 8),
      'deformable_groups': 2,
    },
    {'use_offset_transfer': False, 'use_context': False},
    {'use_rsab': False},
  ],
  ids=str,
)
def test_every_variant_of_the_network(fields):
  model = SADNet(**SMALL, **fields)
  params = random_variables(model)['params']
  noisy = image(size=(7, 8), channels=model.channels)
  _assert_equals_jax(_session(model, params), model, params, noisy)


@pytest.mark.parametrize('name', sorted(pretrained.available()))
def test_published_weights(name):
  model, params, _ = pretrained.load(name)
  noisy = image(size=PUBLISHED_SIZE, channels=model.channels)
  _assert_equals_jax(_session(model, params), model, params, noisy)


def test_the_model_says_what_it_takes():
  model = SADNet(**SMALL, dtype=jax.numpy.bfloat16)
  params = random_variables(model)['params']
  built = onnx_denoiser(model, params)
  assert [(o.domain, o.version) for o in built.opset_import] == [('', 19)]
  # Read by ONNX Runtime 1.25, and by anything else since ONNX 1.14.
  assert built.ir_version <= 9
  assert sum(node.op_type == 'DeformConv' for node in built.graph.node) == 4
  assert {t.data_type for t in built.graph.initializer} == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
  fixed = _session(model, params, size=(13, 20))
  assert [value.shape for value in (*fixed.get_inputs(), *fixed.get_outputs())] == [['batch', 3, 13, 20]] * 2
  assert _run(fixed, image(batch=2, size=(13, 20))).shape == (2, 13, 20, 3)


def test_the_example_of_the_docs_does_what_the_denoiser_does(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  main(['--weights', 'color', '--format', 'onnx', '--output', 'color.onnx'])
  assert re.fullmatch(r'color\.onnx: 17\.0 MB, images of any size, ONNX opset 19\n', capsys.readouterr().out)
  with Image.open(ROOT / 'tests' / 'crops' / 'coffee.png') as photo:
    photo.convert('RGB').crop((0, 0, *PUBLISHED_SIZE[::-1])).save('photo.jpg')
  exec(compile(EXAMPLE, 'docs/denoise.md', 'exec'), {})
  model, params, _ = pretrained.load('color')
  noisy = np.asarray(Image.open('photo.jpg'), np.float32)[None] / 255
  expected = np.clip(_run_jax(model, params, noisy)[0], 0, 1)
  np.testing.assert_allclose(np.asarray(Image.open('denoised.png')) / 255, expected, rtol=0, atol=0.51 / 255)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  def without_onnx(name, *arguments, _import=builtins.__import__):
    if name == 'onnx':
      raise ImportError("No module named 'onnx'")
    return _import(name, *arguments)

  monkeypatch.setattr(builtins, '__import__', without_onnx)
  with pytest.raises(SystemExit, match=r"needs the package onnx .*: pip install '\.\[onnx\]'"):
    main(['--weights', 'color', '--output', str(tmp_path / 'a.onnx')])
