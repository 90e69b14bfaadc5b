"""Which files of a data set belong together, and what is said when they do not."""

from pathlib import Path

import numpy as np
from PIL import Image
import pytest
import tifffile

from sadnet_jax.data import pipeline
from sadnet_jax.data.examples import example_shape, fingerprint, hold_out, read_example
from sadnet_jax.data.layouts import find_examples, find_training_examples, refuse_pairs
from sadnet_jax.data.pairs import find_pairs
from tests.support import dataset_files
from tests.support.real_data import DATA, needs
from tests.support.work import growth


def _pixels(path):
  return np.asarray(Image.open(path))


@pytest.mark.parametrize('small', [False, True])
@pytest.mark.parametrize('given', ['.', 'SIDD', 'SIDD/Data'])
def test_sidd_is_found_at_any_depth_and_paired_by_name(tmp_path, small, given):
  expected = dataset_files.sidd(tmp_path / 'SIDD', small=small)
  found = find_examples('sidd', tmp_path / given)
  assert found.problems == []
  prefix = {'.': 'SIDD/', 'SIDD': '', 'SIDD/Data': None}[given]
  names = [n.removeprefix('Data/') if prefix is None else prefix + n for n in expected]
  assert [example.name for example in found.examples] == names
  for example, (noisy, clean) in zip(found.examples, expected.values(), strict=True):
    read = read_example(example, 3)
    np.testing.assert_array_equal(read[0], noisy)
    np.testing.assert_array_equal(read[1], clean)
  scenes = [example.scene for example in found.examples]
  assert scenes == sorted(['001', '001', '003', '010'] * (1 if small else 2))


def test_sidd_problems_are_named(tmp_path):
  expected = dataset_files.sidd(tmp_path)
  data = tmp_path / 'Data'
  scenes = sorted(p.name for p in data.iterdir())
  (data / scenes[0] / '0001_GT_SRGB_011.PNG').unlink()
  with pytest.raises(ValueError, match=r'0001_NOISY_SRGB_011.PNG: no gt image belongs to it; .* skip_bad\)$'):
    find_examples('sidd', tmp_path)
  (data / scenes[1] / '0003_NOISY_SRGB_010.PNG').unlink()
  for path in (data / scenes[2]).iterdir():
    path.unlink()
  (data / scenes[3]).rename(data / 'new')
  with pytest.raises(ValueError, match=r'skip_bad; 3 more problems\)$'):
    find_examples('sidd', tmp_path)
  found = find_examples('sidd', tmp_path, skip_bad=True)
  assert {e.name for e in found.examples} == {
    name for name in expected if name.endswith(('0001_NOISY_SRGB_010', '0003_NOISY_SRGB_011'))
  }
  assert len(found.problems) == 4
  assert '0003_GT_SRGB_010.PNG: no noisy image belongs to it' in found.problems[1]
  assert f'{scenes[2]}: no pairs of images like NOISY_SRGB_010.PNG' in found.problems[2]
  assert 'new: contains images, but its name is not like 0001_001' in found.problems[3]


def test_the_same_scene_of_two_sidd_sets_is_refused(tmp_path):
  dataset_files.sidd(tmp_path / 'Medium')
  dataset_files.sidd(tmp_path / 'Small', small=True)
  with pytest.raises(
    ValueError, match=r'Small/Data/0001_\S+: the same scene is in \S+Medium\S+; give only one'
  ):
    find_examples('sidd', tmp_path)


def test_folders_that_macos_adds_to_archives_are_ignored(tmp_path):
  dataset_files.sidd(tmp_path / 'small')
  wanted = len(find_examples('sidd', tmp_path).examples)
  for scene in (tmp_path / 'small' / 'Data').iterdir():
    for hidden in ('__MACOSX', '.Trash'):
      copy = tmp_path / hidden / 'small' / 'Data' / scene.name
      copy.mkdir(parents=True)
      (copy / '._GT_SRGB_010.PNG').write_bytes(b'')
  found = find_examples('sidd', tmp_path)
  assert (len(found.examples), found.problems) == (wanted, [])


@pytest.mark.parametrize('layout', ['clean', 'pairs'])
def test_links_to_missing_files_are_named(tmp_path, layout):
  for name in ('1_noisy', '1_clean') if layout == 'pairs' else ('1', '2'):
    dataset_files.write(tmp_path / f'{name}.png', dataset_files.picture(16, 16, 0))
  (tmp_path / '3_clean.png').symlink_to('gone.png')
  with pytest.raises(ValueError, match=r'3_clean\.png: this link leads to no file; fetch the file, or skip'):
    find_training_examples(layout, tmp_path)
  found = find_training_examples(layout, tmp_path, skip_bad=True)
  assert len(found.examples) == (1 if layout == 'pairs' else 2)
  assert found.problems == [f'{tmp_path / "3_clean.png"}: this link leads to no file']


def test_a_file_without_partner_is_not_paired_across_scenes(tmp_path):
  for name in ('A/noisy/7', 'A/noisy/1', 'A/clean/1', 'B/clean/7', 'B/noisy/9', 'B/clean/9'):
    dataset_files.write(tmp_path / f'{name}.png', dataset_files.picture(16, 16, 0))
  found = find_examples('pairs', tmp_path, skip_bad=True)
  assert [example.name for example in found.examples] == ['A/noisy/1', 'B/noisy/9']
  assert len(found.problems) == 2


def test_one_clean_folder_may_have_several_noisy_ones(tmp_path):
  for name in ('gt/1', 'gt/2', 'gt/3', 'noisy/1', 'noisy/2', 'noisy_iso3200/3'):
    dataset_files.write(tmp_path / f'{name}.png', dataset_files.picture(16, 16, 0))
  assert len(find_examples('pairs', tmp_path).examples) == 3


def test_images_of_one_scene_need_one_range(tmp_path):
  noisy = np.full((16, 16), 2000, np.uint16)
  tags = [(281, 'H', 1, 4095, True)]
  tifffile.imwrite(tmp_path / '1_clean.tif', noisy, photometric='minisblack', extratags=tags)
  # A hot pixel above white: the tag is not believed.
  noisy[3, 4] = 4300
  tifffile.imwrite(tmp_path / '1_noisy.tif', noisy, photometric='minisblack', extratags=tags)
  (example,) = find_examples('pairs', tmp_path).examples
  with pytest.raises(
    ValueError, match=r'1_noisy\.tif: its white is not known, .* 4300, but white is 4095 in'
  ):
    read_example(example, 1)
  # One that has been scaled to the full range needs no tag.
  scaled = np.full((16, 16), 32007, np.uint16)
  tifffile.imwrite(tmp_path / '1_noisy.tif', scaled, photometric='minisblack')
  np.testing.assert_array_equal(*read_example(example, 1))


def test_a_link_to_a_camera_of_renoir(tmp_path):
  dataset_files.renoir(tmp_path / 'real')
  wanted = len(find_examples('renoir', tmp_path / 'real').examples)
  (tmp_path / 'real' / 'Mi3_Aligned').rename(tmp_path / 'store')
  (tmp_path / 'real' / 'Mi3_Aligned').symlink_to(tmp_path / 'store')
  assert len(find_examples('renoir', tmp_path / 'real').examples) == wanted


def test_two_files_for_one_role_are_ambiguous(tmp_path):
  dataset_files.sidd(tmp_path)
  scene = tmp_path / 'Data' / '0001_001_S6_00100_00060_3200_L'
  dataset_files.write(scene / '0001_gt_srgb_010.png', dataset_files.picture(40, 61, 0))
  with pytest.raises(ValueError, match=r'2 gt images belong to it; it needs one noisy and one gt'):
    find_examples('sidd', tmp_path)


@pytest.mark.parametrize('given', ['.', 'Mi3_Aligned'])
def test_renoir_pairs_each_noisy_with_the_rounded_mean(tmp_path, given):
  expected = dataset_files.renoir(tmp_path)
  # macOS leaves these beside the files of an archive.
  (tmp_path / 'Mi3_Aligned' / 'Batch_001' / '._IMG_20160202_010210Noisy.bmp').write_bytes(b'\0')
  examples = find_examples('renoir', tmp_path / given).examples
  if given != '.':
    expected = {n.removeprefix(f'{given}/'): v for n, v in expected.items() if n.startswith(given)}
  assert [example.name for example in examples] == list(expected)
  for example, (noisy, reference, full) in zip(examples, expected.values(), strict=True):
    read = read_example(example, 3)
    np.testing.assert_array_equal(read[0], noisy)
    exact = (reference.astype(np.float64) + full) / 2
    np.testing.assert_array_equal(read[1], np.floor(exact + 0.5))
  scenes = [example.scene for example in examples]
  mi3 = ['Mi3/Batch_001', 'Mi3/Batch_001', 'Mi3/Batch_040']
  assert scenes == (mi3 if given != '.' else [*mi3, 'S90/Batch_003', 'T3i/Batch_001', 'T3i/Batch_001'])


def test_the_mean_rounds_halves_up(tmp_path):
  for name, values in {
    'aReference': [0, 1, 254, 255, 7],
    'afull': [1, 1, 255, 255, 10],
    'aNoisy': [0] * 5,
  }.items():
    path = tmp_path / 'S90_Aligned' / 'Batch_001' / f'{name}.bmp'
    dataset_files.write(path, np.array(values, np.uint8).reshape(1, 5, 1))
  (example,) = find_examples('renoir', tmp_path).examples
  assert read_example(example, 1)[1].ravel().tolist() == [1, 1, 255, 255, 9]


@pytest.mark.parametrize('suffix', ['Noisy', 'Reference', 'full'])
def test_an_incomplete_renoir_batch_is_named_and_skipped(tmp_path, suffix):
  dataset_files.renoir(tmp_path)
  batch = tmp_path / 'Mi3_Aligned' / 'Batch_001'
  for path in batch.glob(f'*{suffix}.bmp'):
    path.unlink()
  with pytest.raises(
    ValueError, match=rf'Batch_001: no file named \*{suffix}.bmp; a batch needs one Reference'
  ):
    find_examples('renoir', tmp_path)
  found = find_examples('renoir', tmp_path, skip_bad=True)
  assert len(found.problems) == 1
  assert len(found.examples) == 4
  assert 'Mi3/Batch_001' not in {e.scene for e in found.examples}


def test_renoir_batches_need_a_camera_and_are_unique(tmp_path):
  dataset_files.renoir(tmp_path)
  (tmp_path / 'S90_Aligned').rename(tmp_path / 'S90')
  with pytest.raises(ValueError, match=r'S90/Batch_003: this batch is not below Mi3_Aligned'):
    find_examples('renoir', tmp_path)
  (tmp_path / 'S90').rename(tmp_path / 'Mi3_Aligned' / 'Mi3_Aligned')
  (tmp_path / 'Mi3_Aligned' / 'Mi3_Aligned' / 'Batch_003').rename(
    tmp_path / 'Mi3_Aligned' / 'Mi3_Aligned' / 'Batch_040'
  )
  with pytest.raises(ValueError, match=r'Mi3_Aligned/Batch_040: Mi3/Batch_040 exists twice, first as '):
    find_examples('renoir', tmp_path)


@pytest.mark.parametrize('given', ['.', 'PolyU', 'PolyU/CroppedImages'])
def test_polyu_reads_the_crops_and_their_scenes(tmp_path, given):
  crops = dataset_files.polyu(tmp_path / 'PolyU')
  examples = find_examples('polyu', tmp_path / given).examples
  folder = tmp_path / 'PolyU' / 'CroppedImages'
  assert {e.name.rpartition('/')[2].removesuffix('_real'): e.scene for e in examples} == crops
  for example in examples:
    noisy, clean = read_example(example, 3)
    stem = example.noisy.stem.removesuffix('_real')
    np.testing.assert_array_equal(noisy, _pixels(example.noisy))
    np.testing.assert_array_equal(clean, _pixels(folder / f'{stem}_mean.JPG'))


def test_polyu_reads_the_originals_only_when_they_are_given(tmp_path):
  dataset_files.polyu(tmp_path)
  examples = find_examples('polyu', tmp_path / 'OriginalImages').examples
  assert [(e.name, e.scene) for e in examples] == [
    ('Canon5D2_chair_Real', 'Canon5D2_chair'),
    ('Nikon_800_carbi_Real', 'Nikon800_carbi'),
  ]
  (tmp_path / 'CroppedImages').rename(tmp_path / 'other')
  with pytest.raises(ValueError, match=r'no CroppedImages folder with .*; give the PolyU .* OriginalImages'):
    find_examples('polyu', tmp_path)


def test_polyu_problems_are_named(tmp_path):
  dataset_files.polyu(tmp_path)
  folder = tmp_path / 'CroppedImages'
  (folder / 'NikonD800_6-3_125_5000_plant__4_mean.JPG').unlink()
  with pytest.raises(
    ValueError, match=r'plant__4_real.JPG: no mean image belongs to it; it needs one real and one mean'
  ):
    find_examples('polyu', tmp_path)
  for name in ('flower', 'Canon5D2_160_3200_chair_11'):
    for role in ('real', 'mean'):
      dataset_files.write(folder / f'{name}_{role}.JPG', dataset_files.picture(8, 8, 0))
  found = find_examples('polyu', tmp_path, skip_bad=True)
  assert len(found.problems) == 3
  assert 'chair_11_real.JPG: no camera and scene in its name' in found.problems[0]
  assert 'flower_real.JPG: no camera and scene in its name' in found.problems[2]
  assert len(found.examples) == 6


def test_nam_is_a_folder_of_pairs(tmp_path):
  expected = dataset_files.nam(tmp_path)
  examples = find_examples('pairs', tmp_path).examples
  assert [e.name for e in examples] == [f'Nam_patches/{number}_noise' for number in expected]
  for example, (noisy, clean) in zip(examples, expected.values(), strict=True):
    np.testing.assert_array_equal(read_example(example, 3)[0], noisy)
    np.testing.assert_array_equal(read_example(example, 3)[1], clean)


def test_sidd_small_and_polyu_crops_are_folders_of_pairs_too(tmp_path):
  dataset_files.sidd(tmp_path / 'small', small=True)
  dataset_files.polyu(tmp_path / 'PolyU')
  for name, folder in (('sidd', tmp_path / 'small'), ('polyu', tmp_path / 'PolyU' / 'CroppedImages')):
    own, pairs = find_examples(name, folder).examples, find_examples('pairs', folder).examples
    assert [(e.noisy, e.clean) for e in own] == [(e.noisy, e.clean) for e in pairs]
    assert all(e.scene == e.name for e in pairs)


@pytest.mark.parametrize(
  ('noisy', 'clean'),
  [
    ('noisy/1.png', 'clean/1.png'),
    ('noisy/deep/1.png', 'clean/deep/1.PNG'),
    ('a/input/1.png', 'a/target/1.jpg'),
    ('1_noisy.png', '1_gt.png'),
    ('1-REAL.jpg', '1-Mean.jpg'),
    ('x.noise.bmp', 'x.clean.bmp'),
    ('real_5_noisy.png', 'real_5_gt.png'),
    ('s1/noisy.png', 's1/gt.png'),
    ('train_noisy/1.png', 'train_gt/1.png'),
    ('test/noisy/1_noisy.png', 'test/gt/1_gt.png'),
    ('noisy/1.png', 'ground_truth/1.png'),
    ('1 noisy.png', '1 Ground-Truth.png'),
    ('noisy25/1.png', 'clean/1.png'),
    ('a/1_noisy25.png', 'a/1_gt.png'),
    ('noisy_1.png', 'clean1.png'),
  ],
)
def test_pairs_are_told_by_words_of_names_and_folders(tmp_path, noisy, clean):
  for path in (noisy, clean):
    dataset_files.write(tmp_path / path, dataset_files.picture(4, 4, 0))
  (example,) = find_examples('pairs', tmp_path).examples
  assert (example.noisy, example.clean) == (tmp_path / noisy, (tmp_path / clean,))
  assert example.name == noisy.rpartition('.')[0] == example.scene


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    (['1.png'], r'1.png: its name does not say whether it is noisy or clean; put one of the words input, lq'),
    (['1_noisy.png'], r"1_noisy.png: this noisy image \(by the word 'noisy'\) has no clean partner"),
    (['clean/1.png'], r"1.png: this clean image \(by the word 'clean'\) has no noisy partner"),
    (
      ['1_gt.png', '1_noisy.png', '1_real.png'],
      r'1_gt.png: .* could be paired with .*1_noisy.png, .*1_real.png; leave one',
    ),
    # The partner that each lacks must not be taken from the other scene.
    (
      ['1/a_noisy.png', '1/b_gt.png', '1/b_noisy.png', '2/a_gt.png'],
      r'1/a_noisy.png: .* has no clean',
    ),
    (['noisy1.png', 'clean2.png'], r'clean2.png: .* has no noisy'),
    (['clean/a.png', 'noisy25/a.png', 'noisy50/a.png'], r'clean/a.png: .* has no noisy'),
    (['1/noisy_a.png', '2/gt_a.png', '3/noisy_a.png'], r'1/noisy_a.png: .* has no clean'),
    (['1/gt_a.png', '1/noisy_a.png', '2/gt_a.png', '3/noisy_a.png'], r'2/gt_a.png: .* has no noisy'),
  ],
)
def test_files_that_are_no_pairs_are_refused_by_name(tmp_path, files, message):
  dataset_files.nam(tmp_path / 'more')
  for path in files:
    dataset_files.write(tmp_path / path, dataset_files.picture(4, 4, 0))
  with pytest.raises(ValueError, match=message):
    find_examples('pairs', tmp_path)
  found = find_examples('pairs', tmp_path, skip_bad=True)
  # Of four files, two are a pair in a folder.
  paired = 1 if len(files) == 4 else 0
  assert len(found.examples) == 5 + paired
  assert len(found.problems) == len(files) - 2 * paired


def test_noisy_copies_beside_the_originals_are_not_clean_images(tmp_path):
  for folder in ('original', 'original_png', 'noisy15', 'Noisy50'):
    dataset_files.write(tmp_path / folder / '1.png', dataset_files.picture(4, 4, 0))
  (example,) = find_examples('clean', tmp_path).examples
  assert example.name == 'original_png/1'
  for folder in ('original', 'original_png'):
    (tmp_path / folder).rename(tmp_path / f'other_{folder}')
  with pytest.raises(ValueError, match=r'folders of noisy images \(Noisy50, noisy15\).*give the folder of'):
    find_examples('clean', tmp_path)


def test_noisy_copies_deeper_in_a_folder_are_not_clean_images(tmp_path):
  for folder in ('original', 'noisy15'):
    dataset_files.write(tmp_path / 'CBSD68/CBSD68' / folder / '1.png', dataset_files.picture(4, 4, 0))
  message = r'has a folder of noisy images, CBSD68/noisy15, .*; give the folder .*/CBSD68/CBSD68, or'
  with pytest.raises(ValueError, match=message):
    find_examples('clean', tmp_path / 'CBSD68')
  assert len(find_examples('clean', tmp_path / 'CBSD68/CBSD68').examples) == 1


def test_pairs_are_not_clean_images(tmp_path):
  for path in ('noisy/1.png', 'clean/1.png'):
    dataset_files.write(tmp_path / path, dataset_files.picture(4, 4, 0))
  with pytest.raises(ValueError, match=r'such as noisy/1.png and clean/1.png, but clean ones are wanted'):
    refuse_pairs(tmp_path)
  refuse_pairs(tmp_path / 'clean')
  # By chance, among others.
  for number in range(9):
    dataset_files.write(tmp_path / f'{number}.png', dataset_files.picture(4, 4, 0))
  refuse_pairs(tmp_path)


def test_links_to_folders_are_followed_once_and_not_upwards(tmp_path):
  for path in ('elsewhere/b.png', 'all/own/a.png'):
    dataset_files.write(tmp_path / path, dataset_files.picture(4, 4, 0))
  for link, target in (
    ('all/more', 'elsewhere'),
    ('all/again', 'elsewhere'),
    ('all/a_link', 'all/own'),
    ('all/own/up', '.'),
    ('elsewhere/circle', 'all'),
  ):
    (tmp_path / link).symlink_to(tmp_path / target)
  names = [example.name for example in find_examples('clean', tmp_path / 'all').examples]
  assert names == ['again/b', 'own/a']


def test_clean_images_are_found_and_named_uniquely(tmp_path):
  for path in ('b.png', 'a/b.bmp', 'c.png', 'c.jpg'):
    dataset_files.write(tmp_path / path, dataset_files.picture(4, 4, 0))
  (tmp_path / 'notes.txt').touch()
  found = find_examples('clean', tmp_path)
  assert [e.name for e in found.examples] == ['a/b', 'b', 'c.jpg', 'c.png']
  assert all(e.noisy is None and e.scene == e.name for e in found.examples)
  noisy, clean = read_example(found.examples[1], 3)
  assert noisy is None
  np.testing.assert_array_equal(clean, dataset_files.picture(4, 4, 0))


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('clean', r'the folder has no image'),
    ('pairs', r'the folder has no image'),
    ('sidd', r'no Data folder with scenes .*; give SIDD_Medium_Srgb as unpacked, from the SIDD page'),
    (
      'renoir',
      r'no Batch_NNN folder in this folder; give Mi3_Aligned, T3i_Aligned and S90_Aligned as unpacked, from',
    ),
    ('polyu', r'no CroppedImages folder with \*_real.JPG and \*_mean.JPG in this folder; give the PolyU'),
  ],
)
def test_missing_and_empty_folders_say_what_is_wanted(tmp_path, name, message):
  with pytest.raises(ValueError, match=message):
    find_examples(name, tmp_path)
  with pytest.raises(ValueError, match=r'gone: no such folder; give (a folder of|SIDD_M|Mi3_A|the PolyU)'):
    find_examples(name, tmp_path / 'gone')


def test_nothing_usable_is_an_error_even_where_problems_are_skipped(tmp_path):
  dataset_files.write(tmp_path / '1.png', dataset_files.picture(4, 4, 0))
  with pytest.raises(
    ValueError, match=r'no pair .*, and 1 files that cannot be used, the first: .*1.png: its name'
  ):
    find_examples('pairs', tmp_path, skip_bad=True)
  with pytest.raises(
    ValueError, match=r"unknown data set 'div2k'; choose one of clean, pairs, sidd, renoir, polyu"
  ):
    find_examples('div2k', tmp_path)


def test_a_pair_of_different_sizes_and_a_damaged_file_are_named(tmp_path):
  expected = dataset_files.sidd(tmp_path)
  examples = find_examples('sidd', tmp_path).examples
  assert [example_shape(e) for e in examples] == [clean.shape for _, clean in expected.values()]
  dataset_files.write(examples[0].clean[0], dataset_files.picture(40, 60, 0))
  message = r'0001_NOISY_SRGB_010: its images must have one size.*NOISY\S+ of 61x40, .*GT\S+ of 60x40 pixels'
  for read in (example_shape, lambda e: read_example(e, 3)):
    with pytest.raises(ValueError, match=message):
      read(examples[0])
  dataset_files.truncate(examples[1].noisy)
  with pytest.raises(ValueError, match=r'0001_NOISY_SRGB_011.PNG: the file is damaged or incomplete'):
    read_example(examples[1], 3)
  examples[2].clean[0].write_bytes(b'')
  with pytest.raises(ValueError, match=r'0003_GT_SRGB_010.PNG: the file is empty'):
    example_shape(examples[2])


def test_grey_images_are_seen_by_their_heads(tmp_path):
  dataset_files.write(tmp_path / 'a.png', dataset_files.picture(5, 7, 0, channels=1))
  (example,) = find_examples('clean', tmp_path).examples
  assert example_shape(example) == (5, 7, 1) == read_example(example, 1)[1].shape


def test_scenes_are_held_out_together(tmp_path):
  dataset_files.sidd(tmp_path)
  examples = find_examples('sidd', tmp_path).examples
  kept, held_out = hold_out(examples, ['001', '010'])
  assert [e.scene for e in kept] == ['003', '003']
  assert kept + held_out != examples
  assert sorted(kept + held_out, key=examples.index) == examples
  assert hold_out(examples, ()) == (examples, [])
  with pytest.raises(ValueError, match=r'no scene 002, 011 to hold out; the scenes are 001, 003, 010$'):
    hold_out(examples, ['011', '001', '002'])


def test_names_of_files_need_not_be_utf8(tmp_path):
  dataset_files.write(tmp_path / 'caf\udce9.png', dataset_files.picture(4, 4, 0))
  examples = find_examples('clean', tmp_path).examples
  assert fingerprint(examples).startswith('1 images, ')
  (batch,) = pipeline.patches(
    pipeline.FileImages(examples, 3),
    patch_px=4,
    batch_size=1,
    crops_per_image=1,
    seed=0,
    first_step=0,
    last_step=1,
  )
  assert batch['clean'].shape == (1, 4, 4, 3)


def test_several_noisy_images_share_the_one_truth_of_their_folder(tmp_path):
  names = 'a/gt a/noisy_1 a/noisy_2 b/x/ISO100_noisy b/x/ISO800_noisy b/x/Mean c/noisy c/gt'
  for name in names.split():
    dataset_files.write(tmp_path / f'{name}.png', dataset_files.picture(4, 4, 0))
  found = find_examples('pairs', tmp_path)
  assert [(e.name, e.scene, e.clean) for e in found.examples] == [
    ('a/noisy_1', 'a', (tmp_path / 'a/gt.png',)),
    ('a/noisy_2', 'a', (tmp_path / 'a/gt.png',)),
    ('b/x/ISO100_noisy', 'b/x', (tmp_path / 'b/x/Mean.png',)),
    ('b/x/ISO800_noisy', 'b/x', (tmp_path / 'b/x/Mean.png',)),
    ('c/noisy', 'c/noisy', (tmp_path / 'c/gt.png',)),
  ]
  assert [e.scene for e in hold_out(found.examples, ['a'])[1]] == ['a', 'a']
  assert {e.scene for e in find_examples('pairs', tmp_path / 'a').examples} == {'a'}


def test_a_picture_whose_name_is_such_a_word_is_no_truth_of_its_folder(tmp_path):
  for name in ('book', 'car', 'target_1'):
    for role in ('noisy', 'clean'):
      dataset_files.write(tmp_path / role / f'{name}.png', dataset_files.picture(4, 4, 0))
  dataset_files.write(tmp_path / 'noisy' / 'target.png', dataset_files.picture(4, 4, 0))
  found = find_examples('pairs', tmp_path, skip_bad=True)
  assert [(e.noisy.name, e.clean[0].name) for e in found.examples] == [
    ('book.png', 'book.png'),
    ('car.png', 'car.png'),
  ]


@pytest.mark.parametrize(
  'names',
  [
    # The truth of which?
    ('1_noisy', '2_noisy', '3_gt'),
    ('1_noisy', '2_noisy', 'gt', 'mean'),
    ('a/1_noisy', 'a/2_noisy', 'gt'),
  ],
)
def test_several_noisy_images_without_one_truth_are_problems(tmp_path, names):
  for name in names:
    dataset_files.write(tmp_path / f'{name}.png', dataset_files.picture(4, 4, 0))
  with pytest.raises(ValueError, match=r'1_noisy\.png: this noisy image'):
    find_examples('pairs', tmp_path)


def test_the_fingerprint_depends_on_the_files_not_on_their_location(tmp_path):
  for folder in ('a', 'b'):
    dataset_files.sidd(tmp_path / folder)
  first, second = (find_examples('sidd', tmp_path / folder).examples for folder in ('a', 'b'))
  assert fingerprint(first) == fingerprint(second) == fingerprint(first[::-1])
  assert fingerprint(first).startswith('8 images, ')
  assert fingerprint(first[1:]) != fingerprint(first)
  clean = second[3].clean[0]
  clean.write_bytes(clean.read_bytes() + b'\0')
  assert fingerprint(second) != fingerprint(first)
  clean.unlink()
  with pytest.raises(ValueError, match=rf'{clean}: this file no longer exists'):
    fingerprint(second)


@needs('real/PolyU')
def test_the_real_polyu_crops():
  found = find_examples('polyu', DATA / 'real/PolyU')
  assert len(found.examples) == 100
  assert found.problems == []
  plants = [e.noisy.name for e in found.examples if e.scene == 'NikonD800_plant']
  assert 'NikonD800_6-3_125_5000_plant__4_real.JPG' in plants
  errors = []
  for example in found.examples:
    assert example.clean[0].name == example.noisy.name.replace('_real', '_mean')
    noisy, clean = read_example(example, 3)
    errors.append(10 * np.log10(255**2 / np.mean((noisy.astype(np.float64) - clean) ** 2)))
  # Of the noisy crops, as others report it.
  assert np.mean(errors) == pytest.approx(35.969, abs=1e-3)


@needs('test/Nam')
def test_the_real_nam_patches():
  examples = find_examples('pairs', DATA / 'test/Nam').examples
  assert [e.noisy.name for e in examples] == [f'{i:02d}_noise.png' for i in range(1, 26)]
  assert [e.clean[0].name for e in examples] == [f'{i:02d}_gt.png' for i in range(1, 26)]
  images = [[image.astype(np.float64) for image in read_example(e, 3)] for e in examples]
  errors = [10 * np.log10(255**2 / np.mean((noisy - clean) ** 2)) for noisy, clean in images]
  assert np.mean(errors) == pytest.approx(37.064, abs=1e-3)


@pytest.mark.parametrize('name', ['noisy/{}.png', 'noisy/{}_gt_noisy.png', 'noisy/1.{}'])
def test_pairing_grows_with_the_number_of_files_without_partner_not_with_its_square(name):
  def make(count):
    paths = [Path('folder', name.format(number)) for number in range(count)]
    return lambda: find_pairs(paths, Path('folder'))

  assert growth(make) < 2.5
