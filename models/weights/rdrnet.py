"""RDRNet's checkpoints: the training form, and the official deployed form."""

from ..rdrnet import NORM
from .common import (
    MM_DROPS,
    MM_DUAL_HEAD,
    MM_PYRAMID,
    MM_RESIDUAL_BLOCK,
    mm_exchanges,
    mm_modules,
)
from .rules import Dialect, Fill, Rule

_BRANCHES = (("semantic_branch_layers", "low"), ("detail_branch_layers", "high"))


def _rules(block: dict[str, str], process: dict[str, str]) -> tuple[Rule, ...]:
    """`block` and `process` name what is inside a block and inside the pyramid's convolution."""
    return (
        Rule(r"backbone\.stem\.(\d+)", r"stem.\1", block),
        *(
            Rule(rf"backbone\.{theirs}\.{i}\.(\d+)", rf"stage{i + 4}.{ours}.\1", block)
            for theirs, ours in _BRANCHES
            for i in range(2)
        ),
        *(
            Rule(rf"backbone\.{theirs}\.2\.(?:0\.)?(\d+)", rf"{ours}6.\1", MM_RESIDUAL_BLOCK)
            for theirs, ours in _BRANCHES
        ),
        *mm_exchanges("stage4", "stage5"),
        Rule(r"backbone\.spp", "context", MM_PYRAMID),
        Rule(r"backbone\.spp\.processes", "context.process", {"norm": "norm", **process}),
        *MM_DUAL_HEAD,
    )


_PATHS = mm_modules(
    {"path_3x3": "conv3x3", "path_1x1.conv1": "conv1x1.0", "path_1x1.conv2": "conv1x1.1"}
)

# A deployed convolution is loaded as the 3x3 path: its BatchNorm passes everything on and adds the
# bias, and the other paths give 0. Evaluated or fused, the network is the deployed one.
_REASON = "the deployed form has one path"
_LOADED = r"(.*\.conv3x3|context\.process\.convs\.0)\.norm"
_SILENT = r"(.*\.conv1x1\.[01]\.(conv|norm)|.*\.identity|context\.process\.convs\.1\.(conv|norm))"
_DEPLOYED_FILLS = {
    rf"{_LOADED}\.weight": Fill(1.0, _REASON),
    rf"{_LOADED}\.running_mean": Fill(0.0, _REASON),
    rf"{_LOADED}\.running_var": Fill(1.0 - NORM["eps"], _REASON),
    rf"{_SILENT}\.(weight|bias|running_mean)": Fill(0.0, _REASON),
    rf"{_SILENT}\.running_var": Fill(1.0, _REASON),
    rf"({_LOADED}|{_SILENT})\.num_batches_tracked": Fill(0.0, _REASON),
}

RDRNET = (
    Dialect(
        "RDRNet",
        _rules(
            {**_PATHS, "path_residual": "identity"},
            mm_modules({"parallel1": "convs.0", "parallel2": "convs.1"}),
        ),
        drops=MM_DROPS,
    ),
    Dialect(
        "deployed RDRNet",
        _rules(
            {
                "reparam_3x3.weight": "conv3x3.conv.weight",
                "reparam_3x3.bias": "conv3x3.norm.bias",
            },
            {
                "reparam_parallel.weight": "convs.0.conv.weight",
                "reparam_parallel.bias": "convs.0.norm.bias",
            },
        ),
        drops=MM_DROPS,
        fills=_DEPLOYED_FILLS,
    ),
)
