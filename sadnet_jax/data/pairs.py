"""Finds pairs of noisy and clean images in any folder, by their names.

Names are split into words at anything but letters and digits; case and file extension are ignored.
``ground_truth`` is one word, and the number in words like ``noisy25`` is a word of its own.

- The last word of a file's name that is one of NOISY_WORDS or CLEAN_WORDS decides whether it is noisy or
  clean. Without such a word, the nearest folder that has one in its name decides (the given folder itself
  does not count).
- In a folder with one clean image whose name is such a word alone and several noisy ones, by their own names,
  the clean one is the truth of all: ``scene1/gt.png`` of ``scene1/noisy_1.png`` and ``scene1/noisy_2.png``.
- Two files are a pair if the rest of their names is equal and they are in the same folder,
  or in folders that differ only in such words: ``a/1_noisy.png`` and ``a/1_gt.jpg``,
  ``noisy/1.png`` and ``clean/1.png``, ``0001/NOISY_SRGB_010.PNG`` and
  ``0001/GT_SRGB_010.PNG``.
- Of the remaining files, a noisy and a clean one are a pair if one of them has such a number and nothing
  else differs, and no third file does: ``noisy25/1.png`` and ``clean/1.png``.
- Of the remaining files, one in a folder of noisy images only and one in a folder of clean images
  only are a pair if the rest of their names is equal, no third file has it, and not both folders
  have pairs already: ``Nam_patches/01_noise.png`` and ``Nam_patch_GT/01_gt.png``.
- A file without such a word, without a partner, or with several, is a problem.
"""

import collections
from collections.abc import Iterable
import dataclasses
from pathlib import Path
import re
from typing import NamedTuple

NOISY_WORDS = frozenset({'noisy', 'noise', 'real', 'input', 'lq'})
CLEAN_WORDS = frozenset({'clean', 'gt', 'groundtruth', 'mean', 'target', 'reference', 'ref', 'hq'})
_WORDS = NOISY_WORDS | CLEAN_WORDS
# Candidates that a message names.
_NAMED_PARTNERS = 3


@dataclasses.dataclass(frozen=True)
class _File:
  path: Path
  word: str  # The word that makes it noisy or clean.
  folder: str  # Its folder, without such words.
  rest: str  # Its name, without that word.
  is_named: bool  # Whether the word is in its own name, not in that of a folder.
  numbered: bool  # Whether a number stood directly behind such a word, as in noisy25.
  unnumbered: tuple[str, str]  # Folder and rest without such numbers.

  @property
  def role(self) -> str:
    return 'noisy' if self.word in NOISY_WORDS else 'clean'


class Pair(NamedTuple):
  """A noisy image, its ground truth, and the folder of a scene of several noisy images, else None."""

  noisy: Path
  clean: Path
  scene: Path | None = None


def find_pairs(paths: Iterable[Path], folder: Path) -> tuple[list[Pair], list[str]]:
  """Pairs image files by the rules above.

  Args:
    paths: Image files below the folder.
    folder: The folder; its own name is ignored.

  Returns:
    The pairs, sorted by the noisy image, and one sentence per file without a pair.
  """
  files, problems = [], []
  for path in paths:
    if file := _parse(path, folder):
      files.append(file)
    else:
      problems.append(
        f'{path}: its name does not say whether it is noisy or clean; put one of the words '
        f'{", ".join(sorted(NOISY_WORDS))} or {", ".join(sorted(CLEAN_WORDS))} into it or its folder'
      )
  shots, files = _pairs_with_shared_truth(files)
  pairs, left = _match(files, lambda file: (file.folder, file.rest))
  # noisy1 is not the partner of clean2, nor noisy25 and noisy50 both of clean.
  numbered, _ = _match(_of_one_number(left, files), lambda file: file.unnumbered)
  pairs += numbered
  paired = {path for pair in numbered for path in pair}
  left = [file for file in left if file.path not in paired]
  # A file that lacks its partner must not be paired with a file of another scene.
  count = collections.Counter(file.rest for file in files)
  roles = collections.defaultdict(set)
  for file in files:
    roles[file.path.parent].add(file.role)
  alone = [file for file in left if count[file.rest] == 2 and len(roles[file.path.parent]) == 1]
  more, _ = _match(alone, lambda file: file.rest)
  # Where both folders have pairs already, the files are of two scenes that each lack a file.
  has_pairs = {path.parent for pair in pairs for path in pair}
  more = [pair for pair in more if not {path.parent for path in pair} <= has_pairs]
  paired = {path for pair in more for path in pair}
  same_name = collections.defaultdict(list)
  for file in left:
    same_name[file.folder, file.rest].append(file)
  problems += [_unpaired(file, same_name[file.folder, file.rest]) for file in left if file.path not in paired]
  return sorted([*shots, *(Pair(*pair) for pair in pairs + more)]), problems


def _pairs_with_shared_truth(files):
  """The pairs of folders with one truth for several noisy images, and the files of the other folders."""
  folders = collections.defaultdict(list)
  for file in files:
    folders[file.path.parent].append(file)
  shots, others = [], []
  for folder, inside in folders.items():
    clean = [file for file in inside if file.role == 'clean']
    # Not where the folder's name makes them noisy: then clean files of the same names are elsewhere.
    is_named = all(file.is_named for file in inside)
    if len(clean) == 1 and not clean[0].rest and len(inside) > 2 and is_named:
      shots += [Pair(file.path, clean[0].path, folder) for file in inside if file.role == 'noisy']
    else:
      others += inside
  return shots, others


def roles(paths: Iterable[Path], folder: Path) -> set[str]:
  """Returns the roles that names of files below a folder express: 'noisy', 'clean', both or neither."""
  return {file.role for path in paths if (file := _parse(path, folder))}


def _parse(path, folder):
  *folders, name = path.relative_to(folder).parts
  words, above = _words(Path(name).stem), [_words(part) for part in folders]
  for i in reversed(range(len(words))):
    if words[i] in _WORDS:
      return _file(path, words[i], above, words[:i] + words[i + 1 :], is_named=True)
  for part in reversed(above):
    for word in reversed(part):
      if word in _WORDS:
        return _file(path, word, above, words, is_named=False)
  return None


# Marks a number that stood behind a word of noise or truth.
_NUMBER = '#'
_NUMBERED_WORD = re.compile(rf'({"|".join(sorted(_WORDS))})(\d+)')


def _words(text):
  text = re.sub(r'ground[\W_]+truth', 'groundtruth', text.lower())
  matches = ((word, _NUMBERED_WORD.fullmatch(word)) for word in re.split(r'[\W_]+', text) if word)
  return [part for word, m in matches for part in ((m[1], _NUMBER + m[2]) if m else (word,))]


def _file(path, word, above, rest, *, is_named):
  parts = [*([word for word in part if word not in _WORDS] for part in above), rest]
  unnumbered = [[word for word in part if not word.startswith(_NUMBER)] for part in parts]
  (folder, rest), bare = _joined(parts), _joined(unnumbered)
  return _File(path, word, folder, rest, is_named, numbered=unnumbered != parts, unnumbered=bare)


def _joined(parts):
  """Folder and name from the words of each folder and of the name."""
  *folders, name = ('_'.join(word.removeprefix(_NUMBER) for word in part) for part in parts)
  return '/'.join(filter(None, folders)), name


def _of_one_number(chosen, files):
  """Those of the chosen files that differ from one other file alone, in a number that one of them lacks."""
  groups = collections.defaultdict(list)
  for file in files:
    groups[file.unnumbered].append(file.numbered)
  return [file for file in chosen if sorted(groups[file.unnumbered]) == [False, True]]


def _match(files, key):
  """Returns pairs of files with equal keys, and the files whose key two files do not share."""
  groups = collections.defaultdict(list)
  for file in files:
    groups[key(file)].append(file)
  pairs, left = [], []
  for group in groups.values():
    if sorted(file.role for file in group) == ['clean', 'noisy']:
      clean, noisy = sorted(group, key=lambda file: file.role)
      pairs.append((noisy.path, clean.path))
    else:
      left += group
  return pairs, sorted(left, key=lambda file: file.path)


def _unpaired(file, same_name):
  """Names the file and others that it could have been paired with."""
  other = 'clean' if file.role == 'noisy' else 'noisy'
  # A few suffice: of many files with one name, each would list all the others.
  same = [f for f in same_name[: _NAMED_PARTNERS + 1] if f is not file]
  what = f'{file.path}: this {file.role} image (by the word {file.word!r})'
  if not same:
    return f'{what} has no {other} partner, whose name would differ only in that word'
  candidates = ', '.join(str(f.path) for f in same[:_NAMED_PARTNERS])
  return f'{what} could be paired with {candidates}; leave one noisy and one clean'
