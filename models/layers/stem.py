"""The stem shared by the dual-resolution families."""

import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvBN


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with BN and ReLU: N, 3, H, W to stride 4.

    `bias`: the published checkpoints carry convolution biases although BN follows.
    """

    def __init__(self, channels: int, *, bias: bool = True, momentum: float = 0.1) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, channels, 3, 2, bias=bias, momentum=momentum)
        self.conv2 = ConvBN(channels, channels, 3, 2, bias=bias, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x), inplace=True)
        return F.relu(self.conv2(x), inplace=True)
