"""A SADNet with its weights as an ONNX graph, for runtimes other than JAX.

The graph computes what `nn.sadnet.SADNet` does, in float32 and in ONNX's layout NCHW: padding to multiples of
8 by reflection, the network, the skip connection, cropping. Deformable convolutions are ONNX's own
`DeformConv`, whose order of offsets and sampling rules are those of `ops.deform_conv2d`.
"""

from collections.abc import Mapping
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from sadnet_jax import machine
from sadnet_jax.nn.sadnet import SCALES, STRIDE, SADNet
from sadnet_jax.weights.safetensors import fields_of

if TYPE_CHECKING:
  import onnx

# The first opset with DeformConv.
OPSET = 19
INPUT, OUTPUT = 'noisy', 'denoised'


def onnx_denoiser(
  model: SADNet, params: Mapping[str, Any], *, size: tuple[int, int] | None = None
) -> 'onnx.ModelProto':
  """Builds the graph.

  Args:
    model: The network. The graph computes in float32, whatever its dtype.
    params: Its parameters.
    size: (height, width) in pixels of the images it accepts, or None for any size. The batch size is
      always free.

  Returns:
    A checked model with the input ``noisy`` and the output ``denoised``, float32 [N, channels, H, W], not
    clipped.

  Raises:
    ImportError: The package onnx is missing.
  """
  try:
    import onnx
  except ImportError as error:
    raise ImportError(
      f"writing ONNX needs the package onnx ({error}); from the clone: pip install '.[onnx]'"
    ) from error

  graph = _Graph(onnx, params)
  graph.denoise(model)
  shape = ['batch', model.channels, *(size or ('height', 'width'))]
  inputs, outputs = (
    [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name in (INPUT, OUTPUT)
  )
  opsets = [onnx.helper.make_opsetid('', OPSET)]
  built = onnx.helper.make_model(
    onnx.helper.make_graph(graph.nodes, 'SADNet', inputs, outputs, graph.constants),
    opset_imports=opsets,
    # The newest format, which is the default, would exclude older runtimes for nothing.
    ir_version=onnx.helper.find_min_ir_version_for(opsets),
    producer_name='sadnet_jax',
    producer_version=machine.version('sadnet-jax') or '',
    doc_string=(
      f'Image denoiser. {INPUT}: float32 [N, {model.channels}, H, W], values in [0, 1] apart from noise, '
      f'any H and W unless fixed. {OUTPUT}: the same shape, not clipped.'
    ),
  )
  onnx.helper.set_model_props(built, {'model': json.dumps(fields_of(model))})
  onnx.checker.check_model(built, full_check=True)
  return built


class _Graph:
  """Nodes and constants, which the methods append to; a value is known by its name."""

  def __init__(self, onnx, params):
    self._onnx, self._params = onnx, params
    self.nodes: list[Any] = []
    self.constants: list[Any] = []
    self._shared: dict[bytes, str] = {}

  # --- The network; the names of weights are those of the modules.

  def denoise(self, model):
    padded, size = INPUT, []
    for axis in (2, 3):
      size.append(self._op('Shape', INPUT, start=axis, end=axis + 1))
      padded = self._padded(padded, size[-1], axis)
    denoised = self._op('Add', padded, self._negative_noise(model, padded))
    ends = self._op('Concat', *size, axis=0)
    self._op('Slice', denoised, self._ints([0, 0]), ends, self._ints([2, 3]), output=OUTPUT)

  def _negative_noise(self, model, x):
    encoded = []
    for scale in range(1, SCALES + 1):
      if scale > 1:
        x = self._leaky_relu(self._conv(x, f'down{scale - 1}', stride=2))
      if scale == 1:
        x = self._conv(x, 'res1/conv0')
      x = self._res_block(x, f'res{scale}')
      encoded.append(x)
    if model.use_context:
      x = self._context_block(x, model.dilations)
    x, offset_features = self._adapt(model, x, None, SCALES)
    for scale in range(SCALES - 1, 0, -1):
      x = self._up_conv(x, f'up{scale}')
      x = self._conv(self._op('Concat', x, encoded[scale - 1], axis=1), f'dconv{scale}_1')
      x, offset_features = self._adapt(model, x, offset_features, scale)
    return self._conv(x, 'out')

  def _adapt(self, model, x, coarser, scale):
    if not model.use_rsab:
      return self._res_block(x, f'dres{scale}'), None
    features = self._offset_block(x, coarser if model.use_offset_transfer else None, f'offset{scale}')
    name, groups = f'dres{scale}', model.deformable_groups
    if model.rsab_order == 'deform_first':
      y = self._conv(self._leaky_relu(self._deform(x, features, name, groups)), f'{name}/conv1')
    else:
      y = self._deform(self._leaky_relu(self._conv(x, f'{name}/conv1')), features, name, groups)
    return self._op('Add', x, y), features

  def _res_block(self, x, name):
    y = self._conv(self._leaky_relu(self._conv(x, f'{name}/conv1')), f'{name}/conv2')
    return self._op('Add', x, y)

  def _context_block(self, x, dilations):
    compressed = self._conv(x, 'context/conv0')
    branches = [
      self._leaky_relu(self._conv(compressed, f'context/conv{i}', dilation=dilation))
      for i, dilation in enumerate(dilations, start=1)
    ]
    return self._op('Add', x, self._conv(self._op('Concat', *branches, axis=1), 'context/fusion'))

  def _offset_block(self, x, coarser, name):
    o = self._leaky_relu(self._conv(x, f'{name}/offset_conv1'))
    if coarser is not None:
      finer = self._op('Mul', self._upsample_2x(coarser), self._constant(np.float32(2)))
      o = self._leaky_relu(self._conv(self._op('Concat', o, finer, axis=1), f'{name}/offset_conv2'))
    return self._leaky_relu(self._conv(o, f'{name}/offset_conv3'))

  def _deform(self, x, features, name, groups):
    samples = groups * 9
    predicted = self._conv(features, f'{name}/conv_offset_mask')
    offset, logits = self._op('Split', predicted, self._ints([2 * samples, samples]), outputs=2, axis=1)
    weights = [self._weight(f'{name}/deform_conv/{leaf}') for leaf in ('kernel', 'bias')]
    operands = (x, weights[0], offset, weights[1], self._op('Sigmoid', logits))
    return self._op('DeformConv', *operands, kernel_shape=[3, 3], pads=[1] * 4, offset_group=groups)

  # --- Layers.

  def _conv(self, x, name, *, stride=1, dilation=1):
    size = self._leaf(f'{name}/kernel').shape[0]
    # Padded to keep the size, unless strided.
    padding = dilation * (size - 1) // 2 if stride == 1 else 0
    weights = [self._weight(f'{name}/{leaf}') for leaf in ('kernel', 'bias')]
    return self._op(
      'Conv',
      x,
      *weights,
      kernel_shape=[size] * 2,
      strides=[stride] * 2,
      dilations=[dilation] * 2,
      pads=[padding] * 4,
    )

  def _up_conv(self, x, name):
    # ConvTranspose has the input channels first.
    kernel = self._constant(self._leaf(f'{name}/kernel').transpose(2, 3, 0, 1), f'{name}/kernel')
    bias = self._weight(f'{name}/bias')
    return self._op('ConvTranspose', x, kernel, bias, kernel_shape=[2, 2], strides=[2, 2])

  def _leaky_relu(self, x):
    return self._op('LeakyRelu', x, alpha=0.2)

  def _upsample_2x(self, x):
    scales = self._constant(np.array([1, 1, 2, 2], np.float32))
    return self._op('Resize', x, '', scales, mode='linear', coordinate_transformation_mode='half_pixel')

  def _padded(self, x, size, axis):
    """Extends an axis to a multiple of 8 as `nn.sadnet.pad_to_multiple` does for a symbolic size.

    ONNX's own reflection cannot pad by more than the size minus 1.
    """
    zero, one = self._ints(0), self._ints(1)
    length = self._op('Squeeze', size, self._ints([0]))
    extra = self._op('Mod', self._op('Neg', length), self._ints(STRIDE))
    last = self._op('Mul', self._op('Sub', length, one), self._ints(2))
    position = self._op('Range', zero, self._op('Add', length, extra), one)
    position = self._op('Mod', position, self._op('Max', last, one))
    return self._op('Gather', x, self._op('Min', position, self._op('Sub', last, position)), axis=axis)

  # --- Nodes and constants.

  def _op(self, kind, *inputs, output=None, outputs=1, **attributes):
    """Appends a node; returns the name of its output, or a list of several."""
    first = f'{kind}_{len(self.nodes)}'
    names = [output or first] if outputs == 1 else [f'{first}_{i}' for i in range(outputs)]
    self.nodes.append(self._onnx.helper.make_node(kind, inputs, names, name=first, **attributes))
    return names[0] if outputs == 1 else names

  def _leaf(self, path):
    leaf = self._params
    for name in path.split('/'):
      leaf = leaf[name]
    return np.asarray(leaf, np.float32)

  def _weight(self, path):
    """A bias, or a kernel [Kh, Kw, C, O] as ONNX takes it, [O, C, Kh, Kw]."""
    leaf = self._leaf(path)
    return self._constant(leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf, path)

  def _ints(self, values):
    return self._constant(np.array(values, np.int64))

  def _constant(self, value, name=None):
    """The name of a constant; those without one are shared by value."""
    value = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
    if name is None:
      key = f'{value.dtype}{value.shape}'.encode() + value.tobytes()
      if key in self._shared:
        return self._shared[key]
      name = self._shared[key] = f'constant_{len(self._shared)}'
    self.constants.append(self._onnx.numpy_helper.from_array(value, name))
    return name
