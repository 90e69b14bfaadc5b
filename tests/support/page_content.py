"""Small content for a page of results."""

import numpy as np

from sadnet_jax.evaluation.page import Showcase

# A careless page would take this for markup, or end its script here.
BAD_NAME = '</script><img src=x onerror="document.title=1">&amp;\u2028{{content}}$content${style}$$.png'
# Names and PSNR of `five_images`.
NAMES = ['c10.png', 'worst.png', 'c9.png', BAD_NAME, 'best.png']
PSNRS = [25.0, 19.5, 24.0, 28.0, 31.25]


def image(name, psnr, **more):
  """One entry of the images of a result."""
  ssim = {'ssim_wang': 0.8, 'ssim_wang_noisy': 0.2, 'ssim_matlab': 0.9, 'ssim_matlab_noisy': 0.3}
  return (
    {'name': name, 'height': 20, 'width': 30, 'psnr_noisy': 14.1, 'psnr': psnr, 'seconds': 0.5} | ssim | more
  )


def result(images=(), **more):
  """One result, with a published result for the same protocol and images."""
  mean = {'psnr_noisy': 14.161, 'psnr': 28.052, 'seconds': 1.25}
  mean |= {'ssim_wang_noisy': 0.2345, 'ssim_wang': 0.7934, 'ssim_matlab_noisy': 0.3456, 'ssim_matlab': 0.8765}
  published = {'method': 'SADNet (paper)', 'psnr': 28.32, 'ssim': None, 'differs': []}
  published |= {'protocols': ['clipped8', 'authors'], 'version': ''}
  plain = {
    'dataset': 'cbsd68',
    'title': 'CBSD68',
    'version': '68 images, 53 of 481x321, 15 of 321x481',
    'channels': 3,
    'sigma_255': 50.0,
    'protocol': 'clipped8',
    'protocol_text': 'noisy clipped and rounded to 8 bits, output rounded',
    'method': {'name': 'sadnet', 'config': 'configs/color_fast.py:50', 'step': 5000, 'sha256': 64 * 'a'},
    'mean': mean,
    'published': [published],
    'compared_with': 'SADNet (paper)',
    'images': list(images),
    'failures': [],
  }
  return plain | more


def content(*results, **more):
  """Content of results.json."""
  environment = {'cpu': 'AMD EPYC', 'cores': 2, 'versions': {'jax': '0.10.2'}, 'commit': None}
  plain = {'environment': environment, 'command': 'evaluate.py --datasets=cbsd68', 'results': list(results)}
  return plain | more


def pixels(seed, shape=(20, 30, 3)):
  """An image of noise, in which hardly any two pixels are equal."""
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def showcase(names_and_psnrs, worst=2, best=2, clean=True):
  """A showcase in which image i has the pixels of seeds 10 * i, 10 * i + 1, 10 * i + 2."""
  made = Showcase(worst, best)
  for i, (name, psnr) in enumerate(names_and_psnrs):
    made.add(name, psnr, pixels(10 * i), pixels(10 * i + 1), pixels(10 * i + 2) if clean else None)
  return made


def five_images():
  """Content with one result of NAMES and PSNRS, and its showcase of the two worst and the two best."""
  images = [image(name, psnr) for name, psnr in zip(NAMES, PSNRS, strict=True)]
  return content(result(images)), [showcase(zip(NAMES, PSNRS, strict=True))]
