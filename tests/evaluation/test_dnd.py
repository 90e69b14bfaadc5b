"""DND: patches as stored in the files, and submissions as a server would read them."""

import sys

import h5py
import numpy as np
import pytest
import scipy.io

from sadnet_jax.evaluation.submissions import check, dnd
from sadnet_jax.evaluation.submissions.check import check_dnd_submission
from tests.support import matlab_files

# First row, first column, last row, last column as in info.mat: from 1, inclusive.
# Boxes of 8x8 in all four corners, along a side, and inside.
SIZES = [(31, 47), (53, 29)]
BOXES = [
  [(1, 1, 8, 8), (24, 40, 31, 47), (11, 1, 18, 8), (12, 19, 19, 26)],
  [(1, 22, 8, 29), (46, 1, 53, 8), (30, 11, 37, 18), (3, 4, 10, 11)],
]
NAMES = ['0001_01', '0001_02', '0001_03', '0001_04', '0002_01', '0002_02', '0002_03', '0002_04']
SIZE = {'images': 2, 'boxes': 4, 'patch_px': 8}


def _in_matlab(image, box):
  """InoisySRGB(r0:r1, c0:c1, :), pixel by pixel."""
  r0, c0, r1, c1 = box
  return np.array([[image[r - 1, c - 1] for c in range(c0, c1 + 1)] for r in range(r0, r1 + 1)])


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_patches_are_the_boxes_as_matlab_cuts_them(tmp_path, dtype):
  images = matlab_files.dnd(tmp_path, SIZES, BOXES, dtype=dtype)
  found = dnd.read_dnd(tmp_path)
  patches = list(found.patches())
  assert [patch.name for patch in patches] == NAMES
  assert len(found) == 8
  assert found.label == '8 patches (2 images x 4) instead of the 1000 (50 x 20) of DND'
  for i, patch in enumerate(patches):
    assert patch.noisy.dtype == np.float32
    expected = _in_matlab(images[i // 4], BOXES[i // 4][i % 4]).astype(np.float32)
    np.testing.assert_array_equal(patch.noisy, expected)
    np.testing.assert_array_equal(patch.cut(patch.noisy), expected)


def test_boxes_are_read_from_info(tmp_path):
  matlab_files.dnd(tmp_path, SIZES, BOXES)
  with h5py.File(tmp_path / 'info.mat') as file:
    info = file['info']
    tables = [np.asarray(info[info['boundingboxes'][0][i]]).T for i in range(2)]
  np.testing.assert_array_equal(tables, BOXES)
  images = dnd.read_dnd(tmp_path)
  np.testing.assert_array_equal(images.boxes[..., :2], np.array(BOXES)[..., :2] - 1)
  np.testing.assert_array_equal(images.boxes[..., 2:], np.array(BOXES)[..., 2:])


def test_the_label_of_a_complete_set_is_its_number_of_patches(tmp_path):
  assert dnd.Dnd(tmp_path, np.zeros((50, 20, 4), np.int64)).label == '1000 patches'


@pytest.mark.parametrize('margin_px', [0, 3, 10])
def test_windows_have_one_size_and_contain_the_box(tmp_path, margin_px):
  images = matlab_files.dnd(tmp_path, SIZES, BOXES)
  for i, patch in enumerate(dnd.read_dnd(tmp_path).patches(margin_px)):
    assert patch.noisy.shape == (8 + 2 * margin_px, 8 + 2 * margin_px, 3)
    image, box = images[i // 4], BOXES[i // 4][i % 4]
    np.testing.assert_array_equal(patch.cut(patch.noisy), _in_matlab(image, box))
    # The whole window is part of the photograph.
    top, left = box[0] - 1 - patch.row, box[1] - 1 - patch.column
    bottom, right = top + patch.noisy.shape[0], left + patch.noisy.shape[1]
    assert top >= 0
    assert bottom <= image.shape[0]
    assert left >= 0
    assert right <= image.shape[1]
    np.testing.assert_array_equal(patch.noisy, image[top:bottom, left:right])


def test_boxes_are_in_the_middle_except_at_a_border(tmp_path):
  matlab_files.dnd(tmp_path, SIZES, BOXES)
  places = {p.name: (p.row, p.column) for p in dnd.read_dnd(tmp_path).patches(3)}
  assert places == {
    '0001_01': (0, 0),
    '0001_02': (6, 6),
    '0001_03': (3, 0),
    '0001_04': (3, 3),
    '0002_01': (0, 6),
    '0002_02': (6, 0),
    '0002_03': (3, 3),
    '0002_04': (2, 3),
  }


def test_small_photographs_give_smaller_windows(tmp_path):
  images = matlab_files.dnd(tmp_path, SIZES, BOXES)
  patches = list(dnd.read_dnd(tmp_path).patches(12))
  assert {p.noisy.shape for p in patches[:4]} == {(31, 32, 3)}
  assert {p.noisy.shape for p in patches[4:]} == {(32, 29, 3)}
  np.testing.assert_array_equal(patches[1].cut(patches[1].noisy), _in_matlab(images[0], BOXES[0][1]))


def test_boxes_of_several_sizes_have_windows_of_one(tmp_path):
  boxes = [[(5, 9, 12, 14), (20, 30, 22, 40)]]
  images = matlab_files.dnd(tmp_path, SIZES[:1], boxes)
  for patch, box in zip(dnd.read_dnd(tmp_path).patches(2), boxes[0], strict=True):
    assert patch.noisy.shape == (8 + 4, 11 + 4, 3)
    np.testing.assert_array_equal(patch.cut(patch.noisy), _in_matlab(images[0], box))


def test_only_whole_windows_are_cut(tmp_path):
  matlab_files.dnd(tmp_path, SIZES, BOXES)
  patch = next(dnd.read_dnd(tmp_path).patches(3))
  with pytest.raises(ValueError, match=r'0001_01: .* must have the shape \(14, 14, 3\) .* not \(8, 8, 3\)'):
    patch.cut(patch.noisy[:8, :8])
  with pytest.raises(ValueError, match=r'margin_px must be at least 0, not -1'):
    next(dnd.read_dnd(tmp_path).patches(-1))


def test_missing_photographs_are_named(tmp_path):
  with pytest.raises(ValueError, match=r'info.mat: no such file; give the folder dnd_2017'):
    dnd.read_dnd(tmp_path)
  matlab_files.dnd(tmp_path, [(9, 9)] * 8, [[(1, 1, 8, 8)]] * 8)
  for i in (2, 8):
    (tmp_path / 'images_srgb' / f'{i:04}.mat').unlink()
  found = r'images_srgb: 0002.mat, 0008.mat missing of 0001.mat to 0008.mat, the 8 images of info.mat'
  with pytest.raises(ValueError, match=found):
    dnd.read_dnd(tmp_path)
  for path in (tmp_path / 'images_srgb').iterdir():
    path.unlink()
  with pytest.raises(ValueError, match=r'0001.mat, .*, 0005.mat and 3 more missing of'):
    dnd.read_dnd(tmp_path)


@pytest.mark.parametrize(
  ('boxes', 'found'),
  [
    ([[(0, 1, 8, 8)]], r'boundingboxes must be whole numbers from 1, with first <= last'),
    ([[(9, 1, 8, 8)]], r'boundingboxes must be whole'),
    ([[(1, 1, 8.5, 8)]], r'boundingboxes must be whole'),
    ([[(1, 1, 8, np.nan)]], r'boundingboxes must be whole'),
    ([[(1, 1, 8)]], r'boundingboxes must be tables .* not shapes \[\(1, 3\)\]'),
    (
      [[(1, 1, 8, 8)], [(1, 1, 8, 8)] * 2],
      r'boundingboxes must be tables .* not shapes \[\(1, 4\), \(2, 4\)\]',
    ),
  ],
)
def test_invalid_boxes_are_refused(tmp_path, boxes, found):
  matlab_files.dnd(tmp_path, [(31, 47)] * len(boxes), boxes)
  with pytest.raises(ValueError, match=rf'info.mat: {found}'):
    dnd.read_dnd(tmp_path)


def test_another_info_file_is_refused(tmp_path):
  path = tmp_path / 'info.mat'
  scipy.io.savemat(path, {'info': {'boundingboxes': np.ones((20, 4))}})
  with pytest.raises(
    ValueError, match=r'info.mat: cannot read info.boundingboxes \(.*\); use the info.mat of DND'
  ):
    dnd.read_dnd(tmp_path)
  with matlab_files.Matlab73(path) as file:
    file.array('boundingboxes', np.ones((20, 4)))
  with pytest.raises(ValueError, match=r"info.mat: cannot read info.boundingboxes \(.*'info'.*\)"):
    dnd.read_dnd(tmp_path)


@pytest.mark.parametrize(
  ('image', 'found'),
  [
    (np.zeros((31, 47, 4), np.float32), r'InoisySRGB must be single \[.* not float32 \(31, 47, 4\)'),
    (np.zeros((31, 47), np.float32), r'InoisySRGB must be single \[.* not float32 \(31, 47\)'),
    (np.zeros((31, 47, 3), np.uint8), r'InoisySRGB must be single \[.* not uint8 \(31, 47, 3\)'),
    (np.full((31, 47, 3), 255.0), r'values must be in \[0, 1\], not 255 to 255; is it the sRGB image\?'),
    (np.full((31, 47, 3), np.nan), r'values must be in \[0, 1\], not nan to nan'),
    (
      np.zeros((30, 47, 3), np.float32),
      r'the image has 47x30 pixels, but info.mat has a box at rows 24 to 31, columns 40 to 47',
    ),
  ],
)
def test_other_photographs_are_refused(tmp_path, image, found):
  matlab_files.dnd(tmp_path, SIZES, BOXES)
  with matlab_files.Matlab73(tmp_path / 'images_srgb' / '0001.mat') as file:
    file.array('InoisySRGB', image)
  with pytest.raises(ValueError, match=rf'images_srgb/0001.mat: {found}'):
    list(dnd.read_dnd(tmp_path).patches())


def test_a_damaged_photograph_is_refused_when_it_is_read(tmp_path):
  matlab_files.dnd(tmp_path, SIZES, BOXES)
  path = tmp_path / 'images_srgb' / '0002.mat'
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  patches = dnd.read_dnd(tmp_path).patches()
  assert [next(patches).name for _ in range(4)] == NAMES[:4]
  with pytest.raises(ValueError, match=r'0002.mat: unreadable MATLAB file \('):
    next(patches)


def _submission(folder, seed=0, *, bundled=True):
  """Writes a valid submission of 2 images x 4 boxes and returns {name: patch}."""
  rng = np.random.default_rng(seed)
  patches = {name: rng.random((8, 8, 3), np.float32) for name in NAMES}
  for name, patch in patches.items():
    dnd.write_patch(folder, name, patch, overwrite=True)
  if bundled:
    dnd.bundle(folder, images=2, boxes=4, overwrite=True)
  return patches


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_a_patch_is_written_as_singles_from_0_to_1(tmp_path, dtype):
  patch = np.random.default_rng(0).uniform(-0.1, 1.1, (8, 6, 3)).astype(dtype)
  patch[0, 0] = (-0.5, 0.123456, 2)
  path = dnd.write_patch(tmp_path / 'new', '0007_20', patch)
  assert path == tmp_path / 'new' / '0007_20.mat'
  content = scipy.io.loadmat(path)
  assert [name for name in content if not name.startswith('__')] == ['Idenoised_crop']
  assert content['Idenoised_crop'].dtype == np.float32
  np.testing.assert_array_equal(content['Idenoised_crop'][0, 0], np.float32([0, 0.123456, 1]))
  np.testing.assert_array_equal(content['Idenoised_crop'], np.float32(patch).clip(0, 1))


def test_a_bundle_is_a_cell_of_the_patches_of_an_image(tmp_path):
  patches = _submission(tmp_path, bundled=False)
  paths = dnd.bundle(tmp_path, images=2, boxes=4)
  assert paths == [tmp_path / 'bundled' / '0001.mat', tmp_path / 'bundled' / '0002.mat']
  for i, path in enumerate(paths):
    content = scipy.io.loadmat(path)
    assert content['Idenoised'].shape == (1, 4)
    for k in range(4):
      np.testing.assert_array_equal(content['Idenoised'][0, k], patches[NAMES[4 * i + k]])
      assert content['Idenoised'][0, k].dtype == np.float32
    assert content['eval_version'].item() == '1.0'
    assert content['israw'].item() == 0
    assert [(name, kind) for name, _, kind in scipy.io.whosmat(path)] == [
      ('Idenoised', 'cell'),
      ('israw', 'logical'),
      ('eval_version', 'char'),
    ]


def test_patches_from_the_photographs_to_the_bundles(tmp_path):
  images = matlab_files.dnd(tmp_path / 'dnd_2017', SIZES, BOXES)
  for patch in dnd.read_dnd(tmp_path / 'dnd_2017').patches(5):
    dnd.write_patch(tmp_path / 'out', patch.name, patch.cut(1 - patch.noisy))
  for i, path in enumerate(dnd.bundle(tmp_path / 'out', images=2, boxes=4)):
    for cell, box in zip(scipy.io.loadmat(path)['Idenoised'][0], BOXES[i], strict=True):
      np.testing.assert_array_equal(cell, 1 - _in_matlab(images[i], box))
  expected = f'{tmp_path / "out"}: 8 patches of 8x8, 2 bundles of them, no problem'
  assert check_dnd_submission(tmp_path / 'out', **SIZE) == expected


@pytest.mark.parametrize(
  ('patch', 'found'),
  [
    (np.zeros((8, 8), np.float32), r'must be float \[height, width, 3\], not float32 \(8, 8\)'),
    (np.zeros((8, 8, 1), np.float32), r'must be float .* not float32 \(8, 8, 1\)'),
    (np.zeros((8, 8, 3), np.uint8), r'must be float .* not uint8 \(8, 8, 3\)'),
    (np.full((8, 8, 3), np.inf), r'the denoised image contains NaN or infinity; check the weights'),
  ],
)
def test_invalid_patches_are_not_written(tmp_path, patch, found):
  with pytest.raises(ValueError, match=rf'0001_01: {found}'):
    dnd.write_patch(tmp_path, '0001_01', patch)
  assert not list(tmp_path.iterdir())


def test_files_are_replaced_only_when_that_is_allowed(tmp_path):
  patches = _submission(tmp_path)
  with pytest.raises(ValueError, match=r'0001_02.mat: file exists'):
    dnd.write_patch(tmp_path, '0001_02', 1 - patches['0001_02'])
  (tmp_path / 'bundled' / '0001.mat').unlink()
  with pytest.raises(ValueError, match=r'bundled/0002.mat: file exists'):
    dnd.bundle(tmp_path, images=2, boxes=4)
  assert not (tmp_path / 'bundled' / '0001.mat').exists()
  dnd.bundle(tmp_path, images=2, boxes=4, overwrite=True)
  assert 'no problem' in check_dnd_submission(tmp_path, **SIZE)


def test_an_incomplete_set_is_not_bundled(tmp_path):
  _submission(tmp_path, bundled=False)
  (tmp_path / '0002_03.mat').unlink()
  (tmp_path / '0002_04.mat').unlink()
  with pytest.raises(
    ValueError, match=r'0002_03.mat is missing, 2 of 2 x 4 patches in all; denoise them first'
  ):
    dnd.bundle(tmp_path, images=2, boxes=4)
  assert not (tmp_path / 'bundled').exists()


def test_patches_without_bundles_are_described(tmp_path):
  _submission(tmp_path, bundled=False)
  assert 'patches of 8x8, no bundle, no problem' in check_dnd_submission(tmp_path, **SIZE)


def _write(name, **variables):
  def damage(folder):
    scipy.io.savemat(folder / name, variables)

  return damage


def _crop(value, dtype=np.float32, shape=(8, 8, 3)):
  return np.full(shape, value, dtype)


@pytest.mark.parametrize(
  ('damage', 'problem'),
  [
    (lambda folder: (folder / '0002_04.mat').unlink(), r'0002_04.mat: no such file'),
    (lambda folder: (folder / '0001_01.mat').write_text('x'), r'0001_01.mat: unreadable MATLAB file'),
    (_write('0001_02.mat', crop=_crop(0.5)), r'0001_02.mat: no variable Idenoised_crop; the file has crop'),
    (
      _write('0001_03.mat', Idenoised_crop=_crop(0.5, np.float64)),
      r'0001_03.mat: must be single .* not float64',
    ),
    (
      _write('0001_04.mat', Idenoised_crop=_crop(0.5, shape=(8, 7, 3))),
      r'0001_04.mat: must be single .* not float32 \(8, 7, 3',
    ),
    (_write('0002_01.mat', Idenoised_crop=_crop(np.nan)), r'0002_01.mat: contains NaN or infinity'),
    (
      _write('0002_02.mat', Idenoised_crop=_crop(200)),
      r'0002_02.mat: values must be in \[0, 1\], not 200 to 200',
    ),
    (
      _write('0003_01.mat', Idenoised_crop=_crop(0.5)),
      r'\S+/0003_01.mat is not a file of DND',
    ),
  ],
)
def test_problems_of_a_patch_are_reported(tmp_path, damage, problem):
  _submission(tmp_path, bundled=False)
  damage(tmp_path)
  with pytest.raises(ValueError, match=rf': 1 problem: {problem}'):
    check_dnd_submission(tmp_path, **SIZE)


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'eval_version': '2.0'}, r"bundled/0002.mat: eval_version must be 1.0, not \['2.0'\]"),
    ({'israw': True}, r'bundled/0002.mat: israw must be false, not \[\[1\]\]'),
    ({'israw': None}, r'bundled/0002.mat: no variable israw; the file has Idenoised'),
    (
      {'Idenoised': np.zeros((4, 8, 8, 3), np.float32)},
      r'bundled/0002.mat: must have a cell \(1, 4\), not float32',
    ),
    ({'count': 3}, r'bundled/0002.mat: must have a cell \(1, 4\), not object \(1, 3\)'),
    ({3: _crop(0.5, np.float64)}, r'bundled/0002.mat, patch 4: must be single .* not float64 \(8, 8, 3\)'),
    ({0: _crop(-1)}, r'bundled/0002.mat, patch 1: values must be in \[0, 1\], not -1 to -1'),
    (
      {1: _crop(0.5)},
      r'bundled/0002.mat, patch 2: differs from the file of the patch; bundle again',
    ),
  ],
)
def test_problems_of_a_bundle_are_reported(tmp_path, changes, problem):
  _submission(tmp_path)
  path = tmp_path / 'bundled' / '0002.mat'
  content = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith('__')}
  # SciPy reads a logical as an 8-bit number.
  content |= {'israw': False, **{k: v for k, v in changes.items() if k in content}}
  for k, crop in changes.items():
    if isinstance(k, int):
      content['Idenoised'][0, k] = crop
  content['Idenoised'] = content['Idenoised'][:, : changes.get('count')]
  scipy.io.savemat(path, {k: v for k, v in content.items() if v is not None})
  with pytest.raises(ValueError, match=rf': 1 problem: {problem}'):
    check_dnd_submission(tmp_path, **SIZE)


def test_unexpected_and_missing_bundles_are_reported(tmp_path):
  _submission(tmp_path)
  bundled = tmp_path / 'bundled'
  (bundled / '0001.mat').rename(bundled / '0003.mat')
  found = r'2 problems: bundled/0003.mat is not a file of DND; bundled/0001.mat: no such file'
  with pytest.raises(ValueError, match=found):
    check_dnd_submission(tmp_path, **SIZE)


def test_many_problems_are_counted(tmp_path):
  _submission(tmp_path, bundled=False)
  with pytest.raises(ValueError, match=r'8 problems: 0001_01.mat: .*; 0002_01.mat: .*; and 3 more$'):
    check_dnd_submission(tmp_path, images=2, boxes=4, patch_px=9)
  with pytest.raises(ValueError, match=r'992 problems: 0001_05.mat: no such file'):
    check_dnd_submission(tmp_path, patch_px=8)


def test_a_folder_without_patches_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'no .mat file; a submission has 0001_01.mat to 0050_20.mat'):
    check_dnd_submission(tmp_path)


def test_the_command_checks_a_folder(tmp_path, monkeypatch, capsys):
  _submission(tmp_path)
  for name, value in SIZE.items():
    monkeypatch.setitem(check_dnd_submission.__kwdefaults__, name, value)
  monkeypatch.setattr(sys, 'argv', ['check', str(tmp_path)])
  check.main()
  assert capsys.readouterr().out == f'{tmp_path}: 8 patches of 8x8, 2 bundles of them, no problem\n'
  (tmp_path / '0001_01.mat').unlink()
  with pytest.raises(
    SystemExit, match=r'^python -m sadnet_jax.evaluation.submissions.check: .*0001_01.mat: no such'
  ):
    check.main()
