"""Folding a trained network into its deployed form."""

import copy

from torch import nn


def fuse(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode, folded and without its training-only submodules.

    Every submodule with a `fuse()` method is replaced by what that method returns. The source
    model is not touched. The result computes `forward` only; `forward_train` is gone with the
    auxiliary heads.
    """
    fused = copy.deepcopy(model).eval()
    for name in getattr(fused, "training_only", ()):
        delattr(fused, name)
    return _fold(fused)


def _fold(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, child.fuse() if hasattr(child, "fuse") else _fold(child))
    return module
