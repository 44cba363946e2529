"""PIDNet's checkpoints: the official code's, bare or inside its training wrapper, and mmseg's."""

from . import mmseg, official
from .rules import Rule, modules

_OFFICIAL = (
    Rule("conv1", "stem", official.STEM),
    Rule(r"layer([1-5])\.(\d+)", r"stage\1.\2", official.RESIDUAL_BLOCK),
    Rule(r"layer([34])_\.(\d+)", r"detail\1.\2", official.RESIDUAL_BLOCK),
    Rule(r"layer5_\.0", "detail5", official.RESIDUAL_BLOCK),
    Rule(r"layer([345])_d(?:\.0)?", r"boundary\1", official.RESIDUAL_BLOCK),
    Rule(r"compression([34])", r"compress\1", official.CONV_BN),
    Rule(r"pag([34])", r"guide\1", modules(official.CONV_BN, {"f_x": "embed_p", "f_y": "embed_i"})),
    Rule(r"diff([34])", r"difference\1", official.CONV_BN),
    Rule("spp", "context", official.PYRAMID),
    Rule(r"dfm\.conv_([pi])", r"merge.conv_\1", official.CONV_BN),
    Rule(r"dfm\.conv", "merge.conv", official.NORM_CONV),
    Rule("final_layer", "head", official.HEAD),
    Rule("seghead_p", "aux_head", official.HEAD),
    Rule("seghead_d", "boundary_head", official.HEAD),
)

_GUIDE = modules(mmseg.CONV_BN, {"f_p": "embed_p", "f_i": "embed_i"})
_MERGE = modules(mmseg.CONV_BN, {"f_p": "conv_p", "f_i": "conv_i", "conv": "conv"})
_HEAD = {"conv.bn": "norm", "conv.conv": "conv.conv", "norm": "conv.norm"}
_CLASSIFIERS = {"conv_seg": "head", "p_cls_seg": "aux_head", "d_cls_seg": "boundary_head"}
_MMSEG = (
    *mmseg.STEM,
    Rule(r"i_branch_layers\.0\.(\d+)", r"stage3.\1", mmseg.RESIDUAL_BLOCK),
    Rule(r"i_branch_layers\.1\.(\d+)", r"stage4.\1", mmseg.RESIDUAL_BLOCK),
    Rule(r"i_branch_layers\.2\.(\d+)", r"stage5.\1", mmseg.RESIDUAL_BLOCK),
    Rule(r"p_branch_layers\.0\.(\d+)", r"detail3.\1", mmseg.RESIDUAL_BLOCK),
    Rule(r"p_branch_layers\.1\.(\d+)", r"detail4.\1", mmseg.RESIDUAL_BLOCK),
    Rule(r"p_branch_layers\.2\.0", "detail5", mmseg.RESIDUAL_BLOCK),
    Rule(r"d_branch_layers\.0(?:\.0)?", "boundary3", mmseg.RESIDUAL_BLOCK),
    Rule(r"d_branch_layers\.1(?:\.0)?", "boundary4", mmseg.RESIDUAL_BLOCK),
    Rule(r"d_branch_layers\.2(?:\.0)?", "boundary5", mmseg.RESIDUAL_BLOCK),
    Rule("compression_1", "compress3", mmseg.CONV_BN),
    Rule("compression_2", "compress4", mmseg.CONV_BN),
    Rule("diff_1", "difference3", mmseg.CONV_BN),
    Rule("diff_2", "difference4", mmseg.CONV_BN),
    Rule("pag_1", "guide3", _GUIDE),
    Rule("pag_2", "guide4", _GUIDE),
    Rule("spp", "context", mmseg.PYRAMID),
    Rule("dfm", "merge", _MERGE),
    Rule(r"decode_head\.i_head", "head", _HEAD),
    Rule(r"decode_head\.p_head", "aux_head", _HEAD),
    Rule(r"decode_head\.d_head", "boundary_head", _HEAD),
    Rule("decode_head", "", {k: f"{v}.classify" for k, v in _CLASSIFIERS.items()}),
)

# What the network for segmentation has beside the one for classification.
_ADDED = r"(context|guide\d|boundary\d|difference\d|merge|head|aux_head|boundary_head)\..*"

# Of mmsegmentation's, the auxiliary heads were trained on features before the ReLU; the main head
# is the same.
PIDNET = (
    *official.dialects("PIDNet", _OFFICIAL, _ADDED),
    *mmseg.dialects("PIDNet", _MMSEG, _ADDED, bare=r"i_branch_layers\..*"),
)
