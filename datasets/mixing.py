"""What is drawn by looking at labels: crops that are not of one class, and CutMix.

Only every STRIDE-th pixel of every STRIDE-th row is looked at. These pixels are at hand wherever
augmentations are drawn, even where the labels lie on a GPU, so that all paths draw alike.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

STRIDE = 4
AREA = (0.1, 0.5)  # share of the crop that a pasted rectangle covers
ASPECT = 2.0  # of its height to its width, over that of the crop, at most; 1 / ASPECT at least


class Coarse(NamedTuple):
    """What CutMix knows of a crop.

    seed: of its sample.
    classes: (ceil(h / STRIDE), ceil(w / STRIDE)) uint8 class indices of its cells.
    """

    seed: int
    classes: np.ndarray


class Patch(NamedTuple):
    """The rectangle of a crop that the same place of another crop of the batch covers."""

    partner: int
    top: int
    left: int
    bottom: int
    right: int


def thumbnail(label: np.ndarray) -> np.ndarray:
    """Every STRIDE-th pixel of a label, a view."""
    return label[::STRIDE, ::STRIDE]


def largest_share(thumb: np.ndarray, window: tuple[int, int, int, int], ignore_label: int) -> float:
    """Share of the most frequent class among the labelled pixels of a window (top, left, rows,
    columns); 1 where there are none."""
    top, left, rows, columns = window
    part = thumb[_cells(top, rows), _cells(left, columns)]
    counts = np.bincount(part[part != ignore_label].ravel())
    return float(counts.max() / counts.sum()) if counts.size else 1.0


def _cells(first: int, length: int) -> slice:
    return slice(-(-first // STRIDE), -(-(first + length) // STRIDE))


def coarse_crop(
    thumb: np.ndarray,
    window: tuple[int, int, int, int],
    size: tuple[int, int],
    mirrored: bool,
    crop_size: tuple[int, int],
    ignore_label: int,
) -> np.ndarray:
    """The cells of a crop: window, size and mirrored as in `Augmentation`."""
    places = []
    for axis in (0, 1):
        position = np.arange(STRIDE // 2, crop_size[axis] + STRIDE // 2, STRIDE)
        position = np.minimum(position, crop_size[axis] - 1)
        if axis and mirrored:
            position = crop_size[axis] - 1 - position
        source = window[axis] + position * window[2 + axis] // size[axis]
        cell = np.minimum(source // STRIDE, thumb.shape[axis] - 1)
        places.append((cell, position >= size[axis]))
    (rows, below), (columns, beside) = places
    classes = thumb[np.ix_(rows, columns)]
    classes[below] = ignore_label
    classes[:, beside] = ignore_label
    return classes


def draw_patches(
    crops: Sequence[Coarse], probability: float, crop_size: tuple[int, int], ignore_label: int
) -> list[Patch] | None:
    """With `probability` a rectangle for every crop of a batch, else None.

    It comes from the same place of another crop, and holds a pixel of a class of that crop that is
    drawn by 1 / sqrt(its share in the batch): rare classes are preferred. All follows from the
    samples' seeds.
    """
    rng = np.random.default_rng([crops[0].seed, len(crops)])
    if len(crops) < 2 or rng.random() >= probability:
        return None
    counts = np.sum([np.bincount(c.classes.ravel(), minlength=256) for c in crops], 0)
    counts[ignore_label] = 0
    shift = 1 + int(rng.integers(len(crops) - 1))
    patches = []
    for index in range(len(crops)):
        partner = (index + shift) % len(crops)
        place = _rare_cell(crops[partner].classes, counts, ignore_label, rng)
        area = rng.uniform(*AREA)
        ratio = ASPECT ** rng.uniform(-1, 1)
        corners = []
        for side, cell, share in zip(
            crop_size, place, (np.sqrt(area * ratio), np.sqrt(area / ratio)), strict=True
        ):
            length = min(side, max(1, round(side * share)))
            low, high = 0, side - length
            if cell is not None:
                pixel = min(side - 1, cell * STRIDE + STRIDE // 2)
                low, high = max(low, pixel - length + 1), min(high, pixel)
            first = int(rng.integers(low, high + 1))
            corners.append((first, first + length))
        (top, bottom), (left, right) = corners
        patches.append(Patch(partner, top, left, bottom, right))
    return patches


def _rare_cell(
    classes: np.ndarray, counts: np.ndarray, ignore_label: int, rng: np.random.Generator
) -> tuple[int | None, int | None]:
    """Row and column of a cell of a drawn class; None where nothing is labelled."""
    present = np.unique(classes[classes != ignore_label])
    if not present.size:
        return None, None
    weights = 1 / np.sqrt(counts[present])
    chosen = rng.choice(present, p=weights / weights.sum())
    cells = np.flatnonzero(classes == chosen)
    row, column = divmod(int(cells[rng.integers(cells.size)]), classes.shape[1])
    return row, column


class Paste:
    """Puts `patches` into tensors of a batch N, ... of crops of `crop_size`, all at once.

    table: (5, N) of the patches, lying where the tensors do (see `patch_table`).
    """

    def __init__(self, table: Tensor, crop_size: tuple[int, int]) -> None:
        self.partner, top, left, bottom, right = table.unbind()
        y, x = (torch.arange(side, device=table.device) for side in crop_size)
        down = (y >= top[:, None]) & (y < bottom[:, None])
        across = (x >= left[:, None]) & (x < right[:, None])
        self.inside = down[:, :, None] & across[:, None, :]

    def __call__(self, values: Tensor, channels: int | None = None) -> Tensor:
        """`values` with the pasted rectangles; `channels`: their axis, None where there is none."""
        inside = self.inside if channels is None else self.inside.unsqueeze(channels)
        return torch.where(inside, values[self.partner], values)


def patch_table(patches: Sequence[Patch]) -> Tensor:
    """(5, N) int64: partner, top, left, bottom, right."""
    return torch.tensor(patches).T.contiguous()


def paste(batch: dict[str, Any], patches: Sequence[Patch]) -> None:
    """Put `patches` into image (N, 3, h, w), label and boundary of `batch`.

    The boundary target comes along as it was: the outline of a patch, where classes may meet that
    met in neither picture, is no boundary unless one of them had one there.
    """
    put = Paste(patch_table(patches), tuple(batch["image"].shape[2:]))
    batch["image"] = put(batch["image"], channels=1)
    for key in ("label", "boundary"):
        if key in batch:
            batch[key] = put(batch[key])
