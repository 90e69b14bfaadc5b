"""Writes the patches a run trains on as one picture: noisy patches, and below each its target.

  python -m tools.show_patches --config=configs/photo.py --config.data.train.clean=FOLDER --output=patches.png

The patches are those of the first steps of a run with this config, with its images, shares and seed. Needs
``pip install '.[train]'``.
"""

from sadnet_jax.extras import required

with required('train'):
  from absl import flags
  import jax
  from ml_collections import config_flags
  import numpy as np

  from sadnet_jax import command_line
  from sadnet_jax.files import check_output
  from sadnet_jax.images.arrays import write_png
  from sadnet_jax.images.photograph import to_8_bits
  from sadnet_jax.training.config import check_config, noise_from_config
  from sadnet_jax.training.inputs import open_training_data
  from sadnet_jax.training.loop import sampling_from_config
  from sadnet_jax.training.state import run_key
  from sadnet_jax.training.step import noisy_images, patch_keys, sample_batch

_GAP_PX = 4


def first_patches(config, steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns what the network gets in the first steps of a run, and what it should give.

  Args:
    config: See ``configs/default.py``.
    steps: Number of steps.

  Returns:
    Noisy and clean patches, uint8 [steps, batch size, P, P, C] each.

  Raises:
    ValueError: The config cannot work, or its images are missing.
  """
  check_config(config, 1)
  device = jax.local_devices()[0]
  data = open_training_data(config, [device])
  add_noise = noise_from_config(config.noise)
  batches = data.batches(0, [device])

  @jax.jit
  def make(batch, step):
    return noisy_images(
      {**batch, 'keys': patch_keys(run_key(config, 'noise'), step, 0, config.batch_size)}, add_noise
    )

  shown = []
  for step in range(steps):
    batch = next(batches)
    if batch is None:
      assert data.device_images is not None
      sampling = sampling_from_config(config, data.device_images, data.device_pairs)
      batch = sample_batch(sampling, step, first=0, count=config.batch_size)
    else:
      batch = {name: a.reshape(-1, *a.shape[2:]) for name, a in batch.items()}
    shown.append((to_8_bits(np.asarray(make(batch, step))), np.asarray(batch['clean'])))
  noisy, clean = (np.stack(images) for images in zip(*shown, strict=True))
  return noisy, clean


def contact_sheet(noisy: np.ndarray, clean: np.ndarray) -> np.ndarray:
  """Lays patches out: a step is two rows, noisy above clean.

  Args:
    noisy: uint8 [steps, N, P, P, C].
    clean: The same shape.

  Returns:
    uint8 [H, W, C], with white gaps.
  """
  gap = ((0, _GAP_PX), (0, _GAP_PX), (0, 0))

  def row(patches):
    return np.concatenate([np.pad(patch, gap, constant_values=255) for patch in patches], axis=1)

  rows = [row(patches) for step in zip(noisy, clean, strict=True) for patches in step]
  return np.concatenate(rows)[:-_GAP_PX, :-_GAP_PX]


def main() -> None:
  """Defines the flags and runs."""
  config = config_flags.DEFINE_config_file('config', None, 'The experiment, such as configs/photo.py.')
  output = flags.DEFINE_string('output', None, 'The picture to write, *.png.', required=True)
  steps = flags.DEFINE_integer('steps', 3, 'Steps to show, two rows each.', lower_bound=1)
  overwrite = flags.DEFINE_bool('overwrite', False, 'Replace an existing file.')
  flags.mark_flag_as_required('config')

  def command() -> None:
    check_output(output.value, '.png', overwrite=overwrite.value)
    sheet = contact_sheet(*first_patches(config.value, steps.value))
    write_png(output.value, sheet)
    print(f'{output.value}: {sheet.shape[1]}x{sheet.shape[0]} pixels')

  command_line.run(command)


if __name__ == '__main__':
  main()
