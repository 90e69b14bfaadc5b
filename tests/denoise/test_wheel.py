"""The package as users install it: built, installed elsewhere, and run without the clone."""

import importlib.metadata
import os
from pathlib import Path
import shutil
import subprocess
import tomllib
import zipfile

import numpy as np
from packaging.requirements import Requirement
import pytest

from tests.support.command import ROOT, finish, start
from tests.support.denoise_command import picture, pixels_of

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
# Small enough to install over a slow line, and far below the limit of package registries.
MOST_BYTES = 30_000_000


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
  assert wheel.stat().st_size < MOST_BYTES
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
  weights = {Path(name).stem for name in wanted if name.endswith('.safetensors')}
  assert weights == {'photo', 'photo_fast', 'gray', 'color'}
  assert sum(name.endswith('.html') for name in wanted) >= 1


def _dependencies(requires, found):
  """Adds the installed distributions that requirements ask for, directly and indirectly, without extras."""
  for requirement in map(Requirement, requires or ()):
    is_needed = requirement.marker is None or requirement.marker.evaluate({'extra': ''})
    if is_needed and requirement.name not in found:
      found[requirement.name] = importlib.metadata.distribution(requirement.name)
      _dependencies(found[requirement.name].requires, found)
  return found


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
  """A virtual environment with the wheel and what it declares, linked from the environment of the tests."""
  folder = tmp_path_factory.mktemp('environment')
  finish(start('-m', 'venv', '--without-pip', folder))
  (packages,) = folder.glob('lib/python*/site-packages')
  (info,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith('.dist-info'))
  declared = importlib.metadata.PathDistribution(info).requires
  for distribution in _dependencies(declared, {}).values():
    for top in {path.parts[0] for path in distribution.files if path.parts[0] not in ('..', '__pycache__')}:
      if not (packages / top).exists():
        (packages / top).symlink_to(distribution.locate_file(top))
  install = [
    '--ignore-installed',
    '--no-deps',
    '--no-index',
    '--no-compile',
    '--quiet',
    '--disable-pip-version-check',
  ]
  finish(start('-m', 'pip', '--python', folder / 'bin' / 'python', 'install', wheel, *install))
  return folder


def test_the_installed_command_denoises_a_picture(environment, tmp_path):
  """Without the clone, and without packages that the wheel does not declare."""
  pixels = picture(tmp_path / 'noisy.png', size=(32, 40))

  def run(name, *arguments):
    # An environment's own Python knows its packages alone.
    command = [environment / 'bin' / name, *arguments]
    variables = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    variables.pop('PYTHONPATH', None)
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr

  location, _ = run('python', '-c', 'import sadnet_jax; print(sadnet_jax.__file__)')
  assert Path(location).is_relative_to(environment)
  with pytest.raises(AssertionError, match=r"No module named 'pytest'"):
    run('python', '-c', 'import pytest')
  version, _ = run('sadnet-denoise', '--version')
  assert version == f'sadnet-denoise {PROJECT["project"]["version"]}\n'
  _, errors = run('sadnet-denoise', 'noisy.png', '-o', 'denoised.png')
  assert errors.startswith('noisy.png -> denoised.png  40x32, ')
  denoised = pixels_of(tmp_path / 'denoised.png')
  assert denoised.shape == pixels.shape
  # Uniform noise: most of it goes.
  assert np.std(denoised.astype(float)) < 0.7 * np.std(pixels.astype(float))
