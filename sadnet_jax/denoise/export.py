"""The whole denoiser with its weights as one file: a serialized StableHLO artifact, or an ONNX model.

  python -m sadnet_jax.denoise.export --weights color --output color.stablehlo
  python -m sadnet_jax.denoise.export --weights color --output color.onnx

`onnx_graph` describes the ONNX model. A StableHLO file is what `jax.export` serializes. The program takes
noisy images, float32 [N, H, W, C] in [0, 1], of any size (or of one size, with ``--size``), and returns them
denoised, float32 and not clipped. It runs without this package and without Flax:

  denoise = jax.jit(jax.export.deserialize(open('color.stablehlo', 'rb').read()).call)

JAX guarantees that such a file runs with a jaxlib released up to 6 months after the one that wrote it, or up
to 3 weeks before; other versions may work. Artifacts are therefore for deployment: keep the weights and
export again when needed. JAX needs the package flatbuffers to write and read them. Load only files you
trust: they contain a program.
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

from sadnet_jax.denoise.onnx_graph import OPSET, onnx_denoiser
from sadnet_jax.files import local_path, one_line, print_any_name, refuse_existing, replacing
from sadnet_jax.nn.sadnet import SCALES, STRIDE, SADNet, pad_to_multiple
from sadnet_jax.ops.platform import target_platform
from sadnet_jax.weights import loading

SUFFIX = '.stablehlo'
FORMATS = ('stablehlo', 'onnx')
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
    size: (height, width) in pixels of the images it accepts, or None for any size. The batch size is
      always free.
    platforms: Where it will run. This machine does not need to have them.

  Returns:
    The function: float32 [N, H, W, channels] -> the same shape, not clipped; see `save_denoiser`. It
    refuses images with more pixels than the deformable convolution can index.

  Raises:
    ValueError: The size is not positive, or a platform is unknown or repeated.
  """
  if not platforms or not set(platforms) <= set(PLATFORMS) or len(set(platforms)) != len(platforms):
    raise ValueError(f'platforms must be one or more of {PLATFORMS}, each once, not {platforms!r}')
  # The deformable convolution's block sizes that suit one platform are slow on another.
  on_platform = {platform: functools.partial(_denoise, model, platform) for platform in platforms}

  def denoise(noisy):
    # The weights are arguments here; as constants, each platform would have its own copy.
    return lax.platform_dependent(params, noisy, **on_platform)

  noisy = jax.ShapeDtypeStruct(_shape(model, size), jnp.float32)
  return export.export(jax.jit(denoise), platforms=platforms)(noisy)


def save_denoiser(path: str | Path, exported: export.Exported, *, overwrite: bool = True) -> None:
  """Writes the artifact, completely or not at all.

  Args:
    path: A path with the extension .stablehlo, in an existing folder.
    exported: The result of `export_denoiser`.
    overwrite: Replace an existing file.

  Raises:
    ValueError: The path has another extension.
    FileExistsError: The file exists and is not to be replaced.
    ImportError: The package flatbuffers is missing.
  """
  path = _checked_path(path)
  content = exported.serialize()
  with replacing(path, overwrite=overwrite) as temporary:
    temporary.write_bytes(content)


def _checked_path(path):
  path = Path(path)
  if path.suffix != SUFFIX:
    raise ValueError(f'{path}: the extension must be {SUFFIX}, not {path.suffix!r}')
  return path


class ExportedDenoiser:
  """A denoiser read from a file; call it with noisy images. It is compiled once per shape.

  Attributes:
    platforms: The platforms it was exported for.
    channels: Number of image channels.
    size: (height, width) in pixels of the images it accepts, or None for any.
    apply: The exported function, jitted.
  """

  def __init__(self, exported: export.Exported):
    """Wraps the result of `export_denoiser`."""
    _, height, width, self.channels = exported.in_avals[0].shape
    self.size = None if export.is_symbolic_dim(height) else (height, width)
    self.platforms = exported.platforms
    self.apply = jax.jit(exported.call)

  def __call__(self, noisy: jax.Array) -> jax.Array:
    """Denoises a batch.

    Args:
      noisy: float32 [N, H, W, channels], N at least 1, in [0, 1] apart from noise.

    Returns:
      The same shape and dtype, not clipped.

    Raises:
      ValueError: The shape or dtype is wrong, or it was exported for other platforms.
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
        f'noisy must be float32 [N, {height}, {width}, {self.channels}], not {noisy.dtype} {noisy.shape}'
      )
    if self.size:
      return self.apply(noisy)
    # The program pads too. Padding here lets images of similar size share one compiled program.
    return self.apply(pad_to_multiple(noisy, STRIDE))[:, : noisy.shape[1], : noisy.shape[2]]


def load_denoiser(path: str | Path) -> ExportedDenoiser:
  """Reads an artifact.

  Args:
    path: A file written by `save_denoiser`, which you trust.

  Raises:
    ValueError: The file is missing, damaged, written by a newer JAX, or not a denoiser.
    ImportError: The package flatbuffers is missing.
  """
  try:
    exported = export.deserialize(bytearray(Path(path).read_bytes()))
    # Parse the program now rather than at the first call.
    exported.mlir_module()
  except ImportError:
    raise
  # Damaged bytes raise all kinds of errors.
  except Exception as error:
    raise ValueError(
      f'{path} is not a readable artifact ({error}); it must be a complete {SUFFIX} file, written by JAX '
      f'{jax.__version__} or older'
    ) from error
  arguments, results = exported.in_avals, exported.out_avals
  if not (
    [x.dtype for x in (*arguments, *results)] == [jnp.float32] * 2
    and arguments[0].shape == results[0].shape
    and len(arguments[0].shape) == 4
  ):
    raise ValueError(f'{path} holds a function {arguments} -> {results}, which is not a denoiser')
  return ExportedDenoiser(exported)


def _denoise(model, platform, params, noisy):
  with target_platform(platform):
    return model.apply({'params': params}, noisy)


def _shape(model, size):
  """[N, H, W, channels] with symbolic N, and symbolic H and W if there is no size.

  The constraints are those of the deformable convolution at each scale, which indexes its samples in int32.
  """
  height, width = ('height', 'width') if size is None else _checked_size(size)
  names = f'batch, {height}, {width}'
  n, h, w = export.symbolic_shape(names)
  h, w = -(-h // STRIDE), -(-w // STRIDE)
  groups = model.deformable_groups
  rows = [n * (h * 2**scale + 2) * (w * 2**scale + 2) * groups for scale in range(SCALES)]
  constraints = [f'{number} <= {2**31 - 1}' for number in rows]
  return export.symbolic_shape(f'{names}, {model.channels}', constraints=constraints)


def _checked_size(size):
  try:
    height, width = (operator.index(side) for side in size)
  except (TypeError, ValueError):
    height = width = 0
  if min(height, width) < 1:
    raise ValueError(f'size must be (height, width) in pixels, each at least 1, or None, not {size!r}')
  return height, width


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the export command."""
  print_any_name()
  parser = argparse.ArgumentParser(
    prog='python -m sadnet_jax.denoise.export',
    description='Exports a denoiser with its weights as one file: StableHLO for JAX, or ONNX.',
  )
  parser.add_argument(
    '--weights',
    required=True,
    metavar='NAME',
    help='a published name, a file, a training run, a URL or hf://OWNER/NAME',
  )
  parser.add_argument(
    '--output',
    required=True,
    metavar='FILE',
    help='the file to write, with the extension .stablehlo or .onnx',
  )
  parser.add_argument('--format', choices=FORMATS, help="the file's format (default: by its extension)")
  parser.add_argument('--size', metavar='HxW', help='accept images of this size only (default: any size)')
  parser.add_argument(
    '--platforms',
    help=f'where a StableHLO file will run, of {",".join(PLATFORMS)} (default: cpu,cuda)',
  )
  parser.add_argument('--overwrite', action='store_true', help='replace an existing file')
  given = parser.parse_args(arguments)
  try:
    _run(given)
  except (ValueError, ImportError, OSError) as error:
    raise SystemExit(f'{parser.prog}: {one_line(error)}') from error


def _run(given):
  output = local_path(given.output)
  file_format = _format(output, given.format)
  if file_format == 'onnx' and given.platforms is not None:
    raise ValueError('--platforms is for StableHLO only; an ONNX model runs wherever its runtime does')
  refuse_existing(output, overwrite=given.overwrite)
  sides = re.fullmatch(r'(\d+)x(\d+)', given.size or '')
  if given.size is not None and not sides:
    raise ValueError(f'--size must be HEIGHTxWIDTH in pixels, such as 480x320, not {given.size!r}')
  size = (int(sides[1]), int(sides[2])) if sides else None
  model, params, _ = loading.load(given.weights)
  if file_format == 'onnx':
    content = onnx_denoiser(model, params, size=size and _checked_size(size)).SerializeToString()
    with replacing(output, overwrite=given.overwrite) as temporary:
      temporary.write_bytes(content)
    runs_on = f'ONNX opset {OPSET}'
  else:
    exported = export_denoiser(model, params, size=size, platforms=(given.platforms or 'cpu,cuda').split(','))
    save_denoiser(output, exported, overwrite=given.overwrite)
    runs_on = f'for {", ".join(exported.platforms)}'
  images = f'of {given.size}' if size else 'of any size'
  megabytes = output.stat().st_size / 1e6
  print(f'{output}: {megabytes:.1f} MB, images {images}, {runs_on}')


def _format(output, wanted):
  """The format by the extension of the output, which must be the wanted one, if one is."""
  suffix = output.suffix
  accepted = [wanted] if wanted else FORMATS
  if suffix.removeprefix('.') not in accepted:
    extensions = ' or '.join(f'.{name}' for name in accepted)
    raise ValueError(f'{output}: the extension must be {extensions}, not {suffix!r}')
  return suffix.removeprefix('.')


if __name__ == '__main__':
  main()
