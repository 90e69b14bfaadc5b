"""One run that draws from clean images and from pairs, by shares."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest

from configs import default
from sadnet_jax.data.on_device import DeviceImages
from sadnet_jax.training.config import check_config
from sadnet_jax.training.inputs import open_training_data
from sadnet_jax.training.loop import train
from sadnet_jax.training.state import TrainState
from sadnet_jax.training.step import OnDeviceSampling, make_parallel_step
from tests.support.small_networks import PLAIN

pytestmark = pytest.mark.usefixtures('compiled_once')

SHARE = 0.3


def _stack(values):
  return np.concatenate([np.full((8, 8 * 3), value, np.uint8) for value in values])


def test_each_patch_is_a_pair_with_the_probability_of_the_share():
  """With an identity network, the loss says how many patches came from where."""
  table = np.array([[0, 8, 8], [8, 8, 8]], np.int32)
  clean = DeviceImages(_stack([100, 100]), None, table, channels=3, shortest_px=8)
  # The noisy images of the pairs are equal to the clean ones.
  pairs = DeviceImages(_stack([50, 50]), _stack([50, 50]), table, channels=3, shortest_px=8)
  step = make_parallel_step(
    jax.devices()[:1],
    noise_key=jax.random.key(0),
    add_noise=lambda keys, clean: clean + 1,
    loss=lambda denoised, clean: jnp.mean(denoised - clean),
    sampling=OnDeviceSampling(
      clean, jax.random.key(1), batch_size=50, patch_px=8, pairs=pairs, pairs_share=SHARE
    ),
  )
  state = TrainState.create(
    apply_fn=lambda variables, noisy, mutable: (noisy + 0 * variables['params']['out'], {}),
    params={'out': jnp.zeros(())},
    tx=optax.sgd(0.0),
    ema=None,
    skipped=jnp.int32(0),
  )
  losses = []
  for _ in range(20):
    state, metrics = step(state, None)
    losses.append(float(metrics['loss']))
  # Noise of 1 on clean patches, 0 on pairs. Three standard errors of a share of 1,000 draws.
  assert 1 - np.mean(losses) == pytest.approx(SHARE, abs=3 * np.sqrt(SHARE * (1 - SHARE) / 1000))
  assert len(set(losses)) > 3


@pytest.mark.parametrize('is_split', [False, True])
def test_a_batch_of_both_may_be_split_among_the_devices_before(is_split):
  devices = jax.devices()[:1]
  step = make_parallel_step(
    devices,
    noise_key=jax.random.key(0),
    add_noise=lambda keys, clean: clean + 1,
    loss=lambda denoised, clean: jnp.mean(denoised - clean),
    ema_decay=0.5,
  )
  start = {'out': jnp.zeros(())}
  state = TrainState.create(
    apply_fn=lambda variables, noisy, mutable: (noisy + variables['params']['out'], {}),
    params=start,
    tx=optax.sgd(1.0),
    # The same array as the parameters, where a state's arrays are donated.
    ema=start,
    skipped=jnp.int32(0),
  )
  images = np.full((4, 8, 8, 3), 51, np.uint8)
  batch = {'clean': images, 'noisy': images, 'is_pair': np.array([True, False, True, True])}
  if is_split:
    batch = {name: a.reshape(len(devices), -1, *a.shape[1:]) for name, a in batch.items()}
  state, metrics = step(state, batch)
  assert float(metrics['loss']) == pytest.approx(0.25)
  assert (float(state.params['out']), float(state.ema['out'])) == pytest.approx((-1, -0.9))
  # What the first state was made of can still be used.
  assert float(start['out']) == 0


@pytest.fixture
def config(tmp_path):
  rng = np.random.default_rng(0)
  for folder, names in (('clean', ['a', 'b']), ('pairs', ['c_noisy', 'c_gt', 'd_noisy', 'd_gt'])):
    (tmp_path / folder).mkdir()
    for name in names:
      pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(tmp_path / folder / f'{name}.png')
  config = default.get_config()
  config.model.update(PLAIN)
  config.data.train.clean, config.data.train.pairs = str(tmp_path / 'clean'), str(tmp_path / 'pairs')
  config.data.update(reader='memory', patch_px=16, pairs_share=0.5)
  config.noise.update(sigma_255_range=(0.0, 50.0), clip=0.5, grain_share=0.3)
  config.noise.update(camera='brooks', camera_share=0.4, clean_share=0.2)
  config.update(batch_size=4, steps=4, checkpoint_every=2, log_every=2)
  config.validation.every = 0
  return config


def test_a_mixed_run_continues_bit_for_bit(config, tmp_path):
  whole = train(config, tmp_path / 'run', jax.devices()[:1])
  # As if the process had been killed before it saved its last step.
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
  parts = train(config, tmp_path / 'run', jax.devices()[:1])
  for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'data.pairs_share': 0.0},
      'and pairs .*, and config.data.pairs_share is 0.0; set',
    ),
    ({'data.train.pairs': ''}, 'config.data.pairs_share is 0.5, but config.data.train names only clean'),
    ({'data.reader': 'files'}, "reader is 'files', but clean images and pairs together .* 'memory'"),
    ({'noise.camera': 'leica'}, "config.noise.camera is 'leica', but must be one of"),
    ({'noise.sigma_255_range': (), 'noise.sigma_255': 0.0}, 'training on clean images needs noise'),
  ],
)
def test_refuses(config, changes, message):
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    check_config(config, 1)


def test_a_clean_image_with_the_name_of_a_held_out_scene_is_trained_on(config, tmp_path):
  (tmp_path / 'clean' / 'a.png').rename(tmp_path / 'clean' / 'c_noisy.png')
  config.data.held_out = ('c_noisy',)
  data = open_training_data(config, jax.devices()[:1])
  (held_out,) = data.held_out
  assert held_out.noisy == tmp_path / 'pairs' / 'c_noisy.png'
  assert [len(images.table) for images in (data.device_images, data.device_pairs)] == [2, 1]


def test_damaged_held_out_images_are_skipped_where_configured(config, tmp_path, capsys):
  config.data.held_out = ('c_noisy',)
  path = tmp_path / 'pairs' / 'c_noisy.png'
  path.write_bytes(path.read_bytes()[:-30])
  # Validation names it then.
  assert len(open_training_data(config, jax.devices()[:1]).held_out) == 1
  config.data.skip_bad = True
  data = open_training_data(config, jax.devices()[:1])
  assert not data.held_out
  assert data.description.endswith(', 1 skipped')
  assert capsys.readouterr().out.count('c_noisy.png: the file is damaged or incomplete') == 1


def test_holding_out_all_pairs_is_refused(config):
  config.data.held_out = ('c_noisy', 'd_noisy')
  with pytest.raises(
    ValueError, match=r'holds out every scene of the pairs, but config\.data\.pairs_share is 0\.5'
  ):
    open_training_data(config, jax.devices()[:1])


@pytest.mark.parametrize(
  ('camera', 'text'),
  [
    ('photo', 'validation on clean (2 images), pairs (2 images), the best by clean\n'),
    ('', 'validation on clean (2 images); unused, because of other noise than in training: {pairs}\n'),
  ],
)
def test_pairs_validate_training_on_clean_images_with_the_noise_of_a_camera(
  config, tmp_path, capsys, camera, text
):
  pairs = config.data.train.pairs
  config.data.train.pairs, config.data.pairs_share = '', 0.0
  config.noise.update(camera=camera, camera_share=0.5 if camera else 0.0)
  config.validation.update(every=2, clean=(config.data.train.clean,), pairs=(pairs,))
  # Before anything is compiled.
  config.init_from = 'nowhere'
  with pytest.raises(ValueError, match='nowhere'):
    train(config, tmp_path / 'run', jax.devices()[:1])
  assert text.format(pairs=pairs) in capsys.readouterr().out
