"""The denoiser as one StableHLO file, which computes what the network does."""

import re

import jax
from jax import export
import numpy as np
import pytest

from sadnet_jax.denoise.export import ExportedDenoiser, export_denoiser, load_denoiser, main, save_denoiser
from sadnet_jax.nn.sadnet import SADNet, pad_to_multiple
from sadnet_jax.weights.safetensors import save_weights
from tests.support.command import finish, start
from tests.support.fast_jit import fast_jit
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
# What someone with only the file and JAX would write; compiled quickly.
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


def _compiles_quickly(make, argument):
  """An ExportedDenoiser that XLA does not optimise."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'jit', fast_jit)
    return make(argument)


def _assert_close(ours, theirs):
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6)


def test_another_process_needs_only_the_file(path, tmp_path):
  images = {str(i): image(i, batch=n, size=size) for i, (n, *size) in enumerate([(2, 16, 40), (3, 31, 17)])}
  np.savez(tmp_path / 'in.npz', **images)
  command = ['-I', '-c', ELSEWHERE, path, tmp_path / 'in.npz', tmp_path / 'out.npz']
  output, _ = finish(start(*command, cwd=tmp_path))
  assert output.strip() == "('cpu', 'cuda') False"
  denoised = np.load(tmp_path / 'out.npz')
  for name, noisy in images.items():
    assert denoised[name].shape == noisy.shape
    _assert_close(denoised[name], apply(MODEL, VARIABLES, noisy))
    assert np.abs(denoised[name] - noisy).max() > 0.1


def test_a_loaded_denoiser_is_the_network(path):
  denoise = _compiles_quickly(load_denoiser, path)
  assert (denoise.size, denoise.channels, denoise.platforms) == (None, 3, ('cpu', 'cuda'))
  for size in [(31, 17), (26, 20)]:
    noisy = image(size=size)
    _assert_close(denoise(noisy), apply(MODEL, VARIABLES, noisy))
  # Both are padded to one size.
  assert denoise.apply._cache_size() == 1


@pytest.mark.parametrize('size', [1, 2, 3, 8, 9, 31])
def test_a_symbolic_size_is_padded_as_a_static_one(size):
  x = image(size=(size, 2))
  shape = export.symbolic_shape('1, height, 2, 3')
  padded = export.export(jax.jit(lambda x: pad_to_multiple(x, 8)))(jax.ShapeDtypeStruct(shape, np.float32))
  np.testing.assert_array_equal(padded.call(x), pad_to_multiple(x, 8))


def test_a_grey_network_in_bfloat16():
  fields = {'channels': 1, 'rsab_order': 'deform_last', 'last_kernel': 1, 'dtype': jax.numpy.bfloat16}
  model = SADNet(**SMALL, **fields)
  variables = random_variables(model)
  exported = export_denoiser(model, variables['params'], platforms=['cpu'])
  denoise = _compiles_quickly(ExportedDenoiser, exported)
  assert denoise.platforms == ('cpu',)
  noisy = image(size=(9, 24), channels=1)
  np.testing.assert_allclose(denoise(noisy), apply(model, variables, noisy), rtol=0, atol=0.05)


def test_memory_holds_one_block_of_samples_at_a_time():
  """The samples of a whole image, nine times its features, would be most of the memory."""
  model = SADNet(width=64, offset_width=8, use_context=False, deformable_groups=1)
  noisy = jax.ShapeDtypeStruct((1, 192, 192, 3), np.float32)
  exported = export_denoiser(model, random_variables(model)['params'], platforms=['cpu'])
  compiled = fast_jit(exported.call).lower(noisy).compile()
  features = 64 * 192 * 192 * 4
  assert compiled.memory_analysis().temp_size_in_bytes < 6 * features


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
    ({'size': (0, 8)}, r'size must be \(height, width\) in pixels, each at least 1, or None, not \(0, 8\)'),
    ({'size': (8, 8.5)}, r'size must be .*, not \(8, 8\.5\)'),
    ({'size': 8}, 'size must be .*, not 8'),
    ({'platforms': ()}, r'platforms must be one or more of .*, not \(\)'),
    ({'platforms': ('cpu', 'cpu')}, r"each once, not \('cpu', 'cpu'\)"),
    ({'platforms': ('gpu',)}, r"one or more of \('cpu', 'cuda', 'rocm', 'tpu'\), .* not \('gpu',\)"),
  ],
)
def test_options_out_of_range_are_refused(options, match):
  with pytest.raises(ValueError, match=match):
    export_denoiser(MODEL, VARIABLES['params'], **options)


def test_other_kinds_of_images_are_refused(path):
  denoise = load_denoiser(path)
  for noisy in (
    image().astype(np.float64),
    image(channels=1),
    image()[0],
    image()[:0],
    image()[:, :0],
  ):
    with pytest.raises(ValueError, match=r'noisy must be float32 \[N, H, W, 3\], not \w+ \(.*\)'):
      denoise(noisy)


def test_more_pixels_than_can_be_indexed_are_refused(path):
  exported = export.deserialize(bytearray(path.read_bytes()))
  # 8 groups * 10 * (width + 2) rows to sample from, 2**31 of them or more.
  noisy = jax.ShapeDtypeStruct((1, 8, 27_000_000, 3), np.float32)
  with pytest.raises(ValueError, match='refining shapes'):
    jax.jit(exported.call).lower(noisy).compile()


def test_damaged_files_and_other_functions_are_refused(path, tmp_path):
  damaged = tmp_path / 'a.stablehlo'
  with pytest.raises(ValueError, match=r'a\.stablehlo is not a readable artifact .*No such file'):
    load_denoiser(damaged)
  content = path.read_bytes()
  middle = len(content) // 2
  for bytes_ in (b'', b'PK', content[:-1000], content[:middle], content[:middle] + content[middle + 16 :]):
    damaged.write_bytes(bytes_)
    with pytest.raises(ValueError, match=r'a\.stablehlo is not a readable artifact .* must be a complete'):
      load_denoiser(damaged)
  other = export.export(jax.jit(lambda x: x.sum()))(jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32))
  damaged.write_bytes(other.serialize())
  with pytest.raises(ValueError, match=r'holds a function .* which is not a denoiser'):
    load_denoiser(damaged)
  with pytest.raises(ValueError, match=r"a\.bin: the extension must be \.stablehlo, not '\.bin'"):
    save_denoiser(tmp_path / 'a.bin', other)
  assert not (tmp_path / 'a.bin').exists()


def test_the_command_exports_weights_for_one_size(weights, tmp_path, capsys):
  output = tmp_path / 'a.stablehlo'
  arguments = ['--weights', str(weights), '--output', str(output)]
  main([*arguments, '--size', '13x20', '--platforms', 'cuda,cpu'])
  shown = capsys.readouterr().out
  assert re.fullmatch(rf'{re.escape(str(output))}: \d\.\d MB, images of 13x20, for cuda, cpu\n', shown)
  denoise = _compiles_quickly(load_denoiser, output)
  assert (denoise.size, denoise.platforms) == ((13, 20), ('cuda', 'cpu'))
  noisy = image(batch=3, size=(13, 20))
  _assert_close(denoise(noisy), apply(MODEL, VARIABLES, noisy))
  with pytest.raises(ValueError, match=r'must be float32 \[N, 13, 20, 3\], not float32 \(1, 20, 13, 3\)'):
    denoise(image(size=(20, 13)))

  before = output.read_bytes()
  with pytest.raises(SystemExit, match=r'a\.stablehlo exists; choose another name'):
    main(arguments)
  assert output.read_bytes() == before
  main([*arguments, '--platforms', 'cuda', '--overwrite'])
  assert capsys.readouterr().out.endswith(' MB, images of any size, for cuda\n')
  with pytest.raises(ValueError, match=r"exported for platforms '\('cuda',\)' but it is used on"):
    load_denoiser(output)(image())


@pytest.mark.parametrize(
  ('arguments', 'match'),
  [
    (['--size', '8'], r"--size must be HEIGHTxWIDTH in pixels, such as 480x320, not '8'"),
    (['--size', '0x8'], r'size must be .* not \(0, 8\)'),
    (['--platforms', 'cpu,gpu'], r"platforms must be .* not \['cpu', 'gpu'\]"),
    (['--output', 'a.bin'], r"a\.bin: the extension must be \.stablehlo or \.onnx, not '\.bin'"),
    (['--format', 'onnx'], r"a\.stablehlo: the extension must be \.onnx, not '\.stablehlo'"),
    (['--output', 'a.onnx', '--platforms', 'cpu'], '--platforms is for StableHLO only'),
    (['--output', 'a.onnx', '--size', '0x8'], r'size must be .* not \(0, 8\)'),
    (['--weights', 'none.safetensors'], r'none\.safetensors'),
  ],
)
def test_the_command_ends_with_one_line(weights, tmp_path, monkeypatch, arguments, match):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit, match=match) as raised:
    main(['--weights', str(weights), '--output', 'a.stablehlo', *arguments])
  # Python prints a text and exits with status 1.
  assert isinstance(raised.value.code, str)
  assert '\n' not in raised.value.code
  assert list(tmp_path.iterdir()) == []
