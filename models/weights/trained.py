"""A trained network from its file alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..base import SegModel
from ..errors import InputError
from ..registry import build_model, resolve_name
from .convert import class_count
from .loading import load_weights, read_checkpoint
from .rtlinearformer import complete_options

Color = tuple[int, int, int]
MOST_CLASSES = 256  # what a class map of 8 bits holds


class Trained(NamedTuple):
    """A network and what has to be known to use it.

    Attributes:
        model: in eval mode and training form; `fuse` gives the deployed one.
        class_names: in the order of its outputs.
        palette: one RGB colour per class.
        dataset: whose classes they are; "" where that is not known.
        input: how images become its input, for `datasets.EvalTransform.from_facts`; {} where the
            file says nothing.
        score: "miou" (0..1) on the list "list" after epoch "epoch", by which the weights were
            chosen; {} where the file says nothing.
        report: the line of `load_weights`.
    """

    model: SegModel
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    dataset: str
    input: dict[str, Any]
    score: dict[str, Any]
    report: str


def load_trained(
    path: str | Path,
    architecture: str | None = None,
    class_names: Sequence[str] | None = None,
    palette: Sequence[Color] | None = None,
    dataset: str = "",
    **options: Any,
) -> Trained:
    """Build and fill the network of a checkpoint.

    Args:
        path: best.pt or last.pt of a run, a converted file; or any file that `load_weights` takes,
            with what it does not say of itself in the other arguments.
        architecture: name of `models.list_models()`, where the file does not state it.
        class_names, palette, dataset: of the outputs, where the file does not state them.
        options: constructor options, where the file does not state them. Those of the earlier
            shape of RTLinearFormer are recognised.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not say what is needed and neither do the arguments, or says
            something else than they do; or does not fit, as in `load_weights`.
    """
    checkpoint = read_checkpoint(path)
    facts = checkpoint.facts
    stated = facts.get("architecture")
    if stated is None and architecture is None:
        raise InputError(
            f"{path} does not say of which network it is; name its architecture and classes "
            "(commands: --arch and --classes)"
        )
    if None not in (stated, architecture) and resolve_name(stated) != resolve_name(architecture):
        raise InputError(f"{path} holds {resolve_name(stated)}, not {architecture}")
    names, colors = facts.get("class_names"), facts.get("palette")
    if names is None and class_names is None:
        raise InputError(
            f"{path} does not say what its classes are; name them (commands: --classes)"
        )
    if names is not None and class_names is not None and list(names) != list(class_names):
        raise InputError(
            f"{path} was trained on other classes ({len(names)}, {', '.join(map(str, names[:3]))} "
            f"...) than those named ({len(class_names)}, {', '.join(class_names[:3])} ...)"
        )
    if names is None:
        names, colors = class_names, palette
        dataset = dataset or facts.get("dataset", "")
    else:
        dataset = facts.get("dataset", dataset)
    names, colors = check_classes(path, names, colors)
    options = {**facts.get("options", {}), **options}
    if resolve_name(stated or architecture).startswith("rtlinearformer"):
        options = complete_options(options, checkpoint.tensors)
    there = class_count(resolve_name(stated or architecture), checkpoint.tensors, options)
    if there not in (None, len(names)):
        raise InputError(f"{path} has {there} classes, not the {len(names)} that are named")
    model = build_model(stated or architecture, len(names), **options)
    report = load_weights(model, checkpoint, inference=True)
    return Trained(
        model.eval(),
        names,
        colors,
        dataset,
        dict(facts.get("input", {})),
        check_score(facts.get("score", {})),
        report,
    )


def check_classes(
    path: str | Path, names: Any, colors: Any
) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Class names and colours as a file states them. Raises ValueError where they are none."""
    if (
        not isinstance(names, (list, tuple))
        or not 2 <= len(names) <= MOST_CLASSES
        or not all(isinstance(name, str) for name in names)
    ):
        raise InputError(f"{path} has no list of 2 to {MOST_CLASSES} class names")
    if (
        not isinstance(colors, (list, tuple))
        or len(colors) != len(names)
        or not all(
            isinstance(color, (list, tuple))
            and len(color) == 3
            and all(type(value) is int and 0 <= value <= 255 for value in color)
            for color in colors
        )
    ):
        raise InputError(f"{path} has no palette of an RGB colour (0..255) for every class")
    return tuple(names), tuple((int(r), int(g), int(b)) for r, g, b in colors)


def check_score(score: dict[str, Any]) -> dict[str, Any]:
    """A score as this project writes it; {} for anything else."""
    kinds = {"miou": float, "epoch": int, "list": str}
    right = all(type(score.get(key)) is kind for key, kind in kinds.items())
    return dict(score) if right and math.isfinite(score["miou"]) else {}
