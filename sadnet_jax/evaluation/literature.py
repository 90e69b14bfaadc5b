"""Published results to compare with, each with its protocol and version of the images.

PSNR in dB, averaged over images. Sources: Tables 2, 3, 5 and 6 of SADNet (Chang et al., ECCV 2020); for the
protocol `unclipped`, the tables of DnCNN, FFDNet, DRUNet and Restormer. 'SADNet, replication' is an
independent training in PyTorch.
"""

import dataclasses

from sadnet_jax.data.test_sets import KODAK_CROPS, KODAK_FULL, NAM_PATCHES

PAPER = 'SADNet (paper)'


@dataclasses.dataclass(frozen=True)
class Published:
  """A published result.

  Attributes:
    method: Name of the method.
    psnr: dB.
    ssim: As published, or None.
    protocols: Names of the protocols it may have been measured by; see `protocols`.
    version: Version of the images, where several are in use; else ''.
  """

  method: str
  psnr: float
  ssim: float | None
  protocols: tuple[str, ...]
  version: str = ''


def published(dataset: str, channels: int, sigma_255: float | None) -> list[Published]:
  """Returns all published results for a set, the paper's first; empty if there are none.

  Args:
    dataset: Name as in `data.test_sets`; grey CBSD68 is BSD68.
    channels: 3 or 1.
    sigma_255: Standard deviation of the added noise, on the scale of 8-bit images; None for real noise.
  """
  if sigma_255 is None:
    return _REAL.get(dataset, []) if channels == 3 else []
  dataset = 'bsd68' if (dataset, channels) == ('cbsd68', 1) else dataset
  rows = _GAUSSIAN.get((dataset, channels), [])
  return [
    Published(method, figures[sigma_255], None, protocols, version)  # type: ignore[index]
    for method, protocols, version, figures in rows
    if sigma_255 in figures
  ]


# The paper does not say whether it measured the output of its test script or saved files.
_CLIPPED, _REAL_NOISE = ('clipped8', 'authors'), ('rounded', 'authors')
# For SIDD's blocks, both do the same.
_FLOAT = ('float', 'authors')
_UNCLIPPED, _ROUNDED = ('unclipped',), ('rounded',)
# (set, channels): [(method, protocols, version, PSNR by sigma on the scale of 8-bit images)].
_GAUSSIAN: dict[tuple[str, int], list[tuple[str, tuple[str, ...], str, dict[int, float]]]] = {
  ('cbsd68', 3): [
    (PAPER, _CLIPPED, '', {30: 30.64, 50: 28.32, 70: 26.93}),
    ('SADNet, replication', _CLIPPED, '', {30: 30.58, 50: 28.30, 70: 26.91}),
    ('CBM3D', _UNCLIPPED, '', {15: 33.52, 25: 30.71, 50: 27.38}),
    ('DnCNN', _UNCLIPPED, '', {15: 33.90, 25: 31.24, 50: 27.95}),
    ('FFDNet', _UNCLIPPED, '', {15: 33.87, 25: 31.21, 50: 27.96}),
    ('DRUNet', _UNCLIPPED, '', {15: 34.30, 25: 31.69, 50: 28.51}),
    ('SwinIR', _UNCLIPPED, '', {15: 34.42, 25: 31.78, 50: 28.56}),
    ('Restormer', _UNCLIPPED, '', {15: 34.40, 25: 31.79, 50: 28.60}),
  ],
  ('kodak24', 3): [
    (PAPER, _CLIPPED, KODAK_FULL, {30: 31.86, 50: 29.64, 70: 28.28}),
    ('SADNet, replication', _CLIPPED, KODAK_FULL, {30: 32.06, 50: 29.86, 70: 28.47}),
    ('CBM3D', _UNCLIPPED, KODAK_CROPS, {15: 34.28, 25: 32.15, 50: 28.46}),
    ('DnCNN', _UNCLIPPED, KODAK_CROPS, {15: 34.60, 25: 32.14, 50: 28.95}),
    ('FFDNet', _UNCLIPPED, KODAK_CROPS, {15: 34.63, 25: 32.13, 50: 28.98}),
    ('DRUNet', _UNCLIPPED, KODAK_CROPS, {15: 35.31, 25: 32.89, 50: 29.86}),
    ('SwinIR', _UNCLIPPED, KODAK_CROPS, {15: 35.34, 25: 32.89, 50: 29.79}),
    ('Restormer', _UNCLIPPED, KODAK_CROPS, {15: 35.49, 25: 33.05, 50: 30.01}),
  ],
  ('bsd68', 1): [
    (PAPER, _CLIPPED, '', {30: 28.61, 50: 26.51, 70: 25.24}),
    ('BM3D', _UNCLIPPED, '', {15: 31.08, 25: 28.57, 50: 25.60}),
    ('DnCNN', _UNCLIPPED, '', {15: 31.73, 25: 29.23, 50: 26.23}),
    ('FFDNet', _UNCLIPPED, '', {15: 31.63, 25: 29.19, 50: 26.29}),
    ('DRUNet', _UNCLIPPED, '', {15: 31.91, 25: 29.48, 50: 26.59}),
  ],
  ('kodak24', 1): [(PAPER, _CLIPPED, KODAK_FULL, {30: 30.00, 50: 27.96, 70: 26.72})],
}
_REAL = {
  'sidd_val': [
    Published(PAPER, 39.46, None, _FLOAT),
    Published('SADNet, replication', 39.41, None, _FLOAT),
    Published('CBM3D', 30.88, None, _FLOAT),
    Published('CBDNet', 30.78, None, _FLOAT),
    Published('RIDNet', 38.71, None, _FLOAT),
    Published('MPRNet', 39.71, None, _FLOAT),
    Published('Restormer', 40.02, None, _FLOAT),
    Published('NAFNet-w64', 40.30, None, _FLOAT),
  ],
  'nam': [
    Published(PAPER, 42.92, 0.9839, _REAL_NOISE, NAM_PATCHES),
    Published('CBM3D', 39.84, 0.9657, _ROUNDED, NAM_PATCHES),
    Published('CBDNet, for JPEG', 41.31, 0.9784, _ROUNDED, NAM_PATCHES),
    Published('RIDNet', 41.04, 0.9814, _ROUNDED, NAM_PATCHES),
  ],
}
