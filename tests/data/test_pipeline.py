"""Training patches by tf.data: what is cut, and that it depends on (seed, step) alone."""

import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from sadnet_jax.data.examples import Example, check_examples
from sadnet_jax.data.pipeline import FileImages, patches, prefetch_to_devices
from sadnet_jax.images.arrays import rgb_to_gray
from tests.support.command import ROOT
from tests.support.labelled_images import images_of, place_of, write_examples


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
  return write_examples(tmp_path_factory.mktemp('pairs'), pairs=True)


@pytest.fixture(scope='module')
def clean_examples(tmp_path_factory):
  return write_examples(tmp_path_factory.mktemp('clean'))


def _batches(examples, *, channels=3, **changes):
  fields = {
    'patch_px': 8,
    'batch_size': 4,
    'crops_per_image': 1,
    'seed': 7,
    'first_step': 0,
    'last_step': 10,
  }
  return list(patches(FileImages(examples, channels), **{**fields, **changes}))


def _clean(examples, **changes):
  return np.stack([batch['clean'] for batch in _batches(examples, **changes)])


@pytest.mark.parametrize('crops_per_image', [1, 3])
def test_every_patch_is_a_crop_up_to_flip_and_rotation_and_the_same_of_the_noisy_image(
  examples, crops_per_image
):
  batches = _batches(examples, crops_per_image=crops_per_image)
  assert len(batches) == 10
  for batch in batches:
    assert batch['clean'].shape == (4, 8, 8, 3)
    assert batch['clean'].dtype == np.uint8
    for patch in batch['clean']:
      place_of(patch)
    np.testing.assert_array_equal(batch['noisy'], 255 - batch['clean'])


def test_clean_images_come_alone_and_are_cut_as_those_of_pairs(examples, clean_examples):
  batches = _batches(clean_examples)
  assert [set(batch) for batch in batches] == [{'clean'}] * 10
  np.testing.assert_array_equal(np.stack([batch['clean'] for batch in batches]), _clean(examples))


def test_all_eight_orientations_and_all_corners_occur(clean_examples):
  places = [place_of(p) for p in np.concatenate(_clean([clean_examples[3]] * 4, last_step=200))]
  assert {orientation for *_, orientation in places} == set(range(8))
  corners = {(top, left) for _, top, left, _ in places}
  # 26 x 10 places for a crop; 800 samples miss few of them.
  assert max(top for top, _ in corners) == 25
  assert max(left for _, left in corners) == 9
  assert len(corners) > 220


def test_an_epoch_sees_every_image_once_in_an_order_that_changes(clean_examples):
  # Three images a batch: epochs of five begin and end within batches.
  seen = images_of(np.concatenate(_clean(clean_examples, batch_size=3)))
  orders = [tuple(seen[i : i + 5]) for i in range(0, 30, 5)]
  assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
  assert len(set(orders)) > 1


def test_a_round_takes_several_crops_of_the_images_it_decodes(clean_examples):
  steps = _clean(clean_examples, crops_per_image=4, last_step=20, batch_size=5)
  rounds = [[images_of(batch) for batch in steps[i : i + 4]] for i in range(0, 20, 4)]
  for of_steps in rounds:
    assert of_steps == [of_steps[0]] * 4
    assert sorted(of_steps[0]) == [0, 1, 2, 3, 4]
  assert len({tuple(of_steps[0]) for of_steps in rounds}) > 1
  # Image 2 has 4 places for a crop, and 8 orientations.
  assert len({place_of(p) for p in np.concatenate(steps) if images_of([p]) == [2]}) > 10


@pytest.mark.parametrize(('crops_per_image', 'first', 'last'), [(1, 6, 10), (4, 4, 10), (4, 6, 7), (4, 3, 9)])
def test_any_start_and_end_give_the_batches_of_an_uninterrupted_run(
  clean_examples, crops_per_image, first, last
):
  whole = _clean(clean_examples, crops_per_image=crops_per_image, last_step=12)
  part = _clean(clean_examples, crops_per_image=crops_per_image, first_step=first, last_step=last)
  np.testing.assert_array_equal(part, whole[first:last])


def test_another_seed_gives_other_images_and_other_crops(clean_examples):
  one, other = _clean(clean_examples), _clean(clean_examples, seed=8)
  assert images_of(np.concatenate(one)) != images_of(np.concatenate(other))
  alone = [clean_examples[3]]
  assert not np.array_equal(_clean(alone), _clean(alone, seed=8))


@pytest.mark.parametrize('process_count', [2, 4])
@pytest.mark.parametrize('crops_per_image', [1, 3])
def test_processes_read_shares_whose_union_is_the_whole_batch(examples, process_count, crops_per_image):
  fields = {'crops_per_image': crops_per_image, 'first_step': 2, 'last_step': 7}
  shares = [
    _batches(examples, process_index=i, process_count=process_count, **fields) for i in range(process_count)
  ]
  whole = _batches(examples, **fields)
  for name in ('clean', 'noisy'):
    joined = [np.concatenate([batch[name] for batch in step]) for step in zip(*shares, strict=True)]
    np.testing.assert_array_equal(joined, [batch[name] for batch in whole])


def test_one_channel_is_the_grey_version_of_the_same_crops(clean_examples):
  np.testing.assert_array_equal(_clean(clean_examples, channels=1), rgb_to_gray(_clean(clean_examples)))


def test_check_examples_names_the_bad_image(tmp_path, examples):
  check_examples(examples, 3, 9)
  check_examples(examples, 1, 9)
  with pytest.raises(ValueError, match=r'1_noisy.png: 9x20 pixels are fewer than a patch of 10x10'):
    check_examples(examples, 3, 10)
  damaged = tmp_path / 'damaged.png'
  damaged.write_bytes(examples[0].clean[0].read_bytes()[:-30])
  with pytest.raises(ValueError, match=r'damaged.png: the file is damaged or incomplete'):
    check_examples([*examples, Example('damaged', '', (damaged,), None)], 3, 9)
  grey = tmp_path / 'grey.png'
  Image.new('L', (9, 9)).save(grey)
  with pytest.raises(ValueError, match=r'grey.png: the image is grey, but colour is needed'):
    check_examples([Example('grey', '', (grey,), None)], 3, 9)
  check_examples([Example('grey', '', (grey,), None)], 1, 9)


def _numbered_batches(count):
  for step in range(count):
    yield {'clean': np.arange(8 * 3).reshape(8, 3) + 100 * step, 'noisy': np.full((8, 1), step)}


@pytest.mark.parametrize('count', [0, 1, 5])
def test_batches_reach_the_devices_split_and_in_order(count):
  devices = jax.local_devices()[2:6]
  placed = list(prefetch_to_devices(_numbered_batches(count), devices))
  assert len(placed) == count
  for got, wanted in zip(placed, _numbered_batches(count), strict=True):
    for name in ('clean', 'noisy'):
      shares = sorted(got[name].addressable_shards, key=lambda shard: shard.index[0].start)
      assert [shard.device for shard in shares] == devices
      np.testing.assert_array_equal(got[name], wanted[name].reshape(4, 2, -1))


def test_pmap_takes_a_placed_batch_without_a_copy():
  devices = jax.local_devices()[2:6]
  (batch,) = prefetch_to_devices(_numbered_batches(1), devices)
  add_one = jax.pmap(lambda a: a + 1, axis_name='devices', devices=devices)
  with jax.transfer_guard('disallow'):
    after = add_one(batch['clean'])
  # pmap's own placement: it refuses arrays on devices that lie otherwise, and copies those of the host.
  assert after.sharding == batch['clean'].sharding
  np.testing.assert_array_equal(np.asarray(after).reshape(8, 3), np.arange(24).reshape(8, 3) + 1)


@pytest.mark.parametrize('depth', [1, 2, 3])
def test_batches_are_fetched_ahead(depth):
  fetched = []

  def batches():
    for batch in _numbered_batches(10):
      fetched.append(batch)
      yield batch

  placed = prefetch_to_devices(batches(), jax.local_devices()[:2], depth)
  assert not fetched
  next(placed)
  assert len(fetched) == 1 + depth
  next(placed)
  assert len(fetched) == 2 + depth


def test_tensorflow_leaves_gpus_to_jax():
  """In a process of its own, since modules run once; TensorFlow refuses when it has started already."""
  code = """
import tensorflow as tf
hidden = []
def hide(devices, kind):
  hidden.append((devices, kind))
  raise RuntimeError('Visible devices cannot be modified after being initialized')
tf.config.set_visible_devices = hide
import sadnet_jax.data.pipeline
print(hidden)
"""
  found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert found.stdout.strip() == "[([], 'GPU')]"
