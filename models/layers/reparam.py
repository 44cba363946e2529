"""Folding a trained network into its deployed form."""

import copy

import torch
from torch import nn


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
