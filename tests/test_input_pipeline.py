"""Training patches: what is cut, and that it depends on (seed, step) alone."""

import numpy as np
from PIL import Image
import pytest

from sadnet_jax.input_pipeline import clean_patches


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Five PNGs of several sizes; each pixel tells its image, row and column."""
  folder = tmp_path_factory.mktemp('images')
  paths = []
  for i, (height, width) in enumerate([(12, 31), (20, 9), (9, 9), (33, 17), (10, 40)]):
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([np.full_like(y, 10 * i), y, x], axis=-1).astype(np.uint8)
    paths.append(folder / f'{i}.png')
    Image.fromarray(pixels).save(paths[-1])
  return paths


def _patches(images, **changes):
  fields = {
    'channels': 3,
    'patch_px': 8,
    'batch_size': 4,
    'seed': 7,
    'first_step': 0,
    'last_step': 10,
  }
  return list(clean_patches(images, **{**fields, **changes}))


def _orientations(patch):
  rotations = [np.rot90(patch, k) for k in range(4)]
  return rotations + [np.fliplr(r) for r in rotations]


def test_every_patch_is_a_crop_of_an_image_up_to_flip_and_rotation(images):
  batches = _patches(images)
  assert len(batches) == 10
  for batch in batches:
    assert batch.shape == (4, 8, 8, 3)
    assert batch.dtype == np.uint8
    for patch in batch:
      image = np.asarray(Image.open(images[patch[0, 0, 0] // 10]))
      y, x = patch[..., 1].min(), patch[..., 2].min()
      crop = image[y : y + 8, x : x + 8]
      assert any(np.array_equal(crop, o) for o in _orientations(patch))


def test_all_eight_orientations_and_all_corners_occur(images):
  seen, corners = set(), set()
  for patch in np.concatenate(_patches(images[3:4], last_step=200)):
    image = np.asarray(Image.open(images[3]))
    y, x = patch[..., 1].min(), patch[..., 2].min()
    matches = [np.array_equal(image[y : y + 8, x : x + 8], o) for o in _orientations(patch)]
    seen.add(matches.index(True))
    corners.add((int(y), int(x)))
  assert seen == set(range(8))
  # 26 x 10 places for a crop; 800 samples miss few of them.
  assert max(y for y, _ in corners) == 25
  assert max(x for _, x in corners) == 9
  assert len(corners) > 220


def test_an_epoch_sees_every_image_once_in_an_order_that_changes(images):
  batches = _patches(images, batch_size=5, last_step=6)
  orders = [tuple(batch[:, 0, 0, 0] // 10) for batch in batches]
  assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
  assert len(set(orders)) > 1


def test_a_later_start_gives_the_same_batches(images):
  whole = _patches(images)
  np.testing.assert_array_equal(_patches(images, first_step=6), whole[6:])


def test_another_seed_gives_other_batches(images):
  assert not np.array_equal(_patches(images), _patches(images, seed=8))


def test_processes_read_shares_whose_union_is_the_whole_batch(images):
  shares = [_patches(images, process_index=i, process_count=2) for i in range(2)]
  np.testing.assert_array_equal(np.concatenate(shares, axis=1), _patches(images))


def test_one_channel_is_the_grey_version_of_the_same_crops(images):
  colour, grey = np.stack(_patches(images)), np.stack(_patches(images, channels=1))
  assert grey.shape == (*colour.shape[:-1], 1)
  expected = colour @ np.array([0.2989, 0.587, 0.114])
  assert np.abs(grey[..., 0] - expected).max() <= 0.51
