"""The weights that ship denoise as well as when they were measured; index, cards and results are theirs."""

import json
from pathlib import Path
import re

import huggingface_hub
import jax
import numpy as np
import pytest

from sadnet_jax import Denoiser, pretrained
from sadnet_jax.evaluation.image_sets import open_set
from sadnet_jax.evaluation.metrics import psnr
from sadnet_jax.evaluation.protocols import protocol_for_training
from sadnet_jax.images.arrays import read_image
from sadnet_jax.weights.index import FOLDER, TASKS
from sadnet_jax.weights.loading import REPLACED
from sadnet_jax.weights.safetensors import params_hash
from tests.support.command import ROOT
from tests.support.real_data import DATA, needs
from tools import model_card, plot_training

# 128x160, from row 80 and column 120 of scikit-image's photographs of these names, both CC0.
CROPS = Path(__file__).parent.parent / 'crops'
ENTRIES = pretrained.available()
# By weights, crop and sigma: PSNR in dB, as measured.
MEASURED = {
  ('color', 'chelsea', 15): 32.844,
  ('color', 'coffee', 50): 31.598,
  ('gray', 'chelsea', 25): 28.957,
  ('gray', 'coffee', 50): 30.243,
  ('photo', 'chelsea', 5): 37.161,
  ('photo', 'coffee', 15): 35.438,
  ('photo_fast', 'chelsea', 5): 37.792,
  ('photo_fast', 'coffee', 15): 34.713,
}


@pytest.mark.parametrize(('weights', 'crop', 'sigma_255'), MEASURED)
def test_psnr_on_photographs_they_were_not_trained_on(weights, crop, sigma_255):
  model, params, _ = pretrained.load(weights)
  entry = ENTRIES[weights]
  # There are no pairs to commit: all weights get Gaussian noise.
  protocol = protocol_for_training(entry.noise.clipped)
  image = read_image(CROPS / f'{crop}.png', entry.channels)
  noisy, clean = protocol.prepare(None, image, sigma_255)
  denoised = protocol.finish(np.asarray(jax.jit(model.apply)({'params': params}, noisy[None])[0]))
  assert psnr(denoised, clean) == pytest.approx(MEASURED[weights, crop, sigma_255], abs=0.05)


@needs('test/Nam', 'real/PolyU')
@pytest.mark.parametrize('weights', ['photo', 'photo_fast'])
@pytest.mark.parametrize('name', ['nam', 'polyu_held_out'])
def test_a_photograph_is_denoised_as_well_as_when_it_was_measured(weights, name):
  (result,) = (r for r in _results(weights)['results'] if r['dataset'] == name)
  image_set, measured = open_set(name, DATA), result['images'][0]
  image, protocol = image_set.images[0], image_set.protocol
  assert (measured['name'], result['protocol']) == (image.name, protocol.name)
  noisy, clean = protocol.prepare(*image.read(3), None)
  denoised = protocol.finish(Denoiser.from_pretrained(weights).apply(noisy))
  assert psnr(noisy, clean) == pytest.approx(measured['psnr_noisy'], abs=1e-4)
  assert psnr(denoised, clean) == pytest.approx(measured['psnr'], abs=0.01)


def _results(weights):
  return json.loads((ROOT / 'benchmarks' / 'results' / 'evaluation' / f'{weights}.json').read_text())


@pytest.mark.parametrize('weights', ENTRIES)
def test_results_are_of_these_weights(weights):
  _, params, _ = pretrained.load(weights)
  methods = [result['method'] for result in _results(weights)['results']]
  # Wherever the file was when it was evaluated: by its hash it is this one.
  got = [(Path(m['checkpoint']).stem, m['sha256']) for m in methods]
  assert got == [(weights, params_hash(params))] * len(methods)


@pytest.mark.parametrize('weights', ENTRIES)
def test_the_index_is_of_these_files(weights):
  entry = ENTRIES[weights]
  path = pretrained.locate(weights)
  assert path == FOLDER / f'{weights}.safetensors'
  model, _, about = pretrained.load(weights)
  assert (entry.sha256, entry.bytes, entry.channels) == (about['sha256'], path.stat().st_size, model.channels)
  assert entry.summary == model_card.read_facts(path.with_suffix('.toml'))['summary']


@pytest.mark.parametrize('weights', ENTRIES)
def test_the_hub_understands_the_card(weights):
  card = huggingface_hub.ModelCard.load(FOLDER / f'{weights}.md', ignore_metadata_errors=False)
  assert card.data.to_dict() == {
    'license': 'apache-2.0',
    'library_name': 'sadnet-jax',
    'pipeline_tag': 'image-to-image',
    'tags': ['image-denoising', 'sadnet', 'deformable-convolution', 'jax', 'flax'],
    'metrics': ['psnr', 'ssim'],
  }
  assert card.text.strip().startswith(f'# {weights}\n')


@pytest.mark.parametrize('weights', ENTRIES)
def test_the_card_is_what_files_and_results_give(weights):
  path = FOLDER / f'{weights}.md'
  facts, stored = (
    model_card.read_facts(path.with_suffix('.toml')),
    model_card.read_stored(path.with_suffix('.safetensors')),
  )
  plot_training.check_existing(FOLDER, weights, stored.params_sha256)
  picture, pixels = plot_training.link(FOLDER, weights), plot_training.pixels_seen(FOLDER, weights)
  assert pixels
  card = model_card.card(
    ENTRIES[weights], stored, facts, _results(weights), picture, load_as=weights, pixels=pixels
  )
  assert card == path.read_text(), 'run python -m tools.publish_weights'


def test_every_file_is_published_and_measured():
  names = {name for name, *_ in MEASURED}
  assert names == set(ENTRIES)
  assert all(len({crop for of, crop, _ in MEASURED if of == name}) >= 2 for name in names)
  for suffix in ('safetensors', 'md', 'toml'):
    assert {path.stem for path in FOLDER.glob(f'*.{suffix}')} == names
  # Curves of weights that others have replaced stay, for the figure of all runs.
  assert {path.stem for path in (ROOT / 'docs' / 'curves').glob('*')} <= names | set(REPLACED)
  assert set(REPLACED).isdisjoint(names)
  assert set(REPLACED.values()) <= names


@pytest.mark.parametrize('old', REPLACED)
def test_names_of_replaced_weights_say_which_to_take(old):
  with pytest.raises(ValueError, match=f'{old}: no longer published; {REPLACED[old]} has taken its place'):
    pretrained.load(old)


def test_a_task_has_one_default():
  defaults = [task for entry in ENTRIES.values() for task in entry.default_for]
  assert sorted(defaults) == sorted(TASKS)


# An absolute path of two or more parts; '/tmp/...' is where anyone may write.
ABSOLUTE = re.compile(r'(?<![\w.)\]~-])/(?!tmp/)[\w.-]+/[\w.-]+')


@pytest.mark.parametrize(
  ('text', 'absolute'),
  [
    ('/data/real/PolyU: no images', True),
    ('python evaluate.py --data=/data-of/mine', True),
    ('the file /data/a b/c.png, not b', True),
    ('real/PolyU: no images', False),
    ('--json /tmp/a/b.json', False),
    ('images/s, 3 / 4, dB', False),
  ],
)
def test_absolute_paths_are_recognised(text, absolute):
  assert bool(ABSOLUTE.search(text)) == absolute


def test_no_results_name_folders_of_the_machine_they_were_measured_on():
  files = sorted((ROOT / 'benchmarks' / 'results').rglob('*.json')) + sorted(ROOT.glob('docs/**/*.json'))
  assert len(files) > len(ENTRIES)
  assert [path.name for path in files if ABSOLUTE.search(path.read_text())] == []
