"""Folding a trained network into its deployed form."""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from .conv import ConvBN


def fuse(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode, folded and without its training-only submodules.

    Every submodule with a `fuse()` method is replaced by what that method returns. The source
    model is not touched, nor are the random generators. The result computes `forward` only;
    `forward_train` is gone with the auxiliary heads.
    """
    fused = copy.deepcopy(model).eval()
    for name in getattr(fused, "training_only", ()):
        delattr(fused, name)
    devices = {p.device for p in fused.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):  # new layers draw weights, which are then replaced
        return _fold(fused)


def _fold(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, child.fuse() if hasattr(child, "fuse") else _fold(child))
    return module


@torch.no_grad()
def merge_paths(
    paths: Iterable[Iterable[ConvBN]], identity: nn.BatchNorm2d | None = None
) -> nn.Conv2d:
    """The biased 3x3 convolution that computes the sum of `paths` and `identity` in eval mode.

    Exact at the borders too: only the first convolution of a path pads, and what its BatchNorm adds
    is the same at every position. Folded in float64, so that sums of paths are not rounded.

    Args:
        paths: chains that map the same input to the same shape. A chain starts with an ungrouped
            3x3 or 1x1 convolution, of any stride, and goes on with 1x1 convolutions of stride 1.
        identity: BatchNorm of the input itself, where stride and width do not change.
    """
    paths = [list(path) for path in paths]
    weight, bias = 0, 0
    for path in paths:
        first, *others = (copy.deepcopy(layer).double().fuse() for layer in path)
        kernel, shift = first.weight, first.bias
        for conv in others:
            outer = conv.weight.flatten(1)
            kernel = torch.einsum("om,mikl->oikl", outer, kernel)
            shift = outer @ shift + conv.bias
        weight = weight + F.pad(kernel, [1 - first.padding[0]] * 4)
        bias = bias + shift
    if identity is not None:
        scale = identity.weight.double() / (identity.running_var.double() + identity.eps).sqrt()
        weight[:, :, 1, 1] += scale.diag()
        bias += identity.bias.double() - identity.running_mean.double() * scale
    conv = paths[0][0].conv
    merged = nn.Conv2d(
        conv.in_channels, conv.out_channels, 3, conv.stride, 1, device=conv.weight.device
    ).to(conv.weight.dtype)
    merged.weight.copy_(weight)
    merged.bias.copy_(bias)
    return merged
