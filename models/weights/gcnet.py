"""GCNet's checkpoints: the training form, and the official deployed form."""

from ..gcnet import EPS
from . import mmseg
from .rules import PASSES_ON, Fill, Rule, modules

_PATHS = {
    f"path_{theirs}.conv{i + 1}": f"paths.{ours}.{i}"
    for ours, theirs in enumerate(("3x3_1", "3x3_2", "1x1"))
    for i in range(2)
}
BLOCK = {**modules(mmseg.CONV_BN, _PATHS), "path_residual": "identity"}
_DEPLOYED_BLOCK = modules(mmseg.BIASED, {"reparam_3x3": "paths.0.0"})
_HEAD = {"0": "norm", "2.conv": "conv.conv", "2.bn": "conv.norm"}


def _rules(block: dict[str, str]) -> tuple[Rule, ...]:
    """`block` names what is inside a block."""
    return (
        Rule(r"stem\.([01])", r"stem.\1", mmseg.CONV_BN),
        Rule(r"stem\.(\d+)", r"stem.\1", block),
        Rule(r"semantic_branch_layers\.0\.(\d+)", r"stage4.low.\1", block),
        Rule(r"semantic_branch_layers\.1\.(\d+)", r"stage5.low.\1", block),
        Rule(r"semantic_branch_layers\.2\.(\d+)", r"low6.\1", block),
        Rule(r"detail_branch_layers\.0\.(\d+)", r"stage4.high.\1", block),
        Rule(r"detail_branch_layers\.1\.(\d+)", r"stage5.high.\1", block),
        Rule(r"detail_branch_layers\.2\.(\d+)", r"high6.\1", block),
        *mmseg.exchanges("stage4", "stage5"),
        Rule("spp", "context", mmseg.PYRAMID),
        Rule(r"decode_head\.head", "head", _HEAD),
        Rule(r"decode_head\.aux_head_c4", "aux_head", _HEAD),
        Rule(
            "decode_head", "", {"conv_seg": "head.classify", "aux_cls_seg_c4": "aux_head.classify"}
        ),
    )


# The 1x1 convolution behind the one that is loaded passes on, and its BatchNorm adds nothing.
_REASON = "the deployed form has one path"
_DEPLOYED_FILLS = {
    r".*\.paths\.0\.1\.conv\.weight": Fill(PASSES_ON, _REASON),
    r".*\.paths\.0\.1\.norm\.bias": Fill(0.0, _REASON),
    **mmseg.one_path(
        r".*\.paths\.0\.[01]\.norm", r"(.*\.paths\.[12]\.[01]\.(conv|norm)|.*\.identity)", EPS
    ),
}

GCNET = (
    mmseg.whole("GCNet", _rules(BLOCK)),
    mmseg.whole("deployed GCNet", _rules(_DEPLOYED_BLOCK), fills=_DEPLOYED_FILLS),
)
