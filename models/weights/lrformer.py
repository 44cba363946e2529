"""LRFormer's checkpoints: the official code's (mmsegmentation names), whole or backbone only."""

from .common import MM_DROPS, mm_modules
from .rules import Dialect, Fill, Rule

ATTENTION = {
    "q": "query",  # the decoder's is a 1x1 convolution
    "q.0": "query",
    "kv": "key_value",
    "kv.0": "key_value",
    "proj": "project",
    "norm": "norm",
}
BLOCK = {
    **{f"attn.{theirs}": f"attention.{ours}" for theirs, ours in ATTENTION.items()},
    "pre_norm": "pre_norm",
    "cpe": "position.conv",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "ffn.expand",
    "mlp.conv": "ffn.depthwise.conv",
    "mlp.fc2": "ffn.reduce",
    "layer_scale_1": "scale1",
    "layer_scale_2": "scale2",
}
_STEM = {
    "conv1.0": "conv1.conv",
    "conv1.1": "conv1.norm",
    "conv1.3": "conv2.conv",
    "conv1.4": "conv2.norm",
    "conv1.6": "conv3.conv",
    "conv1.7": "conv3.norm",
    "conv1.9": "conv4",
    "norm": "norm",
}


def _backbone(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of the backbone below `theirs` (regular expression) to the one below `ours`."""
    return (
        Rule(rf"{theirs}patch_embed1", f"{ours}embeds.0", _STEM),
        *(
            rule
            for i in range(4)
            for rule in (
                Rule(
                    rf"{theirs}patch_embed{i + 1}",
                    f"{ours}embeds.{i}",
                    {"proj": "conv", "norm": "norm"},
                ),
                Rule(
                    rf"{theirs}d_convs{i + 1}",
                    f"{ours}stages.{i}.refine",
                    {str(level): f"{level}.conv" for level in range(4)},
                ),
                Rule(rf"{theirs}block{i + 1}\.(\d+)", rf"{ours}stages.{i}.blocks.\1", BLOCK),
            )
        ),
    )


def head_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The same for the decoder."""
    return (
        Rule(rf"{theirs}fuse_block([12])", rf"{ours}block\1", BLOCK),
        Rule(
            theirs.removesuffix(r"\."),
            ours.removesuffix("."),
            {
                "conv_seg": "classify",
                **mm_modules({"squeeze1": "squeeze1", "squeeze2": "squeeze2"}),
            },
        ),
    )


_IMAGENET = {r"(head|fc)\..*": "ImageNet classifier"}
LRFORMER = (
    Dialect(
        "LRFormer",
        (*_backbone(r"backbone\.", "backbone."), *head_rules(r"decode_head\.", "head.")),
        drops=MM_DROPS,
    ),
    Dialect(
        "LRFormer ImageNet",
        _backbone("", "backbone."),
        drops=_IMAGENET,
        fills={r"head\..*": Fill(None, "not in ImageNet files")},
        requires=r"patch_embed1\..*",
    ),
)
LRFORMER_BACKBONE = (
    Dialect(
        "LRFormer",
        _backbone(r"backbone\.", ""),
        drops={**MM_DROPS, r"decode_head\..*": "not part of the backbone"},
    ),
    Dialect("LRFormer ImageNet", _backbone("", ""), drops=_IMAGENET, requires=r"patch_embed1\..*"),
)
LRHEAD = (Dialect("LRFormer", head_rules(r"decode_head\.", "")),)
