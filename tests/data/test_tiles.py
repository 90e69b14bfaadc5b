"""Tiles: every pixel is kept, nothing counts that is not whole, and what is said otherwise."""

import collections
from concurrent.futures import ThreadPoolExecutor
import errno
import fcntl
import io
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
from PIL import Image
import pytest
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from sadnet_jax.data import layouts, tile_builder, tiles
from sadnet_jax.data.examples import fingerprint
from sadnet_jax.data.folders import new_data_dir
from tests.support import dataset_files
from tests.support.real_data import DATA, needs

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = {'tile_px': 16, 'stride_px': 8}


def _png(content):
  pixels = np.asarray(Image.open(io.BytesIO(content)))
  return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _read(tile_set, indices=None):
  """Tiles, all by default, as dicts of arrays, text and integers."""
  found = []
  for record in tile_set.records(range(len(tile_set)) if indices is None else indices):
    feature = tf.train.Example.FromString(record).features.feature
    tile = {key: _png(feature[key].bytes_list.value[0]) for key in tile_set.feature_keys}
    tile |= {key: os.fsdecode(feature[key].bytes_list.value[0]) for key in ('name', 'scene')}
    found.append(tile | {key: feature[key].int64_list.value[0] for key in ('row', 'column')})
  return found


def _assemble(tile_set, key):
  """The images that the tiles were cut from, by name; a pixel no tile has is -1."""
  images = {
    image['name']: np.full((image['height'], image['width'], tile_set.channels), -1)
    for image in tile_set.images
  }
  for tile in _read(tile_set):
    height, width = tile[key].shape[:2]
    images[tile['name']][tile['row'] :, tile['column'] :][:height, :width] = tile[key]
  return images


def _files(folder):
  """All that was written, with the time, but for the locks, which are empty."""
  files = (path for path in folder.rglob('*') if path.is_file() and path.suffix != '.lock')
  return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(('tile_px', 'stride_px'), [(16, 8), (16, 16), (13, 5), (40, 40), (300, 150)])
def test_tiles_of_sidd_are_its_images_pixel_for_pixel(tmp_path, tile_px, stride_px):
  expected = dataset_files.sidd(tmp_path / 'SIDD')
  found = tiles.prepare('sidd', tmp_path / 'SIDD', tmp_path / 'tiles', tile_px=tile_px, stride_px=stride_px)
  for key, which in (('noisy', 0), ('clean', 1)):
    assembled = _assemble(found, key)
    assert list(assembled) == list(expected)
    for name, images in expected.items():
      np.testing.assert_array_equal(assembled[name], images[which])
  read = _read(found)
  assert [tile['scene'] for tile in read] == found.scenes
  assert {name: scene for tile in read for name, scene in [(tile['name'], tile['scene'])]} == {
    name: name.split('/')[1][5:8] for name in expected
  }
  for tile in read:
    height, width = expected[tile['name']][1].shape[:2]
    assert tile['clean'].shape == tile['noisy'].shape == (min(tile_px, height), min(tile_px, width), 3)
  assert found.shortest_sides == [min(tile['clean'].shape[:2]) for tile in read]
  assert found.has_noisy
  assert (found.name, found.channels, found.problems) == ('sidd', 3, [])


def test_tiles_come_in_the_order_of_images_rows_and_columns(tmp_path):
  dataset_files.write(tmp_path / 'in' / 'a.png', dataset_files.picture(20, 33, 0))
  dataset_files.write(tmp_path / 'in' / 'b.png', dataset_files.picture(16, 9, 1))
  found = tiles.prepare('clean', tmp_path / 'in', tmp_path / 'tiles', **SMALL)
  assert [(tile['name'], tile['row'], tile['column']) for tile in _read(found)] == [
    ('a', row, column) for row in (0, 4) for column in (0, 8, 16, 17)
  ] + [('b', 0, 0)]
  assert [(image['name'], image['tiles']) for image in found.images] == [('a', 8), ('b', 1)]
  assert found.scenes == ['a'] * 8 + ['b']
  assert found.shortest_sides == [16] * 8 + [9]
  assert not found.has_noisy
  assert found.feature_keys == ['clean']


def test_names_of_images_need_not_be_utf8(tmp_path):
  dataset_files.write(tmp_path / 'in' / 'caf\udce9.png', dataset_files.picture(20, 33, 0))
  found = tiles.prepare('clean', tmp_path / 'in', tmp_path / 'tiles', **SMALL)
  assert {image['name'] for image in found.images} == set(found.scenes) == {'caf\udce9'}
  assert len(_read(tiles.load('clean', tmp_path / 'in', tmp_path / 'tiles', **SMALL))) == 8


def test_tiles_are_cut_on_file_systems_without_locks(tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  dataset_files.write(tmp_path / 'in' / 'a.png', dataset_files.picture(16, 9, 1))
  assert len(tiles.prepare('clean', tmp_path / 'in', tmp_path / 'tiles', **SMALL)) == 1
  assert 'this file system has no locks (No locks available); make sure that no other process' in caplog.text


def test_a_set_too_large_for_memory_keeps_its_order_in_parts_of_a_few_images(tmp_path, monkeypatch):
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 1000)
  part_sizes = []
  read_values = shuffle._Bucket.read_values
  monkeypatch.setattr(
    shuffle._Bucket, 'read_values', lambda self: part_sizes.append(len(self)) or read_values(self)
  )
  for i in range(300):
    dataset_files.write(tmp_path / 'in' / f'{i:03d}.png', dataset_files.picture(16, 24, i))
  found = tiles.prepare('clean', tmp_path / 'in', tmp_path / 'tiles', **SMALL)
  read = _read(found)
  assert [(tile['name'], tile['column']) for tile in read] == [
    (f'{i:03d}', column) for i in range(300) for column in (0, 8)
  ]
  assert sum(part_sizes) == 600
  assert max(part_sizes) == 4
  np.testing.assert_array_equal(read[599]['clean'], dataset_files.picture(16, 24, 299)[:, 8:])


def test_renoir_and_polyu_become_tiles(tmp_path):
  expected = dataset_files.renoir(tmp_path / 'RENOIR')
  found = tiles.prepare('renoir', tmp_path / 'RENOIR', tmp_path / 'tiles', **SMALL)
  clean = _assemble(found, 'clean')
  for name, (_, reference, full) in expected.items():
    np.testing.assert_array_equal(clean[name], np.floor((reference.astype(float) + full) / 2 + 0.5))
  crops = dataset_files.polyu(tmp_path / 'PolyU')
  found = tiles.prepare('polyu', tmp_path / 'PolyU', tmp_path / 'tiles', **SMALL)
  assert len(found) == 7 * 25
  assert collections.Counter(found.scenes) == {
    scene: 25 * count for scene, count in collections.Counter(crops.values()).items()
  }
  for name, image in _assemble(found, 'noisy').items():
    (path,) = (tmp_path / 'PolyU').glob(f'{name}.*')
    np.testing.assert_array_equal(image, np.asarray(Image.open(path)))


def test_grey_images_stay_grey_and_are_not_mixed_with_colour(tmp_path):
  grey = dataset_files.picture(20, 20, 0, channels=1)
  dataset_files.write(tmp_path / 'in' / 'a.png', grey)
  found = tiles.prepare('clean', tmp_path / 'in', tmp_path / 'tiles', **SMALL)
  assert found.channels == 1
  np.testing.assert_array_equal(_assemble(found, 'clean')['a'], grey)
  # Whether the colour comes after the grey or before it.
  for name in ('b', '0'):
    colour = tmp_path / 'in' / f'{name}.png'
    dataset_files.write(colour, dataset_files.picture(20, 20, 0))
    with pytest.raises(
      ValueError,
      match=rf'a is grey and {name} in colour, but the tiles of a set must be all grey or all in colour',
    ):
      tiles.prepare('clean', tmp_path / 'in', tmp_path / 'other', **SMALL)
    colour.unlink()


def test_tfds_itself_reads_the_tiles(tmp_path):
  expected = dataset_files.nam(tmp_path / 'Nam')
  found = tiles.prepare('pairs', tmp_path / 'Nam', tmp_path / 'tiles', tile_px=32, stride_px=32)
  read = list(tfds.builder_from_directory(found.path).as_data_source(split='train'))
  assert len(read) == len(expected)
  for tile, (noisy, clean) in zip(read, expected.values(), strict=True):
    np.testing.assert_array_equal(tile['noisy'], noisy)
    np.testing.assert_array_equal(tile['clean'], clean)


def test_tensorflow_parses_the_records(tmp_path):
  dataset_files.sidd(tmp_path / 'SIDD')
  found = tiles.prepare('sidd', tmp_path / 'SIDD', tmp_path / 'tiles', **SMALL)
  keys = {key: tf.io.FixedLenFeature([], tf.string) for key in found.feature_keys}
  parsed = tf.io.parse_example(found.records([5, 2]), keys)
  read = _read(found)
  for key in ('clean', 'noisy'):
    for content, index in zip(parsed[key], (5, 2), strict=True):
      np.testing.assert_array_equal(tf.io.decode_png(content), read[index][key])


def test_threads_read_the_same_records_in_any_order(tmp_path):
  dataset_files.sidd(tmp_path / 'SIDD')
  found = tiles.prepare('sidd', tmp_path / 'SIDD', tmp_path / 'tiles', **SMALL)
  one_by_one = found.records(range(len(found)))
  assert len(set(one_by_one)) == len(found)
  order = np.random.default_rng(0).integers(0, len(found), (200, 8))
  with ThreadPoolExecutor(8) as pool:
    for indices, records in zip(order, pool.map(found.records, order), strict=True):
      assert records == [one_by_one[i] for i in indices]


def test_what_is_prepared_is_not_written_again_and_outlives_its_source(tmp_path):
  dataset_files.sidd(tmp_path / 'SIDD')
  first = tiles.prepare('sidd', tmp_path / 'SIDD', tmp_path / 'tiles', **SMALL)
  before = _files(tmp_path / 'tiles')
  # Elsewhere, but the same files.
  (tmp_path / 'SIDD').rename(tmp_path / 'moved')
  again = tiles.prepare('sidd', tmp_path / 'moved', tmp_path / 'tiles', **SMALL)
  loaded = tiles.load('sidd', 'gone', tmp_path / 'tiles', **SMALL)
  assert _files(tmp_path / 'tiles') == before
  for other in (again, loaded):
    assert other.records(range(len(first))) == first.records(range(len(first)))
    assert (other.fingerprint, other.scenes) == (first.fingerprint, first.scenes)
  found = layouts.find_examples('sidd', tmp_path / 'moved')
  assert loaded.fingerprint == fingerprint(found.examples)
  with pytest.raises(
    ValueError,
    match=r'no tiles in this folder; cut them with: python -m sadnet_jax.data sidd --folder=gone '
    rf'--tiles_dir={tmp_path}/tiles --tile_px=16 --stride_px=16$',
  ):
    tiles.load('sidd', 'gone', tmp_path / 'tiles', tile_px=16, stride_px=16)


def test_pairs_are_not_cut_as_clean_images(tmp_path):
  for name in ('1_noisy', '1_gt'):
    dataset_files.write(tmp_path / 'set' / f'{name}.png', dataset_files.picture(16, 16, 0))
  with pytest.raises(ValueError, match='has pairs of noisy and clean images'):
    tiles.prepare('clean', tmp_path / 'set', tmp_path / 'tiles', **SMALL)


def test_tiles_of_other_files_are_refused(tmp_path):
  for folder in ('a/set', 'b/set', 'b/other'):
    for i in range(len(folder)):
      dataset_files.write(tmp_path / folder / f'{i}.png', dataset_files.picture(16, 16, i))
  first = tiles.prepare('clean', tmp_path / 'a/set', tmp_path / 'tiles', **SMALL)
  other = tiles.prepare('clean', tmp_path / 'b/other', tmp_path / 'tiles', **SMALL)
  assert (len(first), len(other)) == (5, 7)
  assert len(tiles.load('clean', 'b/other', tmp_path / 'tiles', **SMALL)) == 7
  # The same name, and then another image in it.
  (tmp_path / 'b/set/0.png').unlink()
  for folder in ('b/set', 'a/set'):
    dataset_files.write(tmp_path / folder / 'new.png', dataset_files.picture(16, 16, 9))
    with pytest.raises(
      ValueError,
      match=rf'{first.path}: these tiles were cut from other files \(5 images, .*/{folder} .*delete this',
    ):
      tiles.prepare('clean', tmp_path / folder, tmp_path / 'tiles', **SMALL)


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'unpaired', 'size'])
def test_bad_files_stop_the_preparation_or_are_skipped_and_listed(tmp_path, damage):
  expected = dataset_files.sidd(tmp_path / 'SIDD')
  bad = tmp_path / 'SIDD/Data/0044_003_G4_00800_01000_5500_N/0044_GT_SRGB_010.PNG'
  # What is said, and whether the image counts as one of those that were found.
  message, counts = {
    'truncated': (
      r'0044_GT_SRGB_010.PNG: the file is damaged or incomplete.* \(no tiles were written; repair',
      8,
    ),
    'empty': (r'0044_GT_SRGB_010.PNG: the file is empty', 8),
    'unpaired': (r'0044_NOISY_SRGB_010.png: no gt image belongs to it.* \(add the missing partner', 7),
    'size': (r'0044_NOISY_SRGB_010: its images must have one size', 8),
  }[damage]
  if damage == 'truncated':
    dataset_files.truncate(bad)
  elif damage == 'empty':
    bad.write_bytes(b'')
  elif damage == 'unpaired':
    bad.unlink()
  else:
    dataset_files.write(bad, dataset_files.picture(33, 48, 0))
  arguments = ('sidd', tmp_path / 'SIDD', tmp_path / 'tiles')
  with pytest.raises(ValueError, match=message):
    tiles.prepare(*arguments, **SMALL)
  assert not _files(tmp_path / 'tiles')
  with pytest.raises(ValueError, match='no tiles in this folder'):
    tiles.load(*arguments, **SMALL)

  found = tiles.prepare(*arguments, **SMALL, skip_bad=True)
  del expected['Data/0044_003_G4_00800_01000_5500_N/0044_NOISY_SRGB_010']
  assert len(found.problems) == 1
  assert found.problems == tiles.load(*arguments, **SMALL).problems
  assert found.fingerprint.startswith(f'{counts} images, ')
  assembled = _assemble(found, 'clean')
  assert list(assembled) == list(expected)
  for name, (_, clean) in expected.items():
    np.testing.assert_array_equal(assembled[name], clean)
  # Whoever does not ask for it does not get less than the whole set.
  assert len(tiles.prepare(*arguments, **SMALL, skip_bad=True)) == len(found)
  assert len(tiles.load(*arguments, **SMALL, check=True, skip_bad=True)) == len(found)
  message = 'no gt image belongs to it' if damage == 'unpaired' else 'cut with skip_bad and lack 1 files'
  with pytest.raises(ValueError, match=message):
    tiles.prepare(*arguments, **SMALL)
  with pytest.raises(ValueError, match=message):
    tiles.load(*arguments, **SMALL, check=True)


@pytest.mark.parametrize('damage', [dataset_files.truncate, lambda path: path.write_bytes(b'')])
def test_a_set_of_bad_files_only_is_refused(tmp_path, damage):
  dataset_files.write(tmp_path / 'in' / '1.png', dataset_files.picture(40, 40, 0))
  damage(tmp_path / 'in' / '1.png')
  with pytest.raises(ValueError, match=r'clean: none of the images can be used; the first problem: .*1.png'):
    tiles.prepare('clean', tmp_path / 'in', tmp_path / 'tiles', **SMALL, skip_bad=True)
  assert not _files(tmp_path / 'tiles')


@pytest.mark.parametrize(('tile_px', 'stride_px'), [(16, 17), (16, 0), (0, 0)])
def test_strides_that_leave_gaps_are_refused(tmp_path, tile_px, stride_px):
  with pytest.raises(
    ValueError, match=rf'stride_px is {stride_px} and tile_px {tile_px}, but 1 <= stride_px'
  ):
    tiles.prepare('sidd', tmp_path, tmp_path, tile_px=tile_px, stride_px=stride_px)


def test_unknown_names_and_unwritable_folders_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"unknown data set 'imagenet'; choose one of clean, .*, polyu, div2k"):
    tiles.load('imagenet', tmp_path, tmp_path, **SMALL)
  dataset_files.nam(tmp_path / 'Nam')
  (tmp_path / 'tiles').touch()
  with pytest.raises(ValueError, match=r'cannot write tiles to this folder \(Not a directory\)'):
    tiles.prepare('pairs', tmp_path / 'Nam', tmp_path / 'tiles', **SMALL)


def test_new_data_goes_below_the_root_in_the_environment(monkeypatch):
  monkeypatch.delenv('SADNET_DATA', raising=False)
  assert new_data_dir('tiles') == Path('tiles')
  monkeypatch.setenv('SADNET_DATA', '/data')
  assert new_data_dir('tiles') == Path('/data/tiles')
  assert new_data_dir('/scratch/tiles') == Path('/scratch/tiles')


@pytest.fixture
def no_network(tmp_path, monkeypatch):
  """TFDS's own builder of DIV2K, given the contents of its archives."""
  folders, clean = dataset_files.div2k(tmp_path / 'archives')
  asked = []

  def download(self, urls):
    asked.append(urls)
    return folders

  monkeypatch.setattr(tfds.download.DownloadManager, 'download_and_extract', download)
  return asked, clean


def test_div2k_is_downloaded_once_by_tfds_and_cut(tmp_path, no_network):
  asked, expected = no_network
  arguments = ('div2k', tmp_path / 'tfds', tmp_path / 'tiles')
  found = tiles.prepare(*arguments, **SMALL)
  assert [url.rpartition('/')[2] for url in asked[0].values()] == [
    'DIV2K_train_LR_x8.zip',
    'DIV2K_valid_LR_x8.zip',
    'DIV2K_train_HR.zip',
    'DIV2K_valid_HR.zip',
  ]
  assembled = _assemble(found, 'clean')
  assert list(assembled) == list(dict.fromkeys(found.scenes)) == [f'train/{i:04d}' for i in range(4)]
  # TFDS shuffles, and keeps no names.
  assert sorted(i.tobytes() for i in assembled.values()) == sorted(i.astype(int).tobytes() for i in expected)
  before = _files(tmp_path)
  assert len(tiles.prepare(*arguments, **SMALL)) == len(found)
  assert _files(tmp_path) == before
  assert len(asked) == 1
  # The download is not wanted again once there are tiles.
  (tmp_path / 'tfds').rename(tmp_path / 'away')
  assert tiles.prepare(*arguments, **SMALL).fingerprint == found.fingerprint
  assert len(asked) == 1


@pytest.mark.parametrize(
  'error',
  [
    requests.exceptions.ConnectionError('unreachable'),
    tfds.download.DownloadError('HTTP code: 404'),
    tfds.download.download_manager.NonMatchingChecksumError('other bytes'),
    tfds.download.extractor.ExtractError('half an archive'),
  ],
)
def test_a_failed_download_of_div2k_says_what_else_can_be_done(tmp_path, monkeypatch, error):
  def fail(self, urls):
    raise error

  monkeypatch.setattr(tfds.download.DownloadManager, 'download_and_extract', fail)
  message = (
    rf"tfds: TensorFlow Datasets could not download DIV2K \({type(error).__name__}: {error}\); .*'clean'"
  )
  with pytest.raises(ValueError, match=message):
    tiles.prepare('div2k', tmp_path / 'tfds', tmp_path / 'tiles', **SMALL)
  assert not tile_builder.div2k_is_prepared(tmp_path / 'tfds')


def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
  dataset_files.nam(tmp_path / 'Nam')
  arguments = ('pairs', tmp_path / 'Nam', tmp_path / 'tiles')
  read_example, read = tile_builder.read_example, []

  def interrupted(example, channels):
    read.append(example)
    if len(read) == 3:
      raise KeyboardInterrupt
    return read_example(example, channels)

  monkeypatch.setattr(tile_builder, 'read_example', interrupted)
  with pytest.raises(KeyboardInterrupt):
    tiles.prepare(*arguments, **SMALL)
  assert not _files(tmp_path / 'tiles')
  assert len(tiles.prepare(*arguments, **SMALL)) == 5 * 9


def test_an_image_is_gone_before_the_next_is_read(tmp_path, monkeypatch):
  dataset_files.nam(tmp_path / 'Nam')
  read_example, alive = tile_builder.read_example, []

  def read(example, channels):
    assert all(image() is None for image in alive)
    images = read_example(example, channels)
    alive.extend(weakref.ref(image) for image in images)
    return images

  monkeypatch.setattr(tile_builder, 'read_example', read)
  tiles.prepare('pairs', tmp_path / 'Nam', tmp_path / 'tiles', **SMALL)
  assert len(alive) == 10


def _start(*arguments, cwd, **environment):
  command = [sys.executable, '-W', 'error', '-m', 'sadnet_jax.data', *map(str, arguments)]
  inherited = {k: v for k, v in os.environ.items() if k != 'SADNET_DATA'}
  path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
  return subprocess.Popen(
    command,
    cwd=cwd,
    env={**inherited, 'PYTHONPATH': path, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _run(*arguments, cwd, **environment):
  process = _start(*arguments, cwd=cwd, **environment)
  output, errors = process.communicate(timeout=120)
  return process.returncode, output, errors


def test_a_killed_preparation_is_repeated_from_the_start(tmp_path):
  expected = dataset_files.sidd(tmp_path / 'SIDD')
  # Thousands of tiles, so that there is time to kill it.
  dense = ('--tile_px=8', '--stride_px=1')
  process = _start('sidd', '--folder=SIDD', *dense, cwd=tmp_path)
  sets = tmp_path / 'tiles' / 'sadnet_tiles'
  while not list(sets.glob('*/incomplete*')) and process.poll() is None:
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert list(sets.glob('*/incomplete*'))
  small = {'tile_px': 8, 'stride_px': 1}
  with pytest.raises(ValueError, match='no tiles in this folder'):
    tiles.load('sidd', 'SIDD', tmp_path / 'tiles', **small)
  found = tiles.prepare('sidd', tmp_path / 'SIDD', tmp_path / 'tiles', **small)
  assert not list(sets.glob('*/incomplete*'))
  assert len(found) == sum((c.shape[0] - 7) * (c.shape[1] - 7) for _, c in expected.values())


def test_the_command_prepares_once_and_says_what_it_found(tmp_path):
  dataset_files.sidd(tmp_path / 'data' / 'SIDD')
  dataset_files.truncate(tmp_path / 'data/SIDD/Data/0200_010_GP_01600_03200_5500_H/0200_GT_SRGB_010.PNG')
  arguments = ('sidd', '--folder=SIDD', '--tile_px=16', '--stride_px=8')
  root = {'SADNET_DATA': str(tmp_path / 'data')}
  code, output, errors = _run(*arguments, cwd=tmp_path, **root)
  assert (code, output) == (1, '')
  assert errors.startswith('python -m sadnet_jax.data: ')
  assert '0200_GT_SRGB_010.PNG: the file is damaged or incomplete' in errors
  assert errors.count('\n') == 1

  code, output, errors = _run(*arguments, '--skip_bad', cwd=tmp_path, **root)
  assert (code, errors) == (0, '')
  lines = output.splitlines()
  assert lines[0] == f'sidd: 7 pairs of 3 scenes in {tmp_path}/data/SIDD'
  assert lines[1] == 'sizes: 4 of 61x40, 2 of 47x33, 1 of 35x52; 3 channels'
  assert lines[2].startswith(f'skipped: {tmp_path}/data/SIDD/Data/0200_010')
  count = 4 * 4 * 7 + 2 * 4 * 5 + 6 * 4
  path = tmp_path / 'data/tiles/sadnet_tiles/sidd-16-8/1.0.0'
  assert lines[3].startswith(f'{count} tiles cut, 16 pixels every 8, ')
  assert lines[3].endswith(f' seconds: {path}')
  assert len(lines) == 4
  code, output, _ = _run(*arguments, '--skip_bad', cwd=tmp_path, **root)
  assert code == 0
  assert f'{count} tiles exist already, ' in output


def test_the_command_refuses_in_one_line(tmp_path):
  code, _, errors = _run('clean', '--folder=nowhere', cwd=tmp_path)
  assert code == 1
  assert errors.startswith(
    'python -m sadnet_jax.data: --folder: no folder at nowhere; give the path of a folder'
  )
  code, _, errors = _run('imagenet', '--folder=.', cwd=tmp_path)
  assert code == 2
  assert "invalid choice: 'imagenet'" in errors
  assert 'Traceback' not in errors


@needs('real/PolyU')
def test_the_real_polyu_crops_become_tiles(tmp_path):
  found = tiles.prepare('polyu', DATA / 'real/PolyU', tmp_path, tile_px=300, stride_px=212)
  assert len(found) == 100 * 4
  folder = DATA / 'real/PolyU/CroppedImages'
  (tile,) = _read(found, [4 * 57 + 3])
  assert (tile['row'], tile['column']) == (212, 212)
  for key, suffix in (('noisy', 'real'), ('clean', 'mean')):
    path = folder / f'{Path(tile["name"]).name.removesuffix("_real")}_{suffix}.JPG'
    np.testing.assert_array_equal(tile[key], np.asarray(Image.open(path))[212:, 212:])
