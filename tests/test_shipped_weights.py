"""The weights in weights/ denoise as well as they did when they were measured."""

import json
from pathlib import Path

from command import ROOT
import jax
import numpy as np
from PIL import Image
import pytest
import skimage

from configs import color_fast
from sadnet_jax.checkpoints import restore_params
from sadnet_jax.evaluation.protocols import UNCLIPPED
from sadnet_jax.evaluation.results import params_hash
from sadnet_jax.metrics import psnr
from sadnet_jax.train_state import model_from_config

PHOTOGRAPHS = Path(skimage.__file__).parent / 'data'
# PSNR in dB of crops of 128x160 at row 80, column 120, sigma 50, as measured with these weights.
MEASURED = {('color_50', 'chelsea.png'): 27.946, ('color_50', 'coffee.png'): 31.061}


@pytest.mark.parametrize(('weights', 'photograph'), MEASURED)
def test_psnr_on_photographs_they_were_not_trained_on(weights, photograph):
  config = color_fast.get_config('50')
  model = model_from_config(config.model)
  _, params = restore_params(ROOT / 'weights' / f'{weights}.safetensors', model, config.to_dict())
  image = np.asarray(Image.open(PHOTOGRAPHS / photograph).convert('RGB'))[80:208, 120:280]
  noisy, clean = UNCLIPPED.prepare(None, image, 50)
  denoised = UNCLIPPED.finish(np.asarray(jax.jit(model.apply)({'params': params}, noisy[None])[0]))
  assert psnr(denoised, clean) == pytest.approx(MEASURED[weights, photograph], abs=0.05)


@pytest.mark.parametrize('weights', sorted({name for name, _ in MEASURED}))
def test_results_are_of_these_weights(weights):
  config = color_fast.get_config('50')
  path = f'weights/{weights}.safetensors'
  _, params = restore_params(ROOT / path, model_from_config(config.model), config.to_dict())
  content = json.loads((ROOT / 'benchmarks' / 'results' / 'evaluation' / f'{weights}.json').read_text())
  methods = [result['method'] for result in content['results']]
  assert [(m['checkpoint'], m['sha256']) for m in methods] == [(path, params_hash(params))] * len(methods)


def test_every_file_is_measured():
  assert {path.stem for path in (ROOT / 'weights').glob('*.safetensors')} == {name for name, _ in MEASURED}
