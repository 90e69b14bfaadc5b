"""SADNet: the whole network (Chang et al., ECCV 2020), as a Flax Linen module.

Scale s in 1..4 works at 1 / 2**(s - 1) of the resolution with base width
* 2**(s - 1) channels; `blocks` has the parts.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sadnet_jax.nn.blocks import (
  ContextBlock,
  OffsetBlock,
  OffsetInit,
  Order,
  ResBlock,
  RSABlock,
  check_option,
  leaky_relu,
)
from sadnet_jax.nn.layers import Conv, Dtype, FusionConv, UpConv

SCALES = 4
# Sides inside the network must be a multiple of this: three halvings.
STRIDE = 2 ** (SCALES - 1)
# No width or rate is larger, and shapes of such do not overflow.
_LARGEST = 2**20


class SADNet(nn.Module):
  """Spatial-adaptive denoising network: noisy image in, denoised image out.

  The defaults are the network of the ECCV 2020 paper as the authors' code builds
  it: 4,234,723 parameters for colour, 4,234,081 for grey.

  Attributes:
    channels: Image channels, 3 or 1.
    width: Channels of scale 1 (the paper's 32); scale s has ``width * 2**(s - 1)``.
    offset_width: Channels of the offset features.
    deformable_groups: Deformable groups of every RSAB.
    dilations: Rates of the context block; (1, 2, 4, 8) is Table 4's "SADNet (1248)".
    use_rsab: False puts a ResBlock in place of every RSAB (Table 1).
    use_offset_transfer: False estimates offsets from the current scale only.
    use_context: False leaves out the context block.
    rsab_order: See `RSABlock`; 'deform_last' is the network of arXiv v1.
    last_kernel: 3, as in the authors' code, or 1, as the paper says.
    offset_init: See `RSABlock`.
    dtype: Computation dtype (weights stay float32); None is the common dtype of
      input and weights. The output is in the input's dtype.
  """

  channels: int = 3
  width: int = 32
  offset_width: int = 32
  deformable_groups: int = 8
  dilations: Sequence[int] = (1, 2, 3, 4)
  use_rsab: bool = True
  use_offset_transfer: bool = True
  use_context: bool = True
  rsab_order: Order = 'deform_first'
  last_kernel: int = 3
  offset_init: OffsetInit = 'zeros'
  dtype: Dtype = None

  def __post_init__(self):
    """Refuses what no SADNet has, before anything is built."""
    check_option('SADNet.rsab_order', self.rsab_order, Order)
    check_option('SADNet.offset_init', self.offset_init, OffsetInit)
    groups = self.deformable_groups
    wanted = {
      'channels': (self.channels >= 1, 'at least 1'),
      'deformable_groups': (groups >= 1, 'at least 1'),
      'width': (
        self.width >= 1 and (not self.use_rsab or groups < 1 or self.width % groups == 0),
        f'a multiple of deformable_groups = {groups}',
      ),
      'offset_width': (self.offset_width >= 1, 'at least 1'),
      'dilations': (
        self.dilations and all(1 <= rate <= _LARGEST for rate in self.dilations),
        f'one or more rates from 1 to {_LARGEST}',
      ),
      'last_kernel': (self.last_kernel in (1, 3), '1 or 3'),
    }
    for name, (holds, text) in wanted.items():
      if not holds:
        raise ValueError(f'SADNet.{name}: got {getattr(self, name)!r}, want {text}')
    super().__post_init__()

  @nn.compact
  def __call__(self, noisy: jax.Array) -> jax.Array:
    """Denoises a batch.

    Args:
      noisy: [N, H, W, channels], values in [0, 1] (noise may leave that range).
        Sides that are no multiple of 8 are extended at the bottom and right by
        reflection (see `pad_to_multiple`) and cropped again.

    Returns:
      [N, H, W, channels], not clipped.

    Raises:
      ValueError: ``noisy`` is not [N, H, W, channels] with at least one pixel, or
        not floating point.
    """
    if not jnp.issubdtype(noisy.dtype, jnp.floating):
      raise ValueError(f'noisy: got dtype {noisy.dtype}, want floating point with values in [0, 1]')
    if noisy.ndim != 4 or noisy.shape[-1] != self.channels or any(side < 1 for side in noisy.shape[1:3]):
      raise ValueError(
        f'noisy: got shape {noisy.shape}, want [N, H, W, {self.channels}] with H, W of at least 1'
      )
    padded = pad_to_multiple(noisy, STRIDE)
    negative_noise = self._negative_noise(padded)
    denoised = padded + negative_noise.astype(padded.dtype)
    return denoised[:, : noisy.shape[1], : noisy.shape[2]]

  def _negative_noise(self, x):
    width = [self.width * 2**i for i in range(SCALES)]
    make = functools.partial(Conv, dtype=self.dtype)

    encoded = []
    for scale in range(1, SCALES + 1):
      if scale > 1:
        x = leaky_relu(make(width[scale - 1], 2, stride=2, name=f'down{scale - 1}')(x))
      x = ResBlock(width[scale - 1], project=scale == 1, dtype=self.dtype, name=f'res{scale}')(x)
      encoded.append(x)

    if self.use_context:
      x = ContextBlock(width[-1], self.dilations, dtype=self.dtype, name='context')(x)
    x, offset_features = self._adapt(x, None, SCALES)
    for scale in range(SCALES - 1, 0, -1):
      x = UpConv(width[scale - 1], dtype=self.dtype, name=f'up{scale}')(x)
      x = FusionConv(width[scale - 1], 1, dtype=self.dtype, name=f'dconv{scale}_1')(x, encoded[scale - 1])
      x, offset_features = self._adapt(x, offset_features, scale)
    return make(self.channels, self.last_kernel, name='out')(x)

  def _adapt(self, x, coarser, scale):
    """Offset block and RSAB of one decoder scale, or the ResBlock in their place."""
    features = x.shape[-1]
    if not self.use_rsab:
      return ResBlock(features, dtype=self.dtype, name=f'dres{scale}')(x), None
    offset_block = OffsetBlock(self.offset_width, dtype=self.dtype, name=f'offset{scale}')
    offset_features = offset_block(x, coarser if self.use_offset_transfer else None)
    block = RSABlock(
      features,
      self.deformable_groups,
      self.rsab_order,
      self.offset_init,
      dtype=self.dtype,
      name=f'dres{scale}',
    )
    return block(x, offset_features), offset_features


def model_from_fields(fields: Mapping[str, Any]) -> SADNet:
  """Builds a network from its fields, as a config's ``model`` or a file of weights has them.

  Args:
    fields: All attributes of `SADNet`, ``dilations`` as a list or tuple, ``dtype`` 'float32' or 'bfloat16'.

  Raises:
    ValueError: A field is missing, unknown, or has a value that no SADNet has.
  """
  defaults = {f.name: f.default for f in dataclasses.fields(SADNet) if f.name not in ('parent', 'name')}
  if set(fields) != set(defaults):
    missing, unknown = sorted(set(defaults) - set(fields)), sorted(set(fields) - set(defaults))
    raise ValueError(f'model: got fields without {missing} and with {unknown}, want those of SADNet')
  values = dict(fields)
  if values['dtype'] not in ('float32', 'bfloat16'):
    raise ValueError(f"model.dtype: got {values['dtype']!r}, want 'float32' or 'bfloat16'")
  for name in defaults.keys() - {'dtype', 'dilations'}:
    kind = type(defaults[name])
    if type(values[name]) is not kind or (kind is int and values[name] > _LARGEST):
      most = f' of at most {_LARGEST}' if kind is int else ''
      raise ValueError(f'model.{name}: got {values[name]!r}, want a value of type {kind.__name__}{most}')
  rates = values['dilations']
  if not isinstance(rates, list | tuple) or not all(type(r) is int for r in rates):
    raise ValueError(f'model.dilations: got {rates!r}, want a list of whole numbers')
  return SADNet(**{**values, 'dtype': jnp.dtype(values['dtype']), 'dilations': tuple(rates)})


def param_shapes(model: SADNet) -> dict:
  """The tree of a network's parameters, with shapes and dtypes (`jax.ShapeDtypeStruct`) for values."""
  image = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, model.channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


def round_up(value: int, multiple: int) -> int:
  """The smallest multiple that is not less than the value; also for arrays and symbolic sizes."""
  return -(-value // multiple) * multiple


def pad_to_multiple(x: jax.Array | np.ndarray, multiple: int) -> jax.Array | np.ndarray:
  """Extends height and width at the bottom and right to a multiple.

  The extension is the image's reflection without repeating the border pixel.
  Where the image is smaller than the extension, the reflection is reflected again,
  and a side of one pixel is repeated.

  Args:
    x: [N, H, W, C], H and W at least 1. NumPy arrays are padded on the host, without compiling anything.
    multiple: What the sides become a multiple of.

  Returns:
    [N, H', W', C], of NumPy if ``x`` is; ``x`` itself if nothing has to be added.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    if jax.export.is_symbolic_dim(size):
      # The same reflection, as a formula: there and back again is one period.
      position = jnp.arange(-(-size // multiple) * multiple) % jnp.maximum(2 * size - 2, 1)
      x = jnp.take(x, jnp.minimum(position, 2 * size - 2 - position), axis=axis)
    elif extra := -size % multiple:
      source = np.pad(np.arange(size), (0, extra), mode='reflect')
      xp = np if isinstance(x, np.ndarray) else jnp
      x = xp.concatenate([x, xp.take(x, source[size:], axis=axis)], axis=axis)
  return x


def scale_of(module: str) -> int:
  """The scale, 1 to 4, that a top-level module of `SADNet` works at: 'dres3' -> 3."""
  if module in ('context', 'out'):
    return {'context': SCALES, 'out': 1}[module]
  kind, number = re.match(r'([a-z]+)(\d)', module).groups()  # type: ignore[union-attr]
  # The n-th downsampling makes scale n + 1.
  return int(number) + (kind == 'down')


def mean_abs_offsets(intermediates: dict) -> dict[str, jax.Array]:
  """Reads the mean absolute offset of each scale, in pixels of that scale.

  Args:
    intermediates: The collection of that name, as returned by
      ``SADNet.apply(variables, noisy, mutable=['intermediates'])``.

  Returns:
    ``{'scale1': scalar, ..., 'scale4': scalar}``; empty without RSABs.
  """
  return {
    f'scale{scale}': intermediates[f'dres{scale}']['offset_abs_mean'][0]
    for scale in range(1, SCALES + 1)
    if 'offset_abs_mean' in intermediates.get(f'dres{scale}', {})
  }
