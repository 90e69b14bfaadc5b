"""One start, for start_up.py: prints its parts in seconds, as JSON.

  python benchmarks/start_up_once.py first_image [FOLDER]

With a folder, programs are kept there and taken from there, as by the command `sadnet-denoise`.
Nothing is imported here before the clock runs.
"""

import json
from pathlib import Path
import sys
import time


class Clock:
  """Names the time since the last name."""

  def __init__(self):
    """Starts."""
    self.parts = {}
    self._last = time.perf_counter()

  def note(self, name: str) -> None:
    """What was done since the last note."""
    now = time.perf_counter()
    self.parts[name] = now - self._last
    self._last = now

  def skip(self) -> None:
    """What was done since the last note does not count."""
    self._last = time.perf_counter()


def import_packages(clock: Clock) -> None:
  """The packages, up to the devices being there."""
  import jax

  clock.note('import_jax')
  import flax.linen  # noqa: F401

  clock.note('import_flax')
  # By name: the package imports them when they are asked for.
  from sadnet_jax import Denoiser, SADNet  # noqa: F401

  clock.note('import_sadnet_jax')
  jax.local_devices()
  clock.note('find_devices')


def keep_programs(folder: str) -> None:
  from sadnet_jax.denoise import compilation_cache

  if compilation_cache.enable(folder) is None:
    raise SystemExit(f'{folder}: got no compilation cache, want a folder to write to')


def compile_program(clock: Clock, name: str) -> None:
  """Lowers and compiles one of `programs.PROGRAMS`."""
  sys.path.append(str(Path(__file__).resolve().parent.parent))
  from benchmarks.programs import PROGRAMS

  program = PROGRAMS[name][1]()
  clock.skip()
  lowered = program.function.lower(*program.arguments)
  clock.note('lower')
  lowered.compile()
  clock.note('compile')


def denoise_first_image(clock: Clock) -> None:
  """A 480x320 image through the denoiser, with weights that ship with the package, twice."""
  import numpy as np

  from sadnet_jax import Denoiser

  noisy = np.random.default_rng(0).integers(0, 256, (320, 480, 3), np.uint8)
  clock.skip()
  denoiser = Denoiser.from_pretrained('color_blind')
  clock.note('load_weights')
  denoiser(noisy)
  clock.note('first_call')
  denoiser(noisy)
  clock.note('second_call')


def main(stage: str, folder: str | None = None) -> None:
  clock = Clock()
  import_packages(clock)
  if folder:
    keep_programs(folder)
  clock.skip()
  if stage == 'first_image':
    denoise_first_image(clock)
    first = [seconds for part, seconds in clock.parts.items() if part != 'second_call']
    clock.parts['until_first_image'] = sum(first)
  elif stage != 'import':
    compile_program(clock, stage)
  print(json.dumps(clock.parts))


if __name__ == '__main__':
  main(*sys.argv[1:])
