"""Test sets known by name: what they contain, and where they are searched for.

A set is searched for below one folder, the root (usually SADNET_DATA), as ``test/<folder>``,
``real/<folder>`` or ``<folder>``, ignoring case; MATLAB files also in the root itself, and those of DND in
``dnd_2017``:

===============  ============  ======================================================
name             folder        files
===============  ============  ======================================================
cbsd68           CBSD68        68 colour images
bsd68            BSD68         68 grey images
kodak24          Kodak24       24 colour images; full, or the centre crops of FFDNet
mcmaster         McMaster      18 colour images
set12            Set12         12 grey images
urban100         Urban100      100 colour images
nam              Nam           25 pairs, ``Nam_patches/01_noise.png``, ``Nam_patch_GT/01_gt.png``
polyu            PolyU         100 pairs, ``CroppedImages/*_{real,mean}.JPG``
polyu_held_out   PolyU         17 of these pairs, of the scenes that configs/nam.py:held_out does not train on
sidd_val         SIDD          Validation{Noisy,Gt}BlocksSrgb.mat
sidd_benchmark   SIDD          BenchmarkNoisyBlocksSrgb.mat; no ground truth
dnd              DND           info.mat and images_srgb/*.mat; no ground truth
===============  ============  ======================================================
"""

from collections.abc import Iterator
import dataclasses
from pathlib import Path

from sadnet_jax.data.folders import data_root
from sadnet_jax.files import local_path


@dataclasses.dataclass(frozen=True)
class KnownSet:
  """A set of image files.

  Attributes:
    title: Name for people, and of its folder unless ``folder`` is given.
    layout: One of `layouts.LAYOUTS`.
    count: Number of images or pairs.
    channels: 3 or 1.
    source: Where to download it.
    versions: Names of the versions in circulation, by number of images and sizes (the shorter side first).
    scenes: Only images of these scenes belong to the set; None for all.
    folder: Name of its folder, if it differs from the title.
  """

  title: str
  layout: str
  count: int
  channels: int
  source: str
  versions: dict[tuple[int, frozenset[tuple[int, int]]], str] = dataclasses.field(default_factory=dict)
  scenes: frozenset[str] | None = None
  folder: str | None = None


# Versions that published figures refer to.
KODAK_FULL, KODAK_CROPS = 'full images', "FFDNet's centre crops"
NAM_PATCHES = "CBDNet's 25 patches"
# One scene of each camera of PolyU that no other camera took.
POLYU_HELD_OUT = ('Canon5D2_fruit', 'Canon600D_book', 'Canon80D_ball', 'NikonD800_stair', 'Sony_door')
_POLYU_SOURCE = "Jun Xu's repository of the PolyU real-world noisy images, CroppedImages"
IMAGE_SETS = {
  'cbsd68': KnownSet(
    'CBSD68', 'clean', 68, 3, 'the 68 test images of FFDNet and DnCNN in colour, PNG, from their repositories'
  ),
  'bsd68': KnownSet('BSD68', 'clean', 68, 1, 'the 68 grey test images of DnCNN, PNG, from its repository'),
  'kodak24': KnownSet(
    'Kodak24',
    'clean',
    24,
    3,
    "Kodak's 24 PhotoCD images, PNG, from Rich Franzen's page (768x512), or FFDNet's crops of them (500x500)",
    {
      (24, frozenset({(500, 500)})): KODAK_CROPS,
      (24, frozenset({(512, 768)})): KODAK_FULL,
    },
  ),
  'mcmaster': KnownSet('McMaster', 'clean', 18, 3, 'the 18 images of Lei Zhang (PolyU), TIFF or PNG'),
  'set12': KnownSet('Set12', 'clean', 12, 1, 'the 12 grey test images of DnCNN, PNG, from its repository'),
  'urban100': KnownSet('Urban100', 'clean', 100, 3, 'the 100 high-resolution images of SelfExSR'),
  'nam': KnownSet(
    'Nam',
    'pairs',
    25,
    3,
    'the 25 patches of 512x512 of CBDNet, PNG, from its repository',
    {(25, frozenset({(512, 512)})): NAM_PATCHES, (15, frozenset({(512, 512)})): 'the 15 crops'},
  ),
  'polyu': KnownSet('PolyU', 'polyu', 100, 3, _POLYU_SOURCE),
  'polyu_held_out': KnownSet(
    'PolyU, held-out scenes',
    'polyu',
    17,
    3,
    _POLYU_SOURCE,
    scenes=frozenset(POLYU_HELD_OUT),
    folder='PolyU',
  ),
}
# MATLAB files of SIDD: noisy blocks, then clean blocks.
SIDD_FILES = {
  'validation': ('ValidationNoisyBlocksSrgb.mat', 'ValidationGtBlocksSrgb.mat'),
  'benchmark': ('BenchmarkNoisyBlocksSrgb.mat',),
}
SIDD_BLOCKS = 1280
# File formats of a submission to SIDD's benchmark: the current one; one array; a cell array of singles.
SIDD_FORMS = ('csv', 'uint8', 'cell')
_MATLAB = {
  'sidd_val': ('SIDD', SIDD_FILES['validation'], 'the SIDD page of York University, sRGB validation data'),
  'sidd_benchmark': ('SIDD', SIDD_FILES['benchmark'], 'the SIDD page of York University, sRGB benchmark'),
  'dnd': ('DND', ('info.mat',), 'the DND page of TU Darmstadt, dnd_2017 with images_srgb'),
}
SCORED = (*IMAGE_SETS, 'sidd_val')
# Sets without public ground truth; their results are submitted for scoring.
UNSCORED = ('sidd_benchmark', 'dnd')


def count_of(name: str) -> int | None:
  """Returns the number of images, pairs or blocks of a named set with ground truth; None for other names."""
  if name == 'sidd_val':
    return SIDD_BLOCKS
  return IMAGE_SETS[name].count if name in IMAGE_SETS else None


def find_folder(name: str, root: str | Path | None) -> Path:
  """Finds the folder of a set known by name.

  Args:
    name: One of SCORED or UNSCORED.
    root: The folder to search; None for SADNET_DATA.

  Raises:
    ValueError: The folder is missing; the message says what to download and where to put it.
  """
  wanted: tuple[str, ...] = ()
  if name in IMAGE_SETS:
    title, source = IMAGE_SETS[name].folder or IMAGE_SETS[name].title, IMAGE_SETS[name].source
  else:
    title, wanted, source = _MATLAB[name]
  root = root or data_root()
  if not root:
    raise ValueError(
      f'{name}: no folder to search; give the one that contains test/{title} as --data or SADNET_DATA'
    )
  root = local_path(root)
  if not root.is_dir():
    raise ValueError(f'{name}: {root} is not a folder; give the one that contains test/{title}')
  candidates = _candidates(root, title, bool(wanted))
  folders = [f for f in candidates if f.is_dir() and all((f / w).is_file() for w in wanted)]
  if not folders:
    files = f' with {" and ".join(wanted)}' if wanted else ''
    raise ValueError(
      f'{name}: no folder {title}{files} in {root}; put {" and ".join(wanted) or "its images"} into '
      f'{root / "test" / title} (download: {source})'
    )
  # An empty folder, as of a download that failed, does not hide the next.
  return next((folder for folder in folders if any(folder.iterdir())), folders[0])


def below_root(folder: Path, root: str | Path | None) -> str:
  """Names a set's folder independent of the machine, for records of results.

  Args:
    folder: The folder of the set.
    root: The root it was searched in; None for SADNET_DATA.

  Returns:
    Its path below the root, with '/'; only its name if it is the root or outside of it.
  """
  root = local_path(root or data_root() or folder)
  inside = folder != root and folder.is_relative_to(root)
  return folder.relative_to(root).as_posix() if inside else folder.resolve().name


def _candidates(root, title, named_files) -> Iterator[Path]:
  """Yields folders with that title, in any case.

  For sets recognised by named files, also the folder that DND's archive unpacks to, and the root itself.
  """
  parents = [parent for parent in (root / 'test', root / 'real', root) if parent.is_dir()]
  for parent in parents:
    for folder in sorted(p for p in parent.iterdir() if p.name.lower() == title.lower()):
      yield from (folder, folder / 'dnd_2017') if named_files else (folder,)
  if named_files:
    yield from (*(parent / 'dnd_2017' for parent in parents), root)
