"""Resizing feature maps."""

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear resize of N, C, H, W to `size`; returns `x` itself where nothing would change."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def resize_like(x: Tensor, other: Tensor) -> Tensor:
    """Bilinear resize (half-pixel centres) of `x` to the grid of `other`."""
    return resize(x, other.shape[-2:])
