"""Small data sets in the layouts, and with the side files, of the real ones."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(height, width, seed, channels=3):
  """uint8 [height, width, channels], noise."""
  return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write(path, pixels):
  """Writes an image in the format of the name's suffix, and makes its folder."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  kind = {'.png': 'PNG', '.bmp': 'BMP', '.jpg': 'JPEG'}[path.suffix.lower()]
  Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path, kind)


def truncate(path):
  """Keeps the first half of a file: its head is whole, its pixels are not."""
  path = Path(path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SIDD_SCENES = {
  '0001_001_S6_00100_00060_3200_L': (40, 61),
  '0003_001_S6_00800_00350_3200_N': (40, 61),
  '0044_003_G4_00800_01000_5500_N': (33, 47),
  '0200_010_GP_01600_03200_5500_H': (52, 35),
}


def sidd(folder, *, small=False):
  """SIDD_Medium_Srgb or SIDD_Small_sRGB_Only as unpacked.

  Returns:
    {name of the example: (noisy, clean)}, sorted by name.
  """
  pairs = {}
  for scene, (height, width) in SIDD_SCENES.items():
    prefix = '' if small else scene[:5]
    for index in ('010',) if small else ('010', '011'):
      seed = int(scene[:4] + index)
      noisy, clean = picture(height, width, seed), picture(height, width, seed + 1)
      # Unpacked copies differ in case.
      suffix = 'png' if scene.startswith('0044') else 'PNG'
      write(folder / 'Data' / scene / f'{prefix}NOISY_SRGB_{index}.{suffix}', noisy)
      write(folder / 'Data' / scene / f'{prefix}GT_SRGB_{index}.PNG', clean)
      pairs[f'Data/{scene}/{prefix}NOISY_SRGB_{index}'] = noisy, clean
  (folder / 'Scene_Instances.txt').write_text('\n'.join(SIDD_SCENES))
  (folder / 'ReadMe_sRGB.txt').write_text('Smartphone Image Denoising Dataset')
  return dict(sorted(pairs.items()))


def renoir(folder):
  """The three archives of RENOIR; that of the T3i is nested twice, as some unpackers have it.

  Returns:
    {name of the example: (noisy, reference, full)}, sorted by name.
  """
  images = {}
  batches = [
    ('Mi3_Aligned/Batch_001', 2, (30, 44)),
    ('Mi3_Aligned/Batch_040', 1, (44, 30)),
    ('T3i_Aligned/T3i_Aligned/Batch_001', 2, (36, 36)),
    ('S90_Aligned/Batch_003', 1, (25, 51)),
  ]
  for seed, (batch, count, size) in enumerate(batches):
    path = folder / batch
    reference, full = picture(*size, 10 * seed), picture(*size, 10 * seed + 1)
    write(path / f'IMG_20160202_01{seed}215Reference.bmp', reference)
    write(path / f'IMG_20160202_01{seed}217full.bmp', full)
    write(path / 'Mask.bmp', picture(*size, 99, 1))
    write(path / 'noise_plot.png', picture(5, 5, 98))
    (path / 'Thumbs.db').write_bytes(b'\xd0\xcf\x11\xe0')
    for i in range(count):
      noisy = picture(*size, 10 * seed + 2 + i)
      write(path / f'IMG_20160202_01{seed}21{i}Noisy.bmp', noisy)
      images[f'{batch}/IMG_20160202_01{seed}21{i}Noisy'] = noisy, reference, full
  return dict(sorted(images.items()))


def polyu(folder):
  """The repository of PolyU; images are JPEG, so read them back to compare.

  Returns:
    {stem of the name without suffix: its scene}, of CroppedImages.
  """
  crops = {
    'Canon5D2_5_160_3200_chair_11': 'Canon5D2_chair',
    'Canon5D2_5_160_3200_chair_5': 'Canon5D2_chair',
    'NikonD800_11_160_3200_classroom_4': 'NikonD800_classroom',
    'NikonD800_4-5_160_1800_classroom_15': 'NikonD800_classroom',
    'NikonD800_6-3_125_5000_plant_1': 'NikonD800_plant',
    'NikonD800_6-3_125_5000_plant__4': 'NikonD800_plant',
    'SonyA7II_3-5_200_1600_plant_3': 'SonyA7II_plant',
  }
  for i, name in enumerate(crops):
    suffix = 'jpg' if i == 1 else 'JPG'
    write(folder / 'CroppedImages' / f'{name}_real.{suffix}', picture(48, 48, 2 * i))
    write(folder / 'CroppedImages' / f'{name}_mean.JPG', picture(48, 48, 2 * i + 1))
  for i, name in enumerate(('Canon5D2_chair', 'Nikon_800_carbi')):
    write(folder / 'OriginalImages' / f'{name}_Real.JPG', picture(56, 80, 100 + i))
    write(folder / 'OriginalImages' / f'{name}_mean.JPG', picture(56, 80, 200 + i))
  (folder / 'Readme.txt').write_text('Real-world noisy images')
  return crops


def nam(folder):
  """The patches of Nam that CBDNet picked.

  Returns:
    {number: (noisy, clean)}.
  """
  pairs = {f'{i:02d}': (picture(32, 32, i), picture(32, 32, 100 + i)) for i in range(1, 6)}
  for number, (noisy, clean) in pairs.items():
    write(folder / 'Nam_patches' / f'{number}_noise.png', noisy)
    write(folder / 'Nam_patch_GT' / f'{number}_gt.png', clean)
  return pairs


def div2k(folder):
  """What the four archives that TFDS's div2k/bicubic_x8 downloads unpack to.

  Returns:
    The folders, as its download manager returns them, and the clean training images.
  """
  sizes = {1: (40, 64), 2: (64, 40), 3: (48, 48), 800: (40, 57)}
  clean = {number: picture(*size, number) for number, size in sizes.items()}
  for number, pixels in clean.items():
    write(folder / 'train_hr' / 'DIV2K_train_HR' / f'{number:04d}.png', pixels)
    write(folder / 'train_lr' / 'DIV2K_train_LR_x8' / f'{number:04d}x8.png', pixels[::8, ::8])
  write(folder / 'valid_hr' / 'DIV2K_valid_HR' / '0801.png', picture(40, 40, 801))
  write(folder / 'valid_lr' / 'DIV2K_valid_LR_x8' / '0801x8.png', picture(5, 5, 801))
  parts = ('train_hr', 'train_lr', 'valid_hr', 'valid_lr')
  return {f'{part}_url': str(folder / part) for part in parts}, list(clean.values())
