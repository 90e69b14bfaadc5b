"""SADNet (Chang et al., ECCV 2020) in plain PyTorch: what the JAX network is compared with.

Written from the definition, on torchvision's ``deform_conv2d``. Layout is NCHW.
The state dict has the names and shapes of the authors' checkpoints, so that
`sadnet_jax.weights.authors.params_from_state_dict` converts it.
"""

from collections.abc import Sequence

import torch
from torch import nn
import torch.nn.functional as F  # noqa: N812
from torchvision.ops import deform_conv2d

SCALES = 4


def leaky_relu(x: torch.Tensor) -> torch.Tensor:
  """max(x, 0.2 * x), any shape."""
  return F.leaky_relu(x, 0.2)


def conv3x3(inputs: int, outputs: int, dilation: int = 1) -> nn.Conv2d:
  """3x3 convolution that keeps the size."""
  return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)


class ResBlock(nn.Module):
  """x + conv3x3(lrelu(conv3x3(x))).

  Args:
    features: Channels.
    image_channels: If given, the input is an image with this many channels, and a 1x1
      convolution maps it to ``features`` first; the mapped tensor is the skip.
  """

  def __init__(self, features: int, image_channels: int | None = None):
    """Makes the layers; see the class for the arguments."""
    super().__init__()
    if image_channels is not None:
      self.conv0 = nn.Conv2d(image_channels, features, 1)
    self.project = image_channels is not None
    self.conv1 = conv3x3(features, features)
    self.conv2 = conv3x3(features, features)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> [N, features, H, W]."""
    if self.project:
      x = self.conv0(x)
    return x + self.conv2(leaky_relu(self.conv1(x)))


class ContextBlock(nn.Module):
  """Parallel dilated convolutions on a quarter of the channels, fused and added to the input."""

  def __init__(self, features: int, dilations: Sequence[int]):
    """Makes one 3x3 convolution per dilation rate."""
    super().__init__()
    compressed = features // 4
    self.conv0 = nn.Conv2d(features, compressed, 1)
    self.branches = [f'conv{i}' for i in range(1, len(dilations) + 1)]
    for name, dilation in zip(self.branches, dilations, strict=True):
      self.add_module(name, conv3x3(compressed, compressed, dilation))
    self.fusion = nn.Conv2d(len(dilations) * compressed, features, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, features, H, W] -> the same shape."""
    compressed = self.conv0(x)
    branches = [leaky_relu(self.get_submodule(name)(compressed)) for name in self.branches]
    return x + self.fusion(torch.cat(branches, dim=1))


class OffsetBlock(nn.Module):
  """Offset features of one scale, from its own features and the coarser scale's offset features."""

  def __init__(self, inputs: int, features: int, has_coarser: bool):
    """``has_coarser`` is False at the coarsest scale, which has nothing to concatenate."""
    super().__init__()
    self.offset_conv1 = conv3x3(inputs, features)
    if has_coarser:
      self.offset_conv2 = conv3x3(2 * features, features)
    self.offset_conv3 = conv3x3(features, features)

  def forward(self, x: torch.Tensor, coarser: torch.Tensor | None = None) -> torch.Tensor:
    """[N, C, H, W] and [N, features, H / 2, W / 2] -> [N, features, H, W]."""
    o = leaky_relu(self.offset_conv1(x))
    if coarser is not None:
      # One pixel of the coarser scale is two pixels of this one, hence the factor.
      upsampled = 2 * F.interpolate(coarser, scale_factor=2, mode='bilinear', align_corners=False)
      o = leaky_relu(self.offset_conv2(torch.cat([o, upsampled], dim=1)))
    return leaky_relu(self.offset_conv3(o))


class ModulatedDeformConv(nn.Module):
  """3x3 deformable convolution together with the layer that predicts its offsets and mask."""

  def __init__(self, features: int, offset_features: int, deformable_groups: int):
    """Every deformable group has 9 taps, each with (dy, dx) and a modulation."""
    super().__init__()
    self.samples = deformable_groups * 9
    self.weight = nn.Parameter(torch.empty(features, features, 3, 3))
    self.bias = nn.Parameter(torch.zeros(features))
    nn.init.xavier_uniform_(self.weight)
    self.conv_offset_mask = conv3x3(offset_features, 3 * self.samples)

  def forward(self, x: torch.Tensor, offset_features: torch.Tensor) -> torch.Tensor:
    """[N, features, H, W] and [N, offset_features, H, W] -> [N, features, H, W]."""
    predicted = self.conv_offset_mask(offset_features)
    offset, mask = torch.split(predicted, [2 * self.samples, self.samples], dim=1)
    # torchvision's operator has no bfloat16: under autocast it computes in the weights' float32, as its
    # own rule for GPUs says too. Without autocast nothing is converted.
    dtype = self.weight.dtype
    inputs, offset, mask = x.to(dtype), offset.to(dtype), torch.sigmoid(mask).to(dtype)
    return deform_conv2d(inputs, offset, self.weight, self.bias, padding=1, mask=mask).to(x.dtype)


class RSABlock(nn.Module):
  """Residual spatial-adaptive block: x + conv3x3(lrelu(deform_conv3x3(x)))."""

  def __init__(self, features: int, offset_features: int, deformable_groups: int):
    """Makes the layers; the number of channels does not change."""
    super().__init__()
    self.dcnpack = ModulatedDeformConv(features, offset_features, deformable_groups)
    self.conv1 = conv3x3(features, features)

  def forward(self, x: torch.Tensor, offset_features: torch.Tensor) -> torch.Tensor:
    """[N, features, H, W] and [N, offset_features, H, W] -> [N, features, H, W]."""
    return x + self.conv1(leaky_relu(self.dcnpack(x, offset_features)))


class SADNet(nn.Module):
  """Spatial-adaptive denoising network; the defaults are those of the ECCV 2020 paper.

  Args:
    channels: Image channels, 3 or 1.
    width: Channels of scale 1; scale s has ``width * 2**(s - 1)``.
    offset_width: Channels of the offset features.
    deformable_groups: Deformable groups of every RSAB.
    dilations: Rates of the context block.
  """

  def __init__(
    self,
    channels: int = 3,
    width: int = 32,
    offset_width: int = 32,
    deformable_groups: int = 8,
    dilations: Sequence[int] = (1, 2, 3, 4),
  ):
    """Makes the layers; see the class for the arguments."""
    super().__init__()
    features = {scale: width * 2 ** (scale - 1) for scale in range(1, SCALES + 1)}

    self.res1 = ResBlock(features[1], image_channels=channels)
    for scale in range(2, SCALES + 1):
      down = nn.Conv2d(features[scale - 1], features[scale], 2, stride=2)
      self.add_module(f'down{scale - 1}', down)
      self.add_module(f'res{scale}', ResBlock(features[scale]))
    self.context = ContextBlock(features[SCALES], dilations)
    for scale in range(SCALES, 0, -1):
      if scale < SCALES:
        up = nn.ConvTranspose2d(features[scale + 1], features[scale], 2, stride=2)
        self.add_module(f'up{scale}', up)
        self.add_module(f'dconv{scale}_1', nn.Conv2d(2 * features[scale], features[scale], 1))
      offset_block = OffsetBlock(features[scale], offset_width, has_coarser=scale < SCALES)
      self.add_module(f'offset{scale}', offset_block)
      self.add_module(f'dres{scale}', RSABlock(features[scale], offset_width, deformable_groups))
    self.out = conv3x3(features[1], channels)

  def forward(self, noisy: torch.Tensor) -> torch.Tensor:
    """[N, channels, H, W] -> the same shape, not clipped; H and W are multiples of 8."""
    block = self.get_submodule
    x = self.res1(noisy)
    encoded = {1: x}
    for scale in range(2, SCALES + 1):
      x = encoded[scale] = block(f'res{scale}')(leaky_relu(block(f'down{scale - 1}')(x)))

    x = self.context(x)
    offset_features = None
    for scale in range(SCALES, 0, -1):
      if scale < SCALES:
        x = torch.cat([block(f'up{scale}')(x), encoded[scale]], dim=1)
        x = block(f'dconv{scale}_1')(x)
      offset_features = block(f'offset{scale}')(x, offset_features)
      x = block(f'dres{scale}')(x, offset_features)
    return noisy + self.out(x)
