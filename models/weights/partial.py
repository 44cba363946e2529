"""A start from another family's weights, for the parts that both have: RTLinearFormer's skeleton
is RTFormer's. Never without being asked for: what does not come must be named as reset."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..registry import build_model
from ..rtlinearformer import RTLinearFormer
from .convert import rename_for

MARK = "block4.cross_tokens.conv.weight"  # of RTFormer alone, in every file of it
COUNTER = "num_batches_tracked"


class PartialStart(NamedTuple):
    """What of an RTFormer file goes into an RTLinearFormer.

    tensors: under the model's names.
    ignored: key of the file -> why it is left.
    report: which parts came and which did not.
    """

    tensors: dict[str, Tensor]
    ignored: dict[str, str]
    report: str


def start_from_rtformer(
    model: nn.Module, state: Mapping[str, Tensor], reset: Sequence[str], source: str
) -> PartialStart | None:
    """The parts of `state` that fit `model`; None unless it is RTFormer's and not the model's.

    A part is a submodule of the model: it comes whole, where all of its tensors agree in name and
    shape, or not at all. The biases of the stem, which RTLinearFormer has not, go into the means
    of the norms behind them: the same function.

    Args:
        reset: submodules that keep the model's values.
        source: what error texts call `state`.

    Raises:
        ValueError: a part does not fit and is not in `reset`, or none fits.
    """
    if not isinstance(model, RTLinearFormer):
        return None
    with torch.device("meta"):
        theirs = build_model("rtformer_slim", model.num_classes)
    renaming = rename_for(theirs, state)
    if MARK not in renaming.sources:
        return None
    tensors = {target: renaming.tensor(target, state) for target in renaming.sources}
    _fold_biases(tensors)
    own = model.state_dict()
    parts = list(dict.fromkeys(key.partition(".")[0] for key in own))
    reset = (reset,) if isinstance(reset, str) else tuple(reset)
    fitting = [part for part in parts if _fits(part, own, tensors)]
    name = f"RTFormer weights ({renaming.dialect.name} names)"
    if not fitting:
        raise InputError(
            f"{source} holds {name} of other widths than {model.architecture}: no part of it fits"
        )
    if missing := [part for part in parts if part not in (*fitting, *reset)]:
        named = tuple(dict.fromkeys((*reset, *missing)))
        raise InputError(
            f"{source} holds {name}; of {model.architecture} they fill {', '.join(fitting)}. To "
            f'start from these, with the others at random, set MODEL.RESET "{named!r}"'
        )
    came = [part for part in fitting if part not in reset]
    chosen = {k: v for k, v in tensors.items() if k.partition(".")[0] in fitting and k in own}
    counted = {k: own[k] for k in own if k.endswith(COUNTER) and k.partition(".")[0] in fitting}
    used = {renaming.sources[target] for target in tensors if target in chosen}
    used |= {renaming.sources.get(f"stem.conv{i}.conv.bias") for i in (1, 2)}
    left = dict.fromkeys((key for key in state if key not in used), "RTFormer's own")
    return PartialStart(
        {key: torch.zeros_like(value) for key, value in counted.items()} | chosen,
        left | renaming.dropped,
        f"partial start from {name}: {', '.join(came) or 'nothing'} came, "
        f"{', '.join(part for part in parts if part not in came)} did not",
    )


def _fold_biases(tensors: dict[str, Tensor]) -> None:
    for index in (1, 2):
        bias, mean = (f"stem.conv{index}.{leaf}" for leaf in ("conv.bias", "norm.running_mean"))
        if bias in tensors and mean in tensors and tensors[bias].shape == tensors[mean].shape:
            tensors[mean] = tensors[mean] - tensors.pop(bias)


def _fits(part: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Whether all of a part is there and nothing of it is left over."""
    mine = {k: v.shape for k, v in own.items() if k.startswith(f"{part}.")}
    given = {k: v.shape for k, v in tensors.items() if k.startswith(f"{part}.")}
    counters = {key for key in mine if key.endswith(COUNTER)}
    return {**dict.fromkeys(counters, torch.Size()), **given} == mine
