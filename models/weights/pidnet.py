"""PIDNet's checkpoints: the official code's, bare or inside its training wrapper, and mmseg's."""

from .common import (
    CONV_BN,
    HEAD,
    IMAGENET_DROPS,
    IMAGENET_KEYS,
    MM_CONV_BN,
    MM_DROPS,
    MM_PYRAMID,
    MM_RESIDUAL_BLOCK,
    MM_STEM_FILLS,
    PYRAMID,
    RESIDUAL_BLOCK,
    STEM,
    bare_backbone,
    imagenet_fills,
    mm_modules,
)
from .rules import Dialect, Rule

_OFFICIAL = (
    Rule("conv1", "stem", STEM),
    Rule(r"layer([1-5])\.(\d+)", r"stage\1.\2", RESIDUAL_BLOCK),
    Rule(r"layer([34])_\.(\d+)", r"detail\1.\2", RESIDUAL_BLOCK),
    Rule(r"layer5_\.0", "detail5", RESIDUAL_BLOCK),
    Rule(r"layer([345])_d(?:\.0)?", r"boundary\1", RESIDUAL_BLOCK),
    Rule(r"compression([34])", r"compress\1", CONV_BN),
    Rule(
        r"pag([34])",
        r"guide\1",
        {
            "f_x.0": "embed_p.conv",
            "f_x.1": "embed_p.norm",
            "f_y.0": "embed_i.conv",
            "f_y.1": "embed_i.norm",
        },
    ),
    Rule(r"diff([34])", r"difference\1", CONV_BN),
    Rule("spp", "context", PYRAMID),
    Rule(
        "dfm",
        "merge",
        {
            "conv_p.0": "conv_p.conv",
            "conv_p.1": "conv_p.norm",
            "conv_i.0": "conv_i.conv",
            "conv_i.1": "conv_i.norm",
            "conv.0": "conv.norm",  # the full merge: norm, ReLU, convolution
            "conv.2": "conv.conv",
        },
    ),
    Rule("final_layer", "head", HEAD),
    Rule("seghead_p", "aux_head", HEAD),
    Rule("seghead_d", "boundary_head", HEAD),
)

_MMSEG = (
    Rule(r"backbone\.stem", "stem", mm_modules({"0": "conv1", "1": "conv2"})),
    Rule(r"backbone\.stem\.2\.(\d+)", r"stage1.\1", MM_RESIDUAL_BLOCK),
    Rule(r"backbone\.stem\.4\.(\d+)", r"stage2.\1", MM_RESIDUAL_BLOCK),
    *(
        Rule(rf"backbone\.i_branch_layers\.{i}\.(\d+)", rf"stage{i + 3}.\1", MM_RESIDUAL_BLOCK)
        for i in range(3)
    ),
    *(
        Rule(rf"backbone\.p_branch_layers\.{i}\.(\d+)", rf"detail{i + 3}.\1", MM_RESIDUAL_BLOCK)
        for i in range(2)
    ),
    Rule(r"backbone\.p_branch_layers\.2\.0", "detail5", MM_RESIDUAL_BLOCK),
    *(
        Rule(rf"backbone\.d_branch_layers\.{i}(?:\.0)?", f"boundary{i + 3}", MM_RESIDUAL_BLOCK)
        for i in range(3)
    ),
    *(
        rule
        for i in (1, 2)
        for rule in (
            Rule(rf"backbone\.compression_{i}", f"compress{i + 2}", MM_CONV_BN),
            Rule(rf"backbone\.diff_{i}", f"difference{i + 2}", MM_CONV_BN),
            Rule(
                rf"backbone\.pag_{i}",
                f"guide{i + 2}",
                mm_modules({"f_p": "embed_p", "f_i": "embed_i"}),
            ),
        )
    ),
    Rule(r"backbone\.spp", "context", MM_PYRAMID),
    Rule(
        r"backbone\.dfm",
        "merge",
        mm_modules({"f_p": "conv_p", "f_i": "conv_i", "conv": "conv"}),
    ),
    *(
        Rule(
            rf"decode_head\.{theirs}",
            ours,
            {"conv.bn": "norm", "conv.conv": "conv.conv", "norm": "conv.norm"},
        )
        for theirs, ours in (
            ("i_head", "head"),
            ("p_head", "aux_head"),
            ("d_head", "boundary_head"),
        )
    ),
    Rule(
        "decode_head",
        "",
        {
            "conv_seg": "head.classify",
            "p_cls_seg": "aux_head.classify",
            "d_cls_seg": "boundary_head.classify",
        },
    ),
)

# What the network for segmentation has beside the one for classification.
_ADDED = r"(context|guide\d|boundary\d|difference\d|merge|head|aux_head|boundary_head)\..*"

PIDNET = (
    Dialect("official PIDNet", _OFFICIAL),
    Dialect(
        "official PIDNet training",
        _OFFICIAL,
        prefix="model.",
        drops={r"(sem_loss|bd_loss)\..*": "loss buffers of the training wrapper"},
    ),
    Dialect(
        "PIDNet ImageNet",
        _OFFICIAL,
        drops=IMAGENET_DROPS,
        fills=imagenet_fills(_ADDED),
        requires=IMAGENET_KEYS,
    ),
    Dialect(
        "mmsegmentation PIDNet ImageNet",
        bare_backbone(_MMSEG),
        drops=IMAGENET_DROPS,
        fills=MM_STEM_FILLS | imagenet_fills(_ADDED),
        requires=r"i_branch_layers\..*",
    ),
    # Its auxiliary heads were trained on features before the ReLU; the main head is the same.
    Dialect("mmsegmentation PIDNet", _MMSEG, drops=MM_DROPS, fills=MM_STEM_FILLS),
)
