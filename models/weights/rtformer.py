"""RTFormer's checkpoints: PaddleSeg's .pdparams."""

from . import official
from .rules import PADDLE_LEAVES, Dialect, Fill, Rule, modules

_NORM_CONV = official.NORM_CONV
_FEED_FORWARD = {name: name for name in ("norm", "conv1", "conv2")}
GROUPED_ATTENTION = {"k": "keys.conv.weight", "v": "values.weight", "norm": "keys.norm"}
BLOCK = {
    **modules({"0": "norm", "1": "conv"}, {"attn_shortcut_l": "low_shortcut"}),
    **modules(GROUPED_ATTENTION, {"attn_l": "low_attention"}),
    **modules(_FEED_FORWARD, {"mlp_l": "low_ffn", "mlp_h": "high_ffn"}),
    **modules(_NORM_CONV, {"compression": "low_to_high", "cross_kv": "cross_tokens"}),
    "attn_h.norm": "high_attention.norm",
    "down.0": "injection.norm",
    "down.2": "injection.conv1.conv",
    "down.3": "injection.conv1.norm",
    "down.5": "injection.conv2",
}
_NETWORK = (
    Rule("conv1", "stem", official.STEM),
    Rule(r"layer([123])\.(\d+)", r"stage\1.\2", official.RESIDUAL_BLOCK),
    Rule(r"layer3_\.(\d+)", r"detail3.\1", official.RESIDUAL_BLOCK),
    Rule("compression3", "low_to_high3", _NORM_CONV),
    Rule(r"layer([45])", r"block\1", BLOCK),
    Rule("spp", "context", official.PYRAMID),
    Rule("seghead", "head", official.HEAD),
    Rule("seghead_extra", "aux_head", official.HEAD),
)
COUNTERS = {r"(.*\.)?num_batches_tracked": Fill(0.0, "Paddle counts no batches")}

RTFORMER = (
    Dialect("PaddleSeg RTFormer", _NETWORK, PADDLE_LEAVES, fills=COUNTERS),
    official.imagenet(
        "RTFormer ImageNet",
        _NETWORK,
        r"(context|head|aux_head)\..*",
        leaves=PADDLE_LEAVES,
        fills=COUNTERS,
    ),
)
