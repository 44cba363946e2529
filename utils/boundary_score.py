"""How well outlines are met: the boundary F1 score of Csurka et al. (BMVC 2013)."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

TOLERANCE = 0.0075  # share of the image's diagonal, as published
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


class BoundaryScore:
    """Mean over images, then classes, of the F1 score between true and predicted outlines.

    The outline of a class are its pixels beside which (above, below, left or right) a pixel of
    another class stands; the border of the image and of ignored regions is none, and predictions on
    ignored pixels do not count. Precision is the share of a predicted outline within the tolerance
    of the true one, recall the share of the true one within the tolerance of the predicted one. An
    image counts for a class if it has an outline in truth or prediction.

    Args:
        num_classes, class_names, ignore_label: as of a confusion matrix.
        tolerance: share of the diagonal of each image; at least one pixel.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        ignore_label: int = 255,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.class_names = tuple(class_names or map(str, range(num_classes)))
        self.ignore_label, self.tolerance = ignore_label, tolerance
        self.sums = np.zeros((num_classes, 3))  # precision, recall, F1
        self.images = np.zeros(num_classes, np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Count one image: class indices (H, W) uint8 each."""
        reach = max(1.0, self.tolerance * math.hypot(*label.shape))
        ignored = label == self.ignore_label
        truth, guess = (_outlines(classes, ignored) for classes in (label, prediction))
        for index in range(len(self.images)):
            real, found = truth & (label == index), guess & (prediction == index)
            if not real.any() and not found.any():
                continue
            precision, recall = _within(found, real, reach), _within(real, found, reach)
            f1 = 2 * precision * recall / max(precision + recall, 1e-12)
            self.sums[index] += precision, recall, f1
            self.images[index] += 1

    def per_class(self) -> np.ndarray:
        """(classes, 3): precision, recall and F1 of every class in 0..1, nan where undefined."""
        counted = self.images[:, None] > 0
        means = np.full_like(self.sums, np.nan)
        return np.divide(self.sums, self.images[:, None], out=means, where=counted)

    def mean(self) -> float:
        """Mean F1 over the classes that have one; nan without any."""
        scores = self.per_class()[:, 2]
        present = scores[~np.isnan(scores)]
        return float(present.mean()) if present.size else math.nan

    def summary(self) -> str:
        """One line, in percent."""
        mean = self.mean()
        number = "-" if math.isnan(mean) else f"{100 * mean:.2f}"
        return f"boundary_f1 {number} (within {100 * self.tolerance:g} % of the diagonal)"

    def to_dict(self) -> dict[str, Any]:
        """For a JSON record: fractions in 0..1, None where undefined."""
        columns = ("precision", "recall", "F1")
        return {
            "mean_f1": _or_none(self.mean()),
            "tolerance_of_diagonal": self.tolerance,
            "classes": {
                name: {c: _or_none(v) for c, v in zip(columns, row, strict=True)}
                | {"images": int(count)}
                for name, row, count in zip(
                    self.class_names, self.per_class(), self.images, strict=True
                )
            },
        }


def _outlines(classes: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Where a pixel stands beside one of another class, neither of them ignored: (H, W) bool."""
    # Ignored pixels are made extreme in turn, so that no neighbour takes them for another class.
    low = cv2.erode(np.where(ignored, 255, classes).astype(np.uint8), CROSS, borderValue=255)
    high = cv2.dilate(np.where(ignored, 0, classes).astype(np.uint8), CROSS, borderValue=0)
    return (low != high) & ~ignored


def _within(these: np.ndarray, those: np.ndarray, reach: float) -> float:
    """Share of the pixels of one outline at most `reach` from another; 0 without either."""
    if not these.any() or not those.any():
        return 0.0
    distance = cv2.distanceTransform((~those).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((distance[these] <= reach).mean())


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
