"""RTFormer's checkpoints: PaddleSeg's .pdparams."""

from .common import (
    HEAD,
    IMAGENET_DROPS,
    IMAGENET_KEYS,
    PYRAMID,
    RESIDUAL_BLOCK,
    STEM,
)
from .rules import PADDLE_LEAVES, Dialect, Fill, Rule

_GROUPED_ATTENTION = {"k": "keys.conv.weight", "v": "values.weight", "norm": "keys.norm"}
_FEED_FORWARD = {name: name for name in ("norm", "conv1", "conv2")}
_BLOCK = {
    "attn_shortcut_l.0": "low_shortcut.norm",
    "attn_shortcut_l.1": "low_shortcut.conv",
    **{f"attn_l.{k}": f"low_attention.{v}" for k, v in _GROUPED_ATTENTION.items()},
    **{f"mlp_l.{k}": f"low_ffn.{v}" for k, v in _FEED_FORWARD.items()},
    "compression.0": "low_to_high.norm",
    "compression.2": "low_to_high.conv",
    "attn_h.norm": "high_attention.norm",
    "cross_kv.0": "cross_tokens.norm",
    "cross_kv.2": "cross_tokens.conv",
    **{f"mlp_h.{k}": f"high_ffn.{v}" for k, v in _FEED_FORWARD.items()},
    "down.0": "injection.norm",
    "down.2": "injection.conv1.conv",
    "down.3": "injection.conv1.norm",
    "down.5": "injection.conv2",
}


_COUNTERS = {r"(.*\.)?num_batches_tracked": Fill(0.0, "Paddle counts no batches")}


def _paddle(*rules: Rule) -> tuple[Dialect, ...]:
    return (Dialect("PaddleSeg RTFormer", rules, PADDLE_LEAVES, fills=_COUNTERS),)


_NETWORK = (
    Rule("conv1", "stem", STEM),
    Rule(r"layer([123])\.(\d+)", r"stage\1.\2", RESIDUAL_BLOCK),
    Rule(r"layer3_\.(\d+)", r"detail3.\1", RESIDUAL_BLOCK),
    Rule("compression3", "low_to_high3", {"0": "norm", "2": "conv"}),
    Rule(r"layer([45])", r"block\1", _BLOCK),
    Rule("spp", "context", PYRAMID),
    Rule("seghead", "head", HEAD),
    Rule("seghead_extra", "aux_head", HEAD),
)
RTFORMER = (
    *_paddle(*_NETWORK),
    Dialect(
        "RTFormer ImageNet",
        _NETWORK,
        PADDLE_LEAVES,
        drops=IMAGENET_DROPS,
        fills=_COUNTERS | {r"(context|head|aux_head)\..*": Fill(None, "not in ImageNet files")},
        requires=IMAGENET_KEYS,
    ),
)

# The blocks alone, as their parity data names them.
RTFORMER_BLOCK = _paddle(Rule("", "", _BLOCK))
GROUPED_ATTENTION = _paddle(Rule("", "", _GROUPED_ATTENTION))
CROSS_ATTENTION = _paddle(Rule("", "", {"norm": "norm"}))
