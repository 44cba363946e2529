"""The checkpoints of both BiSeNets: mmsegmentation's, and torchvision's ResNet-18."""

from . import mmseg, official
from .rules import Rule, modules

_RESNET_STEM = {"conv1": "stem.conv", "bn1": "stem.norm"}
_RESNET = (  # alone, or as the context path
    Rule("", "context.backbone", _RESNET_STEM),
    Rule(r"context_path\.backbone", "context.backbone", _RESNET_STEM),
    Rule(
        r"(?:context_path\.backbone\.)?layer([1-4])\.(\d+)",
        r"context.backbone.stage\1.\2",
        official.RESIDUAL_BLOCK,
    ),
)

_REFINE = modules(mmseg.CONV_BN, {"conv_layer": "conv", "atten_conv_layer.1": "attention"})
_CONTEXT = {"conv_head16": "conv16", "conv_head32": "conv32", "gap_conv.1": "tail"}
_SPATIAL = {f"layer{i + 1}": str(i) for i in range(4)}
_FUSION = {"conv1": "conv", "conv_atten.0": "attention"}
_V1 = (
    *_RESNET,
    Rule(r"context_path\.arm(16|32)", r"context.refine\1", _REFINE),
    Rule("context_path", "context", modules(mmseg.CONV_BN, _CONTEXT)),
    Rule("spatial_path", "spatial", modules(mmseg.CONV_BN, _SPATIAL)),
    Rule("ffm", "fusion", modules(mmseg.CONV_BN, _FUSION)),
    *mmseg.FCN_HEADS,
)

_STEM = {"conv_first": "conv", "convs.0": "left.0", "convs.1": "left.1", "fuse_last": "merge"}
_EXPANSION = {
    "conv1": "conv1",
    "conv2.0": "conv2",
    "shortcut.0.depthwise_conv": "shortcut.0",
    "shortcut.0.pointwise_conv": "shortcut.1",
}
_STRIDED = modules(mmseg.CONV_BN, {**_EXPANSION, "dwconv.0": "expand.0", "dwconv.1": "expand.1"})
_PLAIN = modules(mmseg.CONV_BN, {**_EXPANSION, "dwconv.0": "expand"})
_EMBEDDING = {
    "gap.1": "norm",
    **modules(mmseg.CONV_BN, {"conv_gap": "conv1", "conv_last": "conv2"}),
}
_AGGREGATION = {
    "detail_dwconv.0.depthwise_conv": "detail.0",
    "detail_down.0": "detail_down.0",
    "semantic_dwconv.0.depthwise_conv": "semantic.0",
    "semantic_conv.0": "semantic_up",
    "conv": "conv",
}
_POINTWISE = {
    "detail_dwconv.0.pointwise_conv.conv": "detail.1",
    "semantic_dwconv.0.pointwise_conv.conv": "semantic.1",
}
_V2 = (
    Rule(r"detail\.detail_branch\.(\d)\.(\d)", r"detail.\1.\2", mmseg.CONV_BN),
    Rule(r"semantic\.stage1", "stem", modules(mmseg.CONV_BN, _STEM)),
    Rule(r"semantic\.stage2\.0", "stages.0.0", _STRIDED),
    Rule(r"semantic\.stage3\.0", "stages.1.0", _STRIDED),
    Rule(r"semantic\.stage4\.0", "stages.2.0", _STRIDED),
    Rule(r"semantic\.stage2\.([1-9]\d*)", r"stages.0.\1", _PLAIN),
    Rule(r"semantic\.stage3\.([1-9]\d*)", r"stages.1.\1", _PLAIN),
    Rule(r"semantic\.stage4\.([1-9]\d*)", r"stages.2.\1", _PLAIN),
    Rule(r"semantic\.stage4_CEBlock", "embedding", _EMBEDDING),
    Rule("bga", "aggregation", modules(mmseg.CONV_BN, _AGGREGATION) | _POINTWISE),
    *mmseg.FCN_HEADS,
)

BISENETV1 = (
    mmseg.whole("mmsegmentation BiSeNetV1", _V1),
    official.imagenet("ResNet-18 ImageNet", _RESNET, r"(?!context\.backbone\.).*"),
    official.imagenet(  # its stem has three 3x3 convolutions in place of the 7x7 one
        "ResNet-18-v1c ImageNet",
        _RESNET,
        r"(?!context\.backbone\.stage).*",
        drops={**official.IMAGENET_DROPS, r"stem\..*": "another stem"},
        requires=r"stem\..*",
    ),
)
BISENETV2 = (mmseg.whole("mmsegmentation BiSeNetV2", _V2),)
