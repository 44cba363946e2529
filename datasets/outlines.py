"""Label values that stand on the outlines of things only, as smoothing leaves them."""

from collections.abc import Iterable

import cv2
import numpy as np

SQUARE = np.ones((3, 3), np.uint8)
BLENDS = 3  # values on outlines alone, from which on a label looks smoothed
FLAT = 0.1  # share of a value's pixels that may lie off the outlines all the same
MOST = 0.5  # share of all pixels; where there are more, the label has another trouble


def flat_pixels(label: np.ndarray) -> np.ndarray:
    """Where all of the 3x3 pixels around are alike: (H, W) bool for (H, W) or (H, W, C) uint8."""
    same = cv2.erode(label, SQUARE) == cv2.dilate(label, SQUARE)
    return same if label.ndim == 2 else same.all(2)


def smoothed_values(label: np.ndarray, values: Iterable[int]) -> list[int]:
    """Those of `values` that look as if anti-aliasing or interpolation made them.

    They stand next to areas of the other values. [] where they are too few or nearly everywhere.

    Args:
        label: (H, W) uint8.
        values: candidates, that have no class for example.
    """
    pixels = np.bincount(label.ravel(), minlength=256)
    values = [value for value in values if pixels[value]]
    if len(values) < BLENDS:
        return []
    flat = flat_pixels(label)
    inside = np.bincount(label[flat], minlength=256)
    thin = [value for value in values if inside[value] <= FLAT * pixels[value]]
    beside = inside.sum() - inside[thin].sum()
    if len(thin) < BLENDS or not beside or pixels[thin].sum() > MOST * label.size:
        return []
    return thin
