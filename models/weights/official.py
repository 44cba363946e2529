"""Blocks as the official code of several families names them: path of theirs -> path of ours."""

from typing import Any

from .rules import Dialect, Fill, Rule, modules

CONV_BN = {"0": "conv", "1": "norm"}
NORM_CONV = {"0": "norm", "2": "conv"}  # with a ReLU between
STEM = {"0": "conv1.conv", "1": "conv1.norm", "3": "conv2.conv", "4": "conv2.norm"}
RESIDUAL_BLOCK = {
    **{f"conv{i}": f"conv{i}.conv" for i in (1, 2, 3)},
    **{f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)},
    **modules(CONV_BN, {"downsample": "shortcut"}),
}
PYRAMID = {
    **modules(NORM_CONV, {"scale0": "scales.0", "scale_process": "process"}),
    **modules(NORM_CONV, {f"process{i + 1}": f"process.{i}" for i in range(4)}),
    **modules(NORM_CONV, {name: name for name in ("compression", "shortcut")}),
    **modules({"1": "norm", "3": "conv"}, {f"scale{i}": f"scales.{i}" for i in range(1, 5)}),
}
HEAD = {"bn1": "norm", "conv1": "conv.conv", "bn2": "conv.norm", "conv2": "classify"}

IMAGENET_KEYS = r"(linear|fc|classifier|last_layer|down5)\..*"
IMAGENET_DROPS = {IMAGENET_KEYS: "ImageNet classifier"}


def imagenet(name: str, rules: tuple[Rule, ...], added: str, **more: Any) -> Dialect:
    """The dialect of a classification network of the same features.

    Args:
        added: regular expression of our keys that only the network for segmentation has; they stay
            as they are.
        more: other fields of `Dialect`; its `fills` come first.
    """
    fills = {
        **more.pop("fills", {}),
        added: Fill(None, "not in ImageNet files"),
        r".*\.num_batches_tracked": Fill(0.0, "not counted by old files"),
    }
    return Dialect(
        name, rules, fills=fills, **{"drops": IMAGENET_DROPS, "requires": IMAGENET_KEYS, **more}
    )


def dialects(family: str, rules: tuple[Rule, ...], added: str) -> tuple[Dialect, ...]:
    """Of the whole network, bare or inside its training wrapper, and of its ImageNet files."""
    losses = {r"(sem_loss|bd_loss|loss)\..*": "loss buffers of the training wrapper"}
    return (
        Dialect(f"official {family}", rules, prefix="model.", drops=losses),
        imagenet(f"{family} ImageNet", rules, added),
    )
