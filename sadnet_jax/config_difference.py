"""Where the config of a checkpoint and that of a command differ."""

from collections.abc import Mapping, Set
import json
from typing import Any


def check_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], ignored: Set[str]) -> None:
  """Raises ValueError naming every field in which two configs differ."""
  saved, wanted = _flatten(saved), _flatten(wanted)
  differing = [
    f'{name}: checkpoint {saved.get(name)}, config {wanted.get(name)}'
    for name in sorted({*saved, *wanted})
    if saved.get(name) != wanted.get(name) and not _is_below(name, ignored)
  ]
  if differing:
    raise ValueError(f'the checkpoint is of a run with another config: {"; ".join(differing)}')


def _is_below(name, ignored):
  """Whether a field, or a group of fields it is in, is in a set."""
  parts = name.split('.')
  return any('.'.join(parts[:n]) in ignored for n in range(1, len(parts) + 1))


def _flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
  """{'a': {'b': 1}} -> {'a.b': '1'}, values as JSON, where tuples are lists."""
  flat: dict[str, str] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f'{prefix}{name}.')
    else:
      # Runs that began when noise.clip was a switch have a bool, equal to a probability of 0 or 1.
      flat[prefix + name] = json.dumps(float(value) if prefix + name == 'noise.clip' else value)
  return flat
