"""Residual blocks. `norm` names the eps and momentum of their BatchNorms."""

import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvBN


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; `last_act` False leaves out the final ReLU."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        last_act: bool = True,
        **norm: float,
    ) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_channels, channels, 3, stride, **norm)
        self.conv2 = ConvBN(channels, channels, 3, **norm)
        self.shortcut = make_shortcut(in_channels, channels, stride, **norm)
        self.last_act = last_act

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x), inplace=True))
        y += self.shortcut(x)
        return F.relu(y, inplace=True) if self.last_act else y


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 (twice the width) with a shortcut; by default without the final ReLU."""

    expansion = 2

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        last_act: bool = False,
        **norm: float,
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = ConvBN(in_channels, channels, 1, **norm)
        self.conv2 = ConvBN(channels, channels, 3, stride, **norm)
        self.conv3 = ConvBN(channels, out_channels, 1, **norm)
        self.shortcut = make_shortcut(in_channels, out_channels, stride, **norm)
        self.last_act = last_act

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x), inplace=True)
        y = self.conv3(F.relu(self.conv2(y), inplace=True))
        y += self.shortcut(x)
        return F.relu(y, inplace=True) if self.last_act else y


def make_shortcut(in_channels: int, out_channels: int, stride: int, **norm: float) -> nn.Module:
    """Identity, or a 1x1 projection where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvBN(in_channels, out_channels, 1, stride, **norm)


def basic_stage(
    in_channels: int,
    channels: int,
    depth: int,
    stride: int = 1,
    *,
    last_act: bool = False,
    **norm: float,
) -> nn.Sequential:
    """`depth` BasicBlocks; of two or more, the last has no final ReLU unless `last_act`."""
    return nn.Sequential(
        *(
            BasicBlock(
                in_channels if i == 0 else channels,
                channels,
                stride if i == 0 else 1,
                last_act=last_act or i == 0 or i < depth - 1,
                **norm,
            )
            for i in range(depth)
        )
    )
