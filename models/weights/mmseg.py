"""Blocks as mmsegmentation names them for several families: path of theirs -> path of ours.

Its backbone's keys start with `backbone.`, but in files that hold the backbone alone.
"""

from typing import Any

from .official import imagenet
from .rules import Dialect, Fill, Rule, modules

CONV_BN = {"conv": "conv", "bn": "norm"}  # of a ConvModule, whatever its order
RESIDUAL_BLOCK = {
    **modules(CONV_BN, {f"conv{i}": f"conv{i}" for i in (1, 2, 3)}),
    **modules({**CONV_BN, "0": "conv", "1": "norm"}, {"downsample": "shortcut"}),
}
PYRAMID = modules(
    CONV_BN,
    {
        "scales.0": "scales.0",
        **{f"scales.{i}.1": f"scales.{i}" for i in range(1, 5)},
        **{f"processes.{i}": f"process.{i}" for i in range(4)},
        "processes": "process",
        "compression": "compression",
        "shortcut": "shortcut",
    },
)
STEM = (
    Rule("stem", "stem", modules(CONV_BN, {"0": "conv1", "1": "conv2"})),
    Rule(r"stem\.2\.(\d+)", r"stage1.\1", RESIDUAL_BLOCK),
    Rule(r"stem\.4\.(\d+)", r"stage2.\1", RESIDUAL_BLOCK),
)
BIASED = {"weight": "conv.weight", "bias": "norm.bias"}  # a deployed convolution
DROPS = {r"data_preprocessor\..*": "input normalisation"}


def exchanges(first: str, second: str) -> tuple[Rule, ...]:
    """Its exchanges between two branches; `first` and `second` are our stages that hold them."""
    return (
        Rule("compression_1", f"{first}.compress", CONV_BN),
        Rule("compression_2", f"{second}.compress", CONV_BN),
        Rule("down_1", f"{first}.down.0", CONV_BN),
        Rule(r"down_2\.(\d)", rf"{second}.down.\1", CONV_BN),
    )


# The two-headed decoder of the dual-resolution networks.
_DUAL = {"0.bn": "norm", "0.conv": "conv.conv", "1": "conv.norm"}
DUAL_HEAD = (
    Rule(r"decode_head\.head", "head", _DUAL),
    Rule(r"decode_head\.aux_head", "aux_head", _DUAL),
    Rule("decode_head", "", {"conv_seg": "head.classify", "aux_cls_seg": "aux_head.classify"}),
)
# The plain head, and the list of auxiliary ones.
_FCN = {"conv_seg": "classify", **modules(CONV_BN, {f"convs.{i}": f"convs.{i}" for i in range(2)})}
FCN_HEADS = (
    Rule("decode_head", "head", _FCN),
    Rule(r"auxiliary_head\.(\d+)", r"aux_heads.\1", _FCN),
)


def one_path(loaded: str, silent: str, eps: float) -> dict[str, Fill]:
    """What the deployed form of a block of several paths, one convolution, leaves out.

    The convolution is loaded as the first of the paths: its BatchNorm passes everything on and adds
    the bias, and the other paths give 0. Evaluated or fused, the network is the deployed one.

    Args:
        loaded: regular expression of our BatchNorms that pass on; of their tensors only the bias is
            stored.
        silent: regular expression of our convolutions and BatchNorms that give 0.
        eps: of the BatchNorms that pass on.
    """
    reason = "the deployed form has one path"
    return {
        rf"{loaded}\.weight": Fill(1.0, reason),
        rf"{loaded}\.running_mean": Fill(0.0, reason),
        rf"{loaded}\.running_var": Fill(1.0 - eps, reason),
        rf"{silent}\.(weight|bias|running_mean)": Fill(0.0, reason),
        rf"{silent}\.running_var": Fill(1.0, reason),
        rf"({loaded}|{silent})\.num_batches_tracked": Fill(0.0, reason),
    }


def whole(name: str, rules: tuple[Rule, ...], **more: Any) -> Dialect:
    """The dialect of a whole network; `more` are other fields of `Dialect`."""
    return Dialect(name, rules, prefix="backbone.", **{"drops": DROPS, **more})


def dialects(family: str, rules: tuple[Rule, ...], added: str, bare: str) -> tuple[Dialect, ...]:
    """Of a backbone with `STEM` from ImageNet, which has the keys `bare`, and of the network.

    added: as in `imagenet`.
    """
    name = f"mmsegmentation {family}"
    fills = {r"stem\.conv[12]\.conv\.bias": Fill(0.0, "mmsegmentation's stem has no biases")}
    return (
        imagenet(f"{name} ImageNet", rules, added, fills=fills, requires=bare),
        whole(name, rules, fills=fills),
    )
