"""Segmentation heads."""

import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvBN, ConvBNReLU


class DroppedReLU(nn.Sequential):
    """ReLU, then dropout of whole channels while training; has no weights."""

    def __init__(self, rate: float) -> None:
        super().__init__(nn.ReLU(inplace=True), nn.Dropout2d(rate))

    def fuse(self) -> nn.ReLU:
        """The ReLU alone."""
        return nn.ReLU(inplace=True)


class SegHead(nn.Module):
    """BN, ReLU, 3x3 conv, BN, ReLU, 1x1 conv with bias: N, in_channels, h, w to logits.

    `dropout` is the share of channels that do not reach the last convolution while training.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_outputs: int,
        *,
        momentum: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, momentum=momentum)
        self.conv = ConvBN(in_channels, channels, 3, momentum=momentum)
        self.act = DroppedReLU(dropout) if dropout else nn.ReLU(inplace=True)
        self.classify = nn.Conv2d(channels, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.norm(x), inplace=True))
        return self.classify(self.act(x))


class FCNHead(nn.Module):
    """`depth` 3x3 convolutions with BN and ReLU, dropout of whole channels, 1x1 conv with bias."""

    def __init__(
        self, in_channels: int, channels: int, num_outputs: int, *, depth: int = 1
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(ConvBNReLU(channels if i else in_channels, channels, 3) for i in range(depth))
        )
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(channels, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.dropout(self.convs(x)))
