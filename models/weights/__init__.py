"""The only door through which weights enter a model: completely, or not at all."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from ..registry import is_known, resolve_name
from .convert import (
    Conversion,
    absent_training_heads,
    class_count,
    convert_state_dict,
    recognise,
    rename_for,
)
from .readers import Checkpoint, read_checkpoint

__all__ = [
    "Checkpoint",
    "Conversion",
    "absent_training_heads",
    "class_count",
    "convert_state_dict",
    "load_checkpoint",
    "load_weights",
    "read_checkpoint",
    "recognise",
    "rename_for",
]


def load_weights(
    model: nn.Module, path: str | Path, reset: Sequence[str] = (), *, inference: bool = False
) -> str:
    """Fill `model` from a checkpoint file of this project or of a published code base.

    Args:
        model: a network in its training form (before `fuse`). Unchanged if anything is wrong.
        path: torch.save file (bare state dict or training checkpoint), Paddle .pdparams or
            .safetensors.
        reset: submodules that keep their present values, such as ("head", "aux_head").
        inference: heads that only training uses may be absent from the file as a whole.

    Returns:
        One line, `N tensors loaded, M dropped (reasons), none missing ...`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint that is accepted, or does not fit the model exactly.
    """
    return load_checkpoint(model, read_checkpoint(path), path, reset, inference=inference)


def load_checkpoint(
    model: nn.Module,
    checkpoint: Checkpoint,
    path: str | Path,
    reset: Sequence[str] = (),
    *,
    inference: bool = False,
) -> str:
    """`load_weights` with a checkpoint that has been read from `path`."""
    theirs, ours = checkpoint.facts.get("architecture"), getattr(model, "architecture", "")
    if ours and is_known(theirs) and resolve_name(theirs) != ours:
        raise ValueError(f"{path} holds {resolve_name(theirs)}, the model is {ours}")
    if inference:
        reset = (*reset, *absent_training_heads(model, checkpoint.tensors))
    converted = convert_state_dict(model, checkpoint.tensors, reset, source=str(path))
    model.load_state_dict(converted.tensors, strict=True)
    return _report(converted, checkpoint.ignored)


def _report(converted: Conversion, ignored: dict[str, str]) -> str:
    dropped = {**ignored, **converted.dropped}
    parts = [
        f"{converted.loaded} tensor{'' if converted.loaded == 1 else 's'} loaded",
        f"{len(dropped) or 'none'} dropped{_reasons(dropped.values())}",
        "none missing",
    ]
    if converted.filled:
        parts.append(f"{len(converted.filled)} constant{_reasons(converted.filled.values())}")
    if converted.fresh:
        parts.append(f"{len(converted.fresh)} left fresh{_reasons(converted.fresh.values())}")
    if converted.reset:
        parts.append(f"{len(converted.reset)} left fresh (reset)")
    return f"{', '.join(parts)}; its keys have {converted.dialect} names"


def _reasons(reasons: Iterable[str]) -> str:
    counts = Counter(reasons)
    if len(counts) < 2:
        return "".join(f" ({reason})" for reason in counts)
    return f" ({'; '.join(f'{n} {reason}' for reason, n in counts.items())})"
