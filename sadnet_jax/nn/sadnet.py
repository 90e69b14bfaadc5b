"""SADNet: the whole network (Chang et al., ECCV 2020), as a Flax Linen module.

Scale s in 1..4 works at 1 / 2**(s - 1) of the resolution with
width * 2**(s - 1) channels. The blocks are in `blocks`.
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
  Inside,
  OffsetBlock,
  OffsetInit,
  Order,
  ResBlock,
  RSABlock,
  check_option,
  leaky_relu,
  zero_outside,
)
from sadnet_jax.nn.layers import Conv, Dtype, FusionConv, UpConv

SCALES = 4
# Height and width inside the network must be a multiple of this, as they are halved three times.
STRIDE = 2 ** (SCALES - 1)
# Upper limit of widths and rates, so that shapes computed from them do not overflow.
_MAX_INT = 2**20


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
    use_rsab: False replaces every RSAB with a ResBlock (Table 1).
    use_offset_transfer: False predicts offsets from the current scale only.
    use_context: False omits the context block.
    rsab_order: See `RSABlock`; 'deform_last' is the network of arXiv v1.
    last_kernel: Kernel size of the last layer: 3 as in the authors' code, or 1 as in the paper.
    offset_init: See `RSABlock`.
    dtype: Computation dtype; None is the common dtype of input and weights. Weights stay
      float32, and the output has the input's dtype.
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
    """Raises ValueError for invalid fields when the module is created."""
    # A list could not be hashed, as static arguments of `jax.jit` are.
    object.__setattr__(self, 'dilations', tuple(self.dilations))
    check_option('SADNet.rsab_order', self.rsab_order, Order)
    check_option('SADNet.offset_init', self.offset_init, OffsetInit)
    groups = self.deformable_groups
    valid = {
      'channels': (self.channels >= 1, 'at least 1'),
      'deformable_groups': (groups >= 1, 'at least 1'),
      'width': (
        self.width >= 1 and (not self.use_rsab or groups < 1 or self.width % groups == 0),
        f'a multiple of deformable_groups = {groups}',
      ),
      'offset_width': (self.offset_width >= 1, 'at least 1'),
      'dilations': (
        self.dilations and all(1 <= rate <= _MAX_INT for rate in self.dilations),
        f'one or more rates from 1 to {_MAX_INT}',
      ),
      'last_kernel': (self.last_kernel in (1, 3), '1 or 3'),
    }
    for name, (is_valid, requirement) in valid.items():
      if not is_valid:
        raise ValueError(f'SADNet.{name} must be {requirement}, not {getattr(self, name)!r}')
    super().__post_init__()

  @nn.compact
  def __call__(self, noisy: jax.Array, inside: Inside | None = None) -> jax.Array:
    """Denoises a batch.

    Args:
      noisy: [N, H, W, channels], values in [0, 1] (noise may exceed that range).
        Any H and W: the image is padded to multiples of 8 by reflection
        (`pad_to_multiple`), and the result is cropped.
      inside: Rows and columns at the top left that are image, both multiples of 8, where the
        others only fill up the array: the result inside is that of the image alone, up to rounding.
        They may be traced, so that one compiled program denoises images of many sizes.
        By default everything is image.

    Returns:
      [N, H, W, channels], not clipped.

    Raises:
      ValueError: ``noisy`` is not [N, H, W, channels] with at least one pixel, or is
        not floating point; ``inside`` is given, but H or W is not a multiple of 8, or its sides
        are not, or larger than H and W, as far as they are not traced.
    """
    if not jnp.issubdtype(noisy.dtype, jnp.floating):
      raise ValueError(f'noisy must be floating point with values in [0, 1], but has dtype {noisy.dtype}')
    if noisy.ndim != 4 or noisy.shape[-1] != self.channels or any(side < 1 for side in noisy.shape[1:3]):
      raise ValueError(
        f'noisy must be [N, H, W, {self.channels}] with H and W at least 1, but has shape {noisy.shape}'
      )
    if inside is not None:
      _check_inside(inside, noisy.shape)
    padded = pad_to_multiple(noisy, STRIDE)
    negative_noise = self._negative_noise(padded, inside)
    denoised = padded + negative_noise.astype(padded.dtype)
    return denoised[:, : noisy.shape[1], : noisy.shape[2]]

  def _negative_noise(self, x, inside):
    inside_at = {s: None if inside is None else inside.at_scale(s) for s in range(1, SCALES + 1)}
    width = [self.width * 2**i for i in range(SCALES)]
    make = functools.partial(Conv, dtype=self.dtype)

    encoded = []
    for scale in range(1, SCALES + 1):
      if scale > 1:
        x = leaky_relu(make(width[scale - 1], 2, stride=2, name=f'down{scale - 1}')(x))
      x = ResBlock(width[scale - 1], project=scale == 1, dtype=self.dtype, name=f'res{scale}')(
        x, inside_at[scale]
      )
      encoded.append(x)

    if self.use_context:
      x = ContextBlock(width[-1], self.dilations, dtype=self.dtype, name='context')(x, inside_at[SCALES])
    x, offset_features = self._adapt(x, None, SCALES, inside_at[SCALES])
    for scale in range(SCALES - 1, 0, -1):
      x = UpConv(width[scale - 1], dtype=self.dtype, name=f'up{scale}')(x)
      x = FusionConv(width[scale - 1], 1, dtype=self.dtype, name=f'dconv{scale}_1')(x, encoded[scale - 1])
      x, offset_features = self._adapt(x, offset_features, scale, inside_at[scale])
    return make(self.channels, self.last_kernel, name='out')(zero_outside(x, inside))

  def _adapt(self, x, coarser, scale, inside):
    """Offset block and RSAB of one decoder scale, or the ResBlock that replaces them."""
    features = x.shape[-1]
    if not self.use_rsab:
      return ResBlock(features, dtype=self.dtype, name=f'dres{scale}')(x, inside), None
    offset_block = OffsetBlock(self.offset_width, dtype=self.dtype, name=f'offset{scale}')
    offset_features = offset_block(x, coarser if self.use_offset_transfer else None, inside)
    block = RSABlock(
      features,
      self.deformable_groups,
      self.rsab_order,
      self.offset_init,
      dtype=self.dtype,
      name=f'dres{scale}',
    )
    return block(x, offset_features, inside), offset_features


def model_from_fields(fields: Mapping[str, Any]) -> SADNet:
  """Builds a network from its fields as stored in a config or in a file of weights.

  Args:
    fields: All attributes of `SADNet`; ``dilations`` is a list or tuple, ``dtype`` 'float32' or 'bfloat16'.

  Raises:
    ValueError: A field is missing, unknown or invalid.
  """
  defaults = {f.name: f.default for f in dataclasses.fields(SADNet) if f.name not in ('parent', 'name')}
  if set(fields) != set(defaults):
    missing, unknown = sorted(set(defaults) - set(fields)), sorted(set(fields) - set(defaults))
    raise ValueError(f'model must have exactly the fields of SADNet: missing {missing}, unknown {unknown}')
  values = dict(fields)
  if values['dtype'] not in ('float32', 'bfloat16'):
    raise ValueError(f"model.dtype must be 'float32' or 'bfloat16', not {values['dtype']!r}")
  for name in defaults.keys() - {'dtype', 'dilations'}:
    kind = type(defaults[name])
    if type(values[name]) is not kind or (kind is int and values[name] > _MAX_INT):
      limit = f', at most {_MAX_INT}' if kind is int else ''
      raise ValueError(f'model.{name} must be of type {kind.__name__}{limit}, not {values[name]!r}')
  rates = values['dilations']
  if not isinstance(rates, list | tuple) or not all(type(r) is int for r in rates):
    raise ValueError(f'model.dilations must be a list of integers, not {rates!r}')
  return SADNet(**{**values, 'dtype': jnp.dtype(values['dtype'])})


def param_shapes(model: SADNet) -> dict:
  """The tree of a network's parameters as `jax.ShapeDtypeStruct`, as ``model.init`` returns them.

  Written out rather than traced: tracing the network takes a third of a second, which every program that
  loads weights would wait for.
  """
  width = [model.width * 2**i for i in range(SCALES)]
  params: dict[str, dict] = {'out': _conv_shapes(model.last_kernel, width[0], model.channels)}
  for scale, features in enumerate(width, start=1):
    params[f'res{scale}'] = _res_block_shapes(features)
    if scale == 1:
      params['res1']['conv0'] = _conv_shapes(1, model.channels, features)
    else:
      finer, finer_width = scale - 1, width[scale - 2]
      params[f'down{finer}'] = _conv_shapes(2, finer_width, features)
      params[f'up{finer}'] = _conv_shapes(2, features, finer_width)
      params[f'dconv{finer}_1'] = _conv_shapes(1, 2 * finer_width, finer_width)
    params |= _adapting_shapes(model, scale, features)
  if model.use_context:
    quarter = width[-1] // 4
    branches = {f'conv{i}': _conv_shapes(3, quarter, quarter) for i in range(1, len(model.dilations) + 1)}
    fusion = _conv_shapes(1, quarter * len(model.dilations), width[-1])
    params['context'] = {'conv0': _conv_shapes(1, width[-1], quarter), **branches, 'fusion': fusion}
  return params


def _conv_shapes(size, inputs, outputs):
  shapes = {'kernel': (size, size, inputs, outputs), 'bias': (outputs,)}
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def _res_block_shapes(features):
  return {name: _conv_shapes(3, features, features) for name in ('conv1', 'conv2')}


def _adapting_shapes(model, scale, features):
  """What `SADNet._adapt` has at one scale."""
  if not model.use_rsab:
    return {f'dres{scale}': _res_block_shapes(features)}
  offsets = model.offset_width
  block = {
    'offset_conv1': _conv_shapes(3, features, offsets),
    'offset_conv3': _conv_shapes(3, offsets, offsets),
  }
  if model.use_offset_transfer and scale < SCALES:
    block['offset_conv2'] = _conv_shapes(3, 2 * offsets, offsets)
  spatial_adaptive = {
    'conv_offset_mask': _conv_shapes(3, offsets, 27 * model.deformable_groups),
    'deform_conv': _conv_shapes(3, features, features),
    'conv1': _conv_shapes(3, features, features),
  }
  return {f'offset{scale}': block, f'dres{scale}': spatial_adaptive}


def round_up(value: int, multiple: int) -> int:
  """The smallest multiple of ``multiple`` that is at least ``value``; also for symbolic dimensions."""
  return -(-value // multiple) * multiple


def pad_to_multiple(x: jax.Array | np.ndarray, multiple: int) -> jax.Array | np.ndarray:
  """Pads height and width to a multiple by reflection, at the bottom and right.

  The border pixel is not repeated, as in ``np.pad(mode='reflect')``: where the padding is larger than the
  image it is reflected again, and a side of one pixel is repeated.

  Args:
    x: [N, H, W, C], H and W at least 1. A NumPy array is padded on the host, without compilation.
    multiple: What the new height and width are multiples of, in pixels.

  Returns:
    [N, H', W', C], a NumPy array if ``x`` is one; ``x`` itself if no padding is needed.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    if jax.export.is_symbolic_dim(size):
      # The same reflection as a formula: its period is forth and back, 2 * size - 2 pixels.
      position = jnp.arange(round_up(size, multiple)) % jnp.maximum(2 * size - 2, 1)  # type: ignore[arg-type]
      x = jnp.take(x, jnp.minimum(position, 2 * size - 2 - position), axis=axis)
    elif extra := -size % multiple:
      source = reflected_indices(size, size + extra)
      xp = np if isinstance(x, np.ndarray) else jnp
      x = xp.concatenate([x, xp.take(x, source[size:], axis=axis)], axis=axis)
  return x


def reflected_indices(size: int, padded: int) -> np.ndarray:
  """Indices [padded] that extend an axis of ``size`` pixels at its end, as `pad_to_multiple` does."""
  return np.pad(np.arange(size), (0, padded - size), mode='reflect')


def scale_of(module: str) -> int | None:
  """The scale (1 to 4) of a top-level module of `SADNet`: 'dres3' -> 3; None for one of another network."""
  if module in ('context', 'out'):
    return {'context': SCALES, 'out': 1}[module]
  match = re.fullmatch(r'(res|down|offset|dres|up|dconv)([1-4])(_1)?', module)
  # 'down1' produces scale 2.
  return match and int(match[2]) + (match[1] == 'down')


def _check_inside(inside, shape):
  if any(side % STRIDE for side in shape[1:3]):
    raise ValueError(
      f'with `inside`, noisy must have sides that are multiples of {STRIDE}, but has shape {shape}'
    )
  for side, largest in zip(inside, shape[1:3], strict=True):
    if isinstance(side, int | np.integer) and (side % STRIDE or not 0 < side <= largest):
      raise ValueError(
        f'inside must have sides that are multiples of {STRIDE} and at most those of noisy, not {inside} for '
        f'noisy of shape {shape}'
      )


def mean_abs_offsets(intermediates: dict) -> dict[str, jax.Array]:
  """Reads the mean absolute offset of each scale, in pixels of that scale.

  Args:
    intermediates: The collection ``intermediates`` returned by
      ``SADNet.apply(variables, noisy, mutable=['intermediates'])``.

  Returns:
    ``{'scale1': scalar, ..., 'scale4': scalar}``; empty without RSABs.
  """
  return {
    f'scale{scale}': intermediates[f'dres{scale}']['offset_abs_mean'][0]
    for scale in range(1, SCALES + 1)
    if 'offset_abs_mean' in intermediates.get(f'dres{scale}', {})
  }
