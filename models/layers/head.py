"""Segmentation heads."""

import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvBN, ConvBNReLU


class SegHead(nn.Module):
    """BN, ReLU, 3x3 conv, BN, ReLU, 1x1 conv with bias: N, in_channels, h, w to logits."""

    def __init__(
        self, in_channels: int, channels: int, num_outputs: int, *, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, momentum=momentum)
        self.conv = ConvBN(in_channels, channels, 3, momentum=momentum)
        self.classify = nn.Conv2d(channels, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.norm(x), inplace=True))
        return self.classify(F.relu(x, inplace=True))


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
