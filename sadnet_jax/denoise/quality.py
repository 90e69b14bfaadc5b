"""The choices of --quality: published weights by kind of picture, and whether flips are averaged."""

from collections.abc import Mapping
import dataclasses

from sadnet_jax.weights import index


@dataclasses.dataclass(frozen=True)
class Quality:
  """A choice between time and quality.

  Attributes:
    tasks: By a picture's number of channels, the tasks (see `index.Entry.default_for`) whose default weights
      it gets, best first.
    ensemble: Whether to average over the eight flips and rotations.
  """

  tasks: Mapping[int, tuple[str, ...]]
  ensemble: bool = False


# Without --quality.
BALANCED = 'balanced'
_DEFAULTS = {3: ('color',), 1: ('gray', 'color')}
QUALITIES = {
  # There are no small weights for grey pictures, and those for colour pictures are worse on them.
  'fast': Quality({3: ('fast',), 1: _DEFAULTS[1]}),
  BALANCED: Quality(_DEFAULTS),
  'best': Quality(_DEFAULTS, ensemble=True),
}


def default_weights(channels: int, quality: str) -> str:
  """The name of the published weights for a picture.

  Args:
    channels: Channels of the picture: 3, or 1 if it is grey.
    quality: A name of `QUALITIES`.

  Raises:
    ValueError: No weights are published for such pictures, or the quality is none.
  """
  if quality not in QUALITIES:
    raise ValueError(f'quality must be one of {", ".join(QUALITIES)}, not {quality!r}')
  entries = index.available()
  for task in QUALITIES[quality].tasks[channels]:
    for name, entry in entries.items():
      if task in entry.default_for:
        return name
  kind = 'grey' if channels == 1 else 'colour'
  raise ValueError(
    f'no weights are published for {kind} pictures at the quality {quality!r}; choose another, or a model'
  )
