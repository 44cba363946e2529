"""What the tests of several families do with a network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.benchmark import count_macs


def trained(module: nn.Module) -> nn.Module:
    """Eval mode with BatchNorms and biases that do something."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.3, 3)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias)
    return module.eval()


def multiply_adds(model: nn.Module, height: int = 1024, width: int = 2048) -> float:
    """10^9 multiply-adds of convolutions and products of one image."""
    return count_macs(model, (height, width)) / 1e9


def count(model: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in model.parameters())


def bilinear(x: Tensor, other: Tensor) -> Tensor:
    """`x` resized to the grid of `other`."""
    return F.interpolate(x, size=other.shape[-2:], mode="bilinear", align_corners=False)
