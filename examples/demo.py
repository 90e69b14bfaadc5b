"""Trains and evaluates a small denoiser in minutes, on a CPU, without internet access.

Copies photographs that come with scikit-image to two folders, trains a small SADNet on one of them
(``train.py --config=configs/demo.py``), evaluates it on the other (``evaluate.py``), and fails if the PSNR of
these unseen photographs rises by less than 10 dB. Open demo_output/evaluation/index.html to compare the
images.
"""

import json
from pathlib import Path
import shutil
import subprocess
import sys

from sadnet_jax.extras import required

with required('train,demo'):
  from PIL import Image
  import skimage

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / 'demo_output'
# The two motorcycles are a stereo pair, so both are for training.
TRAIN = (
  'astronaut.png',
  'motorcycle_left.png',
  'motorcycle_right.png',
  'hubble_deep_field.jpg',
  'rocket.jpg',
)
TEST = ('chelsea.png', 'coffee.png')
REQUIRED_GAIN_DB = 10.0


def copy_photographs() -> None:
  """Copies scikit-image's photographs to demo_output/train and demo_output/test."""
  source = Path(skimage.__file__).parent / 'data'
  for folder, names in (('train', TRAIN), ('test', TEST)):
    shutil.rmtree(OUTPUT / folder, ignore_errors=True)
    (OUTPUT / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
      image = Image.open(source / name).convert('RGB')
      # Without the colour profile, which makes some decoders print warnings.
      image.save((OUTPUT / folder / name).with_suffix('.png'), icc_profile=None)


def run(script: str, *arguments: str) -> None:
  """Prints and runs one of the project's commands."""
  print(f'\n$ python {script} {" ".join(arguments)}', flush=True)
  subprocess.run([sys.executable, ROOT / script, *arguments], cwd=ROOT, check=True)


def main() -> None:
  """Trains from scratch, evaluates, and checks the gain."""
  copy_photographs()
  shutil.rmtree(OUTPUT / 'run', ignore_errors=True)
  run('train.py', '--config=configs/demo.py', '--workdir=demo_output/run')
  run(
    'evaluate.py',
    '--config=configs/demo.py',
    '--checkpoint=demo_output/run',
    '--datasets=demo_output/test',
    '--output=demo_output/evaluation',
    '--overwrite',
  )
  results = json.loads((OUTPUT / 'evaluation' / 'results.json').read_text())
  mean = results['results'][0]['mean']
  gain = mean['psnr'] - mean['psnr_noisy']
  print(f'\ngain on photographs not used in training: {gain:.2f} dB (at least {REQUIRED_GAIN_DB:g} required)')
  print(f'images to compare: {OUTPUT.relative_to(ROOT)}/evaluation/index.html')
  if gain < REQUIRED_GAIN_DB:
    raise SystemExit('the demo failed: the gain is too small')


if __name__ == '__main__':
  main()
