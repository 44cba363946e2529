"""DDRNet's checkpoints: the official code's, bare or inside a training wrapper, and mmseg's."""

from .common import (
    CONV_BN,
    HEAD,
    IMAGENET_DROPS,
    IMAGENET_KEYS,
    MM_DROPS,
    MM_DUAL_HEAD,
    MM_PYRAMID,
    MM_RESIDUAL_BLOCK,
    MM_STEM_FILLS,
    PYRAMID,
    RESIDUAL_BLOCK,
    STEM,
    bare_backbone,
    imagenet_fills,
    mm_exchanges,
    mm_modules,
)
from .rules import Dialect, Rule


def _stage(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A stage of both branches with its exchange; `theirs` is the number in the official names."""
    return (
        Rule(rf"layer{theirs}\.(\d+)", rf"{ours}.low.\1", RESIDUAL_BLOCK),
        Rule(rf"layer{theirs}_\.(\d+)", rf"{ours}.high.\1", RESIDUAL_BLOCK),
        Rule(f"compression{theirs}", f"{ours}.compress", CONV_BN),
        Rule(
            f"down{theirs}",
            f"{ours}.down",
            {"0": "0.conv", "1": "0.norm", "3": "1.conv", "4": "1.norm"},
        ),
    )


_OFFICIAL = (
    Rule("conv1", "stem", STEM),
    Rule(r"layer([12])\.(\d+)", r"stage\1.\2", RESIDUAL_BLOCK),
    *_stage("3", "stage3.0"),
    *_stage("3_1", "stage3.0"),  # DDRNet-39 exchanges twice in stage 3
    *_stage("3_2", "stage3.1"),
    *_stage("4", "stage4"),
    Rule(r"layer5\.0", "low5", RESIDUAL_BLOCK),
    Rule(r"layer5_\.0", "high5", RESIDUAL_BLOCK),
    Rule("spp", "context", PYRAMID),
    Rule("final_layer", "head", HEAD),
    Rule("seghead_extra", "aux_head", HEAD),
)


_MMSEG = (
    Rule(r"backbone\.stem", "stem", mm_modules({"0": "conv1", "1": "conv2"})),
    Rule(r"backbone\.stem\.2\.(\d+)", r"stage1.\1", MM_RESIDUAL_BLOCK),
    Rule(r"backbone\.stem\.4\.(\d+)", r"stage2.\1", MM_RESIDUAL_BLOCK),
    *(
        Rule(rf"backbone\.{theirs}\.{i}\.(\d+)", rf"{stage}.{ours}.\1", MM_RESIDUAL_BLOCK)
        for theirs, ours in (("context_branch_layers", "low"), ("spatial_branch_layers", "high"))
        for i, stage in enumerate(("stage3.0", "stage4"))
    ),
    Rule(r"backbone\.context_branch_layers\.2\.0", "low5", MM_RESIDUAL_BLOCK),
    Rule(r"backbone\.spatial_branch_layers\.2\.0", "high5", MM_RESIDUAL_BLOCK),
    *mm_exchanges("stage3.0", "stage4"),
    Rule(r"backbone\.spp", "context", MM_PYRAMID),
    *MM_DUAL_HEAD,
)

DDRNET = (
    Dialect("official DDRNet", _OFFICIAL),
    Dialect(
        "official DDRNet training",
        _OFFICIAL,
        prefix="model.",
        drops={r"loss\..*": "loss buffers of the training wrapper"},
    ),
    Dialect(
        "DDRNet ImageNet",
        _OFFICIAL,
        drops=IMAGENET_DROPS,
        fills=imagenet_fills(r"(context|head|aux_head)\..*"),
        requires=IMAGENET_KEYS,
    ),
    Dialect(
        "mmsegmentation DDRNet ImageNet",
        bare_backbone(_MMSEG),
        drops=IMAGENET_DROPS,
        fills=MM_STEM_FILLS | imagenet_fills(r"(context|head|aux_head)\..*"),
        requires=r"context_branch_layers\..*",
    ),
    Dialect("mmsegmentation DDRNet", _MMSEG, drops=MM_DROPS, fills=MM_STEM_FILLS),
)
