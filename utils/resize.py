"""Resizing images and logits."""

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear resize of N, C, H, W to `size` (height, width); `x` itself where that is its own."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
