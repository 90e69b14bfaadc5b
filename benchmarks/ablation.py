"""What each part of the network gives, at a small scale: the rows of configs/ablation.py, all trained alike.

  python benchmarks/ablation.py --seeds 0 1 2 --json /tmp/ablation_cpu.json

The recipe of configs/color_fast.py at sigma 50, on one device. Rows of one seed have the same data order,
crops and noise; all rows of the first seed come first. After an interruption, run the same command again:
each run keeps its checkpoints and its result in a folder below --workdir and continues from its last
checkpoint. The results file is rewritten after each run; benchmarks/report.py writes docs/ablation.md from
it.
"""

import argparse
from collections.abc import Sequence
import json
import os
from pathlib import Path
import sys

# Read by TensorFlow when it is imported.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import jax
import ml_collections

# The configs are not installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import common, tables
from configs import ablation, color_fast
from sadnet_jax.data.folders import find_data_dir
from sadnet_jax.evaluation import image_sets, scoring
from sadnet_jax.evaluation.methods import SADNetMethod
from sadnet_jax.evaluation.protocols import UNCLIPPED
from sadnet_jax.evaluation.results import write_json
from sadnet_jax.machine import is_committed
from sadnet_jax.nn.sadnet import param_shapes
from sadnet_jax.training import loop
from sadnet_jax.training.state import model_from_config
from sadnet_jax.weights import checkpoints
from sadnet_jax.weights.checkpoints import check_same
from sadnet_jax.weights.paths import CHECKPOINTS, has_checkpoint

SIGMA_255 = 50.0
# At most this many steps are repeated after the process was killed.
CHECKPOINT_EVERY = 100
# Beside a run's checkpoints: its result, and the commits that it was started at.
RESULT_FILE, STARTS_FILE = 'result.json', 'starts.json'


def run_config(row: str, seed: int, arguments: argparse.Namespace) -> ml_collections.ConfigDict:
  """The config of one run. The configs of one seed differ only in the parts of the row."""
  config = common.short_run_config(f'{SIGMA_255:g}', arguments.images, arguments.steps)
  ablation.set_row(config, row)
  config.seed = seed
  config.model.width, config.model.offset_width = arguments.width, arguments.offset_width
  config.data.patch_px, config.batch_size = arguments.patch_px, arguments.batch_size
  config.validation.every = 0
  config.checkpoint_every = CHECKPOINT_EVERY
  return config


def open_test(name: str) -> image_sets.ImageSet:
  """Opens the test images.

  Raises:
    ValueError: They are missing, or are not clean colour images.
  """
  image_set = image_sets.open_set(name, None)
  if image_set.real or image_set.channels != 3:
    kind = 'pairs' if image_set.real else 'grey images'
    raise ValueError(f'--test: {name!r} has {kind}; give a set of clean colour images')
  scoring.refuse_problems(image_set)
  return image_set


def evaluate(folder: Path, image_set: image_sets.ImageSet) -> dict[str, object]:
  """PSNR in dB of a run's newest checkpoint: the mean and each image."""
  model, params, _, _ = checkpoints.load_run(folder)
  method = SADNetMethod(model, params, {}, devices=jax.local_devices()[:1])
  result = scoring.evaluate_set(
    method, image_set, channels=3, sigma_255=SIGMA_255, protocol=UNCLIPPED, keep_going=False
  )
  return {'psnr': result.mean()['psnr'], 'images': {image.name: image.psnr for image in result.images}}


def train_and_evaluate(
  config: ml_collections.ConfigDict, folder: Path, image_set: image_sets.ImageSet, about: dict
) -> dict:
  """Finishes one run, or returns its result if it is already complete.

  Args:
    config: Config of the run.
    folder: Folder of the run.
    image_set: Test images.
    about: Contains the current commit, as from `common.describe`.

  Returns:
    The result of `evaluate`, and ``starts``: the commits that the run was trained at.

  Raises:
    ValueError: The folder holds a run with another config, or the run diverged.
    SystemExit: A signal interrupted the training; its progress is saved.
  """
  test = f'{image_set.title}, {image_set.version}'
  if (folder / RESULT_FILE).exists():
    saved = json.loads((folder / RESULT_FILE).read_text())
    try:
      check_same(saved['config'], config.to_dict(), set())
    except ValueError as error:
      raise ValueError(f'{folder}: {error}; choose another --workdir to start again') from error
    if saved['test'] == test:
      return saved['result']
  starts = _note_start(folder, about, config.steps)
  state = loop.train(config, folder, jax.local_devices()[:1])
  if int(state.step) < config.steps:
    sys.exit(f'{folder}: stopped at step {int(state.step)}; run the same command again to continue')
  result = evaluate(folder, image_set) | {'starts': starts}
  write_json(folder / RESULT_FILE, {'config': config.to_dict(), 'test': test, 'result': result})
  # The next row compiles other programs.
  jax.clear_caches()
  return result


def _note_start(folder, about, steps):
  """Adds the current commit to those that an unfinished run was trained at, and returns all of them."""
  path = folder / STARTS_FILE
  # A start that left no checkpoint does not count.
  kept = path.exists() and has_checkpoint(folder)
  starts = json.loads(path.read_text()) if kept else []
  now = {name: about[name] for name in ('commit', 'uncommitted_changes')}
  if now not in starts and not (folder / CHECKPOINTS / str(steps)).exists():
    starts.append(now)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, starts)
  return starts


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.make_training_parser(__doc__, steps=1000)
  recipe = color_fast.get_config()
  parser.add_argument('--width', type=int, default=16, help='width of the network (default: %(default)s)')
  parser.add_argument(
    '--offset_width', type=int, default=16, help='offset width of the network (default: %(default)s)'
  )
  parser.add_argument('--batch_size', type=int, default=recipe.batch_size, help='default: %(default)s')
  parser.add_argument('--patch_px', type=int, default=recipe.data.patch_px, help='default: %(default)s')
  parser.add_argument(
    '--test', default='kodak24', help='test set of evaluate.py, or a folder (default: %(default)s)'
  )
  parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='default: 0')
  parser.add_argument(
    '--workdir',
    type=common.folder,
    default=Path('runs', 'ablation'),
    help='folder of all runs (default: %(default)s)',
  )
  arguments = parser.parse_args(argv)
  arguments.seeds = list(dict.fromkeys(arguments.seeds))
  return arguments


def describe(arguments: argparse.Namespace, image_set: image_sets.ImageSet) -> dict:
  """The results file before any run: what all runs have in common, and rows without results."""
  config = run_config('full', arguments.seeds[0], arguments).to_dict()
  networks = {row: model_from_config(run_config(row, 0, arguments).model) for row in ablation.ROWS}
  return {
    **common.describe('ablation.py', common.options_of(arguments, ['workdir'])),
    'config': config,
    'test': f'{image_set.title}, {image_set.version}',
    'protocol': UNCLIPPED.name,
    'sigma_255': SIGMA_255,
    'rows': {
      row: {'parameters': sum(leaf.size for leaf in jax.tree.leaves(param_shapes(network))), 'seeds': {}}
      for row, network in networks.items()
    },
  }


def main(argv: Sequence[str] | None = None) -> None:
  arguments = parse_arguments(argv)
  find_data_dir(arguments.images, '--images')
  image_set = open_test(arguments.test)
  results = describe(arguments, image_set)
  if not is_committed(results):
    print('The code has uncommitted changes: report.py will refuse the results. Start from a clean clone.')
  for seed in arguments.seeds:
    for row in ablation.ROWS:
      folder = arguments.workdir / f'{row}-seed{seed}'
      result = train_and_evaluate(run_config(row, seed, arguments), folder, image_set, results)
      results['rows'][row]['seeds'][str(seed)] = result
      print(f'{row}, seed {seed}: {result["psnr"]:.3f} dB', flush=True)
      if arguments.json:
        write_json(arguments.json, results)
    print('\n'.join(tables.ablation_tables(results)), flush=True)


if __name__ == '__main__':
  main()
