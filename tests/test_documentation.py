"""README, docs/ and the cards name what exists: files, commands, options, configs and public names."""

import ast
import functools
import importlib
import re

import jax.numpy as jnp
from PIL import Image
import pytest

import sadnet_jax
from sadnet_jax.data.camera_noise import PRESETS
from sadnet_jax.training.config import check_config, training_noise
from sadnet_jax.training.state import OPTIMIZERS, optimizer_from_config
from sadnet_jax.training.step import LOSSES
from tests.support.command import ROOT
from tests.test_architecture import MAY_IMPORT

PAGES = sorted(
  [*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md'), *(ROOT / 'sadnet_jax/weights/pretrained').glob('*.md')]
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
EVERY_PAGE = pytest.mark.parametrize('page', PAGES, ids=IDS)
COMMAND = re.compile(r'\bpython (-m [\w.]+|[\w/]+\.py)((?: [^\n`|]*)?)')
DENOISE = 'sadnet_jax/denoise/command.py'


def _text(page):
  """The page with continued command lines joined, without lines that name the commit of their command."""
  text = page.read_text().replace('\\\n', ' ')
  return '\n'.join(line for line in text.splitlines() if not re.search(r'; commit [0-9a-f]{7}\b', line))


@functools.cache
def _options(file):
  """Options of a script, by argparse or absl, as they are written on a command line."""
  found = {'--help', '-h'}
  for node in ast.walk(ast.parse((ROOT / file).read_text())):
    if not isinstance(node, ast.Call):
      continue
    names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    found |= {name for name in names if re.fullmatch('--?[a-z][a-z0-9_-]*', name)}
    if 'BooleanOptionalAction' in ast.unparse(node):
      found |= {f'--no-{name[2:]}' for name in names if name.startswith('--')}
    if ast.unparse(node.func).rpartition('.')[2].startswith('DEFINE_') and names:
      found |= {f'--{names[0]}', f'--no{names[0]}'}
  return found


def _script(name):
  """The file of ``-m MODULE`` or ``FILE.py``."""
  if not name.startswith('-m '):
    return name
  path = name[3:].replace('.', '/')
  return next((f for f in (f'{path}.py', f'{path}/__main__.py') if (ROOT / f).is_file()), f'{path}.py')


def _commands(text):
  """(script, rest of the line) of every command of this project."""
  for name, rest in COMMAND.findall(text):
    if name != '-m pip':
      yield _script(name), rest
  for rest in re.findall(r'\bsadnet-denoise((?: [^\n`|]*)?)', text):
    yield DENOISE, rest


def test_readme_is_short():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


@EVERY_PAGE
def test_links_lead_to_files(page):
  targets = re.findall(r'\]\(([^)\s]+)\)', page.read_text())
  files = [t.partition('#')[0] for t in targets if not re.match(r'[a-z]+:|#', t)]
  missing = [f for f in files if not (page.parent / f).exists()]
  assert not missing


@EVERY_PAGE
def test_commands_and_their_options_exist(page):
  wrong = []
  for script, rest in _commands(_text(page)):
    if not (ROOT / script).is_file():
      wrong.append(script)
      continue
    # The benchmarks share options.
    options = _options(DENOISE if script == 'sadnet_jax/__main__.py' else script).union(
      *(
        _options(str(file)) for file in (ROOT / 'benchmarks').glob('*.py') if script.startswith('benchmarks/')
      )
    )
    named = re.findall(r'(?<=\s)--?[a-z][\w-]*(?=[\s=]|$)', rest.partition('#')[0])
    wrong += [f'{script}: {option}' for option in named if option not in options]
  assert not wrong


@EVERY_PAGE
def test_configs_and_their_fields_exist(page):
  text = _text(page)
  for name, argument in re.findall(r'--config=configs/(\w+)\.py(?::([\w-]+))?', text):
    get_config = importlib.import_module(f'configs.{name}').get_config
    assert get_config(*[argument] if argument else [])
  default = importlib.import_module('configs.default').get_config()
  for field in re.findall(r'--config\.([a-z][\w.]*\w)', text):
    assert functools.reduce(getattr, field.split('.'), default) is not None


@EVERY_PAGE
def test_python_examples_import_public_names(page):
  for block in re.findall(r'^```python\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL):
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] in ('sadnet_jax', 'configs'):
        names = {alias.name for alias in node.names}
        assert node.module != 'sadnet_jax' or names <= {*sadnet_jax.__all__, 'pretrained'}
        assert not any(name.startswith('_') for name in names)
        exec(ast.unparse(node), {})


@pytest.mark.parametrize('page', ['README.md', 'docs/network.md'])
def test_python_examples_run(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with Image.open(ROOT / 'tests/crops/chelsea.png') as crop:
    crop.crop((0, 0, 48, 39)).save('photo.jpg')
  (block,) = re.findall(r'^```python\n(.*?)^```', (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
  names = {}
  exec(block, names)
  if page == 'README.md':
    with Image.open('denoised.png') as denoised:
      assert denoised.size == (48, 39)
  else:
    assert names['y'].shape == (1, 64, 48, 16)


def test_config_files_of_ones_own_are_configs(monkeypatch):
  text = (ROOT / 'docs/train.md').read_text()
  blocks = re.findall(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
  for names in (LOSSES, OPTIMIZERS, PRESETS):
    # What they add is taken back.
    for name in ('edges', 'adamw', 'mine'):
      monkeypatch.setitem(names, name, None)
      monkeypatch.delitem(names, name)
  configs = []
  for block in blocks:
    module = {}
    exec(block, module)
    configs.append(module['get_config']())
    check_config(configs[-1], 1)
  with_loss, with_optimizer = configs
  assert LOSSES[with_loss.loss](jnp.ones((1, 4, 4, 3)), jnp.zeros((1, 4, 4, 3))) == 1
  # The weights shrink without a gradient.
  params = {'w': jnp.ones(3)}
  optimizer = optimizer_from_config(with_optimizer)
  updates, _ = optimizer.update({'w': jnp.zeros(3)}, optimizer.init(params), params)
  assert (updates['w'] < 0).all()
  assert training_noise(with_optimizer.noise).camera == 'mine'


def test_options_of_the_command_are_documented():
  text = (ROOT / 'docs' / 'denoise.md').read_text()
  named = set(re.findall(r'`(--[a-z-]+)', text))
  assert _options(DENOISE) - named - {'-h', '-o', '-r', '-q', '--help', '--version'} == set()
  assert named - _options(DENOISE) == set()


def test_the_table_of_rooms_is_the_rule():
  rows = re.findall(
    r'^\| `(\w+)` \| .* \| (.*) \|$', (ROOT / 'docs/architecture.md').read_text(), re.MULTILINE
  )
  assert {room: set(re.findall('`([^`]+)`', allowed)) for room, allowed in rows} == MAY_IMPORT


@EVERY_PAGE
def test_files_named_in_the_text_exist(page):
  files = set(re.findall(r'`((?:\w+/)+\w+\.py)\b', _text(page)))
  assert {f for f in files if not (ROOT / f).exists() and not (ROOT / 'sadnet_jax' / f).exists()} == set()
