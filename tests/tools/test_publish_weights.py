"""Publishing: the file, its card and its entry in the index, and what is refused."""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from sadnet_jax import pretrained
from sadnet_jax.data.examples import Example
from sadnet_jax.evaluation.protocols import UNCLIPPED
from sadnet_jax.nn.sadnet import SADNet
from sadnet_jax.weights import index
from sadnet_jax.weights.safetensors import (
  AVERAGE_OF,
  average_text,
  averaged,
  load_with_model,
  params_hash,
  save_weights,
  stored_dtype,
)
from tests.support.command import ROOT, finish, start
from tests.support.logged_runs import losses, save_checkpoint, small_config, write_log
from tests.support.small_networks import SMALL, random_variables
from tools import model_card, plot_training, publish_weights
from tools.plot_training import curve_of_runs, draw, png, read_curve
from tools.publish_weights import Request, publish

MODEL = SADNet(**SMALL)
PARAMS = random_variables(MODEL)['params']
FACTS = {
  'summary': 'Of a test.',
  'data': 'None | at all',
  'training': 'None.',
  'command': 'python train.py',
  'hardware': 'One core.',
  'hours': '0',
  'limits': 'All.',
  'licence': 'None.',
}


def _rounded(params=PARAMS):
  return jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), params)


def _results(params):
  figures = {'psnr_noisy': 20.17, 'psnr': 31.234, 'ssim_wang': 0.91234, 'ssim_matlab': None}
  result = {
    'title': 'CBSD68',
    'version': '68 images',
    'sigma_255': 25.0,
    'protocol': 'clipped8',
    'method': {'name': 'sadnet', 'checkpoint': 'a', 'sha256': params_hash(params)},
    'mean': figures,
    'failures': [],
  }
  environment = {
    'cores': 2,
    'cpu': 'A',
    'device': 'cpu',
    'commit': '0123456789',
    'uncommitted_changes': False,
  }
  noisy = {**result, 'method': {'name': 'noisy'}}
  return {
    'command': 'python evaluate.py',
    'environment': environment,
    'results': [noisy, result],
    'failures': [],
  }


def _write_facts(path, facts):
  path.write_text(''.join(f'{name} = {json.dumps(text)}\n' for name, text in facts.items()))


@pytest.fixture
def request_(tmp_path, monkeypatch):
  """A request to publish float32 weights in float16, with a config of noise of sigma 25.

  What float16 costs is not measured: that takes seconds.
  """
  monkeypatch.setattr(publish_weights, 'float16_cost', lambda *_, **options: 'not measured')
  (tmp_path / 'published').mkdir()
  (tmp_path / 'photographs').mkdir()
  pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'photographs' / '1.png')
  save_weights(tmp_path / 'a.safetensors', PARAMS, model=small_config()['model'], step=7, about={})
  _write_facts(tmp_path / 'facts.toml', FACTS)
  (tmp_path / 'results.json').write_text(json.dumps(_results(_rounded())))
  return Request(
    name='small',
    checkpoint=str(tmp_path / 'a.safetensors'),
    config=small_config(),
    config_name='configs/color.py:25',
    dtype='float16',
    facts=tmp_path / 'facts.toml',
    results=tmp_path / 'results.json',
    images=tmp_path / 'photographs',
    sigmas_255=[25.0],
    default_for=['color'],
    folder=tmp_path / 'published',
  )


def _published(folder):
  return {path.name: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_what_is_published_has_no_signature_and_no_folder_of_this_machine(request_):
  url = 'https://host/first.safetensors?X-Signature=5ec'
  command = f"python train.py --config.init_from='{url}' --workdir=/home/jane/runs/second"
  _write_facts(request_.facts, {**FACTS, 'command': command, 'data': url, 'summary': f'Tuned from {url}.'})
  publish(request_)
  contents = _published(request_.folder)
  for secret in (b'X-Signature', b'/home/jane'):
    assert [name for name, content in contents.items() if secret in content] == []
  card = contents['small.md'].decode()
  assert "--config.init_from='https://host/first.safetensors' --workdir=second" in card


def test_file_card_and_index_are_written(request_, monkeypatch):
  monkeypatch.setattr(publish_weights, 'float16_cost', model_card.float16_cost)
  entry = publish(request_)
  assert index.read_index(request_.folder) == {'small': entry}
  path = request_.folder / 'small.safetensors'
  assert (entry.sha256, entry.bytes) == (index.file_sha256(path), path.stat().st_size)
  assert (entry.channels, entry.noise) == (3, pretrained.Noise('gaussian', (25.0, 25.0), clipped=True))
  model, params, metadata = load_with_model(path)
  assert (model.width, stored_dtype(path), metadata['step']) == (8, 'float16', '7')
  assert (metadata['config'], metadata['about']) == ('configs/color.py:25', 'Of a test.')
  jax.tree.map(np.testing.assert_array_equal, params, _rounded())

  card = (request_.folder / 'small.md').read_text()
  precision = re.search(
    r'differs by (\S+) dB at most, (\S+) dB on average, over 1 images \(photographs\), ', card
  )
  assert 0 < float(precision[1]) < 0.1
  assert abs(float(precision[2])) == float(precision[1])
  assert card.startswith('---\nlicense: other\nlibrary_name: sadnet-jax\n')
  for line in (
    '# small',
    '| task | colour images, Gaussian noise of sigma 25, clipped |',
    r'| training images | None \| at all |',
    '| step | 7 |',
    '| seed | unknown |',
    f'| SHA-256 of the file | `{entry.sha256}` |',
    f'| SHA-256 of the weights (as in results.json) | `{params_hash(_rounded())}` |',
    '| CBSD68, 68 images | 25 | clipped8 | 20.17 | 31.23 | 0.9123 | unknown |',
    'Measured by `python evaluate.py`; 2 cores, A, cpu; commit 0123456.',
    '`--checkpoint=small.safetensors` now loads the same weights.',
    "denoised = Denoiser.from_pretrained('small.safetensors')(noisy)",
  ):
    assert line in card.splitlines()
  assert card.count('CBSD68') == 1


def test_a_new_card_does_not_change_the_file(request_):
  first = publish(request_)
  before = _published(request_.folder)
  _write_facts(request_.facts, {**FACTS, 'hours': '3', 'summary': 'Another.'})
  again = dataclasses.replace(
    request_, checkpoint=str(request_.folder / 'small.safetensors'), images=None, default_for=None
  )
  # The noise of weights that stay is that of their entry.
  again.config['noise']['sigma_255'] = 11.0
  with pytest.raises(
    ValueError, match=r'--name: small is published; choose another name or pass --overwrite'
  ):
    publish(again)
  second = publish(dataclasses.replace(again, overwrite=True))
  assert dataclasses.replace(second, summary=first.summary) == first
  assert second.default_for == ('color',)
  after = _published(request_.folder)
  assert after['small.safetensors'] == before['small.safetensors']
  # The measured precision is in the file.
  assert (
    after['small.md'].replace(b'| 3 |', b'| 0 |').replace(b'Another.', b'Of a test.') == before['small.md']
  )


def test_an_unpublished_file_is_not_overwritten(request_):
  path = request_.folder / 'small.safetensors'
  path.write_text('kept')
  with pytest.raises(ValueError, match=r'--name=small: .*small\.safetensors exists; choose another name'):
    publish(request_)
  assert _published(request_.folder) == {path.name: b'kept'}
  publish(dataclasses.replace(request_, overwrite=True))
  assert load_with_model(path)[2]['step'] == '7'


def test_a_task_has_at_most_one_default(request_):
  def defaults():
    return {name: entry.default_for for name, entry in index.read_index(request_.folder).items()}

  publish(dataclasses.replace(request_, default_for=['color', 'gray']))
  assert defaults() == {'small': ('color', 'gray')}
  publish(dataclasses.replace(request_, name='other'))
  assert defaults() == {'small': ('gray',), 'other': ('color',)}


def test_the_seed_is_that_of_the_run(request_, tmp_path):
  run = tmp_path / 'run'
  save_checkpoint(run, PARAMS, small_config('blind', seed=3), 5)
  (tmp_path / 'results.json').write_text(json.dumps(_results(PARAMS)))
  asked = dataclasses.replace(request_, checkpoint=str(run), dtype='float32', images=None)
  with pytest.raises(ValueError, match=r'another config: noise\.sigma_255: .*range: checkpoint \[0\.0, 75'):
    publish(asked)
  asked = dataclasses.replace(asked, config=small_config('blind'), config_name='configs/color.py:blind')
  entry = publish(asked)
  assert entry.noise.sigma_255 == tuple(small_config('blind')['noise']['sigma_255_range'])
  card = (request_.folder / 'small.md').read_text().splitlines()
  assert {'| step | 5 |', '| seed | 3 |', '| precision | as trained |'} <= set(card)
  other_share = {**asked.config, 'data': {**asked.config['data'], 'pairs_share': 0.5}}
  with pytest.raises(ValueError, match=r'another config: data\.pairs_share: checkpoint 0\.0, config 0\.5'):
    publish(dataclasses.replace(asked, config=other_share, overwrite=True))
  _write_facts(request_.facts, {**FACTS, 'seed': '4'})
  with pytest.raises(ValueError, match=r'facts\.toml: remove seed; the weights already give it'):
    publish(dataclasses.replace(asked, overwrite=True))


def test_weights_trained_in_bfloat16_are_published_in_float32(request_, tmp_path):
  run, config = tmp_path / 'run', small_config()
  in_bfloat16 = {**config, 'model': {**config['model'], 'dtype': 'bfloat16'}}
  save_checkpoint(run, PARAMS, in_bfloat16, 5)
  publish(dataclasses.replace(request_, checkpoint=str(run)))
  model, params, _ = load_with_model(request_.folder / 'small.safetensors')
  assert model.dtype == np.float32
  jax.tree.map(np.testing.assert_array_equal, params, _rounded())
  save_weights(tmp_path / 'b.safetensors', PARAMS, model=in_bfloat16['model'], step=7, about={})
  for other, match in (
    (
      {'config': in_bfloat16},
      r'--config\.model\.dtype: published networks compute in float32',
    ),
    ({'checkpoint': str(tmp_path / 'b.safetensors')}, r'another config: model\.dtype: '),
  ):
    with pytest.raises(ValueError, match=match):
      publish(dataclasses.replace(request_, **other, overwrite=True))


@pytest.fixture
def stages(tmp_path):
  """Runs of two stages; the weights of the request are those of the second at step 7."""
  first, second = (write_log(tmp_path / name, losses(8, every=1)) for name in ('first', 'second'))
  save_checkpoint(second, PARAMS, small_config(init_from=str(first)), 7)
  return str(first), str(second)


def test_the_curve_is_stored_and_shown_in_the_card(request_, stages):
  publish(dataclasses.replace(request_, curve=stages))
  curve = read_curve(request_.folder / 'curves' / 'small.json')
  assert curve == curve_of_runs(stages, 'small', curve.about)[0]
  assert curve.about == {
    'config': 'configs/color.py:25',
    'commit': 'unknown',
    'params_sha256': params_hash(_rounded()),
  }
  assert (request_.folder / 'curves' / 'small.png').read_bytes() == png(draw(curve))
  lines = (request_.folder / 'small.md').read_text().splitlines()
  assert '![Loss, PSNR and learning rate by step](curves/small.png)' in lines
  assert 'Data: [small.json](curves/small.json).' in lines
  assert lines.index('## Training commands') < lines.index('## Training curve') < lines.index('## Results')

  # The run has only the seed of its own stage.
  _write_facts(request_.facts, {**FACTS, 'seed': '1 and 2'})
  publish(dataclasses.replace(request_, checkpoint=stages[1], curve=stages, overwrite=True))
  assert '| seed | 1 and 2 |' in (request_.folder / 'small.md').read_text().splitlines()
  _write_facts(request_.facts, FACTS)
  publish(dataclasses.replace(request_, curve=stages, overwrite=True))
  # The settings of a stage without a checkpoint are unknown.
  assert plot_training.pixels_seen(request_.folder, 'small') is None

  # A new card of the same weights keeps the curve.
  before = _published(request_.folder)
  _write_facts(request_.facts, {**FACTS, 'hours': '3'})
  file = str(request_.folder / 'small.safetensors')
  publish(dataclasses.replace(request_, checkpoint=file, images=None, overwrite=True))
  after = _published(request_.folder)
  assert after.pop('small.md').replace(b'| 3 |', b'| 0 |') == before.pop('small.md')
  assert after == before


def test_curves_of_the_package_are_in_docs(tmp_path, monkeypatch):
  folder = tmp_path / 'sadnet_jax' / 'weights' / 'pretrained'
  folder.mkdir(parents=True)
  monkeypatch.setattr(plot_training, 'FOLDER', folder)
  assert plot_training.link(folder, 'small') is None
  plot_training.write(folder, 'small', (b'1', b'2'))
  assert _published(tmp_path / 'docs' / 'curves') == {'small.json': b'1', 'small.png': b'2'}
  assert plot_training.link(folder, 'small') == '../../../docs/curves/small.png'


def test_the_curve_of_other_weights_is_refused(request_, stages, tmp_path):
  publish(dataclasses.replace(request_, curve=stages))
  before = _published(request_.folder)
  others = random_variables(MODEL, seed=1)['params']
  save_weights(tmp_path / 'b.safetensors', others, model=small_config()['model'], step=7, about={})
  request_.results.write_text(json.dumps(_results(_rounded(others))))
  asked = dataclasses.replace(request_, checkpoint=str(tmp_path / 'b.safetensors'), overwrite=True)
  for curve, match in (
    (
      (),
      r'small\.json: is the curve of other weights \(\w{64}, not \w{64}\); pass --curve=',
    ),
    (stages, r'--curve: .*second has other weights at step 7; give the run'),
    (stages[:1], r'--curve: .*first ends at step 8, but the weights are of step 7'),
  ):
    with pytest.raises(ValueError, match=match):
      publish(dataclasses.replace(asked, curve=curve))
  assert _published(request_.folder) == before

  # Without checkpoints, only the step can be compared.
  publish(dataclasses.replace(asked, curve=[f'{stages[0]}/checkpoints/7']))
  assert len(read_curve(request_.folder / 'curves' / 'small.json').stages) == 1
  (request_.folder / 'curves' / 'small.png').unlink()
  with pytest.raises(ValueError, match=r'small\.json: the data or the picture of this curve is missing'):
    publish(asked)


def test_the_curve_of_an_average_ends_with_the_last_run_averaged(request_, stages, tmp_path):
  others = random_variables(MODEL, seed=1)['params']
  mean = averaged([others, PARAMS], [2, 1])
  request_.results.write_text(json.dumps(_results(_rounded(mean))))
  asked = dataclasses.replace(request_, checkpoint=str(tmp_path / 'b.safetensors'), curve=stages)
  model, hashes = small_config()['model'], [params_hash(tree) for tree in (others, PARAMS)]

  def save(shares, parts, step):
    about = {AVERAGE_OF: average_text(shares, parts)}
    save_weights(tmp_path / 'b.safetensors', mean, model=model, step=step, about=about)
    return about[AVERAGE_OF]

  for shares, parts, step, match in (
    (
      [1, 2],
      hashes[::-1],
      7,
      rf'second has the weights {hashes[1]}; the last run must be the last one',
    ),
    ([2, 1], hashes, 8, r'second ends at step 7, but the weights are of step 8'),
  ):
    save(shares, parts, step)
    with pytest.raises(ValueError, match=match):
      publish(asked)
  average = save([2, 1], hashes, 7)
  publish(asked)
  about = read_curve(request_.folder / 'curves' / 'small.json').about
  assert (about['params_sha256'], about[AVERAGE_OF]) == (params_hash(_rounded(mean)), average)
  _, _, metadata = load_with_model(request_.folder / 'small.safetensors')
  assert metadata[AVERAGE_OF] == average
  card = (request_.folder / 'small.md').read_text().splitlines()
  assert f'| average of (share * SHA-256 of the weights) | `{average}` |' in card


def test_existing_curves_and_missing_matplotlib_are_refused(request_, stages, monkeypatch):
  asked = dataclasses.replace(request_, curve=stages)
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ValueError, match='Matplotlib is missing'):
      publish(asked)
  assert _published(request_.folder) == {}
  path = request_.folder / 'curves' / 'small.png'
  path.parent.mkdir()
  path.write_text('kept')
  with pytest.raises(ValueError, match=r'--name=small: .*small\.png exists; choose another name'):
    publish(asked)
  assert _published(request_.folder) == {'small.png': b'kept'}
  publish(dataclasses.replace(asked, overwrite=True))
  assert path.read_bytes().startswith(b'\x89PNG')


def test_real_noise_has_no_sigma_and_is_measured_on_pairs(request_, monkeypatch):
  monkeypatch.setattr(publish_weights, 'float16_cost', model_card.float16_cost)
  config = small_config()
  config['noise'] = {**config['noise'], 'sigma_255': 0.0}
  asked = dataclasses.replace(request_, config=config)
  for sigmas_255, images in (([25.0], request_.images), ([], None)):
    with pytest.raises(ValueError, match='--images, --sigmas: pass --images with a folder of pairs'):
      publish(dataclasses.replace(asked, sigmas_255=sigmas_255, images=images))
  asked = dataclasses.replace(asked, sigmas_255=[])
  with pytest.raises(ValueError, match='photographs'):
    publish(asked)
  assert _published(request_.folder) == {}
  (request_.images / '1.png').rename(request_.images / '1_clean.png')
  pixels = np.random.default_rng(1).integers(0, 256, (9, 13, 3), np.uint8)
  Image.fromarray(pixels).save(request_.images / '1_noisy.png')
  entry = publish(asked)
  card = (request_.folder / 'small.md').read_text()
  assert 'over 1 images (photographs), real noise, rounded |' in card
  assert entry.noise == pretrained.Noise('real')
  (entry,) = json.loads((request_.folder / 'index.json').read_text()).values()
  assert entry['noise'] == {'kind': 'real'}


def test_the_index_and_the_card_state_the_shares_of_mixed_noise(request_):
  config = small_config('blind')
  config['noise'] |= {
    'clip': 1.0,
    'camera': 'photo',
    'camera_share': 0.5,
    'grain_share': 0.25,
    'clean_share': 0.1,
  }
  config['data'] |= {'pairs_share': 0.5}
  noise = publish(dataclasses.replace(request_, config=config)).noise
  shares = {'pairs': 0.5, 'camera': 0.25, 'gaussian': 0.15, 'grain': 0.05, 'none': 0.05}
  assert noise == index.Noise('mixed', (0.0, 75.0), 1.0, shares)
  assert index.read_index(request_.folder)['small'].noise == noise
  assert (
    '| colour images, 50% real pairs, 25% camera noise, 15% Gaussian noise of sigma 0 to 75 (clipped), '
    '5% correlated Gaussian noise, 5% no noise |'
  ) in (request_.folder / 'small.md').read_text()


def test_shares_without_a_patch_are_left_out(request_):
  config = small_config('blind')
  config['noise'] |= {'clip': 1.0, 'camera': 'photo', 'camera_share': 0.92, 'clean_share': 0.08}
  assert publish(dataclasses.replace(request_, config=config)).noise.shares == {'camera': 0.92, 'none': 0.08}


def test_equal_images_have_no_psnr(request_):
  content = _results(_rounded())
  content['results'][1]['mean']['psnr_noisy'] = None
  content['results'][1]['sigma_255'] = 0
  request_.results.write_text(json.dumps(content))
  assert publish(request_).measured == 'CBSD68, sigma 0, clipped8: PSNR from unknown to 31.23 dB'


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'name': 'Small'}, "--name: only lower-case letters, digits and _ are allowed, not 'Small'"),
    ({'name': '../a'}, '--name: only lower-case'),
    ({'default_for': ['colour']}, '--default_for: unknown colour; choose from color, gray, fast'),
    (
      {
        'default_for': ['color', 'gray'],
        'config': small_config() | {'model': small_config()['model'] | {'channels': 1}},
      },
      r'weights with 1 channel\(s\) cannot be the default for color',
    ),
    ({'images': None}, '--images, --sigmas: pass a folder of clean images and the noise'),
    ({'sigmas_255': []}, '--images, --sigmas: pass a folder'),
    (
      {'config': small_config('50') | {'model': small_config()['model'] | {'use_context': False}}},
      'model.use_context: ch',
    ),
    (
      {'dtype': 'float32'},
      r'results\.json: has results of the weights \w{64}, not of \w{64}; evaluate',
    ),
  ],
)
def test_invalid_requests_are_refused_before_anything_is_written(request_, changes, match):
  with pytest.raises(ValueError, match=match):
    publish(dataclasses.replace(request_, **changes))
  assert _published(request_.folder) == {}


def test_a_kept_default_must_fit_too(request_):
  publish(request_)
  published = _published(request_.folder)
  grey = small_config() | {'model': small_config()['model'] | {'channels': 1}}
  with pytest.raises(ValueError, match=r'weights with 1 channel\(s\) cannot be the default for color'):
    publish(dataclasses.replace(request_, config=grey, default_for=None, overwrite=True))
  assert _published(request_.folder) == published


@pytest.mark.parametrize('field', ['title', 'version', 'protocol', 'mean'])
def test_results_without_what_the_card_needs_are_refused_before_anything_is_written(request_, field):
  content = _results(_rounded())
  del content['results'][1][field]
  request_.results.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=rf"not a results\.json of evaluate\.py \(KeyError\('{field}'\)\)"):
    publish(request_)
  assert _published(request_.folder) == {}


def test_float16_cannot_become_float32(request_, tmp_path):
  save_weights(
    tmp_path / 'a.safetensors',
    PARAMS,
    model=small_config()['model'],
    step=7,
    about={'config': 'configs/color.py:25'},
    dtype='float16',
  )
  with pytest.raises(ValueError, match=r'--dtype: .*a\.safetensors is in float16; pass --dtype=float16'):
    publish(dataclasses.replace(request_, dtype='float32'))
  with pytest.raises(ValueError, match=r'--images: the weights already have this dtype'):
    publish(request_)
  with pytest.raises(
    ValueError, match=r'--config: .*a\.safetensors is of configs/color\.py:25, not of b\.py'
  ):
    publish(dataclasses.replace(request_, images=None, config_name='b.py'))
  publish(dataclasses.replace(request_, images=None))
  assert '| precision | unknown |' in (request_.folder / 'small.md').read_text()


def _changed(content, **changes):
  return {**content, 'results': [result | changes for result in content['results']]}


def _measured_with(content, **changes):
  noisy, result = content['results']
  return {**content, 'results': [noisy, {**result, 'method': result['method'] | changes}]}


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (lambda c: {**c, 'results': c['results'][:1]}, 'has no result of sadnet'),
    (lambda c: {**c, 'failures': [{'name': 'dnd'}]}, r'the evaluation has 1 failure\(s\)'),
    (lambda c: {**c, 'complete': False}, r'the evaluation was interrupted'),
    (
      lambda c: _measured_with(c, dtype='bfloat16'),
      r'measured with dtype = bfloat16; .* without that option',
    ),
    (lambda c: _measured_with(c, dtype='float32', pad_to_px=16), r'measured with pad_to_px = 16; cards are'),
    (lambda c: _changed(c, failures=[{'name': '1'}]), r'the evaluation has 1 failure\(s\)'),
    (
      lambda c: {**c, 'environment': {**c['environment'], 'uncommitted_changes': True}},
      'measured on uncommitted code',
    ),
    (
      lambda c: {**c, 'environment': {**c['environment'], 'commit': None}},
      'measured on uncommitted code',
    ),
    (lambda c: {}, r"not a results\.json of evaluate\.py \(KeyError\('results'\)\)"),
    (lambda c: [], r'not a results\.json of evaluate\.py \(TypeError'),
  ],
)
def test_unreliable_results_are_refused(request_, change, match):
  request_.results.write_text(json.dumps(change(_results(_rounded()))))
  with pytest.raises(ValueError, match=rf'results\.json: {match}'):
    publish(request_)
  request_.results.write_text('{')
  with pytest.raises(ValueError, match=r'results\.json: not a readable results\.json of evaluate\.py'):
    publish(request_)
  assert _published(request_.folder) == {}


def test_facts_must_be_complete(request_):
  for facts, match in (
    ({}, r'missing \[.*summary.*\], unknown \[\]; the facts are summary, data'),
    ({**FACTS, 'colour': 'red'}, r"missing \[\], unknown \['colour'\]"),
    ({**FACTS, 'hours': 3}, r"\['hours'\] must be texts"),
    ({**FACTS, 'limits': ' '}, r"\['limits'\] must be texts"),
  ):
    _write_facts(request_.facts, facts)
    with pytest.raises(ValueError, match=rf'facts\.toml: {match}'):
      publish(request_)
  for text in ('=', None):
    request_.facts.unlink() if text is None else request_.facts.write_text(text)
    with pytest.raises(ValueError, match=r'facts\.toml: cannot be read as a TOML file of texts'):
      publish(request_)


def test_evaluated_and_published_by_the_commands(tmp_path):
  """Results of evaluate.py for a published name can be used to publish the weights again."""
  (tmp_path / 'photographs').mkdir()
  Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(tmp_path / 'photographs' / '1.png')
  config = f'--config={ROOT}/configs/blind.py:color'
  evaluate = [ROOT / 'evaluate.py', config, '--checkpoint=color', '--datasets=photographs', '--nopictures']
  finish(start(*evaluate, '--sigmas=50', cwd=tmp_path))
  (results,) = (tmp_path / 'evaluation').glob('*-color/results.json')
  content = json.loads(results.read_text())
  assert content['results'][0]['method']['checkpoint'] == 'color'
  assert content['failures'] == []

  content['environment'] |= {'commit': '0123456789', 'uncommitted_changes': False}
  results.write_text(json.dumps(content))
  (tmp_path / 'published').mkdir()
  publish = ['-m', 'tools.publish_weights', '--config=configs/blind.py:color', '--name=again']
  publish += ['--checkpoint=color', f'--results={results}', f'--folder={tmp_path}/published']
  output, _ = finish(start(*publish, f'--facts={ROOT}/sadnet_jax/weights/pretrained/color.toml'))
  published = pretrained.available()['color']
  assert output.startswith(
    f'again: colour, Gaussian noise of sigma 0 to 75, 50% clipped; 8.5 MB. {published.summary}'
  )
  (entry,) = index.read_index(tmp_path / 'published').values()
  assert entry.sha256 == published.sha256


def test_a_mean_difference_that_rounds_to_zero_has_no_minus(monkeypatch, tmp_path):
  Image.new('RGB', (16, 16)).save(tmp_path / 'a.png')
  figures = iter((30.0, 29.99999))
  monkeypatch.setattr(model_card, 'psnr', lambda denoised, clean: next(figures))
  params, examples = random_variables(MODEL)['params'], [Example('a', 'a', (tmp_path / 'a.png',), None)]
  text = model_card.float16_cost(
    MODEL, params, params, examples=examples, sigmas_255=[25], protocol=UNCLIPPED, source='one'
  )
  assert 'by 0.0000 dB at most, +0.0000 dB on average' in text
