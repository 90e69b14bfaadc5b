"""The folder with images of rare colours added."""

import hashlib

import numpy as np
from PIL import Image
import pytest

from tools.make_vivid import main, make_vivid


@pytest.fixture
def folder(tmp_path):
  """Seven images of pale colours."""
  (tmp_path / 'images').mkdir()
  rng = np.random.default_rng(0)
  for number in range(7):
    pixels = rng.integers(100, 150, (24, 31, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'images' / f'{number}.png')
  return tmp_path / 'images'


def hashes(folder):
  return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_images_are_copied_and_others_are_added(folder, tmp_path):
  assert make_vivid(folder, tmp_path / 'new', shapes=2) == 7 + 3 + 2
  new = hashes(tmp_path / 'new')
  assert hashes(folder).items() <= new.items()
  assert {name for name in new if name.startswith('vivid')} == {f'vivid_{n}.png' for n in (0, 3, 6)}


def test_images_of_one_name_stay_in_their_subfolders(folder, tmp_path):
  for name, moved in (('a', '0.png'), ('b', '1.png')):
    (folder / name).mkdir()
    (folder / moved).rename(folder / name / '9.png')
  assert make_vivid(folder, tmp_path / 'new', shapes=0) == 7 + 3
  for name in 'ab':
    copy = tmp_path / 'new' / name / '9.png'
    assert copy.read_bytes() == (folder / name / '9.png').read_bytes()


def test_colours_are_stronger_and_some_are_pure(folder, tmp_path):
  make_vivid(folder, tmp_path / 'new', shapes=2)

  def pixels(name):
    return np.asarray(Image.open(tmp_path / 'new' / name)).astype(int)

  def saturation(array):
    return np.ptp(array, axis=-1).mean()

  assert saturation(pixels('vivid_3.png')) > 1.5 * saturation(pixels('3.png'))
  for name in ('shapes_000.png', 'shapes_001.png'):
    assert sorted(pixels(name).shape) == [3, 321, 481]
    corner = np.isin(pixels(name), (0, 255)).all(axis=-1)
    assert 0.2 < corner.mean() < 1


def test_the_seed_decides_everything(folder, tmp_path):
  for name, seed in (('a', 1), ('b', 1), ('c', 2)):
    make_vivid(folder, tmp_path / name, shapes=1, seed=seed)
  assert hashes(tmp_path / 'a') == hashes(tmp_path / 'b')
  assert hashes(tmp_path / 'a') != hashes(tmp_path / 'c')


def test_invalid_folders_and_images_are_refused(folder, tmp_path):
  with pytest.raises(ValueError, match='images exists; choose another name'):
    make_vivid(folder, folder)
  with pytest.raises(SystemExit, match=r'^python -m tools\.make_vivid: .*none'):
    main([str(tmp_path / 'none'), str(tmp_path / 'new')])
  Image.new('L', (9, 9)).save(folder / '0.png')
  with pytest.raises(ValueError, match=r'0\.png: must be 8-bit RGB, not of mode L'):
    make_vivid(folder, tmp_path / 'new')


def test_a_folder_that_it_has_made_is_refused(folder, tmp_path):
  make_vivid(folder, tmp_path / 'new', shapes=1)
  with pytest.raises(ValueError, match=r'vivid_0.png: two images would have this name'):
    make_vivid(tmp_path / 'new', tmp_path / 'newer', shapes=1)


def test_the_command(folder, tmp_path, capsys):
  main([str(folder), str(tmp_path / 'new'), '--shapes=0', '--seed=3'])
  assert capsys.readouterr().out == f'{tmp_path / "new"}: 10 images\n'
