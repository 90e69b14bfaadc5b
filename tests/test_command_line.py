"""The commands as a user runs them, in processes of their own."""

import json
import re

import jax
import numpy as np
from PIL import Image
import pytest

from sadnet_jax.images.arrays import read_image
from sadnet_jax.weights.checkpoints import load_run
from tests.support.command import ROOT, finish, start


def _run(*arguments, cwd=ROOT, succeeds=True, **variables):
  """(stdout, stderr) of a command."""
  return finish(start(*arguments, cwd=cwd, **variables), succeeds=succeeds)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  for i, size in enumerate([(19, 33), (40, 24)]):
    y, x = np.mgrid[: size[0], : size[1]] / 8
    pixels = np.uint8(127.5 + 127.5 * np.stack([np.sin(x + i), np.cos(y), np.sin(x * y)], axis=-1))
    Image.fromarray(pixels).save(folder / f'{i}.png')
  return folder


def test_train_resume_and_evaluate(images, tmp_path):
  """Both commands, run from another folder than the project's, as the README shows them."""
  small = [
    f'--config={ROOT}/configs/color.py:25',
    '--config.model.width=8',
    '--config.model.offset_width=8',
  ]
  train = [
    ROOT / 'train.py',
    *small,
    f'--config.data.train.clean={images}',
    '--config.data.patch_px=16',
    '--config.batch_size=2',
    '--config.log_every=1',
  ]
  # As users run it: with optimised programs, which are compiled once for the three runs.
  optimised = {'XLA_FLAGS': '', 'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache')}
  first = _run(*train, '--config.steps=2', cwd=tmp_path, **optimised)
  run = tmp_path / 'runs' / 'color-25'
  assert 'step 2/2  loss ' in first[0]
  assert list((run / 'tensorboard').glob('events*'))
  second = _run(*train, '--config.steps=3', cwd=tmp_path, **optimised)
  assert '2 images, 1 device(s), from step 2' in second[0]
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [1, 2, 3]
  # Bit for bit the weights of a run without a stop.
  _run(*train, '--config.steps=3', '--workdir=whole', cwd=tmp_path, **optimised)
  (model, params, step, _), (_, expected, _, _) = load_run(run), load_run(tmp_path / 'whole')
  assert (step, model.use_rsab, model.use_context) == (3, True, True)
  jax.tree.map(np.testing.assert_array_equal, params, expected)

  evaluate = [ROOT / 'evaluate.py', *small, f'--checkpoint={run}', f'--datasets={images}']
  result = _run(*evaluate, cwd=tmp_path)
  # The noise of this config is clipped.
  output = run / 'evaluation' / f'{images.name}-sigma25-clipped8-step3'
  content = json.loads((output / 'results.json').read_text())
  (results,) = content['results']
  assert [r['name'] for r in results['images']] == ['0', '1']
  assert f'{results["mean"]["psnr"]:.3f}' in result[0]
  method = results['method']
  assert (method['name'], method['config'], method['step']) == ('sadnet', 'configs/color.py:25', 3)
  # The figure is that of the file written, not of what was rounded away.
  pictures = output / f'{images.name}-sigma25-clipped8-sadnet'
  denoised = read_image(pictures / 'denoised' / '0.png', 3).astype(np.float64)
  clean = read_image(images / '0.png', 3).astype(np.float64)
  written = -10 * np.log10(np.mean((denoised - clean) ** 2) / 255**2)
  assert results['images'][0]['psnr'] == pytest.approx(written, abs=1e-4)
  assert read_image(pictures / 'comparison' / '0.png', 3).shape == (19, 3 * 33, 3)

  again = _run(*evaluate, cwd=tmp_path, succeeds=False)
  assert 'output folder is not empty; choose another one or pass --overwrite' in again[1]
  # Several devices, several sigmas, a bad image among the good ones.
  (images / '2.png').write_text('no image')
  flags = ['--overwrite', '--protocols=unclipped', '--sigmas=25,50', '--keep-going', f'--output={output}']
  several = {'XLA_FLAGS': '--xla_force_host_platform_device_count=3'}
  failed = _run(*evaluate, *flags, cwd=tmp_path, succeeds=False, **several)
  assert '2: ' in failed[1]
  assert '2.png: ' in failed[1]
  assert 'Traceback' not in failed[1]
  results = json.loads((output / 'results.json').read_text())['results']
  assert [(r['sigma_255'], r['protocol'], len(r['images'])) for r in results] == [
    (25.0, 'unclipped', 2),
    (50.0, 'unclipped', 2),
  ]
  assert [r['mean']['psnr_noisy'] for r in results] == pytest.approx([20.18, 14.15], abs=0.3)


def test_evaluate_needs_no_tensorflow(images, tmp_path):
  code = '\n'.join(
    [
      'import runpy, sys',
      'for name in ("tensorflow", "tensorflow_datasets", "torch", "matplotlib", "tensorboardX"):',
      '  sys.modules[name] = None  # Any import of it now fails.',
      f'sys.argv = ["evaluate.py", "--methods=noisy", "--datasets={images}", "--sigmas=50", "--output=out"]',
      f'sys.path.insert(0, {str(ROOT)!r})',
      f'runpy.run_path({str(ROOT / "evaluate.py")!r}, run_name="__main__")',
    ]
  )
  (images / '2.png').unlink(missing_ok=True)
  assert '50     unclipped  noisy' in _run('-c', code, cwd=tmp_path)[0]


def test_evaluate_without_a_network(images, tmp_path):
  flags = ['--methods=noisy,bm3d', f'--datasets={images}', '--keep-going', '--output=out']
  (images / '2.png').unlink(missing_ok=True)
  result = _run(ROOT / 'evaluate.py', *flags, '--sigmas=50', cwd=tmp_path)
  assert [line.split()[3] for line in result[0].splitlines()[1:3]] == ['noisy', 'bm3d']
  for bad, message in [
    ('--methods=sadnet', '--methods: sadnet needs --config and --checkpoint; pass both'),
    ('--methods=median', "--methods: unknown name 'median'; choose from sadnet, noisy, bm3d"),
    ('--sigmas=fifty', '--sigmas=fifty is not a list of numbers such as 30,50'),
  ]:
    failed = _run(ROOT / 'evaluate.py', *flags, '--overwrite', bad, cwd=tmp_path, succeeds=False)
    assert failed[1].startswith(f'evaluate.py: {message}')


def test_a_tilde_in_a_flag_is_the_home_folder(images, tmp_path):
  # Shells replace only the ~ that begins an argument.
  (tmp_path / 'pictures').symlink_to(images)
  (images / '2.png').unlink(missing_ok=True)
  flags = ['--methods=noisy', '--datasets=~/pictures,clean:~/pictures', '--sigmas=50', '--nopictures']
  _run(ROOT / 'evaluate.py', *flags, '--output=~/out', cwd=tmp_path, HOME=str(tmp_path))
  results = json.loads((tmp_path / 'out' / 'results.json').read_text())['results']
  assert [len(result['images']) for result in results] == [2, 2]
  assert not (tmp_path / '~').exists()


def test_an_unknown_field_is_an_error_of_one_line(tmp_path):
  result = _run(ROOT / 'train.py', f'--config={ROOT}/configs/color.py', '--config.stepz=3', succeeds=False)
  assert result[1].startswith('train.py: unknown field ')
  assert 'stepz' in result[1]
  assert '--config.stepz=3; configs/default.py lists all fields' in result[1]
  assert 'Traceback' not in result[1]


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('config.optimizer.lr = 1e-3', 'AttributeError: .*"lr" does not exist'),
    (
      'config.loss = jax.no_such_loss',
      "AttributeError: module 'jax' has no attribute 'no_such_loss'",
    ),
  ],
)
def test_a_mistake_in_a_config_file_is_shown_where_it_is(tmp_path, line, message):
  (tmp_path / 'mine.py').write_text(
    f'import jax\nfrom configs import color\ndef get_config():\n  config = color.get_config("50")\n  {line}\n'
    '  return config\n'
  )
  arguments = ['--config=mine.py', '--config.data.train.clean=images']
  result = _run(ROOT / 'train.py', *arguments, cwd=tmp_path, succeeds=False)
  assert re.search(message, result[1])
  assert 'mine.py", line 5' in result[1]
  assert 'unknown field' not in result[1]


def test_a_missing_data_folder_is_an_error_of_one_line(tmp_path):
  result = _run(
    ROOT / 'train.py',
    f'--config={ROOT}/configs/color.py',
    '--config.data.train.clean=nowhere',
    cwd=tmp_path,
    succeeds=False,
  )
  assert 'train.py: config.data.train.clean: no folder at nowhere; give the path of a folder' in result[1]
  assert 'Traceback' not in result[1]


def test_importing_the_package_imports_neither_tensorflow_nor_torch_nor_orbax():
  code = 'import sys, sadnet_jax; print([m for m in ("tensorflow", "torch", "orbax") if m in sys.modules])'
  assert _run('-c', code)[0].strip() == '[]'


def test_a_training_step_works_without_tensorflow():
  code = '\n'.join(
    [
      'import sys',
      "sys.modules['tensorflow'] = None  # Any import of it now fails.",
      'import jax, numpy as np',
      'from configs import demo',
      'from sadnet_jax.training.state import create_train_state',
      'from sadnet_jax.training.loop import step_from_config',
      'config = demo.get_config()',
      'config.model.width = config.model.offset_width = 8',
      'step = step_from_config(config, jax.local_devices())',
      'batch = dict(clean=np.zeros((8, 16, 16, 3), np.uint8))',
      'state, metrics = step(create_train_state(config), batch)',
      "print(int(state.step), float(metrics['loss']) > 0)",
    ]
  )
  assert _run('-c', code)[0].split() == ['1', 'True']


def test_the_tools_run_from_another_folder_with_the_clone_on_the_path(images, tmp_path):
  """As docs/weights.md says."""
  names = sorted(path.stem for path in (ROOT / 'tools').glob('*.py'))
  elsewhere = {'cwd': tmp_path, 'PYTHONPATH': str(ROOT)}
  found = start('-c', f'from tools import {", ".join(names)}', **elsewhere)
  export = start(
    '-m',
    'tools.export_weights',
    f'--config={ROOT}/configs/blind.py:color',
    '--checkpoint=color',
    '--output=x.safetensors',
    **elsewhere,
  )
  patches = start(
    '-m',
    'tools.show_patches',
    f'--config={ROOT}/configs/color.py:50',
    f'--config.data.train.clean={images}',
    '--config.data.reader=memory',
    '--config.data.patch_px=16',
    '--output=x.png',
    '--steps=1',
    **elsewhere,
  )
  for process in (found, export, patches):
    finish(process)
  assert (tmp_path / 'x.safetensors').stat().st_size > 16e6
  assert (tmp_path / 'x.png').exists()
