"""The package as users install it: built, installed elsewhere, and run without the clone."""

import importlib.metadata
from pathlib import Path
import shutil
import tomllib
import zipfile

import numpy as np
import pytest

from tests.support.command import ROOT, finish, start
from tests.support.denoise_command import picture, pixels_of

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Built from a copy: building writes into the source tree."""
  source, output = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
  for name in ('pyproject.toml', 'README.md', 'LICENSE', 'train.py', 'evaluate.py'):
    shutil.copy(ROOT / name, source)
  for name in ('sadnet_jax', 'configs', 'tools', 'benchmarks', 'examples'):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__', 'results'))
  (source / 'tests').mkdir()
  (source / 'tests/test_nothing.py').touch()
  options = ['--no-deps', '--quiet', '--disable-pip-version-check']
  if int(importlib.metadata.version('setuptools').split('.')[0]) >= 77:
    # Otherwise pip downloads the one that pyproject.toml asks for.
    options.append('--no-build-isolation')
  finish(start('-m', 'pip', 'wheel', source, '--wheel-dir', output, *options))
  (path,) = output.iterdir()
  return path


def test_a_wheel_has_the_package_with_its_data_and_nothing_else(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
  info = f'sadnet_jax-{PROJECT["project"]["version"]}.dist-info'
  assert {name.split('/')[0] for name in names} == {'sadnet_jax', info}
  wanted = {
    str(path.relative_to(ROOT))
    for path in (ROOT / 'sadnet_jax').rglob('*')
    if path.suffix in ('.py', '.safetensors', '.json', '.md', '.html', '.css', '.js')
  }
  assert {name for name in names if name.startswith('sadnet_jax/')} == wanted
  assert sum(name.endswith('.safetensors') for name in wanted) >= 1
  assert sum(name.endswith('.html') for name in wanted) >= 1


def test_the_installed_command_denoises_a_picture(wheel, tmp_path):
  installed = tmp_path / 'installed'
  install = ['--no-deps', '--no-index', '--no-compile', '--quiet', '--disable-pip-version-check']
  finish(start('-m', 'pip', 'install', wheel, '--target', installed, *install))
  command = installed / 'bin' / 'sadnet-denoise'
  pixels = picture(tmp_path / 'noisy.png', size=(32, 40))
  variables = {'cwd': tmp_path, 'PYTHONPATH': str(installed)}

  location, _ = finish(start('-c', 'import sadnet_jax; print(sadnet_jax.__file__)', **variables))
  assert Path(location.strip()).parent == installed / 'sadnet_jax'
  version, _ = finish(start(command, '--version', **variables))
  assert version == f'sadnet-denoise {PROJECT["project"]["version"]}\n'
  _, errors = finish(start(command, 'noisy.png', '-o', 'denoised.png', **variables))
  assert errors.startswith('noisy.png -> denoised.png  40x32, ')
  denoised = pixels_of(tmp_path / 'denoised.png')
  assert denoised.shape == pixels.shape
  # Uniform noise: most of it goes.
  assert np.std(denoised.astype(float)) < 0.7 * np.std(pixels.astype(float))
