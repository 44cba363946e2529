"""Checkpoints of RTLinearFormer's earlier shape, whose options name only what differed from it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Defaults of checkpoints that were written before `fusion` became an option.
EARLIER = {
    "feed_forward": "inverted",
    "expansion": 2.0,
    "scales": (3, 5),
    "low_to_high": (True, True),
    "residual_relu": False,
    "context_norm": "front",
    "fusion": "cat",
}


def is_earlier(tensors: Mapping[str, Tensor]) -> bool:
    """Whether weights are of an RTLinearFormer whose head reads both branches side by side."""
    head, high = (tensors.get(f"{name}.conv.weight") for name in ("head.0", "low_to_high3"))
    return head is not None and high is not None and head.shape[1:2] == (2 * len(high),)


def complete_options(options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of a checkpoint, with the defaults of its time where they were others."""
    earlier = "fusion" not in options and is_earlier(tensors)
    return {**(EARLIER if earlier else {}), **options}
