"""Data sets in device memory: what is cut, and that it depends on (seed, step) alone."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from sadnet_jax.data import on_device
from sadnet_jax.data.examples import Example, read_example
from sadnet_jax.images.arrays import rgb_to_gray
from tests.support import dataset_files
from tests.support.labelled_images import images_of, labelled_image, place_of, write_examples


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
  return write_examples(tmp_path_factory.mktemp('images'), pairs=True)


@pytest.fixture(scope='module')
def images(examples):
  return on_device.load([examples], 3)[0]


@functools.partial(jax.jit, static_argnames=('batch_size', 'patch_px', 'count'))
def _sample(images, seed, step, first, *, batch_size=4, patch_px=8, count=4):
  return on_device.sample(
    images,
    seed_key=jax.random.key(seed),
    step=step,
    batch_size=batch_size,
    patch_px=patch_px,
    first=first,
    count=count,
  )


def _clean(images, steps, *, seed=7, first=0, **fields):
  return np.stack([_sample(images, seed, step, first, **fields)['clean'] for step in steps])


def _only(examples, numbers, channels=3):
  return on_device.load([[examples[i] for i in numbers]], channels)[0]


def test_every_patch_is_a_crop_up_to_flip_and_rotation_and_the_same_of_the_noisy_image(images):
  for step in range(10):
    batch = _sample(images, 7, step, 0)
    assert batch['clean'].shape == (4, 8, 8, 3)
    assert batch['clean'].dtype == jnp.uint8
    for patch in np.asarray(batch['clean']):
      place_of(patch)
    np.testing.assert_array_equal(batch['noisy'], 255 - batch['clean'])


def test_clean_images_come_alone_and_are_cut_as_those_of_pairs(examples, images):
  (alone,) = on_device.load([[Example(e.name, e.scene, e.clean, None) for e in examples]], 3)
  batch = _sample(alone, 7, 3, 0)
  assert set(batch) == {'clean'}
  np.testing.assert_array_equal(batch['clean'], _sample(images, 7, 3, 0)['clean'])


def test_all_eight_orientations_and_all_corners_occur(images):
  places = [place_of(p) for p in np.concatenate(_clean(images, range(40), batch_size=150, count=150))]
  # The landscape image that comes first, and the largest, a portrait, which lies turned between others.
  for number, last_corner, count in [(0, (4, 23), 120), (3, (25, 9), 260)]:
    found = [place[1:] for place in places if place[0] == number]
    assert {orientation for *_, orientation in found} == set(range(8))
    corners = {(top, left) for top, left, _ in found}
    # 1200 samples miss few places.
    assert max(top for top, _ in corners) == last_corner[0]
    assert max(left for _, left in corners) == last_corner[1]
    assert len(corners) > 0.9 * count


def test_an_image_as_small_as_the_patch_is_taken_whole(examples):
  places = [place_of(p) for p in np.concatenate(_clean(_only(examples, [1, 2, 0]), range(9), patch_px=9))]
  assert {place[1:3] for place in places if place[0] == 2} == {(0, 0)}


@pytest.mark.parametrize('batch_size', [1, 3, 5, 16])
def test_an_epoch_sees_every_image_once_in_an_order_that_changes(images, batch_size):
  patches = _clean(images, range(-(-80 // batch_size)), batch_size=batch_size, count=batch_size)
  seen = images_of(np.concatenate(patches))
  orders = [tuple(seen[i : i + 5]) for i in range(0, 80, 5)]
  assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
  assert len(set(orders)) > 8


def test_one_image_fills_a_batch_with_different_crops(examples):
  patches = _clean(_only(examples, [3]), range(2), batch_size=16, count=16)
  assert len({place_of(patch) for patch in np.concatenate(patches)}) > 24


@pytest.mark.parametrize('parts', [2, 4])
def test_shares_of_a_batch_make_up_the_batch(images, parts):
  share = 8 // parts
  whole = _clean(images, range(6), batch_size=8, count=8)
  shares = [_clean(images, range(6), batch_size=8, first=i * share, count=share) for i in range(parts)]
  np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_what_a_sample_is_depends_on_its_number_in_the_run(images):
  np.testing.assert_array_equal(
    np.concatenate(_clean(images, range(6, 12))),
    np.concatenate(_clean(images, range(3, 6), batch_size=8, count=8)),
  )


def test_another_seed_gives_other_images_and_other_crops(examples, images):
  one, other = _clean(images, range(10)), _clean(images, range(10), seed=8)
  assert images_of(np.concatenate(one)) != images_of(np.concatenate(other))
  alone = _only(examples, [3])
  assert not np.array_equal(_clean(alone, range(10)), _clean(alone, range(10), seed=8))


@pytest.mark.parametrize('device_count', [2, 8])
def test_under_pmap_every_device_cuts_its_share(images, device_count):
  share = 16 // device_count

  def cut(images, position):
    first = jax.lax.axis_index('devices') * share
    batch = _sample(images, 7, position * 0 + 5, first, batch_size=16, count=share)
    return batch['clean'], batch['noisy']

  devices = jax.local_devices()[:device_count]
  shares = jax.pmap(cut, 'devices', in_axes=(None, 0), devices=devices)(images, np.arange(device_count))
  whole = _sample(images, 7, 5, 0, batch_size=16, count=16)
  for got, name in zip(shares, ('clean', 'noisy'), strict=True):
    np.testing.assert_array_equal(np.concatenate(got), whole[name])


def test_one_channel_is_the_grey_version_of_the_same_crops(examples, images):
  (grey,) = on_device.load([examples], 1)
  assert grey.nbytes < images.nbytes / 2
  np.testing.assert_array_equal(_clean(grey, range(9)), rgb_to_gray(_clean(images, range(9))))


def test_the_mean_of_two_clean_files_is_what_is_cut(tmp_path, examples):
  lighter = tmp_path / 'lighter.png'
  Image.fromarray(labelled_image(4) + np.uint8(3)).save(lighter)
  example = Example('mean', 'mean', (*examples[4].clean, lighter), None)
  patches = _clean(on_device.load([[example]], 3)[0], range(3))
  np.testing.assert_array_equal(read_example(example, 3)[1], labelled_image(4) + 2)
  for patch in np.concatenate(patches):
    place_of(patch - np.uint8(2))


def test_size_is_that_of_the_widest_image_and_is_known(images):
  # Landscape: 12x31, 9x20, 9x9, 17x33, 10x40; clean and noisy; three 4-byte numbers an image.
  assert images.nbytes == 2 * (12 + 9 + 9 + 17 + 10) * 40 * 3 + 5 * 3 * 4
  assert images.shortest_px == 9


def _device_with(**stats):
  return SimpleNamespace(platform='gpu', memory_stats=lambda: stats or None)


def test_a_data_set_that_the_device_has_no_room_for_is_refused(examples):
  with pytest.raises(ValueError, match=r'images have 5.0 GB, but only 4.0 GB are free on .*tiles'):
    on_device.check_memory(5_000_000_000, _device_with(bytes_limit=6 * 10**9, bytes_in_use=2 * 10**9))
  on_device.check_memory(4_000_000_000, _device_with(bytes_limit=6 * 10**9, bytes_in_use=2 * 10**9))
  on_device.check_memory(10**15, _device_with())
  pixels = 2 * (12 + 9 + 9 + 17 + 10) * 40 * 3
  on_device.load([examples], 3, [_device_with(bytes_limit=pixels, bytes_in_use=0)])
  with pytest.raises(ValueError, match='are free on'):
    on_device.load([examples], 3, [_device_with(bytes_limit=pixels - 1, bytes_in_use=0)])


def test_clean_images_and_pairs_share_the_memory_which_is_checked_before_decoding(examples, monkeypatch):
  clean = [Example(e.name, e.scene, e.clean, None) for e in examples]
  pixels = 3 * (12 + 9 + 9 + 17 + 10) * 40 * 3
  on_device.load([clean, examples], 3, [_device_with(bytes_limit=pixels, bytes_in_use=0)])
  monkeypatch.setattr(on_device, 'read_example', lambda *_: pytest.fail('an image was decoded'))
  with pytest.raises(ValueError, match='are free on'):
    on_device.load([clean, examples], 3, [_device_with(bytes_limit=pixels - 1, bytes_in_use=0)])
  monkeypatch.setattr(on_device.machine, 'free_host_bytes', lambda: pixels - 1)
  with pytest.raises(ValueError, match=r"are free in this machine; use data.reader = 'tiles'"):
    on_device.load([clean, examples], 3)


def test_copies_on_devices_that_are_cpus_count(examples, monkeypatch):
  pixels = 2 * (12 + 9 + 9 + 17 + 10) * 40 * 3
  cpus = jax.devices('cpu')[:2]
  copies = 1 + len(cpus)
  monkeypatch.setattr(on_device.machine, 'free_host_bytes', lambda: copies * pixels)
  on_device.load([examples], 3, cpus)
  monkeypatch.setattr(on_device.machine, 'free_host_bytes', lambda: copies * pixels - 1)
  on_device.load([examples], 3, [_device_with(bytes_limit=pixels, bytes_in_use=0)])
  with pytest.raises(ValueError, match='are free in this machine'):
    on_device.load([examples], 3, cpus)


def test_each_file_is_decoded_once_and_bad_ones_are_skipped_where_wanted(examples, tmp_path, monkeypatch):
  decoded, read, bad = [], on_device.read_example, {}
  monkeypatch.setattr(
    on_device, 'read_example', lambda example, channels: decoded.append(example) or read(example, channels)
  )
  path = tmp_path / 'half.png'
  dataset_files.write(path, dataset_files.picture(40, 40, 0))
  dataset_files.truncate(path)
  half = Example('half', 'half', (path,), None)
  clean = [Example(e.name, e.scene, e.clean, None) for e in examples]
  (images,) = on_device.load(
    [[half, *clean]], 3, patch_px=10, on_bad=lambda e, error: bad.update({e.name: str(error)})
  )
  assert [(h, w) for _, h, w in images.table.tolist()] == _landscapes_of_at_least(10, examples)
  assert len(decoded) == len(set(decoded))
  assert 'half.png: the file is damaged' in bad.pop('half')
  assert bad
  assert all('are fewer than a patch of 10x10' in text for text in bad.values())
  with pytest.raises(ValueError, match=r'half\.png: the file is damaged'):
    on_device.load([[half, *clean]], 3)


def _landscapes_of_at_least(side_px, examples):
  sizes = [sorted(on_device.example_shape(example)[:2]) for example in examples]
  return [tuple(size) for size in sizes if size[0] >= side_px]


def test_patches_larger_than_an_image_are_refused(images):
  with pytest.raises(ValueError, match='patch_px is 10, but the shortest side of an image is 9 pixels'):
    _sample(images, 7, 0, 0, patch_px=10)


def test_examples_of_which_some_have_noisy_images_are_refused(examples):
  clean = Example('clean', 'clean', examples[0].clean, None)
  with pytest.raises(ValueError, match=r'1 of 2 training images have a noisy version; .* all or none'):
    on_device.load([[examples[1], clean]], 3)
  with pytest.raises(ValueError, match=r'0 of 0 .*at least one image'):
    on_device.load([[]], 3)
