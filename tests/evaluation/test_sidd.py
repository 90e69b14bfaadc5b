"""SIDD's blocks as they lie in the files, and submissions as a server would read them."""

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
# Images, blocks, height and width all differ: an exchange of two axes cannot go unseen.
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
    '6 blocks (2 images x 3 of 5x7), not the 1280 (40 x 32 of 256x256) of SIDD validation'
  )


def test_the_benchmark_has_no_clean_blocks(tmp_path):
  files = matlab_files.sidd(tmp_path, [BENCHMARK], SHAPE)
  (first, *others) = sidd.read_sidd(tmp_path, 'benchmark')
  np.testing.assert_array_equal(first.noisy, files[BENCHMARK][0, 0])
  assert {block.clean for block in (first, *others)} == {None}


def test_the_label_of_a_whole_set_is_its_number_of_blocks():
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


def test_rows_are_the_bytes_of_rows_of_rgb_pixels(tmp_path):
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


def test_levels_of_8_bits_become_singles_of_0_to_1(tmp_path):
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
    # Up to 0.4 of a level beside it, and beyond the ends: floors would be one less.
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
  with pytest.raises(ValueError, match=r'Submit\S+: got an existing file, want none \(move it, or allow'):
    write(path.parent, _floats(seed=1))
  assert path.read_bytes() == before
  write(path.parent, _floats(seed=1), overwrite=True)
  assert path.read_bytes() != before
  assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('write', WRITERS)
def test_blocks_of_another_kind_are_refused_before_anything_is_written(tmp_path, write):
  for blocks in (_floats((2, 3, 7, 3)), _floats((2, 3, 7, 5, 1)), np.zeros(SHAPE, np.int32)):
    with pytest.raises(ValueError, match=r'blocks: got \w+ \(.*\), want float32 or uint8 \[images, blocks'):
      write(tmp_path, blocks)
  blocks = _floats()
  blocks[1, 0, 3, 2, 1] = np.nan
  with pytest.raises(ValueError, match=r'block 0002_01: got NaN or infinity, want numbers \(is the model'):
    write(tmp_path, blocks)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('seconds', [-1.0, float('nan'), float('inf')])
def test_a_time_that_is_none_is_refused(tmp_path, seconds):
  with pytest.raises(ValueError, match=r'seconds_per_megapixel: got \S+, want a time of 0 or more'):
    sidd.write_cell_submission(tmp_path, _floats(), seconds_per_megapixel=seconds, method_name='SADNet')


@pytest.mark.parametrize('write', WRITERS[:2])
def test_a_file_too_large_for_the_server_is_told_and_kept(tmp_path, write, monkeypatch):
  monkeypatch.setattr(sidd, 'LARGEST_BYTES', 300)
  with pytest.raises(ValueError, match=r'SubmitSrgb.mat: got 0 MB, want at most 0: .* \(it is written; '):
    write(tmp_path, _floats())
  path = tmp_path / 'SubmitSrgb.mat'
  assert 'DenoisedBlocksSrgb' in scipy.io.loadmat(path)
  with pytest.raises(ValueError, match=r'got 1 problem, want none: file: got 0 MB, want at most 0 as the'):
    check_sidd_submission(path, **SIZE)


def test_files_that_are_not_sidd_are_told(tmp_path):
  with pytest.raises(ValueError, match=r"part: got 'test', want one of validation, benchmark"):
    sidd.read_sidd(tmp_path, 'test')
  with pytest.raises(ValueError, match=r'BenchmarkNoisyBlocksSrgb.mat: got no such file, want a MATLAB file'):
    sidd.read_sidd(tmp_path, 'benchmark')
  path = tmp_path / f'{BENCHMARK}.mat'
  scipy.io.savemat(path, {'x': np.zeros((4, 5)), 'BenchmarkNoisyBlocksRaw': np.zeros((2, 3), np.float32)})
  found = r'got x \(double \(4, 5\)\), BenchmarkNoisyBlocksRaw \(single \(2, 3\)\), want the variable Bench'
  with pytest.raises(ValueError, match=found):
    sidd.read_sidd(tmp_path, 'benchmark')
  with matlab_files.Matlab73(path) as file:
    file.array('x', np.zeros((4, 5)))
    file.struct_array('info', {'a': [np.zeros(3)]})
  with pytest.raises(
    ValueError, match=r'got info \(cell or struct\), x \(float64 \(4, 5\)\), want the varia'
  ):
    sidd.read_sidd(tmp_path, 'benchmark')


@pytest.mark.parametrize(
  'blocks', [np.zeros(SHAPE, np.float32), np.zeros(SHAPE[1:], np.uint8), np.zeros((2, 3, 3, 7, 5), np.uint8)]
)
def test_blocks_of_another_type_or_shape_are_told(tmp_path, blocks):
  scipy.io.savemat(tmp_path / f'{BENCHMARK}.mat', {BENCHMARK: blocks})
  found = rf'got {BENCHMARK} of {blocks.dtype} \({", ".join(map(str, blocks.shape))}\), want uint8 \[images'
  with pytest.raises(ValueError, match=found):
    sidd.read_sidd(tmp_path, 'benchmark')


@pytest.mark.parametrize('hdf5', [False, True])
def test_a_damaged_file_is_told(tmp_path, hdf5):
  matlab_files.sidd(tmp_path, [BENCHMARK], SHAPE, hdf5=hdf5)
  path = tmp_path / f'{BENCHMARK}.mat'
  whole = path.read_bytes()
  for content in (whole[: len(whole) * 3 // 4], whole[:100], b''):
    path.write_bytes(content)
    with pytest.raises(
      ValueError, match=r'BenchmarkNoisyBlocksSrgb.mat: got no readable MATLAB file \(.*\), w'
    ):
      sidd.read_sidd(tmp_path, 'benchmark')


def test_noisy_and_clean_blocks_of_two_downloads_are_told(tmp_path):
  matlab_files.sidd(tmp_path, VALIDATION[:1], SHAPE)
  matlab_files.sidd(tmp_path, VALIDATION[1:], (2, 2, *SHAPE[2:]))
  with pytest.raises(
    ValueError, match=r'GtBlocksSrgb.mat: got blocks \(2, 2, 7, 5, 3\), want \(2, 3, 7, 5, 3\)'
  ):
    sidd.read_sidd(tmp_path, 'validation')


@pytest.mark.parametrize(
  ('write', 'form'), list(zip(WRITERS, ['a cell of singles', 'a uint8 array', 'rows of base64'], strict=True))
)
def test_a_good_submission_is_described(tmp_path, write, form):
  path = write(tmp_path, _floats())
  assert check_sidd_submission(path, **SIZE) == f'{path}: 6 blocks of 7x7 as {form}, 0.0 MB, no problem'


def _damage_cell(tmp_path, **changes):
  """Writes a good cell submission and replaces variables of it; None takes one out."""
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
      r'block 0002_01: got float64 \(7, 7, 3\), want single \(7',
    ),
    (
      {'blocks': {(0, 2): _block(0.5, shape=(7, 6, 3))}},
      r'block 0001_03: got float32 \(7, 6, 3\), want single',
    ),
    ({'blocks': {(0, 0): _block(np.nan)}}, r'block 0001_01: got NaN or infinity, want \[0, 1\]'),
    ({'blocks': {(0, 0): _block(128)}}, r'block 0001_01: got values from 128 to 128, want \[0, 1\]'),
    ({'blocks': {(1, 1): _block(-0.01)}}, r'block 0002_02: got values from -0.01 to -0.01, want \[0, 1\]'),
    ({'TimeMPSrgb': None}, r'TimeMPSrgb: got none, want the seconds a megapixel takes'),
    ({'TimeMPSrgb': 'fast'}, r'TimeMPSrgb: got none, want the seconds'),
    ({'TimeMPSrgb': -2.0}, r'TimeMPSrgb: got -2.0, want 0 or more'),
    ({'OptionalData': None}, r'OptionalData: got none, want a struct'),
    ({'OptionalData': {'Authors': 'A. One'}}, r'OptionalData: got no MethodName in it'),
    (
      {'DenoisedBlocksSrgb': _floats()},
      r'got float32 \(2, 3, 7, 7, 3\), want uint8 \(2, 3, 7, 7, 3\), or a c',
    ),
    ({'DenoisedBlocksSrgb': np.zeros((3, 2, 7, 7, 3), np.uint8)}, r'got uint8 \(3, 2, 7, 7, 3\), want uint8'),
  ],
)
def test_what_is_wrong_with_a_mat_file_is_told(tmp_path, changes, problem):
  path = _damage_cell(tmp_path, **changes)
  with pytest.raises(ValueError, match=rf'SubmitSrgb.mat: got 1 problem, want none: \S*:? ?{problem}'):
    check_sidd_submission(path, **SIZE)


def test_a_cell_of_another_shape_or_an_empty_one_is_told(tmp_path):
  path = _cell(tmp_path, _floats((3, 2, 7, 7, 3)))
  with pytest.raises(ValueError, match=r'DenoisedBlocksSrgb: got a cell \(3, 2\), want \(2, 3\)$'):
    check_sidd_submission(path, **SIZE)
  path = _damage_cell(tmp_path, blocks=dict.fromkeys(np.ndindex(2, 3), np.zeros((0, 0))))
  with pytest.raises(
    ValueError, match=r'got 6 problems, .*block 0002_02: got float64 \(0, 0\).*; and 1 more$'
  ):
    check_sidd_submission(path, **SIZE)


def test_a_file_of_another_name_kind_or_content_is_no_submission(tmp_path):
  path = sidd.write_uint8_submission(tmp_path, _floats())
  with pytest.raises(
    ValueError, match=r'other.mat: got no submission to SIDD, want a file SubmitSrgb.mat or'
  ):
    check_sidd_submission(path.rename(tmp_path / 'other.mat'), **SIZE)
  with pytest.raises(ValueError, match=r'SubmitSrgb.mat: got no submission to SIDD'):
    check_sidd_submission(path, **SIZE)
  scipy.io.savemat(path, {'Idenoised': np.zeros(3)})
  with pytest.raises(ValueError, match=r'SubmitSrgb.mat: got Idenoised, want DenoisedBlocksSrgb'):
    check_sidd_submission(path, **SIZE)
  path.write_text('nothing of the kind')
  with pytest.raises(ValueError, match=r'SubmitSrgb.mat: got no readable MATLAB file'):
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
      r"got 1 problem, want none: row 1: got 'id,block', want the header ID,BL",
    ),
    (
      lambda lines: lines[1:],
      r"row 1: got '0,\S+\.\.\.', want .*; row 2: got ID '1', want 0; .*; and 2 more$",
    ),
    (lambda lines: lines[:-1], r'got 1 problem, want none: file: got 5 rows, want 6 below the header$'),
    (lambda lines: [*lines, lines[-1]], r"row 8: got ID '5', want 6; file: got 7 rows, want 6"),
    (lambda lines: [*lines, ''], r"row 8: got ID '', want 6; file: got 7 rows, want 6"),
    (_swap, r"got 2 problems, want none: row 4: got ID '3', want 2; row 5: got ID '2', want 3$"),
    (_edit('2,', '02,'), r"got 1 problem, want none: row 4: got ID '02', want 2$"),
    (_edit('3,', '3;'), r"row 5: got ID '3;\S+\.\.\.', want 3"),
    (_edit('3,', '3,*'), r'row 5: got a BLOCK that is no base64 \(.+\), want 147 bytes in base64$'),
    (lambda lines: [*lines[:-1], lines[-1][:-8]], r'row 7: got a BLOCK of 141 bytes, want 147$'),
    (lambda lines: [*lines[:-1], '5,'], r'row 7: got a BLOCK of 0 bytes, want 147$'),
    (lambda lines: [*lines[:-1], 'ä'], r'row 7: got ID .*, want 5$'),
  ],
)
def test_what_is_wrong_with_a_csv_file_is_told(tmp_path, edit, problem):
  path = sidd.write_csv_submission(tmp_path, _floats())
  lines = edit(path.read_text().splitlines())
  path.write_text(''.join(f'{line}\n' for line in lines))
  with pytest.raises(ValueError, match=problem):
    check_sidd_submission(path, **SIZE)


def test_rows_that_end_as_on_windows_are_good(tmp_path):
  path = sidd.write_csv_submission(tmp_path, _floats())
  path.write_bytes(path.read_bytes().replace(b'\n', b'\r\n'))
  assert 'no problem' in check_sidd_submission(path, **SIZE)


def test_the_command_describes_a_good_submission(tmp_path, monkeypatch, capsys):
  path = sidd.write_uint8_submission(tmp_path, _floats())
  for name, value in SIZE.items():
    monkeypatch.setitem(check_sidd_submission.__kwdefaults__, name, value)
  monkeypatch.setattr(sys, 'argv', ['submission_check', str(path)])
  check.main()
  assert capsys.readouterr().out == f'{path}: 6 blocks of 7x7 as a uint8 array, 0.0 MB, no problem\n'


def test_the_command_ends_with_one_line_and_1_for_a_bad_submission(tmp_path):
  path = sidd.write_uint8_submission(tmp_path, _floats())
  process = command.start('-m', 'sadnet_jax.evaluation.submissions.check', path)
  output, errors = command.finish(process, succeeds=False)
  assert process.returncode == 1
  assert output == ''
  assert errors.count('\n') == 1
  assert 'want uint8 (40, 32, 256, 256, 3)' in errors
