"""The denoiser as one StableHLO file: what is read back computes what the network does."""

import re

import jax
from jax import export
import numpy as np
import pytest

from sadnet_jax.denoise.export import ExportedDenoiser, export_denoiser, load_denoiser, main, save_denoiser
from sadnet_jax.nn.sadnet import SADNet, pad_to_multiple
from sadnet_jax.weights.safetensors import save_weights
from tests.support.command import finish, start
from tests.support.small_networks import SMALL, apply, image, random_variables

MODEL = SADNet(**SMALL)
VARIABLES = random_variables(MODEL)
ALL_FIELDS = {
  'channels': 3,
  'width': 8,
  'offset_width': 8,
  'deformable_groups': 8,
  'dilations': [1, 2, 3, 4],
  'use_rsab': True,
  'use_offset_transfer': True,
  'use_context': True,
  'rsab_order': 'deform_first',
  'last_kernel': 3,
  'offset_init': 'zeros',
  'dtype': 'float32',
}
# What whoever has no more than the file and JAX would write; compiled quickly.
ELSEWHERE = """
import sys
import jax, numpy as np
exported = jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))
quickly = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
denoise = jax.jit(exported.call, compiler_options=quickly)
images = np.load(sys.argv[2])
np.savez(sys.argv[3], **{name: denoise(images[name]) for name in images})
assert not {name.split('.')[0] for name in sys.modules} & {'sadnet_jax', 'flax'}
print(exported.platforms, exported.has_vjp())
"""


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp('stablehlo') / 'any_size.stablehlo'
  save_denoiser(path, export_denoiser(MODEL, VARIABLES['params']))
  return path


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'a.safetensors'
  save_weights(path, VARIABLES['params'], model=ALL_FIELDS, step=7, about={})
  return path


def _assert_close(ours, theirs):
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6)


def test_a_file_is_all_that_another_process_needs(path, tmp_path):
  sizes = [(1, 8, 8), (2, 16, 40), (1, 64, 48), (3, 31, 17)]
  images = {str(i): image(i, batch=n, size=size) for i, (n, *size) in enumerate(sizes)}
  np.savez(tmp_path / 'in.npz', **images)
  command = ['-I', '-c', ELSEWHERE, path, tmp_path / 'in.npz', tmp_path / 'out.npz']
  output, _ = finish(start(*command, cwd=tmp_path))
  assert output.strip() == "('cpu', 'cuda') False"
  denoised = np.load(tmp_path / 'out.npz')
  for name, noisy in images.items():
    assert denoised[name].shape == noisy.shape
    _assert_close(denoised[name], apply(MODEL, VARIABLES, noisy))
    assert np.abs(denoised[name] - noisy).max() > 0.1


def test_loaded_denoiser_is_the_network(path):
  denoise = load_denoiser(path)
  assert (denoise.size, denoise.channels, denoise.platforms) == (None, 3, ('cpu', 'cuda'))
  for batch, *size in [(1, 31, 17), (1, 26, 20), (2, 1, 1)]:
    noisy = image(batch=batch, size=size)
    _assert_close(denoise(noisy), apply(MODEL, VARIABLES, noisy))
  # The first two are padded to one size.
  assert denoise._call._cache_size() == 2


@pytest.mark.parametrize('size', [1, 2, 3, 7, 8, 9, 15, 31])
def test_a_symbolic_size_is_padded_as_a_static_one(size):
  x = image(size=(size, 2))
  shape = export.symbolic_shape('1, height, 2, 3')
  padded = export.export(jax.jit(lambda x: pad_to_multiple(x, 8)))(jax.ShapeDtypeStruct(shape, np.float32))
  np.testing.assert_array_equal(padded.call(x), pad_to_multiple(x, 8))


@pytest.mark.parametrize(
  'fields',
  [
    {'channels': 1, 'rsab_order': 'deform_last', 'last_kernel': 1, 'dtype': jax.numpy.bfloat16},
    {'use_rsab': False},
  ],
)
def test_other_networks(fields):
  model = SADNet(**SMALL, **fields)
  variables = random_variables(model)
  denoise = ExportedDenoiser(export_denoiser(model, variables['params'], platforms=['cpu']))
  assert denoise.platforms == ('cpu',)
  noisy = image(size=(9, 24), channels=model.channels)
  tolerance = 0.05 if model.dtype else 3e-6
  np.testing.assert_allclose(denoise(noisy), apply(model, variables, noisy), rtol=0, atol=tolerance)


def test_one_size(tmp_path):
  exported = export_denoiser(MODEL, VARIABLES['params'], size=(13, 20), platforms=('cuda', 'cpu'))
  save_denoiser(tmp_path / 'a.stablehlo', exported)
  denoise = load_denoiser(tmp_path / 'a.stablehlo')
  assert (denoise.size, denoise.platforms) == ((13, 20), ('cuda', 'cpu'))
  noisy = image(batch=3, size=(13, 20))
  _assert_close(denoise(noisy), apply(MODEL, VARIABLES, noisy))
  with pytest.raises(ValueError, match=r'got float32 \(1, 20, 13, 3\), want float32 \[N, 13, 20, 3\]'):
    denoise(image(size=(20, 13)))


def test_memory_holds_one_block_of_samples_at_a_time():
  """The samples of a whole image, nine times its features, would be most of the memory."""
  model = SADNet(width=64, offset_width=8, use_context=False, deformable_groups=1)
  params = random_variables(model)['params']
  noisy = jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32)
  quickly = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  needs = [
    jax.jit(f, compiler_options=quickly).lower(noisy).compile().memory_analysis().temp_size_in_bytes
    for f in (export_denoiser(model, params).call, lambda x: model.apply({'params': params}, x))
  ]
  samples = 9 * 64 * 256 * 256 * 4
  assert needs[0] < needs[1] + samples / 10


def test_each_platform_has_its_blocks():
  """A block is 2**21 bytes of samples or more on a CPU, and 2**25 or more on an accelerator."""
  text = {
    platform: export_denoiser(MODEL, VARIABLES['params'], platforms=[platform]).mlir_module()
    for platform in ('cpu', 'cuda')
  }
  # 9 taps of 8 channels, 4 bytes each: 288 bytes for a pixel of the finest scale.
  pixels = {'cpu': 8192, 'cuda': 131072}
  for platform, count in pixels.items():
    assert {p for p in pixels.values() if f'tensor<{p}x8xf32>' in text[platform]} == {count}


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'size': (0, 8)}, r'size: got \(0, 8\), want \(height, width\) in pixels, each at least 1'),
    ({'size': (8, 8.5)}, r'size: got \(8, 8\.5\), want'),
    ({'size': 8}, 'size: got 8, want'),
    ({'platforms': ()}, r'platforms: got \(\), want one or more of'),
    ({'platforms': ('cpu', 'cpu')}, r"platforms: got \('cpu', 'cpu'\), want .* each once"),
    ({'platforms': ('gpu',)}, r"got \('gpu',\), want one or more of \('cpu', 'cuda', 'rocm', 'tpu'\)"),
  ],
)
def test_options_out_of_range(options, match):
  with pytest.raises(ValueError, match=match):
    export_denoiser(MODEL, VARIABLES['params'], **options)


def test_images_of_another_kind(path):
  denoise = load_denoiser(path)
  for noisy in (
    image().astype(np.float64),
    image(channels=1),
    image()[0],
    image()[:0],
    image()[:, :0],
  ):
    with pytest.raises(ValueError, match=r'noisy: got \w+ \(.*\), want float32 \[N, H, W, 3\]'):
      denoise(noisy)


def test_more_pixels_than_have_a_number(path):
  exported = export.deserialize(bytearray(path.read_bytes()))
  # 8 groups * 10 * (width + 2) rows to sample from, 2**31 of them or more.
  noisy = jax.ShapeDtypeStruct((1, 8, 27_000_000, 3), np.float32)
  with pytest.raises(ValueError, match='refining shapes'):
    jax.jit(exported.call).lower(noisy).compile()


def test_another_platform_is_refused():
  denoise = ExportedDenoiser(export_denoiser(MODEL, VARIABLES['params'], platforms=('cuda',)))
  with pytest.raises(ValueError, match=r"exported for platforms '\('cuda',\)' but it is used on"):
    denoise(image())


def test_what_is_no_artifact_is_refused(path, tmp_path):
  damaged = tmp_path / 'a.stablehlo'
  with pytest.raises(ValueError, match=r'a\.stablehlo: got no readable artifact .*No such file.* want'):
    load_denoiser(damaged)
  content = path.read_bytes()
  middle = len(content) // 2
  for bytes_ in (b'', b'PK', content[:-1000], content[:middle], content[:middle] + content[middle + 16 :]):
    damaged.write_bytes(bytes_)
    with pytest.raises(ValueError, match=r'a\.stablehlo: got no readable artifact .* want a complete'):
      load_denoiser(damaged)
  other = export.export(jax.jit(lambda x: x.sum()))(jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32))
  damaged.write_bytes(other.serialize())
  with pytest.raises(ValueError, match=r'got a function .* want a denoiser of images'):
    load_denoiser(damaged)
  with pytest.raises(ValueError, match=r"a\.bin: got the ending '\.bin', want \.stablehlo"):
    save_denoiser(tmp_path / 'a.bin', other)
  assert not (tmp_path / 'a.bin').exists()


def test_command_exports_weights(weights, tmp_path):
  output = tmp_path / 'a.stablehlo'
  command = ['-m', 'sadnet_jax.denoise.export', '--weights', weights, '--output', output]
  text, _ = finish(start(*command, '--size', '16x24', '--platforms', 'cpu'))
  assert re.fullmatch(rf'{re.escape(str(output))}: 1\.\d MB, images of 16x24, for cpu\n', text)
  noisy = image(size=(16, 24))
  _assert_close(load_denoiser(output)(noisy), apply(MODEL, VARIABLES, noisy))
  before = output.read_bytes()
  text, errors = finish(start(*command), succeeds=False)
  assert errors == f'stablehlo: --output: got {output}, which is there, want another, or pass --overwrite\n'
  assert output.read_bytes() == before
  text, _ = finish(start(*command, '--overwrite'))
  assert text.endswith(' MB, images of any size, for cpu, cuda\n')
  assert load_denoiser(output).size is None


@pytest.mark.parametrize(
  ('arguments', 'match'),
  [
    (['--size', '8'], r"--size: got '8', want HEIGHTxWIDTH in pixels, such as 480x320"),
    (['--size', '0x8'], r'size: got \(0, 8\), want'),
    (['--platforms', 'cpu,gpu'], r"platforms: got \['cpu', 'gpu'\], want"),
    (['--output', 'a.bin'], r"a\.bin: got the ending '\.bin', want \.stablehlo"),
    (['--output', 'none/a.stablehlo'], r'No such file or directory: .*none'),
    (['--weights', 'none.safetensors'], r'none\.safetensors: got no such file, want weights'),
  ],
)
def test_command_ends_with_one_line(weights, tmp_path, monkeypatch, arguments, match):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit, match=match) as raised:
    main(['--weights', str(weights), '--output', 'a.stablehlo', *arguments])
  # Python prints a text and exits with status 1.
  assert isinstance(raised.value.code, str)
  assert '\n' not in raised.value.code
  assert list(tmp_path.iterdir()) == []
