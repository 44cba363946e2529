"""Pieces that the tables of several families share."""

import dataclasses

from .rules import Fill, Rule

# Path below a module of the official code -> path below ours.
CONV_BN = {"0": "conv", "1": "norm"}
STEM = {"0": "conv1.conv", "1": "conv1.norm", "3": "conv2.conv", "4": "conv2.norm"}
RESIDUAL_BLOCK = {
    **{f"conv{i}": f"conv{i}.conv" for i in (1, 2, 3)},
    **{f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)},
    "downsample.0": "shortcut.conv",
    "downsample.1": "shortcut.norm",
}
PYRAMID = {
    "scale0.0": "scales.0.norm",
    "scale0.2": "scales.0.conv",
    **{f"scale{i}.1": f"scales.{i}.norm" for i in range(1, 5)},
    **{f"scale{i}.3": f"scales.{i}.conv" for i in range(1, 5)},
    **{f"process{i}.0": f"process.{i - 1}.norm" for i in range(1, 5)},
    **{f"process{i}.2": f"process.{i - 1}.conv" for i in range(1, 5)},
    "scale_process.0": "process.norm",
    "scale_process.2": "process.conv",
    "compression.0": "compression.norm",
    "compression.2": "compression.conv",
    "shortcut.0": "shortcut.norm",
    "shortcut.2": "shortcut.conv",
}
HEAD = {"bn1": "norm", "conv1": "conv.conv", "bn2": "conv.norm", "conv2": "classify"}

# The same for mmsegmentation, whose ConvModule names its parts conv and bn in any order.
MM_CONV_BN = {"conv": "conv", "bn": "norm"}


def mm_modules(names: dict[str, str]) -> dict[str, str]:
    """Children table of ConvModules: their path -> path of our conv-and-norm block."""
    return {
        f"{theirs}.{part}": f"{ours}.{mine}"
        for theirs, ours in names.items()
        for part, mine in MM_CONV_BN.items()
    }


MM_RESIDUAL_BLOCK = {
    **mm_modules({"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "downsample": "shortcut"}),
    "downsample.0": "shortcut.conv",
    "downsample.1": "shortcut.norm",
}
MM_PYRAMID = mm_modules(
    {
        "scales.0": "scales.0",
        **{f"scales.{i}.1": f"scales.{i}" for i in range(1, 5)},
        **{f"processes.{i}": f"process.{i}" for i in range(4)},
        "processes": "process",
        "compression": "compression",
        "shortcut": "shortcut",
    }
)


def mm_exchanges(first: str, second: str) -> tuple[Rule, ...]:
    """Its exchanges between two branches; `first` and `second` are our stages that hold them."""
    return (
        Rule(r"backbone\.compression_1", f"{first}.compress", MM_CONV_BN),
        Rule(r"backbone\.compression_2", f"{second}.compress", MM_CONV_BN),
        Rule(r"backbone\.down_1", f"{first}.down.0", MM_CONV_BN),
        Rule(r"backbone\.down_2\.(\d)", rf"{second}.down.\1", MM_CONV_BN),
    )


# Its two-headed decoder of the dual-resolution networks.
MM_DUAL_HEAD = (
    *(
        Rule(
            rf"decode_head\.{head}",
            head,
            {"0.bn": "norm", "0.conv": "conv.conv", "1": "conv.norm"},
        )
        for head in ("head", "aux_head")
    ),
    Rule("decode_head", "", {"conv_seg": "head.classify", "aux_cls_seg": "aux_head.classify"}),
)
# Its plain head, and the list of auxiliary ones.
_FCN = {
    "conv_seg": "classify",
    **mm_modules({f"convs.{i}": f"convs.{i}" for i in range(2)}),
}
MM_FCN_HEADS = (
    Rule("decode_head", "head", _FCN),
    Rule(r"auxiliary_head\.(\d+)", r"aux_heads.\1", _FCN),
)
MM_DROPS = {r"data_preprocessor\..*": "input normalisation"}
MM_STEM_FILLS = {
    r"stem\.conv[12]\.conv\.bias": Fill(0.0, "mmsegmentation's stem has no biases"),
}


def bare_backbone(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules of its backbone, for files that hold nothing else and leave out that prefix."""
    prefix = r"backbone\."
    return tuple(
        dataclasses.replace(rule, parent=rule.parent.removeprefix(prefix))
        for rule in rules
        if rule.parent.startswith(prefix)
    )


# Classification networks: what follows the features, and what a segmentation network adds.
IMAGENET_KEYS = r"(linear|fc|classifier|last_layer|down5)\..*"
IMAGENET_DROPS = {IMAGENET_KEYS: "ImageNet classifier"}


def imagenet_fills(pattern: str) -> dict[str, Fill]:
    """Targets that match `pattern` stay as they are; old files do not count batches."""
    return {
        pattern: Fill(None, "not in ImageNet files"),
        r".*\.num_batches_tracked": Fill(0.0, "not counted by old files"),
    }
