"""Which pictures to denoise, and the output file of each, all settled before any work is done."""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import glob
import os
from pathlib import Path

from sadnet_jax.files import local_path, walk
from sadnet_jax.images import INPUT_SUFFIXES, check_format, check_output, has_format, writable_name
from sadnet_jax.images.reading import read_shape
from sadnet_jax.images.reading import shown_path as shown

COMPARISON_SUFFIX = '.compare.png'
# Extensions of picture formats that are not read. An output with one of them is not meant as a folder.
_UNREAD_SUFFIXES = (
  '.apng', '.avif', '.gif', '.hdr', '.jp2', '.jpe', '.mpo', '.pbm', '.pgm', '.pnm', '.ppm', '.psd', '.raw',
  '.tga',
)  # fmt: skip
_OTHER_SUFFIXES = (*_UNREAD_SUFFIXES, '.ico', '.pdf', '.svg')
# Existing outputs that an error names.
_NAMED_OUTPUTS = 3


@dataclasses.dataclass(frozen=True)
class Target:
  """A picture and its output files.

  Attributes:
    source: The file to read.
    output: The file to write.
    comparison: The file to write noisy and denoised side by side, or None.
  """

  source: Path
  output: Path
  comparison: Path | None = None

  @property
  def files(self) -> tuple[Path, ...]:
    """All files to write."""
    return (self.output,) if self.comparison is None else (self.output, self.comparison)


def find_targets(
  inputs: Sequence[str],
  output: str,
  *,
  suffix: str | None = None,
  recursive: bool = False,
  compare: bool = False,
  overwrite: bool = False,
  skip_existing: bool = False,
  notes: list[tuple[Path, str]] | None = None,
) -> list[Target]:
  """Finds the pictures and names their outputs; writes nothing.

  Args:
    inputs: Files, folders, and ``glob`` patterns (with ``**``); an existing name is never a pattern.
      Pictures found by folder or pattern keep their relative path in the output folder. Hidden files and
      comparisons are skipped, and so is the output folder if it is in the folder that is searched.
    output: A file, for one picture; or a folder: an existing one, or a name that ends in a separator or
      has no picture's extension.
    suffix: Extension of the outputs in a folder, such as .jpg; pictures of that format keep theirs, such as
      .jpeg. None for the extension of each picture, or .png or .tif if its format is not written (HEIC,
      camera raw).
    recursive: Also search the subfolders of folders, and the folders that they link to.
    compare: Also name comparisons.
    overwrite: Allow outputs to replace existing files; inputs are never replaced.
    skip_existing: Allow pictures to exist, with or without their comparison; `split_existing` finds them.
    notes: What the user should know about a folder is added to it.

  Raises:
    ValueError: A name is a URL or the ``-`` of standard input and output, the output folder is not writable,
      an input has no pictures, the output is a file of another format than `suffix`, two pictures have the
      same output (also by names that the file system takes for one), an output is an input, or an output
      exists that may neither be replaced nor skipped.
  """
  if not output:
    raise ValueError('--output is empty; name a file or a folder')
  inputs, output = [_local_name(text) for text in inputs], _local_name(output)
  folder = _is_folder(output)
  notes = [] if notes is None else notes
  found = _unique(_find(inputs, recursive, os.path.realpath(output) if folder else None, notes))
  if folder:
    _check_writable(Path(output))
    if suffix is not None:
      check_format(Path(output, f'*{suffix}'))
    targets = [Target(source, Path(output) / writable_name(relative, suffix)) for source, relative in found]
  elif len(found) > 1:
    raise ValueError(
      f'{shown(output)} is one file for {len(found)} pictures; to write into a folder, pass '
      f'{shown(output)}{os.sep}'
    )
  else:
    check_output(Path(output), None)
    if suffix is not None and not has_format(Path(output), suffix):
      form = suffix.removeprefix('.')
      raise ValueError(
        f'{shown(output)} is not the name of a {form} file, but --format is {form}; leave --format out, or '
        f'end the name in {suffix}'
      )
    targets = [Target(found[0][0], Path(output))]
  if skip_existing:
    targets = _without_outputs(targets, notes)
  if compare:
    targets = _with_comparisons(targets)
  _check_clashes(targets)
  _check_inputs_are_kept(targets)
  if not overwrite:
    # A comparison without its picture is of another one.
    wanted = [t for t in targets if not (skip_existing and os.path.lexists(t.output))]
    _check_no_output_exists(wanted, '--overwrite' if skip_existing else '--overwrite or --skip-existing')
  return targets


def split_existing(targets: Sequence[Target]) -> tuple[list[Target], list[Target]]:
  """The targets of which a file does not exist yet, and those whose files all do."""
  missing: list[Target] = []
  existing: list[Target] = []
  for target in targets:
    (existing if all(map(os.path.lexists, target.files)) else missing).append(target)
  return missing, existing


def sizes_by_header(targets: Iterable[Target]) -> dict[Path, tuple[int, int] | None]:
  """Reads the sizes of pictures without decoding them.

  Returns:
    For each source, (height, width) in pixels; None if its header does not say.
  """
  sizes: dict[Path, tuple[int, int] | None] = {}
  for target in targets:
    try:
      sizes[target.source] = read_shape(target.source, decode=False)[:2]
    # Whatever is wrong with the file is reported when it is read.
    except ValueError:
      sizes[target.source] = None
  return sizes


def group_by_size(targets: Iterable[Target], sizes: Mapping[Path, tuple[int, int] | None]) -> list[Target]:
  """Puts pictures of equal size one after another; each size stands where its first picture stood.

  Args:
    targets: The pictures.
    sizes: From `sizes_by_header`.
  """
  groups: dict[tuple[int, int] | None, list[Target]] = {}
  for target in targets:
    groups.setdefault(sizes[target.source], []).append(target)
  return [target for group in groups.values() for target in group]


def _local_name(text):
  """The name as the file system knows it; keeps a final separator."""
  if text == '-':
    raise ValueError(
      "'-' is not read as standard input or output; name a file or a folder, or write ./- for a file of that "
      'name'
    )
  # Only to refuse URLs: `Path` drops a final separator.
  local_path(text)
  return os.path.expanduser(text)


def _is_folder(output):
  if os.path.isdir(output):
    return True
  separators = tuple(filter(None, (os.sep, os.altsep)))
  means_folder = output.endswith(separators) or not _has_picture_suffix(output)
  if means_folder and os.path.lexists(output.rstrip(''.join(separators)) or output):
    raise _file_for_a_folder(output)
  return means_folder


def _check_writable(folder):
  existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
  if not os.path.isdir(existing):
    raise _file_for_a_folder(existing)
  if not os.access(existing, os.W_OK | os.X_OK):
    raise ValueError(f'no permission to write into the folder {shown(existing)}; choose another')


def _file_for_a_folder(path):
  return ValueError(f'{shown(path)} is a file, not a folder; choose an existing folder or a new name')


def _has_picture_suffix(name):
  return Path(name).suffix.lower() in (*INPUT_SUFFIXES, *_OTHER_SUFFIXES)


def _find(
  inputs: Sequence[str], recursive: bool, output: str | None, notes: list[tuple[Path, str]]
) -> Iterator[tuple[Path, Path]]:
  """Pictures and their paths relative to the output folder."""
  for text in inputs:
    if os.path.isdir(text):
      yield from _in_folder(text, recursive, output, notes)
    # A broken link too: reading it fails later, and only for this picture.
    elif os.path.lexists(text):
      yield Path(text), Path(os.path.basename(text))
    elif glob.has_magic(text):
      yield from _by_pattern(text, output)
    else:
      raise ValueError(f'{shown(text)}: no such file or folder')


def _in_folder(folder, recursive, output, notes):
  found, unread, deeper = [], [], False
  output = _inside(folder, output)
  for path, folders, names in walk(folder, onerror=_refuse):
    folders[:] = [name for name in folders if not name.startswith('.') and not _is_below(path / name, output)]
    if path == Path(folder) and not recursive:
      deeper, folders[:] = bool(folders), []
    found += [path / name for name in names if _is_input(name)]
    unread += [suffix for name in names if (suffix := _unread_suffix(name))]
  if not found:
    hint = '; pass --recursive to search its subfolders' if deeper else ''
    raise ValueError(f'the folder {shown(folder)} has no pictures ({", ".join(INPUT_SUFFIXES)}){hint}')
  if unread:
    kinds = ', '.join(sorted(set(unread)))
    count = f'{len(unread)} {"file" if len(unread) == 1 else "files"}'
    notes.append((Path(folder), f'left out {count} of formats that are not read ({kinds})'))
  return [(path, path.relative_to(folder)) for path in found]


def _refuse(error):
  raise ValueError(f'cannot read the folder {shown(error.filename)}: {error.strerror}') from error


def _by_pattern(pattern, output):
  # Folders come first: an existing name is no pattern, whatever its characters.
  fixed, parts = Path(), list(Path(pattern).parts)
  while len(parts) > 1 and (not glob.has_magic(parts[0]) or os.path.lexists(fixed / parts[0])):
    fixed /= parts.pop(0)
  output = _inside(fixed, output)
  # A final ** also means files; pathlib agrees from Python 3.13 on.
  parts += ['*'] if parts[-1] == '**' else []
  try:
    paths = sorted(set(_glob(fixed, parts)))
  except ValueError as error:
    raise ValueError(f'{shown(pattern)} is not a valid pattern: {error}') from error
  found = [
    (path, relative)
    for path, relative in ((path, Path(os.path.relpath(path, fixed))) for path in paths)
    if _is_input(path.name)
    and not any(part.startswith('.') for part in relative.parts)
    and not path.is_dir()
    and not _is_below(path.parent, output)
  ]
  if not found:
    raise ValueError(f'no picture ({", ".join(INPUT_SUFFIXES)}) matches {shown(pattern)}')
  return found


def _glob(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
  """Like `Path.glob`, but ``**`` follows links to folders, unlike `glob.glob` without endless circles."""
  if '**' not in parts:
    yield from folder.glob(os.path.join(*parts))
    return
  at = parts.index('**')
  for start in folder.glob(os.path.join(*parts[:at])) if at else (folder,):
    for path, _, _ in walk(start, onerror=_refuse):
      yield from _glob(path, parts[at + 1 :])


def _is_input(name):
  lower = name.lower()
  skipped = lower.startswith('.') or lower.endswith(COMPARISON_SUFFIX)
  return os.path.splitext(lower)[1] in INPUT_SUFFIXES and not skipped


def _unread_suffix(name):
  suffix = os.path.splitext(name.lower())[1]
  return suffix if suffix in _UNREAD_SUFFIXES and not name.startswith('.') else None


def _inside(folder, output):
  """The output folder if it is in a folder that is searched, else None: then what is in it is wanted."""
  return None if _is_below(folder, output) else output


def _is_below(folder, output):
  """Whether a folder is the output folder or below it."""
  return output is not None and Path(os.path.realpath(folder)).is_relative_to(output)


def _unique(found):
  """Drops repetitions of a picture with the same output."""
  return list(
    {(os.path.abspath(source), relative): (source, relative) for source, relative in found}.values()
  )


def _without_outputs(targets, notes):
  """Drops what an earlier run has written beside its inputs: ``a.tif`` of ``a.cr2``, found with it."""
  outputs = {file_identity(t.output): t for t in targets if not _is_same_file(t.source, t.output)}
  outputs.pop(None, None)
  kept = []
  for target in targets:
    other = outputs.get(file_identity(target.source))
    if other is None:
      kept.append(target)
    else:
      notes.append((target.source, f'left out, as the output of {shown(other.source)}'))
  return kept


def _is_same_file(path, other):
  identity = file_identity(path)
  return identity is not None and identity == file_identity(other)


def _with_comparisons(targets):
  """Names comparisons by the output's stem, or by its full name where two outputs share a stem."""
  stems = [target.output.with_suffix('') for target in targets]
  count = collections.Counter(stems)
  named = []
  for target, stem in zip(targets, stems, strict=True):
    base = target.output if count[stem] > 1 else stem
    named.append(dataclasses.replace(target, comparison=base.with_name(base.name + COMPARISON_SUFFIX)))
  return named


def _check_clashes(targets):
  first: dict[str | tuple[int, int], Target] = {}
  for target in targets:
    for file in target.files:
      # On some file systems, names that differ only by case are one file, which shows once it exists.
      other = first.setdefault(file_identity(file) or os.path.abspath(file), target)
      if other is not target:
        beside = os.path.abspath(other.source.parent) == os.path.abspath(target.source.parent)
        hint = 'rename one' if beside else 'pass the folder above them with --recursive'
        raise ValueError(
          f'{shown(other.source)} and {shown(target.source)} have the same output, {shown(file)}; denoise '
          f'them in separate runs to separate folders, or {hint}'
        )


def _check_inputs_are_kept(targets):
  sources = {file_identity(target.source): target.source for target in targets}
  sources.pop(None, None)
  for file in _files(targets):
    identity = file_identity(file)
    if identity in sources:
      raise ValueError(
        f'the output {shown(file)} is the input {shown(sources[identity])}; choose another name or folder'
      )


def file_identity(path: Path) -> tuple[int, int] | None:
  """Device and inode, the same for all names of a file and links to it; None if it does not exist."""
  try:
    status = os.stat(path)
  except (OSError, ValueError):
    return None
  return status.st_dev, status.st_ino


def _check_no_output_exists(targets, options):
  existing = [file for file in _files(targets) if os.path.lexists(file)]
  if existing:
    names = ', '.join(map(shown, existing[:_NAMED_OUTPUTS]))
    more = len(existing) - _NAMED_OUTPUTS
    names += f' and {more} more' if more > 0 else ''
    exist = 'exist' if len(existing) > 1 else 'exists'
    raise ValueError(f'{names} already {exist}; choose another output, or pass {options}')


def _files(targets: Iterable[Target]) -> Iterator[Path]:
  return (file for target in targets for file in target.files)
