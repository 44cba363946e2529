"""Weights out of a file and into a model: completely, or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from ..errors import InputError
from ..registry import is_known, resolve_name
from . import readers
from .convert import convert_state_dict
from .partial import start_from_rtformer
from .readers import Checkpoint
from .rtlinearformer import EARLIER, complete_options, is_earlier


def read_checkpoint(path: str | Path, also: Mapping[str, type] | None = None) -> Checkpoint:
    """Read the weights in a file; see `readers.read_checkpoint`.

    Options among its facts are those to build the network with today, also where a default was
    another when the file was written.
    """
    found = readers.read_checkpoint(path, also)
    if "options" in found.facts:
        found.facts["options"] = complete_options(found.facts["options"], found.tensors)
    return found


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
        reset: submodules that keep their present values, such as ("head", "aux_head"). An
            RTLinearFormer takes what RTFormer weights have in common with it, all else reset.
        inference: heads that only training uses may be absent from the file as a whole.

    Returns:
        One line, `N tensors loaded, M dropped (reasons), none missing ...`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint that is accepted, or does not fit the model exactly.
    """
    found = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    start = None if inference else start_from_rtformer(model, found.tensors, reset, str(found.path))
    if start is not None:
        ignored = {**found.ignored, **start.ignored}
        tensors, report = convert_state_dict(
            model, start.tensors, reset, ignored=ignored, source=str(found.path)
        )
        model.load_state_dict(tensors, strict=True)
        return f"{start.report}; {report.partition('; its keys')[0]}"
    theirs, ours = found.facts.get("architecture"), getattr(model, "architecture", "")
    if ours and is_known(theirs) and resolve_name(theirs) != ours:
        raise InputError(f"{found.path} holds {resolve_name(theirs)}, the model is {ours}")
    if is_earlier(found.tensors) and getattr(model, "fusion", "") == "add":
        words = " ".join(f"{key} {value!r}" for key, value in EARLIER.items())
        raise InputError(
            f"{found.path} holds {ours} in its earlier shape; it needs the options {words}"
        )
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
