"""What a training run keeps, and how it is written and read back."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .distributed import World, gather_objects
from .records import atomic_write, require_space

FORMAT = "rtseg-checkpoint-1"

# What a checkpoint holds beside the weights for a run that goes on, and as what.
RUN = {
    "config": str,
    "progress": dict,
    "steps_per_epoch": int,
    "batch": int,
    "optimizer": dict,
    "scaler": dict,
    "random": list,
}


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all. `content` holds tensors and plain values only.

    Raises StorageError where it cannot be written; an earlier checkpoint is then as it was.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    with buffer.getbuffer() as data:  # not a copy, and given back whatever happens
        atomic_write(path, data)


def require_room(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where `folder` has no room for the checkpoints of a new run.

    At their largest those are last.pt, the next one that takes its place, and best.pt.
    """
    weights = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    moments = 2 if "betas" in optimizer.defaults else 1  # per parameter: AdamW, SGD with momentum
    last = weights + moments * sum(p.nbytes for p in model.parameters())
    require_space(folder, 2 * last + weights, "the checkpoints of this run", "OUTPUT_DIR")


def check_belongs(
    checkpoint: dict[str, Any],
    path: str | Path,
    *,
    dataset: str,
    class_names: Sequence[str],
    options: dict[str, Any],
) -> None:
    """Raise ValueError if a checkpoint was trained on another dataset or with other options."""
    theirs = list(checkpoint["class_names"])
    if checkpoint["dataset"] != dataset or theirs != list(class_names):
        raise ValueError(
            f"{path} was trained on {checkpoint['dataset']} ({len(theirs)} classes); "
            f"DATASET.DATASET is {dataset} ({len(class_names)} classes). To fine-tune, train with "
            """it as MODEL.PRETRAINED and MODEL.RESET "('head', 'aux_head')\""""
        )
    if _tuples(checkpoint["options"]) != _tuples(options):
        raise ValueError(
            f"{path} was trained with MODEL.OPTIONS {checkpoint['options']}; they are {options} "
            "here and must be the same"
        )


def _tuples(value: Any) -> Any:
    """`value` with every list as a tuple; which of the two a setting became tells nothing."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def random_state(world: World) -> list[dict[str, torch.Tensor]]:
    """The generators of every process, by rank."""
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    if world.device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return gather_objects(state, world)


def restore_random_state(states: Sequence[dict[str, torch.Tensor]], world: World) -> bool:
    """Put this process's generators back. False if the run had another number of processes."""
    if len(states) != world.size:
        return False
    state = states[world.rank]
    torch.set_rng_state(state["cpu"])
    if world.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], world.device)
    if world.device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    return True


def read_resumable(
    path: str | Path,
    read: Callable[[Path, dict[str, type]], Any],
    architecture: str,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """What `save_checkpoint` wrote, if a run of `architecture` on these classes can go on from it.

    Args:
        read: `models.weights.read_checkpoint`.

    Raises:
        ValueError: not a whole checkpoint of this project, without optimiser state, or of
            another network or other classes.
    """
    unfit = ValueError(
        f"{path} cannot be resumed from: it is damaged or not a checkpoint of this project; "
        "remove it to start anew, or name intact weights as MODEL.PRETRAINED"
    )
    try:
        found = read(Path(path), RUN)
    except ValueError as error:
        raise unfit from error
    content = {**found.facts, "model": found.tensors}
    whole = {"architecture", "dataset", "class_names", "model"} <= content.keys()
    if content.get("format") != FORMAT or not whole:
        raise unfit
    if "optimizer" not in content:
        raise ValueError(f"{path} holds weights only; a run is resumed from its last.pt")
    if not RUN.keys() <= content.keys():
        raise unfit
    if content["architecture"] != architecture:
        raise ValueError(f"{path} is a run of {content['architecture']}, not of {architecture}")
    if list(content["class_names"]) != list(class_names):
        raise ValueError(
            f"{path} is a run on {content['dataset']} ({len(content['class_names'])} classes), "
            f"not on the {len(class_names)} classes of this configuration"
        )
    return content


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the optimiser's memory but keep the settings that the configuration now states."""
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, now in zip(optimizer.param_groups, settings, strict=True):
        group.update(now)


def keep_earlier_run(folder: Path) -> Path | None:
    """Rename a run folder that holds a checkpoint, so that a new run overwrites nothing."""
    if not any((folder / name).exists() for name in ("last.pt", "best.pt")):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside
