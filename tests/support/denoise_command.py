"""The command sadnet-denoise with a tiny network."""

import numpy as np
from PIL import Image

from configs import default
from sadnet_jax.denoise.command import main
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights.safetensors import save_weights
from tests.support.small_networks import SMALL, random_variables


def write_weights(path, **fields):
  """Weights of a tiny network, random."""
  config = default.get_config()
  config.model.update({**SMALL, **fields})
  params = random_variables(SADNet(**{**SMALL, **fields}))['params']
  save_weights(path, params, model=config.model.to_dict(), step=0, about={})
  return path


def picture(path, *, size=(13, 22), channels=3, seed=0):
  """Writes a picture of noise; its pixels, uint8 [H, W, C]."""
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(path)
  return pixels


def pixels_of(path):
  """As [H, W, C]."""
  with Image.open(path) as image:
    array = np.asarray(image)
  return array.reshape(*array.shape[:2], -1)


def run(*arguments, capsys):
  """Runs the command in this process: (exit status, lines on stderr)."""
  capsys.readouterr()
  try:
    status = main([str(argument) for argument in arguments])
  except SystemExit as error:
    status = error.code
  return status, capsys.readouterr().err.splitlines()


def all_files(folder):
  """Paths of all files and folders below, as text."""
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))
