"""Which pictures to denoise, and which file each goes into: settled before any work."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import glob
import os
from pathlib import Path

from sadnet_jax.images import PHOTOGRAPH_SUFFIXES, check_output
from sadnet_jax.images.reading import shown_path as shown

COMPARISON_SUFFIX = '.compare.png'
# What pictures are called whose formats are not written: as an output none of them is meant as a folder.
_OTHER_SUFFIXES = (
  '.apng', '.avif', '.cr2', '.cr3', '.dng', '.exr', '.gif', '.hdr', '.heic', '.heif', '.ico', '.jp2', '.jpe',
  '.jxl', '.mpo', '.nef', '.pbm', '.pdf', '.pgm', '.pnm', '.ppm', '.psd', '.raw', '.svg', '.tga',
)  # fmt: skip
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Target:
  """A picture and where it goes.

  Attributes:
    source: The file to read.
    output: The file to write.
    comparison: The file for noisy and denoised beside each other, or None.
  """

  source: Path
  output: Path
  comparison: Path | None = None

  @property
  def files(self) -> tuple[Path, ...]:
    """What is written."""
    return (self.output,) if self.comparison is None else (self.output, self.comparison)


def find_targets(
  inputs: Sequence[str],
  output: str,
  *,
  recursive: bool = False,
  compare: bool = False,
  overwrite: bool = False,
) -> list[Target]:
  """Finds the pictures and names their outputs; writes nothing.

  Args:
    inputs: Files, folders, and patterns of ``glob`` (with ``**``); a name that exists is no pattern.
      Below folders and patterns, pictures keep their place; hidden files, comparisons and what is below
      the output folder do not count.
    output: A file for one picture, or a folder: one that exists, or a name that ends in a separator or
      not like a picture.
    recursive: Take what is in subfolders of folders, too; links to folders are not followed.
    compare: Name comparisons, too.
    overwrite: Let outputs replace files, which inputs never are.

  Raises:
    ValueError: An output folder that cannot be written to, no picture at an input, two outputs of one
      name, an output that is an input, or one that is there and not to be overwritten.
  """
  if not output:
    raise ValueError('--output: got an empty name, want a file or a folder')
  folder = _is_folder(output)
  found = _unique(_find(inputs, recursive, os.path.realpath(output) if folder else None))
  if folder:
    _check_can_be_written_to(Path(output))
    targets = [Target(source, Path(output) / place) for source, place in found]
  elif len(found) > 1:
    raise ValueError(
      f'{shown(output)}: got one file for {len(found)} pictures, want a folder: {shown(output)}{os.sep}'
    )
  else:
    check_output(Path(output), None)
    targets = [Target(found[0][0], Path(output))]
  if compare:
    targets = _with_comparisons(targets)
  _check_clashes(targets)
  _check_inputs_are_kept(targets)
  if not overwrite:
    _check_nothing_is_there(targets)
  return targets


def _is_folder(output):
  if os.path.isdir(output):
    return True
  separators = tuple(filter(None, (os.sep, os.altsep)))
  named_so = output.endswith(separators)
  if os.path.lexists(output.rstrip(''.join(separators)) or output):
    if named_so or not _ends_like_a_picture(output):
      raise ValueError(f'{shown(output)}: got a file for a folder, want a new name or a folder that is there')
    return False
  return named_so or not _ends_like_a_picture(output)


def _check_can_be_written_to(folder):
  there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
  if not os.path.isdir(there):
    raise ValueError(f'{shown(there)}: got a file for a folder, want a new name or a folder that is there')
  if not os.access(there, os.W_OK | os.X_OK):
    raise ValueError(f'{shown(there)}: got a folder without permission to write, want another')


def _ends_like_a_picture(name):
  return Path(name).suffix.lower() in (*PHOTOGRAPH_SUFFIXES, *_OTHER_SUFFIXES)


def _find(inputs: Sequence[str], recursive: bool, output: str | None) -> Iterator[tuple[Path, Path]]:
  """Pictures and their places in the output folder."""
  for text in inputs:
    if os.path.isdir(text):
      yield from _in_folder(text, recursive, output)
    # As well a link that leads nowhere: when it is read, it fails alone.
    elif os.path.lexists(text):
      yield Path(text), Path(os.path.basename(text))
    elif glob.has_magic(text):
      yield from _by_pattern(text, output)
    else:
      raise ValueError(f'{shown(text)}: got no such file or folder, want pictures')


def _in_folder(folder, recursive, output):
  found, deeper = [], False
  for path, folders, names in os.walk(folder, onerror=_refuse):
    folders[:] = sorted(
      name
      for name in folders
      if not name.startswith('.') and os.path.realpath(os.path.join(path, name)) != output
    )
    if path == folder and not recursive:
      deeper, folders[:] = bool(folders), []
    found += [Path(path, name) for name in sorted(names) if _counts(name)]
  if not found:
    hint = ', or --recursive for its subfolders' if deeper else ''
    raise ValueError(f'{shown(folder)}: got no picture in it, want {", ".join(PHOTOGRAPH_SUFFIXES)}{hint}')
  return [(path, path.relative_to(folder)) for path in found]


def _refuse(error):
  raise ValueError(f'{shown(error.filename)}: got a folder that cannot be read ({error.strerror})') from error


def _by_pattern(pattern, output):
  fixed = pattern
  while glob.has_magic(fixed):
    fixed = os.path.dirname(fixed)
  rest = os.path.relpath(pattern, fixed or os.curdir)
  # What ends in ** means files as well, which Python says differently by its version.
  rest = os.path.join(rest, '*') if rest.endswith('**') else rest
  try:
    # Not `glob.glob`, which goes round in circles of links.
    paths = sorted(Path(fixed).glob(rest))
  except ValueError as error:
    raise ValueError(f'{shown(pattern)}: got a pattern that is none ({error})') from error
  found = [
    (path, place)
    for path, place in ((path, Path(os.path.relpath(path, fixed or os.curdir))) for path in paths)
    if _counts(path.name)
    and not any(part.startswith('.') for part in place.parts)
    and not path.is_dir()
    and not _is_below(path, output)
  ]
  if not found:
    raise ValueError(f'{shown(pattern)}: got a pattern of no picture, want {", ".join(PHOTOGRAPH_SUFFIXES)}')
  return found


def _counts(name):
  lower = name.lower()
  hidden_or_ours = lower.startswith('.') or lower.endswith(COMPARISON_SUFFIX)
  return os.path.splitext(lower)[1] in PHOTOGRAPH_SUFFIXES and not hidden_or_ours


def _is_below(path, folder):
  return folder is not None and Path(os.path.realpath(os.path.dirname(path))).is_relative_to(folder)


def _unique(found):
  """Without pictures that were named twice and go to one place."""
  return list({(os.path.abspath(source), place): (source, place) for source, place in found}.values())


def _with_comparisons(targets):
  """A comparison is called after the picture, with its ending where another's would be called the same."""
  stems = [target.output.with_suffix('') for target in targets]
  named = []
  for target, stem in zip(targets, stems, strict=True):
    base = target.output if stems.count(stem) > 1 else stem
    named.append(dataclasses.replace(target, comparison=base.with_name(base.name + COMPARISON_SUFFIX)))
  return named


def _check_clashes(targets):
  first: dict[str, Target] = {}
  for target in targets:
    for file in target.files:
      other = first.setdefault(os.path.abspath(file), target)
      if other is not target:
        raise ValueError(
          f'{shown(file)}: got {shown(other.source)} and {shown(target.source)} for one output, want a name '
          'for each: give them in separate runs, or the folder above them with --recursive'
        )


def _check_inputs_are_kept(targets):
  sources = {_identity(target.source): target.source for target in targets}
  sources.pop(None, None)
  for file in _files(targets):
    identity = _identity(file)
    if identity in sources:
      raise ValueError(
        f'{shown(file)}: got the input {shown(sources[identity])} as an output, want another name or folder'
      )


def _identity(path):
  """What a file is, by whatever name; None where there is none."""
  try:
    status = os.stat(path)
  except (OSError, ValueError):
    return None
  return status.st_dev, status.st_ino


def _check_nothing_is_there(targets):
  there = [file for file in _files(targets) if os.path.lexists(file)]
  if there:
    names = ', '.join(map(shown, there[:_SHOWN]))
    more = f' and {len(there) - _SHOWN} more' if len(there) > _SHOWN else ''
    raise ValueError(
      f'{names}{more}: got outputs that are there, want another name or folder, or --overwrite'
    )


def _files(targets: Iterable[Target]) -> Iterator[Path]:
  return (file for target in targets for file in target.files)
