"""Cuts a training set into tiles.

  python -m sadnet_jax.data sidd --folder=/downloads/SIDD_Medium_Srgb

Prints what was found and written. Training cuts missing tiles itself; this command does it beforehand.
"""

import argparse
import collections
import os
import time

from sadnet_jax.data.folders import find_data_dir, new_data_dir
from sadnet_jax.files import one_line, print_any_name


def main() -> None:
  """Cuts the tiles of the data set given on the command line."""
  print_any_name()
  # Read by TensorFlow when `tiles` imports it.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  try:
    from sadnet_jax.data import tiles
  except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing; from the clone: pip install '.[train]'") from error

  parser = argparse.ArgumentParser(
    prog='python -m sadnet_jax.data', description='Cuts a training set into tiles.'
  )
  parser.add_argument('name', choices=tiles.NAMES, help="the data set; 'clean' and 'pairs' are any folder")
  parser.add_argument(
    '--folder',
    required=True,
    help='the unpacked data set, may be relative to SADNET_DATA; div2k is downloaded to it',
  )
  parser.add_argument(
    '--tiles_dir', default='tiles', help='where to store the tiles; relative to SADNET_DATA if that is set'
  )
  parser.add_argument('--tile_px', type=int, default=300, help='height and width of a tile (default: 300)')
  parser.add_argument('--stride_px', type=int, default=150, help='step from tile to tile (default: 150)')
  parser.add_argument('--skip_bad', action='store_true', help='skip damaged and unpaired files')
  arguments = parser.parse_args()
  try:
    _prepare(tiles, arguments)
  except ValueError as error:
    raise SystemExit(f'{parser.prog}: {one_line(error)}') from error


def _prepare(tiles, arguments):
  name = arguments.name
  # The folder to download DIV2K to need not exist yet.
  folder = new_data_dir(arguments.folder) if name == 'div2k' else find_data_dir(arguments.folder, '--folder')
  size = {'tile_px': arguments.tile_px, 'stride_px': arguments.stride_px}
  location = (name, folder, new_data_dir(arguments.tiles_dir))
  try:
    tiles.load(*location, **size)
    done = 'exist already'
  except ValueError:
    done = 'cut'
  start = time.monotonic()
  prepared = tiles.prepare(*location, **size, skip_bad=arguments.skip_bad)
  kind = 'pairs' if prepared.has_noisy else 'clean images'
  print(f'{name}: {len(prepared.images)} {kind} of {len(set(prepared.scenes))} scenes in {folder}')
  sizes = collections.Counter((image['width'], image['height']) for image in prepared.images)
  shown = [f'{n} of {width}x{height}' for (width, height), n in sizes.most_common(8)]
  more = f', {len(sizes) - 8} more sizes' if len(sizes) > 8 else ''
  print(f'sizes: {", ".join(shown)}{more}; {prepared.channels} channels')
  for problem in prepared.problems:
    print(f'skipped: {problem}')
  print(
    f'{len(prepared)} tiles {done}, {arguments.tile_px} pixels every {arguments.stride_px}, '
    f'{time.monotonic() - start:.1f} seconds: {prepared.path}'
  )


if __name__ == '__main__':
  main()
