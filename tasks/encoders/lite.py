"""EfficientNet-Lite, the packaged encoders, in torch alone (Tan and Le, ICML 2019, in its Lite variant).

The Lite variant has no squeeze-and-excitation, its activation is ReLU6, and its stem and head are not scaled. Its features and the names
of its tensors equal those of timm's networks of the same name. timm is not imported, because its import takes longer than a first score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from changepair.tasks.encoders.encoder import Features, FrozenEncoder, exporting, folded

STEM = 32  # channels
EXPANSION = 6  # channels within a block, as a multiple of those of its input
EPSILON = 1e-3  # epsilon of TensorFlow's batch normalisation
UNIT = 8  # channels are a multiple of it
MULTIPLIERS = {"tf_efficientnet_lite0": (1.0, 1.0), "tf_efficientnet_lite2": (1.1, 1.2)}
"""Width and depth multipliers by the timm name of the network."""


class Stage(NamedTuple):
    """A row of table 1 of the paper: a sequence of blocks with one kernel size and number of channels."""

    blocks: int
    kernel: int
    """Side of the depthwise kernel in positions."""
    stride: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 16),
    Stage(2, 3, 2, 24),
    Stage(2, 5, 2, 40),
    Stage(3, 3, 2, 80),
    Stage(3, 5, 1, 112),
    Stage(4, 5, 2, 192),
    Stage(1, 3, 1, 320),
)


def same_convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Build a convolution with TensorFlow's padding `SAME`. With stride 1, this padding is symmetric and independent of the size."""
    if stride > 1:
        return StridedConv(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)


class StridedConv(nn.Conv2d):
    """A convolution with TensorFlow's padding `SAME`, which adds an odd row or column at the bottom or the right."""

    def forward(self, maps: Tensor) -> Tensor:
        height, width = (self._room(size) for size in maps.shape[-2:])
        if maps.device.type != "cpu" or exporting():
            maps = F.pad(maps, (width // 2, -(-width // 2), height // 2, -(-height // 2)))
            return super().forward(maps)
        # A row of zeros before the rows of the kernel shifts it, as one row less of padding would. It is faster than to copy the maps.
        weight = F.pad(self.weight, (width % 2, 0, height % 2, 0))
        return F.conv2d(maps, weight, self.bias, self.stride, (-(-height // 2), -(-width // 2)), groups=self.groups)

    def _room(self, size: int) -> int:
        """Return how many rows of padding a side of `size` positions needs, before and after it together."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        return max((-(-size // stride) - 1) * stride + kernel - size, 0)


class Norm(nn.BatchNorm2d):
    """A batch normalisation followed by an activation."""

    def __init__(self, channels: int, *, active: bool = True) -> None:
        super().__init__(channels, eps=EPSILON)
        self.act: nn.Module = nn.ReLU6(inplace=True) if active else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        activated: Tensor = self.act(super().forward(maps))
        return activated


class SeparableBlock(nn.Module):
    """A depthwise and a pointwise convolution, for the first stage."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = same_convolution(in_channels, in_channels, kernel, groups=in_channels)
        self.bn1 = Norm(in_channels)
        self.conv_pw = same_convolution(in_channels, out_channels, 1)
        self.bn2 = Norm(out_channels, active=False)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(maps))))
        return result


class InvertedResidual(nn.Module):
    """MBConv without squeeze-and-excitation: expand, depthwise convolution, project (Sandler et al., CVPR 2018, section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = EXPANSION * in_channels
        self.skips = stride == 1 and in_channels == out_channels
        self.conv_pw = same_convolution(in_channels, inner, 1)
        self.bn1 = Norm(inner)
        self.conv_dw = same_convolution(inner, inner, kernel, stride, groups=inner)
        self.bn2 = Norm(inner)
        self.conv_pwl = same_convolution(inner, out_channels, 1)
        self.bn3 = Norm(out_channels, active=False)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.bn1(self.conv_pw(maps))
        result = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(result))))
        return result + maps if self.skips else result


class Lite(nn.Module):
    """EfficientNet-Lite without its head. It returns the last map of each stride, 2 to 32, of pictures (B, 3, H, W)."""

    def __init__(self, width: float, depth: float) -> None:
        """Build the network. `width` multiplies channels, and `depth` blocks. The weights are random."""
        super().__init__()
        self.conv_stem = same_convolution(3, STEM, 3, stride=2)
        self.bn1 = Norm(STEM)
        for _ in range(2):
            nn.Conv2d(8, 8, 1)  # timm draws weights here for a layer that it discards, see _draw
        stages, channels = [], STEM
        for place, stage in enumerate(STAGES):
            scaled = 0 < place < len(STAGES) - 1  # the first and the last stage keep their one block
            made = _rounded(width * stage.channels)
            blocks: list[nn.Module] = []
            for block in range(math.ceil(depth * stage.blocks) if scaled else stage.blocks):
                first = block == 0
                blocks.append(
                    SeparableBlock(channels, made, stage.kernel)
                    if place == 0
                    else InvertedResidual(channels, made, stage.kernel, stage.stride if first else 1)
                )
                channels = made
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        following = [stage.stride for stage in STAGES[1:]] + [2]
        self.returned = [place for place, stride in enumerate(following) if stride > 1]  # stages whose maps are returned
        self.channels = tuple(_rounded(width * STAGES[place].channels) for place in self.returned)
        self._draw()

    def forward(self, normalised: Tensor) -> Features:
        maps, features = self.bn1(self.conv_stem(normalised)), []
        for place, stage in enumerate(self.blocks):
            maps = stage(maps)
            if place in self.returned:
                features.append(maps)
        return features

    def _draw(self) -> None:
        """Draw random weights by timm's rule and in its order, so that trained parts, drawn next, start with equal weights."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan))


class LiteEncoder(FrozenEncoder):
    """An EfficientNet-Lite: five maps with strides 2 to 32."""

    def __init__(self, network: Lite) -> None:
        super().__init__(network, mean=0.5, std=0.5)
        self.channels = network.channels
        self.strides = tuple(2 ** (place + 1) for place in range(len(network.channels)))
        self.maps = len(network.channels)

    def features(self, normalised: Tensor) -> Features:
        return list(self.run(normalised))

    def _folded(self, normalised: Tensor) -> nn.Module | None:
        return folded(self.network)  # without a comparison, because a normalisation follows each convolution


def efficientnet_lite(name: str, weights: Mapping[str, Tensor] | None) -> LiteEncoder:
    """Build tf_efficientnet_lite0 or tf_efficientnet_lite2.

    Its five maps have 16, 24, 40, 112 and 320 channels in lite0, and 16, 24, 48, 120 and 352 in lite2. Pictures may have any size. The
    weights were trained at 224 pixels (lite0) and 260 (lite2).

    `weights` is a classifier's state dict with the same tensors in the same order, under any names. Its head is ignored, and None leaves
    the weights random. Raises ValueError if a tensor's shape does not fit.
    """
    network = Lite(*MULTIPLIERS[name])
    if weights is not None:
        own = network.state_dict()
        tensors = [(name, tensor) for name, tensor in weights.items() if not name.endswith("num_batches_tracked")]
        wanted = [name for name in own if not name.endswith("num_batches_tracked")]
        for (name, tensor), target in zip(tensors, wanted, strict=False):
            if tensor.shape != own[target].shape:
                raise ValueError(f"encoder weights: {name} has shape {tuple(tensor.shape)}, {target} needs {tuple(own[target].shape)}")
            own[target] = tensor
        if len(tensors) < len(wanted):
            raise ValueError(f"encoder weights: {len(tensors)} tensors, but the encoder has {len(wanted)}")
        network.load_state_dict(own)
    return LiteEncoder(network)


def _rounded(channels: float) -> int:
    """Round a number of channels to a multiple of UNIT, but not down by more than a tenth, as in the code of MobileNetV2."""
    rounded = max(UNIT, int(channels + UNIT / 2) // UNIT * UNIT)
    return rounded + UNIT if rounded < 0.9 * channels else rounded
