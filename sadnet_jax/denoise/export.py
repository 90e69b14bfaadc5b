"""The whole denoiser, its weights inside, as one serialized StableHLO artifact.

  python -m sadnet_jax.denoise.export --weights color_50 --output color_50.stablehlo

The file is what `jax.export` serializes and nothing else. It takes noisy images, float32
[N, H, W, C] in [0, 1], of any size (or of one, with ``--size``), and gives them denoised, float32
and not clipped. Where it runs, neither this package nor Flax is needed:

  denoise = jax.jit(jax.export.deserialize(open('color_50.stablehlo', 'rb').read()).call)

What JAX guarantees for such files: they run with a JAX (jaxlib) built up to 6 months after the one
that wrote them, or up to 3 weeks before it; other versions may do, too. So they are for
deployment: keep the weights, and export again. JAX needs the package flatbuffers to write and to
read them. Load only files you trust: a program is run.
"""

import argparse
from collections.abc import Mapping, Sequence
import functools
import operator
from pathlib import Path
import re
from typing import Any

import jax
from jax import export, lax
import jax.numpy as jnp

from sadnet_jax.files import replacing
from sadnet_jax.nn.sadnet import SCALES, STRIDE, SADNet, pad_to_multiple
from sadnet_jax.ops.platform import blocks_for
from sadnet_jax.weights import loading

SUFFIX = '.stablehlo'
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def export_denoiser(
  model: SADNet,
  params: Mapping[str, Any],
  *,
  size: tuple[int, int] | None = None,
  platforms: Sequence[str] = ('cpu', 'cuda'),
) -> export.Exported:
  """Exports a network with its weights as one function of the noisy images.

  Args:
    model: The network.
    params: Its parameters.
    size: (height, width) in pixels of the only images it will take, or None for any.
      The size of the batch is open in both cases.
    platforms: Where it will run; each of them once. None has to be present here.

  Returns:
    The function: float32 [N, H, W, channels] -> the same, not clipped; `save_denoiser`
    saves it. A call with so many pixels that the deformable convolution cannot number
    them is refused.

  Raises:
    ValueError: A size that no image has, or other platforms.
  """
  if not platforms or not set(platforms) <= set(PLATFORMS) or len(set(platforms)) != len(platforms):
    raise ValueError(f'platforms: got {platforms!r}, want one or more of {PLATFORMS}, each once')
  # The blocks of the deformable convolution that suit one platform are slow on another.
  on_platform = {platform: functools.partial(_denoise, model, platform) for platform in platforms}

  def denoise(noisy):
    # As arguments: inside, each platform would have constants of its own.
    return lax.platform_dependent(params, noisy, **on_platform)

  noisy = jax.ShapeDtypeStruct(_shape(model, size), jnp.float32)
  return export.export(jax.jit(denoise), platforms=platforms)(noisy)


def save_denoiser(path: str | Path, exported: export.Exported) -> None:
  """Writes the artifact, whole or not at all, over a file of that name.

  Args:
    path: Ends in '.stablehlo'; its folder exists.
    exported: What `export_denoiser` gave.

  Raises:
    ValueError: Another ending.
    ImportError: No package flatbuffers.
  """
  path = Path(path)
  if path.suffix != SUFFIX:
    raise ValueError(f'{path}: got the ending {path.suffix!r}, want {SUFFIX}')
  content = exported.serialize()
  with replacing(path) as temporary:
    temporary.write_bytes(content)


class ExportedDenoiser:
  """A denoiser read from a file; call it with noisy images. It is compiled once for each shape.

  Attributes:
    platforms: What it was exported for.
    channels: Image channels.
    size: (height, width) in pixels of the images it takes, or None for any.
  """

  def __init__(self, exported: export.Exported):
    """Takes what `export_denoiser` gave."""
    _, height, width, self.channels = exported.in_avals[0].shape
    self.size = None if export.is_symbolic_dim(height) else (height, width)
    self.platforms = exported.platforms
    self._call = jax.jit(exported.call)

  def __call__(self, noisy: jax.Array) -> jax.Array:
    """Denoises a batch.

    Args:
      noisy: [N, H, W, channels], float32 in [0, 1] (noise may leave that range), N at least 1.

    Returns:
      The same shape and dtype, not clipped.

    Raises:
      ValueError: Another shape, dtype or platform.
    """
    height, width = self.size or ('H', 'W')
    if (
      noisy.dtype != jnp.float32
      or noisy.ndim != 4
      or noisy.shape[3] != self.channels
      or 0 in noisy.shape
      or self.size not in (None, noisy.shape[1:3])
    ):
      raise ValueError(
        f'noisy: got {noisy.dtype} {noisy.shape}, want float32 [N, {height}, {width}, {self.channels}]'
      )
    if self.size:
      return self._call(noisy)
    # It would do this itself. Done here, sizes that differ by little share one compiled program.
    return self._call(pad_to_multiple(noisy, STRIDE))[:, : noisy.shape[1], : noisy.shape[2]]


def load_denoiser(path: str | Path) -> ExportedDenoiser:
  """Reads an artifact.

  Args:
    path: A file of `save_denoiser` that you trust.

  Raises:
    ValueError: No such file, or it is damaged, written for another version of JAX, or holds
      another kind of function.
    ImportError: No package flatbuffers.
  """
  try:
    exported = export.deserialize(bytearray(Path(path).read_bytes()))
    # Parses the program, which otherwise would be done by the first call.
    exported.mlir_module()
  except ImportError:
    raise
  # Which error it is depends on what is read in the place of what is missing.
  except Exception as error:
    raise ValueError(
      f'{path}: got no readable artifact ({error}), want a complete {SUFFIX} file, of a JAX that is no newer '
      f'than {jax.__version__}'
    ) from error
  arguments, results = exported.in_avals, exported.out_avals
  if not (
    [x.dtype for x in (*arguments, *results)] == [jnp.float32] * 2
    and arguments[0].shape == results[0].shape
    and len(arguments[0].shape) == 4
  ):
    raise ValueError(f'{path}: got a function {arguments} -> {results}, want a denoiser of images')
  return ExportedDenoiser(exported)


def _denoise(model, platform, params, noisy):
  with blocks_for(platform):
    return model.apply({'params': params}, noisy)


def _shape(model, size):
  """[N, H, W, channels] with symbolic N, and H and W if there is no size.

  Their constraints are what the deformable convolution of each scale asks for in order to
  number what it samples from.
  """
  height, width = ('height', 'width') if size is None else _sides(size)
  names = f'batch, {height}, {width}'
  n, h, w = export.symbolic_shape(names)
  h, w = -(-h // STRIDE), -(-w // STRIDE)
  groups = model.deformable_groups
  rows = [n * (h * 2**scale + 2) * (w * 2**scale + 2) * groups for scale in range(SCALES)]
  constraints = [f'{number} <= {2**31 - 1}' for number in rows]
  return export.symbolic_shape(f'{names}, {model.channels}', constraints=constraints)


def _sides(size):
  try:
    height, width = (operator.index(side) for side in size)
  except (TypeError, ValueError):
    height = width = 0
  if min(height, width) < 1:
    raise ValueError(f'size: got {size!r}, want (height, width) in pixels, each at least 1, or None for any')
  return height, width


def main(arguments: Sequence[str] | None = None) -> None:
  """Exports a file of weights; the command of this module."""
  parser = argparse.ArgumentParser(
    prog='python -m sadnet_jax.denoise.export',
    description='Exports a denoiser with its weights as one file for jax.export.deserialize.',
  )
  parser.add_argument(
    '--weights', required=True, metavar='NAME', help='as pretrained.load takes: a name, a file, a run, a URL'
  )
  parser.add_argument('--output', required=True, metavar=f'FILE{SUFFIX}', help='the file to write')
  parser.add_argument('--size', metavar='HxW', help='the only size of images it will take (default: any)')
  parser.add_argument(
    '--platforms', default='cpu,cuda', help=f'of {",".join(PLATFORMS)}, where it will run (%(default)s)'
  )
  parser.add_argument('--overwrite', action='store_true', help='write over a file that is there')
  given = parser.parse_args(arguments)
  try:
    _run(given)
  except (ValueError, ImportError, OSError) as error:
    raise SystemExit(f'stablehlo: {" ".join(str(error).split())}') from error


def _run(given):
  if Path(given.output).exists() and not given.overwrite:
    raise ValueError(f'--output: got {given.output}, which is there, want another, or pass --overwrite')
  sides = re.fullmatch(r'(\d+)x(\d+)', given.size or '')
  if given.size is not None and not sides:
    raise ValueError(f'--size: got {given.size!r}, want HEIGHTxWIDTH in pixels, such as 480x320')
  size = (int(sides[1]), int(sides[2])) if sides else None
  model, params, _ = loading.load(given.weights)
  exported = export_denoiser(model, params, size=size, platforms=given.platforms.split(','))
  save_denoiser(given.output, exported)
  images = f'of {given.size}' if size else 'of any size'
  megabytes = Path(given.output).stat().st_size / 1e6
  print(f'{given.output}: {megabytes:.1f} MB, images {images}, for {", ".join(exported.platforms)}')


if __name__ == '__main__':
  main()
