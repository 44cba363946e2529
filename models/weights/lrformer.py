"""LRFormer's checkpoints: the official code's (mmsegmentation names), whole or backbone only.

LRFormer+ has a decoder of mmdetection, ours that of the library transformers: what one stores as a
tensor of queries, keys and values, the other stores as three."""

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


_DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_FFN = {"ffn.layers.0.0": "fc1", "ffn.layers.1": "fc2"}
_PIXELS = {
    "mask_feature": "mask_projection",
    "level_encoding.weight": "level_embed",
    **modules(
        {"conv": "0", "gn": "1"},
        {
            **{f"input_convs.{i}": f"input_projections.{i}" for i in range(3)},
            "lateral_convs.0": "adapter_1",
            "output_convs.0": "layer_1",
        },
    ),
}
_PIXEL_LAYER = {
    **_FFN,
    **{f"self_attn.{name}": f"self_attn.{name}" for name in _DEFORMABLE},
    "norms.0": "self_attn_layer_norm",
    "norms.1": "final_layer_norm",
}
_ATTENTION = {name: name for name in ("in_proj_weight", "in_proj_bias", "out_proj")}
_QUERY_LAYER = {
    **_FFN,
    **modules(_ATTENTION, {f"{name}.attn": name for name in ("self_attn", "cross_attn")}),
    "norms.0": "cross_attn_layer_norm",
    "norms.1": "self_attn_layer_norm",
    "norms.2": "final_layer_norm",
}
_QUERIES = {
    "transformer_decoder.post_norm": "decoder.layernorm",
    "query_embed": "queries_embedder",
    "query_feat": "queries_features",
    "level_embed": "level_embed",
    **{f"mask_embed.{2 * i}": f"decoder.mask_predictor.mask_embedder.{i}.0" for i in range(3)},
}
_QUERY_HEAD = (
    Rule(
        r"decode_head\.pixel_decoder\.encoder\.layers\.(\d+)",
        r"head.pixel_decoder.encoder.layers.\1",
        _PIXEL_LAYER,
    ),
    Rule(r"decode_head\.pixel_decoder", "head.pixel_decoder", _PIXELS),
    Rule(
        r"decode_head\.transformer_decoder\.layers\.(\d+)",
        r"head.transformer_module.decoder.layers.\1",
        _QUERY_LAYER,
    ),
    Rule("decode_head", "head.transformer_module", _QUERIES),
    Rule("decode_head", "head", {"cls_embed": "classify"}),
)
_PACKED = {
    r"(.+\.self_attn)\.in_proj_(weight|bias)": tuple(rf"\1.{name}_proj.\2" for name in "qkv")
}

_WHOLE = _backbone("backbone.")
LRFORMER = (_imagenet(_WHOLE), mmseg.whole("LRFormer", _WHOLE + head_rules("head.")))
LRFORMER_PLUS = (
    _imagenet(_WHOLE),
    mmseg.whole("LRFormer+", _WHOLE + _QUERY_HEAD, splits=_PACKED),
)
LRFORMER_BACKBONE = (
    _imagenet(_backbone("")),
    mmseg.whole(
        "LRFormer",
        _backbone(""),
        drops={**mmseg.DROPS, r"decode_head\..*": "not part of the backbone"},
    ),
)
