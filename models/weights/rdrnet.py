"""RDRNet's checkpoints: the training form, and the official deployed form."""

from ..rdrnet import NORM
from . import mmseg
from .rules import Rule, modules


def _rules(block: dict[str, str], process: dict[str, str]) -> tuple[Rule, ...]:
    """`block` and `process` name what is inside a block and inside the pyramid's convolution."""
    return (
        Rule(r"stem\.(\d+)", r"stem.\1", block),
        Rule(r"semantic_branch_layers\.0\.(\d+)", r"stage4.low.\1", block),
        Rule(r"semantic_branch_layers\.1\.(\d+)", r"stage5.low.\1", block),
        Rule(r"semantic_branch_layers\.2\.(?:0\.)?(\d+)", r"low6.\1", mmseg.RESIDUAL_BLOCK),
        Rule(r"detail_branch_layers\.0\.(\d+)", r"stage4.high.\1", block),
        Rule(r"detail_branch_layers\.1\.(\d+)", r"stage5.high.\1", block),
        Rule(r"detail_branch_layers\.2\.(?:0\.)?(\d+)", r"high6.\1", mmseg.RESIDUAL_BLOCK),
        *mmseg.exchanges("stage4", "stage5"),
        Rule("spp", "context", mmseg.PYRAMID),
        Rule(r"spp\.processes", "context.process", {"norm": "norm", **process}),
        *mmseg.DUAL_HEAD,
    )


_DEPLOYED_FILLS = mmseg.one_path(
    r"(.*\.conv3x3|context\.process\.convs\.0)\.norm",
    r"(.*\.conv1x1\.[01]\.(conv|norm)|.*\.identity|context\.process\.convs\.1\.(conv|norm))",
    NORM["eps"],
)

_PATHS = {"path_3x3": "conv3x3", "path_1x1.conv1": "conv1x1.0", "path_1x1.conv2": "conv1x1.1"}
_PARALLEL = {"parallel1": "convs.0", "parallel2": "convs.1"}

RDRNET = (
    mmseg.whole(
        "RDRNet",
        _rules(
            {**modules(mmseg.CONV_BN, _PATHS), "path_residual": "identity"},
            modules(mmseg.CONV_BN, _PARALLEL),
        ),
    ),
    mmseg.whole(
        "deployed RDRNet",
        _rules(
            modules(mmseg.BIASED, {"reparam_3x3": "conv3x3"}),
            modules(mmseg.BIASED, {"reparam_parallel": "convs.0"}),
        ),
        fills=_DEPLOYED_FILLS,
    ),
)
