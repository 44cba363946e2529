"""Augmentations applied to whole batches by torch operations, on any device.

Nothing here waits for the device: what the host has to know comes from the host.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..color import HUE_STEPS, OPERATIONS, ColorChange
from ..mixing import Paste, patch_table
from ..transforms import Augmentation, TrainTransform


class Pixels(NamedTuple):
    """A flat block of source pixels.

    packed: (N,) int32, the bytes red, green, blue, class index.
    edge: (N,) uint8 boundary target, or None.
    """

    packed: Tensor
    edge: Tensor | None


class Renderer:
    """Applies augmentations to a batch on the device: the definition of TrainTransform.apply.

    Bilinear for the image, nearest for label and boundary target; positions outside of the scaled
    window are padding. The image comes as (N, 3, h, w) float32 in channels-last memory.
    """

    def __init__(self, transform: TrainTransform, device: torch.device) -> None:
        self.transform, self.device = transform, device
        self.rows, self.columns = (torch.arange(n, device=device) for n in transform.crop_size)
        mean, std = (
            torch.tensor(values, device=device)
            for values in (transform.normalize.mean, transform.normalize.std)
        )
        self.mean, self.factor = mean * 255, 1 / (std * 255)

    def __call__(self, pixels: Pixels, batch: dict[str, Any]) -> dict[str, Any]:
        """`batch` (augmentation and place per sample) with image, label and boundary instead."""
        batch = dict(batch)
        augmentations: list[Augmentation] = batch.pop("augmentation")
        table = [
            (*place, *a.window[2:], *a.size, a.mirrored)
            for place, a in zip(batch.pop("place"), augmentations, strict=True)
        ]
        offset, stride, rows, columns, high, wide, mirrored = (
            self._send(torch.tensor(table)).T[:, :, None].unbind()
        )
        x = torch.where(mirrored > 0, len(self.columns) - 1 - self.columns, self.columns)
        y = self.rows.expand(len(table), -1)
        inside = (y < high)[:, :, None] & (x < wide)[:, None, :]
        offset, stride = offset[:, :, None], stride[:, :, None]

        def gather(flat: Tensor, y: Tensor, x: Tensor) -> Tensor:
            return flat[offset + y[:, :, None] * stride + x[:, None, :]]

        nearest = (
            torch.minimum(y * rows // high, rows - 1),
            torch.minimum(x * columns // wide, columns - 1),
        )
        label = gather(pixels.packed, *nearest).view(torch.uint8).unflatten(-1, (-1, 4))[..., 3]
        y0, y1, down = _neighbours(y, rows, high)
        x0, x1, right = _neighbours(x, columns, wide)
        right, down = right[:, None, :, None], down[:, :, None, None]
        upper = torch.lerp(*(_colors(gather(pixels.packed, y0, x)) for x in (x0, x1)), right)
        lower = torch.lerp(*(_colors(gather(pixels.packed, y1, x)) for x in (x0, x1)), right)
        image = torch.lerp(upper, lower, down)
        image = torch.where(inside[..., None], image, float(self.transform.pad_value))
        image = self._recolor(image, [a.color for a in augmentations])
        image = (image - self.mean) * self.factor
        label = torch.where(inside, label, self.transform.ignore_label)
        edge = None if pixels.edge is None else gather(pixels.edge, *nearest) * inside
        if patches := batch.pop("patches", None):
            put = Paste(self._send(patch_table(patches)), self.transform.crop_size)
            image, label = put(image, channels=3), put(label)
            edge = None if edge is None else put(edge)
        batch["image"], batch["label"] = image.permute(0, 3, 1, 2), label
        if edge is not None:
            batch["boundary"] = edge
        return batch

    def _send(self, values: Tensor) -> Tensor:
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=self.device.type == "cuda")

    def _recolor(self, image: Tensor, changes: list[tuple[ColorChange, ...]]) -> Tensor:
        """Colour changes of (N, h, w, 3) in 0..255, the k-th of all samples at a time."""
        steps = [
            (position, operation, [n for n, c in enumerate(changes) if _is(c, position, operation)])
            for position in range(max(map(len, changes), default=0))
            for operation in OPERATIONS
        ]
        steps = [step for step in steps if step[2]]
        if not steps:
            return image
        members = self._send(torch.tensor([n for _, _, group in steps for n in group]))
        amounts = self._send(
            torch.tensor(
                [_amount(changes[n][position]) for position, _, group in steps for n in group]
            )
        )
        first = 0
        for _, operation, group in steps:
            part = slice(first, first + len(group))
            first += len(group)
            chosen, amount = image[members[part]], amounts[part, None, None, None]
            changed = _change(chosen, operation, amount).round_().clamp_(0, 255)
            image.index_copy_(0, members[part], changed)
        return image


def pack(image: np.ndarray, label: np.ndarray) -> Tensor:
    """(H, W, 3) and (H, W) uint8 -> (H * W,) int32 of their bytes."""
    pixels = np.dstack((image, label))
    return torch.from_numpy(pixels.view(np.int32).reshape(-1))


def _is(changes: tuple[ColorChange, ...], position: int, operation: str) -> bool:
    return position < len(changes) and changes[position].operation == operation


def _neighbours(position: Tensor, source: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two source positions beside each scaled one and the weight of the second."""
    place = (position + 0.5) * (source / scaled) - 0.5
    place = torch.minimum(place.clamp_min(0), (source - 1).float())
    low = place.floor()
    first = low.long()
    return first, torch.minimum(first + 1, source - 1), place - low


def _colors(packed: Tensor) -> Tensor:
    """(...) int32 -> (..., 3) float32 in 0..255."""
    return packed.view(torch.uint8).unflatten(-1, (-1, 4))[..., :3].float()


def _amount(change: ColorChange) -> float:
    """What `_change` takes as amount."""
    if change.operation in ("hue", "tint"):
        return change.turn / HUE_STEPS
    return change.levels if change.operation == "shift" else change.factor


def _change(image: Tensor, operation: str, amount: Tensor) -> Tensor:
    """One operation of `datasets.color` on (n, h, w, 3) in 0..255."""
    if operation in ("brightness", "gain"):
        return image * amount
    if operation == "shift":
        return image + amount
    if operation in ("hue", "tint"):
        return _turn_hue(image / 255, amount[..., 0]) * 255
    if operation == "purity":
        value, low = image.amax(3, keepdim=True), image.amin(3, keepdim=True)
        fullest = value / (value - low).clamp_min(1)  # factor at which the pixel is fully saturated
        return value - (value - image) * torch.minimum(amount, fullest)
    gray = (image[..., :1] * 0.299).add_(image[..., 1:2], alpha=0.587)
    gray = gray.add_(image[..., 2:], alpha=0.114)
    center = gray.mean((1, 2), keepdim=True) if operation == "contrast" else gray
    return torch.lerp(center, image, amount)


def _turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    """(n, h, w, 3) in 0..1 with its hue turned by `turn` of the circle, in HSV."""
    value, low = image.amax(3), image.amin(3)
    spread = value - low
    red, green, blue = image.unbind(3)
    safe = torch.where(spread > 0, spread, 1)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turn
    parts = []
    for shift in (5, 3, 1):
        k = (hue + shift) % 6
        parts.append(value - spread * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(parts, 3)
