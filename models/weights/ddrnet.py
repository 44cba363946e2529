"""DDRNet's checkpoints: the official code's, bare or inside a training wrapper, and mmseg's."""

from . import mmseg, official
from .rules import Rule


def _stage(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A stage of both branches with its exchange; `theirs` is the number in the official names."""
    down = {"0": "0.conv", "1": "0.norm", "3": "1.conv", "4": "1.norm"}
    return (
        Rule(rf"layer{theirs}\.(\d+)", rf"{ours}.low.\1", official.RESIDUAL_BLOCK),
        Rule(rf"layer{theirs}_\.(\d+)", rf"{ours}.high.\1", official.RESIDUAL_BLOCK),
        Rule(f"compression{theirs}", f"{ours}.compress", official.CONV_BN),
        Rule(f"down{theirs}", f"{ours}.down", down),
    )


_OFFICIAL = (
    Rule("conv1", "stem", official.STEM),
    Rule(r"layer([12])\.(\d+)", r"stage\1.\2", official.RESIDUAL_BLOCK),
    *_stage("3", "stage3.0"),
    *_stage("3_1", "stage3.0"),  # DDRNet-39 exchanges twice in stage 3
    *_stage("3_2", "stage3.1"),
    *_stage("4", "stage4"),
    Rule(r"layer5\.0", "low5", official.RESIDUAL_BLOCK),
    Rule(r"layer5_\.0", "high5", official.RESIDUAL_BLOCK),
    Rule("spp", "context", official.PYRAMID),
    Rule("final_layer", "head", official.HEAD),
    Rule("seghead_extra", "aux_head", official.HEAD),
)

_MMSEG = (
    *mmseg.STEM,
    Rule(r"context_branch_layers\.0\.(\d+)", r"stage3.0.low.\1", mmseg.RESIDUAL_BLOCK),
    Rule(r"context_branch_layers\.1\.(\d+)", r"stage4.low.\1", mmseg.RESIDUAL_BLOCK),
    Rule(r"context_branch_layers\.2\.0", "low5", mmseg.RESIDUAL_BLOCK),
    Rule(r"spatial_branch_layers\.0\.(\d+)", r"stage3.0.high.\1", mmseg.RESIDUAL_BLOCK),
    Rule(r"spatial_branch_layers\.1\.(\d+)", r"stage4.high.\1", mmseg.RESIDUAL_BLOCK),
    Rule(r"spatial_branch_layers\.2\.0", "high5", mmseg.RESIDUAL_BLOCK),
    *mmseg.exchanges("stage3.0", "stage4"),
    Rule("spp", "context", mmseg.PYRAMID),
    *mmseg.DUAL_HEAD,
)

_ADDED = r"(context|head|aux_head)\..*"  # what ImageNet files do not have

DDRNET = (
    *official.dialects("DDRNet", _OFFICIAL, _ADDED),
    *mmseg.dialects("DDRNet", _MMSEG, _ADDED, bare=r"context_branch_layers\..*"),
)
