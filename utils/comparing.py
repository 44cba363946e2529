"""Two networks on the same picture: what each sees, and where they disagree."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

HIGHLIGHT = (255, 0, 160)  # RGB of pixels on which two networks disagree


class Share(NamedTuple):
    """A class, its colour (RGB) and its share of the pixels, 0..1."""

    name: str
    color: tuple[int, int, int]
    share: float


class Swap(NamedTuple):
    """What one network calls `name` and the other `other`, and its share of the pixels, 0..1."""

    name: str
    other: str
    share: float


def largest_shares(shares: Mapping[str, float], palette: Sequence[Sequence[int]]) -> list[Share]:
    """The classes that are there, the largest first; `palette` is in the order of `shares`."""
    there = [
        Share(name, tuple(int(value) for value in color), share)
        for (name, share), color in zip(shares.items(), palette, strict=True)
        if share > 0
    ]
    return sorted(there, key=lambda row: -row.share)


def disagreement(
    classes: np.ndarray, others: np.ndarray, names: Sequence[str], other_names: Sequence[str]
) -> np.ndarray:
    """Where two class maps (H, W) name different classes, (H, W) bool.

    Classes are compared by their names, upper and lower case being the same, as two networks may
    have been trained on different data.
    """
    ids, other_ids = _common_ids(names, other_names)
    return ids[classes] != other_ids[others]


def largest_swaps(
    classes: np.ndarray,
    others: np.ndarray,
    names: Sequence[str],
    other_names: Sequence[str],
    most: int = 6,
) -> list[Swap]:
    """The pairs of differing classes that cover most pixels, the largest first."""
    differs = disagreement(classes, others, names, other_names)
    pairs = classes[differs].astype(np.int64) * len(other_names) + others[differs]
    counts = np.bincount(pairs, minlength=1)
    largest = [int(pair) for pair in np.argsort(-counts, kind="stable")[:most] if counts[pair]]
    return [
        Swap(
            names[pair // len(other_names)],
            other_names[pair % len(other_names)],
            int(counts[pair]) / classes.size,
        )
        for pair in largest
    ]


def difference_map(image: np.ndarray, differs: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3), gray and pale, with `differs` (H, W, bool) in one strong colour."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    pale = cv2.cvtColor(gray // 2 + 96, cv2.COLOR_GRAY2RGB)
    pale[differs] = HIGHLIGHT
    return pale


def reduced(image: np.ndarray, most_pixels: int, longest: int) -> np.ndarray:
    """`image` if it has at most that many pixels and no side above `longest`, else a smaller copy
    of the same shape."""
    height, width = image.shape[:2]
    scale = min((most_pixels / (height * width)) ** 0.5, longest / max(height, width))
    if scale >= 1:
        return image
    size = max(int(width * scale), 1), max(int(height * scale), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _common_ids(names: Sequence[str], other_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """For each network's class ids, numbers that are equal where the names are."""
    numbers: dict[str, int] = {}
    tables = []
    for each in (names, other_names):
        keys = [name.strip().casefold() for name in each]
        tables.append(np.array([numbers.setdefault(key, len(numbers)) for key in keys]))
    return tables[0], tables[1]
