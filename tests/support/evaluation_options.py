"""What an evaluation of small images is asked for."""

import dataclasses

from sadnet_jax.evaluation import run


def evaluation_options(tmp_path, *datasets, **changes):
  """Options with the data sets below a folder, and the output in it; some of them changed."""
  options = run.Options(
    datasets=[str(d) for d in datasets],
    data=str(tmp_path),
    channels=None,
    sigmas_255=[25.0],
    protocols=['unclipped'],
    output=tmp_path / 'output',
    overwrite=False,
    keep_going=False,
    pictures=True,
    page_images=4,
    sidd_forms=['csv'],
    dnd_margin_px=3,
  )
  return dataclasses.replace(options, **changes)
