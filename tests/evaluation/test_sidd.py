"""SIDD: blocks as stored in the files, and submissions as a server would read them."""

import base64
import sys

import numpy as np
import pytest
import scipy.io

from sadnet_jax.evaluation.submissions import check, sidd
from sadnet_jax.evaluation.submissions.check import check_sidd_submission
from tests.support import command, matlab_files

VALIDATION = ('ValidationNoisyBlocksSrgb', 'ValidationGtBlocksSrgb')
BENCHMARK = 'BenchmarkNoisyBlocksSrgb'
# All different, so that swapped axes are noticed.
SHAPE = (2, 3, 7, 5, 3)
SQUARE = (2, 3, 7, 7, 3)
SIZE = {'images': 2, 'blocks': 3, 'block_px': 7}


def _floats(shape=SQUARE, seed=0):
  return np.random.default_rng(seed).random(shape, np.float32)


def _cell(folder, blocks, **keywords):
  return sidd.write_cell_submission(
    folder, blocks, seconds_per_megapixel=0.25, method_name='SADNet', **keywords
  )


WRITERS = [_cell, sidd.write_uint8_submission, sidd.write_csv_submission]


@pytest.mark.parametrize('hdf5', [False, True])
def test_validation_is_pairs_in_the_order_of_image_and_block(tmp_path, hdf5):
  files = matlab_files.sidd(tmp_path, VALIDATION, SHAPE, hdf5=hdf5)
  blocks = sidd.read_sidd(tmp_path, 'validation')
  assert [block.name for block in blocks] == [
    '0001_01',
    '0001_02',
    '0001_03',
    '0002_01',
    '0002_02',
    '0002_03',
  ]
  for i, block in enumerate(blocks):
    np.testing.assert_array_equal(block.noisy, files[VALIDATION[0]][i // 3, i % 3])
    np.testing.assert_array_equal(block.clean, files[VALIDATION[1]][i // 3, i % 3])
    assert block.noisy.dtype == block.clean.dtype == np.uint8
    assert block.noisy.flags.c_contiguous
    assert block.clean.flags.c_contiguous
  assert blocks[4].name == '0002_02'
  assert blocks.label == (
    '6 blocks (2 images x 3 of 5x7) instead of the 1280 (40 x 32 of 256x256) of SIDD validation'
  )


def test_the_benchmark_has_no_clean_blocks(tmp_path):
  files = matlab_files.sidd(tmp_path, [BENCHMARK], SHAPE)
  (first, *others) = sidd.read_sidd(tmp_path, 'benchmark')
  np.testing.assert_array_equal(first.noisy, files[BENCHMARK][0, 0])
  assert {block.clean for block in (first, *others)} == {None}


def test_the_label_of_a_complete_set_is_its_number_of_blocks():
  whole = np.broadcast_to(np.uint8(0), (40, 32, 256, 256, 3))
  assert sidd.SiddBlocks('benchmark', whole, None).label == '1280 blocks'


def test_a_submission_of_1280_blocks_from_the_file_to_the_rows(tmp_path):
  files = matlab_files.sidd(tmp_path, [BENCHMARK], (40, 32, 8, 8, 3))
  blocks = sidd.read_sidd(tmp_path, 'benchmark')
  assert len(blocks) == 1280
  names = [block.name for block in blocks]
  assert [names[i] for i in (0, 31, 32, 1279)] == ['0001_01', '0001_32', '0002_01', '0040_32']
  path = sidd.write_csv_submission(tmp_path, blocks.noisy)
  header, *rows = path.read_text().splitlines()
  assert header == 'ID,BLOCK'
  assert [row.partition(',')[0] for row in rows] == [str(i) for i in range(1280)]
  for number, image, block in ((0, 0, 0), (31, 0, 31), (32, 1, 0), (1279, 39, 31)):
    pixels = np.frombuffer(base64.b64decode(rows[number].partition(',')[2]), np.uint8)
    np.testing.assert_array_equal(pixels.reshape(8, 8, 3), files[BENCHMARK][image, block])
  for write in (_cell, sidd.write_uint8_submission):
    found = check_sidd_submission(write(tmp_path / write.__name__, blocks.noisy), block_px=8)
    assert '1280 blocks of 8x8' in found
  assert '1280 blocks of 8x8 as rows of base64' in check_sidd_submission(path, block_px=8)


def test_a_csv_row_has_the_bytes_of_rows_of_rgb_pixels(tmp_path):
  blocks = np.zeros((1, 1, 2, 3, 3), np.uint8)
  blocks[0, 0, 0, 1] = (10, 20, 30)
  blocks[0, 0, 1, 0, 2] = 40
  path = sidd.write_csv_submission(tmp_path, blocks)
  row = bytes([0, 0, 0, 10, 20, 30, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0])
  assert path.read_bytes() == b'ID,BLOCK\n0,' + base64.b64encode(row) + b'\n'


def test_a_cell_holds_singles_that_are_not_rounded(tmp_path):
  blocks = _floats(SHAPE)
  blocks[1, 2, 6, 4] = (-0.25, 1.5, 0.501)
  path = _cell(tmp_path, blocks, authors='Ä. One', paper_title='Denoising', venue='Somewhere 2020')
  assert path == tmp_path / 'SubmitSrgb.mat'
  content = scipy.io.loadmat(path)
  cells = content['DenoisedBlocksSrgb']
  assert cells.shape == (2, 3)
  assert cells.dtype == object
  for i, k in np.ndindex(2, 3):
    assert cells[i, k].dtype == np.float32
    if (i, k) != (1, 2):
      np.testing.assert_array_equal(cells[i, k], blocks[i, k])
  np.testing.assert_array_equal(cells[1, 2][6, 4], np.float32([0, 1, 0.501]))
  assert content['TimeMPSrgb'].item() == 0.25
  data = content['OptionalData'][0, 0]
  assert {name: data[name].item() for name in data.dtype.names} == {
    'MethodName': 'SADNet',
    'Authors': 'Ä. One',
    'PaperTitle': 'Denoising',
    'Venue': 'Somewhere 2020',
  }


def test_8_bit_levels_become_singles_from_0_to_1(tmp_path):
  blocks = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 1, 16, 16, 3)
  cells = scipy.io.loadmat(_cell(tmp_path, blocks))['DenoisedBlocksSrgb']
  np.testing.assert_allclose(cells[0, 0], blocks[0, 0] / 255.0, rtol=1e-7)
  assert cells[0, 0].max() == 1
  assert cells[0, 0].dtype == np.float32


@pytest.mark.parametrize('dtype', [np.uint8, np.float32, np.float64])
def test_an_array_holds_blocks_rounded_to_the_nearest_level(tmp_path, dtype):
  levels = np.random.default_rng(3).integers(0, 256, SHAPE, np.uint8)
  levels[0, 0, 0, 0] = (0, 255, 254)
  blocks = levels
  if dtype != np.uint8:
    # Up to 0.4 of a level away, and beyond the ends: flooring would be off by one.
    blocks = ((levels + np.random.default_rng(4).uniform(-0.4, 0.4, SHAPE)) / 255).astype(dtype)
    blocks[0, 0, 0, 0] = (-0.7, 1.3, 254.49 / 255)
  path = sidd.write_uint8_submission(tmp_path / 'mat', blocks)
  array = scipy.io.loadmat(path)['DenoisedBlocksSrgb']
  assert array.dtype == np.uint8
  np.testing.assert_array_equal(array, levels)
  rows = sidd.write_csv_submission(tmp_path / 'csv', blocks).read_text().splitlines()[1:]
  decoded = [np.frombuffer(base64.b64decode(row.partition(',')[2]), np.uint8) for row in rows]
  np.testing.assert_array_equal(np.reshape(decoded, SHAPE), levels)


def test_the_array_is_compressed(tmp_path):
  path = sidd.write_uint8_submission(tmp_path, np.full((2, 3, 64, 64, 3), 7, np.uint8))
  assert path.stat().st_size < 2000


@pytest.mark.parametrize('write', WRITERS)
def test_a_submission_is_replaced_only_when_that_is_allowed(tmp_path, write):
  path = write(tmp_path / 'new' / 'folder', _floats())
  before = path.read_bytes()
  with pytest.raises(ValueError, match=r'Submit\S+: file exists; move it'):
    write(path.parent, _floats(seed=1))
  assert path.read_bytes() == before
  write(path.parent, _floats(seed=1), overwrite=True)
  assert path.read_bytes() != before
  assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('write', WRITERS)
def test_blocks_of_another_kind_are_refused_before_anything_is_written(tmp_path, write):
  for blocks in (_floats((2, 3, 7, 3)), _floats((2, 3, 7, 5, 1)), np.zeros(SHAPE, np.int32)):
    with pytest.raises(ValueError, match=r'blocks must be float32 or uint8 \[images, blocks'):
      write(tmp_path, blocks)
  blocks = _floats()
  blocks[1, 0, 3, 2, 1] = np.nan
  with pytest.raises(ValueError, match=r'block 0002_01: contains NaN or infinity'):
    write(tmp_path, blocks)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('seconds', [-1.0, float('nan'), float('inf')])
def test_an_invalid_time_is_refused(tmp_path, seconds):
  with pytest.raises(ValueError, match=r'seconds_per_megapixel must be finite and at least 0, not'):
    sidd.write_cell_submission(tmp_path, _floats(), seconds_per_megapixel=seconds, method_name='SADNet')


@pytest.mark.parametrize('write', WRITERS[:2])
def test_a_file_too_large_for_the_server_is_reported_and_kept(tmp_path, write, monkeypatch):
  monkeypatch.setattr(sidd, 'MAX_BYTES', 300)
  with pytest.raises(ValueError, match=r'SubmitSrgb.mat: the file was written, but has 0 MB, and the server'):
    write(tmp_path, _floats())
  path = tmp_path / 'SubmitSrgb.mat'
  assert 'DenoisedBlocksSrgb' in scipy.io.loadmat(path)
  with pytest.raises(ValueError, match=r'1 problem: the file has 0 MB, and the server'):
    check_sidd_submission(path, **SIZE)


def test_other_files_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"part must be one of validation, benchmark, not 'test'"):
    sidd.read_sidd(tmp_path, 'test')
  with pytest.raises(ValueError, match=r'BenchmarkNoisyBlocksSrgb.mat: no such file'):
    sidd.read_sidd(tmp_path, 'benchmark')
  path = tmp_path / f'{BENCHMARK}.mat'
  scipy.io.savemat(path, {'x': np.zeros((4, 5)), 'BenchmarkNoisyBlocksRaw': np.zeros((2, 3), np.float32)})
  found = (
    r'no variable BenchmarkNoisy.* has x \(double \(4, 5\)\), BenchmarkNoisyBlocksRaw \(single \(2, 3\)\)'
  )
  with pytest.raises(ValueError, match=found):
    sidd.read_sidd(tmp_path, 'benchmark')
  with matlab_files.Matlab73(path) as file:
    file.array('x', np.zeros((4, 5)))
    file.struct_array('info', {'a': [np.zeros(3)]})
  with pytest.raises(ValueError, match=r'the file has info \(cell or struct\), x \(float64 \(4, 5\)\)'):
    sidd.read_sidd(tmp_path, 'benchmark')


@pytest.mark.parametrize(
  'blocks', [np.zeros(SHAPE, np.float32), np.zeros(SHAPE[1:], np.uint8), np.zeros((2, 3, 3, 7, 5), np.uint8)]
)
def test_files_with_another_type_or_shape_are_refused(tmp_path, blocks):
  scipy.io.savemat(tmp_path / f'{BENCHMARK}.mat', {BENCHMARK: blocks})
  found = rf'{BENCHMARK} must be uint8 \[.* not {blocks.dtype} \({", ".join(map(str, blocks.shape))}\)'
  with pytest.raises(ValueError, match=found):
    sidd.read_sidd(tmp_path, 'benchmark')


@pytest.mark.parametrize('hdf5', [False, True])
def test_a_damaged_file_is_refused(tmp_path, hdf5):
  matlab_files.sidd(tmp_path, [BENCHMARK], SHAPE, hdf5=hdf5)
  path = tmp_path / f'{BENCHMARK}.mat'
  whole = path.read_bytes()
  for content in (whole[: len(whole) * 3 // 4], whole[:100], b''):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'BenchmarkNoisyBlocksSrgb.mat: unreadable MATLAB file \('):
      sidd.read_sidd(tmp_path, 'benchmark')


def test_noisy_and_clean_blocks_of_different_shapes_are_refused(tmp_path):
  matlab_files.sidd(tmp_path, VALIDATION[:1], SHAPE)
  matlab_files.sidd(tmp_path, VALIDATION[1:], (2, 2, *SHAPE[2:]))
  with pytest.raises(
    ValueError, match=r'GtBlocksSrgb.mat: blocks \(2, 2, 7, 5, 3\) do not match \(2, 3, 7, 5, 3\)'
  ):
    sidd.read_sidd(tmp_path, 'validation')


@pytest.mark.parametrize(
  ('write', 'form'), list(zip(WRITERS, ['a cell of singles', 'a uint8 array', 'rows of base64'], strict=True))
)
def test_a_valid_submission_is_described(tmp_path, write, form):
  path = write(tmp_path, _floats())
  assert check_sidd_submission(path, **SIZE) == f'{path}: 6 blocks of 7x7 as {form}, 0.0 MB, no problem'


def _damage_cell(tmp_path, **changes):
  """Writes a valid cell submission and replaces variables in it; None removes one."""
  path = _cell(tmp_path, _floats(), overwrite=True)
  content = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith('__')}
  for index, block in changes.pop('blocks', {}).items():
    content['DenoisedBlocksSrgb'][index] = block
  content.update(changes)
  scipy.io.savemat(path, {k: v for k, v in content.items() if v is not None})
  return path


def _block(value, dtype=np.float32, shape=(7, 7, 3)):
  return np.full(shape, value, dtype)


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    (
      {'blocks': {(1, 0): _block(0.5, np.float64)}},
      r'block 0002_01: must be single \(7, 7, 3\), not float64 \(7, 7, 3\)',
    ),
    (
      {'blocks': {(0, 2): _block(0.5, shape=(7, 6, 3))}},
      r'block 0001_03: must be single .*not float32 \(7, 6, 3\)',
    ),
    ({'blocks': {(0, 0): _block(np.nan)}}, r'block 0001_01: contains NaN or infinity'),
    ({'blocks': {(0, 0): _block(128)}}, r'block 0001_01: values must be in \[0, 1\], not 128 to 128'),
    ({'blocks': {(1, 1): _block(-0.01)}}, r'block 0002_02: values must be in \[0, 1\], not -0.01 to -0.01'),
    ({'TimeMPSrgb': None}, r'TimeMPSrgb must be a number'),
    ({'TimeMPSrgb': 'fast'}, r'TimeMPSrgb must be a number'),
    ({'TimeMPSrgb': -2.0}, r'TimeMPSrgb must be finite and at least 0, not -2.0'),
    ({'OptionalData': None}, r'OptionalData is missing'),
    ({'OptionalData': {'Authors': 'A. One'}}, r'OptionalData has no MethodName'),
    (
      {'DenoisedBlocksSrgb': _floats()},
      r'DenoisedBlocksSrgb must be uint8 \(2, 3, 7, 7, 3\), .* not float32 \(2, 3, 7, 7, 3\)',
    ),
    (
      {'DenoisedBlocksSrgb': np.zeros((3, 2, 7, 7, 3), np.uint8)},
      r'DenoisedBlocksSrgb must be uint8 .* not uint8 \(3, 2, 7, 7, 3\)',
    ),
  ],
)
def test_problems_of_a_mat_file_are_reported(tmp_path, changes, problem):
  path = _damage_cell(tmp_path, **changes)
  with pytest.raises(ValueError, match=rf'SubmitSrgb.mat: 1 problem: {problem}'):
    check_sidd_submission(path, **SIZE)


def test_a_cell_of_another_shape_or_with_empty_blocks_is_refused(tmp_path):
  path = _cell(tmp_path, _floats((3, 2, 7, 7, 3)))
  with pytest.raises(ValueError, match=r'DenoisedBlocksSrgb must be a cell \(2, 3\), not \(3, 2\)$'):
    check_sidd_submission(path, **SIZE)
  path = _damage_cell(tmp_path, blocks=dict.fromkeys(np.ndindex(2, 3), np.zeros((0, 0))))
  with pytest.raises(
    ValueError, match=r'6 problems: .*block 0002_02: must be .* not float64 \(0, 0\); and 1 more$'
  ):
    check_sidd_submission(path, **SIZE)


def test_other_files_are_no_submission(tmp_path):
  path = sidd.write_uint8_submission(tmp_path, _floats())
  with pytest.raises(ValueError, match=r'other.mat: a submission to SIDD is a file SubmitSrgb.mat or'):
    check_sidd_submission(path.rename(tmp_path / 'other.mat'), **SIZE)
  with pytest.raises(ValueError, match=r'SubmitSrgb.mat: a submission to SIDD is'):
    check_sidd_submission(path, **SIZE)
  scipy.io.savemat(path, {'Idenoised': np.zeros(3)})
  with pytest.raises(
    ValueError, match=r'SubmitSrgb.mat: no variable DenoisedBlocksSrgb; the file has Idenoised'
  ):
    check_sidd_submission(path, **SIZE)
  path.write_text('nothing of the kind')
  with pytest.raises(ValueError, match=r'SubmitSrgb.mat: unreadable MATLAB file'):
    check_sidd_submission(path, **SIZE)


def _edit(old, new):
  def edit(lines):
    assert any(old in line for line in lines)
    return [line.replace(old, new, 1) for line in lines]

  return edit


def _swap(lines):
  lines[3], lines[4] = lines[4], lines[3]
  return lines


@pytest.mark.parametrize(
  ('edit', 'problem'),
  [
    (
      _edit('ID,BLOCK', 'id,block'),
      r"1 problem: row 1 must be ID,BLOCK, not 'id,block'$",
    ),
    (
      lambda lines: lines[1:],
      r"row 1 must be .* not '0,\S+\.\.\.'; row 2: the ID must be 0, not '1'; .*; and 2 more$",
    ),
    (lambda lines: lines[:-1], r'1 problem: there must be 6 rows below the header, not 5$'),
    (
      lambda lines: [*lines, lines[-1]],
      r"row 8: the ID must be 6, not '5'; there must be 6 rows below the header, not 7",
    ),
    (
      lambda lines: [*lines, ''],
      r"row 8: the ID must be 6, not ''; there must be 6 rows below the header, not 7",
    ),
    (_swap, r"2 problems: row 4: the ID must be 2, not '3'; row 5: the ID must be 3, not '2'$"),
    (_edit('2,', '02,'), r"1 problem: row 4: the ID must be 2, not '02'$"),
    (_edit('3,', '3;'), r"row 5: the ID must be 3, not '3;\S+\.\.\.'"),
    (_edit('3,', '3,*'), r'row 5: the BLOCK is not valid base64 \(.+\)$'),
    (lambda lines: [*lines[:-1], lines[-1][:-8]], r'row 7: the BLOCK must have 147 bytes, not 141$'),
    (lambda lines: [*lines[:-1], '5,'], r'row 7: the BLOCK must have 147 bytes, not 0$'),
    (lambda lines: [*lines[:-1], 'ä'], r'row 7: the ID must be 5, not '),
  ],
)
def test_problems_of_a_csv_file_are_reported(tmp_path, edit, problem):
  path = sidd.write_csv_submission(tmp_path, _floats())
  lines = edit(path.read_text().splitlines())
  path.write_text(''.join(f'{line}\n' for line in lines))
  with pytest.raises(ValueError, match=problem):
    check_sidd_submission(path, **SIZE)


def test_windows_line_endings_are_valid(tmp_path):
  path = sidd.write_csv_submission(tmp_path, _floats())
  path.write_bytes(path.read_bytes().replace(b'\n', b'\r\n'))
  assert 'no problem' in check_sidd_submission(path, **SIZE)


def test_the_command_describes_a_valid_submission(tmp_path, monkeypatch, capsys):
  path = sidd.write_uint8_submission(tmp_path, _floats())
  for name, value in SIZE.items():
    monkeypatch.setitem(check_sidd_submission.__kwdefaults__, name, value)
  monkeypatch.setattr(sys, 'argv', ['check', str(path)])
  check.main()
  assert capsys.readouterr().out == f'{path}: 6 blocks of 7x7 as a uint8 array, 0.0 MB, no problem\n'


def test_the_command_exits_with_one_line_and_status_1_for_an_invalid_submission(tmp_path):
  path = sidd.write_uint8_submission(tmp_path, _floats())
  process = command.start('-m', 'sadnet_jax.evaluation.submissions.check', path)
  output, errors = command.finish(process, succeeds=False)
  assert process.returncode == 1
  assert output == ''
  assert errors.count('\n') == 1
  assert 'must be uint8 (40, 32, 256, 256, 3)' in errors
