"""Publishing: the file, its card and its entry of the index, and what is refused."""

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
from tools import model_card, plot_training
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
def request_(tmp_path):
  """Asks for float16 of float32 weights, of a config with noise of sigma 25."""
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


def test_file_card_and_index_are_written(request_):
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
  for line in (
    '# small',
    '| task | colour images, Gaussian noise of sigma 25, clipped |',
    r'| data | None \| at all |',
    '| step | 7 |',
    '| seed | not known |',
    f'| SHA-256 of the file | `{entry.sha256}` |',
    f'| SHA-256 of the weights, as in results.json | `{params_hash(_rounded())}` |',
    '| CBSD68, 68 images | 25 | clipped8 | 20.17 | 31.23 | 0.9123 | not known |',
    'By `python evaluate.py`; 2 cores, A, cpu; commit 0123456.',
    'Once published, `--checkpoint=small` takes the same weights.',
  ):
    assert line in card.splitlines()
  assert card.count('CBSD68') == 1


def test_a_new_card_leaves_the_file_as_it_is(request_):
  first = publish(request_)
  before = _published(request_.folder)
  _write_facts(request_.facts, {**FACTS, 'hours': '3', 'summary': 'Another.'})
  again = dataclasses.replace(
    request_, checkpoint=str(request_.folder / 'small.safetensors'), images=None, default_for=None
  )
  with pytest.raises(
    ValueError, match=r'--name: got small, which is published, want another, or pass --overwr'
  ):
    publish(again)
  second = publish(dataclasses.replace(again, overwrite=True))
  assert dataclasses.replace(second, summary=first.summary) == first
  assert second.default_for == ('color',)
  after = _published(request_.folder)
  assert after['small.safetensors'] == before['small.safetensors']
  # What was measured of the rounding is in the file.
  assert (
    after['small.md'].replace(b'| 3 |', b'| 0 |').replace(b'Another.', b'Of a test.') == before['small.md']
  )


def test_a_file_that_is_not_published_is_not_written_over(request_):
  path = request_.folder / 'small.safetensors'
  path.write_text('kept')
  with pytest.raises(
    ValueError, match=r'--name: got small, of which .*small\.safetensors is there, want anoth'
  ):
    publish(request_)
  assert _published(request_.folder) == {path.name: b'kept'}
  publish(dataclasses.replace(request_, overwrite=True))
  assert load_with_model(path)[2]['step'] == '7'


def test_a_task_keeps_one_default(request_):
  publish(dataclasses.replace(request_, default_for=['color', 'real']))
  publish(dataclasses.replace(request_, name='other'))
  entries = index.read_index(request_.folder)
  assert {name: entry.default_for for name, entry in entries.items()} == {
    'small': ('real',),
    'other': ('color',),
  }


def test_weights_of_a_run_tell_their_seed(request_, tmp_path):
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
  _write_facts(request_.facts, {**FACTS, 'seed': '4'})
  with pytest.raises(ValueError, match=r'facts\.toml: got seed, which the weights tell: leave that out'):
    publish(dataclasses.replace(asked, overwrite=True))


def test_what_was_trained_in_bfloat16_is_published_in_float32(request_, tmp_path):
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
      r'--config\.model\.dtype: got bfloat16, want float32, which published networks',
    ),
    ({'checkpoint': str(tmp_path / 'b.safetensors')}, r'another config: model\.dtype: '),
  ):
    with pytest.raises(ValueError, match=match):
      publish(dataclasses.replace(request_, **other, overwrite=True))


@pytest.fixture
def stages(tmp_path):
  """The runs of two stages; the weights of the request are those of the second at step 7."""
  first, second = (write_log(tmp_path / name, losses(8, every=1)) for name in ('first', 'second'))
  save_checkpoint(second, PARAMS, small_config(init_from=str(first)), 7)
  return str(first), str(second)


def test_the_curve_is_drawn_kept_and_shown_by_the_card(request_, stages):
  publish(dataclasses.replace(request_, curve=stages))
  curve = read_curve(request_.folder / 'curves' / 'small.json')
  assert curve == curve_of_runs(stages, 'small', curve.about)[0]
  assert curve.about == {
    'config': 'configs/color.py:25',
    'commit': 'not known',
    'params_sha256': params_hash(_rounded()),
  }
  assert (request_.folder / 'curves' / 'small.png').read_bytes() == png(draw(curve))
  lines = (request_.folder / 'small.md').read_text().splitlines()
  assert '![Loss, PSNR and learning rate by step](curves/small.png)' in lines
  assert 'Its numbers: [small.json](curves/small.json).' in lines
  assert lines.index('## Trained by') < lines.index('## Training curve') < lines.index('## Figures')

  # Their run tells the seed of its own stage alone.
  _write_facts(request_.facts, {**FACTS, 'seed': '1 and 2'})
  publish(dataclasses.replace(request_, checkpoint=stages[1], curve=stages, overwrite=True))
  assert '| seed | 1 and 2 |' in (request_.folder / 'small.md').read_text().splitlines()
  _write_facts(request_.facts, FACTS)
  publish(dataclasses.replace(request_, curve=stages, overwrite=True))

  # A new card of the same weights keeps it.
  before = _published(request_.folder)
  _write_facts(request_.facts, {**FACTS, 'hours': '3'})
  file = str(request_.folder / 'small.safetensors')
  publish(dataclasses.replace(request_, checkpoint=file, images=None, overwrite=True))
  after = _published(request_.folder)
  assert after.pop('small.md').replace(b'| 3 |', b'| 0 |') == before.pop('small.md')
  assert after == before


def test_curves_of_the_package_are_outside_of_it(tmp_path, monkeypatch):
  folder = tmp_path / 'sadnet_jax' / 'weights' / 'pretrained'
  folder.mkdir(parents=True)
  monkeypatch.setattr(plot_training, 'FOLDER', folder)
  assert plot_training.link(folder, 'small') is None
  plot_training.write(folder, 'small', (b'1', b'2'))
  assert _published(tmp_path / 'docs' / 'curves') == {'small.json': b'1', 'small.png': b'2'}
  assert plot_training.link(folder, 'small') == '../../../docs/curves/small.png'


def test_weights_are_not_published_with_the_curve_of_others(request_, stages, tmp_path):
  publish(dataclasses.replace(request_, curve=stages))
  before = _published(request_.folder)
  others = random_variables(MODEL, seed=1)['params']
  save_weights(tmp_path / 'b.safetensors', others, model=small_config()['model'], step=7, about={})
  request_.results.write_text(json.dumps(_results(_rounded(others))))
  asked = dataclasses.replace(request_, checkpoint=str(tmp_path / 'b.safetensors'), overwrite=True)
  for curve, match in (
    (
      (),
      r'small\.json: got the training curve of other weights \(\w{64}\), want that of \w{64}: pass --curve=',
    ),
    (stages, r'--curve: got .*second, which has other weights at step 7, want the run of these'),
    (stages[:1], r'--curve: got .*first until step 8, want until 7, that of the weights: the run that'),
  ):
    with pytest.raises(ValueError, match=match):
      publish(dataclasses.replace(asked, curve=curve))
  assert _published(request_.folder) == before

  # Without checkpoints nothing but the step can be compared.
  publish(dataclasses.replace(asked, curve=[f'{stages[0]}/checkpoints/7']))
  assert len(read_curve(request_.folder / 'curves' / 'small.json').stages) == 1
  (request_.folder / 'curves' / 'small.png').unlink()
  with pytest.raises(
    ValueError, match=r'small\.json: got a curve without its picture or its numbers, want both'
  ):
    publish(asked)


def test_the_curve_of_an_average_ends_with_the_last_that_was_averaged(request_, stages, tmp_path):
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
      rf'got .*second with the weights {hashes[1]}, want the run, .* that is the last',
    ),
    ([2, 1], hashes, 8, r'got .*second until step 7, want until 8'),
  ):
    save(shares, parts, step)
    with pytest.raises(ValueError, match=match):
      publish(asked)
  told = save([2, 1], hashes, 7)
  publish(asked)
  about = read_curve(request_.folder / 'curves' / 'small.json').about
  assert (about['params_sha256'], about[AVERAGE_OF]) == (params_hash(_rounded(mean)), told)
  _, _, metadata = load_with_model(request_.folder / 'small.safetensors')
  assert metadata[AVERAGE_OF] == told
  card = (request_.folder / 'small.md').read_text().splitlines()
  assert f'| average of, share * SHA-256 of the weights | `{told}` |' in card


def test_a_curve_that_is_there_or_cannot_be_drawn_is_refused(request_, stages, monkeypatch):
  asked = dataclasses.replace(request_, curve=stages)
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ValueError, match='matplotlib: got no such package'):
      publish(asked)
  assert _published(request_.folder) == {}
  path = request_.folder / 'curves' / 'small.png'
  path.parent.mkdir()
  path.write_text('kept')
  with pytest.raises(
    ValueError, match=r'--name: got small, of which .*small\.png is there, want another, or --o'
  ):
    publish(asked)
  assert _published(request_.folder) == {'small.png': b'kept'}
  publish(dataclasses.replace(asked, overwrite=True))
  assert path.read_bytes().startswith(b'\x89PNG')


def test_real_noise_has_no_sigma_and_is_measured_on_pairs(request_):
  config = small_config()
  config['noise'] = {**config['noise'], 'sigma_255': 0.0}
  asked = dataclasses.replace(request_, config=config)
  for sigmas_255, images in (([25.0], request_.images), ([], None)):
    with pytest.raises(ValueError, match='--images, --sigmas: got no images or some sigma, want a folder of'):
      publish(dataclasses.replace(asked, sigmas_255=sigmas_255, images=images))
  asked = dataclasses.replace(asked, sigmas_255=[])
  with pytest.raises(ValueError, match=r'photographs.*want'):
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


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'name': 'Small'}, "--name: got 'Small', want lower-case letters, digits and _"),
    ({'name': '../a'}, r"--name: got '\.\./a', want"),
    ({'default_for': ['colour']}, '--default_for: got colour, want some of color, gray, real'),
    ({'default_for': ['color', 'gray']}, r'--default_for: got gray for weights of 3 channel\(s\), want what'),
    ({'images': None}, '--images, --sigmas: got none, want a folder of clean images and the noise'),
    ({'sigmas_255': []}, '--images, --sigmas: got none, want'),
    (
      {'config': small_config('50') | {'model': small_config()['model'] | {'use_context': False}}},
      'model.use_context: ch',
    ),
    (
      {'dtype': 'float32'},
      r'results\.json: got results of the weights \w{64}, want those of \w{64}: evaluate',
    ),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(request_, changes, match):
  with pytest.raises(ValueError, match=match):
    publish(dataclasses.replace(request_, **changes))
  assert _published(request_.folder) == {}


def test_float16_is_not_made_float32(request_, tmp_path):
  save_weights(
    tmp_path / 'a.safetensors',
    PARAMS,
    model=small_config()['model'],
    step=7,
    about={'config': 'configs/color.py:25'},
    dtype='float16',
  )
  with pytest.raises(ValueError, match=r'--dtype: got float32 for .*a\.safetensors, which has float16: want'):
    publish(dataclasses.replace(request_, dtype='float32'))
  with pytest.raises(ValueError, match=r'--images: got .* for weights of that dtype: want none'):
    publish(request_)
  with pytest.raises(
    ValueError, match=r'--config: got b\.py, want configs/color\.py:25, as .*a\.safetensors says'
  ):
    publish(dataclasses.replace(request_, images=None, config_name='b.py'))
  publish(dataclasses.replace(request_, images=None))
  assert '| precision | not known |' in (request_.folder / 'small.md').read_text()


def _changed(content, **changes):
  return {**content, 'results': [result | changes for result in content['results']]}


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (lambda c: {**c, 'results': c['results'][:1]}, 'got no result of sadnet, want those of these weights'),
    (lambda c: {**c, 'failures': [{'name': 'dnd'}]}, r'got results with 1 failure\(s\), want whole ones'),
    (lambda c: _changed(c, failures=[{'name': '1'}]), r'got results with 1 failure\(s\), want whole ones'),
    (
      lambda c: {**c, 'environment': {**c['environment'], 'uncommitted_changes': True}},
      'that is in no commit',
    ),
    (
      lambda c: {**c, 'environment': {**c['environment'], 'commit': None}},
      'got results of code that is in no',
    ),
    (lambda c: {}, r"got no results of evaluate\.py \(KeyError\('results'\)\), want its results\.json"),
    (lambda c: [], r'got no results of evaluate\.py \(TypeError'),
  ],
)
def test_results_that_cannot_be_relied_on_are_refused(request_, change, match):
  request_.results.write_text(json.dumps(change(_results(_rounded()))))
  with pytest.raises(ValueError, match=rf'results\.json: {match}' if match[0] == 'g' else match):
    publish(request_)
  request_.results.write_text('{')
  with pytest.raises(ValueError, match=r'results\.json: got no readable JSON .*want the results\.json of'):
    publish(request_)
  assert _published(request_.folder) == {}


def test_facts_are_whole(request_):
  for facts, match in (
    ({}, r'got facts without \[.*summary.*\] and with \[\], want summary, data'),
    ({**FACTS, 'colour': 'red'}, r"got facts without \[\] and with \['colour'\]"),
    ({**FACTS, 'hours': 3}, r"got no text for \['hours'\], want one each"),
    ({**FACTS, 'limits': ' '}, r"got no text for \['limits'\]"),
  ):
    _write_facts(request_.facts, facts)
    with pytest.raises(ValueError, match=rf'facts\.toml: {match}'):
      publish(request_)
  for text in ('=', None):
    request_.facts.unlink() if text is None else request_.facts.write_text(text)
    with pytest.raises(ValueError, match=r'facts\.toml: got no readable facts .*want a TOML file of texts'):
      publish(request_)


def test_evaluated_and_published_by_the_commands(tmp_path):
  """What a name is evaluated to is what it can be published with."""
  (tmp_path / 'photographs').mkdir()
  Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(tmp_path / 'photographs' / '1.png')
  config = f'--config={ROOT}/configs/color_fast.py:50'
  evaluate = [ROOT / 'evaluate.py', config, '--checkpoint=color_50', '--datasets=photographs', '--nopictures']
  finish(start(*evaluate, cwd=tmp_path))
  (results,) = (tmp_path / 'evaluation').glob('*-color_50/results.json')
  content = json.loads(results.read_text())
  assert content['results'][0]['method']['checkpoint'] == 'color_50'
  assert content['failures'] == []

  content['environment'] |= {'commit': '0123456789', 'uncommitted_changes': False}
  results.write_text(json.dumps(content))
  (tmp_path / 'published').mkdir()
  publish = ['-m', 'tools.publish_weights', '--config=configs/color_fast.py:50', '--name=again']
  publish += ['--checkpoint=color_50', f'--results={results}', f'--folder={tmp_path}/published']
  output, _ = finish(start(*publish, f'--facts={ROOT}/sadnet_jax/weights/pretrained/color_50.toml'))
  published = pretrained.available()['color_50']
  assert output.startswith(
    f'again: colour, Gaussian noise of sigma 50, not clipped; 8.5 MB. {published.summary}'
  )
  (entry,) = index.read_index(tmp_path / 'published').values()
  assert entry.sha256 == published.sha256


def test_a_mean_difference_that_rounds_to_nothing_has_no_minus(monkeypatch, tmp_path):
  Image.new('RGB', (16, 16)).save(tmp_path / 'a.png')
  figures = iter((30.0, 29.99999))
  monkeypatch.setattr(model_card, 'psnr', lambda denoised, clean: next(figures))
  params, examples = random_variables(MODEL)['params'], [Example('a', 'a', (tmp_path / 'a.png',), None)]
  text = model_card.float16_cost(
    MODEL, params, params, examples=examples, sigmas_255=[25], protocol=UNCLIPPED, source='one'
  )
  assert 'by 0.0000 dB at most, +0.0000 dB on average' in text
