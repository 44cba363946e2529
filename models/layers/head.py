"""Segmentation head shared by the dual-resolution families."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.conv import ConvBN


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
