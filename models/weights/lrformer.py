"""LRFormer's checkpoints: the official code's (mmsegmentation names), whole or backbone only."""

from . import mmseg, official
from .rules import Dialect, Rule, modules

ATTENTION = {
    "q": "query",  # the decoder's is a 1x1 convolution
    "q.0": "query",
    "kv": "key_value",
    "kv.0": "key_value",
    "proj": "project",
    "norm": "norm",
}
BLOCK = {
    **modules(ATTENTION, {"attn": "attention"}),
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
REFINE = {str(level): f"{level}.conv" for level in range(4)}
_STEM = {
    **{f"conv1.{3 * i}": f"conv{i + 1}.conv" for i in range(3)},
    **{f"conv1.{3 * i + 1}": f"conv{i + 1}.norm" for i in range(3)},
    "conv1.9": "conv4",
    "norm": "norm",
}


def _backbone(ours: str) -> tuple[Rule, ...]:
    """The backbone's rules; its names of ours start with `ours`."""
    stages = (
        (
            Rule(f"patch_embed{i + 1}", f"{ours}embeds.{i}", {"proj": "conv", "norm": "norm"}),
            Rule(f"d_convs{i + 1}", f"{ours}stages.{i}.refine", REFINE),
            Rule(rf"block{i + 1}\.(\d+)", rf"{ours}stages.{i}.blocks.\1", BLOCK),
        )
        for i in range(4)
    )
    return (Rule("patch_embed1", f"{ours}embeds.0", _STEM), *sum(stages, ()))


def head_rules(ours: str) -> tuple[Rule, ...]:
    """The same for the decoder."""
    squeeze = modules(mmseg.CONV_BN, {name: name for name in ("squeeze1", "squeeze2")})
    return (
        Rule(r"decode_head\.fuse_block([12])", rf"{ours}block\1", BLOCK),
        Rule("decode_head", ours.removesuffix("."), {"conv_seg": "classify", **squeeze}),
    )


def _imagenet(rules: tuple[Rule, ...]) -> Dialect:
    return official.imagenet(
        "LRFormer ImageNet",
        rules,
        r"head\..*",
        drops={r"(head|fc)\..*": "ImageNet classifier"},
        requires=r"patch_embed1\..*",
    )


_WHOLE = _backbone("backbone.")
LRFORMER = (_imagenet(_WHOLE), mmseg.whole("LRFormer", _WHOLE + head_rules("head.")))
LRFORMER_BACKBONE = (
    _imagenet(_backbone("")),
    mmseg.whole(
        "LRFormer",
        _backbone(""),
        drops={**mmseg.DROPS, r"decode_head\..*": "not part of the backbone"},
    ),
)
