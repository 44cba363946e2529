"""Segmentation metrics from one exact confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

COLUMNS = ("IoU", "precision", "recall", "Dice")


class ConfusionMatrix:
    """Counts of (true class, predicted class) over all pixels that are not ignored, in int64.

    `matrix[t, p]` pixels of class t were predicted as p. Scores are fractions in 0..1. A score
    that has no pixels behind it (the IoU of a class in neither truth nor prediction, the precision
    of a class never predicted) is nan: reported as absent, left out of means.

    Args:
        num_classes: at least 2.
        class_names: one per class, for tables.
        ignore_label: label value of pixels that do not count.
        device: where the counts live; for `reduce` over NCCL the process's own GPU. A Mac's GPU
            (MPS) counts no 64-bit integers: there they live, and are counted, on the CPU.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        ignore_label: int = 255,
        device: torch.device | str = "cpu",
    ) -> None:
        names = tuple(class_names or map(str, range(num_classes)))
        if len(names) != num_classes:
            raise InputError(f"{len(names)} class names for {num_classes} classes")
        self.num_classes = num_classes
        self.class_names = names
        self.ignore_label = ignore_label
        device = torch.device(device)
        home = torch.device("cpu") if device.type == "mps" else device
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=home)
        self._wrong = torch.zeros((), dtype=torch.int64, device=home)
        self._reduced = False

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count a batch, on the device that holds it.

        Args:
            prediction: class ids N, H, W, or logits N, C, H, W at the label's resolution.
            label: N, H, W, integers.

        Raises:
            ValueError: shapes or values outside what this matrix counts.
        """
        if self._reduced:
            raise InputError("this confusion matrix is already summed over all processes")
        prediction = self._class_ids(prediction)
        if prediction.shape != label.shape:
            raise InputError(
                f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} "
                "have different shapes"
            )
        if prediction.device.type == "mps":
            prediction, label = prediction.cpu(), label.cpu()
        if prediction.device.type == "cuda":
            self._count_unseen(prediction, label)
            return
        valid = label != self.ignore_label
        truth, guess = label[valid].long(), prediction[valid].long()
        self._check(truth, "label value", f" nor ignore ({self.ignore_label})")
        self._check(guess, "prediction", "")
        counts = torch.bincount(truth * self.num_classes + guess, minlength=self.num_classes**2)
        self.matrix += counts.view_as(self.matrix).to(self.matrix.device)

    def _count_unseen(self, prediction: Tensor, label: Tensor) -> None:
        """Count without a look at the result: what is no class is found out by `reduce`."""
        classes = self.num_classes
        ignored, wrong = classes**2, classes**2 + 1
        known = (0 <= label) & (label < classes) & (0 <= prediction) & (prediction < classes)
        cell = torch.where(known, label.long() * classes + prediction, wrong)
        cell = torch.where(label == self.ignore_label, ignored, cell)
        for part in (cell + 0.5).flatten().split(1 << 24):  # float32 counts that far exactly
            counts = torch.histc(part, wrong + 1, 0, wrong + 1).long()
            self.matrix += counts[:ignored].view_as(self.matrix)
            self._wrong += counts[wrong]

    def reduce(self) -> None:
        """Sum over all processes of a running process group; without one nothing happens.

        Further calls change nothing, further updates are refused.

        Raises:
            ValueError: what was counted on a GPU held values that are no class.
        """
        if self._reduced:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._wrong)  # first: all processes raise, or none
            torch.distributed.all_reduce(self.matrix)
            self._reduced = True
        if self._wrong.any():
            raise InputError(
                f"{int(self._wrong)} pixels have a label or prediction that is neither a class "
                f"(0..{self.num_classes - 1}) nor ignore ({self.ignore_label})"
            )

    def _class_ids(self, prediction: Tensor) -> Tensor:
        if not prediction.is_floating_point():
            return prediction
        if prediction.ndim != 4 or prediction.shape[1] != self.num_classes:
            raise InputError(
                f"logits {tuple(prediction.shape)} for {self.num_classes} classes; "
                f"N, {self.num_classes}, H, W is needed"
            )
        return prediction.argmax(1)

    def _check(self, values: Tensor, what: str, alternative: str) -> None:
        if not values.numel():
            return
        low, high = torch.stack(values.aminmax()).tolist()
        if low < 0 or high >= self.num_classes:
            either = "neither" if alternative else "not"
            raise InputError(
                f"{what} {low if low < 0 else high} is {either} a class "
                f"(0..{self.num_classes - 1}){alternative}"
            )

    def per_class(self) -> dict[str, np.ndarray]:
        """Float64 vectors of C: IoU, precision, recall and Dice; nan where undefined."""
        hit, truth, guess = self._counts()
        return {
            "IoU": _ratio(hit, truth + guess - hit),
            "precision": _ratio(hit, guess),
            "recall": _ratio(hit, truth),
            "Dice": _ratio(2 * hit, truth + guess),
        }

    def overall(self) -> dict[str, float]:
        """Scalar scores; nan where undefined.

        mIoU, mean_dice: over the classes present in truth or prediction.
        mean_accuracy: recall over the classes present in truth.
        mIoU_all, mean_accuracy_all: over all classes, an absent one counting as 0, as PIDNet's
            published evaluation has it.
        kappa: Cohen's, agreement beyond chance.
        """
        scores = self.per_class()
        hit, truth, guess = self._counts()
        total = truth.sum()
        agreement = _ratio(hit.sum(), total)
        chance = _ratio(truth / max(total, 1) @ guess, total)
        return {
            "mIoU": _mean(scores["IoU"]),
            "pixel_accuracy": float(agreement),
            "mean_accuracy": _mean(scores["recall"]),
            "mean_dice": _mean(scores["Dice"]),
            "kappa": float(_ratio(agreement - chance, 1 - chance)),
            "mIoU_all": float(np.nan_to_num(scores["IoU"]).mean()),
            "mean_accuracy_all": float(np.nan_to_num(scores["recall"]).mean()),
        }

    def absent(self) -> list[str]:
        """Names of the classes in neither truth nor prediction."""
        missing = np.isnan(self.per_class()["IoU"])
        return [name for name, gone in zip(self.class_names, missing, strict=True) if gone]

    def table(self) -> str:
        """Plain-text table, in percent: share of the pixels and scores per class; "-" if absent."""
        scores = self.per_class()
        counts = self._counts()[1]
        total = max(counts.sum(), 1)
        rows = [("class", "share", *COLUMNS)]
        for index, name in enumerate(self.class_names):
            numbers = (counts[index] / total, *(scores[column][index] for column in COLUMNS))
            rows.append((name, *map(_percent, numbers)))
        means = (_mean(scores[column]) for column in COLUMNS)
        rows.append(("mean", "", *map(_percent, means)))
        first = max(len(row[0]) for row in rows)
        lines = [row[0].ljust(first) + "".join(f"{cell:>11}" for cell in row[1:]) for row in rows]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def summary(self) -> str:
        """One line per scalar score, in percent (`mIoU 71.23`), and the absent classes if any."""
        overall = self.overall()
        names = ("mIoU", "pixel_accuracy", "mean_accuracy", "mean_dice", "kappa")
        lines = [f"{name} {_percent(overall[name])}" for name in names]
        absent = self.absent()
        if absent:
            lines.append(f"absent from truth and prediction: {', '.join(absent)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything for a JSON record: fractions in 0..1, None where undefined."""
        scores = self.per_class()
        return {
            **{name: _or_none(value) for name, value in self.overall().items()},
            "pixels": int(self.matrix.sum()),
            "absent": self.absent(),
            "classes": {
                name: {column: _or_none(scores[column][index]) for column in COLUMNS}
                for index, name in enumerate(self.class_names)
            },
            "confusion_matrix": self.matrix.tolist(),
        }

    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Float64: correct, true and predicted pixels per class, summed exactly before."""
        matrix = self.matrix.cpu().numpy()
        counts = (matrix.diagonal(), matrix.sum(1), matrix.sum(0))
        return tuple(count.astype(np.float64) for count in counts)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole != 0)


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
