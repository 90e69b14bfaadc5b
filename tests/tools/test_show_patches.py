"""The contact sheet of training patches."""

import numpy as np
from PIL import Image

from configs import default
from sadnet_jax.images.arrays import read_image
from tests.support.command import finish, start
from tools.show_patches import contact_sheet, first_patches


def _images(folder):
  folder.mkdir()
  rng = np.random.default_rng(1)
  for name in 'ab':
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f'{name}.png')
  return folder


def test_the_patches_are_those_of_the_run(tmp_path):
  config = default.get_config()
  config.data.train.clean = str(_images(tmp_path / 'clean'))
  config.data.update(reader='memory', patch_px=16)
  config.update(batch_size=4)
  config.noise.update(sigma_255=20.0, clean_share=0.5)
  noisy, clean = first_patches(config, 4)
  assert noisy.shape == clean.shape == (4, 4, 16, 16, 3)
  unchanged = (noisy == clean).all(axis=(2, 3, 4))
  # Half without noise, by the draw of each patch.
  assert 3 <= unchanged.sum() <= 13
  error = noisy[~unchanged].astype(float) - clean[~unchanged]
  assert 15 < error.std() < 22


def test_noisy_is_above_clean():
  noisy, clean = np.full((2, 3, 8, 8, 1), 10, np.uint8), np.full((2, 3, 8, 8, 1), 200, np.uint8)
  sheet = contact_sheet(noisy, clean)
  assert sheet.shape == (4 * 12 - 4, 3 * 12 - 4, 1)
  assert [int(sheet[row, 0, 0]) for row in (0, 12, 24, 36)] == [10, 200, 10, 200]


def test_the_command_writes_a_picture(tmp_path):
  arguments = (
    '-m',
    'tools.show_patches',
    '--config=configs/color.py:50',
    f'--config.data.train.clean={_images(tmp_path / "clean")}',
    '--config.data.reader=memory',
    '--config.data.patch_px=16',
    f'--output={tmp_path / "sheet.png"}',
    '--steps=1',
  )
  output, _ = finish(start(*arguments))
  assert '316x36 pixels' in output
  assert read_image(tmp_path / 'sheet.png', 3).shape == (36, 316, 3)
  _, errors = finish(start(*arguments), succeeds=False)
  assert 'exists; choose another name or pass --overwrite' in errors
  _, errors = finish(start(*arguments[:-2], f'--output={tmp_path / "sheet.jpg"}'), succeeds=False)
  assert 'sheet.jpg must have the extension .png' in errors
