"""Parity of losses, metrics and boundary targets with PIDNet's published code.

Part of tools/verify_parity.py: a fixture of kind `losses` states settings, inputs and the numbers
that the published code gives for them. Its entry names carry the settings in words.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.boundary import label_boundary
from utils.criterion import CrossEntropy, OhemCrossEntropy, SegCriterion, boundary_loss
from utils.errors import InputError
from utils.metrics import ConfusionMatrix
from utils.parity import TOLERANCE, Fixture, Row


class Outputs(NamedTuple):
    """What the criterion reads: logits P, I, D at the network's resolution."""

    logits: Tensor
    aux: tuple[Tensor, ...]
    boundary: Tensor


class Inputs(NamedTuple):
    """The fixture's arrays, and the logits resized to the label."""

    label: Tensor
    edge: Tensor
    p: Tensor
    i: Tensor
    d: Tensor
    weights: list[float]
    ignore: int
    settings: Mapping[str, Any]

    def up(self, name: str) -> Tensor:
        aligned = bool(self.settings["MODEL.ALIGN_CORNERS (default.py)"])
        size = self.label.shape[-2:]
        return F.interpolate(getattr(self, name), size, mode="bilinear", align_corners=aligned)


def check_losses(fixture: Fixture) -> Iterator[Row]:
    """All rows of a losses fixture: numbers, gradients, confusion matrices, edge maps."""
    settings, results = fixture.entry("settings"), fixture.entry("results")
    arrays = {k: torch.from_numpy(fixture.array(f"logits_{k}")) for k in "pid"}
    label, edge = (torch.from_numpy(fixture.array(k)) for k in ("label", "edge"))
    data = Inputs(
        label, edge, **arrays, weights=settings["class_weights"],
        ignore=settings["IGNORE_LABEL"], settings=settings,
    )  # fmt: skip
    checks = {
        "full_model": _total,
        "ohem_single_on_upsampled_logits_i": _ohem,
        "cross_entropy": _cross_entropy,
        "boundary": _boundary,
        "metric_logits_i": _metric,
        "metric_absent_classes": _metric,
    }
    for name, check in checks.items():
        if name in results:
            yield from check(fixture, data, name, results[name])
    yield from _edges(fixture)


def _row(
    fixture: Fixture, case: str, output: str, ours: Any, theirs: Any, exact: bool = False
) -> Row:
    """One row for a number or an array; `theirs` must be finite."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if not np.isfinite(theirs).all() or not np.isfinite(ours).all():
        raise InputError(f"{case} {output} of {fixture.name} is not finite")
    if ours.shape != theirs.shape:
        raise InputError(f"{case} {output}: shape {ours.shape}, reference {theirs.shape}")
    distance, scale = np.abs(ours - theirs).max(initial=0), np.abs(theirs).max(initial=0)
    keys = f"{theirs.size}/{theirs.size}"
    relative = float(distance / scale) if scale else float(distance)
    return Row.measured(fixture.name, case, output, keys, relative, 0.0 if exact else TOLERANCE)


def _total(fixture: Fixture, data: Inputs, name: str, results: Mapping[str, Any]) -> Iterator[Row]:
    """The training loss of one setting after the other, its parts and its gradients."""
    gradients = _gradient_names(fixture)
    for text, expected in results.items():
        if not isinstance(expected, Mapping):
            continue  # a setting that the published code cannot run
        threshold, kept, weighted = setting = _setting(text)
        criterion = _criterion(data, threshold, kept, data.weights if weighted else None)
        leaves = [getattr(data, k).clone().requires_grad_() for k in "pid"]
        p, i, d = leaves
        loss, parts = criterion(Outputs(i, (p,), d), data.label, data.edge)
        loss.backward()
        ours = {
            "total": loss.item(),
            "loss_s": float(parts["main"] + parts["aux"]),
            "loss_b": parts["boundary"].item(),
            "loss_sb": parts["boundary_aware"].item(),
            "acc": (data.up("i").argmax(1) == data.label).float().mean().item(),
            **{
                f"grad_{k}_l2": leaf.grad.norm().item()
                for k, leaf in zip("pid", leaves, strict=True)
            },
        }
        case = f"ohem {threshold:g} {kept}{'' if weighted else ' unweighted'}"
        for key, value in ours.items():
            if key in expected:
                yield _row(fixture, case, key, value, expected[key])
        if setting in gradients:
            for k, leaf in zip("pid", leaves, strict=True):
                reference = fixture.reference(f"{gradients[setting]}/{k}", leaf.shape)
                flat = leaf.grad.numpy().ravel()
                flat = flat if reference.indices is None else flat[reference.indices]
                rel = float(np.abs(flat - reference.values).max() / reference.absmax)
                keys = f"{flat.size}/{flat.size}"
                yield Row.measured(fixture.name, case, f"grad {k}", keys, rel, TOLERANCE)


def _criterion(
    data: Inputs, threshold: float, kept: int, weights: Sequence[float] | None
) -> SegCriterion:
    s = data.settings
    aux, main = s["BALANCE_WEIGHTS"]
    if main != 1:
        raise InputError(f"BALANCE_WEIGHTS {s['BALANCE_WEIGHTS']}: the main weight must be 1")
    return SegCriterion(
        "ohem",
        class_weights=weights,
        ignore_label=data.ignore,
        ohem_threshold=threshold,
        ohem_min_kept=kept,
        aux_weights=(aux,),
        aux_average="all",
        boundary_weight=s["boundary coefficient"],
        boundary_aware_weight=s["SB_WEIGHTS"],
        boundary_threshold=s["boundary threshold for the SB loss"],
        align_corners=bool(s["MODEL.ALIGN_CORNERS (default.py)"]),
    )


def _setting(text: str) -> tuple[float, int, bool]:
    """OHEM threshold, pixels kept, class weights used: out of the name of a result."""
    threshold, kept = re.search(r"thres ([\d.]+)", text), re.search(r"keep (\d+)", text)
    if threshold is None or kept is None:
        raise InputError(f"result {text!r} states no OHEM threshold and count")
    return float(threshold[1]), int(kept[1]), "no class weights" not in text


def _gradient_names(fixture: Fixture) -> dict[tuple[float, int, bool], str]:
    """Setting -> prefix of its gradient arrays (`grad_thr002_keep5000` is 0.02, 5000)."""
    s = fixture.entry("settings")
    names = {}
    for prefix in dict.fromkeys(key.partition("/")[0] for key in fixture.entry("arrays")):
        match = re.fullmatch(r"grad_(?:thr(\d)(\d+)_keep(\d+)(_noweights)?|yaml)", prefix)
        if match and match[1]:
            setting = (float(f"{match[1]}.{match[2]}"), int(match[3]), match[4] is None)
            names[setting] = prefix
        elif match:
            names[float(s["OHEMTHRES"]), int(s["OHEMKEEP"]), True] = prefix
    return names


def _ohem(fixture: Fixture, data: Inputs, name: str, results: Sequence[Any]) -> Iterator[Row]:
    logits = data.up("i")
    ours = [
        OhemCrossEntropy(
            entry["thres"],
            entry["min_kept"],
            data.weights if entry["class_weights"] else None,
            data.ignore,
        )(logits, data.label).item()
        for entry in results
    ]
    yield _row(fixture, "ohem alone", "values", ours, [entry["value"] for entry in results])


def _cross_entropy(
    fixture: Fixture, data: Inputs, name: str, results: Mapping[str, Any]
) -> Iterator[Row]:
    label, (aux, main) = data.label, data.settings["BALANCE_WEIGHTS"]
    p, i = data.up("p"), data.up("i")

    def both(weights: Sequence[float] | None) -> float:
        loss = CrossEntropy(weights, data.ignore)
        return (aux * loss(p, label) + main * loss(i, label)).item()

    over_all = CrossEntropy(data.weights, data.ignore, "all")(p, label).item()
    valid_share = (label != data.ignore).float().mean().item()
    ours = {
        "CrossEntropy([p,i]) with class weights": both(data.weights),
        "same without class weights": both(None),
        "CrossEntropy on i alone": CrossEntropy(data.weights, data.ignore)(i, label).item(),
        "what the OHEM class does with p": over_all,
        "the same averaged over valid pixels": over_all / valid_share,
    }
    for start, value in ours.items():
        for text, expected in results.items():
            if text.startswith(start):
                yield _row(fixture, "cross entropy", start, value, expected)


def _boundary(
    fixture: Fixture, data: Inputs, name: str, results: Mapping[str, Any]
) -> Iterator[Row]:
    logits, coefficient = data.up("d"), float(data.settings["boundary coefficient"])
    for text, expected in results.items():
        edge, factor = data.edge.clone(), 1.0
        rows = re.search(r"first (\d+) rows of the edge map set to 255", text)
        if rows:
            edge[:, : int(rows[1])] = 255
        elif "all zero" in text:
            edge.zero_()
        elif "coefficient" in text:
            factor = coefficient
        ours = boundary_loss(logits, edge, factor).item()
        yield _row(fixture, "boundary loss", text[:40], ours, expected)


def _metric(fixture: Fixture, data: Inputs, name: str, results: Mapping[str, Any]) -> Iterator[Row]:
    """Scores of the logits I; where the entry says how, some classes are made absent before."""
    label, logits = data.label.clone(), data.up("i")
    how = results.get("how", "")
    for value in re.findall(r"\d+", how.partition("classes ")[2].partition(" set to")[0]):
        label[label == int(value)] = data.ignore
    channel = re.search(r"channel (\d+) set to (-?[\d.]+)", how)
    if channel:
        logits[:, int(channel[1])] = float(channel[2])
    matrix = ConfusionMatrix(logits.shape[1], ignore_label=data.ignore)
    matrix.update(logits, label)
    overall, iou = matrix.overall(), np.nan_to_num(matrix.per_class()["IoU"])
    ours = {
        "mean_IoU": overall["mIoU_all"],
        "mean_over_classes_present_in_union": overall["mIoU"],
        "IoU": iou,
        "pixel_acc": overall["pixel_accuracy"],
        "mean_acc": overall["mean_accuracy_all"],
    }
    case = "metrics, absent classes" if how else "metrics"
    for text, expected in results.items():
        if text.partition("_official")[0] in ours:
            yield _row(fixture, case, text[:34], ours[text.partition("_official")[0]], expected)
    expected = fixture.array("confusion_matrix_absent" if how else "confusion_matrix")
    yield _row(fixture, case, "confusion matrix", matrix.matrix.numpy(), expected, exact=True)


def _edges(fixture: Fixture) -> Iterator[Row]:
    names = [k.partition("/")[0] for k in fixture.entry("arrays") if k.endswith("/label")]
    for name in names:
        ours = label_boundary(fixture.array(f"{name}/label"))
        yield _row(fixture, name, "edge map", ours, fixture.array(f"{name}/edge"), exact=True)
