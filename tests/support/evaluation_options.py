"""Options of an evaluation of small images."""

import dataclasses

from sadnet_jax.evaluation import run


def evaluation_options(tmp_path, *datasets, **changes):
  """Options with data sets and output in one folder, some of them changed."""
  options = run.Options(
    datasets=[str(d) for d in datasets],
    data=str(tmp_path),
    channels=None,
    sigmas_255=[25.0],
    protocols=['unclipped'],
    output=tmp_path / 'output',
    overwrite=False,
    keep_going=False,
    pictures=False,
    page_images=0,
    sidd_forms=['csv'],
    dnd_margin_px=3,
  )
  return dataclasses.replace(options, **changes)
