"""The only door through which weights enter a model: completely, or not at all."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..errors import InputError
from ..registry import is_known, resolve_name
from .convert import (
    absent_training_heads,
    class_count,
    convert_state_dict,
    recognise,
    rename_for,
)
from .readers import Checkpoint, read_checkpoint

__all__ = [
    "Checkpoint",
    "absent_training_heads",
    "class_count",
    "convert_state_dict",
    "load_weights",
    "read_checkpoint",
    "recognise",
    "rename_for",
]


def load_weights(
    model: nn.Module,
    source: str | Path | Checkpoint,
    reset: Sequence[str] = (),
    *,
    inference: bool = False,
) -> str:
    """Fill `model` from a checkpoint file of this project or of a published code base.

    Args:
        model: a network in its training form (before `fuse`). Unchanged if anything is wrong.
        source: torch.save file (bare state dict or training checkpoint), Paddle .pdparams or
            .safetensors; or what `read_checkpoint` made of it.
        reset: submodules that keep their present values, such as ("head", "aux_head").
        inference: heads that only training uses may be absent from the file as a whole.

    Returns:
        One line, `N tensors loaded, M dropped (reasons), none missing ...`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint that is accepted, or does not fit the model exactly.
    """
    found = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    theirs, ours = found.facts.get("architecture"), getattr(model, "architecture", "")
    if ours and is_known(theirs) and resolve_name(theirs) != ours:
        raise InputError(f"{found.path} holds {resolve_name(theirs)}, the model is {ours}")
    tensors, report = convert_state_dict(
        model,
        found.tensors,
        reset,
        inference=inference,
        ignored=found.ignored,
        source=str(found.path),
    )
    model.load_state_dict(tensors, strict=True)
    return report
