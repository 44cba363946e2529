"""What a training run keeps, and how it is written and read back."""

import io
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from .errors import InputError
from .records import atomic_file, require_space

FORMAT = "rtseg-checkpoint-1"

RESUMABLE = ("last.pt", "previous.pt")  # newest first

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
AVERAGING = {"trained": dict}  # the weights behind the averaged ones, in a run that averages


def save_checkpoint(
    path: str | Path, content: dict[str, Any], earlier: str | Path | None = None
) -> None:
    """Write a checkpoint whole or not at all. `content` holds tensors and plain values only.

    Every tensor carries its checksum (the container is a zip archive), which reading verifies.

    Args:
        earlier: where the checkpoint that was at `path` is kept.

    Raises:
        StorageError: it cannot be written; the earlier checkpoints are then as they were.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    size = buffer.tell()
    with buffer.getbuffer() as data, atomic_file(path, size, earlier) as stream:  # data: no copy
        stream.write(data)


def require_room(folder: Path, model: nn.Module, *, moments: int, networks: int = 1) -> None:
    """Raise ValueError where `folder` has no room for the checkpoints of a new run.

    At their largest those are last.pt, the one before it, the next one, and best.pt.

    Args:
        moments: what the optimiser remembers of every parameter: AdamW 2, SGD with momentum 1.
        networks: how often last.pt holds the weights: twice if they are averaged.
    """
    weights = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    last = networks * weights + moments * sum(p.nbytes for p in model.parameters())
    require_space(folder, 3 * last + weights, "the checkpoints of this run", "OUTPUT_DIR")


def check_belongs(
    checkpoint: dict[str, Any],
    path: str | Path,
    *,
    dataset: str,
    class_names: Sequence[str],
    options: dict[str, Any],
) -> None:
    """Raise ValueError if a checkpoint was trained on other classes or with other options.

    Two datasets may have the same classes: drawn scenes have those of CamVid.
    """
    theirs = list(checkpoint["class_names"])
    if theirs != list(class_names):
        raise InputError(
            f"{path} was trained on {checkpoint['dataset']} ({len(theirs)} classes); "
            f"DATASET.DATASET is {dataset} ({len(class_names)} classes). To fine-tune, train with "
            """it as MODEL.PRETRAINED and MODEL.RESET "('head', 'aux_head')\""""
        )
    if as_tuples(checkpoint["options"]) != as_tuples(options):
        raise InputError(
            f"{path} was trained with MODEL.OPTIONS {checkpoint['options']}; they are {options} "
            "here and must be the same. To start from its weights, train with it as "
            "MODEL.PRETRAINED, and with MODEL.RESET for what differs"
        )


def as_tuples(value: Any) -> Any:
    """`value` with every list as a tuple; which of the two a setting became tells nothing."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, (list, tuple)) else value


class DamagedError(ValueError):
    """A file that is no whole checkpoint of this project."""


def find_resumable(
    folder: Path, read: Callable[[Path], dict[str, Any]]
) -> tuple[dict[str, Any], Path, str] | None:
    """The newest whole checkpoint of a run folder, by `read`, its path, and a remark or "".

    None where there is none at all. Raises what `read` raises where the newest one does not belong
    to the run, and DamagedError where none is whole.
    """
    remark, found = "", [folder / name for name in RESUMABLE if (folder / name).exists()]
    for path in found:
        try:
            return read(path), path, remark
        except DamagedError as error:
            if path == found[-1]:
                raise
            remark = f"{error}".partition(";")[0] + f"; going on from {found[-1]}, the one before"
    return None


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
    unfit = DamagedError(
        f"{path} cannot be resumed from: it is damaged or not a checkpoint of this project; "
        "remove it to start anew, or name intact weights as MODEL.PRETRAINED"
    )
    try:
        found = read(Path(path), RUN | AVERAGING)
    except ValueError as error:
        raise unfit from error
    content = {**found.facts, "model": found.tensors}
    whole = {"architecture", "dataset", "class_names", "model"} <= content.keys()
    if content.get("format") != FORMAT or not whole:
        raise unfit
    if "optimizer" not in content:
        raise InputError(f"{path} holds weights only; a run is resumed from its last.pt")
    if not RUN.keys() <= content.keys():
        raise unfit
    if content["architecture"] != architecture:
        raise InputError(f"{path} is a run of {content['architecture']}, not of {architecture}")
    if list(content["class_names"]) != list(class_names):
        raise InputError(
            f"{path} is a run on {content['dataset']} ({len(content['class_names'])} classes), "
            f"not on the {len(class_names)} classes of this configuration"
        )
    return content


def lock_folder(folder: Path) -> TextIO | None:
    """Make a run folder this process's own until what is returned is closed, or the process ends.

    Loader processes do not share the lock. None: this system has no such locks.

    Raises:
        ValueError: another run writes into the folder.
    """
    try:
        import fcntl
    except ImportError:
        return None
    stream = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        stream.seek(0)
        holder = stream.read().strip()
        raise InputError(
            f"another run writes into {folder} ({holder or 'still starting'}); wait for its end, "
            "or name another OUTPUT_DIR"
        ) from None
    except OSError:  # a file system without locks
        return stream
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}")
    stream.flush()
    return stream


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes have left half-written in a folder that this one has locked."""
    for name in (*RESUMABLE, "best.pt"):
        for path in folder.glob(f".{name}.*"):
            path.unlink()


def keep_earlier_run(folder: Path) -> Path | None:
    """Rename a run folder that holds a checkpoint, so that a new run overwrites nothing."""
    if not any((folder / name).exists() for name in (*RESUMABLE, "best.pt")):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside
