"""What the tf.data pipeline reads: the pixels Pillow reads, from files and from tiles."""

import functools
import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from sadnet_jax.data import layouts, tiles
from sadnet_jax.data.examples import Example, read_example
from sadnet_jax.data.pipeline import FileImages, TileImages, decode, patches
from sadnet_jax.images import Photograph, write_photograph
from sadnet_jax.images.arrays import read_image, rgb_to_gray
from tests.support.labelled_images import labelled_image, write_examples


class Tiles:
  """Tiles in memory, with the interface of a TileSet."""

  def __init__(self, name, pixels, scenes, has_noisy):
    self.name, self.path, self.scenes, self.has_noisy = name, f'tiles/{name}', scenes, has_noisy
    self.channels = 3 if pixels[0].ndim == 3 else 1
    self.shortest_sides = [min(image.shape[:2]) for image in pixels]
    self._pixels = pixels

  def __len__(self):
    return len(self._pixels)

  def records(self, indices):
    return [self._record(self._pixels[i]) for i in indices]

  def _record(self, pixels):
    images = {'clean': pixels} | ({'noisy': 255 - pixels} if self.has_noisy else {})
    features = {
      name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[_encoded(image, 'PNG')]))
      for name, image in images.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _encoded(pixels, kind, **options):
  content = io.BytesIO()
  Image.fromarray(pixels).save(content, kind, **options)
  return content.getvalue()


def _load(source, index):
  """Loads as the pipeline does, inside a tf.data graph."""
  dataset = tf.data.Dataset.from_tensors(tf.constant(index, tf.int64)).map(source.load)
  return next(dataset.as_numpy_iterator())


def _photo(height=61, width=47):
  """Structure at all scales and saturated colours: what JPEG decoders differ in."""
  rng = np.random.default_rng(0)
  waves = np.add.outer(np.sin(np.arange(height) / 5), np.cos(np.arange(width) / 9))[..., None]
  return np.clip(128 + 70 * waves * (1, -1, 0.5) + rng.normal(0, 40, (height, width, 3)), 0, 255).astype(
    np.uint8
  )


@pytest.mark.parametrize('channels', [3, 1])
@pytest.mark.parametrize(
  ('kind', 'options'),
  [
    ('PNG', {}),
    ('BMP', {}),
    ('JPEG', {'quality': 90, 'subsampling': 0}),
    ('JPEG', {'quality': 75, 'subsampling': 1}),
    ('JPEG', {'quality': 60, 'subsampling': 2}),
    ('JPEG', {'quality': 80, 'progressive': True}),
  ],
)
def test_pixels_are_those_that_pillow_reads(tmp_path, kind, options, channels):
  # By content: the extension of a file can be wrong.
  path = tmp_path / 'image.png'
  path.write_bytes(_encoded(_photo(), kind, **options))
  loaded = _load(FileImages([Example('image', 'image', (path,), None)], channels), 0)
  assert set(loaded) == {'clean'}
  np.testing.assert_array_equal(loaded['clean'], read_image(path, channels))


@pytest.mark.parametrize('kind', ['TIFF', 'WEBP', 'BMP of 32 bits', 'BMP with a palette'])
def test_files_whose_names_promise_another_format_are_read_too(tmp_path, kind):
  image, path = Image.fromarray(_photo()), tmp_path / 'image.png'
  if kind == 'BMP with a palette':
    image = image.quantize(16)
  image = image.convert('RGBA') if '32' in kind else image
  image.save(path, kind.split()[0])
  loaded = _load(FileImages([Example('image', 'image', (path,), None)], 3), 0)
  np.testing.assert_array_equal(loaded['clean'], read_image(path, 3))


@pytest.mark.parametrize('channels', [3, 1])
@pytest.mark.parametrize(
  'name', ['a.webp', 'a.tif', 'of_16_bits.png', 'white_at_12_bits.png', 'palette.png', 'rgba.png']
)
def test_files_that_tensorflow_cannot_decode_are_read_too(tmp_path, name, channels):
  path = tmp_path / name
  if name in ('palette.png', 'rgba.png'):
    image = Image.fromarray(_photo())
    (image.quantize(16) if name == 'palette.png' else image.convert('RGBA')).save(path)
  else:
    pixels = np.uint16(_photo()) * 257 if 'bits' in name else _photo()
    write_photograph(path, Photograph(pixels, white_level=4095 if '12' in name else None))
  loaded = _load(FileImages([Example('a', 'a', (path,), None)], channels), 0)
  np.testing.assert_array_equal(loaded['clean'], read_image(path, channels))
  assert loaded['clean'].mean() == pytest.approx(_photo().mean(), rel=0.05)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
  (tmp_path / 'a.webp').write_bytes(b'RIFF')
  with pytest.raises(tf.errors.OpError, match=r'a\.webp'):
    _load(FileImages([Example('a', 'a', (tmp_path / 'a.webp',), None)], 3), 0)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_a_grey_file_stays_as_it_is(tmp_path, kind):
  path = tmp_path / 'grey.jpg'
  path.write_bytes(_encoded(_photo()[..., 0], kind))
  np.testing.assert_array_equal(decode(path.read_bytes(), 1), read_image(path, 1))


def test_grey_is_rounded_as_by_rgb_to_gray_for_the_colours_next_to_a_half():
  weights, values = (0.298936021293775, 0.587043074451121, 0.114020904255103), np.arange(256)
  luma = functools.reduce(np.add.outer, [weight * values for weight in weights])
  # Float32 takes some of these to the other side.
  near = np.argwhere(np.abs(luma % 1 - 0.5) < 1e-5).astype(np.uint8)[:, None]
  assert len(near) > 100
  np.testing.assert_array_equal(decode(_encoded(near, 'PNG'), 1), rgb_to_gray(near))


@pytest.mark.parametrize('pairs', [False, True])
def test_files_are_loaded_by_their_number(tmp_path, pairs):
  examples = write_examples(tmp_path, pairs=pairs)
  source = FileImages(examples, 3)
  assert len(source) == 5
  assert source.has_noisy is pairs
  for index in (4, 1):
    loaded = _load(source, index)
    assert set(loaded) == ({'clean', 'noisy'} if pairs else {'clean'})
    noisy, clean = read_example(examples[index], 3)
    np.testing.assert_array_equal(loaded['clean'], clean)
    if pairs:
      np.testing.assert_array_equal(loaded['noisy'], noisy)


def test_files_that_cannot_be_loaded_are_refused(tmp_path):
  first, *others = write_examples(tmp_path, pairs=True)
  two_clean = Example('two', 'two', (*first.clean, *others[0].clean), first.noisy)
  with pytest.raises(
    ValueError, match=r"two: its ground truth is the mean of 2 clean files, .* use 'tiles' or 'memory'"
  ):
    FileImages([two_clean], 3)
  clean_only = Example('lonely', 'lonely', others[0].clean, None)
  with pytest.raises(ValueError, match=r'0 has a noisy image but lonely has none'):
    FileImages([first, clean_only], 3)
  with pytest.raises(ValueError, match=r'there are no training images'):
    FileImages([], 3)


def test_images_of_different_sizes_are_named(tmp_path):
  first, second, *_ = write_examples(tmp_path, pairs=True)
  source = FileImages([Example('mixed', 'mixed', first.clean, second.noisy)], 3)
  with pytest.raises(tf.errors.InvalidArgumentError, match=r'different sizes(.|\n)*0_clean(.|\n)*1_noisy'):
    _load(source, 0)


def test_tiles_of_several_sets_follow_each_other_without_held_out_scenes():
  first = Tiles('first', [labelled_image(i) for i in (0, 1, 2)], ['a', 'b', 'a'], has_noisy=True)
  second = Tiles('second', [labelled_image(i) for i in (3, 4)], ['c', 'd'], has_noisy=True)
  for held_out, numbers in [((), (0, 1, 2, 3, 4)), (('a', 'd'), (1, 3)), (('c',), (0, 1, 2, 4))]:
    source = TileImages([first, second], 3, held_out)
    assert len(source) == len(numbers)
    assert source.has_noisy
    for index, number in enumerate(numbers):
      loaded = _load(source, index)
      np.testing.assert_array_equal(loaded['clean'], labelled_image(number))
      np.testing.assert_array_equal(loaded['noisy'], 255 - labelled_image(number))


def test_tiles_smaller_than_a_patch_are_left_out():
  sizes = [(8, 30), (16, 16), (40, 15), (16, 40)]
  pixels = [labelled_image(0)[:1, :1].repeat(height, 0).repeat(width, 1) for height, width in sizes]
  source = TileImages([Tiles('clean', pixels, ['a', 'b', 'c', 'd'], has_noisy=False)], 3, patch_px=16)
  assert [_load(source, index)['clean'].shape[:2] for index in range(len(source))] == [(16, 16), (16, 40)]


def test_clean_tiles_come_alone_and_turn_grey():
  source = TileImages([Tiles('clean', [_photo()], ['a'], has_noisy=False)], 1)
  loaded = _load(source, 0)
  assert set(loaded) == {'clean'}
  np.testing.assert_array_equal(loaded['clean'], rgb_to_gray(_photo()))


def test_stored_tiles_are_the_pixels_of_the_files(tmp_path):
  folder = tmp_path / 'photos'
  folder.mkdir()
  (folder / '0.png').write_bytes(_encoded(_photo(), 'PNG'))
  (folder / '1.jpg').write_bytes(_encoded(_photo(40, 50), 'JPEG'))
  files = FileImages(layouts.find_examples('clean', folder).examples, 3)
  # As large as the images: one tile each.
  stored = TileImages([tiles.prepare('clean', folder, tmp_path / 'tiles', tile_px=64, stride_px=32)], 3)
  assert len(stored) == len(files) == 2
  for index, path in enumerate(['0.png', '1.jpg']):
    np.testing.assert_array_equal(_load(stored, index)['clean'], read_image(folder / path, 3))
    np.testing.assert_array_equal(_load(files, index)['clean'], read_image(folder / path, 3))
  fields = {
    'patch_px': 16,
    'batch_size': 8,
    'crops_per_image': 2,
    'seed': 0,
    'first_step': 0,
    'last_step': 20,
  }
  for of_files, of_tiles in zip(patches(files, **fields), patches(stored, **fields), strict=True):
    np.testing.assert_array_equal(of_files['clean'], of_tiles['clean'])


def test_tile_sets_that_do_not_go_together_are_refused():
  pairs = Tiles('sidd', [labelled_image(0)], ['a'], has_noisy=True)
  clean = Tiles('div2k', [labelled_image(0)], ['b'], has_noisy=False)
  with pytest.raises(ValueError, match='sidd has a noisy image but div2k has none'):
    TileImages([pairs, clean], 3)
  with pytest.raises(ValueError, match=r'none of the 1 tiles is left with 1 scenes held out'):
    TileImages([pairs], 3, ['a'])
  grey = Tiles('grey', [labelled_image(0)[..., 0]], ['a'], has_noisy=False)
  with pytest.raises(ValueError, match='tiles/grey: these tiles are grey, but the network expects colour'):
    TileImages([grey], 3)
  assert _load(TileImages([grey], 1), 0)['clean'].shape == (12, 31, 1)
