"""Data sets as downloaded: which files belong together, and in which scenes.

======  =====================================================================
clean   Any folder of clean images, with its subfolders; each image is a scene. Of a copy of
        CBSD68 with ``noisy15``, ``noisy25`` ... beside ``original_png`` or ``original``, the
        first of these two alone.
pairs   Any folder of noisy and clean images, paired by the rules of `pairs`;
        each pair is a scene, unless several noisy images share their truth.
sidd    SIDD Medium or Small sRGB: ``Data/<scene>/[NNNN_]{NOISY,GT}_SRGB_NNN.PNG``
        with ``Data`` at any depth. The scene is the 3-digit scene number of
        the folder's name: '001' in ``0001_001_S6_00100_00060_3200_L``.
renoir  RENOIR: ``{Mi3,T3i,S90}_Aligned/Batch_NNN/*{Reference,full,Noisy}.bmp`` at any
        depth. Each Noisy is paired with the mean of Reference and full. The scene is
        'Mi3/Batch_001'.
polyu   PolyU: ``CroppedImages`` at any depth, ``*_{real,mean}.JPG``. The scene is camera
        and scene in the name: 'NikonD800_plant'. The folder ``OriginalImages`` is only read
        if it is given itself. The crops are cut from it, so never train on one and
        evaluate on the other. Its scenes have other names ('Nikon800_flowe').
======  =====================================================================

Case is ignored. Files that do not belong to an image of the set (notes, masks, plots) are ignored too,
except with 'pairs', where every image file must belong to a pair.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
import dataclasses
from pathlib import Path
import re

from sadnet_jax.data.examples import Example
from sadnet_jax.data.pairs import find_pairs
from sadnet_jax.files import walk
from sadnet_jax.images import arrays

# In copies of CBSD68 that hold noisy images too: those, and the clean images, as PNG or JPEG.
_NOISY_FOLDER = re.compile(r'nois[ey]_?\d+', re.IGNORECASE)
_ORIGINALS = ('original_png', 'original')
_SIDD_FILE = re.compile(
  r'(?P<before>(?:\d{4}_)?)(?P<role>GT|NOISY)(?P<after>_SRGB_\d{3}\.PNG)', re.IGNORECASE
)
_SIDD_FOLDER = re.compile(r'\d{4}_(?P<scene>\d{3})_(GP|IP|S6|N6|G4)_\d{5}_\d{5}_\d{4}_[LNH]', re.IGNORECASE)
_RENOIR_CAMERAS = {f'{camera}_Aligned'.lower(): camera for camera in ('Mi3', 'T3i', 'S90')}
_RENOIR_FOLDER = re.compile(r'Batch_\d+', re.IGNORECASE)
_RENOIR_FILE = re.compile(r'(?P<before>.*)(?P<role>Reference|full|Noisy)(?P<after>\.bmp)', re.IGNORECASE)
_POLYU_FILE = re.compile(r'(?P<before>.+_)(?P<role>real|mean)(?P<after>\.jpe?g)', re.IGNORECASE)
# Camera, aperture, shutter, ISO, scene, index. One name has two underscores before its index.
_POLYU_CROP = re.compile(r'([^_]+)_+[^_]+_+[^_]+_+[^_]+_+([^_]+)_+\d+_+real', re.IGNORECASE)
# Camera, which may have an underscore, and scene.
_POLYU_ORIGINAL = re.compile(r'(.+)_([a-z][^_]*)_real', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Found:
  """The content of a folder.

  Attributes:
    examples: Sorted by path.
    problems: One sentence per skipped file; empty unless ``skip_bad`` was set.
  """

  examples: list[Example]
  problems: list[str]


def find_examples(name: str, folder: str | Path, *, skip_bad: bool = False) -> Found:
  """Lists and pairs the files of a data set without opening them.

  Args:
    name: One of LAYOUTS.
    folder: The folder it was unpacked to.
    skip_bad: Skip and list files that lack their partner, instead of raising an exception.

  Returns:
    At least one example.

  Raises:
    ValueError: Unknown layout, missing folder, no files of the layout in it, or a file without its partner.
  """
  if name not in LAYOUTS:
    raise ValueError(f'unknown data set {name!r}; choose one of {", ".join(LAYOUTS)}')
  folder, layout = Path(folder), LAYOUTS[name]
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder; give {layout.wanted}')
  found, problems = layout.find(folder)
  if problems and not skip_bad:
    more = f'; {len(problems) - 1} more problems' if len(problems) > 1 else ''
    raise ValueError(f'{problems[0]} (add the missing partner, or skip such files with skip_bad{more})')
  if not found:
    bad = f', and {len(problems)} files that cannot be used, the first: {problems[0]}' if problems else ''
    raise ValueError(f'{folder}: {layout.lacking} in this folder{bad}; give {layout.wanted}')
  return Found(_named(found, folder), problems)


@dataclasses.dataclass(frozen=True)
class _Files:
  """The files of an image before it is named; without a scene, its name becomes the scene."""

  clean: tuple[Path, ...]
  noisy: Path | None
  scene: str | None


def _named(found: Iterable[_Files], folder: Path) -> list[Example]:
  paths = [files.noisy or files.clean[0] for files in found]
  whole = [path.relative_to(folder).as_posix() for path in paths]
  names = [path.relative_to(folder).with_suffix('').as_posix() for path in paths]
  # Even a name with its extension may be another's without: c.png and c.bmp beside c.png.jpg.
  while len(set(names)) < len(names):
    count = collections.Counter(names)
    names = [name if count[name] == 1 else full for name, full in zip(names, whole, strict=True)]
  return [
    Example(name, files.scene or name, files.clean, files.noisy)
    for files, name in zip(found, names, strict=True)
  ]


def noisy_folders(folder: Path) -> list[Path]:
  """Returns the folders in a folder that are named for images with added noise, such as ``noisy25``."""
  return sorted(path for path in folder.iterdir() if _NOISY_FOLDER.fullmatch(path.name) and path.is_dir())


def find_training_examples(name: str, folder: str | Path, *, skip_bad: bool = False) -> Found:
  """`find_examples` for training, which must not lose images unnoticed.

  Args:
    name: As in `find_examples`.
    folder: Likewise.
    skip_bad: Likewise; links that lead to no file are skipped and listed too.

  Raises:
    ValueError: As `find_examples`; clean images are pairs (`refuse_pairs`); or a link leads to no file.
  """
  folder = Path(folder)
  if name == 'clean' and folder.is_dir():
    refuse_pairs(folder)
  found = find_examples(name, folder, skip_bad=skip_bad)
  unused = noisy_folders(folder) if name == 'clean' else []
  missing = [
    path
    for path in arrays.missing_files(arrays.visible_files(folder))
    if not any(path.is_relative_to(other) for other in unused)
  ]
  if missing and not skip_bad:
    more = f'; {len(missing) - 1} more like it' if len(missing) > 1 else ''
    raise ValueError(
      f'{missing[0]}: this link leads to no file; fetch the file, or skip such links with skip_bad{more}'
    )
  return Found(
    found.examples, [*found.problems, *(f'{path}: this link leads to no file' for path in missing)]
  )


def refuse_pairs(folder: Path) -> None:
  """Raises ValueError if most images of a folder of clean images make pairs of noisy and clean ones."""
  images = arrays.find_images(folder)
  pairs, _ = find_pairs(images, folder)
  # A few names may look like pairs by chance.
  if not noisy_folders(folder) and 4 * len(pairs) > len(images):
    noisy_path, clean_path = (path.relative_to(folder) for path in pairs[0][:2])
    raise ValueError(
      f'{folder}: has pairs of noisy and clean images, such as {noisy_path} and {clean_path}, but clean ones '
      'are wanted; give the folder of those alone, or this one as pairs (data.train.pairs, validation.pairs)'
    )


def _find_clean(folder: Path) -> tuple[list[_Files], list[str]]:
  images = arrays.find_images(folder)
  noisy = noisy_folders(folder)
  if noisy:
    originals = [path for path in (folder / name for name in _ORIGINALS) if path.is_dir()]
    images = [path for path in images if originals and path.is_relative_to(originals[0])]
    if not images:
      raise ValueError(
        f'{folder}: has folders of noisy images ({", ".join(path.name for path in noisy)}), which are not '
        'clean; give the folder of the clean images alone'
      )
  for path in images:
    # Deeper ones, as of an archive unpacked into a folder of its own name.
    for parent in path.relative_to(folder).parents[:-1]:
      if _NOISY_FOLDER.fullmatch(parent.name):
        raise ValueError(
          f'{folder}: has a folder of noisy images, {parent}, which are not clean; give the folder '
          f'{folder / parent.parent}, or that of the clean images alone'
        )
  return [_Files((path,), None, None) for path in images], []


def _find_pairs(folder: Path) -> tuple[list[_Files], list[str]]:
  pairs, problems = find_pairs(arrays.find_images(folder), folder)
  scenes = {p.scene: None if p.scene is None else _scene_name(p.scene, folder) for p in pairs}
  return [_Files((pair.clean,), pair.noisy, scenes[pair.scene]) for pair in pairs], problems


def _scene_name(path, folder):
  """The path of a scene below the folder, which may be the scene itself."""
  return path.name if path == folder else path.relative_to(folder).as_posix()


def _find_sidd(folder: Path) -> tuple[list[_Files], list[str]]:
  found, problems = [], []
  seen: dict[str, Path] = {}
  for data in _folders(folder, lambda name: name.lower() == 'data'):
    for instance in sorted(path for path in data.iterdir() if path.is_dir()):
      groups = _groups(instance, _SIDD_FILE)
      match = _SIDD_FOLDER.fullmatch(instance.name)
      if match and not groups:
        problems.append(f'{instance}: no pairs of images like NOISY_SRGB_010.PNG, GT_SRGB_010.PNG')
      elif match and (first := seen.setdefault(instance.name.lower(), instance)) != instance:
        problems.append(f'{instance}: the same scene is in {first}; give only one of the two sets')
      elif match:
        for roles in groups.values():
          if not _add_incomplete(roles, ('noisy', 'gt'), problems):
            found.append(_Files(tuple(roles['gt']), roles['noisy'][0], match['scene']))
      elif groups:
        problems.append(
          f'{instance}: contains images, but its name is not like 0001_001_S6_00100_00060_3200_L'
        )
  return found, problems


def _find_renoir(folder: Path) -> tuple[list[_Files], list[str]]:
  found, problems = [], []
  seen: dict[str, Path] = {}
  for batch in _folders(folder, _RENOIR_FOLDER.fullmatch):
    # The nearest one; also above the given folder, which may be that of one camera.
    parents = (*batch.absolute().parents, *batch.resolve().parents)
    above = (_RENOIR_CAMERAS.get(path.name.lower()) for path in parents)
    camera = next(filter(None, above), None)
    scene = f'{camera}/{batch.name.capitalize()}'
    roles: dict[str, list[Path]] = collections.defaultdict(list)
    for group in _groups(batch, _RENOIR_FILE).values():
      for role, paths in group.items():
        roles[role] += paths
    if camera is None:
      problems.append(f'{batch}: this batch is not below Mi3_Aligned, T3i_Aligned or S90_Aligned')
    elif (first := seen.setdefault(scene, batch)) != batch:
      problems.append(f'{batch}: {scene} exists twice, first as {first}')
    elif lacking := [r for r in ('Noisy', 'Reference', 'full') if not roles[r.lower()]]:
      problems.append(
        f'{batch}: no file named {" or ".join(f"*{r}.bmp" for r in lacking)}; a batch needs one '
        'Reference, one full, and one or more Noisy'
      )
    elif not _add_incomplete({r: roles[r] for r in ('reference', 'full')}, ('reference', 'full'), problems):
      clean = (*roles['reference'], *roles['full'])
      found += [_Files(clean, noisy, scene) for noisy in sorted(roles['noisy'])]
  return found, problems


def _find_polyu(folder: Path) -> tuple[list[_Files], list[str]]:
  found: list[_Files] = []
  problems: list[str] = []
  if _groups(folder, _POLYU_FILE):
    folders = [folder]
  else:
    folders = _folders(folder, lambda name: name.lower() == 'croppedimages')
  for crops in folders:
    for roles in _groups(crops, _POLYU_FILE).values():
      if not _add_incomplete(roles, ('real', 'mean'), problems):
        noisy = roles['real'][0]
        match = _POLYU_CROP.fullmatch(noisy.stem) or _POLYU_ORIGINAL.fullmatch(noisy.stem)
        if match:
          found.append(_Files(tuple(roles['mean']), noisy, f'{match[1].replace("_", "")}_{match[2]}'))
        else:
          problems.append(
            f'{noisy}: no camera and scene in its name, which must be like <camera>_..._<scene>_<index>_real'
          )
  return found, problems


def _folders(folder: Path, wanted: Callable[[str], object]) -> list[Path]:
  """Returns those of the folder and all folders below it whose names are wanted."""
  below = []
  for path, names, _ in walk(folder):
    # macOS adds a folder of hidden files to archives.
    names[:] = [name for name in names if not arrays.is_hidden(name) and name != '__MACOSX']
    below += [path / name for name in names if wanted(name)]
  is_wanted = any(wanted(name) for name in (folder.absolute().name, folder.resolve().name))
  return [folder, *sorted(below)] if is_wanted else sorted(below)


def _groups(folder: Path, pattern: re.Pattern[str]) -> dict[str, dict[str, list[Path]]]:
  """Groups files with matching names by the common part of their names, then by role, both in lower case.

  Hidden files are ignored: macOS leaves a ``._name`` beside every file of some archives.
  """
  groups: dict[str, dict[str, list[Path]]] = {}
  for path in sorted(folder.iterdir()):
    match = pattern.fullmatch(path.name)
    if match and not arrays.is_hidden(path.name):
      common = f'{match["before"]}*{match["after"]}'.lower()
      groups.setdefault(common, {}).setdefault(match['role'].lower(), []).append(path)
  return groups


def _add_incomplete(roles: dict[str, list[Path]], wanted: tuple[str, ...], problems: list[str]) -> bool:
  """Adds a problem and returns True if there is not exactly one file for each role."""
  first = min(path for paths in roles.values() for path in paths)
  for role in wanted:
    if (count := len(roles.get(role, ()))) != 1:
      found = f'{count} {role} images belong to it' if count else f'no {role} image belongs to it'
      problems.append(f'{first}: {found}; it needs one {" and one ".join(wanted)}')
      return True
  return False


@dataclasses.dataclass(frozen=True)
class _Layout:
  find: Callable[[Path], tuple[list[_Files], list[str]]]
  lacking: str  # What another folder lacks.
  wanted: str


LAYOUTS = {
  'clean': _Layout(_find_clean, 'no image', 'a folder of clean images'),
  'pairs': _Layout(
    _find_pairs,
    'no pair of a noisy and a clean image',
    'a folder of pairs such as noisy/1.png and clean/1.png, or 1_noisy.png and 1_gt.png',
  ),
  'sidd': _Layout(
    _find_sidd,
    'no Data folder with scenes of *_SRGB_*.PNG',
    'SIDD_Medium_Srgb as unpacked, from the SIDD page of York University',
  ),
  'renoir': _Layout(
    _find_renoir,
    'no Batch_NNN folder',
    'Mi3_Aligned, T3i_Aligned and S90_Aligned as unpacked, from the RENOIR page of Adrian Barbu',
  ),
  'polyu': _Layout(
    _find_polyu,
    'no CroppedImages folder with *_real.JPG and *_mean.JPG',
    'the PolyU real-world noisy images as unpacked, from the GitHub repository of Jun Xu, or the '
    'folder OriginalImages itself',
  ),
}
