"""The checkpoints of both BiSeNets: mmsegmentation's, and torchvision's ResNet-18."""

from .common import (
    IMAGENET_DROPS,
    IMAGENET_KEYS,
    MM_CONV_BN,
    MM_DROPS,
    MM_FCN_HEADS,
    RESIDUAL_BLOCK,
    imagenet_fills,
    mm_modules,
)
from .rules import Dialect, Rule


def _resnet(theirs: str) -> tuple[Rule, ...]:
    prefix = rf"{theirs}\." if theirs else ""
    return (
        Rule(theirs, "context.backbone", {"conv1": "stem.conv", "bn1": "stem.norm"}),
        Rule(rf"{prefix}layer([1-4])\.(\d+)", r"context.backbone.stage\1.\2", RESIDUAL_BLOCK),
    )


_V1 = (
    *_resnet(r"backbone\.context_path\.backbone"),
    Rule(
        r"backbone\.context_path\.arm(16|32)",
        r"context.refine\1",
        mm_modules({"conv_layer": "conv", "atten_conv_layer.1": "attention"}),
    ),
    Rule(
        r"backbone\.context_path",
        "context",
        mm_modules({"conv_head16": "conv16", "conv_head32": "conv32", "gap_conv.1": "tail"}),
    ),
    Rule(
        r"backbone\.spatial_path",
        "spatial",
        mm_modules({f"layer{i + 1}": str(i) for i in range(4)}),
    ),
    Rule(r"backbone\.ffm", "fusion", mm_modules({"conv1": "conv", "conv_atten.0": "attention"})),
    *MM_FCN_HEADS,
)

_EXPANSION = mm_modules(
    {
        "conv1": "conv1",
        "conv2.0": "conv2",
        "shortcut.0.depthwise_conv": "shortcut.0",
        "shortcut.0.pointwise_conv": "shortcut.1",
    }
)
_STRIDED = _EXPANSION | mm_modules({"dwconv.0": "expand.0", "dwconv.1": "expand.1"})
_PLAIN = _EXPANSION | mm_modules({"dwconv.0": "expand"})
_V2 = (
    Rule(r"backbone\.detail\.detail_branch\.(\d)\.(\d)", r"detail.\1.\2", MM_CONV_BN),
    Rule(
        r"backbone\.semantic\.stage1",
        "stem",
        mm_modules(
            {"conv_first": "conv", "convs.0": "left.0", "convs.1": "left.1", "fuse_last": "merge"}
        ),
    ),
    *(
        rule
        for i in range(3)
        for rule in (
            Rule(rf"backbone\.semantic\.stage{i + 2}\.0", f"stages.{i}.0", _STRIDED),
            Rule(rf"backbone\.semantic\.stage{i + 2}\.([1-9]\d*)", rf"stages.{i}.\1", _PLAIN),
        )
    ),
    Rule(
        r"backbone\.semantic\.stage4_CEBlock",
        "embedding",
        {"gap.1": "norm", **mm_modules({"conv_gap": "conv1", "conv_last": "conv2"})},
    ),
    Rule(
        r"backbone\.bga",
        "aggregation",
        {
            **mm_modules(
                {
                    "detail_dwconv.0.depthwise_conv": "detail.0",
                    "detail_down.0": "detail_down.0",
                    "semantic_dwconv.0.depthwise_conv": "semantic.0",
                    "semantic_conv.0": "semantic_up",
                    "conv": "conv",
                }
            ),
            "detail_dwconv.0.pointwise_conv.conv": "detail.1",
            "semantic_dwconv.0.pointwise_conv.conv": "semantic.1",
        },
    ),
    *MM_FCN_HEADS,
)

BISENETV1 = (
    Dialect("mmsegmentation BiSeNetV1", _V1, drops=MM_DROPS),
    Dialect(
        "ResNet-18 ImageNet",
        _resnet(""),
        drops=IMAGENET_DROPS,
        fills=imagenet_fills(r"(?!context\.backbone\.).*"),
        requires=IMAGENET_KEYS,
    ),
    Dialect(  # its stem has three 3x3 convolutions in place of the 7x7 one
        "ResNet-18-v1c ImageNet",
        _resnet(""),
        drops={**IMAGENET_DROPS, r"stem\..*": "another stem"},
        fills=imagenet_fills(r"(?!context\.backbone\.stage).*"),
        requires=r"stem\..*",
    ),
)
BISENETV2 = (Dialect("mmsegmentation BiSeNetV2", _V2, drops=MM_DROPS),)
