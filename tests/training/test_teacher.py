"""Learning from a trained network beside the clean images."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest

from configs import default
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.training.config import check_config
from sadnet_jax.training.loop import train
from sadnet_jax.training.run_folder import read_metrics
from sadnet_jax.training.state import TrainState
from sadnet_jax.training.step import Teacher, l1_loss, make_parallel_step
from sadnet_jax.weights.safetensors import save_weights
from tests.support.small_networks import PLAIN, random_variables

pytestmark = pytest.mark.usefixtures('compiled_once')


def test_the_target_is_the_clean_image_and_the_teachers_output_by_shares():
  step = make_parallel_step(
    jax.devices()[:1],
    noise_key=jax.random.key(0),
    add_noise=lambda keys, clean: clean + 0.5,
    loss=l1_loss,
    teacher=Teacher(
      lambda variables, noisy: noisy + variables['params']['bias'], {'bias': jnp.float32(0.1)}, 0.3
    ),
  )
  state = TrainState.create(
    apply_fn=lambda variables, noisy, mutable: (noisy + variables['params']['out'], {}),
    params={'out': jnp.float32(0)},
    tx=optax.sgd(1.0),
    ema=None,
    skipped=jnp.int32(0),
  )
  state, metrics = step(state, {'clean': np.zeros((2, 8, 8, 3), np.uint8)})
  # 0.5 above the clean image, 0.1 below the teacher.
  assert metrics['loss'] == pytest.approx(0.7 * 0.5 + 0.3 * 0.1)
  # The gradient is 0.7 towards the clean image and 0.3 towards the teacher; the teacher gets none.
  assert state.params['out'] == pytest.approx(-0.7 + 0.3, rel=1e-5)


@pytest.fixture
def config(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
  (tmp_path / 'clean').mkdir()
  Image.fromarray(pixels).save(tmp_path / 'clean' / 'a.png')
  model = SADNet(**PLAIN)
  config = default.get_config()
  config.model.update(PLAIN)
  path = tmp_path / 'teacher.safetensors'
  save_weights(path, random_variables(model)['params'], model=config.model.to_dict(), step=1, about={})
  config.data.train.clean = str(tmp_path / 'clean')
  config.data.update(reader='memory', patch_px=16)
  config.update(batch_size=2, steps=2, checkpoint_every=1, log_every=1, teacher=str(path), teacher_share=1.0)
  config.validation.every = 0
  return config


def test_a_run_that_starts_as_its_teacher_has_nothing_to_learn_from_it(config, tmp_path):
  train(config.copy_and_resolve_references(), tmp_path / 'other', jax.devices()[:1])
  config.init_from = config.teacher
  whole = train(config, tmp_path / 'run', jax.devices()[:1])
  # The forward passes with and without a gradient round differently.
  assert read_metrics(tmp_path / 'run')[0]['loss'] < 1e-10
  assert read_metrics(tmp_path / 'other')[0]['loss'] > 0.1
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '2')
  # The file of the teacher has moved.
  config.teacher = shutil.move(config.teacher, str(tmp_path / 'other' / 'moved.safetensors'))
  again = train(config, tmp_path / 'run', jax.devices()[:1])
  jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
  # Other weights under the same name.
  params = random_variables(SADNet(**PLAIN), seed=1)['params']
  save_weights(config.teacher, params, model=config.model.to_dict(), step=1, about={})
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '2')
  with pytest.raises(ValueError, match=r'the teacher, .*moved\.safetensors, has changed: its weights have'):
    train(config, tmp_path / 'run', jax.devices()[:1])


def test_teachers_that_cannot_work_are_refused(config, tmp_path):
  config.teacher_share = 0.0
  with pytest.raises(ValueError, match='set both to learn from a teacher'):
    check_config(config, 1)
  config.teacher_share = 0.5
  (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
  for teacher, message in (
    (str(tmp_path / 'run'), r'is the folder of a run, .* name one, such as .*/run/checkpoints/1000'),
    ('hf://owner/name', r'hf://owner/name may change; name a commit, such as hf://OWNER/NAME@[0-9a-f]{40}'),
    ('color', r'color denoises 3 channel\(s\), but config.model.channels is 1'),
  ):
    config.teacher, config.model.channels = teacher, 1
    with pytest.raises(ValueError, match=message):
      train(config, tmp_path / 'new', jax.devices()[:1])
