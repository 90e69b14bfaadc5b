"""The training curves of published weights: numbers and a picture of each, which the cards show."""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path

from sadnet_jax import weights
from sadnet_jax.curve_numbers import curve_of_runs, read_curve
from sadnet_jax.evaluation.results import params_hash
from sadnet_jax.files import replacing
from sadnet_jax.pretrained.index import FOLDER
from sadnet_jax.training_curve import draw, png

_SHA256 = 'params_sha256'


def paths(folder: str | Path, name: str) -> tuple[Path, Path]:
  """Where the numbers and the picture are, of weights in a folder with an index.

  Of the package's own, that is outside of it: who denoises does not need them.
  """
  folder = Path(folder).resolve()
  curves = folder.parents[1] / 'docs' / 'curves' if folder == FOLDER.resolve() else folder / 'curves'
  return curves / f'{name}.json', curves / f'{name}.png'


def link(folder: str | Path, name: str) -> str | None:
  """The path of the picture from the card's folder, for the card; None where there is none."""
  _, picture = paths(folder, name)
  return Path(os.path.relpath(picture, Path(folder).resolve())).as_posix() if picture.exists() else None


def check_kept(folder: str | Path, name: str, params_sha256: str) -> None:
  """Checks the curve that is there, if there is one.

  Raises:
    ValueError: It is of other weights than those of that `params_hash`, or not whole.
  """
  there = [path for path in paths(folder, name) if path.exists()]
  if len(there) == 1:
    raise ValueError(f'{there[0]}: got a curve without its picture or its numbers, want both, or --curve=RUN')
  if there and (got := read_curve(there[0]).about.get(_SHA256)) != params_sha256:
    raise ValueError(
      f'{there[0]}: got the training curve of other weights ({got}), want that of {params_sha256}: pass '
      f'--curve=RUN, or remove it and {there[1].name}'
    )


def make(
  runs: Sequence[str],
  name: str,
  *,
  dtype: str,
  step: int,
  params_sha256: str,
  average_of: str = '',
  about: Mapping[str, str],
) -> tuple[bytes, bytes]:
  """The contents of both files.

  Args:
    runs: As of `curve_of_runs`.
    name: Of the weights.
    dtype: Of the published file.
    step: Of the weights.
    params_sha256: `params_hash` of the weights as they are published.
    average_of: What their file tells by `weights.AVERAGE_OF`, if they are an average: the last run is then
      the last of those.
    about: What else to tell of them.

  Raises:
    ValueError: As `curve_of_runs`; the weights are not those of the last run; or Matplotlib is missing.
  """
  told = {weights.AVERAGE_OF: average_of} if average_of else {}
  curve, params = curve_of_runs(runs, name, {**about, **told, _SHA256: params_sha256})
  if average_of and params is not None and not average_of.endswith(got := params_hash(params)):
    raise ValueError(
      f'--curve: got {runs[-1]} with the weights {got}, want the run, or its checkpoint, that is the last of '
      f'the average {average_of}'
    )
  if (reached := curve.stages[-1].steps) != step:
    raise ValueError(
      f'--curve: got {runs[-1]} until step {reached}, want until {step}, that of the weights: the run that '
      f'they are of, or its checkpoint (RUN/checkpoints/{step})'
    )
  if not average_of and params is not None and params_hash(weights.rounded(params, dtype)) != params_sha256:
    raise ValueError(
      f'--curve: got {runs[-1]}, which has other weights at step {step}, want the run of these'
    )
  return curve.to_json().encode(), png(draw(curve))


def write(folder: str | Path, name: str, contents: tuple[bytes, bytes]) -> None:
  """Writes both files, each whole or not at all."""
  for path, content in zip(paths(folder, name), contents, strict=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
      temporary.write_bytes(content)
