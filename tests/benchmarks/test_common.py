"""What the benchmarks share: options, fresh processes, the machine's rates, and the counts of the work."""

import json
import os
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import ablation, command, common, training_loop
from benchmarks.common import Limits, deform_conv_cost, network_cost
from benchmarks.programs import PROGRAMS, deform_conv_backward, network_forward
from sadnet_jax.nn.sadnet import SADNet, param_shapes

# One pixel of each scale, written down from the paper's layers: encoder, context, decoder, offset block,
# offsets and mask, deformable convolution, convolution after it, output.
MULTIPLY_ACCUMULATES_PER_PIXEL = (
  (3 * 32 + 2 * 9 * 32**2)
  + (32 * 64 + 64 * 32)
  + 9 * (32 * 32 + 64 * 32 + 32 * 32)
  + (9 * 32 * 216 + 2 * 9 * 32**2)
  + 9 * 32 * 3,
  (4 * 32 * 64 + 2 * 9 * 64**2)
  + (64 * 128 + 128 * 64)
  + 9 * (64 * 32 + 64 * 32 + 32 * 32)
  + (9 * 32 * 216 + 2 * 9 * 64**2),
  (4 * 64 * 128 + 2 * 9 * 128**2)
  + (128 * 256 + 256 * 128)
  + 9 * (128 * 32 + 64 * 32 + 32 * 32)
  + (9 * 32 * 216 + 2 * 9 * 128**2),
  (4 * 128 * 256 + 2 * 9 * 256**2)
  + (256 * 64 + 4 * 9 * 64**2 + 256 * 256)
  + 9 * (256 * 32 + 32 * 32)
  + (9 * 32 * 216 + 2 * 9 * 256**2),
)


def _blending(pixels):
  """Operations of all scales: four multiply-accumulates per sampled value."""
  return sum(2 * 4 * 9 * (32 << s) * pixels // 4**s for s in range(4))


def test_network_cost_is_the_sum_over_the_layers():
  pixels = 320 * 480
  products = 2 * sum(per_pixel * pixels // 4**s for s, per_pixel in enumerate(MULTIPLY_ACCUMULATES_PER_PIXEL))
  flops, _ = network_cost((1, 320, 480, 3))
  assert flops == products + _blending(pixels)
  # XLA's count of a plain version, 98.7 G, includes everything elementwise.
  assert flops == pytest.approx(2 * 49.4e9, rel=0.05)


def test_network_cost_by_batch_size_and_pass():
  one, many = network_cost((1, 320, 480, 3)), network_cost((16, 320, 480, 3))
  assert many.flops == 16 * one.flops
  assert 15 * one.bytes < many.bytes < 16 * one.bytes
  assert network_cost((1, 313, 475, 3)) == one
  step = network_cost((1, 320, 480, 3), training=True)
  assert step.flops == 3 * one.flops
  assert 2 * one.bytes < step.bytes < 3 * one.bytes
  assert network_cost((1, 320, 480, 3), value_bytes=2).bytes * 2 == one.bytes


def test_products_are_what_xla_counts_in_the_convolutions():
  """Without deformable convolutions, XLA counts the same, except at the image border."""
  shape = (1, 512, 512, 3)
  model = SADNet(use_rsab=False)
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  counted = jax.jit(model.apply).lower(variables, jax.ShapeDtypeStruct(shape, jnp.float32)).cost_analysis()
  pixels = 512 * 512
  # Per scale: no offset block, offsets and mask; a plain convolution replaces the deformable one.
  missing = [9 * (32 * 32 + 64 * 32 + c * 32) + 9 * 32 * 216 for c in (32, 64, 128)]
  missing.append(9 * (32 * 32 + 256 * 32) + 9 * 32 * 216)
  expected = (
    network_cost(shape).flops
    - _blending(pixels)
    - 2 * sum(per_pixel * pixels // 4**s for s, per_pixel in enumerate(missing))
  )
  assert counted['flops'] == pytest.approx(expected, rel=0.015)


def test_deform_conv_cost_of_a_small_example():
  n, h, w, c = 2, 5, 7, 16
  forward = deform_conv_cost((n, h, w, c))
  assert forward.flops == 2 * n * h * w * 9 * c * c + 2 * n * h * w * 9 * c * 4
  x, offset, mask, kernel = n * h * w * c, n * h * w * 144, n * h * w * 72, 9 * c * c
  assert forward.bytes == 4 * (x + offset + mask + kernel + c + x)
  backward = deform_conv_cost((n, h, w, c), backward=True)
  assert backward == (2 * forward.flops, 4 * (2 * (x + offset + mask + kernel + c) + x))
  assert deform_conv_cost((n, h, w, c), value_bytes=2) == (forward.flops, forward.bytes // 2)


def test_the_limit_is_the_larger_bound():
  rates = Limits(flops_per_second=100.0, bytes_per_second=10.0)
  assert rates.seconds(200, 10) == 2
  assert rates.seconds(200, 50) == 5
  assert rates.best(Limits(50.0, 20.0)) == Limits(100.0, 20.0)
  assert Limits(**rates.to_json()) == rates


def test_rates_are_plausible():
  for precision in ('float32', 'bfloat16'):
    assert 1e6 < common.matrix_rate(precision, (64, 128)) < 1e15
  assert 1e6 < common.copy_rate(2**20) < 1e13


def test_runs_must_be_at_least_one(capsys):
  parser = common.make_parser('Measures.', runs=3)
  assert parser.parse_args([]).runs == 3
  with pytest.raises(SystemExit):
    parser.parse_args(['--runs', '0'])
  assert 'must be at least 1, not 0' in capsys.readouterr().err


def test_paths_are_those_of_users_and_results_have_a_folder(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(tmp_path))
  parser = common.make_parser('Measures.')
  assert parser.parse_args(['--json=~/a.json']).json == tmp_path / 'a.json'
  assert ablation.parse_arguments(['--workdir=~/runs']).workdir == tmp_path / 'runs'
  for given, message in (
    ('nowhere/a.json', 'the folder nowhere does not exist; create it'),
    ('gs://bucket/a.json', 'gs://bucket/a.json is a URL, but only local paths are supported here; copy'),
  ):
    with pytest.raises(SystemExit):
      parser.parse_args(['--json', given])
    assert message in capsys.readouterr().err


def test_the_recorded_command_gives_the_same_arguments():
  for script in (training_loop, command):
    arguments = script.parse_arguments(['--json', 'a.json'])
    options = common.options_of(arguments)
    assert '--json' not in options
    assert common.options_of(script.parse_arguments(options)) == options
  options = common.options_of(command.parse_arguments(['--megapixels', '0.5', '12', '--repeats', '0']))
  assert ' '.join(options) == (
    '--images test/Kodak24 --qualities fast balanced best --megapixels 0.5 12 --sigma_255 25 '
    '--repeats 0 --seam_sigmas_255 5 25 50'
  )
  found = common.describe('command.py', options)
  assert found['command'] == f'python benchmarks/command.py {" ".join(options)}'
  assert (found['device'], found['gpu']) == ('cpu', None)
  found = common.describe(
    'many_sizes.py', ['--images', '/home/jane/photos', '--model', 'https://host/a.pth?key=5ec']
  )
  assert found['command'] == 'python benchmarks/many_sizes.py --images photos --model https://host/a.pth'
  assert found['versions']['jax'] == jax.__version__


def test_a_command_is_measured_to_its_end_and_what_it_prints_is_not_taken_for_the_result():
  holds_64_mib = "x = bytearray(2**26); print('{}'); raise SystemExit(3)"
  used = command.measure([sys.executable, '-c', holds_64_mib], os.environ)
  assert used['status'] == 3
  assert 0 < used['seconds'] < 60
  # Less than this process, which has imported JAX.
  assert 64 < used['peak_mib'] < 128


def test_the_median_counts():
  assert common.summary([3.0, 1.0, 2.0]) == {'seconds': 2.0, 'runs_seconds': [3.0, 1.0, 2.0]}


def test_targets_are_printed_and_written(tmp_path, capsys):
  targets = {'a': common.at_most('memory, MB', 220.0, 220), 'b': common.at_least('speedup', 2.9, 3)}
  common.finish({'targets': targets}, tmp_path / 'a.json')
  assert json.loads((tmp_path / 'a.json').read_text()) == {'targets': targets}
  assert capsys.readouterr().out.splitlines() == [
    'memory, MB: 220.00, target at most 220: reached',
    'speedup: 2.90, target at least 3: not reached',
  ]


def test_programs_have_the_shapes_in_their_names():
  model = SADNet()
  forward = network_forward(2, 16, 24)
  assert jax.eval_shape(forward.function, *forward.arguments).shape == (2, 16, 24, model.channels)
  step = PROGRAMS['training_step_4x128'][1]()
  assert step.arguments[1]['clean'].shape == (4, 128, 128, 3)
  state, metrics = jax.eval_shape(step.function, *step.arguments)
  assert jax.tree.map(lambda leaf: leaf.shape, state.params) == jax.tree.map(
    lambda leaf: leaf.shape, param_shapes(model)
  )
  assert metrics['loss'].shape == ()
  backward = deform_conv_backward(1, 8, 12, 16)
  gradients = jax.eval_shape(backward.function, *backward.arguments)
  assert [g.shape for g in gradients] == [a.shape for a in backward.arguments[:5]]
  for name, shape in (('forward_480x320', (1, 320, 480, 3)), ('forward_1920x1080', (1, 1080, 1920, 3))):
    assert PROGRAMS[name][1]().arguments[1].shape == shape
  for name in ('deform_forward_320x480', 'deform_backward_320x480'):
    assert PROGRAMS[name][1]().arguments[0].shape == (1, 320, 480, 32)
